"""Runs in experiment trackers: TensorBoard, Weights & Biases, MLflow; off unless `track` names them.

Each tracker gets the run's settings when it begins, the record of each epoch, and the figures of the test.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from liftplus.errors import UserError
from liftplus.machine.disk import read_json, write_json

RECORD = "tracking.json"
"""File in the run folder with the run's id in each tracker, so that a resumed run continues there."""


@dataclass(frozen=True)
class Tracked:
    """A run as trackers see it.

    Attributes:
        folder: of the run; its name is the run's name.
        settings: every setting by its dotted key.
    """

    folder: Path
    settings: dict[str, Any]

    def known_as(self, tracker: str) -> str | None:
        """The id that a tracker gave the run when it began."""
        about = read_json(self.folder / RECORD) if (self.folder / RECORD).is_file() else {}
        return about.get(tracker)

    def note(self, tracker: str, identity: str) -> None:
        """Write down the id that a tracker gives the run."""
        about = read_json(self.folder / RECORD) if (self.folder / RECORD).is_file() else {}
        write_json(self.folder / RECORD, about | {tracker: identity})


class Tracker(ABC):
    """One run in one tracker."""

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, run: Tracked) -> None: ...

    @abstractmethod
    def log(self, values: dict[str, float], epoch: int) -> None:
        """Values after so many epochs."""

    @abstractmethod
    def end(self, *, finished: bool) -> None:
        """Close the run, which is finished or was cut short."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard: `tensorboard --logdir runs` shows all runs below a folder."""

    package = "tensorboard"

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"))
        self.writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=2, default=str)}\n```")

    def log(self, values: dict[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, epoch)
        self.writer.flush()

    def end(self, *, finished: bool) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """Files in RUN/wandb, sent nowhere unless WANDB_MODE=online; `wandb sync RUN/wandb/offline-*` sends them later."""

    package = "wandb"

    def __init__(self, run: Tracked) -> None:
        wandb = import_module("wandb")
        known = run.known_as("wandb")
        # A run of the caller's stays open, and keeps the id that WANDB_RUN_ID may have given it.
        fresh = None if wandb.run is None else secrets.token_hex(4)
        self.run = wandb.init(
            reinit="create_new",
            project=os.environ.get("WANDB_PROJECT", "liftplus"),
            name=run.folder.name,
            id=known or fresh,
            resume="allow" if known else None,
            dir=str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=run.settings,
            settings=wandb.Settings(console="off", silent=True),
        )
        run.note("wandb", self.run.id)

    def log(self, values: dict[str, float], epoch: int) -> None:
        self.run.log(values, step=epoch)

    def end(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """A run of the experiment "liftplus" in the files `mlruns` beside the run folder, or at MLFLOW_TRACKING_URI."""

    package = "mlflow"

    def __init__(self, run: Tracked) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder.resolve().parent / "mlruns").as_uri()
        # MLflow recommends its databases over its file store, and requires this before it writes one.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow: Any = import_module("mlflow")
        self.client = mlflow.MlflowClient(place)
        known = run.known_as("mlflow")
        self.id: str = known or self._create(run)
        if known:
            self.client.update_run(known, "RUNNING")

    def _create(self, run: Tracked) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "liftplus")
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        created: str = self.client.create_run(experiment, run_name=run.folder.name).info.run_id
        run.note("mlflow", created)
        refused = []
        for key, value in distinct(run.settings).items():
            try:
                self.client.log_param(created, key, str(value)[:VALUE])
            except Exception:  # one setting must not cost the whole run
                refused.append(key)
        if refused:
            warnings.warn(f"track=mlflow does not hold {', '.join(refused)}: MLflow refused them.", stacklevel=2)
        return created

    def log(self, values: dict[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.client.log_metric(self.id, allowed(key), value, step=epoch)

    def end(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


NAME, VALUE = 250, 6000
"""Characters that MLflow takes in a name and in a parameter's value."""


def allowed(key: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . : / and spaces, and a path without empty or dotted parts."""
    parts = [re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII).strip() for part in key.split("/")]
    return "/".join(part if part.strip(".") else "_" for part in parts)[:NAME]


def distinct(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under names that MLflow takes; names that would become equal get a number."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        # A name below another one would be a file below a file.
        name, number = allowed(key.replace("/", "_")), 1
        while name.casefold() in {known.casefold() for known in out}:
            number += 1
            name = f"{allowed(key.replace('/', '_'))[: NAME - 5]}_{number}"
        out[name] = value
    return out


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def require(names: Iterable[str]) -> None:
    """Refuse trackers whose package is missing, before any work."""
    for name in names:
        try:
            import_module(TRACKERS[name].package)
        except ImportError as error:
            raise UserError(
                f"track={name} needs a package that is not installed ({error}). "
                f"Install it with: pip install 'liftplus[{name}]'; or leave track out."
            ) from error


class Following:
    """The trackers of one run. One that fails is dropped with a warning: it must not end hours of training.

    A context manager; the trackers begin with `begin` and end with it.
    """

    def __init__(self, names: Iterable[str], run: Tracked) -> None:
        self.names, self.run, self.epochs = tuple(names), run, 0
        self.trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Following:
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        for name, tracker in list(self.trackers.items()):
            with self._forgiving(name):
                tracker.end(finished=kind is None)

    def begin(self) -> None:
        """Start the run in the trackers, once its folder exists."""
        waiting, self.names = self.names, ()
        for name in waiting:
            with self._forgiving(name):
                self.trackers[name] = TRACKERS[name](self.run)

    def epoch_done(self, record: dict[str, Any]) -> None:
        """The record that an epoch adds to log.jsonl."""
        values = numbers(record)
        self.epochs = int(values.pop("epoch"))
        self._log({f"train/{key}": value for key, value in values.items()})

    def tested(self, figures: dict[str, Any]) -> None:
        """The accuracies of the test at the end."""
        self._log({f"test/{key}": value for key, value in numbers(figures).items()})

    def _log(self, values: dict[str, float]) -> None:
        self.begin()
        for name, tracker in list(self.trackers.items()):
            with self._forgiving(name):
                tracker.log(values, self.epochs)

    @contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each tracker has its own, and errors of the network
            if (tracker := self.trackers.pop(name, None)) is not None:
                with suppress(Exception):  # else it would be shown as running for ever
                    tracker.end(finished=False)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            warnings.warn(f"track={name} failed ({reason}); the run goes on without it.", stacklevel=2)


def numbers(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a record; those of a table inside it by "table/key"."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found
