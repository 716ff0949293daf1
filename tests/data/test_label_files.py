"""Shards of pictures with a .cls file beside each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from liftplus.data import tree
from liftplus.data.dataset import Table
from liftplus.data.stores import TarStore
from liftplus.errors import UserError

Png = Callable[..., bytes]


@pytest.fixture
def shard(tmp_path: Path, png: Png) -> Callable[[Mapping[str, bytes | None]], Table]:
    """The table of a tar: name to content, None for a picture."""

    def read(content: Mapping[str, bytes | None]) -> Table:
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data if data is not None else png())
                tar.addfile(info, io.BytesIO(data if data is not None else png()))
        return tree.read(TarStore(tmp_path / "s.tar"))

    return read


Shard = Callable[[Mapping[str, bytes | None]], Table]


def test_numbers_and_words(shard: Shard) -> None:
    table = shard(
        {"1.png": None, "1.cls": b"1\n", "2.png": None, "2.cls": b"01", "3.png": None, "3.cls": b"0", "3.json": b"{}"}
    )
    assert table.rows == {"train": [("1.png", "1"), ("2.png", "1"), ("3.png", "0")]}
    assert table.class_ids == ("0", "1")
    assert table.notes == ("Labels were read from the .cls files beside the pictures.",)
    assert shard({"1.png": None, "1.cls": b"barn owl\n"}).rows == {"train": [("1.png", "barn owl")]}


def test_the_common_part_ends_at_the_first_dot(shard: Shard) -> None:
    rows = shard({"1.left.png": None, "1.right.png": None, "1.cls": b"0", "2.left.png": None, "2.cls": b"1"}).rows
    assert rows == {"train": [("1.left.png", "0"), ("1.right.png", "0"), ("2.left.png", "1")]}


def test_splits_above(shard: Shard) -> None:
    names = [f"{split}/{i}" for split in ("train", "val") for i in (0, 1)]
    rows = shard(
        {f"{name}.{end}": None if end == "png" else name[-1:].encode() for name in names for end in ("png", "cls")}
    ).rows
    assert rows == {split: [(f"{split}/0.png", "0"), (f"{split}/1.png", "1")] for split in ("train", "val")}


def test_class_folders_win_over_a_few_such_files(shard: Shard) -> None:
    table = shard({"cat/1.png": None, "cat/1.cls": b"0", "dog/1.png": None})
    assert table.rows == {"train": [("cat/1.png", "cat"), ("dog/1.png", "dog")]}
    assert any("1 .cls" in note for note in table.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1.png": None, "1.cls": b"0", "2.png": None}, r"1 of 2 images has no \.cls file .*'2\.png'"),
        ({"1.png": None, "1.cls": b" "}, r"1\.cls holds no label"),
        ({"1.png": None, "1.cls": b"\xff\xfe"}, r"1\.cls holds no label"),
        ({"1.png": None, "1.cls": b"a\nb"}, r"1\.cls holds no label"),
        ({"1.png": None, "1.txt": b"a cat"}, r"no class folders.*\.cls file with the label beside each"),
    ],
)
def test_faults(shard: Shard, content: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shard(content)
