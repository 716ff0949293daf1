"""The training loop: epochs, batches, one step each, a measurement, a saved state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.data.loader import Loader, TrainView
from liftplus.errors import DivergedError
from liftplus.evaluation.features import Cache, FeatureLoader, FixedCrop, bare, image_features
from liftplus.evaluation.inference import SplitReader
from liftplus.machine.determinism import deterministic
from liftplus.machine.progress import Progress
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training import time_limit
from liftplus.training.checkpoint import Chosen
from liftplus.training.safeguard import Probe, Safeguard
from liftplus.training.saved_state import Keeper, Position, TrainingState
from liftplus.training.selection import Selection
from liftplus.training.step import READ_EVERY, Step

SLOWED = (
    "The loss rose over what it was before training, so the run went back to its start once and halved its learning "
    "rate from {:g} to {:g}."
)
SKIPPED = "Steps took longer than planned, so {} of {} epochs were trained within train.minutes."


@dataclass(frozen=True)
class Fit:
    """The result of training.

    Attributes:
        losses: mean loss of each epoch.
        seconds: time it took, measurements on the validation split included.
        chosen: which epoch's weights the model has.
        last: the last epoch's weights, where the model has others.
        last_validation: accuracies on the validation split after the last epoch, where measured.
        notes: what happened during training that the user should know.
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
    log: Callable[[dict[str, Any]], None] = lambda _record: None,
    keeper: Keeper | None = None,
    cache: Cache | None = None,
    began: float | None = None,
) -> Fit:
    """Train in place with SGD and a cosine learning rate, as docs/method.md describes.

    Args:
        log: called with a record at the end of each epoch.
        keeper: saves the state and brings a saved one back; training goes on from there, bit for bit.
        cache: where features are kept; by default as `config.cache` says.
        began: start of the time of `train.minutes`, by `time.perf_counter`; by default now.

    Raises:
        DivergedError: a loss, weight or output is not finite, and the run may not go back.
        Stopped: the process was asked to stop; the state is saved.
    """
    epochs, before = config.train.epochs, 0.0 if began is None else time.perf_counter() - began
    with deterministic(config.deterministic):
        batches = training_batches(model, config, dataset, runtime, cache, progress)
        step, safeguard = guarded(model, config, dataset, runtime)
        selection = Selection(model, config, dataset, runtime)
        state = TrainingState(step, selection, keeper, runtime.job)
        state.begin()
        while (at := state.at).epoch < epochs:  # again where the run goes back to its start or leaves epochs out
            with state.progress(epochs, len(batches), progress) as advance:
                while (at := state.at).epoch < epochs:
                    epoch, total = at.epoch, torch.tensor(at.total, device=runtime.device)
                    step.set_rate(rate(config, epoch, max(at.step - 1, 0) / len(batches)))
                    try:
                        for number, batch in enumerate(batches.epoch(epoch, at.step), at.step + 1):
                            step.set_rate(rate(config, epoch, (number - 1) / len(batches)))
                            total += step(batch)
                            read = number == len(batches) or number % READ_EVERY == 0
                            # Validation may outlast the time that a job has after SIGTERM, so the state is saved first.
                            pause = (number < len(batches) or selection.due(epoch + 1)) and state.due()
                            step.watch.look(epoch, number, waits=read, keeps=pause or number == len(batches))
                            advance(**({"epoch": epoch + 1, "loss": float(total) / number} if read else {}))
                            if pause:
                                state.move(replace(at, step=number, total=float(total)))
                                state.save()
                        rises = safeguard.rises()
                    except DivergedError:
                        if not safeguard.may_go_back:
                            raise
                        rises = True
                    if rises:
                        safeguard.go_back(state)
                        break
                    measured = selection.measure(epoch + 1, advance)
                    state.move(Position(epoch + 1, losses=(*at.losses, float(total) / len(batches))))
                    log(_record(state.at, step.rate) | measured)
                    state.save()
                    skipped = partial(skip, config, dataset, state.at, state.at.seconds - at.seconds, before)
                    if state.leave_out(runtime.job.from_leader(skipped)):
                        break
        return Fit(at.losses, at.seconds, *selection.choose(), selection.latest, _notes(config, step, at))


def guarded(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> tuple[Step, Safeguard]:
    """The step, with rates that fit the backbone if `train.scale_rates` asks for them, and its safeguard."""
    probe = Probe(model, config, dataset, runtime) if config.train.scale_rates or config.train.go_back else None
    step = Step(model, config, dataset, runtime, probe.rates() if probe and config.train.scale_rates else {})
    return step, Safeguard(step, probe if config.train.go_back else None)


def _record(at: Position, lr: float) -> dict[str, Any]:
    """The log's record of a finished epoch."""
    return {"epoch": at.epoch, "loss": at.losses[-1], "lr": lr, "seconds": round(at.seconds, 2)}


def _notes(config: RunConfig, step: Step, at: Position) -> tuple[str, ...]:
    """What happened during training that the user should know."""
    slowed = SLOWED.format(config.train.lr, config.train.lr * step.slowed) if step.slowed != 1.0 else ""
    skipped = SKIPPED.format(len(at.losses), config.train.epochs) if len(at.losses) < config.train.epochs else ""
    return tuple(note for note in (slowed, skipped) if note)


def skip(config: RunConfig, dataset: DataSet, at: Position, took: float, before: float) -> int:
    """Epochs to leave out now, so that the rest ends within `train.minutes`; the last one is always trained.

    Those that are trained stay evenly spread over the schedule of rate and crops.

    Args:
        at: the position at the end of an epoch.
        took: seconds of that epoch; too few where it was resumed, which the next epoch corrects.
        before: seconds that were used up when training began.
    """
    rest = config.train.epochs - at.epoch
    if rest < 2 or config.train.minutes is None:
        return 0
    a_picture = took / len(dataset.splits["train"])
    fitting = time_limit.epochs(config, dataset, a_picture, before + at.seconds, time_limit.UNDER_WAY)
    return math.ceil(rest / max(1, int(fitting))) - 1


TIMED = 4
"""Number of the last step that is timed, from 0."""


def seconds_a_picture(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> float:
    """Seconds of training per picture, over a few steps after the first; the model is left as it was."""
    start = {name: value.clone() for name, value in model.learned_state().items()}
    step = Step(model, config, dataset, runtime)
    step.set_rate(config.train.lr)
    pictures, clock = 0, time.perf_counter()
    for number, batch in enumerate(
        training_batches(model, config, dataset, runtime, Cache.of(False), None).epoch(0, 0)
    ):
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


def training_batches(
    model: Classifier,
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Loader | FeatureLoader:
    """Batches of pictures; of features, where backbone and pictures stay the same through all epochs."""
    train, facts, cache = dataset.splits["train"], model.backbone.facts, cache or Cache.of(config.cache, runtime.job)
    order = config.sampler.order(train.labels, config.train.epochs, config.seed)
    if cache.on and config.augment.fixed and config.train.keep == 1 and bare(model):
        crop = FixedCrop(config.augment, facts.image_size, facts.interpolation)
        reader = SplitReader(
            dataset.store, train, config.train.workers, progress, label="Features of the training images"
        )
        rows = image_features(cache, model.backbone, reader, crop, runtime, config.evaluation.batch_size)
        return FeatureLoader(rows[:, 0], train.labels, order, config.train.batch_size, runtime.job)
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
