"""What an earlier version left behind goes on: a run, one that was stopped, a sweep. Made by commit 2405afc."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from liftplus.backbones import mini_clip
from liftplus.config import from_dict, saved
from liftplus.runs import reuse

from .conftest import Command, write_folder

OLD = Path(__file__).parent / "old"
GIVEN = ("workers=0", "train.batch_size=8", "tte=false", "device=cpu", "precision=fp32", "image_size=32")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> Path:
    """The folders, beside the pictures that they are of."""
    write_folder(tmp_path / "split", {"train": (9, 5, 2), "val": (3, 3, 3), "test": (2, 2, 2)})
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def first_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs were made with mini_clip's first weights."""
    monkeypatch.setitem(mini_clip.WEIGHTS, "mini_clip", mini_clip.WEIGHTS["mini_clip_v1"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_is_tested_as_it_was(folders: Path, command: Command) -> None:
    ended = command("eval", "run", "device=cpu", "precision=fp32")
    assert ended.code == 0, ended.err
    before, now = (read(folders / "run" / name) for name in ("metrics.json", "eval/metrics.json"))
    assert [now[key] for key in ("overall", "mean_class", "few")] == [
        before[k] for k in ("overall", "mean_class", "few")
    ]


def test_a_run_from_before_a_setting_has_its_default(folders: Path) -> None:
    """The run's own test is taken for one with the default; with another value there is another folder."""
    about = read(folders / "run" / "config.json")["config"]
    assert "resize" not in about["evaluation"]
    evaluation = from_dict(saved(about)).evaluation
    assert reuse.test_folder(folders / "run", evaluation) == folders / "run"
    squashed = evaluation.model_copy(update={"resize": "square"})
    assert reuse.test_folder(folders / "run", squashed) == folders / "run" / "tests" / "resize=_square_"


def test_a_run_takes_settings_that_its_version_did_not_have(folders: Path, command: Command) -> None:
    """They are unknown to the run's file, and not to this version."""
    assert "resize" not in read(folders / "run" / "config.json")["config"]["evaluation"]
    words = ("eval", "run", "--data", "split", "--one-crop")
    assert command(*words, "--out", "whole", "resize=square", "one_crop_expand=0").code == 0
    assert read(folders / "whole" / "metrics.json")["evaluation"]["resize"] == "square"
    ended = command(*words, "--out", "no", "backbone.pooling=mean")
    assert ended.code == 2 and "backbone.pooling belongs to the trained run" in ended.err


@pytest.mark.slow
def test_a_stopped_run_goes_on(folders: Path, command: Command) -> None:
    assert epochs(folders / "unfinished") == [1]
    ended = command("train", "--resume", "unfinished")
    assert ended.code == 0, ended.err
    assert epochs(folders / "unfinished") == list(range(1, 41))
    assert (folders / "unfinished" / "metrics.json").is_file()


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(folders: Path, command: Command) -> None:
    """Of three trials one is finished, one was stopped after an epoch, and one had not begun."""
    kept = (folders / "sweep" / "trial-000" / "model.safetensors").read_bytes()
    given = ("sweep", "--data", "split", "--out", "sweep", "lr=0.01,0.02,0.03", "epochs=30", *GIVEN)
    other = command(*given)
    assert other.code == 2 and "which differs in: recipe" in other.err  # own data have recipe=auto by now
    ended = command(*given, "recipe=paper")
    assert ended.code == 0, ended.err
    assert [one["state"] for one in read(folders / "sweep" / "results.json")["trials"]] == ["complete"] * 3
    assert all(epochs(folders / "sweep" / f"trial-00{number}") == list(range(1, 31)) for number in range(3))
    assert (folders / "sweep" / "trial-000" / "model.safetensors").read_bytes() == kept


def test_a_run_of_former_weights_says_where_these_are(
    folders: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = mini_clip.WEIGHTS["mini_clip"]
    monkeypatch.setitem(mini_clip.WEIGHTS, "mini_clip", former.with_name("mini_clip.safetensors"))
    ended = command("eval", folders / "run", "device=cpu")
    assert ended.code == 2 and f"src/liftplus/weights/{former.name} in the repository" in ended.err, ended.err
    assert command("eval", folders / "run", "device=cpu", f"weights={former}").code == 0
