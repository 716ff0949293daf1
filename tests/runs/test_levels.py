"""Levels above the classes from the data to a run, a test, predictions and edited runs."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from liftplus.evaluation import levels
from liftplus.evaluation.inference import TopK
from liftplus.runs.guesses import LevelAsked

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


def test_what_cannot_be_asked_is_refused(table: Path, photos: Path, command: Command) -> None:
    assert command("zeroshot", "--data", table, "--out", "run").code == 0
    assert command("zeroshot", "--data", photos / "train", "--out", "flat").code == 0
    picture = photos / "test"
    for run, words, said in (
        ("run", ("--level", "genus"), "--level is 'genus'. Give parent, leaf or auto."),
        ("run", ("--level", "auto", "--sure", "1.5"), "--sure is 1.5. Give a probability above 0"),
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
    assert "--sure goes with --level" in command("predict", *given, "--sure", 0.5).err
