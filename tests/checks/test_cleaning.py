"""What a clean table leaves out, and the command that writes it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checked_pictures import copy, drawn, write_pictures
from liftplus.checks import cleaning, page
from liftplus.checks import doubles as doubles_
from liftplus.checks.check import Check, places_of
from liftplus.checks.doubles import Double
from liftplus.checks.labels import Opinion
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.labelled import from_images
from liftplus.data.sources import load
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError

from ..conftest import Command

QUICK = ("--backbone", "mini_clip", "image_size=32", "workers=0", "device=cpu", "cache=false")


def checked(
    train: list[int],
    test: list[int] | None = None,
    val: list[int] | None = None,
    *,
    pairs: tuple[tuple[int, int], ...] = (),
    own: dict[int, float] | None = None,
    far: tuple[int, ...] = (),
    broken: tuple[int, ...] = (),
) -> Check:
    """A check by hand; numbers go through train, val, test, and `own` holds the probabilities of suspicious labels."""
    parts = {"train": train, "val": val or [], "test": test or []}
    splits = {name: Split([f"{name}{k}" for k in range(len(part))], part) for name, part in parts.items() if part}
    names = tuple(f"c{k}" for k in range(3))
    dataset = DataSet("data", names, names, splits, FolderStore(""))
    places = places_of(dataset)
    chances = np.full(len(places), 0.9)
    suspicious, outlying = np.zeros(len(places), bool), np.zeros(len(places))
    for number, chance in (own or {}).items():
        chances[number], suspicious[number] = chance, True
    outlying[list(far)] = np.arange(1, len(far) + 1)
    opinion = Opinion(chances, np.zeros(len(places), np.int64), chances, suspicious, 0.9)
    doubles = [Double(a, b, False, False, 0.95) for a, b in pairs]
    return Check(dataset, places, dict.fromkeys(broken, "damaged"), doubles, opinion, outlying)


def test_the_test_picture_stays_and_the_training_picture_goes() -> None:
    found = checked([0, 0, 0], test=[0], val=[0], pairs=((0, 4), (1, 3)))
    assert cleaning.left_out(found) == {0: "double", 1: "double"}
    three = checked([0, 0, 0], test=[0], val=[0, 0], pairs=((0, 3), (3, 5), (0, 5)))
    assert cleaning.left_out(three) == {0: "double", 3: "double"}


def test_a_double_goes_only_beside_one_that_stays() -> None:
    """A chain of near doubles 0 - 1 - 2: the first stays, so the second goes and the third has none that stays."""
    found = checked([0] * 6, pairs=((0, 1), (1, 2)))
    assert cleaning.left_out(found) == {1: "double"}
    equal = replace(found, doubles=[Double(0, 1, True, False, 1.0), Double(0, 2, True, False, 1.0)])
    assert cleaning.left_out(equal) == {1: "double", 2: "double"}
    leak = checked([0, 0, 0, 0], test=[0])
    leak = replace(leak, doubles=[Double(0, 1, True, False, 1.0), Double(0, 4, False, False, 0.95)])
    assert cleaning.left_out(leak) == {0: "double", 1: "double"}  # 1 is no double of 0 alone
    whole = replace(leak, doubles=[Double(0, 1, True, False, 1.0), Double(0, 4, True, False, 1.0)])
    assert cleaning.left_out(whole) == {0: "double", 1: "double"}


def test_near_doubles_take_at_most_half_of_a_class_in_a_split() -> None:
    everything = tuple((a, b) for a in range(8) for b in range(a + 1, 8))
    found = checked([0] * 8, pairs=everything)
    assert len(cleaning.left_out(found)) == 4
    equal = replace(found, doubles=[Double(0, k, True, False, 1.0) for k in range(1, 8)])
    assert len(cleaning.left_out(equal)) == 7
    [told] = page.summary(found, cleaning.left_out(found))["notes"]  # type: ignore[misc]
    assert told.startswith("6 pairs of doubles stay in a clean table.")


def test_a_mirror_image_with_another_label_stays() -> None:
    found = checked([0, 0, 1, 1])
    for other, out in ((2, {}), (1, {1: "double"})):
        mirrored = replace(found, doubles=[Double(0, other, False, True, 0.95)])
        assert cleaning.left_out(mirrored) == out


def test_the_last_test_picture_of_a_class_stays() -> None:
    assert cleaning.left_out(checked([0, 1], test=[0, 0, 1], pairs=((2, 4),))) == {}


def test_a_class_of_which_no_training_picture_can_be_read_is_told() -> None:
    found = checked([0, 0, 1], test=[1], broken=(2,))
    assert page.summary(found, cleaning.left_out(found))["notes"] == [
        "No training picture of 1 class can be read: 'c1'."
    ]


def test_of_doubles_in_training_the_likelier_label_stays() -> None:
    assert cleaning.left_out(checked([0, 0, 1, 1], pairs=((0, 1),))) == {1: "double"}
    found = checked([0, 0, 1, 1], pairs=((0, 2),), own={0: 0.01})
    assert cleaning.left_out(found) == {0: "double"}


def test_the_last_training_picture_of_a_class_stays() -> None:
    assert cleaning.left_out(checked([0, 1, 1], test=[0], pairs=((0, 3),))) == {}
    assert cleaning.left_out(checked([0, 0, 1], test=[0, 0], pairs=((0, 3), (1, 4)))) == {0: "double"}


def test_never_more_than_half_of_a_class_by_its_labels_and_as_outliers() -> None:
    own = {k: 0.01 * (5 - k) for k in range(5)}
    found = checked([0] * 5 + [1] * 3, own=own, far=(0, 1, 5, 6, 7))
    assert cleaning.left_out(found) == {3: "label", 4: "label", 7: "outlier"}


def test_a_test_picture_stays_whatever_is_said_of_its_label() -> None:
    found = checked([0, 0, 0, 0], test=[0, 0], own={4: 0.001}, far=(5,), broken=(1,))
    assert cleaning.left_out(found) == {1: "unreadable"}


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    root = write_pictures(
        tmp_path / "data", {"train/fox": 8, "train/lynx": 5, "train/owl": 1, "test/fox": 3, "test/lynx": 2}
    )
    (root / "train/fox/leak.jpg").write_bytes((root / "test/fox/0.jpg").read_bytes())
    (root / "train/lynx/small.jpg").write_bytes(copy(drawn(1), "resized"))  # of train/fox/0.jpg, with another label
    (root / "train/fox/broken.jpg").write_text("nothing")
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_command(faulty: Path, command: Command, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    ended = command("data", "check", "--data", faulty, "--clean", "clean.csv", "--json", *QUICK)
    assert (ended.code, "Traceback" in ended.err, "Warning" in ended.err) == (0, False, False)
    summary = json.loads(ended.out)
    assert (summary["pictures"], summary["unreadable"], summary["doubles"]) == (22, 1, 2)
    assert (summary["across_splits"], summary["with_different_labels"]) == (1, 1)
    found = rows_of(tmp_path / "data-check" / "findings.csv")
    assert [row["note"] != "" for row in found if row["finding"] == "unreadable"] == [True]
    equal = next(row for row in found if row["finding"] == "equal")
    assert (equal["path"], equal["other_path"], equal["left_out"]) == ("train/fox/leak.jpg", "test/fox/0.jpg", "yes")
    near = next(row for row in found if row["finding"] == "near")
    assert {near["path"], near["other_path"]} == {"train/fox/0.jpg", "train/lynx/small.jpg"}
    out = {row["path"] for row in found if row["left_out"] == "yes"}
    assert {"train/fox/leak.jpg", "train/fox/broken.jpg", near["path"]} <= out and len(out) == summary["left_out"]
    clean = rows_of(tmp_path / "clean.csv")
    there = {str(path.relative_to(faulty)) for path in before}
    assert {row["path"] for row in clean} == there - out and len(clean) == 22 - len(out)
    back = load(DataConfig(source="clean.csv", root=str(faulty)))
    assert back.class_names == ("fox", "lynx", "owl") and back.made == ()
    assert {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()} == before
    again = command("data", "check", "--data", faulty, *QUICK)  # in place of the first one
    assert again.code == 0 and "1 across splits" in again.out


@pytest.mark.parametrize(
    ("clean", "said"),
    [
        ("there.csv", "exists already"),
        ("table.txt", "ends in .csv"),
        ("data/clean.csv", "lies within the data"),
        ("data-check/findings.csv", "lies in the folder of --out"),
        ("there.csv/clean.csv", "no folder that can be written to"),
    ],
)
def test_targets_that_are_refused_before_any_work(
    faulty: Path, command: Command, tmp_path: Path, clean: str, said: str
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    ended = command("data", "check", "--data", faulty, "--clean", clean, *QUICK)
    assert (ended.code, said in ended.err, ended.out) == (2, True, "")
    assert (tmp_path / "there.csv").read_text() == "mine" and not (tmp_path / "data-check").exists()


def test_folders_that_are_refused(faulty: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out, said in (("mine", "something other"), (faulty / "check", "lies within the data")):
        ended = command("data", "check", "--data", faulty, "--out", out, *QUICK)
        assert (ended.code, said in ended.err) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "csv", "list", "named", "drawn"])
def test_a_table_gives_the_pictures_of_every_form_of_data_back(tmp_path: Path, form: str) -> None:
    root = write_pictures(tmp_path / "da, ta", {"train/red fox": 4, "train/10": 3, "val/red fox": 1, "test/10": 2})
    config = DataConfig(source=str(root))
    if form in ("zip", "tar"):
        config = DataConfig(source=shutil.make_archive(str(tmp_path / "packed"), form, root))
    elif form == "csv":
        lines = [f'"da, ta/{p.relative_to(root)}",{p.parent.name},{p.parent.parent.name}' for p in root.rglob("*.jpg")]
        (tmp_path / "mine.csv").write_text("\n".join(["file,class,split", *lines]))
        config = DataConfig(source=str(tmp_path / "mine.csv"))
    elif form == "list":
        for split in ("train", "test"):
            files = (root / split).rglob("*.jpg")
            (tmp_path / f"{split}.txt").write_text("".join(f"{p} {int(p.parent.name == '10')}\n" for p in files))
        config = DataConfig(source=str(tmp_path / "train.txt"))
    elif form == "named":
        (tmp_path / "names.csv").write_text("id,name\nred fox,Fuchs\n10,Zehn\n")
        config = DataConfig(source=str(root), class_names=str(tmp_path / "names.csv"))
    elif form == "drawn":
        shutil.rmtree(root / "test")
        config = DataConfig(source=str(root / "train"), val_share=0.3)
    dataset = load(config)
    cleaning.refuse_unwritable(dataset, tmp_path / "clean.csv")
    found = Check(dataset, places_of(dataset), {}, [], no_opinion(dataset), np.zeros(len(places_of(dataset))))
    words = cleaning.write(found, {0: "double"}, tmp_path / "clean.csv")
    back = load(DataConfig(source=words[0], root=words[1].removeprefix("data.root=")))
    assert [place.key for place in places_of(back)] == [place.key for place in places_of(dataset)][1:]
    assert {name: list(split.labels) for name, split in back.splits.items()}["test"] == list(
        dataset.splits["test"].labels
    )
    assert (back.class_ids, back.class_names) == (dataset.class_ids, dataset.class_names)


def no_opinion(dataset: DataSet) -> Opinion:
    count = len(places_of(dataset))
    return Opinion(np.ones(count), np.zeros(count, np.int64), np.zeros(count), np.zeros(count, bool), 1.0)


def test_data_that_no_table_can_name(tmp_path: Path) -> None:
    images = [np.asarray(drawn(seed, (20, 20))) for seed in range(6)]
    dataset = from_images(images, ["a", "b"] * 3)
    with pytest.raises(UserError, match="no files with paths"):
        cleaning.refuse_unwritable(dataset, tmp_path / "clean.csv")


def test_stopped_on_the_way(faulty: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doubles_, "near", stop)
    ended = command("data", "check", "--data", faulty, "--clean", "clean.csv", *QUICK)
    assert (ended.code, ended.err.strip().splitlines()[-1]) == (130, "Stopped.")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["data"]
