"""What inspect finds, against data with known faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liftplus.data.arrays import ArrayStore
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.inspection import inspect
from liftplus.data.sources import load, without_unreadable
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]


@pytest.fixture
def faulty(tmp_path: Path, grow: Grow) -> Path:
    grow(tmp_path, {"train/a": 4, "train/b": 2, "train/c": 0, "test/a": 2})
    (tmp_path / "test/a/twin.png").write_bytes((tmp_path / "train/a/0.png").read_bytes())
    (tmp_path / "train/b/twin.png").write_bytes((tmp_path / "train/a/1.png").read_bytes())
    (tmp_path / "train/a/broken.jpg").write_text("nothing")
    (tmp_path / "train/a/empty.jpg").write_bytes(b"")
    (tmp_path / "train/b/empty.jpg").write_bytes(b"")
    Image.new("L", (30, 40)).save(tmp_path / "train/b/grey.png")
    return tmp_path


def test_findings(faulty: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = inspect(load(DataConfig(source=str(faulty))), progress=lambda done, total: seen.append((done, total)))
    assert found.counts == {"train": (6, 5, 0), "test": (3, 0, 0)}
    assert found.totals == {"train": 11, "test": 3}
    assert found.imbalance_ratio == 6 / 5
    assert found.without_training == (2,)
    assert found.absent_from_test == (1, 2)
    assert [[place.key for place in twin.places] for twin in found.leaks] == [["train/a/0.png", "test/a/twin.png"]]
    assert [[place.key for place in twin.places] for twin in found.conflicts] == [["train/a/1.png", "train/b/twin.png"]]
    assert len(found.duplicates) == 2  # empty files are unreadable, not twins
    assert [broken.place.key for broken in found.unreadable] == [
        "train/a/broken.jpg",
        "train/a/empty.jpg",
        "train/b/empty.jpg",
    ]
    assert "no image format" in found.unreadable[0].reason
    assert found.modes == {"RGB": 10, "L": 1}
    assert (found.widths, found.heights) == ((7, 7, 30), (5, 5, 40))
    assert seen[-1] == (14, 14)
    text = json.loads(json.dumps(found.to_dict()))
    assert text["duplicates"][0]["across_splits"] is True
    assert text["unreadable"][0]["place"]["split"] == "train"


def test_counts_alone_open_no_file(faulty: Path) -> None:
    found = inspect(load(DataConfig(source=str(faulty))), check_files=False)
    assert found.totals == {"train": 11, "test": 3}
    assert not found.checked
    assert found.unreadable == found.duplicates == ()
    assert found.widths is None


def test_groups_at_their_bounds() -> None:
    counts = (101, 100, 20, 19, 0)
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    names = tuple("abcde")
    store = ArrayStore(np.zeros((1, 4, 4, 3), dtype=np.uint8))
    dataset = DataSet("x", names, names, {"train": Split(["0"] * len(labels), labels)}, store)
    found = inspect(dataset)
    assert found.groups == {"many": (0,), "medium": (1, 2), "few": (3, 4)}
    assert found.imbalance_ratio == 101 / 19
    assert len(found.duplicates) == 1


class Drawn:
    """A store without files."""

    def image(self, key: str) -> Image.Image:
        return Image.new("RGB", (3, 3), key)


def test_stores_without_files() -> None:
    split = Split(["red", "blue", "red"], [0, 1, 1])
    found = inspect(DataSet("x", ("a", "b"), ("a", "b"), {"train": split}, Drawn()))
    assert [len(twin.places) for twin in found.conflicts] == [2]


def test_skip_leaves_broken_files_out(faulty: Path) -> None:
    dataset = load(DataConfig(source=str(faulty), unreadable="skip"))
    assert dataset.counts() == (4, 4, 0)
    note = next(note for note in dataset.notes if "cannot be read" in note)
    assert note.startswith("3 images")
    assert "train/a/broken.jpg" in note
    assert sum("no training images" in note for note in dataset.notes) == 1
    assert without_unreadable(dataset) is dataset


def test_stop_verifies_nothing_upfront(faulty: Path) -> None:
    dataset = load(DataConfig(source=str(faulty)))
    assert dataset.counts() == (6, 5, 0)
    with pytest.raises(UserError, match=r"broken\.jpg"):
        dataset.store.image("train/a/broken.jpg")


def test_nothing_readable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("x")
    with pytest.raises(UserError, match="no training images that can be read"):
        load(DataConfig(source=str(tmp_path), unreadable="skip"))


def test_skip_where_data_are_only_tested(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"test/a": 2, "test/b": 1})
    (tmp_path / "test/b/broken.png").write_text("nothing")
    config = DataConfig(source=str(tmp_path), unreadable="skip")
    assert load(config, for_testing=True).counts("test") == (2, 1)
    for path in tmp_path.rglob("*.png"):
        path.write_text("nothing")
    with pytest.raises(UserError, match="no test images that can be read"):
        load(config, for_testing=True)


def test_nothing_to_test_on(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(UserError, match="has no images"):
        load(DataConfig(source=str(tmp_path / "a.json")), for_testing=True)


def test_names_of_another_encoding_are_refused_with_a_way_out(tmp_path: Path, grow: Grow) -> None:
    try:
        grow(tmp_path / "x", {"caf\udce9": 1, "tea": 1})
    except OSError:
        pytest.skip("this system takes no such names")
    with pytest.raises(UserError, match=r"'caf\\udce9', which is no Unicode text; .*data\.class_names"):
        load(DataConfig(source=str(tmp_path / "x")))
    (tmp_path / "names.txt").write_text("coffee\ntea\n")
    dataset = load(DataConfig(source=str(tmp_path / "x"), class_names=str(tmp_path / "names.txt")))
    assert dataset.class_names == ("coffee", "tea")
    assert sum(dataset.counts()) == 2


def test_pictures_that_come_out_black_or_white_are_told(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    for name, values in {
        "a/0.tif": (ramp * 4095).astype(np.uint16),
        "a/1.tif": (ramp * 4000).astype(np.uint16),
        "a/2.tif": (ramp * 65535).astype(np.uint16),
        "b/0.png": np.full((8, 8, 3), 250, np.uint8),
        "b/1.tif": ramp.astype(np.float32),
        "b/2.tif": (ramp * 200 - 50).astype(np.float32),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / name)
    notes = inspect(load(DataConfig(source=str(tmp_path)))).notes
    assert [note.split(". ")[0] for note in notes[1:]] == [
        "2 pictures come out nearly black: no value above 64 of 255, first 'a/0.tif' of mode I;16",
        "1 picture comes out nearly white: no value under 191 of 255, first 'b/0.png' of mode RGB",
        "1 picture has values under 0, which come out black, first 'b/2.tif'.",
        "Floating-point pictures are on different scales: 1 with white at 1, 1 with white at 255",
    ]


def test_missing_values_are_told_and_are_none_under_0(tmp_path: Path) -> None:
    for name, values in {"a/0.tif": [0.5, -9999, 1], "a/1.tif": [0, np.nan, 1], "b/0.tif": [0, 0.5, 1]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = Image.fromarray(np.array([values], np.float32))
        picture.save(tmp_path / name, tiffinfo={42113: "-9999"})
    notes = inspect(load(DataConfig(source=str(tmp_path)))).notes
    assert [note for note in notes if "set aside" not in note] == [
        "2 pictures have missing values (declared as no data, or NaN), which come out black, first 'a/0.tif'."
    ]
