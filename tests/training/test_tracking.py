"""Experiment trackers: what they hold is what the run folder holds."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liftplus.errors import UserError
from liftplus.training import tracking

from ..conftest import Command

QUICK = ("epochs=2", "workers=0", "train.batch_size=8", "tte=false", "precision=fp32", "device=cpu")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of log.jsonl and metrics.json by the name that trackers get."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = {
        f"train/{key}": [(record["epoch"], record[key]) for record in records] for key in ("loss", "lr", "seconds")
    }
    metrics = json.loads((run / "metrics.json").read_text())
    return found | {f"test/{key}": [(2, metrics[key])] for key in ("overall", "mean_class", "few", "images")}


def agrees(found: dict[str, list[tuple[int, float]]], run: Path) -> None:
    wanted = expected(run)
    assert found.keys() == wanted.keys()
    for key, points in wanted.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in points], rel=1e-5), key


@pytest.mark.slow
def test_all_three_hold_what_the_run_folder_holds(photos: Path, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    ended = command("train", "--data", photos, "--out", run, "track=tensorboard+wandb+mlflow", *QUICK)
    assert ended.code == 0, ended.err
    assert "failed" not in ended.err
    for found in (in_tensorboard(run), in_mlflow(run), in_wandb(run)):
        agrees(found, run)
    assert command("eval", run, "--json").code == 0


def in_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"loss.tau": 1.0' in text
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def in_mlflow(run: Path) -> dict[str, list[tuple[int, float]]]:
    import mlflow

    client = mlflow.MlflowClient((run.parent / "mlruns").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("liftplus").experiment_id])
    assert kept.info.run_name == "one" and kept.info.status == "FINISHED" and kept.data.params["loss.tau"] == "1.0"
    return {
        key: [(one.step, one.value) for one in client.get_metric_history(kept.info.run_id, key)]
        for key in kept.data.metrics
    }


def in_wandb(run: Path) -> dict[str, list[tuple[int, float]]]:
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    assert json.loads((run / tracking.RECORD).read_text())["wandb"] in file.name
    return wandb_history(file)


def wandb_history(file: Path) -> dict[str, list[tuple[int, float]]]:
    """What a finished file of Weights & Biases holds."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(file):
        for item in record.history.item:
            key = "/".join(item.nested_key) or item.key
            if not key.startswith("_"):
                found.setdefault(key, []).append((record.history.step.num, json.loads(item.value_json)))
    return found


def wandb_records(file: Path) -> list[Any]:
    """The records up to the one that ends the run.

    `finish` of wandb 0.31 comes back before its service has written the file in about one of 30 runs.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(300):
        records = [Record.FromString(data) for data in level_db_log(file.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end after 30 s")


def level_db_log(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    place, pieces = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if left < 7 or kind == 0:  # the rest of a block is filled up
            place += left
            continue
        if place + 7 + length > len(data):  # still being written
            return
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pieces
            pieces = b""


class Noting(tracking.Tracker):
    """Notes what it is told."""

    package = "json"
    said: list[Any] = []  # noqa: RUF012

    def __init__(self, run: tracking.Tracked) -> None:
        self.said.append(("begin", run.known_as("noting")))
        run.note("noting", "7")

    def log(self, values: dict[str, float], epoch: int) -> None:
        if epoch == 3:
            raise ConnectionError("no route to host")
        self.said.append((epoch, values))

    def end(self, *, finished: bool) -> None:
        self.said.append(finished)


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setitem(tracking.TRACKERS, "noting", Noting)
    monkeypatch.setattr(Noting, "said", [])
    return Noting.said


def test_a_run_that_goes_on_is_known(noting: list[Any], tmp_path: Path) -> None:
    run = tracking.Tracked(tmp_path, {})

    def interrupted() -> None:
        with tracking.Following(["noting"], run) as tracked:
            tracked.begin()
            tracked.epoch_done({"epoch": 1, "loss": 0.5, "validation": {"overall": 50.0, "many": None}, "name": "x"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with tracking.Following(["noting"], run) as tracked:
        tracked.epoch_done({"epoch": 2, "loss": 0.25})
        tracked.tested({"overall": 60})
    assert noting == [
        ("begin", None),
        (1, {"train/loss": 0.5, "train/validation/overall": 50.0}),
        False,
        ("begin", "7"),
        (2, {"train/loss": 0.25}),
        (2, {"test/overall": 60}),
        True,
    ]


def test_a_tracker_that_fails_does_not_end_the_run(noting: list[Any], tmp_path: Path) -> None:
    with tracking.Following(["noting"], tracking.Tracked(tmp_path, {})) as tracked:
        tracked.epoch_done({"epoch": 2, "loss": 1.0})
        with pytest.warns(UserWarning, match="track=noting failed .no route to host.; the run goes on without it"):
            tracked.epoch_done({"epoch": 3, "loss": 1.0})
        tracked.epoch_done({"epoch": 4, "loss": 1.0})
    assert noting == [("begin", None), (2, {"train/loss": 1.0}), False]  # ended, so that it is not shown as running


def test_nothing_is_imported_unless_asked(photos: Path, command: Command, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ended = command("train", "--data", photos, "--out", "run", *QUICK)
    assert ended.code == 0 and not (tmp_path / "run" / tracking.RECORD).exists()


def test_mistakes_are_told_before_work(photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = command("train", "--data", photos, "track=tensorbord", *QUICK)
    assert ended.code == 2 and "track.0 = 'tensorbord' is not allowed" in ended.err and "'mlflow'" in ended.err
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"track=wandb needs .* pip install 'liftplus\[wandb\]'"):
        tracking.require(["wandb"])
    ended = command("train", "--data", photos, "--out", "run", "track=wandb", *QUICK)
    assert ended.code == 2 and "liftplus[wandb]" in ended.err and not Path("run").exists()


@pytest.mark.slow
def test_the_callers_own_wandb_run_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs: ours begins and ends, theirs is logged to before, during and after, and keeps its id."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_RUN_ID", "mine7")
    (tmp_path / "run").mkdir()
    quiet = wandb.Settings(console="off")
    mine = wandb.init(project="mine", id="mine7", mode="offline", dir=str(tmp_path), settings=quiet)
    try:
        ours = tracking.WeightsAndBiases(tracking.Tracked(tmp_path / "run", {"lr": 0.1}))
        assert wandb.run is mine
        ours.log({"train/loss": 0.5}, 1)
        mine.log({"between": 1})
        ours.end(finished=True)
        mine.log({"after": 2})
    finally:
        mine.finish()
    noted = json.loads((tmp_path / "run" / tracking.RECORD).read_text())["wandb"]
    assert mine.id == "mine7" != noted
    (theirs,) = tmp_path.glob("wandb/offline-run-*/run-mine7.wandb")
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert noted in file.name
    assert {key: [value for _, value in points] for key, points in wandb_history(file).items()} == {"train/loss": [0.5]}
    rows = {key: [value for _, value in points] for key, points in wandb_history(theirs).items()}
    assert rows == {"between": [1], "after": [2]}


NAMES = ("fox (red)", "fox [red]", "a/b", "a", "ä", "50 %", "../x", ".", "x" * 400, "key=value, other", "Fox (red)")


def test_mlflow_takes_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name that MLflow refuses cost the whole run: no metric, and "running" for ever."""
    mlflow = pytest.importorskip("mlflow")
    settings: dict[str, Any] = {f"loss.class_weights.{name}": number for number, name in enumerate(NAMES)}
    settings |= {"long": "y" * 9000, "lr": 0.1}
    (tmp_path / "run").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tracker = tracking.MLflow(tracking.Tracked(tmp_path / "run", settings))
        tracker.log({"train/loss": 0.5, "test/fox (red)": 1.0}, 1)
        tracker.end(finished=True)
    kept = mlflow.MlflowClient((tmp_path / "mlruns").as_uri()).get_run(tracker.id)
    assert kept.info.status == "FINISHED"
    assert len(kept.data.params) == len(settings)
    assert kept.data.params["loss.class_weights.fox _red_"] == "0" and kept.data.params["lr"] == "0.1"
    assert sorted(kept.data.params.values()) == sorted(str(value)[:6000] for value in settings.values())
    assert kept.data.metrics == {"train/loss": 0.5, "test/fox _red_": 1.0}


def test_names_that_become_one_are_told_apart() -> None:
    found = tracking.distinct({f"w.{name}": number for number, name in enumerate(NAMES)})
    assert list(found.values()) == list(range(len(NAMES)))
    assert len({name.casefold() for name in found}) == len(NAMES)
    assert all(tracking.allowed(name) == name and len(name) <= 250 for name in found)
