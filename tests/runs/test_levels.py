"""Levels above the classes from the data to a run, a test, predictions and edited runs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import liftplus
from liftplus.config import EvaluationConfig
from liftplus.errors import UserError
from liftplus.evaluation import levels
from liftplus.evaluation.inference import Answering, TopK, best
from liftplus.machine import runtime
from liftplus.runs import calibration_file
from liftplus.runs.guesses import LevelAsked
from liftplus.training import checkpoint

from ..conftest import PARENTS, Command, table_with_parents


@pytest.fixture
def table(photos: Path) -> Path:
    """The photos as a table with a column of parents."""
    return table_with_parents(photos)


def predicted(command: Command, *words: object) -> list[dict[str, Any]]:
    ended = command("predict", "run", *words, "--json")
    assert ended.code == 0, ended.err
    found: list[dict[str, Any]] = json.loads(ended.out)
    return found


def test_a_run_knows_the_levels_of_its_data(table: Path, command: Command, tmp_path: Path) -> None:
    ended = command("zeroshot", "--data", table, "--out", "run", "precision=fp32")
    assert ended.code == 0, ended.err
    shown = " ".join(ended.out.split())
    assert "by level" in shown and "parent" in shown
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    by_class = list(csv.DictReader((tmp_path / "run" / "per_class.csv").open()))
    assert {row["name"]: row["level_parent"] for row in by_class} == PARENTS

    # By hand, from all probabilities.
    test = sorted((table.parent / "test").rglob("*.png"))
    found = predicted(command, *test, "--level", "parent")
    right = []
    for path, row in zip(test, found, strict=True):
        sums = {"scenery": 0.0, "figure": 0.0}
        for one in row["top"]:
            sums[PARENTS[one["class"]]] += one["probability"]
        best = max(sums, key=lambda name: sums[name])
        assert row["level"] == "parent" and row["group"]["name"] == best
        assert math.isclose(row["group"]["probability"], sums[best], abs_tol=1e-5)
        right.append((PARENTS[path.parent.name.replace("_", " ")], best))
    overall = 100 * sum(own == best for own, best in right) / len(right)
    by_group = [[own == best for own, best in right if own == name] for name in ("scenery", "figure")]
    assert told["levels"]["parent"]["groups"] == 2 and told["levels"]["parent"]["overall"] == pytest.approx(overall)
    assert told["levels"]["parent"]["mean_group"] == pytest.approx(100 * sum(sum(g) / len(g) for g in by_group) / 2)

    ended = command("predict", "run", *test, "--level", "auto", "--sure", "0.6")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    for row in rows:
        chance = float(row["probability_1"])
        if chance >= 0.6:
            assert (row["level"], row["group"]) == ("leaf", row["class_1"])
        else:
            assert row["level"] in ("parent", "") and (row["level"] == "") == (row["group"] == "")
    assert command("eval", "run", "--data", table, "--out", "again", "--json").out.count('"parent"') == 1


def test_levels_follow_the_classes_of_an_edited_run(table: Path, command: Command, tmp_path: Path) -> None:
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    assert command("classes", "rename", "run", "red square=red box", "--out", "renamed").code == 0
    assert command("classes", "add", "renamed", "old car", "--out", "more").code == 0
    ended = command("predict", "more", table.parent / "test", "--level", "parent", "--json")
    assert ended.code == 0, ended.err
    assert {row["group"]["name"] for row in json.loads(ended.out)} <= {"scenery", "figure", "old car"}


def groups(folder: Path) -> dict[str, str]:
    """The group of each class at level parent."""
    trained = checkpoint.load_model(folder, runtime.choose("cpu", "fp32"))
    return {
        name: trained.levels["parent"][key] for key, name in zip(trained.class_ids, trained.class_names, strict=True)
    }


def test_added_classes_get_the_parents_that_are_given(table: Path, command: Command, tmp_path: Path) -> None:
    """From names alone and from pictures; one without a parent, and a new parent, are told."""
    options = (
        "epochs=0",
        "head_init=class_mean",
        "tuner=none",
        "device=cpu",
        "precision=fp32",
        "workers=0",
        "tte=false",
    )
    assert command("train", "--data", table, "--out", "run", *options).code == 0
    ended = command(
        "classes", "add", "run", "old car", "red box", "--parent", "old car=vehicle", "--parent", "red box=FIGURE",
        "--out", "named",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert groups(tmp_path / "named") == PARENTS | {"old car": "vehicle", "red box": "figure"}
    assert "Note: 'vehicle' is a new group at level parent." in " ".join(ended.err.split())
    pictures = table.parent / "test" / "red_square"
    ended = command(
        "classes", "add", "named", "box", f"{pictures}/", "old bus", "--parent", "box=figure", "--out", "more"
    )
    assert ended.code == 0, ended.err
    assert groups(tmp_path / "more")["box"] == "figure" and groups(tmp_path / "more")["old bus"] == "old bus"
    said = "1 added class has no parent and stands for itself at that level: 'old bus'. --parent 'old bus=GROUP'"
    assert said in " ".join(ended.err.split())
    # A class that stood for itself gets company, and so does one that is added with it.
    ended = command("classes", "add", "more", "new bus", "--parent", "new bus=old bus", "--out", "buses")
    assert ended.code == 0, ended.err
    assert [groups(tmp_path / "buses")[one] for one in ("old bus", "new bus")] == ["old bus"] * 2
    ended = command("classes", "add", "named", "wolf", "lynx", "--parent", "lynx=wolf", "--out", "animals")
    assert ended.code == 0, ended.err
    assert [groups(tmp_path / "animals")[one] for one in ("wolf", "lynx")] == ["wolf"] * 2


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        ("run", ("bus=vehicle",), "--parent is given for 'bus', which is not added. Added are 'old car'."),
        ("run", ("old car",), "'old car' is not CLASS=GROUP"),
        ("run", ("old car=",), "The parent '' of 'old car' is empty"),
        ("flat", ("old car=vehicle",), "have no levels above them, so a class has no parent"),
    ],
)
def test_parents_that_cannot_be_are_refused(
    run: str, words: tuple[str, ...], said: str, table: Path, photos: Path, command: Command
) -> None:
    assert command("zeroshot", "--data", table if run == "run" else photos, "--out", run).code == 0
    ended = command("classes", "add", run, "old car", *(f"--parent={word}" for word in words), "--out", "more")
    assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err


def test_a_class_that_gets_the_name_of_a_group_does_not_join_it(table: Path, command: Command, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace(",figure", ","))
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    assert command("classes", "rename", "run", "red square=Scenery", "--out", "renamed").code == 0
    assert groups(tmp_path / "renamed")["Scenery"] == "Scenery (class red square)"
    assert command("classes", "rename", "renamed", "Scenery=red box", "--out", "again").code == 0
    assert groups(tmp_path / "again")["red box"] == "red box"


def test_a_merged_run_tells_that_groups_differ(table: Path, command: Command, tmp_path: Path) -> None:
    assert command("zeroshot", "--data", table, "--out", "one").code == 0
    table.write_text(table.read_text().replace(",figure", ",thing"))
    assert command("zeroshot", "--data", table, "--out", "two").code == 0
    ended = command("merge", "one", "two", "--out", "both", "--no-test")
    assert ended.code == 0, ended.err
    assert "The runs have other groups of classes above the classes. Those of one are kept." in " ".join(
        ended.err.split()
    )
    assert groups(tmp_path / "both") == PARENTS


def test_what_cannot_be_asked_is_refused(table: Path, photos: Path, command: Command) -> None:
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    assert command("zeroshot", "--data", photos / "train", "--out", "flat").code == 0
    picture = photos / "test"
    for run, words, said in (
        ("run", ("--level", "genus"), "The level is 'genus'. Give parent, leaf or auto."),
        ("run", ("--level", "auto", "--sure", "1.5"), "The least probability (sure) is 1.5. Give one above 0"),
        ("flat", ("--level", "auto"), "have no levels above them"),
    ):
        ended = command("predict", run, picture, *words)
        assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err


def test_the_deepest_sure_level() -> None:
    two = levels.above({"kingdom": dict.fromkeys("abc", "all"), "genus": {"a": "x", "b": "x", "c": "y"}}, "abc")
    chances = torch.tensor([[0.95, 0.03, 0.02], [0.5, 0.45, 0.05], [0.4, 0.25, 0.35]])
    every = (*two, levels.classes("abc"))
    best = [level.sums(chances).max(1) for level in every]
    top = TopK(
        chances.argmax(1)[:, None],
        chances.amax(1)[:, None],
        torch.stack([one.indices for one in best], 1),
        torch.stack([one.values for one in best], 1),
    )
    found = [(level, group and group[0]) for level, group in LevelAsked(every, 0.9).answers(top)]
    assert found == [("leaf", "a"), ("genus", "x"), ("kingdom", "all")]
    assert top.groups is not None and top.sums is not None
    lower = TopK(top.classes, top.probabilities, top.groups[:, 1:], top.sums[:, 1:])
    unsure = [level for level, _ in LevelAsked(every[1:], 0.9).answers(lower)]
    assert unsure == ["leaf", "genus", ""]
    torch.testing.assert_close(two[1].sums(chances), torch.tensor([[0.98, 0.02], [0.95, 0.05], [0.65, 0.35]]))
    got = levels.accuracy(two[1], torch.tensor([0, 0, 0]), [0, 1, 2])
    assert (got.groups, got.overall, got.mean_group) == (2, pytest.approx(200 / 3), 50.0)


def test_a_renamed_class_that_stands_for_itself_has_its_new_name(table: Path, command: Command, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace(",figure", ","))
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    assert command("classes", "rename", "run", "red square=red box", "--out", "renamed").code == 0
    ended = command("predict", "renamed", table.parent / "test", "--level", "parent", "--json")
    assert {row["group"]["name"] for row in json.loads(ended.out)} <= {"scenery", "red box"}


def test_a_level_by_name_may_be_unsure(table: Path, command: Command) -> None:
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    given = ("run", table.parent / "test", "--json")
    every = json.loads(command("predict", *given, "--level", "leaf").out)
    assert all(row["group"]["name"] == row["top"][0]["class"] for row in every)
    below, above = sorted(row["group"]["probability"] for row in every)[2:4]
    limit = (below + above) / 2
    some = json.loads(command("predict", *given, "--level", "leaf", "--sure", limit).out)
    assert [row["group"] is None for row in some] == [row["group"]["probability"] < limit for row in every]
    assert "is 0.5, but no level was asked for" in command("predict", *given, "--sure", 0.5).err


@pytest.mark.slow
def test_python_answers_as_the_command_does(table: Path, command: Command) -> None:
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    test = table.parent / "test"
    model = liftplus.load("run", device="cpu")
    for level, sure in (("parent", None), ("leaf", 0.5), ("auto", 0.7), ("auto", None)):
        words = ("--level", level, *(() if sure is None else ("--sure", sure)))
        rows = predicted(command, test, *words)
        found = model.predict(test, level=level, sure=sure)
        assert found.levels == tuple(row["level"] for row in rows) and found.groups is not None
        assert found.groups == tuple(row["group"]["name"] if row["group"] else "" for row in rows)
        wanted = [row["group"]["probability"] if row["group"] else math.nan for row in rows]
        assert found.group_probabilities == pytest.approx(wanted, abs=1e-5, nan_ok=True)
    assert model.predict(test).levels is None and model.predict(test).groups is None
    with pytest.raises(UserError, match=r"The level is 'genus'\. Give parent, leaf or auto"):
        model.predict(test, level="genus")
    with pytest.raises(UserError, match="no level was asked for"):
        model.predict(test, sure=0.5)


def test_the_temperature_decides_at_levels(table: Path, command: Command) -> None:
    """Not which class is best, but which group."""
    level = levels.Level("parent", ("one", "two"), torch.tensor([0, 1, 1]))
    settings = EvaluationConfig(top_k=1)
    for temperature, group in ((1.0, 1), (1 / 3, 0)):
        logits = torch.tensor([[0.4, 0.3, 0.3]]).log()
        top = best(logits, settings, runtime.choose("cpu", "fp32"), 1, Answering(temperature, (level,)))
        assert top.classes.tolist() == [[0]] and top.groups is not None and top.groups.tolist() == [[group]]

    # What evaluate measures is what predict answers; at a high temperature the group with most classes wins.
    fitted = liftplus.fit(str(table), epochs=0, device="cpu", precision="fp32", tte=False, workers=0)
    images = [np.random.default_rng(k).integers(0, 256, (40, 40, 3), dtype=np.uint8) for k in range(24)]
    fitted.calibrate((images, sorted(PARENTS) * 8))
    for temperature in (1.0, 1e6):
        assert fitted.calibration is not None
        own = replace(fitted.calibration.calibration, temperature=temperature)
        fitted.calibration = replace(fitted.calibration, calibration=own)
        answers = fitted.predict(table.parent / "test", level="parent")
        assert answers.groups is not None
        truth = [PARENTS[Path(path).parent.name.replace("_", " ")] for path in answers.paths]
        right = [one == other for one, other in zip(answers.groups, truth, strict=True)]
        assert fitted.evaluate().levels["parent"].overall == pytest.approx(100 * sum(right) / len(right))
    assert set(answers.groups) == {"scenery"}


@pytest.mark.slow
def test_eval_with_zero_shot_logits_uses_no_temperature_and_says_so(
    table: Path, command: Command, tmp_path: Path
) -> None:
    options = ("epochs=0", "device=cpu", "precision=fp32", "tte=false")
    assert command("train", "--data", table, "--out", "run", *options).code == 0
    before = json.loads(command("eval", "run", "--gla", "--json").out)
    model = liftplus.load("run", device="cpu")
    images = [np.random.default_rng(k).integers(0, 256, (40, 40, 3), dtype=np.uint8) for k in range(24)]
    model.calibrate((images, sorted(PARENTS) * 8))
    assert model.calibration is not None
    hot = replace(model.calibration, calibration=replace(model.calibration.calibration, temperature=1e6))
    calibration_file.write(tmp_path / "run", hot)
    ended = command("eval", "run", "--gla", "--json")
    assert "The run's calibration is for its own logits and not for those of GLA" in " ".join(ended.err.split())
    assert json.loads(ended.out)["levels"] == before["levels"]
    ended = command("eval", "run", "--json")
    assert "GLA" not in ended.err
    assert json.loads(ended.out)["levels"]["parent"]["overall"] == pytest.approx(200 / 3)  # all are scenery
