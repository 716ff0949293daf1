"""Which epoch's weights a run ends with: the last one's, or the best one's on the validation split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine.progress import Advance
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training.checkpoint import Chosen

BEST = "best."


def check(config: RunConfig, dataset: DataSet) -> None:
    """Refuse to choose by a validation split that is not there."""
    train = config.train
    if not (train.epochs and (train.validate_every or train.select != "last")):
        return
    if not len(dataset.splits.get("val", ())):
        asked = f"train.select={train.select}" if train.select != "last" else "train.validate_every"
        raise UserError(
            f"{asked} needs a validation split, and {dataset.name!r} has none. Set data.val_share=0.1 to take a tenth "
            "of the training images, or leave it out."
        )


class Selection:
    """Measures the validation split after epochs, with one crop, and keeps the weights of the best one so far.

    It does nothing in a run that does not ask for it.
    """

    def __init__(self, model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> None:
        check(config, dataset)
        self.model, self.runtime, self.counts = model, runtime, dataset.counts()
        self.epochs, self.by = config.train.epochs, config.train.select
        self.every = config.train.validate_every or int(self.by != "last")
        self.evaluation = config.evaluation.model_copy(update={"tte": False})
        if self.every:
            self.reader = SplitReader(dataset.store, dataset.splits["val"], config.train.workers)
        self.latest: dict[str, Any] | None = None  # accuracies after the current epoch, where measured
        self.best: Chosen | None = None
        self.weights: dict[str, Tensor] = {}

    def due(self, epoch: int) -> bool:
        """Whether to measure after this many epochs."""
        return self.every > 0 and (epoch % self.every == 0 or epoch == self.epochs)

    def batches(self, epoch: int) -> int:
        """Batches of all measurements until this many epochs are finished."""
        if not self.every:
            return 0
        mine = len(self.runtime.job.part(len(self.reader.split)))
        return -(-mine // self.evaluation.batch_size) * sum(self.due(number + 1) for number in range(epoch))

    def measure(self, epoch: int, advance: Advance) -> dict[str, Any]:
        """After this many epochs: accuracies on the validation split for the log; nothing where none are due."""
        self.latest = None
        if not self.due(epoch):
            return {}
        reader = SplitReader(self.reader.store, self.reader.split, self.reader.workers, _Within(advance))
        found = predict(self.model, reader, self.evaluation, self.model.backbone.facts, self.runtime)
        self.latest = score(found, reader.split, self.counts).summary()
        now = Chosen(epoch, self.epochs, self.by, self.latest)
        if self.by != "last" and (self.best is None or _value(now) > _value(self.best)):
            self.best = now
            self.weights = {name: value.clone() for name, value in self.model.learned_state().items()}
        return {"validation": self.latest}

    def last(self) -> Chosen:
        """The description of the weights after the last epoch."""
        return Chosen(self.epochs, self.epochs, "last", self.latest)

    def choose(self) -> tuple[Chosen, dict[str, Tensor] | None]:
        """At the end: give the model the best epoch's weights.

        Returns what it has now, and the last epoch's weights where those are others.
        """
        if self.best is None:
            return self.last(), None
        if self.best.epoch == self.epochs:
            return self.best, None
        last = {name: value.clone() for name, value in self.model.learned_state().items()}
        self.model.load_learned(self.weights)
        return self.best, last

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """For the saved state of the run: the best weights, and which epoch they are from."""
        best = None if self.best is None else asdict(self.best)
        return {BEST + name: value for name, value in self.weights.items()}, {"best": best, "latest": self.latest}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave; the state of an older version may lack it."""
        self.weights = {name.removeprefix(BEST): value for name, value in tensors.items()}
        self.best = Chosen(**values["best"]) if values.get("best") else None
        self.latest = values.get("latest")


def _value(chosen: Chosen) -> float:
    return float((chosen.validation or {})[chosen.by])


class _Within:
    """Progress that counts as part of the training under way."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        yield self.advance
