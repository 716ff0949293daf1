"""`liftplus reproduce run` and `status` on tiny pictures: reuse, going on, sharing, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command

QUICK = ("epochs=1", "train.batch_size=8", "evaluation.batch_size=8", "workers=0", "device=cpu", "precision=fp32")
HERE = ("--data-root", ".", "--out", "r")


def models(root: Path) -> dict[str, int]:
    """When each model was written."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("model.safetensors")}


def standing(command: Command) -> dict[str, Any]:
    """What status says."""
    ended = command("reproduce", "status", "--out", "r", "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.mark.usefixtures("tiny")
def test_experiments_share_runs_and_are_judged(command: Command, tmp_path: Path) -> None:
    ended = command("reproduce", "run", "photos", *HERE, *QUICK)
    assert ended.code == 0, ended.err
    assert "8 tests of 5 trainings" in ended.err and "below data" not in ended.err
    made = models(tmp_path / "r")
    assert sorted(made) == [
        f"photos/mini_clip/{name}/model.safetensors"
        for name in ("lift+-seed0", "lift+-seed1", "lift+_loss=cross_entropy-seed0", "zeroshot-seed0", "zeroshot-seed1")
    ]
    assert (tmp_path / "r/photos/mini_clip/lift+-seed1/tests/tte=false/metrics.json").is_file()

    found = standing(command)
    assert json.loads((tmp_path / "r/status.json").read_text(encoding="utf-8")) == found
    results = {one["name"]: one for one in found["results"]}
    assert results["photos/mini_clip/lift+"]["seeds"] == [0, 1]
    figures = {one["key"]: one for one in results["photos/mini_clip/lift+"]["figures"]}
    assert figures["overall"]["verdict"] == "above" and figures["many"]["verdict"] == ""
    assert figures["few"]["verdict"] == "reached"
    assert results["photos/mini_clip/one_crop"]["folders"][0].endswith("tte=false")
    assert results["photos/mini_clip/losses/logit_adjusted"]["folders"] == results["photos/mini_clip/lift+"]["folders"]
    assert all("epochs=1" in one["differs"] for one in found["results"])
    (claim,) = found["claims"]
    assert claim["tests"][0]["verdict"] in ("confirmed", "contradicted")
    assert claim["tests"][1]["verdict"] == "not run" and "no many classes" in claim["tests"][1]["why"]
    assert claim["verdict"] in ("not run", "contradicted") and claim["untestable"][0]["what"] == "On ImageNet-LT"

    again = command("reproduce", "run", "photos", *HERE, *QUICK)
    assert again.code == 0 and "found finished: 8 and 5" in again.err
    assert models(tmp_path / "r") == made
    other = command("reproduce", "run", "photos", *HERE, "epochs=2", *QUICK[1:])
    assert other.code == 2 and "epochs=1" in other.err and "--out" in other.err
