"""`liftplus sweep` as a user meets it: shared, killed, gone on with; chosen on validation, tested once."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from liftplus.backbones import mini_clip
from liftplus.studies import storage, trials
from processes import liftplus, until

from ..conftest import Command, write_folder

pytest.importorskip("optuna")

QUICK = ("epochs=1", "workers=0", "train.batch_size=8", "tte=false", "device=cpu", "precision=fp32")


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Three classes with a validation split."""
    return write_folder(tmp_path / "split", {"train": (9, 5, 2), "val": (3, 3, 3), "test": (2, 2, 2)})


def refused(ended: Any, *parts: str) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_the_best_on_validation_is_chosen_and_test_is_touched_last(split: Path, command: Command) -> None:
    shutil.move(split / "test", split.parent / "kept")
    for file in (split.parent / "kept").rglob("*.png"):  # pictures that cannot be read: reading one would end the sweep
        target = split / "test" / file.relative_to(split.parent / "kept")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"junk")
    grid = ("sweep", "--data", split, "--out", "s", "lr=1e-9,0.02", "seed=0..1", *QUICK)
    ended = command(*grid, "--json")
    assert ended.code == 0, ended.err
    found, folder = json.loads(ended.out), split.parent / "s"
    assert found["sampler"] == "grid" and found["split"] == "val" and not found["test"]
    tested = [json.loads(path.read_text()) for path in sorted(folder.rglob("metrics.json"))]
    assert [one["split"] for one in tested] == ["val"] * 4
    for one in found["trials"]:
        run = json.loads((folder / one["folder"] / "config.json").read_text())
        assert "test" not in run["data"]["images"]
        assert run["config"]["seed"] == int(one["point"]["seed"])
        assert run["config"]["train"]["lr"] == float(one["point"]["train.lr"])
        assert (folder / one["folder"] / "model.safetensors").is_file()
    means = {
        lr: sum(one["metrics"]["mean_class"] for one in found["trials"] if one["point"]["train.lr"] == lr) / 2
        for lr in ("1e-9", "0.02")
    }
    assert found["best"]["mean"] == pytest.approx(max(means.values()))
    assert means[found["best"]["point"]["train.lr"]] == max(means.values())
    with (folder / "trials.csv").open(newline="") as stream:
        assert [row["mean_class"] for row in csv.DictReader(stream)] == [
            str(one["metrics"]["mean_class"]) for one in found["trials"]
        ]
    # Now the test split is read, for the first time, and nothing is trained again.
    refused(command(*grid, "--test-seeds", 1), "png")
    shutil.rmtree(split / "test")
    shutil.move(split.parent / "kept", split / "test")
    about = json.loads((folder / "sweep.json").read_text())
    del about["settings"]["backbone.pretrained"]  # as a version without this setting wrote it
    (folder / "sweep.json").write_text(json.dumps(about))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trial-*/*")}
    ended = command(*grid, "--test-seeds", 1)
    assert ended.code == 0, ended.err
    assert "Best: train.lr" in ended.out and "on the test split" in ended.out
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("trial-*/*")}
    (test,) = results(folder)["test"]
    assert test["metrics"]["split"] == "test" and test["folder"] == "test-seed0"
    refused(command("sweep", "--data", split, "--out", "s", "lr=0.02,0.03", *QUICK), "holds another sweep", "varied")
    refused(command(*grid, f"weights={mini_clip.WEIGHTS['mini_clip_v1']}"), "trial-000", "mini_clip had other weights")
    next((split / "val").rglob("*.png")).unlink()
    refused(command(*grid), "trial-000", "the val split has other images")


unix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of Unix")


def reported(said: str) -> Counter[str]:
    """How often each trial was finished."""
    return Counter(line.split(":")[0] for line in said.splitlines() if " on validation, best " in line)


@pytest.mark.slow
def test_two_processes_share_one_sweep(split: Path) -> None:
    at = split.parent
    given = ("sweep", "--data", split, "--out", at / "s", "lr=0.001,0.01,0.02", *QUICK)
    both = [liftplus(*given, told=at / name) for name in ("a", "b")]
    assert [one.wait() for one in both] == [0, 0], "".join(one.told for one in both)
    assert reported("".join(one.told for one in both)) == {f"trial {k}": 1 for k in range(3)}
    found = results(at / "s")
    assert [one["state"] for one in found["trials"]] == ["complete"] * 3
    assert all(len((at / "s" / one["folder"] / "log.jsonl").read_text().splitlines()) == 1 for one in found["trials"])


@pytest.mark.slow
@unix
def test_killed_trials_go_on(split: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    at, settings = split.parent, (*QUICK[1:], "epochs=6")
    given = ("sweep", "--data", split, "--out", at / "s", "lr=0.001..0.1:log", "--trials", 2, "--sampler", "random")
    first = liftplus(*given, *settings, told=at / "first")
    until((at / "s" / "trial-000" / "last.safetensors").exists, first)
    second = liftplus(*given, *settings, told=at / "second")
    until((at / "s" / "trial-001" / "last.safetensors").exists, second)
    second.kill()
    first.send(signal.SIGTERM)
    assert first.wait() in (143, -signal.SIGTERM)  # the latter between two trials
    monkeypatch.setattr(trials, "POLL", 0.2)
    ended = command(*given, *settings)
    assert ended.code == 0, ended.err
    found = results(at / "s")
    assert [one["state"] for one in found["trials"]] == ["complete"] * 2
    for one in found["trials"]:
        lines = (at / "s" / one["folder"] / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert reported(first.told + second.told + ended.err) == {"trial 0": 1, "trial 1": 1}
    again = command(*given, *settings)
    assert again.code == 0 and not reported(again.err)
    rate = found["trials"][1]["point"]["train.lr"]
    alone = command("train", "--data", split, "--out", "alone", *settings, f"lr={rate}")
    assert alone.code == 0, alone.err
    assert _weights(at / "s" / "trial-001" / "model.safetensors") == _weights(at / "alone" / "model.safetensors")


def _weights(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


@pytest.mark.slow
def test_tpe_goes_on_where_it_was_and_a_diverging_trial_is_noted(split: Path, command: Command) -> None:
    given = ("sweep", "--data", split, "--out", "s", "--sampler", "tpe", *QUICK)
    ended = command(*given, "--trials", 1, "lr=0.01..0.02", "loss=cross_entropy,logit_adjusted")
    assert ended.code == 0, ended.err
    ended = command(*given, "--trials", 2, "lr=0.01..0.02", "loss=cross_entropy,logit_adjusted")
    assert ended.code == 0, ended.err
    found = results(split.parent / "s")
    assert len(found["trials"]) == 2 and ended.err.count("on validation, best") == 1
    ended = command("sweep", "--data", split, "--out", "d", "lr=1e30,0.01", *QUICK)
    assert ended.code == 0, ended.err
    states = {one["point"]["train.lr"]: one for one in results(split.parent / "d")["trials"]}
    assert states["1e30"]["state"] == "failed" and "not finite" in states["1e30"]["error"]
    assert results(split.parent / "d")["best"]["point"] == {"train.lr": "0.01"}


def test_what_cannot_be_is_refused_before_any_run(split: Path, photos: Path, command: Command) -> None:
    def sweep(*given: object, data: Path = split) -> Any:
        return command("sweep", "--data", data, "--out", "s", *QUICK, *given)

    refused(sweep("lr=0.1,0.2", data=photos), "no validation split", "val_share=0.2")
    refused(sweep("lr=0.1..0.2:lgo"), ":log", "lr=0.001..0.1:log")
    refused(sweep("lr=0.1"), "Nothing is varied")
    refused(sweep("lr=0.1..0.2", "seed=0..1"), "luckiest seed")
    refused(sweep("lr=0.1..0.2", "--sampler", "grid"), "lr=0.1..0.2:5")
    refused(sweep("lr=0.1,0.2", "--sampler", "random", "--trials", 3), "only 2 settings")
    refused(sweep("lr=0.1,0.2", "--sampler", "grid", "--trials", 3), "2 points")
    refused(sweep("lr=0.1,0.2", "--metric", "many"), "no validation image")
    refused(sweep("lr=0.1,0.2", "--metric", "speed"), "--metric is 'speed'")
    refused(sweep("lr=0.1,0.2", "--sampler", "best"), "--sampler is 'best'")
    refused(sweep("lr=0.1,0.2", "--storage", "nonsense"), "not the address of a database")
    refused(command("sweep", "--data", split, "--out", split, "lr=0.1,0.2", *QUICK), "already exists")
    (split.parent / "s" / storage.JOURNAL).write_bytes(b"no journal\n" * 999)
    refused(sweep("lr=0.1,0.2"), "journal has a damaged line")
    assert not list(split.parent.glob("s/trial-*"))


def test_without_optuna_the_command_says_how_to_get_it(
    split: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(command("sweep", "--data", split, "--out", "s", "lr=0.1,0.2", *QUICK), "pip install 'liftplus[sweep]'")


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
SMALLER = {
    "clip_vit_b16": "mini_clip",
    "20": "1",
    "3": "1",
    "seed=0..2": "seed=0,2",
    "val_share=0.2": "val_share=0.3",
    "lr=0.01,0.02,0.03": "lr=0.01,0.02",
    "postgresql+psycopg://me@node1/optuna": "sqlite:///server.db",
    "zeroshot,lift+,full:lr=0.003,lift+:tuner=lora": "zeroshot,lift+:tuner=lora",
}


@pytest.mark.slow
def test_the_page_runs(photos: Path, command: Command, tmp_path: Path) -> None:
    """Each of its commands, with the bundled model, fewer trials and one epoch."""
    shutil.make_archive(str(photos), "zip", photos)
    told = []
    for line in LINES:
        words = [word for word in shlex.split(line) if not word.startswith("CUDA_")]
        assert words.pop(0) == "liftplus"
        ended = command(*(SMALLER.get(word, word) for word in words), *QUICK)
        assert ended.code == 0, ended.err
        told.append(ended.out)
    assert len(LINES) == 6 and "Best: seed" not in told[1]
    assert (tmp_path / "runs" / "lr" / "test-seed0" / "metrics.json").is_file()
    assert told[2] == told[3]  # the second process found nothing left
    assert (tmp_path / "server.db").is_file() and not (tmp_path / "runs" / "servers" / storage.JOURNAL).exists()
    assert (tmp_path / "runs" / "compare" / "compare.md").is_file()
