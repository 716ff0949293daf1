"""First rows of the classifier in closed form from pictures, with text or without, and the choice between starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from liftplus import closed_form
from liftplus.closed_form import LeaveOneOut, Sample, Statistics
from liftplus.head_init import (
    ClassMean,
    HeadInit,
    InitContext,
    LinearProbe,
    Start,
    Stream,
    random_rows,
)
from liftplus.registry import register

JUDGED = 10_000
"""Most pictures that are left out in turn to choose gamma; of many more some of each class are taken."""
_WORK = 3e9  # multiplications of N x C x D that leaving out may take for each gamma


def sampled(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Ascending positions of at most `most` of the labels: as many of each class as fit, those of small classes all."""
    order = torch.randperm(len(labels), generator=generator)
    # Everybody's first picture goes before anybody's second.
    taken: Tensor = order[ranks(labels[order]).argsort(stable=True)[:most]].sort()[0]
    return taken


def ranks(labels: Tensor) -> Tensor:
    """How many of the same label come before each [N]."""
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    out = torch.empty_like(labels)
    out[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return out


def observed(context: InitContext, stream: Stream) -> tuple[Statistics, Sample]:
    """Statistics of the features as the head sees them, and some of these features, from one pass."""
    classes, dim = len(context.class_names), context.backbone.dim
    most = min(JUDGED, max(1000, int(_WORK / (classes * dim))))
    chosen = sampled(stream.labels, most, context.generator)
    gathering = closed_form.Gathering(torch.bincount(stream.labels, minlength=classes), dim)
    kept, start = [torch.empty(0, dim)], 0
    for features, labels in stream.batches():
        features = context.view(features.float())
        gathering.add(features, labels)
        here = chosen[(chosen >= start) & (chosen < start + len(labels))] - start
        kept.append(features[here])
        start += len(labels)
    return gathering.statistics(), Sample(torch.cat(kept), stream.labels[chosen])


@register("head_init", "ridge")
class Ridge(HeadInit):
    """Class-balanced ridge regression onto one-hot targets, rows normalised; a class without images gets a random row.

    It knows how the classes' features spread, which class means do not, and each class counts the same.
    """

    shots: int | None = Field(default=None, ge=1)
    """Most images a class to fit on; null: all of them, in one pass."""

    gamma: float | None = Field(default=None, gt=0)
    """Ridge, in units of the mean eigenvalue of the features' second moment; null: by leave-one-out."""

    def rows(self, context: InitContext) -> Tensor:
        statistics, sample = observed(context, context.images(self.shots))
        ridge = closed_form.Ridge(statistics)
        return filled(ridge.rows(self.best(ridge, sample)), context)

    def best(self, ridge: closed_form.Ridge, sample: Sample) -> float:
        """The gamma that was asked for, else that with the best leave-one-out accuracy; of equal ones the greatest."""
        if self.gamma is not None:
            return self.gamma
        left_out = LeaveOneOut(ridge, sample)
        return max(closed_form.RIDGES, key=lambda gamma: (left_out.accuracy(gamma), gamma))


def filled(rows: Tensor, context: InitContext) -> Tensor:
    """Rows as a head takes them, fp32, random ones where pictures gave none."""
    other = random_rows(rows.shape[0], rows.shape[1], context.generator)
    return torch.where(rows.square().sum(1, keepdim=True) > 0, rows.float(), other)


@register("head_init", "lda")
class Discriminants(HeadInit):
    """Gaussian discriminants with one shrunk covariance and equal priors, for a head with a bias."""

    needs_bias: ClassVar[bool] = True

    shots: int | None = Field(default=None, ge=1)
    """Most images a class to fit on; null: all of them, in one pass."""

    def rows(self, context: InitContext) -> Tensor:
        return self.start(context).rows

    def start(self, context: InitContext) -> Start:
        statistics, _ = observed(context, context.images(self.shots))
        weights, biases = closed_form.discriminants(statistics)
        return Start(weights.float(), biases.float())


@register("head_init", "auto")
class Auto(HeadInit):
    """The start that judges training pictures best which it has not seen: class_mean, ridge or linear_probe.

    Some pictures of some classes are put into parts; each part is judged by the rows that the others give. This takes
    seconds. The winner then starts from all that its own defaults take.
    """

    parts: int = Field(default=3, ge=2)
    """Parts of the pictures, each judged by the rows of the others."""

    def rows(self, context: InitContext) -> Tensor:
        candidates: tuple[HeadInit, ...] = (Ridge(), LinearProbe(), ClassMean())
        contest = _contest(context)
        found = [(_out_of_fold(init, contest, self.parts), init) for init in candidates]
        best, chosen = max(found, key=lambda pair: pair[0])
        others = ", ".join(f"{init.name} {100 * accuracy:.1f}" for accuracy, init in found if init is not chosen)
        context.notes.append(
            f"head_init=auto took {chosen.name}: {100 * best:.1f} % of {len(contest.labels):,} training pictures are "
            f"right by rows that have not seen them, mean over classes ({others})."
            if math.isfinite(best)
            else f"head_init=auto took {chosen.name}, as no class has two training pictures to compare starts on."
        )
        return chosen.rows(context)


@dataclass(frozen=True)
class _Contest:
    """Features [n, D] and labels [n] of some classes, on which starts are compared."""

    context: InitContext
    features: Tensor
    labels: Tensor

    def among(self, chosen: Tensor) -> InitContext:
        """A context of these classes that has only the chosen pictures."""

        def few(shots: int) -> tuple[Tensor, Tensor]:
            return self.features[chosen], self.labels[chosen]

        names = [""] * (int(self.labels.max()) + 1)
        generator = torch.Generator().manual_seed(0)
        return replace(self.context, class_names=names, features=few, stream=None, generator=generator)


CLASSES, PICTURES = 100, 3000
"""Most classes, and most pictures of them, on which starts are compared."""


def _contest(context: InitContext) -> _Contest:
    """Long-tailed as the training pictures are, as far as a class mean's own limit of pictures leaves them so."""
    features, labels = context.features(ClassMean().shots)
    counts = torch.bincount(labels)
    order = torch.randperm(len(counts), generator=context.generator)
    classes = order[counts[order] > 1][:CLASSES].sort()[0]
    number = torch.full_like(counts, -1)
    number[classes] = torch.arange(len(classes))
    mine = (number[labels] >= 0).nonzero()[:, 0]
    chosen = mine[sampled(number[labels[mine]], PICTURES, context.generator)] if len(mine) else mine
    return _Contest(context, features[chosen].float(), number[labels[chosen]])


def _out_of_fold(init: HeadInit, contest: _Contest, parts: int) -> float:
    """Mean over classes of the share of pictures that score best by rows of the other parts; nan without any."""
    labels = contest.labels
    if not len(labels):
        return math.nan
    part = ranks(labels) % parts
    right = torch.zeros(len(labels), dtype=torch.bool)
    for number in range(parts):
        judged = part == number
        rows = init.rows(contest.among((~judged).nonzero()[:, 0]))
        right[judged] = (contest.context.view(contest.features[judged]) @ rows.T).argmax(1) == labels[judged]
    per_class = torch.bincount(labels[right], minlength=int(labels.max()) + 1) / torch.bincount(labels)
    return float(per_class.mean())
