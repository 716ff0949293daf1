"""The page of evidence is what the script makes of the committed files; it says what made-up results say."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from liftplus.reproduce import catalogue
from liftplus.reproduce.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
TABLES = """
[main]
about = "Main"
data = [{ name = "photos", data = "photos" }]
backbones = ["mini_clip"]
seeds = 2
[main.variants]
"light" = { settings = ["tte=false", "lr=0.15"] }
"full" = { method = "full" }
"absent" = { settings = ["epochs=2"] }
"""
CLAIMS = """
[heavy_hurts]
claim = "Heavy hurts"
[[heavy_hurts.tests]]
better = "photos/mini_clip/light"
worse = "photos/mini_clip/full"
metric = "few"
about = "all but the tuner"
[[heavy_hurts.untestable]]
what = "On ImageNet-LT"
why = "its pictures are not here"
[elsewhere]
claim = "It holds for photographs"
[[elsewhere.untestable]]
what = "On ImageNet-LT"
why = "its pictures are not here"
[unseen]
claim = "Two epochs suffice"
[[unseen.tests]]
better = "photos/mini_clip/absent"
worse = "photos/mini_clip/light"
metric = "overall"
kind = "no_worse"
"""
VERSIONS = {
    "liftplus": "9.1",
    "torch": "9.2",
    "torchvision": "9.3",
    "timm": "9.4",
    "python": "9.5",
    "device": "cpu",
    "hardware": "x",
    "precision": "fp32",
    "threads": "1",
}


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module("evidence")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with made-up runs: of 40 test images `light` gets 36 right and `full` 12, give or take the seed."""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "tiny.toml").write_text(TABLES, encoding="utf-8")
    (tables / "claims.toml").write_text(CLAIMS, encoding="utf-8")
    found, out = catalogue.load(tables), tmp_path / "runs"
    monkeypatch.setattr(catalogue, "load", lambda: found)
    plan = Plan(tuple(found.experiments.values()), out)
    for name, right in (("light", 36), ("full", 12)):
        for seed in (0, 1):
            make_run(plan, found.experiments[f"photos/mini_clip/{name}"], seed, right + seed)
    return out


def make_run(plan: Plan, one: catalogue.Experiment, seed: int, right: int) -> None:
    folder = plan.folder(one, seed)
    folder.mkdir(parents=True)
    about = {
        "command": "liftplus train",
        "versions": VERSIONS,
        "config": plan.config(one, seed).to_dict(),
        "data": {"train_counts": [5, 5], "images": {"train": 10, "test": 40}},
    }
    accuracy = 100 * right / 40
    metrics = {"overall": accuracy, "mean_class": accuracy, "many": None, "medium": None, "few": accuracy}
    metrics |= {"split": "test", "evaluation": {}, "seconds": 12.0, "trained_parameters": 1234}
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("name", "train_images"), ("a", 5), ("b", 5)])
    images = [(f"{k}.png", "ab"[k % 2], int(k < right)) for k in range(40)]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "true", "correct"), *images])


def test_the_page_is_what_the_committed_files_say(evidence: Any) -> None:
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.committed()
    readme = evidence.README.read_text(encoding="utf-8")
    assert readme == evidence.with_fair(readme)


def test_runs_are_collected(evidence: Any, made: Path) -> None:
    found = evidence.collect(made, ["tiny"])
    assert found["command"] == "liftplus reproduce run tiny"
    assert [one["name"] for one in found["experiments"]] == ["photos/mini_clip/light", "photos/mini_clip/full"]
    light = found["experiments"][0]
    assert light["command"].endswith("tte=false lr=0.15 seed=N")
    assert (light["lr"], light["epochs"]) == (0.15, 5)
    assert [row["overall"] for row in light["seeds"]] == [90.0, 92.5]
    assert light["seeds"][1] | {"seed": 1, "seconds": 12.0, "trained_parameters": 1234} == light["seeds"][1]
    assert found["versions"]["torch"] == ["9.2"]
    assert len(found["dates"]) == 2


def test_claims_are_judged(evidence: Any, made: Path) -> None:
    record = json.loads(json.dumps(evidence.collect(made, ["tiny"])))
    test = record["claims"]["heavy_hurts"]["tests"][0]
    assert test["points"] == 60.0
    assert test["half"] > 0
    assert test["p"] < 0.001
    assert test["part"]["variance"] > 0
    assert "absent" in record["claims"]["unseen"]["tests"][0]["why"]
    found = evidence.evidence_claims.judged(record, catalogue.load())
    assert found["heavy_hurts"].verdict == "confirmed"
    assert found["unseen"].verdict == "not run"


def test_committed_verdicts_follow_the_rules(evidence: Any) -> None:
    """No interval that reaches beyond the margin is called no worse; the files' own verdicts were easier."""
    known = catalogue.load()
    tests = [
        test
        for record in evidence.read().values()
        if record["kind"] == "experiments"
        for claim in evidence.evidence_claims.judged(record, known).values()
        for test in claim.tests
        if test.difference is not None
    ]
    assert len(tests) > 50
    for test in tests:
        low, high = test.difference.interval()
        if test.kind == "no_worse":
            assert (test.verdict == "confirmed") == (low > -test.margin), test
            assert test.verdict != "contradicted" or high < 0
        elif test.kind == "same":
            assert (test.verdict == "confirmed") == (max(-low, high) < test.margin), test
        elif test.verdict == "confirmed":
            assert low > 0


@pytest.mark.parametrize(
    ("images", "by_seed"), [(0.9, (1.0, 1.4, 0.9)), (0.3, (2.0, -1.0, 4.0)), (2.0, (0.5, 0.5, 0.6))]
)
def test_an_older_interval_tells_the_images_part(evidence: Any, images: float, by_seed: tuple[float, ...]) -> None:
    import numpy as np
    from scipy import stats

    seeds = float(np.var(by_seed, ddof=1)) / 3
    total = images + seeds
    freedom = total**2 / (images**2 / 1199 + seeds**2 / 2)
    points = float(np.mean(by_seed))
    test = {
        "points": points,
        "half": round(float(stats.t.ppf(0.975, freedom)) * total**0.5, 4),
        "p": round(2 * float(stats.t.sf(points / total**0.5, freedom)), 4),
        "seeds": 3,
        "images": 1200,
    }
    found = evidence.evidence_claims._images_part(test, np.array(by_seed), np.zeros(3))
    assert found == pytest.approx(images, rel=0.01)
    if seeds > 0.1:  # both from the width and p alone, where p has places enough
        assert evidence.evidence_claims._both_parts(test) == pytest.approx((images, seeds), rel=0.05)


def test_the_light_method_is_chosen_on_validation(evidence: Any) -> None:
    def row(stage: str, method: str, score: float, tuned: int = 5) -> dict[str, Any]:
        one = {"stage": stage, "method": method, "parameters": {"tuned": tuned}}
        return one | {"one_crop": {"mean_class": score, "overall": score}}

    rows = [row("search", "norm", 70.0), row("search", "lora", 60.0), row("search", "head only", 80.0, tuned=0)]
    rows += [row("search", "full", 90.0), row("test", "norm", 10.0), row("test", "lora", 99.0)]
    assert evidence._best_light(rows) == "norm"


def test_results_survive_their_file_and_reach_the_page(evidence: Any, made: Path) -> None:
    record = json.loads(json.dumps(evidence.collect(made, ["tiny"])))
    text = evidence.page({"tiny": record})
    assert "| Heavy hurts | confirmed |" in text
    assert "| Two epochs suffice | not all of it has been run |" in text
    assert "| It holds for photographs | not testable here |" in text
    assert "On ImageNet-LT: its pictures are not here." in text
    assert "| `photos/mini_clip/light` | 91.2 ± 1.8 | 91.2 ± 1.8 | 91.2 ± 1.8 | 0, 1 | 0.15 | 1,234 | 12 |" in text
    assert "+60.0 ± " in text
    assert "| < 0.001 | 2 | confirmed |" in text
    assert "`benchmarks/results/evidence/tiny.json`" in text
    assert str(made) not in text


def test_a_file_that_made_none_of_the_comparisons_does_not_blur_a_verdict(evidence: Any, made: Path) -> None:
    record = evidence.collect(made, ["tiny"])
    text = evidence.page({"full": record, "part": evidence.collect(made, ["photos/mini_clip/full"])})
    assert "| Heavy hurts | confirmed (full), confirmed (part) |" in text  # each file says what the folder's runs say
    bare = json.loads(json.dumps(record))
    for test in bare["claims"]["heavy_hurts"]["tests"]:
        del test["points"]
    assert "| Heavy hurts | confirmed (full) |" in evidence.page({"full": record, "part": bare})


def test_without_runs_nothing_is_claimed(evidence: Any) -> None:
    assert "No experiment has been run yet." in evidence.page({})


def test_a_search_reaches_the_page(evidence: Any, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    trials = []
    for number, (lr, score) in enumerate((("0.03", 60.0), ("0.1", 70.0))):
        run = folder / f"trial-{number:03d}"
        run.mkdir(parents=True)
        about = {"command": "__main__.py sweep --data photos lr=0.03,0.1", "versions": VERSIONS, "config": {"seed": 7}}
        (run / "config.json").write_text(json.dumps(about), encoding="utf-8")
        (run / "metrics.json").write_text("{}", encoding="utf-8")
        metrics = dict.fromkeys(evidence.KEYS, score) | {"many": None, "seconds": 3.0}
        trials.append({"number": number, "state": "complete", "point": {"train.lr": lr}, "metrics": metrics})
    found = {"metric": "mean_class", "trials": trials, "best": {"point": {"train.lr": "0.1"}}}
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    text = evidence.page({"search": json.loads(json.dumps(evidence.search([folder])))})
    assert "| full | lr=0.03 | 60.0 | 60.0 | – | 60.0 | 60.0 | 7 |" in text
    assert "| full | **lr=0.1** | 70.0 | 70.0 | – | 70.0 | 70.0 | 7 |" in text
    assert "liftplus sweep --data photos lr=0.03,0.1\n" in text


def test_distances_are_compared_with_the_first_run(
    evidence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from liftplus.report.features import Distances

    script = evidence.evidence_distances
    counts = [200, 50, 10, 5, 3]
    shape = {"between": 1.0, "shown": (), "likeness": ()}
    bare = Distances("bare backbone", (0.5,) * 5, (0.5,) * 5, **shape)
    tuned = {  # full fine-tuning adds to the gap of rare classes and loses accuracy there
        "light": (Distances("light", (0.3,) * 5, (0.3, 0.3, 0.3, 0.3, 0.3), **shape), (90, 90, 90, 90, 90)),
        "full": (Distances("full", (0.1,) * 5, (0.1, 0.2, 0.3, 0.4, 0.6), **shape), (95, 90, 80, 70, 50)),
    }
    data = SimpleNamespace(counts=lambda: counts, splits={"train": range(268)})
    monkeypatch.setattr(script.sources, "load", lambda _: data)
    monkeypatch.setattr(script.config, "from_dict", lambda _: SimpleNamespace(data=None))
    monkeypatch.setattr(script, "grouped", lambda runs: runs)
    monkeypatch.setattr(script.features, "measure", lambda runs, *_: ([bare, tuned[runs[0].folder.name][0]], []))

    def read(folder: Path) -> Any:
        classes = [SimpleNamespace(accuracy=float(value)) for value in tuned[folder.name][1]]
        test = SimpleNamespace(tte=False, margins=(24, None), classes=classes)
        return SimpleNamespace(folder=folder, config={}, tested=test, others=())

    monkeypatch.setattr(script.read, "run", read)
    first, light, full = script.measured([(name, 0, tmp_path / name) for name in tuned], tmp_path)
    assert first["model"] == "bare backbone" and first["few"] == {"train": 0.5, "test": 0.5, "gap": 0.0}
    assert full["few"] == {
        "train": 0.1,
        "test": pytest.approx(1.3 / 3, abs=1e-4),
        "gap": pytest.approx(1 / 3, abs=1e-4),
    }
    assert full["rank_with_count"] == -1.0 and full["rank_with_accuracy"] == -1.0
    assert light["rank_with_count"] is None and light["rank_with_accuracy"] is None

    record = {"kind": "distances", "command": "c", "machine": {"cpu": "x", "cores": 2, "vectors": "v"}}
    record |= {"versions": {key: ["1"] for key in VERSIONS}, "dates": ["2026-01-01"], "rows": [first, light, full]}
    text = evidence.page({"distances": record})
    assert "| `full` | 0.000 | 0.100 | 0.333 | -1.00 | -1.00 |" in text
