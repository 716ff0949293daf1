"""First rows of the classifier in closed form from pictures, with text or without, and the choice between starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from liftplus.model import closed_form
from liftplus.model.closed_form import BLENDS, LeaveOneOut, Sample, Statistics
from liftplus.model.head_init import (
    ClassMean,
    HeadInit,
    InitContext,
    LinearProbe,
    Semantic,
    Start,
    Stream,
    random_rows,
)
from liftplus.registry import register
from liftplus.words import counted

JUDGED, LEAST = 10_000, 1000
"""Most pictures that are left out in turn to choose gamma; fewer with many classes, but at least `LEAST`."""
EACH = 10
"""Pictures that each chosen class should have among them."""
_WORK = 3e9  # most multiplications (N x C x D) that leaving out may take for each gamma


def sampled(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Ascending positions of at most `most` of the labels: equally many a class, or all that a small class has."""
    order = torch.randperm(len(labels), generator=generator)
    # The first picture of every class comes before the second of any.
    return order[ranks(labels[order]).argsort(stable=True)[:most]].sort()[0]


def ranks(labels: Tensor) -> Tensor:
    """How many of the same label come before each [N]."""
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    out = torch.empty_like(labels)
    out[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return out


def judges(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Ascending positions of at most `most` of the labels, from no more classes than can have `EACH` of them."""
    counts = torch.bincount(labels)
    order = torch.randperm(len(counts), generator=generator)
    classes = order[counts[order] > 1][: max(1, most // EACH)]
    mine = torch.isin(labels, classes).nonzero()[:, 0]
    return mine[sampled(labels[mine], most, generator)]


def observed(context: InitContext, stream: Stream) -> tuple[Statistics, Sample]:
    """Statistics of the features as the head sees them, and some features as the backbone gives them; one pass."""
    classes, dim = len(context.class_names), context.backbone.dim
    most = min(JUDGED, max(LEAST, int(_WORK / (classes * dim))))
    chosen = judges(stream.labels, most, context.generator)
    gathering = closed_form.Gathering(torch.bincount(stream.labels, minlength=classes), dim)
    kept, start = [torch.empty(0, dim)], 0
    for features, labels in stream.batches():
        gathering.add(context.view(features.float()), labels)
        here = chosen[(chosen >= start) & (chosen < start + len(labels))] - start
        kept.append(features[here].float())
        start += len(labels)
    return gathering.statistics(), Sample(torch.cat(kept), stream.labels[chosen])


@register("head_init", "ridge")
class Ridge(HeadInit):
    """Class-balanced ridge regression onto one-hot targets, rows normalised; a class without images gets a random row.

    Unlike class means, it accounts for the spread of the features. Each class counts the same.
    """

    shots: int | None = Field(default=None, ge=1)
    """Most images a class to fit on; null: all of them, in one pass."""

    gamma: float | None = Field(default=None, gt=0)
    """Ridge, in units of the mean eigenvalue of the features' second moment; null: by leave-one-out."""

    def rows(self, context: InitContext) -> Tensor:
        return self.solved(context, *observed(context, context.images(self.shots)))

    def solved(self, context: InitContext, statistics: Statistics, sample: Sample) -> Tensor:
        """The rows from statistics that are gathered already."""
        ridge = closed_form.Ridge(statistics)
        return filled(ridge.rows(self.best(ridge, sample, context)), context)

    def best(self, ridge: closed_form.Ridge, sample: Sample, context: InitContext) -> float:
        """The gamma that was asked for, else that with the best leave-one-out accuracy; of equal ones the greatest."""
        if self.gamma is not None:
            return self.gamma
        left_out = LeaveOneOut(ridge, seen(sample, context))
        return max(closed_form.RIDGES, key=lambda gamma: (left_out.accuracy(gamma), gamma))


def seen(sample: Sample, context: InitContext) -> Sample:
    """A sample as the head sees it."""
    return Sample(context.view(sample.features), sample.labels)


def filled(rows: Tensor, context: InitContext) -> Tensor:
    """Rows as a head takes them, fp32, random ones where pictures gave none."""
    other = random_rows(rows.shape[0], rows.shape[1], context.generator)
    return torch.where(rows.square().sum(1, keepdim=True) > 0, rows.float(), other)


@register("head_init", "mix")
class Mix(Semantic):
    """Text and pictures together: t_c + weight * n_c / (n_c + kappa) * r_c, with r_c the rows of head_init=ridge.

    How much pictures count, and gamma, are chosen by leave-one-out. A class without images has its text alone.
    """

    shots: int | None = Field(default=None, ge=1)
    """Most images a class to fit on; null: all of them, in one pass."""

    kappa: float | None = Field(default=None, ge=0)
    """Number of images at which they have half of their weight; null: by leave-one-out."""

    def of_names(self, context: InitContext) -> Tensor:
        """The unit rows [C, D] that class names alone give."""
        return super().rows(context)

    def rows(self, context: InitContext) -> Tensor:
        texts = self.of_names(context)
        statistics, sample = observed(context, context.images(self.shots))
        ridge = closed_form.Ridge(statistics)
        gamma = Ridge().best(ridge, sample, context)
        left_out = LeaveOneOut(ridge, seen(sample, context), texts)
        blends = [replace(blend, kappa=blend.kappa if self.kappa is None else self.kappa) for blend in BLENDS]
        best = max(dict.fromkeys(blends), key=lambda blend: left_out.accuracy(gamma, blend))
        return best.rows(ridge.rows(gamma), texts, statistics.counts).float()


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


MARGIN = 0.02
"""Another start must beat the ridge, which uses all pictures, by this much and by two standard errors."""
CLASSES, PICTURES = 100, 5000
"""Most classes, and most pictures of them, on which starts are compared."""


@register("head_init", "auto")
class Auto(HeadInit):
    """Ridge, linear_probe or class_mean: whichever is best on training pictures that it has not seen.

    A sample of the pictures is divided into parts, and each part is scored by rows from the other parts. This takes
    seconds. The winner's rows are then made as its own defaults say.
    """

    parts: int = Field(default=3, ge=2)
    """Parts of the sample, each scored by rows from the others."""

    def rows(self, context: InitContext) -> Tensor:
        statistics, sample = observed(context, context.images(None))
        ridge = Ridge()
        contest = _Contest.drawn(context, sample)
        if not len(contest.labels):
            context.notes.append("head_init=auto took ridge: no class has two training images to compare starts on.")
            return ridge.solved(context, statistics, sample)
        right = {init: contest.right(init, self.parts) for init in (ridge, *OTHERS)}
        found: dict[HeadInit, float] = {init: contest.mean(answers)[0] for init, answers in right.items()}
        ahead = {init: contest.mean(right[init] - right[ridge]) for init in OTHERS}
        sure = [init for init in OTHERS if ahead[init][0] > max(MARGIN, 2 * ahead[init][1])]
        best = max(sure, key=lambda init: found[init], default=ridge)
        others = ", ".join(f"{init.name} {100 * found[init]:.1f}" for init in found if init is not best)
        context.notes.append(
            f"head_init=auto took {best.name}: {100 * found[best]:.1f} % right on training images that its rows have "
            f"not seen, mean over classes, against {others} ({counted(len(contest.labels), 'image')})."
        )
        return ridge.solved(context, statistics, sample) if best is ridge else best.rows(context)


OTHERS = (LinearProbe(), ClassMean())


@dataclass(frozen=True)
class _Contest:
    """Features [n, D] and labels [n] of some classes, on which starts are compared."""

    context: InitContext
    features: Tensor
    labels: Tensor

    @classmethod
    def drawn(cls, context: InitContext, sample: Sample) -> _Contest:
        """At most `CLASSES` classes with two or more pictures, and at most `PICTURES` of their pictures."""
        counts = torch.bincount(sample.labels)
        order = torch.randperm(len(counts), generator=context.generator)
        classes = order[counts[order] > 1][:CLASSES].sort()[0]
        number = torch.full_like(counts, -1)
        number[classes] = torch.arange(len(classes))
        mine = (number[sample.labels] >= 0).nonzero()[:, 0]
        chosen = mine[sampled(number[sample.labels[mine]], PICTURES, context.generator)]
        return cls(context, sample.features[chosen], number[sample.labels[chosen]])

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Mean over classes of a value of each picture [n], and its standard error."""
        counts = torch.bincount(self.labels)
        weights = 1 / (counts[self.labels] * len(counts)).double()
        middle = float((weights * values).sum())
        return middle, float((weights * (values - middle)).square().sum().sqrt())

    def right(self, init: HeadInit, parts: int) -> Tensor:
        """1 for each picture that scores best for its class by rows of the other parts, else 0, float64 [n]."""
        part, counts = ranks(self.labels) % parts, torch.bincount(self.labels)
        right = torch.zeros(len(self.labels), dtype=torch.bool)
        for number in range(parts):
            judged = part == number
            rows = init.rows(self._without(judged, len(counts)))
            right[judged] = (self.context.view(self.features[judged]) @ rows.T).argmax(1) == self.labels[judged]
        return right.double()

    def _without(self, judged: Tensor, classes: int) -> InitContext:
        """A context of these classes that has the other pictures only."""
        features, labels = self.features[~judged], self.labels[~judged]

        def few(shots: int) -> tuple[Tensor, Tensor]:
            chosen = ranks(labels) < shots
            return features[chosen], labels[chosen]

        generator = torch.Generator().manual_seed(0)
        return replace(
            self.context, class_names=[""] * classes, features=few, stream=None, generator=generator, notes=[]
        )
