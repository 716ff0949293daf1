"""How lists of paths read as splits and classes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

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
    assert found.notes == (
        "Sub-folders of class folders were read as parts of their classes (1, such as 'class9/sub').",
    )


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
    held = ["test/cat/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]
    found = tree.layout(["extra/cat/1.jpg", "loose.jpg", *held, "train/x.jpg"])
    assert [key for key, _ in found.rows["train"]] == ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert found.notes == (
        "2 images outside any class folder were left out: 'loose.jpg', 'train/x.jpg' (in the folder 'train').",
        "1 image in 'extra', which is no split, was left out: 'extra/cat/1.jpg'.",
    )


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
        "1 file whose name does not end like an image was left out: 1 .heic.",
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


def grown(*folders: str, count: int = 2) -> list[str]:
    """Paths of pictures in folders, sorted as stores give them."""
    return sorted(f"{folder}/{i}.png" for folder in folders for i in range(count))


def tally(found: tree.Layout) -> dict[str, dict[str, int]]:
    """Pictures of each class in each split."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in found.rows.items():
        for _, label in rows:
            of = counts.setdefault(split, {})
            of[label] = of.get(label, 0) + 1
    return counts


def below(*splits: str, inner: str = "") -> list[str]:
    return [f"{split}{inner.format(split)}/{label}" for split in splits for label in ("cat", "dog")]


BOTH = {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (below("training_set", "test_set", inner="/{0}"), {"train", "test"}),
        (below("training_set", "test_set"), {"train", "test"}),
        (below("seg_train", "seg_test", inner="/{0}"), {"train", "test"}),
        (below("TrainingSet", "TestSet"), {"train", "test"}),
        (below("trainset", "valset", "testset"), {"train", "val", "test"}),
        (below("train_mini", "val"), {"train", "val"}),
        (below("train2017", "val2017"), {"train", "val"}),
        (below("imgs_train", "imgs_val", "imgs_test"), {"train", "val", "test"}),
        (below("training", "validation", "evaluation"), {"train", "val", "test"}),
        (below("trainval", "test"), {"train", "test"}),
        (below("train", "test", inner="/images"), {"train", "test"}),
        (below("train", "test", inner="/{0}_images"), {"train", "test"}),
        (below("train", inner="/train"), {"train"}),
        (below("pets/pets/train", "pets/pets/val"), {"train", "val"}),
        (["cat/train", "cat/test", "dog/train", "dog/test"], {"train", "test"}),
    ],
)
def test_split_folders_of_other_names(folders: list[str], splits: set[str]) -> None:
    assert tally(tree.layout(grown(*folders))) == dict.fromkeys(splits, BOTH)


def test_a_guess_of_splits_is_told() -> None:
    found = tree.layout(grown(*below("training_set", "test_set", inner="/{0}")))
    assert "Splits were read from folders: test from 'test_set', train from 'training_set'." in found.notes
    assert "All of 'training_set' lies in 'training_set/training_set', so the folders in that were read." in found.notes
    assert tree.layout(grown(*below("train", "test"))).notes == ()
    assert any("its own splits" in note for note in tree.layout(grown("cat/train", "cat/test", "dog/train")).notes)


def test_a_class_of_training_is_no_wrapper_in_another_split() -> None:
    found = tree.layout(grown(*below("training_set"), "test_set/cat/cam1", "test_set/cat/cam2"))
    assert tally(found) == {"train": BOTH, "test": {"cat": 4}}


def test_a_class_that_is_called_like_a_split_swallows_none() -> None:
    found = tree.layout(
        grown(*(f"{name}/{cam}" for name in ("bus", "car", "train") for cam in ("cam1", "cam2")), count=3)
    )
    assert tally(found) == {"train": {"bus": 6, "car": 6, "train": 6}}
    assert found.left_out == ()
    assert "The folder 'train' is read as a class, like 'bus', 'car', not as the train split." in found.notes
    assert any("holds the same sub-folders, 'cam1', 'cam2'" in note for note in found.notes)


@pytest.mark.parametrize(
    "folders",
    [["steam_train", "test_tube"], below("train_station", "test_track"), below("steam_train", "bullet_train")],
)
def test_classes_with_the_word_of_a_split(folders: list[str]) -> None:
    assert set(tree.layout(grown(*folders)).folders) == {folder.split("/")[0] for folder in folders}


@pytest.mark.parametrize(
    "folders",
    [
        [*below("train"), "unlabeled"],
        below("train", "extra"),
        ["cat", "dog", *below("test")],
        ["bus", "car", "train/steam", "train/diesel"],
        below("train", "test", "extra", "more"),
    ],
)
def test_two_readings_are_refused(folders: list[str]) -> None:
    with pytest.raises(UserError, match="can be read in two ways") as caught:
        tree.layout(grown(*folders), origin="pets")
    assert "split" in str(caught.value) and "class" in str(caught.value) and ".csv" in str(caught.value)


@pytest.mark.parametrize(
    "folders",
    [
        ["cat/train", "cat/test", "dog"],
        [f"{data}/{split}/{name}" for data in ("a", "b") for split in ("train", "test") for name in ("cat", "dog")],
        [f"{name}/{part}" for name in ("bottle", "cable") for part in ("train/good", "test/bad", "ground_truth/bad")],
    ],
)
def test_splits_in_classes_or_data_sets_are_refused(folders: list[str]) -> None:
    with pytest.raises(UserError, match="can be read in several ways"):
        tree.layout(grown(*folders))


@pytest.mark.parametrize(
    "twins", [("train", "train_mini", "val"), ("train", "val", "dev"), ("train", "test1", "test2")]
)
def test_two_folders_of_one_split_are_refused(twins: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"several folders for the \w+ split, '\w+', '\w+', which may hold the same"):
        tree.layout(grown(*below(*twins)))


@pytest.mark.parametrize(
    ("folders", "left_out"),
    [
        ([*below("train"), "test"], ["test/0.png", "test/1.png"]),  # a competition's test pictures have no labels
        (
            [*below("asl_train", inner="/{0}"), "asl_test/asl_test"],
            ["asl_test/asl_test/0.png", "asl_test/asl_test/1.png"],
        ),
        (
            [*below("seg_train", "seg_test", inner="/{0}"), "seg_pred/seg_pred"],
            ["seg_pred/seg_pred/0.png", "seg_pred/seg_pred/1.png"],
        ),
        # Tiny ImageNet's validation labels are in a text file.
        (["train/cat/images", "train/dog/images", "val/images"], ["val/images/0.png", "val/images/1.png"]),
    ],
)
def test_pictures_without_labels_are_no_class(folders: list[str], left_out: list[str]) -> None:
    found = tree.layout(grown(*folders))
    assert found.folders == ("cat", "dog")
    assert list(found.left_out) == left_out
    beside = left_out[0].startswith("seg_pred")
    wanted = "2 images in 'seg_pred', which is no split, were" if beside else "2 images outside any class folder were"
    assert any(note.startswith(f"{wanted} left out") for note in found.notes)


UNLABELLED = "pictures in 'unlabeled' have no class, or that is a class like"


@pytest.mark.parametrize(
    ("folders", "said", "way_out"),
    [
        (["labeled", "unlabeled"], f"{UNLABELLED} 'labeled'", "take 'unlabeled' out;"),
        (
            [*below("labeled"), "unlabeled"],
            f"{UNLABELLED} 'labeled'",
            "give 'labeled' alone, with the classes 'cat', 'dog'",
        ),
        (["up/labeled/cat", "up/labeled/dog", "up/unlabeled"], UNLABELLED, "give 'labeled' alone"),
        (["cat", "dog", "unlabeled"], f"{UNLABELLED} 'cat', 'dog'", "take 'unlabeled' out;"),
        (["train/cat", "train/dog", "train/unlabeled"], f"{UNLABELLED} 'cat', 'dog'", "take 'unlabeled' out;"),
        (
            ["Labelled_Images", "Unlabelled_Images"],
            "'Unlabelled_Images' have no class",
            "take 'Unlabelled_Images' out;",
        ),
        (below("fold1", "fold2", "fold3"), "each with the classes 'cat', 'dog', or are classes", "give one of them"),
        (below("color", "grayscale", "segmented"), "'color', 'grayscale', 'segmented' are parts or copies", "give one"),
        (below("images", "masks"), "'images', 'masks' are parts or copies of the data", "give one of them"),
    ],
)
def test_folders_that_say_how_the_data_are_parted(folders: list[str], said: str, way_out: str) -> None:
    with pytest.raises(UserError, match="The data can be read in two ways") as caught:
        tree.layout(grown(*folders))
    assert said in str(caught.value) and way_out in str(caught.value) and ".csv" in str(caught.value)


def test_pictures_without_labels_beside_splits_are_left_out() -> None:
    found = tree.layout(grown(*below("train", "test"), "unlabeled"))
    assert tally(found) == {"train": BOTH, "test": BOTH}
    assert found.notes == (
        "2 images in 'unlabeled', which is no split, were left out: 'unlabeled/0.png', 'unlabeled/1.png'.",
    )
    found = tree.layout(grown(*below("train"), "test/unlabeled"))
    assert tally(found) == {"train": BOTH} and found.left_out == ("test/unlabeled/0.png", "test/unlabeled/1.png")


def test_classes_by_labels_of_goods() -> None:
    """Names that say more than that there is a label are classes."""
    assert tree.layout(grown("labeled bottle", "unlabeled bottle")).folders == ("labeled bottle", "unlabeled bottle")
    assert tree.layout(grown("original", "forged")).folders == ("forged", "original")


def test_the_same_sub_folders_everywhere_are_told() -> None:
    for tops in (("north", "south"), ("class1", "class2"), ("1", "2"), ("训练集", "测试集")):
        notes = tree.layout(grown(*below(*tops))).notes
        assert any("holds the same sub-folders, 'cat', 'dog'" in note for note in notes)
    other = tree.layout(grown("Aves/owl", "Aves/wren", "Plantae/oak")).notes
    assert other == ("Sub-folders of class folders were read as parts of their classes (3, such as 'Aves/owl').",)


def test_wrapper_folders_are_told_and_loose_pictures_do_not_hide_classes() -> None:
    found = tree.layout(["cover.png", *grown("data/cat", "data/dog")])
    assert found.folders == ("cat", "dog") and found.left_out == ("cover.png",)
    assert found.notes[0] == "All folders lie in 'data', so those in it were read."
    found = tree.layout(["train/cover.png", *grown(*below("train", inner="/train"))])
    assert tally(found) == {"train": BOTH} and found.left_out == ("train/cover.png",)


def test_empty_folders_called_like_splits_are_no_classes() -> None:
    found = tree.layout(grown("cat", "dog"), ["test", "emu"])
    assert found.folders == ("cat", "dog", "emu")
    assert found.notes == ("Empty folders called like splits were left out: 'test'.",)


def test_one_class_in_two_unicode_forms() -> None:
    forms = [normalize(form, "café") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    for folders in (forms, [f"train/{forms[0]}", f"test/{forms[1]}"]):
        found = tree.layout(grown(*folders, *(folder.replace(folder.split("/")[-1], "thé") for folder in folders[:1])))
        assert found.folders == (forms[0], "thé")
        assert {label for rows in found.rows.values() for _, label in rows} == {forms[0], "thé"}
        assert any("Unicode form" in note for note in found.notes)


def test_backslashes_part_folders() -> None:
    found = tree.layout(
        sorted(f"data\\{split}\\{name}\\1.png" for split in ("train", "val") for name in ("cat", "dog"))
    )
    assert tally(found) == {"train": {"cat": 1, "dog": 1}, "val": {"cat": 1, "dog": 1}}
    assert any("Backslashes in names" in note for note in found.notes)
    called_so = tree.layout(["AC\\DC/1.png", "cat/1.png"])
    assert called_so.folders == ("AC\\DC", "cat") and called_so.notes == ()


def test_nothing_says_what_pictures_show(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path / "a", {".": 3})
    with pytest.raises(UserError, match=r"has 3 images, first '0.png', but no class folders"):
        tree.read(FolderStore(tmp_path / "a"))
    (tmp_path / "a" / "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(UserError, match=r"give it instead: .*metadata\.csv"):
        tree.read(FolderStore(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    for name, said in (("train-00000.tar", "not opened; unpack them"), ("0.parquet", r"instead: .*0\.parquet")):
        (tmp_path / "b" / name).write_bytes(b"x")
        with pytest.raises(UserError, match=said):
            tree.read(FolderStore(tmp_path / "b"))
