"""Exported graphs keep a calibration's promises, sets and pictures of no known class, and answer at levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import liftplus
from liftplus.calibration import calibrated, unknown
from liftplus.calibration.calibrated import Calibration, Frequencies, Pictures
from liftplus.calibration.promised import Promised
from liftplus.calibration.unknown import Reference
from liftplus.config import EvaluationConfig
from liftplus.evaluation import levels
from liftplus.evaluation.inference import Answering, best
from liftplus.evaluation.priors import RULED_OUT
from liftplus.machine import runtime
from liftplus.machine.progress import Silent
from liftplus.publishing import export
from liftplus.runs.guesses import LevelAsked
from liftplus.training.checkpoint import Trained
from zoo import backbone_of

from ..conftest import Command, table_with_parents, write_folder
from .test_export import noise, trained
from .test_preprocessing import noisy

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def answers_of(run: Trained, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and features of one crop each."""
    features = run.model.backbone(export.Normalise(run.model.backbone.facts)(images))
    return run.model(features), features


def calibration_of(run: Trained, name: str) -> Calibration:
    """One with a score of unknown pictures, of pictures of noise."""
    images, labels = noise(run, 60), torch.arange(60) % 5
    logits, features = answers_of(run, images)
    rows = run.model.head.weight if name == "margin+nearest" else 5
    reference = Reference.of(features[:40], labels[:40], rows).needed_by(name)  # type: ignore[arg-type]
    frequencies = Frequencies(run.train_counts, torch.zeros(5))
    return calibrated.with_score(Pictures(logits, features, labels), frequencies, name, reference, {})


def given_by(file: Path, images: torch.Tensor) -> dict[str, Any]:
    """The outputs of an exported graph."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file)
        names, found = [one.name for one in session.get_outputs()], session.run(None, {"images": images.numpy()})
    else:
        names = list(json.loads(file.with_name(f"{file.name}.json").read_text())["outputs"])
        found = torch.export.load(file).module()(images)
    return {name: np.asarray(one) for name, one in zip(names, found, strict=True)}


@pytest.mark.parametrize(
    ("name", "form", "five"),
    [
        (unknown.USUAL, "onnx", True),
        pytest.param(unknown.USUAL, "pt2", False, marks=pytest.mark.slow),
        pytest.param("relative", "onnx", False, marks=pytest.mark.slow),
        pytest.param("energy", "onnx", True, marks=pytest.mark.slow),
        pytest.param("mean", "onnx", False, marks=pytest.mark.slow),
    ],
)
def test_the_graph_keeps_the_promises(name: str, form: Any, five: bool, tmp_path: Path) -> None:
    run = trained(backbone_of("timm_vit"), "lora")
    found = calibration_of(run, name)
    asked = Promised(found, 0.8, "all", alarms=0.2)
    images = noise(run, 30, five=five)
    logits, features = answers_of(run, images.flatten(0, 1) if five else images)
    if five:
        logits, features = logits.unflatten(0, (-1, 5)).mean(1), features.unflatten(0, (-1, 5)).mean(1)
    file = tmp_path / f"m.{form}"
    parity = export.export(run, file, form, images, Silent(), EvaluationConfig(tte=five), asked)
    about = json.loads((tmp_path / f"m.{form}.json").read_text())
    assert list(about["outputs"]) == ["logits", "probabilities", "in_set", "unknown_score", "unknown"]
    assert about["promises"]["sets"] == {"coverage": 0.8, "by": "all"}
    assert about["promises"]["unknown"]["false_alarms"] == 0.2 and about["promises"]["unknown"]["score"] == name
    assert about["temperature"] == found.temperature and parity.holds and parity.same_promises > 0.9
    given = given_by(file, images)
    inside, expected = np.asarray(given["in_set"]), found.members(logits, 0.8, "all")
    scores, flagged = np.asarray(given["unknown_score"]), np.asarray(given["unknown"])
    assert (inside == expected.numpy()).mean() > 0.98 and 0 < inside.mean() < 1
    own = found.scores(logits, features)
    assert np.abs(scores - own.numpy()).max() < 1e-3 * max(1.0, float(own.std()))
    assert flagged.dtype == bool and (flagged == (scores > found.threshold(0.2))).all()
    chances = (logits / found.temperature).softmax(-1).numpy()
    np.testing.assert_allclose(np.asarray(given["probabilities"]), chances, atol=1e-4)


@pytest.mark.parametrize("form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_the_graph_answers_at_levels(form: Any, tmp_path: Path) -> None:
    """At the level that `predict` answers at: the classes, either level above them, or none."""
    run, images = trained(backbone_of("timm_vit"), "lora"), noise(trained(backbone_of("timm_vit"), "lora"), 40)
    groups = {"kingdom": dict(zip("01234", "aabbb", strict=True)), "genus": dict(zip("01234", "pqrrs", strict=True))}
    every = (*levels.above(groups, run.class_ids), levels.classes(run.class_names))
    logits, _ = answers_of(run, images)
    highest = levels.above(groups, "01234")[0].sums((logits / 1).softmax(-1)).amax(1)
    sure = float(highest.sort().values[4:6].mean())
    top = best(logits, EvaluationConfig(), runtime.choose("cpu", "fp32"), len(images), Answering(1, every))
    file = tmp_path / f"m.{form}"
    parity = export.export(
        run, file, form, images, Silent(), EvaluationConfig(tte=False), Promised(levels=every, sure=sure)
    )
    assert parity.holds and parity.same_promises > 0.9
    about = json.loads((tmp_path / f"m.{form}.json").read_text())
    assert about["sure"] == sure and [level["name"] for level in about["levels"]] == ["kingdom", "genus", "leaf"]
    given = given_by(file, images)
    assert list(given)[2:] == ["level", "group", "group_probability"] and given["level"].dtype == np.int64
    said = set()
    expected = list(LevelAsked(every, sure).answers(top))
    for place, (level, group) in enumerate(expected):
        said.add(level)
        number, member, chance = (given[name][place] for name in ("level", "group", "group_probability"))
        if group is None:
            assert (number, member) == (-1, -1) and np.isnan(chance)
        else:
            own = about["levels"][number]
            assert (own["name"], own["groups"][member]) == (level, group[0])
            assert float(chance) == pytest.approx(group[1], abs=1e-4)
    assert len(said) >= 3 and "" in said, said


def test_differing_promises_are_told() -> None:
    yes, no, score = torch.tensor([[True, True], [True, False]]), torch.tensor([True, False]), torch.rand(2)
    assert export.alike([yes, score, no], [yes, score + 1, no]) == 1 and export.alike([score], [score + 1]) == 1
    assert export.alike([yes, score, no], [yes, score, ~no]) == 0
    assert export.alike([yes], [torch.tensor([[True, True], [True, True]])]) == 0.5
    assert export.alike([torch.tensor([3, -1])], [torch.tensor([3, 0])]) == 0.5


def test_the_deviation_is_of_classes_that_can_be_answered() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    ruled = logits.clone()
    ruled[:, 2] += RULED_OUT
    expected = float(logits[:, [0, 1, 3, 4, 5]].std(unbiased=False))
    assert export.deviation(ruled) == pytest.approx(expected) and export.deviation(logits) < 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "timm", "--out", "p", "--sets", "0.9"), "--to timm cannot hold sets"),
        (("--format", "peft", "--out", "p", "--unknown", "0.1"), "--format peft cannot hold sets"),
        (("--to", "timm", "--out", "p", "--level", "auto"), "--to timm cannot answer at levels"),
        (("--format", "peft", "--out", "p", "--sure", "0.9"), "--format peft cannot answer at levels"),
        (("--out", "m.onnx", "--sets", "2"), "a coverage between 0 and 1"),
        (("--out", "m.onnx", "--unknown", "0"), "between 0 and 1"),
        (("--out", "m.onnx", "--sets-by", "class"), "--sets was not given"),
    ],
)
def test_refusals_come_before_any_work(words: tuple[str, ...], said: str, command: Command) -> None:
    """The run is missing too, which would be told later."""
    ended = command("export", "run", *words)
    assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err


def test_a_run_without_a_calibration_is_told_so(photos: Path, command: Command) -> None:
    liftplus.fit(photos, epochs=0, precision="fp32", cache=False, workers=0).save("run")
    ended = command("export", "run", "--out", "m.pt2", "--sets", "0.9")
    assert ended.code == 2 and "liftplus calibrate" in ended.err and not Path("m.pt2").exists()
    for words, said in ((("--level", "auto"), "no levels above"), (("--sure", "0.5"), "no level was asked for")):
        ended = command("export", "run", "--out", "m.pt2", *words)
        assert ended.code == 2 and said in " ".join(ended.err.split()) and not Path("m.pt2").exists()


@pytest.mark.slow
def test_the_file_answers_as_predict(command: Command, tmp_path: Path) -> None:
    """From calibrate to a graph from decoded pictures, on pictures of odd sizes."""
    asked = ("--sets", "0.6", "--sets-by", "all", "--unknown", "0.4", "--level", "auto", "--sure", "0.5")
    photos = write_folder(tmp_path / "photos", {"train": (12, 6, 3), "val": (14, 10, 6), "test": (4, 4, 4)})
    model = liftplus.fit(table_with_parents(photos), epochs=0, precision="fp32", cache=False, workers=0, decode="exact")
    model.calibrate()
    model.save("run")
    ended = command("export", "run", "--out", "m.onnx", "--with-preprocessing", *asked, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["same_promises"] > 0.9
    pictures = [noisy(*size, k) for k, size in enumerate([(70, 91), (40, 130), (64, 64)])]
    for k, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    files = [f"{k}.png" for k in range(3)]
    ended = command("predict", "run", *files, "--out", "p.json", *asked, "--set", "precision=fp32")
    assert ended.code == 0, ended.err
    session = onnxruntime.InferenceSession("m.onnx")
    about = json.loads(Path("m.onnx.json").read_text())
    names = about["classes"]
    for pixels, row in zip(pictures, json.loads(Path("p.json").read_text()), strict=True):
        given = ["in_set", "unknown", "unknown_score", "level", "group", "group_probability"]
        inside, flagged, score, level, group, chance = session.run(given, {"pictures": pixels[None]})
        assert sorted(row["set"]) == sorted(name for name, own in zip(names, inside[0], strict=True) if own)
        assert bool(flagged[0]) == row["unknown"] and float(score[0]) == pytest.approx(row["unknown_score"], abs=0.02)
        own = about["levels"][level[0]] if level[0] >= 0 else None
        assert (own["name"] if own else "") == row["level"] and (own is None) == (row["group"] is None)
        if own:
            assert own["groups"][group[0]] == row["group"]["name"]
            assert float(chance[0]) == pytest.approx(row["group"]["probability"], abs=0.02)
