"""`liftplus compare` as a user meets it, and the demo as a preset of it."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liftplus.backbones import mini_clip
from liftplus.errors import UserError
from liftplus.report import read
from liftplus.studies import compare, demo

from ..conftest import Command

QUICK = ("epochs=1", "workers=0", "train.batch_size=8", "device=cpu", "precision=fp32")


def refused(ended: Any, *parts: str) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


def test_methods_with_settings_of_their_own() -> None:
    found = compare.entries("lift+, full:lr=0.003,lift+:tuner=lora:tuner.lora.layers=[0,1]")
    assert [(one.label, one.method, one.overrides) for one in found] == [
        ("lift+", "lift+", ()),
        ("full:lr=0.003", "full", ("lr=0.003",)),
        ("lift+:tuner=lora:tuner.lora.layers=[0,1]", "lift+", ("tuner=lora", "tuner.lora.layers=[0,1]")),
    ]
    assert found[1].folder(2) == "full_lr_0.003-seed2"
    assert compare.Entry("x:weights=../../a b", "x").folder(0) == "x_weights_.._.._a_b-seed0"
    for wrong in ("", "lift+,", "lift+,lift+", "lift+:a=1,lift+_a=1"):
        with pytest.raises(UserError, match="--methods"):
            compare.entries(wrong)
    with pytest.raises(UserError, match=r"setting 'epochs=1'.*after colons: full:lr=0\.003:epochs=1\."):
        compare.entries("lift+,full:lr=0.003,epochs=1")


@pytest.mark.slow
def test_runs_are_made_reused_and_refused(photos: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "c"
    given = ("compare", "--data", photos, "--out", "c", "--methods", "lift+,full:lr=0.003")
    assert command("train", "--data", photos, "--method", "full", "--out", "c/full_lr_0.003-seed0", "lr=0.003", *QUICK)
    trained = (out / "full_lr_0.003-seed0" / "model.safetensors").stat().st_mtime_ns
    ended = command(*given, "--seeds", 1, *QUICK)
    assert ended.code == 0, ended.err
    assert "found finished" in ended.err and "One seed proves nothing" in ended.out
    ended = command(*given, "--seeds", 2, "--json", *QUICK)
    assert ended.code == 0, ended.err
    assert (out / "full_lr_0.003-seed0" / "model.safetensors").stat().st_mtime_ns == trained
    assert ended.err.count("found finished") == 2
    found = json.loads(ended.out)
    assert [(row["method"], row["tte"], row["seed"]) for row in found["rows"]] == [
        (method, tte, seed)
        for seed in (0, 1)
        for method, tte in (("lift+", False), ("lift+", True), ("full:lr=0.003", False))
    ]
    check_summary(found, tmp_path)
    with (out / "compare.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(line["method"], line["crops"]) for line in table] == [
        ("lift+", "1"),
        ("lift+", "5"),
        ("full:lr=0.003", "1"),
    ]
    twice = read.run(out / "lift+-seed1")
    assert twice.tested is not None and twice.tested.tte and twice.other_crops is not None
    page = (out / "compare.md").read_text()
    assert "| full:lr=0.003 |" in page and "noise" in page

    refused(command(*given, "--seeds", 2, *QUICK[1:], "epochs=2"), "holds a run with other settings", "train.epochs")
    others = f"backbone.weights={mini_clip.WEIGHTS['mini_clip_v1']}"
    refused(command(*given, "--seeds", 2, *QUICK, others), "mini_clip had other weights")
    (photos / "test" / "blue sky" / "0.png").unlink()
    refused(command(*given, "--seeds", 2, *QUICK), "the test split has other images")


def check_summary(found: dict[str, Any], folder: Path) -> None:
    """Rows are those of the runs' files, and means, spreads and differences are of the rows."""
    for row in found["rows"]:
        metrics = json.loads((folder / row["folder"] / "metrics.json").read_text())
        assert sys.platform != "linux" or row["peak_memory_bytes"] > 50 * 2**20
        assert metrics["overall"] == row["overall"] and metrics["evaluation"]["tte"] == row["tte"]
    for line in found["summary"]:
        values = [r["overall"] for r in found["rows"] if (r["method"], r["tte"]) == (line["method"], line["tte"])]
        assert line["runs"] == 2 and line["overall"]["mean"] == pytest.approx(sum(values) / 2)
        assert line["overall"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    pairs = {(one["a"], one["b"]) for one in found["differences"]}
    assert pairs == {("lift+", "lift+ (five crops)"), ("lift+", "full:lr=0.003")}
    overall = next(one for one in found["differences"] if one["key"] == "overall" and one["b"] == "full:lr=0.003")
    means = {line["method"]: line["overall"]["mean"] for line in found["summary"] if not line["tte"]}
    assert overall["points"] == pytest.approx(means["lift+"] - means["full:lr=0.003"])


@pytest.mark.slow
def test_a_failed_method_ends_no_comparison(photos: Path, command: Command, tmp_path: Path) -> None:
    """The first of three diverges: the others are tabled, the page is written, exit code 2; given again it retries."""
    bad, settings = "linear_probe:lr=1e30", ("tte=false", *QUICK)
    given = ("compare", "--data", photos, "--out", "c", "--seeds", 1, "--methods")
    ended = command(*given, f"{bad},zeroshot,linear_probe:lr=0.01", *settings)
    refused(
        ended, "One run failed", "The same command tries again", f"{bad} with seed 0 failed: The loss is not finite"
    )
    assert (
        "Give the method a lower rate in --methods: linear_probe:lr=RATE." in ended.err and "--resume" not in ended.err
    )
    assert "The other runs continue" in ended.err and "zeroshot against linear_probe:lr=0.01" in ended.out
    found = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["zeroshot", "linear_probe:lr=0.01"]
    assert [(one["method"], one["seed"]) for one in found["failed"]] == [(bad, 0)]
    assert f"{bad} with seed 0 failed" in (tmp_path / "c" / "compare.md").read_text()
    assert "2 runs" in (tmp_path / "c" / "report" / "report.html").read_text(encoding="utf-8")
    again = command(*given, f"{bad},zeroshot,linear_probe:lr=0.01", "--json", *settings)
    refused(again, "One run failed")
    assert again.err.count("found finished") == 2 and f"{bad} with seed 0 (1 of 3) …" in again.err
    assert len(json.loads(again.out)["rows"]) == 2

    refused(command(*given, bad, *settings), "One run failed")
    assert [row["method"] for row in json.loads((tmp_path / "c" / "compare.json").read_text())["rows"]] == [
        "zeroshot",
        "linear_probe:lr=0.01",
    ], "where all fail, no table is written over an earlier one"


@pytest.mark.slow
def test_every_trained_method_is_also_tested_with_zero_shot_logits(
    photos: Path, command: Command, tmp_path: Path
) -> None:
    given = ("compare", "--data", photos, "--out", "c", "--seeds", 1, "--json", *QUICK)
    ended = command(*given, "--methods", "zeroshot,lift+", "--gla")
    assert ended.code == 0, ended.err
    rows = {(row["method"], row["tte"]): row for row in json.loads(ended.out)["rows"]}
    assert [*rows] == [
        *(("zeroshot", False), ("lift+", False), ("lift+", True)),
        *(("lift+ + GLA", False), ("lift+ + GLA", True)),
    ]
    run = tmp_path / "c" / "lift+-seed0"
    shown = command("eval", run, "--gla", "--out", "with", "evaluation.tte=false")
    assert shown.code == 0, shown.err
    made, by_hand = Path(rows["lift+ + GLA", False]["folder"]), tmp_path / "with"
    for name in ("predictions.csv", "pretraining_prior.csv"):
        assert (made / name).read_bytes() == (by_hand / name).read_bytes()
    assert (made / "predictions.csv").read_bytes() != Path(
        rows["lift+", False]["folder"], "predictions.csv"
    ).read_bytes()
    refused(
        command(*given, "--methods", "lift+", "--backbone", "efficientnet_lite0", "--gla"), "no text tower", "--gla out"
    )


def test_a_method_with_fewer_seeds_is_told() -> None:
    row = compare.Row("a", False, 0, 50.0, 50.0, None, None, 50.0, 1.0, 5, None, "x")
    columns, cells = compare.table([row, replace(row, seed=1), replace(row, method="b")])
    assert columns[:2] == ["method", "seeds"] and [line[:2] for line in cells] == [["a", "2"], ["b", "1"]]
    assert "seeds" not in compare.table([row, replace(row, method="b")])[0]


@pytest.mark.slow
def test_an_unfinished_run_goes_on(photos: Path, command: Command, tmp_path: Path) -> None:
    given = ("compare", "--data", photos, "--out", "c", "--methods", "linear_probe", "--seeds", 1, *QUICK)
    assert command(*given).code == 0
    run = tmp_path / "c" / "linear_probe-seed0"
    before = (run / "predictions.csv").read_bytes()
    for name in ("predictions.csv", "metrics.json", "model.safetensors", "log.jsonl"):
        (run / name).unlink()
    ended = command(*given)
    assert ended.code == 0, ended.err
    assert "found finished" not in ended.err and (run / "predictions.csv").read_bytes() == before


def test_what_cannot_be_compared_is_refused(photos: Path, command: Command, tmp_path: Path) -> None:
    def run(*given: object) -> Any:
        return command("compare", "--data", photos, "--out", "c", *given)

    refused(run("--methods", "lift+,fool"), "Unknown method 'fool'", "full")
    refused(run("--methods", "lift+:lr=fast"), "train.lr")
    refused(run("--methods", "lift+:test_share=0.3,full"), "has its own data settings")
    refused(run("seed=3"), "--seeds")
    refused(run("--methods", "lift+:seed=3"), "--seeds")
    (tmp_path / "c" / "full-seed0").mkdir(parents=True)
    (tmp_path / "c" / "full-seed0" / "mine.txt").write_text("precious")
    refused(run("--methods", "full"), "already exists")
    assert [path.name for path in (tmp_path / "c").rglob("*.*")] == ["mine.txt"]


@pytest.mark.slow
def test_the_demo_is_a_preset(photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On small data, as the drawn ones take minutes; tests/test_slow.py runs the demo itself."""
    monkeypatch.setattr(
        demo,
        "plan",
        lambda seeds: compare.Comparison(
            str(photos), "mini_clip", tuple(compare.entries("zeroshot,lift+")), seeds, QUICK
        ),
    )
    (tmp_path / "runs" / "demo" / "lift+-seed0").mkdir(parents=True)  # an earlier demo's, whose place is taken
    (tmp_path / "runs" / "demo" / "lift+-seed0" / "old.txt").touch()
    (tmp_path / "runs" / "demo" / ".liftplus-demo").touch()
    ended = command("demo")
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "runs" / "demo" / "results.json").read_text())
    assert [(row["method"], row["tte"]) for row in rows] == [("zeroshot", False), ("lift+", False), ("lift+", True)]
    assert all(list(row) == list(demo.FIELDS) for row in rows)
    assert rows[0]["tuned_parameters"] == 0 < rows[1]["tuned_parameters"] == rows[2]["tuned_parameters"]
    assert "lift+ (five crops)" in ended.out and "results.json" in ended.out and "found finished" not in ended.err
    (tmp_path / "runs" / "demo" / ".liftplus-demo").unlink()
    refused(command("demo"), "something other than a demo")
