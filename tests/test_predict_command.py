"""`liftplus predict`, and the options that it shares with eval and export."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import liftplus
from liftplus.data.stores import FolderStore

from .conftest import Command, write_folder

QUICK = {"epochs": 0, "workers": 0, "precision": "fp32", "device": "cpu", "cache": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, a model without training, tested with five crops; and photos/."""
    folder = tmp_path_factory.mktemp("predict")
    write_folder(folder / "photos", {"train": (3, 2, 2), "test": (1, 1, 1)})
    liftplus.fit(folder / "photos", **QUICK).save(folder / "run")  # type: ignore[arg-type]
    return folder


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("given", ["new.zip", "list.txt", "-"])
def test_archive_list_and_stdin_answer_what_the_folder_answers(
    given: str, place: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = place / "photos" / "test"
    whole = command("predict", place / "run", test)
    assert whole.code == 0, whole.err
    expected = table(whole.out)
    names = [row["path"] for row in expected]
    shutil.make_archive(str(tmp_path / "new"), "zip", test)
    (tmp_path / "list.txt").write_text("\n".join([*names, names[0]]))

    class Stdin:
        buffer = io.BytesIO("\n".join(names).encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    ended = command("predict", place / "run", given)
    assert ended.code == 0, ended.err
    rows = [*expected, expected[0]] if given == "list.txt" else expected
    for found, row in zip(table(ended.out), rows, strict=True):
        assert found["class_1"] == row["class_1"] and not found["error"]
        assert float(found["probability_1"]) == pytest.approx(float(row["probability_1"]), abs=1e-4)


def test_a_path_given_twice_is_two_rows(place: Path, command: Command) -> None:
    name = str(next((place / "photos" / "test").rglob("*.png")))
    assert [row["path"] for row in table(command("predict", place / "run", name, name).out)] == [name] * 2


def test_skipping_decodes_once_and_says_how_many(
    place: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    shutil.copytree(place / "photos" / "test", new)
    (new / "broken.jpg").write_bytes(b"no picture")
    (new / "desktop.ini").write_bytes(b"")
    reads: list[str] = []
    read = FolderStore.read

    def noted(self: FolderStore, key: str) -> bytes:
        reads.append(key)
        return read(self, key)

    monkeypatch.setattr(FolderStore, "read", noted)
    ended = command("predict", place / "run", new, "--unreadable", "skip", "--out", "p.json", "--set", "workers=0")
    assert ended.code == 0, ended.err
    assert "3 predictions and 1 unreadable (broken.jpg) are in p.json" in " ".join(ended.out.split())
    assert len(reads) == len(set(reads)) == 4
    found = json.loads((tmp_path / "p.json").read_text())
    bad = [entry for entry in found if entry["error"]]
    assert len(found) == 4 and len(bad) == 1 and bad[0]["top"] == [] and "no image format" in bad[0]["error"]
    good = liftplus.load(place / "run").predict(new / "blue sky")
    assert [entry["top"][0]["class"] for entry in found if "blue sky" in entry["path"]] == [good.names[0][0]]


def test_skipping_in_workers(place: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    whole = next((place / "photos" / "test").rglob("*.png"))
    ended = command("predict", place / "run", "a.jpg", whole, "a.jpg", "--unreadable", "skip", "--set", "workers=1")
    assert ended.code == 0, ended.err
    assert [bool(row["error"]) for row in table(ended.out)] == [True, False, True]
    assert "1 prediction and 2 unreadable (a.jpg, a.jpg)." in ended.err
    stopped = command("predict", place / "run", "a.jpg", whole)
    assert stopped.code == 2 and "--unreadable skip" in stopped.err


def test_one_crop_is_the_same_switch_everywhere(place: Path, command: Command, tmp_path: Path) -> None:
    for option, tte in (("--one-crop", False), ("--five-crops", True)):
        ended = command("eval", place / "run", option, "--out", f"eval{option}")
        assert ended.code == 0, ended.err
        assert json.loads((tmp_path / f"eval{option}" / "metrics.json").read_text())["evaluation"]["tte"] is tte
    given = ("--set", "evaluation.tte=false"), ("--one-crop",), ("--five-crops",), ("--tte",), ()
    answers = [command("predict", place / "run", place / "photos" / "test", *options).out for options in given]
    assert answers[0] == answers[1] != answers[2] == answers[3] == answers[4]
    for option, setting in (("--one-crop", "evaluation.tte=true"), ("--five-crops", "tte=false")):
        ended = command("eval", place / "run", option, setting, "--out", "refused")
        assert ended.code == 2 and f"{option} and {setting} contradict each other" in ended.err


def test_targets_are_made_or_refused_before_the_work(place: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "x.csv").mkdir()
    whole = next((place / "photos" / "test").rglob("*.png"))
    assert command("predict", place / "run", whole, "--out", "made/here/p.csv").code == 0
    assert len(table((tmp_path / "made" / "here" / "p.csv").read_text())) == 1
    for name in ("predict", "export"):
        end, more = ("csv", ["none.png"]) if name == "predict" else ("onnx", [])
        for out, said in ((f"file/x.{end}", "is no folder"), (f"x.{end}", "is a folder")):
            (tmp_path / f"x.{end}").mkdir(exist_ok=True)
            ended = command(name, place / "run", *more, "--out", out)
            assert ended.code == 2 and said in ended.err, ended.err


def test_a_folder_called_like_a_picture_is_read_as_a_folder(place: Path, command: Command, tmp_path: Path) -> None:
    whole = next((place / "photos" / "test").rglob("*.png"))
    for name in ("new/a.png", "new/photo.jpg/photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole, tmp_path / name)
    ended = command("predict", place / "run", "new")
    assert ended.code == 0, ended.err
    assert [row["path"] for row in table(ended.out)] == ["new/a.png", "new/photo.jpg/photo.jpg"]


def test_a_setting_among_the_pictures_is_told_apart(place: Path, command: Command, tmp_path: Path) -> None:
    given = ("predict", place / "run", place / "photos" / "test")
    ended = command(*given, "tte=false")
    assert ended.code == 2 and "For a setting write --set tte=false" in ended.err
    shutil.copy(next((place / "photos" / "test").rglob("*.png")), tmp_path / "a=b.png")
    assert [row["path"] for row in table(command(*given[:2], "a=b.png").out)] == ["a=b.png"]
