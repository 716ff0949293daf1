"""Build a classifier for a data set and fit it: data, backbone, tuner, head, initialisation, loss, optimiser."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Loader, TrainView, seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import DivergedError, UserError
from liftplus.evaluation.features import Cache, FixedCrop, Rows, bare, image_features, text_features
from liftplus.evaluation.inference import Reading
from liftplus.machine.determinism import deterministic, own_stream
from liftplus.machine.runtime import Advance, Progress, Runtime, Silent
from liftplus.model.classifier import Classifier
from liftplus.model.head_init import InitContext, Stream, centres, class_prompts
from liftplus.training import selection, time_limit, tracking
from liftplus.training.checkpoint import Chosen, Keeper, Position
from liftplus.training.safeguard import Probe, Safeguard
from liftplus.training.selection import Selection, UnderWay
from liftplus.training.step import READ_EVERY, Step

SLOWED = (
    "The loss rose over what it was before training, so the run went back to its start once and halved its learning "
    "rate from {:g} to {:g}."
)
SKIPPED = "Steps took longer than planned, so {} of {} epochs were trained within train.minutes."
AT_ONCE = 65_536
"""Training images whose features are in memory at once where a start reads all of them."""


def build(
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Classifier:
    """The classifier with its head initialised, on the device, ready for the first step.

    Args:
        cache: where features are kept, and what says so; by default as `config.cache` has it.
    """
    check(config, dataset)
    cache = cache or Cache.of(config.cache, runtime.job)
    backbone = catalogue.load(config.backbone)
    runtime.place(backbone)
    with own_stream(config.seed):
        head = config.head.build(backbone, dataset.num_classes)
        context = InitContext(
            backbone,
            dataset.class_names,
            plain_features(config, dataset, backbone, runtime, cache, progress),
            seeded(config.seed, -1),
            None if backbone.text is None else partial(text_features, cache, backbone.text, backbone.identity, runtime),
            plain_stream(config, dataset, backbone, runtime, cache, progress),
        )
        start = config.head.start(context, config.head_init)
        _refuse_broken(start.rows, config)
        head.weight.data.copy_(start.rows)
        if start.bias is not None:
            head.get_parameter("bias").data.copy_(start.bias)
        model = Classifier.assemble(
            backbone,
            dict(config.tuner),
            head,
            class_prompts(config.head_init, dataset.class_names),
            centre=centres(config.head_init),
        )
    if config.train.epochs and not any(True for _ in model.trainable()):
        raise UserError(
            "Nothing is left to train: the tuner is none and the head is frozen. Use epochs=0, or another tuner."
        )
    model.put(runtime)
    _refuse_broken(_answer(model, runtime), config)
    model.notes = tuple(context.notes)
    return model


def _answer(model: Classifier, runtime: Runtime) -> Tensor:
    """Logits of one made-up picture: a start that reads names alone has not looked at the image tower yet."""
    size, mode = model.backbone.facts.image_size, model.training
    ramp = torch.linspace(-2, 2, 3 * size**2, device=runtime.device).view(1, 3, size, size)
    with torch.no_grad(), runtime.autocast():
        logits: Tensor = model.eval()(ramp)
    model.train(mode)
    return logits


def _refuse_broken(numbers: Tensor, config: RunConfig) -> None:
    if not numbers.isfinite().all():
        raise UserError(
            f"{config.backbone.name!r} gives features that are not finite, so there is no first classifier. "
            "Restore the file of its weights, or use precision=fp32."
        )


def check(config: RunConfig, dataset: DataSet) -> None:
    """Refuse what cannot work before any long work starts."""
    if "train" not in dataset.splits or not len(dataset.splits["train"]):
        raise UserError(f"Data set {dataset.name!r} has no training images.")
    tracking.require(config.track)
    selection.check(config, dataset)
    config.loss.weights_of(dataset.class_names)
    reads_names = [
        key
        for key, used in (
            ("head=joint", config.head.name == "joint"),
            (f"head_init={config.head_init.name}", config.head_init.reads_names),
        )
        if used
    ]
    if reads_names and not dataset.named:
        instead = "" if "head=joint" in reads_names else ", or choose head_init=class_mean"
        raise UserError(
            f"The classes of {dataset.name!r} have no names, only numbers, so {reads_names[0]} has nothing to read. "
            f"Give data.class_names=FILE{instead}."
        )
    if config.head_init.needs_bias and not config.head.has_bias:
        raise UserError(
            f"head_init={config.head_init.name} gives rows of any length with a bias each, and head={config.head.name} "
            "has no bias. Take head=linear, or head_init=ridge."
        )


def plain_features(
    config: RunConfig,
    dataset: DataSet,
    backbone: Backbone,
    runtime: Runtime,
    cache: Cache,
    progress: Progress | None,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function that gives bare features of at most k training images a class, short side and centre crop R."""
    stream = plain_stream(config, dataset, backbone, runtime, cache, progress, at_once=sys.maxsize)
    return lambda shots: next(stream(shots).batches())


def plain_stream(
    config: RunConfig,
    dataset: DataSet,
    backbone: Backbone,
    runtime: Runtime,
    cache: Cache,
    progress: Progress | None,
    at_once: int = AT_ONCE,
) -> Callable[[int | None], Stream]:
    """The same for at most k images a class, or for all of them, with so many features in memory at once."""
    train, view = dataset.splits["train"], CentreCrop(backbone.facts.image_size, backbone.facts.interpolation, margin=0)

    def part(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        split = Split([train.keys[i] for i in chosen], [train.labels[i] for i in chosen])
        reading = Reading(
            dataset.store, split, config.train.workers, progress, label="Features for the first classifier"
        )
        out = image_features(cache, backbone, reading, view, runtime, config.evaluation.batch_size)
        return out[:, 0], torch.tensor(split.labels)

    def stream(shots: int | None) -> Stream:
        chosen = range(len(train)) if shots is None else first_of_each(train, shots, seeded(config.seed, -2))
        parts = [chosen[first : first + at_once] for first in range(0, len(chosen), at_once)]
        return Stream(torch.tensor([train.labels[i] for i in chosen]), lambda: map(part, parts))

    return stream


def first_of_each(split: Split, shots: int, generator: torch.Generator) -> list[int]:
    """Indices of at most `shots` images a class, drawn at random, in ascending order."""
    left: dict[int, int] = {}
    chosen = []
    for index in torch.randperm(len(split), generator=generator).tolist():
        taken = left.get(split.labels[index], 0)
        if taken < shots:
            left[split.labels[index]] = taken + 1
            chosen.append(index)
    return sorted(chosen)


@dataclass(frozen=True)
class Fit:
    """What training took and gave.

    Attributes:
        losses: mean loss of each epoch.
        seconds: time it took, measurements on the validation split included.
        chosen: which epoch's weights the model has.
        last: the last epoch's weights, where the model has others.
        last_validation: accuracies on the validation split after the last epoch, where measured.
        notes: what happened on the way that the user should know.
    """

    losses: tuple[float, ...]
    seconds: float
    chosen: Chosen
    last: dict[str, Tensor] | None = None
    last_validation: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def fit(
    model: Classifier,
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    keeper: Keeper | None = None,
    cache: Cache | None = None,
    began: float | None = None,
) -> Fit:
    """Train in place with SGD and a cosine learning rate; docs/method.md has the recipe.

    Args:
        log: called with a record at the end of each epoch.
        keeper: saves the state and brings a saved one back; training goes on from there, bit for bit.
        cache: where features are kept; by default as `config.cache` has it.
        began: when the time of `train.minutes` began, on the clock of `time.perf_counter`; by default now.

    Several processes of one job take their parts of every batch and come to the same weights; each has its own keeper,
    and the leader's state is that of all.
    """
    with deterministic(config.deterministic):
        cache = cache or Cache.of(config.cache, runtime.job)
        loader = _loader(model, config, dataset, runtime, cache, progress)
        probe = Probe(model, config, dataset, runtime) if config.train.scale_rates or config.train.go_back else None
        rates = probe.rates() if probe is not None and config.train.scale_rates else {}
        step = Step(model, config, dataset, runtime, rates)
        safeguard = Safeguard(step, probe) if probe is not None and config.train.go_back else None
        loop = _Loop(loader, step, Selection(model, config, dataset, runtime), keeper)
        before = 0.0 if began is None else time.perf_counter() - began
        at, epochs = loop.begin(), config.train.epochs
        while at.epoch < epochs:
            with (progress or Silent()).task("Training", loop.work(Position(epochs)), loop.work(at)) as advance:
                for _ in range(at.epoch, epochs):
                    clock = time.perf_counter()
                    after = loop.epoch(at, advance, safeguard)
                    if after is None:
                        at = Position(seconds=loop.seconds())
                        break
                    at = loop.finished(after, advance, log)
                    # Of an epoch that went on in the middle this is too short, which the next one puts right.
                    took = time.perf_counter() - clock
                    if skipped := runtime.job.from_leader(partial(skip, config, dataset, at, took, before)):
                        at = replace(at, epoch=at.epoch + skipped)
                        break
        notes = [
            *([SLOWED.format(config.train.lr, config.train.lr * step.slowed)] if step.slowed != 1.0 else []),
            *([SKIPPED.format(len(at.losses), epochs)] if len(at.losses) < epochs else []),
        ]
        return Fit(at.losses, at.seconds, *loop.selection.choose(), loop.selection.latest, tuple(notes))


def skip(config: RunConfig, dataset: DataSet, at: Position, took: float, before: float) -> int:
    """Epochs to leave out now, so that the rest ends within `train.minutes`; the last one is always trained.

    Those that are trained stay evenly spread over the schedule of rate and crops.

    Args:
        at: the position at the end of an epoch.
        took: seconds of that epoch.
        before: seconds that were gone when training began.
    """
    rest = config.train.epochs - at.epoch
    if rest < 2 or config.train.minutes is None:
        return 0
    a_picture = took / len(dataset.splits["train"])
    fitting = time_limit.epochs(config, dataset, a_picture, before + at.seconds, time_limit.UNDER_WAY)
    return math.ceil(rest / max(1, int(fitting))) - 1


TIMED = 4


def seconds_a_picture(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> float:
    """Seconds of training a picture, over a few steps after the first; the model is left as it was."""
    start = {name: value.clone() for name, value in model.learned_state().items()}
    step = Step(model, config, dataset, runtime)
    step.set_rate(config.train.lr)
    pictures, clock = 0, time.perf_counter()
    for number, batch in enumerate(_loader(model, config, dataset, runtime, Cache.of(False), None).epoch(0, 0)):
        step(batch)
        if number == 0 and len(dataset.splits["train"]) > config.train.batch_size:
            clock = time.perf_counter()
        else:
            pictures += min(config.train.batch_size, len(dataset.splits["train"]))
        if number == TIMED:
            break
    seconds = time.perf_counter() - clock
    model.load_learned(start)
    return max(runtime.job.from_all(seconds)) / pictures


class _Loop:
    """What the loop works with."""

    def __init__(self, loader: Loader | Rows, step: Step, selection: Selection, keeper: Keeper | None) -> None:
        self.loader, self.step, self.selection, self.keeper = loader, step, selection, keeper
        self.config, self.runtime = step.config, step.runtime
        self.under_way = UnderWay(self.step, self.selection)
        self.began = time.perf_counter()

    def begin(self) -> Position:
        """Where to go on: the saved position in all processes, or the start."""
        at = self.step.alike(Position() if self.keeper is None else self.keeper.restore(self.under_way))
        self.selection.alike()
        self.began = time.perf_counter() - at.seconds
        return at

    def seconds(self) -> float:
        """Time spent so far, before interruptions too."""
        return time.perf_counter() - self.began

    def work(self, at: Position) -> int:
        """Batches up to a position, those of the validation split included."""
        return at.epoch * len(self.loader) + at.step + self.selection.batches(at.epoch)

    def epoch(self, at: Position, advance: Advance, safeguard: Safeguard | None) -> Position | None:
        """Train to the end of the epoch under way; None where the loss rose and the run is back at its start."""
        try:
            after = self._epoch(at, advance)
        except DivergedError:
            if safeguard is None or not safeguard.may_go_back:
                raise
        else:
            if safeguard is None or not safeguard.rises():
                return after
        safeguard.go_back()
        return None

    def finished(self, at: Position, advance: Advance, log: Callable[[dict[str, Any]], None] | None) -> Position:
        """Measure, note and save what an epoch gave."""
        measured = self.selection.measure(at.epoch, advance)
        at = replace(at, seconds=self.seconds())
        if log is not None:
            figures = {"epoch": at.epoch, "loss": at.losses[-1], "lr": self.step.rate}
            log(figures | {"seconds": round(at.seconds, 2)} | measured)
        if self.keeper is not None:
            self.keeper.save(self.under_way, at)
        return at

    def _epoch(self, at: Position, advance: Advance) -> Position:
        epoch, batches, keeper, watch = at.epoch, len(self.loader), self.keeper, self.step.watch
        # A measurement may take longer than a job that is asked to stop has time.
        measures = self.selection.due(epoch + 1)
        total = torch.tensor(at.total, device=self.runtime.device)
        self.step.set_rate(rate(self.config, epoch, max(at.step - 1, 0) / batches))
        for number, batch in enumerate(self.loader.epoch(epoch, at.step), at.step + 1):
            self.step.set_rate(rate(self.config, epoch, (number - 1) / batches))
            total += self.step(batch)
            read = number % READ_EVERY == 0 or number == batches
            pause = keeper is not None and (number < batches or measures) and keeper.due()
            if read or pause or watch.reads_freely:
                watch.check(epoch, number)
            if pause or number == batches:
                watch.check_weights(epoch, number)
            advance(**({"epoch": epoch + 1, "loss": float(total) / number} if read else {}))
            if keeper is not None and pause:
                now = replace(at, step=number, total=float(total), seconds=self.seconds())
                keeper.save(self.under_way, now)
        return Position(epoch + 1, 0, 0.0, (*at.losses, float(total) / batches), self.seconds())


def _loader(
    model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime, cache: Cache, progress: Progress | None
) -> Loader | Rows:
    """Batches of pictures; of features, where backbone and pictures stay the same through all epochs."""
    train, facts = dataset.splits["train"], model.backbone.facts
    order = config.sampler.order(train.labels, config.train.epochs, config.seed)
    if cache.on and config.augment.fixed and bare(model):
        crop = FixedCrop(config.augment, facts.image_size, facts.interpolation)
        reading = Reading(dataset.store, train, config.train.workers, progress, label="Features of the training images")
        rows = image_features(cache, model.backbone, reading, crop, runtime, config.evaluation.batch_size)
        return Rows(rows[:, 0], train.labels, order, config.train.batch_size, runtime.job)
    view = TrainView(config.augment, facts.image_size, facts.interpolation, config.train.epochs, config.seed)
    return Loader(
        dataset.store,
        train,
        view,
        batch_size=config.train.batch_size,
        workers=config.train.workers,
        order=order,
        pin=runtime.device.type == "cuda",
        job=runtime.job,
    )


def rate(config: RunConfig, epoch: int, share: float) -> float:
    """Cosine decay to 0 over the epochs; `share` of the epoch counts only where the schedule goes by step."""
    done = (epoch + (share if config.train.schedule == "step" else 0.0)) / config.train.epochs
    return config.train.lr * (1 + math.cos(math.pi * done)) / 2


def trained_parameters(model: nn.Module) -> int:
    """Number of trainable weights, the head's included."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
