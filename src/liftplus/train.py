"""Build a classifier for a data set and fit it: data, backbone, tuner, head, initialisation, loss, optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Batch, Loader, Shuffled, TrainView, seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluate import Normalise, collect
from liftplus.head_init import InitContext, class_prompts
from liftplus.losses import LossModule
from liftplus.model import Classifier
from liftplus.runtime import Progress, Runtime, Silent

READ_EVERY = 20


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
            backbone, dict(config.tuner), head, class_prompts(config.head_init, dataset.class_names)
        )
    if config.train.epochs and not any(True for _ in model.trainable()):
        raise UserError(
            "Nothing is left to train: the tuner is none and the head is frozen. Use epochs=0, or another tuner."
        )
    runtime.place(model)
    return model


def check(config: RunConfig, dataset: DataSet) -> None:
    """Refuse what cannot work before any long work starts."""
    if "train" not in dataset.splits or not len(dataset.splits["train"]):
        raise UserError(f"Data set {dataset.name!r} has no training images.")
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
        out = collect(
            backbone,
            dataset.store,
            split,
            view,
            backbone.facts,
            runtime,
            batch_size=config.evaluation.batch_size,
            workers=config.train.workers,
            progress=progress,
            label="Features for the first classifier",
        )
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
) -> Fit:
    """Train in place with SGD and a cosine learning rate (METHOD, section Training)."""
    train, facts = dataset.splits["train"], model.backbone.facts
    view = TrainView(config.augment, facts.image_size, facts.interpolation, config.train.epochs, config.seed)
    loader = Loader(
        dataset.store,
        train,
        view,
        batch_size=config.train.batch_size,
        workers=config.train.workers,
        order=Shuffled(len(train), config.seed),
        pin=runtime.device.type == "cuda",
    )
    step = Step(model, config, dataset, runtime)
    started, losses = time.perf_counter(), []
    with (progress or Silent()).task("Training", config.train.epochs * len(loader)) as advance:
        for epoch in range(config.train.epochs):
            total, seen = torch.zeros((), device=runtime.device), 0
            for number, batch in enumerate(loader.epoch(epoch)):
                step.set_rate(rate(config, epoch, number / len(loader)))
                total += step(batch)
                seen += 1
                if (number + 1) % READ_EVERY == 0 or number + 1 == len(loader):
                    advance(epoch=epoch + 1, loss=finite(total / seen, epoch, number, step.rate))
                else:
                    advance()
            losses.append(float(total / seen))
            if log is not None:
                log(
                    {
                        "epoch": epoch + 1,
                        "loss": losses[-1],
                        "lr": step.rate,
                        "seconds": round(time.perf_counter() - started, 2),
                    }
                )
    return Fit(tuple(losses), time.perf_counter() - started)


def rate(config: RunConfig, epoch: int, share: float) -> float:
    """Cosine decay to 0 over the epochs; `share` of the epoch counts only where the schedule goes by step."""
    done = (epoch + (share if config.train.schedule == "step" else 0.0)) / config.train.epochs
    return config.train.lr * (1 + math.cos(math.pi * done)) / 2


def finite(loss: Tensor, epoch: int, number: int, lr: float) -> float:
    """The mean loss so far, or an error that says where it broke."""
    value = float(loss)
    if not math.isfinite(value):
        raise UserError(
            f"The loss became {value} in epoch {epoch + 1}, by step {number + 1}, at learning rate {lr:g}. "
            "Lower train.lr, or use precision=fp32."
        )
    return value


class Step:
    """One optimiser step: normalise, forward, loss, backward, update; returns the loss, still on the device."""

    def __init__(self, model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self.micro = config.train.micro_batch or config.train.batch_size
        self.loss: LossModule = (
            config.loss.for_head(config.head).build(torch.tensor(dataset.counts())).to(runtime.device, torch.float32)
        )
        self.normalise = Normalise(model.backbone.facts).to(runtime.device)
        self.parameters = list(model.trainable())
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=config.train.lr, momentum=config.train.momentum, weight_decay=config.train.weight_decay
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.checked = False

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return float(self.optimiser.param_groups[0]["lr"])

    def set_rate(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr

    def __call__(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.runtime.device)
        size = len(batch.labels)
        pieces = zip(batch.images.split(self.micro), batch.labels.split(self.micro), strict=True)
        for images, labels in pieces:
            images = images.to(self.runtime.device, non_blocking=True)
            labels = labels.to(self.runtime.device, non_blocking=True)
            with self.runtime.autocast():
                logits = self.model(self.normalise(images))
            # Weighted by its size, a short last piece counts as it does in the whole batch.
            loss = self.loss(logits, labels) * (len(labels) / size)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        if not self.checked:
            self._check_gradients()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _check_gradients(self) -> None:
        silent = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if silent:
            raise AssertionError(f"trainable weights without a gradient after the first step: {silent}")
        self.checked = True


def trained_parameters(model: nn.Module) -> int:
    """Number of trainable weights, the head's included."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
