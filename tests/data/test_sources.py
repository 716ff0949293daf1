"""load: the right reader for each source, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.sources import KNOWN, load
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]


def loaded(source: object, **keys: object) -> DataSet:
    return load(DataConfig(source=str(source), **keys))  # type: ignore[arg-type]


def refused(message: str, source: object, **keys: object) -> str:
    with pytest.raises(UserError, match=message) as caught:
        loaded(source, **keys)
    assert type(caught.value) is UserError
    assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, grow: Grow) -> Path:
    return grow(tmp_path / "pets", {"dog": 10, "black_cat": 5})


def test_folder(folder: Path) -> None:
    dataset = loaded(folder)
    assert dataset.class_names == ("black cat", "dog")
    assert dataset.class_ids == ("black_cat", "dog")
    assert dataset.named
    assert dataset.counts() == (4, 8)
    assert dataset.counts("test") == (1, 2)
    assert any("set aside as the test split" in note for note in dataset.notes)
    assert pickle.loads(pickle.dumps(dataset)).counts() == (4, 8)
    for split in dataset.splits.values():
        for key in split.keys:
            assert dataset.store.image(key).size == (7, 5)


def test_split_keys(folder: Path) -> None:
    dataset = loaded(folder, test_share=0.4, val_share=0.2, split_seed=5)
    assert (len(dataset.splits["test"]), len(dataset.splits["val"]), len(dataset.splits["train"])) == (6, 2, 7)
    assert dataset.splits == loaded(folder, test_share=0.4, val_share=0.2, split_seed=5).splits
    assert dataset.splits != loaded(folder, test_share=0.4, val_share=0.2, split_seed=6).splits


def test_zip_gives_the_same_as_the_folder(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder.parent))
    packed, plain = loaded(tmp_path / "x.zip"), loaded(folder)
    assert packed.class_names == plain.class_names
    assert [key.removeprefix("pets/") for key in packed.splits["test"].keys] == list(plain.splits["test"].keys)


def write_list(path: Path, folder: Path, ids: dict[str, int], start: str = "") -> Path:
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.png"))]
    path.write_text("".join(f"{start}{name} {ids[name.split('/')[0]]}\n" for name in names))
    return path


def test_non_contiguous_list_labels(folder: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "pets.txt", folder, {"dog": 10, "black_cat": 9}, "pets/")
    dataset = loaded(path)
    assert dataset.class_ids == ("9", "10")
    assert set(dataset.splits["train"].labels) == {0, 1}
    assert not dataset.named
    assert any("numbered anew" in note for note in dataset.notes)
    assert any("text would mean nothing" in note for note in dataset.notes)
    (tmp_path / "names.csv").write_text("9,a black cat\n10,dog\n11,unused\n")
    named = loaded(path, class_names=str(tmp_path / "names.csv"))
    assert named.named
    assert named.class_names == ("a black cat", "dog")


def test_lists_with_root_in_a_zip(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, "images/" + path.relative_to(folder).as_posix().replace("black_cat", "black cat"))
    train, test = tmp_path / "a.txt", tmp_path / "b.txt"
    train.write_text("./images/black cat/0.png 0\nimages/dog/0.png 1\n")
    test.write_text("images/dog/1.png 1\n")
    dataset = load(DataConfig(train_list=str(train), test_list=str(test), root=str(tmp_path / "x.zip")))
    assert dataset.splits["train"].keys == ["images/black cat/0.png", "images/dog/0.png"]
    assert dataset.counts("test") == (0, 1)
    assert dataset.store.image("images/black cat/0.png").size == (7, 5)
    same = loaded(tmp_path / "x.zip", train_list=str(train), test_list=str(test))  # the source names the root
    assert same.splits == dataset.splits


def test_folder_of_lists(folder: Path) -> None:
    write_list(folder / "my_train.txt", folder, {"dog": 0, "black_cat": 1})
    write_list(folder / "my_val.txt", folder, {"dog": 0, "black_cat": 1})
    dataset = loaded(folder)
    assert dataset.counts() == dataset.counts("test") == (10, 5)
    assert any("my_train.txt" in note for note in dataset.notes)
    write_list(folder / "other_train.txt", folder, {"dog": 0, "black_cat": 1})
    refused("lists of several data sets", folder)


def test_manifest_with_other_test_list(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\ndog/0.png,dog\nblack_cat/0.png,cat\n")
    (tmp_path / "b.csv").write_text("path,label\ndog/1.png,dog\n")
    dataset = loaded(tmp_path / "a.csv", test_list=str(tmp_path / "b.csv"), root=str(folder))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.counts("test") == (0, 1)
    refused(
        "different forms",
        tmp_path / "a.csv",
        test_list=str(write_list(tmp_path / "c.txt", folder, {"dog": 0, "black_cat": 1})),
    )


def test_missing_files_are_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\npets/dog/0.png,dog\npets/gone 1.png,cat\npets/gone 2.png,cat\n")
    message = refused("2 of the 3 images", tmp_path / "a.csv")
    assert "gone 1.png" in message
    assert "data.root" in message


def test_benchmarks(folder: Path) -> None:
    for name in ("imagenet_lt", "places_lt", "inat2018"):
        refused(f"{name} needs data.root", name)
        refused("is not complete at", name, root=str(folder))
    for split in ("train", "val", "test"):
        write_list(folder / f"ImageNet_LT_{split}.txt", folder, {"dog": 0, "black_cat": 1})
    dataset = loaded("imagenet_lt", root=str(folder))
    assert {split: len(part) for split, part in dataset.splits.items()} == {"train": 15, "val": 15, "test": 15}
    assert not dataset.named


def test_inat_benchmark(folder: Path) -> None:
    for year, keys in (("train2018", ["dog/0.png", "black_cat/0.png"]), ("val2018", ["dog/1.png"])):
        content = {
            "images": [{"id": i, "file_name": key} for i, key in enumerate(keys)],
            "annotations": [{"image_id": i, "category_id": [70, 8][i]} for i in range(len(keys))],
            "categories": [{"id": 70, "name": "Canis", "order": "C"}, {"id": 8, "name": "Felis", "order": "F"}],
        }
        (folder / f"{year}.json").write_text(json.dumps(content))
    dataset = loaded("inat2018", root=str(folder))
    assert dataset.class_ids == ("8", "70")
    assert dataset.class_names == ("Felis", "Canis")
    assert dataset.counts("test") == (0, 1)
    assert loaded(folder / "train2018.json", level="order").class_names == ("C", "F")


def test_a_class_written_otherwise_in_another_split(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"train/Cat": 2, "train/b": 2, "test/cat": 1, "test/b": 1})
    refused("'cat' is 'Cat' in training: write both in one way", tmp_path)


def test_class_without_training_images(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/c": 1})
    refused("test split has 1 class that training does not know, 'c'", tmp_path)
    (tmp_path / "classnames.txt").write_text("c\nb\na\n")
    dataset = loaded(tmp_path)
    assert dataset.counts() == (0, 2, 2)
    assert any(note.startswith("1 of 3 classes has no training images: 'c'") for note in dataset.notes)


def test_mapping_declares_classes_of_other_splits(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path / "d", {"train/a": 2, "train/b": 2, "test/c": 1})
    (tmp_path / "n.json").write_text(json.dumps({"a": "ant", "b": "bee", "c": "cow", "d": "dog"}))
    assert loaded(tmp_path / "d", class_names=str(tmp_path / "n.json")).class_names == ("ant", "bee", "cow")


def test_coded_folders_are_not_words(tmp_path: Path, grow: Grow) -> None:
    assert not loaded(grow(tmp_path, {"n01440764": 1, "n01443537": 1})).named


def test_mistakes(tmp_path: Path, grow: Grow, folder: Path) -> None:
    refused("No data were given", "")
    message = refused("does not exist", "imagnet_lt")
    assert "Did you mean 'imagenet_lt'" in message
    assert all(name in message for name in KNOWN)
    (tmp_path / "bare").mkdir()
    refused("bare is empty", tmp_path / "bare")
    refused("only one class", grow(tmp_path / "one", {"cat": 3}))
    refused("only one class", grow(tmp_path / "wrapped", {"data/train/cat": 3}))
    refused("no training images", grow(tmp_path / "tests", {"test/cat": 3, "val/dog": 1}))
    refused("'Cat' and 'cat' have the same name", twins(tmp_path))
    (tmp_path / "x.docx").write_text("x")
    refused("has the ending '.docx'", tmp_path / "x.docx")
    (tmp_path / "x.zip").write_text("x")
    refused("cannot be opened as a zip", tmp_path / "x.zip")
    refused("list .* does not exist", folder, train_list="gone.txt")
    refused("imbalance_ratio=10", folder, imbalance_ratio=10)
    refused("is not read by lists", folder, test_list="gone.txt")
    refused("taxonomy levels", folder, level="genus")


def twins(root: Path) -> Path:
    # As a table, since a file system may not tell the two folders apart.
    for name in ("1.png", "2.png"):
        (root / name).write_bytes(b"x")
    (root / "twins.csv").write_text("path,label\n1.png,cat\n2.png,Cat\n")
    return root / "twins.csv"


def test_large_folders_are_listed_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(50):
            (tmp_path / name / f"{i}.jpg").touch()

    def no_look(*_: object, **__: object) -> None:
        raise AssertionError("a look at a single file, which is slow for a million of them")

    monkeypatch.setattr("os.stat", no_look)
    monkeypatch.setattr("os.path.exists", no_look)
    from liftplus.data.stores import FolderStore

    assert len(FolderStore(tmp_path).members().files) == 100


def test_level_needs_annotations(folder: Path) -> None:
    for split in ("train", "val"):
        write_list(folder / f"iNaturalist18_{split}.txt", folder, {"dog": 0, "black_cat": 1})
    assert loaded("inat2018", root=str(folder)).counts() == (10, 5)
    refused("taxonomy levels", "inat2018", root=str(folder), level="genus")


def spelled(folder: Path, how: Callable[[str], str]) -> DataSet:
    """The data set of a table that spells the paths of these pictures in another way."""
    keys = sorted(file.relative_to(folder.parent).as_posix() for file in folder.rglob("*.png"))
    table = folder.parent / "t.csv"
    table.write_text("path,label\n" + "".join(f"{how(key)},{key.split('/')[1]}\n" for key in keys), encoding="utf-8")
    return loaded(table, test_share=0.2)


@pytest.mark.parametrize(
    "how",
    [
        lambda key: key.replace("/", "\\"),
        lambda key: "/" + key,
        lambda key: ".\\" + key.replace("/", "\\"),
        lambda key: normalize("NFC", key),
        lambda key: normalize("NFC", key).replace("/", "\\").upper(),
    ],
)
def test_listed_paths_in_other_spellings(tmp_path: Path, grow: Grow, how: Callable[[str], str]) -> None:
    folder = grow(tmp_path / "pets", {normalize("NFD", "café"): 4, "dog": 4})
    dataset = spelled(folder, how)
    keys = [key for split in dataset.splits.values() for key in split.keys]
    assert sorted(keys) == sorted(file.relative_to(tmp_path).as_posix() for file in folder.rglob("*.png"))
    assert sorted(dataset.counts()) == [3, 3]
    assert any("paths in t.csv were found under another spelling" in note for note in dataset.notes)


def test_a_path_that_two_files_fit_is_not_guessed(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"pets/A": 1, "pets/a": 1, "pets/b": 1})
    if len(list((tmp_path / "pets").iterdir())) < 3:
        pytest.skip("this file system does not tell the two folders apart")
    write = "path,label\npets\\a\\0.png,x\npets/b/0.png,y\n{}"
    (tmp_path / "t.csv").write_text(write.format(""))
    assert set(loaded(tmp_path / "t.csv").splits["train"].keys) == {"pets/a/0.png", "pets/b/0.png"}
    (tmp_path / "u.csv").write_text("path,label\npets/Á/0.png,x\npets/b,y\n")
    refused("2 of the 2 images that u.csv names do not exist", tmp_path / "u.csv")  # the second is a folder


def test_tables_on_archives_with_backslashes(tmp_path: Path, png: Callable[..., bytes]) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for name in ("cat", "dog"):
            for i in range(4):
                archive.writestr(f"{name}\\{i}.png", png((i, len(name), ord(name[0]))))
        archive.writestr("emu\\", b"")
    dataset = loaded(tmp_path / "w.zip")
    assert dataset.class_names == ("cat", "dog", "emu")
    assert dataset.counts() == (3, 3, 0) and dataset.counts("test") == (1, 1, 0)
    assert dataset.store.image(dataset.splits["train"].keys[0]).size == (7, 5)
    (tmp_path / "t.csv").write_text("path,label\ncat/0.png,cat\ndog/1.png,dog\n")
    listed = loaded(tmp_path / "t.csv", root=str(tmp_path / "w.zip"))
    assert set(listed.splits["train"].keys) == {"cat\\0.png", "dog\\1.png"}


def test_notes_reach_data_sets_of_annotations(folder: Path) -> None:
    for name, keys in (
        ("train_mini", ["dog/0.png", "black_cat/0.png"]),
        ("val", ["dog/1.png"]),
        ("test", ["dog/2.png"]),
    ):
        content: dict[str, object] = {"images": [{"id": i, "file_name": key} for i, key in enumerate(keys)]}
        if name != "test":
            content["annotations"] = [{"image_id": i, "category_id": i} for i in range(len(keys))]
            content["categories"] = [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]
        (folder / f"{name}.json").write_text(json.dumps(content))
    dataset = loaded(folder / "train_mini.json")
    assert {split: len(part) for split, part in dataset.splits.items()} == {"train": 2, "test": 1}
    assert "test.json has no annotations, so it was left out." in dataset.notes
    refused(r"test\.json is not in iNaturalist's form", folder / "train_mini.json", test_list=str(folder / "test.json"))


def undeclared(path: Path, encoding: str, png: Callable[..., bytes]) -> Path:
    """A zip of two classes whose names are in an encoding that it does not declare."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(["猫", "狗", "猫", "狗"]):
            archive.writestr(f"{name}/{i}.png", png((i, 0, 0)))
    data, declared = path.read_bytes(), 0x800
    for name in ("猫", "狗"):
        data = data.replace(name.encode(), name.encode(encoding).ljust(3, b"_"))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = data.split(mark)
        for k, part in enumerate(parts[1:], 1):
            at = place - len(mark)
            flags = int.from_bytes(part[at : at + 2], "little") & ~declared
            parts[k] = part[:at] + flags.to_bytes(2, "little") + part[at + 2 :]
        data = mark.join(parts)
    path.write_bytes(data)
    return path


def test_zips_whose_names_are_in_no_declared_encoding(tmp_path: Path, png: Callable[..., bytes]) -> None:
    right = loaded(undeclared(tmp_path / "mac.zip", "utf-8", png))
    assert set(right.class_names) == {"猫", "狗"}
    assert right.store.image(right.splits["train"].keys[0]).size == (7, 5)
    path = undeclared(tmp_path / "gbk.zip", "gbk", png)
    wrong = loaded(path)
    told = [note for note in wrong.notes if "may be misread" in note]
    assert len(told) == 1 and "data.class_names" in told[0]
    (tmp_path / "n.csv").write_text("".join(f"{k},{v}\n" for k, v in zip(wrong.class_ids, ("x", "y"), strict=True)))
    given = loaded(path, class_names=str(tmp_path / "n.csv"))
    assert set(given.class_names) == {"x", "y"}
    assert not any("may be misread" in note for note in given.notes)  # the advice was followed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.csv", "id;name\n0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("n.csv", "0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("n.txt", "0: barn owl\n1: wryneck\n2: kingfisher\n"),
        ("n.txt", "0,barn owl\n1,wryneck\n2,kingfisher\n"),
    ],
)
def test_names_with_ids_do_not_shift(tmp_path: Path, grow: Grow, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    data = loaded(grow(tmp_path / "img", {"0": 4, "1": 5, "2": 6}), class_names=str(tmp_path / name))
    counts = [sum(pair) for pair in zip(data.counts("train"), data.counts("test"), strict=True)]
    assert dict(zip(data.class_names, counts, strict=True)) == {"barn owl": 4, "wryneck": 5, "kingfisher": 6}
