"""recipe=auto: settings for data of any size, chosen from the number of training pictures.

The papers' presets were made for 100,000 pictures in batches of 128. Fewer pictures give too few updates, so the batch
shrinks with the square root of their number, the rate with the cube root of the batch, and few pictures are passed over
more often. What a rate does to a backbone is measured (`safeguard`). docs/recipe.md says how the rule came about and on
which data it was checked.
"""

from __future__ import annotations

import math
import time
from functools import reduce
from operator import getitem
from typing import Any

from liftplus.config import RunConfig, from_dict, placed, published
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.machine.progress import Progress
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training import loop, rate_search, time_limit
from liftplus.words import counted

LARGE = 100_000
"""From this many training pictures on, the published batch and rate are used."""
BATCHES = (16, 128)
MOST_EPOCHS = 30
SEEN = 16_000
"""Pictures that training passes over at least, each counted in every epoch, as far as `MOST_EPOCHS` allows."""
ESTIMATED = 100
"""From this many optimiser steps on, a run's length is predicted by timing a few steps."""
WIDTH = 8
"""Least width of a bottleneck: a single unit can be dead."""


def usual(source: str | None) -> str:
    """The default recipe of data: paper for a benchmark's name, auto for all other data."""
    return "paper" if source in sources.KNOWN else "auto"


def settled(config: RunConfig, dataset: DataSet) -> RunConfig:
    """The configuration with the settings that follow from the size of the data; what was given stays."""
    count = len(dataset.splits["train"]) if "train" in dataset.splits else 0
    small = count < LARGE
    batch = batch_size(count) if "train.batch_size" in config.automatic else config.train.batch_size
    chosen: dict[str, Any] = {
        "train.batch_size": batch,
        "train.epochs": epochs(config.train.epochs, count),
        "train.lr": published(config).train.lr * factor(batch),
        "train.schedule": "step" if small else "epoch",
        "train.scale_rates": True,
        "train.go_back": True,
        "tuner.adaptformer.min_width": WIDTH if small else 1,
        "tuner.adapter.min_width": WIDTH if small else 1,
        "head_init": _start(config, dataset, small),
    }
    return _with(config, {key: value for key, value in chosen.items() if key in config.automatic})


def _start(config: RunConfig, dataset: DataSet, small: bool) -> dict[str, Any]:
    """The start: from names and pictures (names alone for large data), or from pictures where no names are read."""
    if config.head_init.name in ("class_mean", "auto") or not dataset.named:
        return {"name": "auto"}
    return {"name": "mix"} if small else {"name": "semantic"}


def timed(
    config: RunConfig,
    dataset: DataSet,
    model: Classifier,
    runtime: Runtime,
    began: float,
    progress: Progress | None = None,
) -> tuple[RunConfig, float | None]:
    """The configuration with as many epochs as fit into `train.minutes`, and the seconds that the run will take.

    Both follow from timing a few steps; the model is left as it was. A short run without `train.minutes` is not timed.
    If there is time for more than `MOST_EPOCHS`, three rates are tried on a part of the training pictures.

    Args:
        began: start of the time that counts, by `time.perf_counter`.

    Raises:
        UserError: not even one epoch fits.
    """
    pictures = len(dataset.splits["train"])
    limited = config.train.minutes is not None and "train.epochs" in config.automatic
    steps = config.train.epochs * pictures / config.train.batch_size
    if not limited and (not sentences(config, dataset) or steps < ESTIMATED):
        return config, None
    a_picture = loop.seconds_a_picture(model, config, dataset, runtime)
    if limited:
        fitting = _fitting(config, dataset, runtime, a_picture, began)
        first = rate_search.epochs(pictures, fitting - MOST_EPOCHS) if "train.lr" in config.automatic else 0
        if first:
            rate, found = rate_search.best(config, dataset, runtime, first, progress)
            config, model.notes = _with(config, {"train.lr": rate}), (*model.notes, found)
            fitting = _fitting(config, dataset, runtime, a_picture, began)
        config = _with(config, {"train.epochs": min(MOST_EPOCHS, int(fitting))})
    whole = a_picture * pictures * config.train.epochs + time_limit.testing(config, dataset, a_picture)
    return config, whole


def _fitting(config: RunConfig, dataset: DataSet, runtime: Runtime, a_picture: float, began: float) -> float:
    """Epochs that there is still time for; fewer than one is refused."""
    spent = max(runtime.job.from_all(time.perf_counter() - began))
    fitting = time_limit.epochs(config, dataset, a_picture, spent, time_limit.PLANNED)
    if fitting < 1:
        epoch, test = a_picture * len(dataset.splits["train"]), time_limit.testing(config, dataset, a_picture)
        raise UserError(
            f"One epoch takes {_minutes(epoch)} here and the test {_minutes(test)}, which train.minutes="
            f"{config.train.minutes:g} has no room for. Give more minutes, fewer pictures, or a smaller backbone "
            "or image_size."
        )
    return fitting


def _minutes(seconds: float) -> str:
    """A time in words, to two digits."""
    return f"{seconds:.2g} s" if seconds < 100 else f"{float(f'{seconds / 60:.2g}'):g} min"


def as_begun(config: RunConfig, begun: RunConfig) -> RunConfig:
    """The configuration with what was chosen when its run began."""
    values, kept = begun.to_dict(), set(config.automatic) & set(begun.automatic)
    return _with(config, {key: reduce(getitem, key.split("."), values) for key in kept})


def batch_size(pictures: int) -> int:
    """The power of two next to 128 sqrt(n / 100,000), from 16 to 128."""
    least, most = BATCHES
    wanted = most * math.sqrt(max(pictures, 1) / LARGE)
    return min(most, max(least, 2 ** round(math.log2(wanted))))


def epochs(published: int, pictures: int) -> int:
    """The published number, or as many as `SEEN` pictures take, but at most 30; 0 stays 0."""
    return published and max(published, min(MOST_EPOCHS, math.ceil(SEEN / max(pictures, 1))))


def factor(batch: int) -> float:
    """Factor of the published rate, that of batch 128: the cube root of batch / 128, at most 1, two digits."""
    return float(f"{min(1.0, (batch / BATCHES[1]) ** (1 / 3)):.2g}")


def _with(config: RunConfig, chosen: dict[str, Any]) -> RunConfig:
    """The configuration with values at dotted keys."""
    values = config.to_dict()
    for key, value in chosen.items():
        values = placed(values, key.split("."), value)
    return from_dict(values)


def sentences(config: RunConfig, dataset: DataSet, seconds: float | None = None) -> list[str]:
    """Sentences on what was chosen and why, for the user to read before training; none where nothing was chosen.

    Args:
        seconds: how long the run will take, where that was measured.
    """
    train = config.train
    parts = {
        "train.batch_size": f"batch {train.batch_size}",
        "train.epochs": counted(train.epochs, "epoch"),
        "train.lr": f"lr {train.lr:.2g}",
        "head_init": f"head_init {config.head_init.name}",
    }
    if not train.epochs:  # the others are of training
        parts = {"head_init": parts["head_init"]}
    if not config.automatic or not parts.keys() & set(config.automatic):
        return []
    chosen = ", ".join(text for key, text in parts.items() if key in config.automatic or key == "train.epochs")
    chosen += "" if seconds is None else f", about {_minutes(seconds)}"
    pictures = len(dataset.splits["train"])
    said = [
        f"{counted(pictures, 'training picture')}, {dataset.num_classes} classes: {chosen}. "
        "recipe=paper takes the published values."
    ]
    if "head_init" in config.automatic and not dataset.named:
        said.append("The classes have no names, so the classifier starts from pictures alone; class_names gives names.")
    return said
