"""`liftplus calibrate`, and what predict and eval do with a calibrated run."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import liftplus
from liftplus.calibration import sets
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.evaluation.inference import crops
from liftplus.fitted import probabilities
from liftplus.runs import calibrating, calibration_file, inputs

from .conftest import Command, write_folder

QUICK: dict[str, Any] = {"epochs": 0, "workers": 0, "precision": "fp32", "device": "cpu", "cache": False, "tte": False}
NAMES = {"red square", "green hill", "blue sky"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, a model without training that is calibrated on val; bare/, the same without a calibration; photos/."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_folder(folder / "photos", {"train": (12, 6, 3), "val": (14, 10, 6), "test": (18, 14, 10)})
    model = liftplus.fit(folder / "photos", **QUICK)
    model.save(folder / "bare")
    model.calibrate()
    model.save(folder / "run")
    return folder


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
def test_calibrate_tells_what_was_measured_and_predict_keeps_the_best_classes(
    place: Path, command: Command, tmp_path: Path
) -> None:
    run, pictures = tmp_path / "run", place / "photos" / "test"
    shutil.copytree(place / "bare", run)
    before = table(command("predict", run, pictures).out)
    refused = command("predict", run, pictures, "--sets", 0.9)
    assert refused.code == 2 and f"`liftplus calibrate {run}`" in refused.err
    ended = command("calibrate", run, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["pictures"] == 30 and told["split"] == "val" and set(told["pictures_by_class"].values()) == {14, 10, 6}
    assert told["measured"]["sets"]["group"]["overall"]["pictures"] == 30
    assert any("'" in note and "fewer than the 9" in note for note in told["notes"])  # the class with 6 is named
    ended = command("predict", run, pictures, "--sets", 0.8, "--unknown", 0.1)
    assert ended.code == 0, ended.err
    assert f"temperature {told['temperature']:.3g}" in ended.err
    after = table(ended.out)
    assert [row["class_1"] for row in after] == [row["class_1"] for row in before]
    assert [row["probability_1"] for row in after] != [row["probability_1"] for row in before]
    for row in after:
        members = json.loads(row["set"])
        assert len(members) == int(row["set_size"]) and set(members) <= NAMES
        assert members == [row[f"class_{k + 1}"] for k in range(3) if row[f"class_{k + 1}"] in members]
        assert row["unknown"] in ("true", "false") and float(row["unknown_score"]) == float(row["unknown_score"])
    entries = json.loads(command("predict", run, pictures, "--sets", 0.8, "--json").out)
    assert [one["set"] for one in entries] == [json.loads(row["set"]) for row in after]
    assert all("unknown" not in one for one in entries)


@pytest.mark.slow
def test_a_calibration_holds_for_its_crops_prior_and_weights_only(
    place: Path, command: Command, tmp_path: Path
) -> None:
    run, picture = place / "run", place / "photos" / "test" / "red_square"
    cases = (
        (("--five-crops",), "tte=true"),
        (("--prior", "uniform"), "prior=uniform"),
        (("--set", "resize=square"), "resize=square"),
    )
    for words, named in cases:
        ended = command("predict", run, picture, *words, "--sets", 0.9)
        assert ended.code == 2 and named in ended.err and "calibrate" in ended.err
        ended = command("predict", run, picture, *words)
        assert ended.code == 0 and "not calibrated here" in ended.err and named in ended.err
        assert ended.out == command("predict", place / "bare", picture, *words).out
    other = tmp_path / "other"
    liftplus.fit(place / "photos", **QUICK | {"head_init": "class_mean"}).save(other)
    shutil.copy(run / calibration_file.FILE, other)
    ended = command("predict", other, picture, "--unknown", 0.1)
    assert ended.code == 2 and "other weights" in ended.err
    saved = calibration_file.read(run)
    assert saved is not None
    before = {key: value for key, value in saved.about["crops"].items() if key != "resize"}
    calibration_file.write(other, replace(saved, about=saved.about | {"crops": before}))
    older = calibration_file.read(other)
    assert older is not None and older.about["crops"] == before | {"resize": "short_side"}
    damaged = bytearray((run / calibration_file.FILE).read_bytes())
    damaged[-3] ^= 1
    (other / calibration_file.FILE).write_bytes(damaged)
    ended = command("predict", other, picture)
    assert ended.code == 2 and "damaged" in ended.err and "Traceback" not in ended.err


def test_eval_measures_on_other_pictures_than_the_calibration_s(place: Path, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    ended = command("eval", run, "--json")
    assert ended.code == 0, ended.err
    promised = json.loads(ended.out)["calibration"]
    assert promised["left_out"] == 0 and promised["sets"]["all"]["overall"]["pictures"] == 42
    assert json.loads((run / "eval" / "metrics.json").read_text())["calibration"] == promised
    # On half of the test split, and the other half is measured.
    assert command("calibrate", run, "--split", "test", "--share", 0.5).code == 0
    ended = command("eval", run)
    assert "promise" in ended.out and "are left out" in ended.out
    promised = json.loads((run / "eval-2" / "metrics.json").read_text())["calibration"]
    assert promised["fitted_on"]["pictures"] == 42 - promised["sets"]["all"]["overall"]["pictures"] == 21
    saved = calibration_file.read(run)
    assert saved is not None and promised["left_out"] == 21


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split", "train"), "trained on its train split"),
        (("--split", "test", "--share", "1.5"), "--share is 1.5"),
        (("--split", "test", "--share", "0.2"), "at least 20 are needed"),
        (("--split", "holdout"), "has no split 'holdout'"),
    ],
)
def test_what_cannot_calibrate_is_refused(words: tuple[str, ...], said: str, place: Path, command: Command) -> None:
    ended = command("calibrate", place / "bare", *words)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err
    assert not (place / "bare" / calibration_file.FILE).exists()


def test_without_a_validation_split_it_says_what_to_do(command: Command, photos: Path, tmp_path: Path) -> None:
    liftplus.fit(photos, **QUICK).save(tmp_path / "run")
    ended = command("calibrate", tmp_path / "run")
    assert ended.code == 2 and "--data" in ended.err and "--split test --share 0.5" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sets", "90"), "between 0 and 1"),
        (("--unknown", "0"), "between 0 and 1"),
        (("--sets", "0.9", "--sets-by", "groups"), "'groups' was given"),
        (("--sets", "0.9", "--class-share", "2"), "from 0 to 1"),
        (("--unknown", "0.01"), "needs at least 99 calibration pictures"),
    ],
)
def test_promises_that_cannot_be_made(words: tuple[str, ...], said: str, place: Path, command: Command) -> None:
    ended = command("predict", place / "run", place / "photos" / "test", *words)
    assert ended.code == 2 and said in ended.err


def test_python_gives_what_the_command_gives(place: Path, command: Command) -> None:
    pictures = place / "photos" / "test"
    rows = table(command("predict", place / "run", pictures, "--sets", 0.8, "--sets-by", "class", "--unknown", 0.2).out)
    model = liftplus.load(place / "run", device="cpu")
    found = model.predict(pictures, sets=0.8, sets_by="class", unknown=0.2)
    assert found.sets is not None and found.unknown is not None
    assert [list(one) for one in found.sets] == [json.loads(row["set"]) for row in rows]
    assert found.unknown.tolist() == [row["unknown"] == "true" for row in rows]
    assert np.allclose(found.probabilities[:, 0], [float(row["probability_1"]) for row in rows], atol=1e-5)
    assert model.calibration is not None
    bare = liftplus.load(place / "bare", device="cpu")
    with pytest.raises(UserError, match="Call calibrate first"):
        bare.predict(pictures, unknown=0.1)
    images = [np.full((40, 40, 3), 10 * k, np.uint8) for k in range(24)]
    measured = bare.calibrate((images, ["red_square", "green hill", "blue sky"] * 8))
    assert measured["sets"]["all"]["overall"]["pictures"] == 24
    assert bare.calibration is not None and set(bare.calibration.calibration.known.counts.tolist()) == {8}


def test_what_was_written_is_what_is_read(place: Path) -> None:
    saved = calibration_file.read(place / "run")
    assert saved is not None
    known = saved.calibration.known
    assert known.counts.sum() == 30 and not saved.has(FolderStore(place), ["photos/test/red_square/0.png"]).any()
    for by in sets.RULES:
        again = sets.limits(known, 0.7, by)
        assert again.shape == (3,) and not again.isnan().any()


@pytest.mark.slow
def test_an_exported_graph_has_the_probabilities_of_predict(place: Path, command: Command, tmp_path: Path) -> None:
    """Its logits stay plain."""
    run, picture = place / "run", place / "photos" / "test" / "red_square"
    ended = command("export", run, "--out", "m.pt2", "--check", picture)
    assert ended.code == 0, ended.err
    assert "temperature" in ended.err
    about = json.loads((tmp_path / "m.pt2.json").read_text())
    model = liftplus.load(run, **{key: QUICK[key] for key in ("device", "precision", "cache", "tte")})
    assert model.calibration is not None
    assert about["temperature"] == pytest.approx(model.calibration.calibration.temperature) != 1
    row = json.loads(command("predict", run, picture, "--json", "--set", "precision=fp32").out)[0]
    found = probabilities(model, inputs.read([row["path"]]), None)
    cut = crops(model.config.evaluation, model.network.backbone.facts)
    images = cut(Image.open(row["path"]).convert("RGB")).float()
    logits, chances = torch.export.load(tmp_path / "m.pt2").module()(images.expand(2, -1, -1, -1).clone())
    assert np.abs(chances[:1].numpy() - found).max() < 1e-3 < np.abs(logits[:1].softmax(1).numpy() - found).max()
    torch.testing.assert_close((logits / about["temperature"]).softmax(1), chances)


def test_a_renamed_run_keeps_its_calibration(place: Path, command: Command, tmp_path: Path) -> None:
    assert command("classes", "rename", place / "run", "red square=red box", "--out", "renamed").code == 0
    picture = place / "photos" / "test" / "red_square"
    before, after = (table(command("predict", run, picture, "--sets", 0.8).out) for run in (place / "run", "renamed"))
    assert [row["probability_1"] for row in after] == [row["probability_1"] for row in before]
    assert [json.loads(row["set"]) for row in after] == [
        [{"red square": "red box"}.get(name, name) for name in json.loads(row["set"])] for row in before
    ]


def test_a_changed_run_tells_that_the_calibration_is_gone(place: Path, command: Command, tmp_path: Path) -> None:
    """And the command that it names makes a new one."""
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        shutil.copytree(place / "bare", run)
    assert command("calibrate", one, "--split", "test", "--share", 0.5, "prior=uniform").code == 0
    for out, words in {
        "added": ("classes", "add", one, "old car", "--out", "added"),
        "rows": ("classes", "rename", one, "red square=red box", "--new-rows", "--out", "rows"),
        "both": ("merge", two, one, "--out", "both", "--no-test"),
    }.items():
        ended = command(*words)
        said = " ".join(ended.err.split())
        assert ended.code == 0 and f"'{out}' has other weights than '{one}', so the calibration" in said, said
        named = said.partition("Run `liftplus ")[2].partition("`")[0].split()
        assert named == ["calibrate", out, "--split", "test", "--share", "0.5", "prior=uniform"]
        assert not (tmp_path / out / calibration_file.FILE).exists()
    assert command(*named).code == 0 and (tmp_path / "both" / calibration_file.FILE).is_file()
    assert "calibration" not in command("merge", two, place / "bare", "--out", "plain", "--no-test").err


def test_promises_are_not_measured_on_training_pictures(place: Path, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    ended = command("eval", run, "--split", "train", "--out", "found", "--json")
    assert ended.code == 0, ended.err
    assert "calibration" not in json.loads(ended.out) and "Promises are not measured" in ended.err


def test_the_command_that_an_error_names_calibrates(place: Path, command: Command, tmp_path: Path) -> None:
    """With the pictures that the run was calibrated on before."""
    run, picture = tmp_path / "run", place / "photos" / "test" / "red_square"
    shutil.copytree(place / "bare", run)
    assert command("calibrate", run, "--split", "test", "--share", 0.5).code == 0
    ended = command("predict", run, picture, "--sets", 0.8, "--prior", "uniform")
    assert ended.code == 2
    named = " ".join(ended.err.split()).partition("Run `liftplus ")[2].partition("`")[0].split()
    assert named[2:] == ["--split", "test", "--share", "0.5", "prior=uniform"]
    assert command(*named).code == 0
    assert command("predict", run, picture, "--sets", 0.8, "--prior", "uniform").code == 0


def mixed(place: Path, target: Path, split: str) -> Path:
    """A folder with copies of a split and, under other names, of 8 training pictures."""
    shutil.copytree(place / "photos" / split, target)
    for k in range(8):
        shutil.copy(place / "photos" / "train" / "red_square" / f"{k}.png", target / "red_square" / f"more {k}.png")
    return target


def test_training_pictures_do_not_calibrate(place: Path, command: Command, tmp_path: Path) -> None:
    """They are recognised by their content, and the others give the calibration that they give alone."""
    run = tmp_path / "run"
    shutil.copytree(place / "bare", run)
    for data in (place / "photos" / "train", shutil.make_archive(str(tmp_path / "a"), "zip", place / "photos/train")):
        ended = command("calibrate", run, "--data", data)
        assert ended.code == 2 and not (run / calibration_file.FILE).exists()
        assert "There are 0 pictures to calibrate on beside 21 that the run was trained on" in " ".join(
            ended.err.split()
        )
    ended = command("calibrate", run, "--data", mixed(place, tmp_path / "mixed", "val"), "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["pictures"] == 30 and told["pictures_by_class"] == {"blue sky": 6, "green hill": 10, "red square": 14}
    alone = calibration_file.read(place / "run")
    assert alone is not None and told["temperature"] == pytest.approx(alone.calibration.temperature)
    assert (
        "8 pictures were left out, as the run was trained on them: their files are equal to training pictures."
        in told["notes"]
    )


def test_no_promise_is_measured_on_training_or_calibration_pictures(
    place: Path, command: Command, tmp_path: Path
) -> None:
    """Whatever their paths are; a picture with the path of such a one is measured."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    ended = command("eval", run, "--data", mixed(place, tmp_path / "test", "test"), "--json", "--out", "one")
    promised = json.loads(ended.out)["calibration"]
    assert (promised["left_out"], promised["left_out_of_training"]) == (0, 8)
    assert promised["sets"]["all"]["overall"]["pictures"] == 42
    ended = command("eval", run, "--data", mixed(place, tmp_path / "val", "val"), "--out", "two")
    assert ended.code == 0, ended.err
    said = "30 pictures that the run was calibrated on and 8 pictures that the run was trained on are left out"
    assert f"No promise was measured: {said}" in " ".join(ended.out.split())


def test_a_training_picture_in_another_split_is_left_out(place: Path, command: Command, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {"train": (12, 6, 3), "val": (14, 10, 6), "test": (18, 14, 10)})
    for split in ("val", "test"):
        shutil.copy(tmp_path / "photos/train/red_square/1.png", tmp_path / "photos" / split / "red_square" / "x.png")
    liftplus.fit(tmp_path / "photos", **QUICK).save(tmp_path / "run")
    ended = command("calibrate", "run", "--json")
    assert json.loads(ended.out)["pictures"] == 30
    assert any(
        note.startswith("1 picture was left out, as the run was trained on it")
        for note in json.loads(ended.out)["notes"]
    )
    promised = json.loads(command("eval", "run", "--json").out)["calibration"]
    assert promised["left_out_of_training"] == 1 and promised["sets"]["all"]["overall"]["pictures"] == 42


def test_training_pictures_that_are_gone_are_told(place: Path, command: Command, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {"train": (12, 6, 3), "test": (2, 2, 2)})
    liftplus.fit(tmp_path / "photos", **QUICK).save(tmp_path / "run")
    (tmp_path / "photos").rename(tmp_path / "moved")
    ended = command("calibrate", "run", "--data", place / "photos" / "val")
    assert ended.code == 0, ended.err
    assert "whether these pictures are among them was not checked" in " ".join(ended.err.split())
    ended = command("eval", "run", "--data", place / "photos" / "test")
    assert "Promises may be measured on pictures that the run was trained on" in " ".join(ended.err.split())


def test_data_that_changed_after_training_are_told(command: Command, tmp_path: Path) -> None:
    """Training pictures that are in the test split by now would make every promise too good."""
    write_folder(tmp_path / "photos", {"train": (20, 15, 12), "test": (20, 15, 12), "new": (20, 15, 12)})
    (tmp_path / "photos" / "new").rename(tmp_path / "new")
    settings = [f"{key}={value}".lower() for key, value in QUICK.items()]
    assert command("train", "--data", tmp_path / "photos", "--out", "run", *settings).code == 0
    (tmp_path / "photos/train/red_square/1.png").rename(tmp_path / "photos/test/red_square/moved.png")
    ended = command("calibrate", "run", "--split", "test")
    assert ended.code == 2 and "its data have changed since" in " ".join(ended.err.split()), ended.err
    ended = command("calibrate", "run", "--data", "new")
    assert ended.code == 0, ended.err
    assert "whether these pictures are among them was not checked" in " ".join(ended.err.split())


def test_pictures_in_memory_are_recognised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(60)]
    labels = [0, 1] * 30
    model = liftplus.fit((images[:30], labels[:30]), **QUICK)
    measured = model.calibrate((images[20:], labels[20:]))
    assert measured["sets"]["all"]["overall"]["pictures"] == 30
    assert any("10 pictures were left out" in note for note in model.notes)
    with pytest.raises(UserError, match="0 pictures to calibrate on beside 30"):
        model.calibrate((images[:30], labels[:30]))


def test_training_files_are_recognised_in_memory(tmp_path: Path) -> None:
    """And training pictures in memory among files."""
    photos = write_folder(tmp_path / "photos", {"train": (12, 6, 3), "val": (14, 10, 6)})
    model = liftplus.fit(photos, **QUICK)
    files = [path for split in ("train/red_square", "val/*") for path in sorted(photos.glob(f"{split}/*.png"))]
    arrays = [np.asarray(Image.open(path)) for path in files]
    names = [path.parent.name.replace("_", " ") for path in files]
    measured = model.calibrate((arrays, names))
    assert measured["sets"]["all"]["overall"]["pictures"] == 30
    assert any("12 pictures were left out" in note for note in model.notes)
    other = liftplus.fit((arrays[10:20], names[10:20]), **QUICK)  # two red squares, blue skies and green hills
    other.calibrate((files, names))
    assert any("10 pictures were left out" in note for note in other.notes)


@pytest.mark.parametrize("cache", [False, True])
def test_outputs_that_are_not_finite_are_refused_alike(place: Path, cache: bool) -> None:
    """With and without sets, and by way of kept features."""
    settings = QUICK | {"cache": cache}
    model = liftplus.load(place / "run", **{key: settings[key] for key in ("device", "precision", "cache", "tte")})
    head = model.network.head.weight
    with torch.no_grad():
        head[0, 0] = float("nan")
    for asked in ({}, {"unknown": 0.2}):
        with pytest.raises(UserError, match=r"not finite for 18 of 18 pictures\. Its weights diverged in training"):
            model.predict(place / "photos" / "test" / "red_square", **asked)


def test_classes_of_one_picture_are_halved_together(place: Path) -> None:
    half = calibrating._half(list(range(40)), 0)
    assert len(half) == 20 and len(set(half.tolist())) == 20
    both = calibrating._half([0] * 10 + [1] * 10, 0)
    assert len(both) == 10 and int((both < 10).sum()) == 5
    assert (
        calibrating._half(list(range(40)), 0).tolist()
        == half.tolist()
        != calibrating._half(list(range(40)), 1).tolist()
    )


@pytest.mark.slow
def test_the_command_of_a_misfit_names_crops_and_prior(place: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    for given in (("--five-crops",), ("--prior", "uniform"), ("--five-crops", "--prior", "uniform")):
        ended = command("predict", "run", place / "photos" / "test", "--sets", 0.8, *given)
        again = re.search(r"`(liftplus calibrate [^`]*)`", ended.err)
        assert ended.code == 2 and again is not None, ended.err
        assert command(*again[1].split()[1:]).code == 0
        assert command("predict", "run", place / "photos" / "test", "--sets", 0.8, *given).code == 0
