"""One temperature for all logits, so that probabilities are as often right as they say (Guo et al. 2017, section 4.2).

N labelled pictures that the model was not trained on, C classes. Probabilities are softmax(z / T). The cross-entropy is
convex in 1 / T, so it has one minimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

COLDEST, HOTTEST = 1e-3, 1e3
"""Bounds of T. A classifier that is right on every picture has no finite optimum."""
BINS = 15
"""Bins of equal width for the expected calibration error, as in Guo et al. 2017."""
_PIECE = 4096  # pictures that are in float64 at once


def fitted(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """The T in [`COLDEST`, `HOTTEST`] with the least cross-entropy.

    Args:
        logits: [N, C], finite.
        labels: class indices [N].
        weights: how much each picture counts [N]; by default all count the same.
    """
    from scipy import optimize

    def slope(log_cold: float) -> float:
        """Derivative of the cross-entropy by 1 / T, at 1 / T = exp(log_cold)."""
        total = 0.0
        for z, own, w in _pieces(logits, labels, weights):
            mean = ((z * math.exp(log_cold)).softmax(-1) * z).sum(-1)
            total += float((w * (mean - z.gather(1, own[:, None])[:, 0])).sum())
        return total

    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return math.exp(-optimize.brentq(slope, low, high, xtol=1e-6))


def cross_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0, weights: Tensor | None = None) -> float:
    """Mean of -log p(own class), in nats. Arguments are as for `fitted`."""
    total = weight = 0.0
    for z, own, w in _pieces(logits, labels, weights):
        total += float((w * -(z / temperature).log_softmax(-1).gather(1, own[:, None])[:, 0]).sum())
        weight += float(w.sum())
    return total / weight


def calibration_error(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, weights: Tensor | None = None, bins: int = BINS
) -> float:
    """Expected calibration error in [0, 1]: mean over pictures of |accuracy - mean probability| of their bin.

    Bins are of the best class's probability and have equal widths. Arguments are as for `fitted`.
    """
    gaps, weight = torch.zeros(bins, dtype=torch.float64), 0.0
    for z, own, w in _pieces(logits, labels, weights):
        chance, best = (z / temperature).softmax(-1).max(-1)
        place = (chance * bins).long().clamp(max=bins - 1)
        gaps.index_add_(0, place, w * ((best == own).double() - chance))
        weight += float(w.sum())
    return float(gaps.abs().sum()) / weight


def _pieces(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    counts = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights.double()
    parts = zip(logits.split(_PIECE), labels.split(_PIECE), counts.split(_PIECE), strict=True)
    return ((z.double(), own, w) for z, own, w in parts)
