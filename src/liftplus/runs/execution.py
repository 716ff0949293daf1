"""A whole run: train into a folder, then test."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liftplus.config import flat
from liftplus.data.dataset import DataSet
from liftplus.data.images import UnreadableImage
from liftplus.errors import DivergedError, Interrupted, UserError
from liftplus.evaluation import priors
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line, describe, forget_peak_memory, peak_memory
from liftplus.machine.stopping import replaceable
from liftplus.model.classifier import Classifier
from liftplus.runs.changes import CONFIG, refuse_changes, trained_only, unfinished
from liftplus.runs.matching import write_splits
from liftplus.runs.opening import Session, refuse_different
from liftplus.runs.testing import about_weights, test
from liftplus.training import checkpoint, signs, tracking
from liftplus.training.checkpoint import Chosen
from liftplus.training.loop import Fit, fit, trained_parameters
from liftplus.training.saved_state import Keeper, Position


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        metrics: of the tested split; None if the data do not have it.
        seconds: training time.
        parameters: parameter counts by part.
        chosen: which epoch's weights were kept.
        notes: decisions made during training.
        signs: sentences about a poor fit; if the run ended below its start, the last one says so.
    """

    metrics: Metrics | None
    seconds: float
    parameters: dict[str, int]
    chosen: Chosen
    notes: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()


def train_run(session: Session, dataset: DataSet, model: Classifier, folder: Path, split: str = "test") -> Outcome:
    """Train (if the method trains), test, and write everything into a folder. An unfinished run there continues.

    In a multi-process job only the leader writes. If the data do not have the split, nothing is tested.

    Raises:
        UserError: the folder holds something else or a run with other settings, or a picture cannot be read.
        InUseError: another process uses the folder.
        DivergedError: the loss diverged.
        Interrupted: the user stopped the run.
    """
    refuse_different(session, dataset, model)
    leads, config = session.runtime.job.leads, session.config
    tracked = tracking.Following(config.track if leads else (), tracking.Tracked(folder, flat(config)))
    with disk.locked(folder) if leads else nullcontext(), tracked:
        # Another process may have begun or finished a run here since the command checked the folder.
        untested = split in dataset.splits and trained_only(folder)
        if leads and (folder / CONFIG).is_file() and not untested and (begun := unfinished(folder, config)) is not None:
            refuse_changes(begun, config, folder)
        outcome = _train_run(session, dataset, model, folder, split, tracked)
        if outcome.metrics is not None:
            tracked.tested(outcome.metrics.summary())
        return outcome


def _train_run(
    session: Session, dataset: DataSet, model: Classifier, folder: Path, split: str, tracked: tracking.Following
) -> Outcome:
    config, parameters, job = session.config, model.count(), session.runtime.job
    priors.shift(config, dataset.class_names, dataset.counts(), config.evaluation.prior)  # a bad prior fails here
    forget_peak_memory(session.runtime.device)
    about = {
        "command": command_line(),
        "config": config.to_dict(),
        "versions": describe(session.runtime),
        "backbone_identity": model.backbone.identity,
        "patch_size": model.backbone.facts.patch_size,
        "data": {
            "name": dataset.name,
            "train_counts": dataset.counts(),
            "notes": dataset.notes,
            "images": {name: len(part) for name, part in dataset.splits.items()},
            "fingerprints": {name: dataset.fingerprint(name) for name in dataset.splits},
        },
        "parameters": parameters,
        "cache": session.cache.notes,
    }
    if (before := _before(session, dataset, model, folder)) is not None:
        about["start"] = asdict(before)
    if job.leads and not (folder / checkpoint.STATE).is_file():
        disk.write_json(folder / CONFIG, about)
        write_splits(folder, dataset)
    same = {"backbone_identity": model.backbone.identity, "training_data": dataset.fingerprint("train")}
    keeper = Keeper(folder, same, config.train.save_minutes, session.stop, job)
    # Without training no saved state marks the run as unfinished, so the model file is written last.
    fitted = Fit((), 0.0, Chosen(0, 0))
    if config.train.epochs:
        fitted = _fit(session, dataset, model, folder, keeper, tracked)
        _save(session, dataset, model, folder, fitted)
    try:
        metrics = _test(session, dataset, model, folder, fitted, split)
    except UnreadableImage as error:
        _save(session, dataset, model, folder, fitted)
        keeper.discard()
        raise UserError(
            f"{error} The trained model is in {folder}. Test it with `liftplus eval {folder} unreadable=skip`, or "
            f"repair the file and use `liftplus eval {folder}`."
        ) from error
    if not config.train.epochs:
        _save(session, dataset, model, folder, fitted)
    keeper.discard()
    found = _signs(session, dataset, model, fitted, before, metrics)
    if job.leads and (fitted.notes or found):
        about = disk.read_json(folder / CONFIG) | {"notes": fitted.notes, "signs": found}
        disk.write_json(folder / CONFIG, about)
    return Outcome(metrics, fitted.seconds, parameters, fitted.chosen, fitted.notes, tuple(found))


def _before(session: Session, dataset: DataSet, model: Classifier, folder: Path) -> signs.Snapshot | None:
    """How good the model is before its first step; None unless recipe=auto chose the settings."""
    config = session.config
    if config.recipe != "auto" or not config.train.epochs:
        return None

    def noted() -> dict[str, Any] | None:
        begun = (folder / checkpoint.STATE).is_file()
        start: dict[str, Any] | None = disk.read_json(folder / CONFIG).get("start") if begun else None
        return start

    start = session.runtime.job.from_leader(noted)
    if start is not None:
        return signs.Snapshot(**start)
    with deterministic(config.deterministic):
        return signs.snapshot(model, config, dataset, session.runtime)


def _signs(
    session: Session,
    dataset: DataSet,
    model: Classifier,
    fitted: Fit,
    before: signs.Snapshot | None,
    metrics: Metrics | None,
) -> list[str]:
    """Signs of a poor fit. That the run ended below its start comes last."""
    if before is None:
        return []
    config, runtime = session.config, session.runtime
    with deterministic(config.deterministic):
        after = signs.snapshot(model, config, dataset, runtime)
        units = signs.of_units(model, config, dataset, runtime)
    found = signs.of_training(config, fitted.losses, before, after)
    return found if signs.below_start(before, after) else [*signs.of_test(config, metrics), *units, *found]


def _test(
    session: Session, dataset: DataSet, model: Classifier, folder: Path, fitted: Fit, split: str
) -> Metrics | None:
    """Test a trained run; None if the data do not have the split."""
    if split not in dataset.splits:
        return None
    figures = {
        "seconds": round(fitted.seconds, 2),
        "trained_parameters": trained_parameters(model),
        "peak_memory_bytes": peak_memory(session.runtime.device),
    }
    with _interrupted_in_test(folder):
        about = about_weights(fitted.chosen) | figures
        return test(session, model, dataset, split, dataset.counts(), folder, about)[0]


def _save(session: Session, dataset: DataSet, model: Classifier, folder: Path, fitted: Fit) -> None:
    """Write the chosen epoch's model, and the last epoch's if that is a different one."""
    if not session.runtime.job.leads:
        return
    if fitted.last is not None:
        epochs = session.config.train.epochs
        last = Chosen(epochs, epochs, validation=fitted.last_validation)
        checkpoint.save_model(folder / checkpoint.LAST_MODEL, model, session.config, dataset, last, fitted.last)
    checkpoint.save_model(folder, model, session.config, dataset, fitted.chosen)


@contextmanager
def _interrupted_in_test(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a test at once, with a message on how to continue."""
    said = (
        f"Stopped while testing. Continue with: liftplus train --resume {folder} (this only tests; training is done)."
    )

    def asked(number: int, _frame: object) -> None:
        raise Interrupted(said, number)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, asked) for number in replaceable()} if here else {}
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(said) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fit(
    session: Session, dataset: DataSet, model: Classifier, folder: Path, keeper: Keeper, tracked: tracking.Following
) -> Fit:
    """Train, or continue from the saved state."""
    log, leads = folder / "log.jsonl", session.runtime.job.leads
    finished = keeper.position().epoch
    if leads:
        disk.keep_lines(log, lambda entry: entry["epoch"] <= finished)

    def note(entry: dict[str, Any]) -> None:
        if leads:
            disk.append_json(log, entry)
            tracked.epoch_done(entry)

    tracked.begin()
    with session.stop or nullcontext(), _way_on(folder, keeper):
        return fit(
            model,
            session.config,
            dataset,
            session.runtime,
            progress=session.progress,
            log=note,
            keeper=keeper,
            cache=session.cache,
            began=session.began,
        )


@contextmanager
def _way_on(folder: Path, keeper: Keeper) -> Iterator[None]:
    """Where training diverges, add to the error what was saved and how to continue."""
    try:
        yield
    except DivergedError as error:
        at = keeper.position()
        kept = f"The state after {at} is in {folder}. " if at != Position() else ""
        command = f"liftplus train --resume {folder} train.lr=RATE"
        raise DivergedError(error.what, f"{kept}Continue at a lower rate with: {command}") from error
