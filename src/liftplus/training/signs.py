"""Signs of a poor fit, shown at the end of a run, each with the one setting to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.data.loader import seeded
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.evaluation.metrics import Metrics
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training.safeguard import Probe
from liftplus.tuners.bottleneck import Bottleneck
from liftplus.words import agreeing, counted

PICTURES = 512
HELD_OUT = ("val", "test")
"""Splits to measure on, the preferred first."""
FALLING = 0.1
"""Share of the loss that the last epoch may take off before it counts as still falling."""


@dataclass(frozen=True)
class Snapshot:
    """Accuracies of a model at one moment, with one crop.

    Attributes:
        split: split of the held-out pictures: val, or test where there is no val; None without either.
        held_out: accuracy on up to 512 pictures of it, in percent.
        pictures: number of these pictures.
        training: accuracy on a few training pictures, in percent.
        mean_class: the mean over classes of the accuracy on the held-out pictures, in percent.
        weights: of the backbone's image tower.
    """

    split: str | None
    held_out: float | None
    pictures: int
    training: float
    mean_class: float | None = None
    weights: int | None = None


def snapshot(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> Snapshot:
    """The model's accuracies now; the same pictures at every snapshot of a run."""
    training = runtime.job.from_leader(lambda: 100 * Probe(model, config, dataset, runtime).accuracy())
    split = next((name for name in HELD_OUT if len(dataset.splits.get(name, ()))), None)
    if split is None:
        return Snapshot(None, None, 0, training)
    whole = dataset.splits[split]
    chosen = torch.randperm(len(whole), generator=seeded(config.seed, -4))[:PICTURES].tolist()
    part = whole.taken(chosen)
    plain = config.evaluation.model_copy(update={"tte": False})
    found = predict(model, SplitReader(dataset.store, part, config.train.workers), plain, model.backbone.facts, runtime)
    metrics = score(found, part, tuple(dataset.counts()))
    weights = sum(p.numel() for p in model.backbone.image.parameters())
    return Snapshot(split, metrics.overall, len(part), training, metrics.mean_class, weights)


def below_start(before: Snapshot, after: Snapshot) -> str | None:
    """The sign that a run ended below its own start, which is no success; None otherwise."""
    if before.held_out is None or after.held_out is None or after.held_out >= before.held_out:
        return None
    return (
        f"This run ended below its own start: {after.held_out:.1f} % against {before.held_out:.1f} % before training, "
        f"on {counted(after.pictures, f'{after.split} picture')} with one crop."
    )


def of_training(config: RunConfig, losses: Sequence[float], before: Snapshot, after: Snapshot) -> list[str]:
    """Signs in the losses and in the snapshots before and after training, one sentence each."""
    said, train = [], config.train
    lower, more = f"Try lr={train.lr / 4:g}.", longer(config)
    if worse := below_start(before, after):
        return [f"{worse} {lower}"]
    if before.held_out is not None and after.held_out is not None:
        share = (before.held_out + after.held_out) / 200
        noise = 200 * math.sqrt(2 * share * (1 - share) / after.pictures)
        if before.held_out < 100 and after.held_out - before.held_out <= noise:
            said.append(
                f"Training gained little: {before.held_out:.1f} % before it, {after.held_out:.1f} % after, on "
                f"{counted(after.pictures, f'{after.split} picture')} with one crop. Try another --backbone."
            )
    if len(losses) > 1 and losses[-2] - losses[-1] > FALLING * losses[-1]:
        said.append(f"The loss was still falling ({losses[-2]:.3g} to {losses[-1]:.3g} in the last epoch). {more}")
    if after.training < before.training - 5:
        said.append(
            f"Accuracy on training pictures fell: {after.training:.0f} % after training, {before.training:.0f} % "
            f"before. {lower}"
        )
    return said


def longer(config: RunConfig) -> str:
    """The setting that trains for twice as long."""
    minutes = config.train.minutes
    return f"Try epochs={2 * config.train.epochs}." if minutes is None else f"Try train.minutes={2 * minutes:g}."


def of_test(config: RunConfig, metrics: Metrics | None) -> list[str]:
    """A sign if no test picture of the classes with few training pictures is right."""
    if metrics is None or metrics.few != 0:
        return []
    return [f"Accuracy on classes with under 20 training pictures is 0 %. {longer(config)}"]


def of_units(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> list[str]:
    """A sign if a quarter or more of the hidden units respond to none of a few training pictures."""
    active: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, _args: object, out: Tensor) -> None:
        now = (out.detach().flatten(0, -2) > 0).any(0)
        active[layer] = active[layer] | now if layer in active else now

    layers = [part.down for part in model.modules() if isinstance(part, Bottleneck)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        Probe(model, config, dataset, runtime).logits()
    finally:
        for handle in handles:
            handle.remove()
    units = sum(len(found) for found in active.values())
    dead = units - sum(int(found.sum()) for found in active.values())
    if dead * 4 < units or not units:
        return []
    wider = 2 * max(layer.out_features for layer in layers)
    name = next(iter(config.tuner))
    return [
        f"{dead} of {units} units of the light modules {agreeing(dead, 'is', 'are')} inactive for every picture. Try "
        f"tuner.{name}.width={wider}."
    ]
