"""Copies planted among drawn pictures are found, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checked_pictures import COPIES, copy, drawn, jpeg
from liftplus.checks import alignment, doubles, neighbours, thumbs
from liftplus.checks.thumbs import Thumbs
from liftplus.data.arrays import ArrayStore
from liftplus.data.stores import FolderStore


def planted(root: Path, count: int = 15) -> Thumbs:
    """Pictures 0 to count - 1, then a copy of each of the first five."""
    for number in range(count):
        (root / f"{number}.jpg").write_bytes(jpeg(drawn(number)))
    for number, kind in enumerate(COPIES):
        (root / f"{count + number}.jpg").write_bytes(copy(drawn(number), kind))
    return thumbs.read(FolderStore(root), [f"{k}.jpg" for k in range(count + len(COPIES))])


def test_planted_copies_are_found_and_no_others(tmp_path: Path) -> None:
    small = planted(tmp_path)
    near = doubles.near(small, None)
    assert [(d.first, d.second, d.mirrored) for d in near] == [
        (0, 15, False),
        (1, 16, False),
        (2, 17, False),
        (3, 18, True),
    ]
    assert all(0.9 <= d.likeness <= 1 and not d.exact for d in near)
    assert doubles.equal(small) == [doubles.Double(4, 19, True, False, 1.0)]
    assert doubles.groups(near + doubles.equal(small), 20) == [[k, k + 15] for k in range(5)]


def test_features_find_what_hashes_pass_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = planted(tmp_path)
    rows = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    rows[15:] = rows[:5]
    monkeypatch.setattr(doubles, "HASH_LEAST", 2.0)
    assert doubles.near(small, None) == []
    found = doubles.near(small, neighbours.nearest(rows, rows, 3))
    assert [(d.first, d.second) for d in found] == [(0, 15), (1, 16), (2, 17), (3, 18)]


def test_copies_of_copies_are_one_group(tmp_path: Path) -> None:
    image = drawn(1)
    for number, data in enumerate((jpeg(image), copy(image, "resized"), copy(image, "mirrored"), jpeg(drawn(2)))):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    small = thumbs.read(FolderStore(tmp_path), [f"{k}.jpg" for k in range(4)])
    assert doubles.groups(doubles.near(small, None), 4) == [[0, 1, 2]]


def test_pictures_without_structure_are_doubles_by_their_bytes_alone(tmp_path: Path) -> None:
    for number, size in enumerate(((60, 50), (80, 50), (60, 50))):
        Image.new("RGB", size, "white").save(tmp_path / f"{number}.png")
    small = thumbs.read(FolderStore(tmp_path), ["0.png", "1.png", "2.png"])
    assert doubles.near(small, None) == []
    assert [(d.first, d.second) for d in doubles.equal(small)] == [(0, 2)]


def test_unreadable_gray_and_transparent_pictures(tmp_path: Path) -> None:
    image = drawn(5)
    image.save(tmp_path / "whole.png")
    image.convert("L").save(tmp_path / "gray.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(jpeg(image)[:40])
    small = thumbs.read(FolderStore(tmp_path), ["whole.png", "gray.png", "alpha.png", "empty.jpg", "cut.jpg", "no.jpg"])
    assert list(small.unreadable) == [3, 4, 5]
    assert "no.jpg" in small.unreadable[5]
    found = {(d.first, d.second) for d in doubles.near(small, None)}
    assert (0, 2) in found and not {k for pair in found for k in pair} & {3, 4, 5}
    assert doubles.equal(small) == []  # three unreadable files are no doubles


def test_pictures_in_memory_are_compared_by_their_pixels() -> None:
    pixels = np.stack([np.asarray(drawn(k, (40, 40))) for k in (0, 1, 0)])
    small = thumbs.read(ArrayStore(pixels), ["0", "1", "2"])
    assert [(d.first, d.second) for d in doubles.equal(small)] == [(0, 2)]
    assert doubles.near(small, None) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_pictures(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(drawn(number)))
    assert doubles.near(thumbs.read(FolderStore(tmp_path), [f"{k}.jpg" for k in range(count)]), None) == []


def test_a_part_is_laid_where_it_was_cut() -> None:
    whole = torch.from_numpy(np.asarray(drawn(3, (480, 480)).resize((48, 48), reducing_gap=None)).copy())[None]
    part = drawn(3, (480, 480)).crop((48, 0, 480, 432)).resize((48, 48), Image.Resampling.BILINEAR)
    other = torch.from_numpy(np.asarray(part).copy())[None]
    first, second = alignment.gray(whole, 32), alignment.gray(other, 32)
    place = alignment.laid(first, second, alignment.still(1), 10)
    assert place[0].tolist() == pytest.approx([0.9, 0.1, 0.9, -0.1], abs=0.02)
