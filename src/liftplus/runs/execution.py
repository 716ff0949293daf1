"""Whole runs: train into a folder, test a folder."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from liftplus.training import checkpoint, recipe, signs, tracking
from liftplus.evaluation import priors, results
from liftplus.training.checkpoint import Chosen, Trained
from liftplus.training.saved_state import Keeper, Position
from liftplus.config import RunConfig, flat, from_dict, replaced, saved
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.data.images import UnreadableImage
from liftplus.machine.determinism import deterministic
from liftplus.errors import DivergedError, Interrupted, UserError
from liftplus.evaluation.inference import Predictions, Reading, coinciding_grids, score
from liftplus.evaluation.features import Cache, predict_once
from liftplus.runs.matching import aligned, as_in_run, write_splits
from liftplus.evaluation.metrics import Metrics
from liftplus.model.classifier import Classifier
from liftplus.machine.runtime import Runtime, command_line, describe, forget_peak_memory, peak_memory
from liftplus.machine.stopping import StopRequest, replaceable
from liftplus.machine.progress import Advance, Progress, Silent
from liftplus.training.loop import Fit, fit, trained_parameters
from liftplus.training.assembly import build

CONFIG = "config.json"
# Settings that may differ when an interrupted run goes on: they change no result.
FREE = (
    "device",
    "compile",
    "track",
    "train.workers",
    "train.save_minutes",
    "data.root",
    "backbone.weights",
    "backbone.grad_checkpointing",
)


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    metrics: Metrics | None  # None where the data lacks the split to be tested
    seconds: float
    parameters: dict[str, int]
    chosen: Chosen  # which epoch's weights
    notes: tuple[str, ...] = ()  # what happened on the way
    signs: tuple[str, ...] = ()  # of a poor fit; the last one says so where the run ended below its start


@dataclass(frozen=True)
class Session:
    """The settings of a run, the machine it is on, and who is told of its progress."""

    config: RunConfig
    runtime: Runtime
    progress: Progress = field(default_factory=Silent)
    stop: StopRequest | None = None  # heeded during training
    began: float = field(default_factory=time.perf_counter)
    seconds: float | None = None  # that the run will take, where the recipe measured it

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

    def start(self, dataset: DataSet, folder: Path | None = None) -> tuple[Session, Classifier]:
        """The classifier before its first step, and the session with what recipe=auto chose for it.

        Args:
            folder: of the run; where it was begun there, it goes on with what was chosen then.
        """
        refuse_different(self, dataset)  # before they work together on a start from their pictures
        begun = self.runtime.job.from_leader(lambda: _begun(folder))
        seconds = None
        config = recipe.settled(self.config, dataset) if begun is None else recipe.as_begun(self.config, begun)
        with deterministic(config.deterministic):
            model = build(config, dataset, self.runtime, self.progress, self.cache)
            if begun is None:
                config, seconds = recipe.timed(config, dataset, model, self.runtime, self.began, self.progress)
        session = replace(self, config=config, seconds=seconds)
        session.cache.notes.extend(self.cache.notes)
        return session, model

    @cached_property
    def cache(self) -> Cache:
        """Where features of frozen towers are kept; its notes tell what was read from there."""
        return Cache.of(self.config.cache, self.runtime.job)


def _begun(folder: Path | None) -> RunConfig | None:
    """The settings of the run in a folder, finished or not; None where there is none."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return from_dict(saved(results.read_json(folder / CONFIG, "config")["config"]))


def refuse_different(session: Session, dataset: DataSet, model: Classifier | None = None) -> None:
    """Refuse processes that see other data, weights or settings than the leader."""
    if session.runtime.job.size == 1:
        return
    mine: dict[str, Any] = {"data": {name: dataset.fingerprint(name) for name in dataset.splits}}
    if model is not None:
        mine |= {
            "backbone weights": model.backbone.identity,
            "precision": session.runtime.precision,
            "settings": {key: value for key, value in flat(session.config).items() if key not in FREE},
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
    prior = priors.note(config, config.evaluation.prior)
    return [
        *dataset.notes,
        *replaced(config),
        *model.backbone.notes,
        *model.notes,
        *(note for note in (grids, untested, both, seen, prior) if note),
    ]


def unfinished(folder: Path) -> RunConfig | None:
    """The configuration of a run that was begun in this folder and can go on; None for a new folder.

    A finished run, or a folder that holds something else, is refused.
    """
    begun = _begun(folder)
    if begun is None or ((folder / checkpoint.FILE).is_file() and not (folder / checkpoint.STATE).is_file()):
        results.refuse_existing(folder)
        return None
    return begun


def changes(begun: RunConfig, config: RunConfig) -> list[str]:
    """The settings that differ and change a result, each with its old and new value."""
    old, new = flat(begun), flat(config)
    # What the recipe chooses was chosen from the same data, and is not known yet before they are read.
    chosen = set(begun.automatic) & set(config.automatic)
    return [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*new, *old])
        if _home(old.get(key)) != _home(new.get(key))
        and key not in (*FREE, "automatic")
        and not any(key == one or key.startswith(f"{one}.") for one in chosen)
    ]


def _home(value: Any) -> Any:
    """A setting with `~` filled in: it may stand in the record of a run or not."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def refuse_changes(begun: RunConfig, config: RunConfig, folder: Path) -> None:
    """Refuse to go on with other settings than a run began with, but for those that change no result."""
    if changed := changes(begun, config):
        raise UserError(
            f"{str(folder)!r} holds an unfinished run with other settings: "
            + "; ".join(changed[:4])
            + ". Give the same ones, `liftplus train --resume FOLDER` to go on as it began, or another --out."
        )


def _trained_only(folder: Path) -> bool:
    """Whether a run ended between training and its test, at a picture that cannot be read."""
    done, under_way = (folder / checkpoint.FILE).is_file(), (folder / checkpoint.STATE).is_file()
    return done and not under_way and not (folder / "metrics.json").is_file()


def train_run(session: Session, dataset: DataSet, model: Classifier, folder: Path, split: str = "test") -> Outcome:
    """Train (where the method trains), test, and write everything into a folder; goes on where a run stopped.

    Of several processes the leader alone writes. Where the data lacks the split to be tested, none is.
    """
    refuse_different(session, dataset, model)
    leads, config = session.runtime.job.leads, session.config
    tracked = tracking.Following(config.track if leads else (), tracking.Tracked(folder, flat(config)))
    with results.locked(folder) if leads else nullcontext(), tracked:
        # Another process may have begun or finished a run here since this one looked.
        untested = split in dataset.splits and _trained_only(folder)
        if leads and (folder / CONFIG).is_file() and not untested and (begun := unfinished(folder)) is not None:
            refuse_changes(begun, config, folder)
        outcome = _train_run(session, dataset, model, folder, split, tracked)
        if outcome.metrics is not None:
            tracked.tested(outcome.metrics.summary())
        return outcome


def _train_run(
    session: Session, dataset: DataSet, model: Classifier, folder: Path, split: str, tracked: tracking.Following
) -> Outcome:
    config, parameters, job = session.config, model.count(), session.runtime.job
    priors.shift(config, dataset.class_names, dataset.counts(), config.evaluation.prior)  # refused now, if at all
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
    before = _before(session, dataset, model, folder)
    if before is not None:
        about["start"] = asdict(before)
    if job.leads and not (folder / checkpoint.STATE).is_file():
        results.write_json(folder / CONFIG, about)
        write_splits(folder, dataset)
    same = {"backbone_identity": model.backbone.identity, "training_data": dataset.fingerprint("train")}
    keeper = Keeper(folder, same, config.train.save_minutes, session.stop, job)
    # Without training there is no state that would tell an unfinished run, so the model is written last.
    untrained = Fit((), 0.0, Chosen(0, 0))
    fitted = _fit(session, dataset, model, folder, keeper, tracked) if config.train.epochs else untrained
    if config.train.epochs:
        _save(session, dataset, model, folder, fitted)
    try:
        metrics = _test(session, dataset, model, folder, fitted, split)
    except UnreadableImage as error:
        _save(session, dataset, model, folder, fitted)
        keeper.discard()
        raise UserError(
            f"{error} The trained model is in {folder}; test it with "
            f"`liftplus eval {folder} unreadable=skip`, or mend the file and leave that out."
        ) from error
    if not config.train.epochs:
        _save(session, dataset, model, folder, fitted)
    keeper.discard()
    found = _signs(session, dataset, model, fitted, before, metrics)
    if job.leads and (fitted.notes or found):
        about = results.read_json(folder / CONFIG) | {"notes": fitted.notes, "signs": found}
        results.write_json(folder / CONFIG, about)
    return Outcome(metrics, fitted.seconds, parameters, fitted.chosen, fitted.notes, tuple(found))


def _before(session: Session, dataset: DataSet, model: Classifier, folder: Path) -> signs.Look | None:
    """How good the model is before its first step, where recipe=auto answers for the settings."""
    config = session.config
    if config.recipe != "auto" or not config.train.epochs:
        return None

    def noted() -> dict[str, Any] | None:
        begun = (folder / checkpoint.STATE).is_file()
        start: dict[str, Any] | None = results.read_json(folder / CONFIG).get("start") if begun else None
        return start

    start = session.runtime.job.from_leader(noted)
    if start is not None:
        return signs.Look(**start)
    with deterministic(config.deterministic):
        return signs.look(model, config, dataset, session.runtime)


def _signs(
    session: Session,
    dataset: DataSet,
    model: Classifier,
    fitted: Fit,
    before: signs.Look | None,
    metrics: Metrics | None,
) -> list[str]:
    """What a user should know of the result; that it is below its start comes last."""
    if before is None:
        return []
    config, runtime = session.config, session.runtime
    with deterministic(config.deterministic):
        after = signs.look(model, config, dataset, runtime)
        units = signs.of_units(model, config, dataset, runtime)
    found = signs.of_training(config, fitted.losses, before, after)
    return found if signs.below_start(before, after) else [*signs.of_test(config, metrics), *units, *found]


def _test(
    session: Session, dataset: DataSet, model: Classifier, folder: Path, fitted: Fit, split: str
) -> Metrics | None:
    """Test a run at its end, where the data has that split."""
    if split not in dataset.splits:
        return None
    figures = {
        "seconds": round(fitted.seconds, 2),
        "trained_parameters": trained_parameters(model),
        "peak_memory_bytes": peak_memory(session.runtime.device),
    }
    with _interrupted_in_test(folder):
        return test(session, model, dataset, split, dataset.counts(), folder, _weights(fitted.chosen) | figures)


def _weights(chosen: Chosen | None) -> dict[str, Any]:
    """For a result: which weights were tested."""
    return {"weights": None if chosen is None else asdict(chosen)}


def _save(session: Session, dataset: DataSet, model: Classifier, folder: Path, fitted: Fit) -> None:
    """Write the model that the run ends with, and the last epoch's where that is another."""
    if not session.runtime.job.leads:
        return
    if fitted.last is not None:
        epochs = session.config.train.epochs
        last = Chosen(epochs, epochs, validation=fitted.last_validation)
        checkpoint.save_model(folder / checkpoint.LAST, model, session.config, dataset, last, fitted.last)
    checkpoint.save_model(folder, model, session.config, dataset, fitted.chosen)


@contextmanager
def _interrupted_in_test(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a test at once, with how to go on."""
    said = (
        f"Stopped while testing. Go on with: liftplus train --resume {folder} (which only tests, nothing is trained)."
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
    """Train, or go on training."""
    log, leads = folder / "log.jsonl", session.runtime.job.leads
    finished = keeper.position().epoch
    if leads:
        results.keep_lines(log, lambda entry: entry["epoch"] <= finished)

    def note(entry: dict[str, Any]) -> None:
        if leads:
            results.append_json(log, entry)
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
    """Where training diverges, say what is kept and how the run can go on."""
    try:
        yield
    except DivergedError as error:
        at = keeper.position()
        kept = f"The state after {at} is in {folder}. " if at != Position() else ""
        raise DivergedError(error.what, f"{kept}Go on with: liftplus train --resume {folder} train.lr=RATE") from error


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
    found, metrics = measure(session, model, dataset, split, train_counts)
    what: dict[str, Any] = {"data": dataset.name, "split": split, "evaluation": session.config.evaluation.model_dump()}
    if session.cache.notes:
        what["cache"] = session.cache.notes
    if session.runtime.job.leads:
        results.write_evaluation(folder, dataset, dataset.splits[split], found, metrics, train_counts, what | about)
    return metrics


def measure(
    session: Session, model: Classifier, dataset: DataSet, split: str, train_counts: Sequence[int]
) -> tuple[Predictions, Metrics]:
    """The model's predictions for one split, and how good they are."""
    part = dataset.splits[split]
    expect(session, model, dataset.class_names, train_counts)
    reading = Reading(dataset.store, part, session.config.train.workers, session.progress)
    with deterministic(session.config.deterministic):
        found = predict_once(model, reading, session.config.evaluation, session.runtime, session.cache)
    return found, score(found, part, tuple(train_counts))


def expect(session: Session, model: Classifier, class_names: Sequence[str], train_counts: Sequence[int]) -> None:
    """Have the model reckon with the prior that `evaluation.prior` names."""
    config = session.config
    shift = priors.shift(config, class_names, train_counts, config.evaluation.prior)
    model.shift = None if shift is None else shift.to(session.runtime.device)


def evaluate_run(
    session: Session, trained: Trained, split: str, folder: Path, *, other_data: bool
) -> tuple[DataSet, Metrics]:
    """Test a trained run on one split of the session's data, whose classes are matched to the run's.

    Other data than the run's is never split: without a test split, all of it is tested. The run's own pictures are in
    the splits they had in training.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    dataset = session.data(for_testing=other_data)
    dataset = aligned(dataset if other_data else as_in_run(dataset, trained.folder, split), split, trained)
    refuse_different(session, dataset, trained.model)
    if session.runtime.job.leads:
        results.new_folder(folder)
    about = _weights(trained.chosen) | {
        "command": command_line(),
        "config": session.config.to_dict(),
        "versions": describe(session.runtime),
    }
    return dataset, test(session, trained.model, dataset, split, trained.train_counts, folder, about)
