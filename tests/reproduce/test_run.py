"""`liftplus reproduce run` and `status` on tiny pictures: reuse, going on, sharing, verdicts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from liftplus.commands import reproduce as script
from liftplus.errors import RunFailedError
from liftplus.machine import disk, stopping
from liftplus.reproduce import carry_out, verdicts
from liftplus.reproduce.plan import Plan, changed_settings
from liftplus.runs import execution, reuse, testing
from liftplus.training import checkpoint

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


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_experiments_share_runs_and_are_judged(command: Command, tmp_path: Path) -> None:
    ended = command("reproduce", "run", "photos", *HERE, *QUICK)
    assert ended.code == 0, ended.err
    assert "Tests: 8, of which 0 are finished. Trainings for them: 5, of which 0" in ended.err
    assert "The time of 3 tests is not known" in ended.err
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
    assert claim["tests"][0]["verdict"] == "not contradicted" and claim["tests"][0]["margin"] == 1  # one seed
    assert claim["tests"][1]["verdict"] == "not run" and "no many classes" in claim["tests"][1]["why"]
    assert claim["verdict"] == "not run" and claim["untestable"][0]["what"] == "On ImageNet-LT"

    again = command("reproduce", "run", "photos", *HERE, *QUICK)
    assert again.code == 0 and "Tests: 8, of which 8 are" in again.err and "of which 5 are finished" in again.err
    assert again.err.count("(found finished)") == 8 and "takes about" not in again.err
    assert models(tmp_path / "r") == made
    more = command("reproduce", "run", "photos/mini_clip/zeroshot", *HERE, *QUICK, "--seeds", 3)
    assert more.code == 0 and "The rest takes about" in more.err
    alike = {"photos/mini_clip/losses/logit_adjusted"}  # is lift+, and was found finished
    assert carry_out.timed(tmp_path / "r").keys() == results.keys() - alike
    other = command("reproduce", "run", "photos", *HERE, "epochs=2", *QUICK[1:])
    assert other.code == 2 and "epochs=1" in other.err and "--out" in other.err


@pytest.mark.usefixtures("tiny")
def test_what_was_stopped_goes_on(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("reproduce", "run", "photos/mini_clip/lift+", *HERE, "--seeds", 1, *QUICK)
    assert command(*given).code == 0
    folder = tmp_path / "r/photos/mini_clip/lift+-seed0"
    whole = (folder / "predictions.csv").read_bytes()
    shutil.rmtree(tmp_path / "r")
    real = stopping.StopRequest.__init__

    def begin(self: stopping.StopRequest, *job: Any) -> None:
        real(self, *job)
        self.signal = 15

    with monkeypatch.context() as asked:
        asked.setattr(stopping.StopRequest, "__init__", begin)
        ended = command(*given)
    assert ended.code == 143 and "Give the same command to continue" in ended.err
    assert (folder / checkpoint.STATE).is_file()
    ended = command(*given)
    assert ended.code == 0, ended.err
    assert (folder / "predictions.csv").read_bytes() == whole
    with monkeypatch.context() as asked:
        asked.setattr(testing, "test", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        ended = command("reproduce", "run", "photos/mini_clip/one_crop", *HERE, "--seeds", 1, *QUICK)
    assert ended.code == 130 and ended.err.strip().endswith("Stopped. Give the same command to continue.")
    assert command("reproduce", "run", "photos/mini_clip/one_crop", *HERE, "--seeds", 1, *QUICK).code == 0


@pytest.mark.usefixtures("tiny")
def test_a_run_in_other_hands_is_passed_over(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is let go of when the command waits; what the other left is done then."""
    folder = tmp_path / "r/photos/mini_clip/lift+-seed0"
    folder.mkdir(parents=True)
    other = FileLock(folder / disk.LOCK)
    other.acquire()
    monkeypatch.setattr(carry_out.time, "sleep", lambda seconds: other.release())
    ended = command("reproduce", "run", "photos/mini_clip/lift+", "zeroshot", *HERE, "--seeds", 1, *QUICK)
    assert ended.code == 2 and "zeroshot" in ended.err, "no name of its own"
    given = ("photos/mini_clip/lift+", "photos/mini_clip/zeroshot")
    ended = command("reproduce", "run", *given, *HERE, "--seeds", 1, *QUICK)
    assert ended.code == 0, ended.err
    order = [line.partition(":")[0] for line in ended.err.splitlines() if line.startswith("[")]
    assert order == ["[2 of 2] photos/mini_clip/zeroshot, seed 0", "[once more] photos/mini_clip/lift+, seed 0"]
    assert "Another process is making 1 run" in ended.err


PROCESS = """
import sys
from pathlib import Path
from liftplus import cli
from liftplus.reproduce import catalogue
real, tables = catalogue.load, Path(sys.argv.pop(1))
catalogue.load = lambda: real(tables)
cli.main()
"""


@pytest.mark.slow
def test_two_processes_share_the_work(tiny: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROCESS, str(tiny), "reproduce", "run", "photos", *HERE, *QUICK]
    both = [
        subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=540) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    for out, err in told:
        assert sum(line.startswith("[") for line in err.splitlines()) == 8, err
        assert "status.json" in out
    logs = list((tmp_path / "r").rglob("log.jsonl"))
    assert len(logs) == 3
    assert all(len(log.read_text(encoding="utf-8").splitlines()) == 1 for log in logs), "trained twice"


def test_files_that_several_processes_write_at_once(tmp_path: Path) -> None:
    """Each thread holds locks of its own here, as a process does."""
    plan = Plan((), tmp_path / "r", overrides=("epochs=1",))

    def both(_: int) -> None:
        plan.note()
        verdicts.write(plan, verdicts.Status((), ()))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(both, range(12)))
    assert changed_settings(plan.out) == ["epochs=1"]
    assert json.loads((plan.out / "status.json").read_text(encoding="utf-8"))["results"] == []
    assert not list(plan.out.glob("*.tmp"))


@pytest.mark.usefixtures("tiny")
def test_a_run_that_another_process_begins_for_another_test(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After this one has looked for it, and before it begins it itself."""
    real, begun = reuse.run, []

    def run(session: Any, dataset: Any, folder: Path) -> Any:
        if not begun:
            begun.append(folder)
            evaluation = session.config.evaluation.model_copy(update={"tte": not session.config.evaluation.tte})
            config = session.config.model_copy(update={"evaluation": evaluation})
            real(dataclasses.replace(session, config=config), dataset, folder)
        return real(session, dataset, folder)

    monkeypatch.setattr(reuse, "run", run)
    ended = command("reproduce", "run", "photos/mini_clip/one_crop", *HERE, *QUICK)
    assert ended.code == 0, ended.err


@pytest.mark.usefixtures("tiny")
def test_a_failing_run_does_not_end_the_others(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = execution.train_run

    def train_run(session: Any, *rest: Any) -> Any:
        if session.config.loss.name == "cross_entropy":
            raise RunFailedError("The loss diverged.")
        return real(session, *rest)

    monkeypatch.setattr(execution, "train_run", train_run)
    ended = command("reproduce", "run", "losses", *HERE, *QUICK)
    assert ended.code == 2 and "1 run failed" in ended.err and "The loss diverged" in ended.err
    states = {one["name"]: one["seeds"] for one in standing(command)["results"]}
    assert states["photos/mini_clip/losses/logit_adjusted"] == [0]
    assert states["photos/mini_clip/losses/cross_entropy"] == []


@pytest.mark.usefixtures("tiny")
def test_what_belongs_to_experiments_cannot_be_set(command: Command) -> None:
    for pair in ("seed=3", "method=full", "backbone.name=clip_vit_b16"):
        ended = command("reproduce", "run", "photos", *HERE, pair)
        assert ended.code == 2 and pair in ended.err
    ended = command("reproduce", "run", "epochs=1", *HERE)
    assert ended.code == 2 and "Give a name" in ended.err
    ended = command("reproduce", "status", "--out", "nothing")
    assert ended.code == 2 and "There is no folder 'nothing'" in ended.err


@pytest.mark.usefixtures("tiny")
def test_list(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "IN_FULL", 1)
    ended = command("reproduce", "list")
    assert ended.code == 0 and "photos/mini_clip/one_crop: 2 runs, not known" in ended.out
    assert "photos/mini_clip/lift+: 2 runs, not known; expected overall 0, few 0 to 100" in ended.out
    (line,) = json.loads(command("reproduce", "list", "photos/mini_clip/losses/cross_entropy", "--json").out)
    assert line["command"] == "liftplus train --data data/photos --backbone mini_clip loss=cross_entropy seed=0"
    assert line["needs"]["weights"] == "mini_clip" and line["needs"]["data"] == ["the file data/photos"]
    ended = command("reproduce", "list", "photos/mini_clip/lift+")
    assert "expected: overall 0, few 0 to 100 (a paper)" in ended.out
