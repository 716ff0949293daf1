"""`eval` of a run's own data tests the pictures that the run held out, whatever was added or removed since."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from liftplus.data.dataset import DataSet, Split
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.runs import matching
from liftplus.training.checkpoint import Trained

from ..conftest import Command, picture, write_folder

SETTINGS = ("epochs=0", "workers=0", "device=cpu", "precision=fp32", "tte=false", "test_share=0.3")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders without splits."""
    write_folder(tmp_path / "x", {"photos": (9, 6, 3)})
    return Path(shutil.move(tmp_path / "x" / "photos", tmp_path / "photos"))


@pytest.fixture
def run(photos: Path, tmp_path: Path, command: Command) -> Path:
    ended = command("train", "--data", photos, "--out", "run", *SETTINGS)
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def pictures_in(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return [row["path"] for row in csv.DictReader(stream)]


def grow(photos: Path) -> None:
    """Five more pictures of two classes, and a class that the run does not know."""
    for number in range(5):
        for name in ("red_square", "blue sky"):
            picture((9, 9, 9), 100 + number).save(photos / name / f"0{number}.png")
    (photos / "aardvark").mkdir()
    for number in range(4):
        picture((200, 9, 200), number).save(photos / "aardvark" / f"{number}.png")


def kept(run: Path) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = disk.read_json(run / "splits.json", "splits")["splits"]
    return splits


def test_pictures_that_were_added_move_nothing(photos: Path, run: Path, command: Command) -> None:
    before = pictures_in(run)
    assert before == kept(run)["test"] and not set(before) & set(kept(run)["train"])
    grow(photos)
    ended = command("eval", "run", "--json")
    assert ended.code == 0, ended.err
    assert pictures_in(run / "eval") == before
    assert "14 pictures were added after the run was trained and are left out" in ended.err
    assert "set aside" not in ended.err
    for name in ("per_class.csv", "confusion.csv", "predictions.csv"):
        assert (run / "eval" / name).read_text() == (run / name).read_text()
    assert command("eval", "run", "--split", "train", "--out", "e").code == 0
    assert pictures_in(run.parent / "e") == kept(run)["train"]


def test_the_same_data_by_name_are_the_runs_own(photos: Path, run: Path, command: Command) -> None:
    """`--data` with the run's own folder must not test the training pictures."""
    assert command("eval", "run", "--data", photos.parent / "run" / ".." / "photos").code == 0
    assert pictures_in(run / "eval") == pictures_in(run)


def test_pictures_that_are_gone(photos: Path, run: Path, command: Command) -> None:
    first, *rest = pictures_in(run)
    (photos / first).unlink()
    ended = command("eval", "run")
    assert ended.code == 0, ended.err
    assert f"1 of the {1 + len(rest)} pictures of the run's test split is gone or unreadable" in ended.err
    assert pictures_in(run / "eval") == rest
    assert disk.read_json(run / "eval" / "metrics.json")["images"] == len(rest)
    for path in rest:
        (photos / path).unlink()
    ended = command("eval", "run")
    assert ended.code == 2 and f"None of the {1 + len(rest)} pictures" in ended.err and "--data" in ended.err


def test_a_picture_that_moved_to_another_class_is_a_new_one(photos: Path, run: Path, command: Command) -> None:
    path = next(key for key in kept(run)["train"] if key.startswith("red_square"))
    shutil.move(photos / path, photos / "blue sky" / "moved.png")
    ended = command("eval", "run")
    assert ended.code == 0 and "1 picture was added after" in ended.err
    assert pictures_in(run / "eval") == pictures_in(run)


@pytest.mark.parametrize("held", ["test", "val"])
def test_declared_splits_are_not_noted(tmp_path: Path, command: Command, held: str) -> None:
    """Also where the validation split serves as the test split."""
    write_folder(tmp_path / "photos", {"train": (3, 2, 1), held: (1, 1, 1)})
    assert command("train", "--data", "photos", "--out", "run", *SETTINGS).code == 0
    assert not (tmp_path / "run" / "splits.json").exists()
    picture((1, 2, 3), 9).save(tmp_path / "photos" / held / "red_square" / "new.png")
    assert command("eval", "run").code == 0
    assert len(pictures_in(tmp_path / "run" / "eval")) == 4


def test_a_validation_split_is_kept_too(photos: Path, tmp_path: Path, command: Command) -> None:
    given = ("--data", "photos", "--out", "run", *SETTINGS, "val_share=0.3")
    assert command("train", *given).code == 0
    splits = kept(tmp_path / "run")
    assert set(splits) == {"train", "val", "test"}
    assert sum(map(len, splits.values())) == len({key for keys in splits.values() for key in keys}) == 18
    grow(photos)
    assert command("eval", "run", "--split", "val").code == 0
    assert pictures_in(tmp_path / "run" / "eval") == splits["val"]


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    """File names of any bytes survive the file of splits."""
    keys = ["a\udc80b.png", "\u00e4 \U0001f600.png", 'q"\\.png']
    disk.write_json(tmp_path / "splits.json", {"splits": {"test": keys}})
    assert disk.read_json(tmp_path / "splits.json")["splits"]["test"] == keys


def test_a_damaged_file_of_splits_is_refused(run: Path, command: Command) -> None:
    for text in ("{", '{"splits": 3}', '{"splits": {"test": 3}}'):
        (run / "splits.json").write_text(text)
        ended = command("eval", "run")
        assert ended.code == 2 and "splits.json" in ended.err and "Traceback" not in ended.err
        assert not (run / "eval").exists()


def aligned(trained: tuple[str, ...], ids: tuple[str, ...], names: tuple[str, ...], own: tuple[str, ...]) -> list[int]:
    """Labels of one picture a class of data with these ids and names, for a run with its classes and ids."""
    split = Split([str(k) for k in range(len(ids))], list(range(len(ids))))
    dataset = DataSet("data", names, ids, {"test": split}, FolderStore(""))
    run = cast(Trained, SimpleNamespace(class_names=trained, class_ids=own, former_names=(), levels={}))
    return list(matching.aligned(dataset, "test", run).splits["test"].labels)


def test_classes_of_another_unicode_form_are_the_same() -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    assert aligned(("b", composed), (split, "b"), (split, "b"), ("b", composed)) == [1, 0]
    assert aligned(("b", composed), ("1", "0"), (split.upper(), "b"), ("x", "y")) == [1, 0]


def test_classes_of_one_name_are_told_apart_by_id() -> None:
    trained, own = ("missile", "fox", "missile"), ("657", "1", "744")
    assert aligned(trained, ("744", "657"), ("missile", "missile"), own) == [2, 0]
    with pytest.raises(UserError, match="classes that the run was not trained on: 'missile'"):
        aligned(trained, ("a", "b"), ("missile", "fox"), own)
