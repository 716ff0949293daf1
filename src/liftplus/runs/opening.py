"""Open a run on this machine: read its data and build its classifier before the first step."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from liftplus.config import RunConfig, flat, replaced
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.data.kept_facts import KeptFacts
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.features import Cache
from liftplus.evaluation.inference import coinciding_grids
from liftplus.machine.determinism import deterministic
from liftplus.machine.progress import Advance, Progress, Silent
from liftplus.machine.runtime import Runtime
from liftplus.machine.stopping import StopRequest
from liftplus.model.classifier import Classifier
from liftplus.runs.changes import FREE, begun_with
from liftplus.training import recipe, signs
from liftplus.training.assembly import build
from liftplus.training.signs import Snapshot


@dataclass(frozen=True)
class Session:
    """The settings of a run, the machine it runs on, and where it shows progress.

    Attributes:
        stop: a request to stop, checked during training.
        began: when the session began, in seconds of `time.perf_counter`.
        seconds: predicted length of the run, if the recipe measured it.
    """

    config: RunConfig
    runtime: Runtime
    progress: Progress = field(default_factory=Silent)
    stop: StopRequest | None = None
    began: float = field(default_factory=time.perf_counter)
    seconds: float | None = None

    def data(self, for_testing: bool = False) -> DataSet:
        """The data set; unreadable pictures are left out if `data.unreadable` says so."""
        with ExitStack() as stack:
            advance: Advance | None = None

            def checked(done: int, total: int) -> None:
                nonlocal advance
                if advance is None:
                    advance = stack.enter_context(self.progress.task("Checking every picture", total))
                advance()

            kept = KeptFacts.of(self.config.cache)
            dataset = sources.load(self.config.data, checked, for_testing=for_testing, kept=kept)
            self.cache.notes.extend(kept.notes)
            return dataset

    def start(self, dataset: DataSet, folder: Path | None = None) -> tuple[Session, Classifier]:
        """The classifier before its first step, and the session with the settings that recipe=auto chose.

        Args:
            folder: the run's folder. A run that was begun there keeps the settings chosen then.
        """
        refuse_different(self, dataset)  # the start below may use pictures of all processes together
        begun = self.runtime.job.from_leader(lambda: begun_with(folder))
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
        """The cache of features of frozen towers. Its notes say what was read from it."""
        return Cache.of(self.config.cache, self.runtime.job)


def begin(session: Session, dataset: DataSet, folder: Path | None = None) -> tuple[Session, Classifier, list[str]]:
    """Start a run, from the command line or from Python: `Session.start`, with notes on what was decided."""
    session, model = session.start(dataset, folder)
    chosen = recipe.sentences(session.config, dataset, session.seconds)
    return session, model, [*chosen, *notes(session.config, dataset, model)]


def refuse_unmeasured(dataset: DataSet) -> None:
    """Check that there are pictures to measure the start of training on.

    Raises:
        UserError: there are none.
    """
    if not any(len(dataset.splits.get(name, ())) for name in signs.HELD_OUT):
        raise UserError(
            f"{dataset.name!r} has neither val nor test pictures, on which the start of training could be measured. "
            "Give val_share=0.2 to keep a fifth of the training pictures aside, or leave --backbone out."
        )


def before_training(session: Session, dataset: DataSet) -> Snapshot:
    """How good the classifier of a run would be before its first step."""
    session, model = session.start(dataset)
    with deterministic(session.config.deterministic):
        return signs.snapshot(model, session.config, dataset, session.runtime)


def refuse_different(session: Session, dataset: DataSet, model: Classifier | None = None) -> None:
    """Check that all processes of a job have the same data, weights and settings.

    Raises:
        UserError: a process differs from the leader.
    """
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


def notes(config: RunConfig, dataset: DataSet, model: Classifier, *, trains: bool = True) -> list[str]:
    """Notes for the user before long work starts, one sentence each.

    Args:
        trains: whether the run trains and then tests the test split; if so, a missing test split is noted.
    """
    grids = coinciding_grids(config.evaluation, model.backbone.facts)
    untested = (
        None if "test" in dataset.splits or not trains else "There is no test split, so nothing will be measured."
    )
    twice = (
        f"Sampler {config.sampler.name!r} and loss {config.loss.name!r} both correct for class imbalance. Together "
        "they tend to favour the rare classes too much. Use loss=cross_entropy, or sampler=instance."
    )
    both = twice if config.sampler.rebalances and config.loss.adjusts_prior else None
    leak = (
        f"{config.backbone.name!r} was trained with ImageNet's labels, so its accuracy on {dataset.name!r} says little "
        "about unseen data. For a fair test, use weights that were trained without them."
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
