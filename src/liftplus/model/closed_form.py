"""Classifiers in closed form from streaming statistics of features: class-balanced ridge and linear discriminants.

Everything is float64. N features, C classes, D their width, n_c pictures of class c, mu_c its mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus.errors import UserError

RIDGES = tuple(10 ** (power / 2) for power in range(-8, 5))
"""Values tried for the ridge gamma, in units of the mean eigenvalue of the balanced second moment."""
_ADDED = 8192  # features that are in float64 at once
_PIECE = 256  # features that are scored at once: [256, C] and a few of its like are held


@dataclass(frozen=True)
class Statistics:
    """What closed forms need of the features; it grows with D and C, never with N.

    Attributes:
        counts: n_c, int64 [C].
        sums: sum of each class's features [C, D].
        balanced: sum over classes of (sum of x x^T) / n_c, so that each class counts the same [D, D].
        pooled: sum of x x^T over all features [D, D].
    """

    counts: Tensor
    sums: Tensor
    balanced: Tensor
    pooled: Tensor

    @cached_property
    def means(self) -> Tensor:
        """Mean feature of each class [C, D], 0 where it has none."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def present(self) -> Tensor:
        """Which classes have features, bool [C]."""
        return self.counts > 0

    def __add__(self, more: Statistics) -> Statistics:
        """Statistics of all classes, those of `more` after these, as if all had been there from the start."""
        return Statistics(
            torch.cat([self.counts, more.counts]),
            torch.cat([self.sums, more.sums]),
            self.balanced + more.balanced,
            self.pooled + more.pooled,
        )


class Gathering:
    """Gathers statistics from batches of features [B, D], which are not kept.

    Args:
        counts: how many features of each class there will be [C].
    """

    def __init__(self, counts: Tensor, dim: int) -> None:
        self.counts, self.seen = counts, torch.zeros_like(counts)
        self.sums = torch.zeros(len(counts), dim, dtype=torch.float64)
        self.balanced, self.pooled = (torch.zeros(dim, dim, dtype=torch.float64) for _ in range(2))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch with its labels [B]."""
        self.seen += torch.bincount(labels, minlength=len(self.counts))
        for x, y in zip(features.split(_ADDED), labels.split(_ADDED), strict=True):
            x = x.double()
            self.sums.index_add_(0, y, x)
            self.pooled.addmm_(x.T, x)
            self.balanced.addmm_(x.T, x / self.counts[y, None])

    def statistics(self) -> Statistics:
        """What was gathered, once all features have come."""
        if not torch.equal(self.seen, self.counts):
            raise AssertionError("there are not as many features of each class as was said")
        if not (self.sums.isfinite().all() and self.pooled.isfinite().all()):
            raise UserError("The backbone gives features that are not finite. Use precision=fp32, or other weights.")
        return Statistics(self.counts, self.sums, self.balanced, self.pooled)


@dataclass(frozen=True)
class Sample:
    """Some of the features that statistics hold [N, D], and their labels [N]: those that are left out in turn."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Blend:
    """Rows from texts and pictures together: w_c proportional to t_c + weight * n_c / (n_c + kappa) * r_c.

    t_c and r_c are unit rows; so names alone, few pictures and many have one formula.

    Attributes:
        kappa: number of pictures at which they have half of their weight.
        weight: weight of the pictures' row beside the text's, in the limit of many pictures.
    """

    kappa: float = 0.0
    weight: float = 1.0

    def share(self, counts: Tensor) -> Tensor:
        """Factor of the pictures' row, by their number; 0 without pictures."""
        n = counts.double()
        return self.weight * n / (n + self.kappa).clamp(min=1e-300)

    def rows(self, pictures: Tensor, texts: Tensor, counts: Tensor) -> Tensor:
        """Unit rows [C, D] from unit rows of both and the classes' numbers of pictures [C]."""
        return F.normalize(texts.double() + self.share(counts)[:, None] * pictures, dim=-1)


BLENDS = tuple(Blend(kappa, weight) for weight in (1, 4, 16, 64, 256) for kappa in (0, 1, 4, 16, 64))
"""Blends that are tried."""


class Ridge:
    """Class-balanced ridge regression onto one-hot targets: W = (sum_c A_c / n_c + gamma I)^-1 [mu_1, ..., mu_C].

    A_c is the sum of x x^T over class c. One eigendecomposition serves every gamma.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        values, self.vectors = torch.linalg.eigh(statistics.balanced)
        self.values = values.clamp(min=0)
        self.unit = max(float(self.values.mean()), 1e-300)
        self.turned = statistics.means @ self.vectors

    def weights(self, ridge: float) -> Tensor:
        """W^T [C, D] for gamma = ridge * mean eigenvalue; of any length, 0 for a class without features."""
        return self.turned_weights(ridge) @ self.vectors.T

    def rows(self, ridge: float) -> Tensor:
        """The same with rows of unit length, 0 where a class has no features or none but 0."""
        return F.normalize(self.weights(ridge), dim=-1)

    def turned_weights(self, ridge: float) -> Tensor:
        """The same in the basis of `vectors`."""
        return self.turned / (self.values + ridge * self.unit)


class LeaveOneOut:
    """Scores of a sample of a ridge's features, each by the rows that the ridge would give without it.

    Leaving x of class y out turns W into W + v (x^T W - e_y^T) / (n_y - h), with v = (G + gamma I)^-1 x and h = x^T v:
    exact where every class keeps its weights 1 / n_c.

    Args:
        texts: unit rows of texts [C, D] that the rows are mixed with, or None.
    """

    def __init__(self, ridge: Ridge, sample: Sample, texts: Tensor | None = None) -> None:
        self.ridge, self.labels = ridge, sample.labels
        self.features = sample.features.double() @ ridge.vectors
        self.texts = None if texts is None else texts.double() @ ridge.vectors

    def accuracy(self, ridge: float, blend: Blend | None = None) -> float:
        """Mean over classes with two or more pictures of the share of their sample that scores best, 0 to 1.

        A class of one picture would have none left.
        """
        counts = self.ridge.statistics.counts
        best = torch.cat([scores.argmax(1) for scores in self.scores(ridge, blend or Blend())])
        right = torch.bincount(self.labels[best == self.labels], minlength=len(counts))
        seen = torch.bincount(self.labels, minlength=len(counts))
        judged = (counts > 1) & (seen > 0)
        return float((right[judged] / seen[judged]).mean()) if judged.any() else 0.0

    def scores(self, ridge: float, blend: Blend) -> Iterator[Tensor]:
        """Cosines [B, C] with the blended rows, or those of the ridge alone, in pieces; -inf for no row."""
        counts, weights = self.ridge.statistics.counts, self.ridge.turned_weights(ridge)
        squares, texts = weights.square().sum(1), self.texts
        for x, y in zip(self.features.split(_PIECE), self.labels.split(_PIECE), strict=True):
            own = (torch.arange(len(y)), y)
            v = x / (self.ridge.values + ridge * self.ridge.unit)
            reach = (x * v).sum(1, keepdim=True)
            change = x @ weights.T
            plain = change.clone()
            change[own] -= 1
            change /= counts[y, None] - reach
            plain += change * reach
            length = squares + 2 * change * (v @ weights.T) + change.square() * v.square().sum(1, keepdim=True)
            length = length.clamp(min=1e-300).sqrt()
            n = counts.double().expand(len(y), -1).clone()
            n[own] -= 1
            part = blend.share(n)
            scores, square = part / length * plain, part.square()
            if texts is not None:
                along = ((texts * weights).sum(1) + change * (v @ texts.T)) * part / length
                scores, square = x @ texts.T + scores, texts.square().sum(1) + 2 * along + square
            scores /= square.clamp(min=1e-300).sqrt()
            yield scores if texts is not None else scores.masked_fill(~self.ridge.statistics.present, -torch.inf)


def discriminants(statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Gaussian discriminants with one covariance for all classes and equal priors: weights [C, D] and biases [C].

    Logits are -(x - mu_c)^T S^-1 (x - mu_c) / 2 but for what all classes share. S is the pooled covariance within
    classes, (sum of (x - mu_y)(x - mu_y)^T) / (N - C), shrunk towards a multiple of the identity by the oracle
    approximation (Chen et al. 2010, as in scikit-learn's `oas`). The mean of the class means is the origin; a class
    without features is put there. Where no class has two different features, S is the identity.
    """
    present, means = statistics.present, statistics.means
    spread = statistics.pooled - statistics.sums.T @ means
    freedom = int(statistics.counts.sum() - present.sum())
    # Equal features leave nothing but rounding.
    rounding = 1e-12 * float(statistics.pooled.trace())
    alike = not freedom or float(spread.trace()) <= rounding
    covariance = torch.eye(len(spread), dtype=torch.float64) if alike else _shrunk(spread / freedom, freedom)
    origin = means[present].mean(0) if present.any() else torch.zeros(means.shape[1], dtype=torch.float64)
    offsets = torch.where(present[:, None], means - origin, 0.0)
    weights = torch.linalg.solve(covariance, offsets.T).T
    return weights, -(offsets * weights).sum(1) / 2 - weights @ origin


def _shrunk(covariance: Tensor, freedom: int) -> Tensor:
    """(1 - s) S + s (trace S / D) I, with s by the oracle approximation for that many degrees of freedom."""
    dim = len(covariance)
    level, identity = covariance.trace() / dim, torch.eye(dim, dtype=torch.float64)
    mean_square = covariance.square().mean()
    apart = (freedom + 1) * (mean_square - level**2 / dim)
    amount = min(1.0, float((mean_square + level**2) / apart)) if apart > 0 else 1.0
    return (1 - amount) * covariance + amount * level * identity
