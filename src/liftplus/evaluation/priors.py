"""Adapt a trained model's logits to the class prior where the model is used.

Training makes softmax(z + a) the posterior p(k | x) under the prior of training, e. Here a is what the loss adds to the
logits z, and e_k is how often the sampler showed class k, times the loss's weight of it. By Bayes' rule the posterior
under another prior p is softmax(z + a - log e + log p) (Menon et al. 2021, section 3). For logit_adjusted with tau = 1
this is softmax(z + log p), so its plain logits are those for the uniform prior.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liftplus.config import RunConfig
from liftplus.data import documents
from liftplus.data.samplers import Resampler
from liftplus.data.transforms import progress_of
from liftplus.errors import UserError, unknown
from liftplus.model.losses import class_prior

RULED_OUT = -1e4
"""Stands for log 0: the class gets probability 0 in fp32, and sums stay finite."""

FORM = 'a JSON file {"class name": count or share, ...} with every class; 0 means that a class never occurs'


def shift(config: RunConfig, class_names: Sequence[str], train_counts: Sequence[int], given: str) -> Tensor | None:
    """The shift [C], fp32, to add to the logits for a prior; None for "as_trained".

    Args:
        train_counts: training pictures of each class [C].
        given: "as_trained", "training", "uniform", or the path of a JSON file.

    Raises:
        UserError: the file cannot be read or does not give every class a number from 0.
    """
    if given == "as_trained":
        return None
    wanted = in_use(class_names, train_counts, given)
    if wanted is None:
        return None
    return (wanted + _likelihood(config, class_names, torch.tensor(train_counts))).float()


def in_use(class_names: Sequence[str], train_counts: Sequence[int], given: str) -> Tensor | None:
    """Log of the prior [C], fp64, that is expected in use; None for "as_trained". Arguments are as for `shift`."""
    if given == "as_trained":
        return None
    if given == "training":
        return class_prior(torch.tensor(train_counts)).log()
    if given == "uniform":
        return torch.full((len(train_counts),), -math.log(len(train_counts)), dtype=torch.float64)
    return _given(given, class_names)


def stood_for(config: RunConfig, class_names: Sequence[str], train_counts: Sequence[int], given: str) -> Tensor:
    """Log of the prior [C], fp64, that the logits stand for once they have the shift for `given`."""
    wanted = in_use(class_names, train_counts, given)
    found = -_likelihood(config, class_names, torch.tensor(train_counts)) if wanted is None else wanted
    return found.log_softmax(0)


def note(config: RunConfig, given: str) -> str | None:
    """A warning if the loss has no exact relation between its logits and the posterior; else None."""
    if given == "as_trained" or not config.train.epochs or config.loss.gives_posterior:
        return None
    return (
        f"The logits of loss={config.loss.name} are not exact log posteriors. The prior {given!r} is applied as for "
        "cross_entropy, which is an approximation. Check the result on data with this prior."
    )


def _likelihood(config: RunConfig, class_names: Sequence[str], counts: Tensor) -> Tensor:
    """a - log e [C], fp64, which turns logits into log p(x | k). It is 0 for an untrained (zero-shot) model."""
    if not config.train.epochs:
        return torch.zeros(len(counts), dtype=torch.float64)
    loss = config.loss.build(counts, class_names)
    weights = loss.image_weights(torch.arange(len(counts)), torch.float64)
    seen = _shown(config, counts) * weights
    return loss.added(len(counts)) - (seen / seen.sum()).log()


def _shown(config: RunConfig, counts: Tensor) -> Tensor:
    """The share of training images shown of each class [C]. A class without images counts as one image."""
    prior, sampler, epochs = class_prior(counts), config.sampler, config.train.epochs
    if not isinstance(sampler, Resampler):
        return prior
    present = counts.double().clamp_min(1)
    shares = [sampler.probabilities(present, progress_of(epoch, epochs)) for epoch in range(epochs)]
    return torch.stack([share / share.sum() for share in shares]).mean(0)


def _given(path: str, class_names: Sequence[str]) -> Tensor:
    """log p [C] from a file of counts by class name. Class names must be unique."""
    try:
        table = documents.json_value(documents.text(documents.place(path), "file"), path, distinct=True)
    except UserError as error:
        raise UserError(
            f"The prior {path!r} cannot be read as a file ({error}) Give as_trained, training, uniform, or {FORM}."
        ) from error
    if not isinstance(table, dict):
        raise UserError(f"The prior in {path!r} is a {type(table).__name__}. Give {FORM}.")
    for name in table:
        if name not in class_names:
            raise unknown(f"class in the prior {path!r}:", name, set(class_names))
    if twice := [name for name, times in Counter(class_names).items() if times > 1]:
        raise UserError(
            f"Several classes are called {twice[0]!r}, so the counts by name in {path!r} are ambiguous. Give the "
            "classes different names with data.class_names, or use as_trained, training or uniform."
        )
    missing = [name for name in class_names if name not in table]
    if missing:
        raise UserError(
            f"The prior in {path!r} lacks {len(missing)} of {len(class_names)} classes: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}. Give {FORM}."
        )
    for name, value in table.items():
        if not _is_count(value):
            raise UserError(f"The prior of {name!r} in {path!r} is {value!r}. Give a number of at least 0.")
    values = torch.tensor([float(table[name]) for name in class_names], dtype=torch.float64)
    if not values.sum() > 0:
        raise UserError(f"The prior in {path!r} is 0 for every class. Give at least one class a count.")
    logs = (values / values.sum()).log()
    return logs.masked_fill(values == 0, RULED_OUT)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
