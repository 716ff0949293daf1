"""Build a classifier for a data set and fit it: data, backbone, tuner, head, initialisation, loss, optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.checkpoint import Keeper, Position
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Loader, TrainView, seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluate import Reading, collect
from liftplus.head_init import InitContext, centres, class_prompts
from liftplus.model import Classifier
from liftplus.runtime import Progress, Runtime, Silent
from liftplus.step import READ_EVERY, Step


def build(config: RunConfig, dataset: DataSet, runtime: Runtime, progress: Progress | None = None) -> Classifier:
    """The classifier with its head initialised, on the device, ready for the first step."""
    check(config, dataset)
    backbone = catalogue.load(config.backbone)
    runtime.place(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = config.head.build(backbone, dataset.num_classes)
        context = InitContext(
            backbone,
            dataset.class_names,
            plain_features(config, dataset, backbone, runtime, progress),
            seeded(config.seed, -1),
        )
        rows = config.head.rows(context, config.head_init)
        head.weight.data.copy_(rows)
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
    return model


def check(config: RunConfig, dataset: DataSet) -> None:
    """Refuse what cannot work before any long work starts."""
    if "train" not in dataset.splits or not len(dataset.splits["train"]):
        raise UserError(f"Data set {dataset.name!r} has no training images.")
    config.loss.weights_of(dataset.class_names)
    reads_names = [
        key
        for key, used in (
            ("head=joint", config.head.name == "joint"),
            ("head_init=semantic", config.head_init.name == "semantic"),
        )
        if used
    ]
    if reads_names and not dataset.named:
        instead = "" if "head=joint" in reads_names else ", or choose head_init=class_mean"
        raise UserError(
            f"The classes of {dataset.name!r} have no names, only numbers, so {reads_names[0]} has nothing to read. "
            f"Give data.class_names=FILE{instead}."
        )


def plain_features(
    config: RunConfig, dataset: DataSet, backbone: Backbone, runtime: Runtime, progress: Progress | None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function that gives bare features of at most k training images a class, short side and centre crop R."""

    def features(shots: int) -> tuple[Tensor, Tensor]:
        train = dataset.splits["train"]
        chosen = first_of_each(train, shots, seeded(config.seed, -2))
        split = Split([train.keys[i] for i in chosen], [train.labels[i] for i in chosen])
        view = CentreCrop(backbone.facts.image_size, backbone.facts.interpolation, margin=0)
        reading = Reading(
            dataset.store, split, config.train.workers, progress, label="Features for the first classifier"
        )
        out = collect(backbone, reading, view, backbone.facts, runtime, config.evaluation.batch_size)
        return out.clone(), torch.tensor(split.labels)

    return features


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
    """What training took and how its loss went, one entry an epoch."""

    losses: tuple[float, ...]
    seconds: float


def fit(
    model: Classifier,
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    keeper: Keeper | None = None,
) -> Fit:
    """Train in place with SGD and a cosine learning rate (METHOD, section Training).

    Args:
        log: called with a record at the end of each epoch.
        keeper: saves the state and brings a saved one back; training goes on from there, bit for bit.

    Several processes of one job take their parts of every batch and come to the same weights; each has its own keeper,
    and the leader's state is that of all.
    """
    loader, step = _loader(model, config, dataset, runtime), Step(model, config, dataset, runtime)
    epochs = config.train.epochs
    at = step.alike(Position() if keeper is None else keeper.restore(step))
    clock, done = time.perf_counter() - at.seconds, at.epoch * len(loader) + at.step
    with (progress or Silent()).task("Training", epochs * len(loader), done) as advance:
        for epoch in range(at.epoch, epochs):
            total = torch.tensor(at.total, device=runtime.device)
            for number, batch in enumerate(loader.epoch(epoch, at.step), at.step + 1):
                step.set_rate(rate(config, epoch, (number - 1) / len(loader)))
                total += step(batch)
                read = number % READ_EVERY == 0 or number == len(loader)
                pause = keeper is not None and number < len(loader) and keeper.due()
                if read or pause or step.watch.reads_freely:
                    step.watch.check(epoch, number)
                advance(**({"epoch": epoch + 1, "loss": float(total) / number} if read else {}))
                if keeper is not None and pause:
                    seconds = time.perf_counter() - clock
                    keeper.save(step, replace(at, epoch=epoch, step=number, total=float(total), seconds=seconds))
            at = Position(epoch + 1, 0, 0.0, (*at.losses, float(total) / len(loader)), time.perf_counter() - clock)
            if log is not None:
                log({"epoch": at.epoch, "loss": at.losses[-1], "lr": step.rate, "seconds": round(at.seconds, 2)})
            if keeper is not None:
                keeper.save(step, at)
    return Fit(at.losses, at.seconds)


def _loader(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> Loader:
    train, facts = dataset.splits["train"], model.backbone.facts
    view = TrainView(config.augment, facts.image_size, facts.interpolation, config.train.epochs, config.seed)
    return Loader(
        dataset.store,
        train,
        view,
        batch_size=config.train.batch_size,
        workers=config.train.workers,
        order=config.sampler.order(train.labels, config.train.epochs, config.seed),
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
