"""A row for a class that comes after training: ridge regression in the tuned feature space, fitted to the old rows.

Trained rows have other cosines with their pictures than rows in closed form. How the new row has to lie so that it
takes its own pictures and leaves those of the old classes alone is found by playing it through: old classes are taken
out in turn and come back from as few pictures as the new class has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus.closed_form import RIDGES, Gathering, Ridge, Sample, Statistics

EPISODES = 20
"""Most old classes that are taken out and come back."""
HARM = 0.004
"""Most that the mean accuracy of the old classes may lose when one comes back, 0 to 1."""
WEIGHTS = (1.0, 4.0, 16.0)
"""What is tried as the weight of the pictures' row beside the text's."""


@dataclass(frozen=True)
class Choice:
    """How a row is made.

    Attributes:
        ridge: gamma in units of the mean eigenvalue.
        weight: of the pictures' unit row beside the text's; None: no text.
    """

    ridge: float = 0.1
    weight: float | None = None


@dataclass(frozen=True)
class Old:
    """What is known of the old classes: unit rows [C, D], some of their features [N, D] with labels [N], fp64.

    Attributes:
        texts: unit rows of their names [C, D], where names are read.
    """

    rows: Tensor
    sample: Sample
    texts: Tensor | None = None


def gathered(features: Tensor, labels: Tensor | None = None, classes: int = 1) -> Statistics:
    """Statistics of features that are all here; of one class where there are no labels."""
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    gathering = Gathering(torch.bincount(labels, minlength=classes), features.shape[1])
    gathering.add(features, labels)
    return gathering.statistics()


def rows(background: Statistics, features: Tensor, text: Tensor | None, choices: Sequence[Choice]) -> Tensor:
    """Unit rows [choices, D] of a class with these features [n, D] beside the background's classes."""
    ridge = Ridge(background + gathered(features))
    by_gamma = {gamma: ridge.rows(gamma)[-1] for gamma in {choice.ridge for choice in choices}}
    out = []
    for choice in choices:
        row = by_gamma[choice.ridge]
        out.append(row if text is None or choice.weight is None else text.double() + choice.weight * row)
    return F.normalize(torch.stack(out), dim=-1)


def choices(with_text: bool) -> list[Choice]:
    """What is tried."""
    return [Choice(ridge, weight) for weight in (None, *(WEIGHTS if with_text else ())) for ridge in RIDGES]


def choose(old: Old, pictures: int) -> Choice:
    """The choice by which most pictures of the classes that come back are right, while the others lose little.

    Without a class of two or more pictures nothing can be played through, and the default is taken.
    """
    tried = choices(old.texts is not None)
    played = [_played(old, c, mine, rest, tried) for c, mine, rest in _episodes(old.sample.labels, pictures)]
    if not played:
        return Choice()
    found, harm = (torch.stack(list(part)).mean(0) for part in zip(*played, strict=True))
    harmless = harm <= max(HARM, float(harm.min()))
    return tried[int(torch.where(harmless, found, -1.0).argmax())]


def _episodes(labels: Tensor, pictures: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Old classes, the positions of the pictures that they come back from, and of their others."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(labels)
    order = torch.randperm(len(counts), generator=generator)
    order = order[counts[order] > 1]
    # Classes that have enough first, in random order.
    for c in order[(counts[order] <= pictures).int().argsort(stable=True)][:EPISODES].tolist():
        own = (labels == c).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        few = min(pictures, len(own) - 1)
        yield c, own[:few], own[few:]


def _played(old: Old, c: int, mine: Tensor, rest: Tensor, tried: Sequence[Choice]) -> tuple[Tensor, Tensor]:
    """For each choice the share of the class's other pictures that are right [choices], and what others lose."""
    x, y = old.sample.features.double(), old.sample.labels
    others = y != c
    background = gathered(x[others], y[others], len(old.rows))
    made = rows(background, x[mine], None if old.texts is None else old.texts[c], tried)
    return taken(x[rest], made, old.rows, c), harm(old, made, c)


def taken(features: Tensor, new: Tensor, old_rows: Tensor, without: int | None = None) -> Tensor:
    """Share of features [n, D] that score higher with each new row [k, D] than with every old one, [k]."""
    best = _best(features, old_rows, without)[0]
    return (features.double() @ new.T > best[:, None]).double().mean(0)


def harm(old: Old, new: Tensor, without: int | None = None) -> Tensor:
    """What the mean accuracy of the old classes in the sample loses to each new row [k, D], 0 to 1, [k]."""
    x, y = old.sample.features.double(), old.sample.labels
    keep = torch.ones_like(y, dtype=torch.bool) if without is None else y != without
    x, y = x[keep], y[keep]
    best, where = _best(x, old.rows, without)
    lost = ((where == y)[:, None] & (x @ new.T > best[:, None])).double()
    counts = torch.bincount(y, minlength=len(old.rows)).double()
    per_class = torch.zeros(len(counts), lost.shape[1], dtype=torch.float64).index_add_(0, y, lost)
    there = counts > 0
    return (per_class[there] / counts[there, None]).mean(0)


def _best(features: Tensor, old_rows: Tensor, without: int | None) -> tuple[Tensor, Tensor]:
    scores = features.double() @ old_rows.double().T
    if without is not None:
        scores[:, without] = -torch.inf
    best, where = scores.max(1)
    return best, where
