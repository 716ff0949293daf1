"""How lists of paths read as splits and classes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from liftplus.data import tree
from liftplus.data.dataset import natural_key
from liftplus.data.stores import FolderStore, ZipStore
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]


def test_classes_without_splits_in_natural_order() -> None:
    found = tree.layout(["class10/a.jpg", "class9/a.jpg", "class9/sub/b.jpg"])
    assert found.folders == ("class9", "class10")
    assert found.rows == {
        "train": [("class10/a.jpg", "class10"), ("class9/a.jpg", "class9"), ("class9/sub/b.jpg", "class9")]
    }
    assert found.notes == ()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "validation", "TESTING"), ("train", "valid", "test")],
)
def test_split_folders(train: str, val: str, test: str) -> None:
    found = tree.layout([f"{split}/{name}/1.jpg" for split in (test, train, val) for name in ("cat", "dog")])
    assert found.folders == ("cat", "dog")
    assert found.rows["train"] == [(f"{train}/cat/1.jpg", "cat"), (f"{train}/dog/1.jpg", "dog")]
    assert found.rows["val"][0] == (f"{val}/cat/1.jpg", "cat")
    assert found.rows["test"][1] == (f"{test}/dog/1.jpg", "dog")


@pytest.mark.parametrize("wrapper", ["data", "repository-main/images"])
def test_wrapper_folders_are_skipped(wrapper: str) -> None:
    found = tree.layout([f"{wrapper}/{name}/1.jpg" for name in ("cat", "dog")])
    assert found.prefix == wrapper + "/"
    assert found.folders == ("cat", "dog")
    split = tree.layout([f"{wrapper}/train/{name}/1.jpg" for name in ("cat", "dog")])
    assert split.folders == ("cat", "dog")


def test_one_class_is_not_a_wrapper() -> None:
    assert tree.layout(["cat/1.jpg", "cat/2.jpg"]).folders == ("cat",)


def test_a_class_may_be_called_train() -> None:
    found = tree.layout(["bus/1.jpg", "train/1.jpg"])
    assert found.folders == ("bus", "train")
    steam = tree.layout(["bus/1.jpg", "train/steam/1.jpg"])
    assert steam.folders == ("bus", "train")


def test_images_right_in_split_folders() -> None:
    with pytest.raises(UserError, match="without class folders"):
        tree.layout(["test/1.jpg", "train/1.jpg"])


def test_stray_images_are_left_out_and_said() -> None:
    found = tree.layout(["extra/cat/1.jpg", "loose.jpg", "train/cat/1.jpg", "train/dog/1.jpg", "train/x.jpg"])
    assert [key for key, _ in found.rows["train"]] == ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert found.notes[0].startswith("3 images outside")


def test_empty_class_folder_is_a_class() -> None:
    assert tree.layout(["cat/1.jpg"], ["emu"]).folders == ("cat", "emu")
    found = tree.layout(["train/cat/1.jpg", "test/cat/1.jpg"], ["train/emu", "test/yak"])
    assert found.folders == ("cat", "emu")


def test_classnames_txt_gives_order_and_names(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"train/dog": 1, "train/fire_truck": 2})
    (tmp_path / "classnames.txt").write_text("fire_truck\ndog\nunicorn\n")
    table = tree.read(FolderStore(tmp_path))
    assert table.class_ids == ("fire_truck", "dog", "unicorn")
    assert table.names["fire_truck"] == "fire truck"
    assert any("classnames.txt" in note for note in table.notes)


def test_classnames_txt_names_coded_folders(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"n02": 1, "n01": 2})
    (tmp_path / "classnames.txt").write_text("n02 goldfish, golden\nn01 tench")
    table = tree.read(FolderStore(tmp_path))
    assert dict(table.names) == {"n02": "goldfish, golden", "n01": "tench"}
    assert table.class_ids == ("n02", "n01")


def test_zip_and_folder_read_alike(tmp_path: Path, grow: Grow) -> None:
    root = grow(tmp_path / "in", {"up/train/Ärger_猫": 2, "up/train/b": 1, "up/val/b": 1})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in root.rglob("*.png"):
            archive.write(path, path.relative_to(root))
    folder, packed = tree.read(FolderStore(root)), tree.read(ZipStore(tmp_path / "x.zip"))
    assert folder == packed
    assert folder.names["Ärger_猫"] == "Ärger 猫"


def test_files_of_other_kinds_are_counted(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat" / "a.heic").write_bytes(b"x")
    (tmp_path / "LICENSE").write_text("x")
    assert tree.read(FolderStore(tmp_path)).notes == (
        "1 files whose names do not end like an image were left out: 1 .heic.",
    )


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        tree.read(FolderStore(tmp_path))
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no images \(1 \.heic found\)"):
        tree.read(FolderStore(tmp_path))


def test_natural_key_is_total() -> None:
    words = ["a10", "a9", "A9", "1", "01", "", "٣x", "b", "²"]
    assert len({str(natural_key(word)) for word in words}) == len(words)
    assert sorted(["x10y", "x9y", "x9"], key=natural_key) == ["x9", "x9y", "x10y"]
