"""Whole runs: train into a folder, test a folder, predict with a folder."""

from __future__ import annotations

import glob
import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from liftplus import checkpoint, results
from liftplus.checkpoint import Keeper, Position, Resumable, Stopped, Trained
from liftplus.config import RunConfig, flat, from_dict, replaced
from liftplus.data import sources
from liftplus.data.dataset import DataSet, Split
from liftplus.data.images import IMAGE_SUFFIXES, UnreadableImage
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.evaluate import Reading, coinciding_grids, predict, score
from liftplus.metrics import Metrics
from liftplus.model import Classifier
from liftplus.parallel import Job
from liftplus.runtime import (
    Advance,
    Progress,
    Runtime,
    Silent,
    StopRequest,
    command_line,
    describe,
    forget_peak_memory,
    peak_memory,
)
from liftplus.train import build, fit, trained_parameters

CONFIG = "config.json"
# Settings that may differ when an interrupted run goes on: they change no result.
FREE = ("device", "compile", "train.workers", "train.save_minutes", "backbone.weights", "backbone.grad_checkpointing")


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    metrics: Metrics | None  # None where the data has no test split
    seconds: float
    parameters: dict[str, int]


@dataclass(frozen=True)
class Session:
    """The settings of a run, the machine it is on, and who is told of its progress."""

    config: RunConfig
    runtime: Runtime
    progress: Progress = field(default_factory=Silent)
    stop: StopRequest | None = None  # heeded during training

    def data(self, for_testing: bool = False) -> DataSet:
        """The data set, broken pictures left out where the policy says so."""
        with ExitStack() as stack:
            advance: Advance | None = None

            def checked(done: int, total: int) -> None:
                nonlocal advance
                if advance is None:
                    advance = stack.enter_context(self.progress.task("Checking every picture", total))
                advance()

            return sources.load(self.config.data, checked, for_testing=for_testing)

    def model(self, dataset: DataSet) -> Classifier:
        """The classifier before its first step: backbone, tuners, initialised head."""
        return build(self.config, dataset, self.runtime, self.progress)


class SharedKeeper(Keeper):
    """The keeper of one process of a job: there is one state, the leader's, and a wish to stop is everybody's."""

    def __init__(
        self, folder: Path, belongs_to: dict[str, Any], minutes: float, stop: StopRequest | None, job: Job
    ) -> None:
        super().__init__(folder, belongs_to, minutes)
        self.stop, self.job = stop or StopRequest(), job

    def position(self) -> Position:
        """The saved position, on the leader."""
        return super().position() if self.job.leads else Position()

    def restore(self, step: Resumable) -> Position:
        """Bring the leader's step to the saved position; `Step.alike` brings it to the others."""
        return super().restore(step) if self.job.leads else Position()

    def due(self) -> bool:
        """Whether any process was asked to stop, or the leader has not saved for long."""
        return any(self.job.greatest(self.stop.signal or 0, self.job.leads and super().due()))

    def save(self, step: Resumable, position: Position) -> None:
        """Write the state, once; ends the training of all with `Stopped` where any was asked to."""
        if self.job.leads:
            super().save(step, position)
        asked = max(self.job.from_all(self.stop.signal or 0))
        if asked:
            self.stop.signal = asked
            raise Stopped(self.path.parent, position)

    def discard(self) -> None:
        """Remove the state of a run that is finished."""
        if self.job.leads:
            super().discard()


def refuse_different(session: Session, dataset: DataSet, model: Classifier) -> None:
    """Refuse processes that see other data, weights or settings than the leader."""
    if session.runtime.job.size == 1:
        return
    settings = {key: value for key, value in flat(session.config).items() if key not in FREE}
    mine = {
        "data": {name: dataset.fingerprint(name) for name in dataset.splits},
        "backbone weights": model.backbone.identity,
        "precision": session.runtime.precision,
        "settings": settings,
    }
    found = session.runtime.job.from_all((socket.gethostname(), mine))
    for rank, (host, other) in enumerate(found):
        for key, value in other.items():
            if value != found[0][1][key]:
                raise UserError(
                    f"Process {rank} on {host} has other {key} than process 0 on {found[0][0]}. Give every machine the "
                    "same command, data and weights."
                )


def notes(config: RunConfig, dataset: DataSet, model: Classifier) -> list[str]:
    """What a user should know before long work starts, one sentence each."""
    grids = coinciding_grids(config.evaluation, model.backbone.facts)
    untested = None if "test" in dataset.splits else "There is no test split, so nothing will be measured."
    twice = (
        f"Sampler {config.sampler.name!r} and loss {config.loss.name!r} both make up for the class imbalance; together "
        "they tend to overshoot to the rare classes. Use loss=cross_entropy, or sampler=instance."
    )
    both = twice if config.sampler.rebalances and config.loss.adjusts_prior else None
    leak = (
        f"{config.backbone.name!r} was trained with ImageNet's labels, so its accuracy on {dataset.name!r} says little "
        "about unseen data. Take weights trained without them for a fair test."
    )
    seen = leak if model.backbone.facts.saw_imagenet and "imagenet" in dataset.name.lower() else None
    return [*dataset.notes, *replaced(config), *(note for note in (grids, untested, both, seen) if note)]


def unfinished(folder: Path) -> RunConfig | None:
    """The configuration of a run that was begun in this folder and can go on; None for a new folder.

    A finished run, or a folder that holds something else, is refused.
    """
    about = results.read_json(folder / CONFIG, "config") if (folder / CONFIG).is_file() else None
    if about is None or ((folder / checkpoint.FILE).is_file() and not (folder / checkpoint.STATE).is_file()):
        results.refuse_existing(folder)
        return None
    return from_dict(about["config"])


def refuse_changes(begun: RunConfig, config: RunConfig, folder: Path) -> None:
    """Refuse to go on with other settings than a run began with, but for those that change no result."""
    old, new = flat(begun), flat(config)
    changed = [key for key in new if old.get(key) != new[key] and key not in FREE]
    if changed:
        raise UserError(
            f"{str(folder)!r} holds an unfinished run with other settings: "
            + "; ".join(f"{key} was {old.get(key)!r}, now {new[key]!r}" for key in changed[:4])
            + ". Give the same ones, `liftplus train --resume FOLDER` to go on as it began, or another --out."
        )


def train_run(session: Session, dataset: DataSet, model: Classifier, folder: Path) -> Outcome:
    """Train (where the method trains), test, and write everything into a folder; goes on where a run stopped.

    Of several processes the leader alone writes.
    """
    refuse_different(session, dataset, model)
    with results.locked(folder) if session.runtime.job.leads else nullcontext():
        return _train_run(session, dataset, model, folder)


def _train_run(session: Session, dataset: DataSet, model: Classifier, folder: Path) -> Outcome:
    config, parameters, job = session.config, model.count(), session.runtime.job
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
            "images": {name: len(split) for name, split in dataset.splits.items()},
        },
        "parameters": parameters,
    }
    if job.leads and not (folder / checkpoint.STATE).is_file():
        results.write_json(folder / CONFIG, about)
    same = {"backbone_identity": model.backbone.identity, "training_data": dataset.fingerprint("train")}
    keeper = SharedKeeper(folder, same, config.train.save_minutes, session.stop, job)
    seconds = _fit(session, dataset, model, folder, keeper) if config.train.epochs else 0.0
    if job.leads:
        checkpoint.save_model(folder, model, config, dataset)
    metrics = None
    if "test" in dataset.splits:
        figures = {
            "seconds": round(seconds, 2),
            "trained_parameters": trained_parameters(model),
            "peak_memory_bytes": peak_memory(session.runtime.device),
        }
        try:
            metrics = test(session, model, dataset, "test", dataset.counts(), folder, figures)
        except UnreadableImage as error:
            keeper.discard()
            raise UserError(
                f"{error} The trained model is in {folder}; test it with "
                f"`liftplus eval {folder} unreadable=skip`, or mend the file and leave that out."
            ) from error
    keeper.discard()
    return Outcome(metrics, seconds, parameters)


def _fit(session: Session, dataset: DataSet, model: Classifier, folder: Path, keeper: Keeper) -> float:
    """Train, or go on training; the seconds it took in all."""
    log, leads = folder / "log.jsonl", session.runtime.job.leads
    finished = keeper.position().epoch
    if leads:
        results.keep_lines(log, lambda entry: entry["epoch"] <= finished)

    def note(entry: dict[str, Any]) -> None:
        if leads:
            results.append_json(log, entry)

    with session.stop or nullcontext():
        done = fit(model, session.config, dataset, session.runtime, progress=session.progress, log=note, keeper=keeper)
    return done.seconds


def test(
    session: Session,
    model: Classifier,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    folder: Path,
    about: dict[str, Any],
) -> Metrics:
    """Metrics and tables of one split, written into a folder by the leader."""
    evaluation, part = session.config.evaluation, dataset.splits[split]
    reading = Reading(dataset.store, part, session.config.train.workers, session.progress)
    found = predict(model, reading, evaluation, model.backbone.facts, session.runtime)
    metrics = score(found, part, tuple(train_counts))
    what = {"data": dataset.name, "split": split, "evaluation": evaluation.model_dump()}
    if session.runtime.job.leads:
        results.write_evaluation(folder, dataset, part, found, metrics, train_counts, what | about)
    return metrics


def evaluate_run(
    session: Session, trained: Trained, split: str, folder: Path, *, other_data: bool
) -> tuple[DataSet, Metrics]:
    """Test a trained run on one split of the session's data, whose classes are matched to the run's.

    Other data than the run's is never split: without a test split, all of it is tested.
    """
    dataset = aligned(session.data(for_testing=other_data), split, trained)
    refuse_different(session, dataset, trained.model)
    if session.runtime.job.leads:
        results.new_folder(folder)
    about = {
        "command": command_line(),
        "config": session.config.to_dict(),
        "versions": describe(session.runtime),
    }
    return dataset, test(session, trained.model, dataset, split, trained.train_counts, folder, about)


def aligned(dataset: DataSet, split: str, trained: Trained) -> DataSet:
    """One split of the data with its labels renumbered to the run's classes.

    Classes match where id and name agree, else by name; by id alone only where the data has no names.
    """
    if split not in dataset.splits:
        raise UserError(f"Data set {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    by_id = {class_id: k for k, class_id in enumerate(trained.class_ids)}
    by_name = {name.casefold(): k for k, name in enumerate(trained.class_names)}

    def place(class_id: str, name: str) -> int | None:
        same = by_id.get(class_id)
        if same is not None and (not dataset.named or trained.class_names[same].casefold() == name.casefold()):
            return same
        return by_name.get(name.casefold())

    moved = [place(*pair) for pair in zip(dataset.class_ids, dataset.class_names, strict=True)]
    part = dataset.splits[split]
    used = sorted(set(part.labels))
    strange = [dataset.class_names[label] for label in used if moved[label] is None]
    if strange:
        raise UserError(
            f"Split {split!r} of {dataset.name!r} has classes that the run was not trained on: "
            f"{', '.join(strange[:5])}. The run knows {len(trained.class_names)} classes; rename the folders, "
            "or map them with data.class_names=FILE."
        )
    targets = Counter(moved[label] for label in used)
    if twice := [k for k, count in targets.items() if count > 1 and k is not None]:
        raise UserError(
            f"Two classes of {dataset.name!r} both match the run's {trained.class_names[twice[0]]!r}. Rename one."
        )
    labels = [k for label in part.labels if (k := moved[label]) is not None]
    return replace(
        dataset, class_names=trained.class_names, class_ids=trained.class_ids, splits={split: Split(part.keys, labels)}
    )


def image_files(inputs: Iterable[str]) -> list[str]:
    """Files named by paths, folders (searched through) and glob patterns, each once, in a fixed order."""
    found: dict[str, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            matches = [
                name
                for name in glob.iglob(os.path.join(glob.escape(given), "**"), recursive=True)
                if name.lower().endswith(tuple(IMAGE_SUFFIXES))
            ]
        else:
            matches = (
                [given]
                if os.path.isfile(given)
                else [name for name in glob.iglob(given, recursive=True) if os.path.isfile(name)]
            )
        if not matches:
            raise UserError(f"{given!r} names no image. Give image files, folders that hold some, or a glob pattern.")
        found |= dict.fromkeys(sorted(matches))
    return list(found)


@dataclass(frozen=True)
class Guess:
    """The best classes of one file, or why it could not be read."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None


def predict_files(session: Session, trained: Trained, files: Sequence[str], *, skip_unreadable: bool) -> list[Guess]:
    """Top-k classes of image files, in the order given."""
    store = FolderStore("")
    store.decode = session.config.data.decode
    broken = broken_files(store, files) if skip_unreadable else {}
    good = [name for name in files if name not in broken]
    guesses = {name: Guess(name, (), (), reason) for name, reason in broken.items()}
    if good:
        split, workers = Split(good, [0] * len(good)), session.config.train.workers
        reading = Reading(store, split, workers, session.progress, label="Predicting")
        found = predict(
            trained.model, reading, session.config.evaluation, trained.model.backbone.facts, session.runtime
        )
        for name, classes, values in zip(good, found.classes.tolist(), found.probabilities.tolist(), strict=True):
            guesses[name] = Guess(name, tuple(trained.class_names[k] for k in classes), tuple(values))
    return [guesses[name] for name in files]


def broken_files(store: FolderStore, files: Sequence[str]) -> dict[str, str]:
    """Those of the files that do not decode, each with the reason."""
    broken = {}
    for name in files:
        try:
            store.image(name)
        except UnreadableImage as error:
            broken[name] = str(error)
    return broken
