"""Build a classifier for a data set: backbone, tuner, head, and the head's first rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation.features import Cache, image_features, text_features
from liftplus.evaluation.inference import SplitReader
from liftplus.machine.determinism import own_stream
from liftplus.machine.progress import Progress
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.head_init import InitContext, Stream, centres, class_prompts
from liftplus.training import layer_decay, patch_dropout, selection, tracking

AT_ONCE = 65_536
"""Most training images whose features are in memory at once, for a start that reads all of them."""


def build(
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Classifier:
    """The classifier with its head initialised, on the device, ready for the first step.

    Args:
        cache: where features are kept; by default as `config.cache` says.

    Raises:
        UserError: the settings do not fit the data or each other, nothing is left to train, or features are not finite.
    """
    check(config, dataset)
    cache = cache or Cache.of(config.cache, runtime.job)
    backbone = catalogue.load(config.backbone)
    patch_dropout.check(backbone, config.train.keep)
    runtime.place(backbone)
    with own_stream(config.seed):
        head = config.head.build(backbone, dataset.num_classes)
        plain = partial(plain_stream, config, dataset, backbone, runtime, cache, progress)
        context = InitContext(
            backbone,
            dataset.class_names,
            lambda shots: next(plain(at_once=sys.maxsize)(shots).batches()),
            seeded(config.seed, -1),
            None if backbone.text is None else partial(text_features, cache, backbone.text, backbone.identity, runtime),
            plain(),
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
    """Logits of one made-up picture: a start from names alone has not run the image tower yet."""
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
    """Refuse settings that cannot work, before any long work starts."""
    if "train" not in dataset.splits or not len(dataset.splits["train"]):
        raise UserError(f"Data set {dataset.name!r} has no training images. Give data with a train split.")
    tracking.require(config.track)
    selection.check(config, dataset)
    layer_decay.check(config)
    config.loss.class_weight_tensor(dataset.class_names)
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


def plain_stream(
    config: RunConfig,
    dataset: DataSet,
    backbone: Backbone,
    runtime: Runtime,
    cache: Cache,
    progress: Progress | None,
    at_once: int = AT_ONCE,
) -> Callable[[int | None], Stream]:
    """A function that gives bare features of at most k training images a class, or of all: short side, centre crop R.

    Args:
        at_once: most images whose features are in memory at once.
    """
    train, view = dataset.splits["train"], CentreCrop(backbone.facts.image_size, backbone.facts.interpolation, margin=0)

    def part(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        split = train.taken(chosen)
        reader = SplitReader(
            dataset.store, split, config.train.workers, progress, label="Features for the first classifier"
        )
        out = image_features(cache, backbone, reader, view, runtime, config.evaluation.batch_size)
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
