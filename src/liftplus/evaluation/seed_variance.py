"""The seeds' part of the variance of a difference of two methods, estimated from all methods that were run.

With three seeds a pair of methods has few degrees of freedom, so methods with similar scatter share one variance.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OUTLIER, LARGER, SMALLER = 0.1, 0.4, 0.1
"""Levels of the F tests by which `seed_parts` decides which methods share a variance. Chosen by simulation: the rate of
false alarms stays near 5 % when one method's seeds scatter two to seven times as much as the others'."""


@dataclass(frozen=True)
class SeedPart:
    """The seeds' part of the variance of a difference (D), in squared points, and its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Runs:
    """One accuracy of a method over its seeds.

    Attributes:
        accuracies: of each seed, in percent [S].
        training: identifies the training; two tests of one training have the same value.
        fixed: whether all seeds give the same predictions, as a method without training does.
    """

    accuracies: Floats
    training: Hashable
    fixed: bool = False


def seed_parts(runs: Sequence[Runs], pairs: Sequence[tuple[int, int]]) -> list[SeedPart | None]:
    """The seeds' part of the variance of each pair's difference; None if a method of the pair has a single seed.

    Methods share one pooled variance, whose degrees of freedom are the sum of their S - 1. Two kinds of method do not
    share it. A method whose seeds all agree has variance 0. A method that scatters far more than the rest keeps its own
    (the largest variance is tested first, as in Cochran 1941, Annals of Eugenics 11). A pair also keeps its own two
    variances, with Welch's degrees of freedom, if an F test finds them larger or much smaller than the others'. Two
    tests of one training are paired by seed; such pairs share a variance among themselves in the same way.
    """
    apart = [(a, b) for a, b in pairs if runs[a].training != runs[b].training]
    first: dict[Hashable, Runs] = {}
    for place in dict.fromkeys(place for pair in apart for place in pair):
        first.setdefault(runs[place].training, runs[place])
    pool = _pool(list(first.values()))
    gaps = {
        (a, b): Runs(runs[a].accuracies - runs[b].accuracies, (a, b), runs[a].fixed and runs[b].fixed)
        for a, b in pairs
        if runs[a].training == runs[b].training
    }
    within = _pool(list(gaps.values()))
    return [_part([gaps[a, b]], within) if (a, b) in gaps else _part([runs[a], runs[b]], pool) for a, b in pairs]


_Pool = dict[Hashable, tuple[float, int]]  # by training: its variance and degrees of freedom


def _pool(runs: Sequence[Runs]) -> _Pool:
    """The trainings that share a variance: not fixed ones, nor those that scatter far more than the rest."""
    found = {one.training: _variance(one) for one in runs if len(one.accuracies) > 1 and not one.fixed}
    while len(found) > 1:
        largest = max(found, key=lambda key: found[key][0])
        rest = _mean({key: value for key, value in found.items() if key != largest})
        if not _exceeds(found[largest], rest, OUTLIER / len(found)):
            break
        del found[largest]
    return found


def _part(pair: Sequence[Runs], pool: _Pool) -> SeedPart | None:
    """D of one pair: two methods, or the difference by seed of two tests of one training."""
    if any(len(one.accuracies) < 2 for one in pair):
        return None
    pair = [one for one in pair if not one.fixed]
    own = {one.training: _variance(one) for one in pair}
    alike = bool(pair) and own.keys() <= pool.keys()
    if rest := {key: value for key, value in pool.items() if key not in own}:
        mean, other = _mean(own), _mean(rest)
        alike = alike and not _exceeds(mean, other, LARGER) and not _exceeds(other, mean, SMALLER)
    if alike:
        variance, freedom = _mean(pool)
        return SeedPart(sum(variance / len(one.accuracies) for one in pair), freedom)
    parts = [(_variance(one)[0] / len(one.accuracies), len(one.accuracies) - 1) for one in pair]
    total, squares = sum(part for part, _ in parts), sum(part**2 / freedom for part, freedom in parts)
    return SeedPart(total, total**2 / squares if squares else 1.0)


def _variance(runs: Runs) -> tuple[float, int]:
    return float(runs.accuracies.var(ddof=1)), len(runs.accuracies) - 1


def _mean(variances: _Pool) -> tuple[float, int]:
    """The mean weighted by degrees of freedom, and the sum of these."""
    freedom = sum(own for _, own in variances.values())
    return sum(variance * own for variance, own in variances.values()) / max(freedom, 1), freedom


def _exceeds(a: tuple[float, int], b: tuple[float, int], level: float) -> bool:
    """Whether variance a is larger than b by an F test."""
    from scipy import special

    if b[0] <= 0:
        return a[0] > 0
    return float(special.fdtrc(a[1], b[1], a[0] / b[0])) < level
