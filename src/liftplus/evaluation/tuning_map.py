"""Light or full tuning: measured pairs of data and backbone, and what they let expect of others.

On each pair LIFT+ was compared with full fine-tuning from the same start, with the same crops and loss, each with a
rate that was searched. The pairs are in `tuning_map.json`, which `benchmarks/tuning_map.py write` makes from its runs
and from the experiments of docs/evidence.md. The difference is predicted by linear regression on three things that are
known before training: how good the classifier is, the imbalance, and the size of the backbone.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

FILE = "tuning_map.json"
STARTS = ("mix", "auto", "ridge")
"""Starts of the classifier from all training pictures, whose accuracy the regression is about."""
LIGHT, FULL = "light tuning (method lift+)", "full tuning (method full+)"
FEW = "Light tuning may still be better on classes with few pictures: see liftplus compare --methods lift+,full+."
CENTRAL = 0.8
"""Probability that the difference lies in the interval."""


@dataclass(frozen=True)
class Before:
    """What is known before training.

    Attributes:
        start: mean accuracy over classes of the classifier, in percent.
        imbalance: training pictures of the largest class over those of the smallest.
        weights: of the backbone's image tower.
    """

    start: float
    imbalance: float
    weights: int

    @property
    def row(self) -> tuple[float, float, float, float]:
        """One row of the regression; its numbers scatter about as much as each other."""
        return 1.0, self.start / 20, math.log10(self.imbalance), math.log10(self.weights)


@dataclass(frozen=True)
class Expected:
    """What is expected of light minus full tuning, in points of the mean accuracy over classes.

    Attributes:
        gain: the expected difference.
        low, high: it lies between these with a probability of `CENTRAL`.
        chance: that light tuning is better, 0 to 1.
    """

    gain: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Pair:
    """Light and heavy tuning of one backbone on one data set.

    Attributes:
        name: data, imbalance and backbone.
        pictures, classes: of the training split.
        most, least: training pictures of the largest and the smallest class; the imbalance is their ratio.
        weights: of the backbone's image tower.
        start: mean accuracy over classes of the closed form on the test split, one crop, in percent.
        light, heavy: mean accuracy over classes after training, one crop, in percent, by seed.
        few: light minus heavy on classes with fewer than 20 training pictures, in points, by seed; empty without such.
    """

    name: str
    pictures: int
    classes: int
    most: int
    least: int
    weights: int
    start: float
    light: tuple[float, ...]
    heavy: tuple[float, ...]
    few: tuple[float, ...]

    @property
    def gains(self) -> list[float]:
        """Light minus heavy by seed, in points."""
        return [one - other for one, other in zip(self.light, self.heavy, strict=True)]

    @property
    def gain(self) -> float:
        """Their mean."""
        return statistics.mean(self.gains)

    @property
    def known_before(self) -> Before:
        """What was known before training."""
        return Before(self.start, self.most / self.least, self.weights)

    @property
    def light_wins(self) -> bool:
        """Whether light tuning was better, by however little."""
        return self.gain > 0


@cache
def pairs() -> tuple[Pair, ...]:
    """Every measured pair."""
    text = files("liftplus.evaluation").joinpath(FILE).read_text(encoding="utf-8")
    return tuple(Pair(**row | {key: tuple(row[key]) for key in ("light", "heavy", "few")}) for row in json.loads(text))


def expected(before: Before, known: Sequence[Pair]) -> Expected:
    """What measured pairs let expect, by ordinary least squares; there must be more than four.

    The interval and the chance are those of a new pair (Student's t): they hold the noise of the pairs' seeds and test
    pictures, what the regression does not explain, and the uncertainty of its coefficients.
    """
    from scipy.stats import t

    rows, gains = np.array([pair.known_before.row for pair in known]), np.array([pair.gain for pair in known])
    inverse = np.linalg.pinv(rows.T @ rows)
    fitted = inverse @ rows.T @ gains
    free = len(rows) - rows.shape[1]
    new = np.array(before.row)
    error = math.sqrt(((gains - rows @ fitted) ** 2).sum() / free * (1 + new @ inverse @ new))
    gain, reach = float(new @ fitted), error * float(t.ppf((1 + CENTRAL) / 2, free))
    return Expected(gain, gain - reach, gain + reach, float(t.cdf(gain / error, free)))


def left_out(known: Sequence[Pair]) -> list[float]:
    """The difference that is expected of each pair from all the others."""
    return [
        expected(pair.known_before, [*known[:number], *known[number + 1 :]]).gain for number, pair in enumerate(known)
    ]


def hits(known: Sequence[Pair]) -> list[bool]:
    """Whether the better method of each pair is told from all the others."""
    return [(gain > 0) == pair.light_wins for gain, pair in zip(left_out(known), known, strict=True)]


def advice(before: Before, pictures: int) -> str:
    """What the measured pairs say of data, in a few sentences.

    Args:
        pictures: how many `before.start` was measured on.
    """
    from scipy.stats import binomtest

    known = pairs()
    noise = binomtest(round(before.start / 100 * pictures), pictures).proportion_ci(method="wilson")
    found = expected(before, known)
    either = {expected(Before(100 * one, before.imbalance, before.weights), known).gain > 0 for one in noise}
    one, other = (LIGHT, FULL) if found.gain > 0 else (FULL, LIGHT)
    right = hits(known)
    return " ".join(
        [
            f"{one.capitalize()} is likely to beat {other} with the same start and crops, with a chance of "
            f"{100 * max(found.chance, 1 - found.chance):.0f} %. Light minus full is expected at {found.gain:+.1f} "
            f"points in the mean over classes, with {100 * CENTRAL:.0f} % probability between {found.low:+.1f} and "
            f"{found.high:+.1f}.",
            *(["Within the noise of the start either may win."] if len(either) > 1 else []),
            *_outside(before, known),
            f"This follows from {len(known)} measured pairs of data and small backbone; for pairs that are left out, "
            f"{100 * sum(right) / len(right):.0f} % of such answers are right.",
            *([] if found.gain > 0 else [FEW]),
        ]
    )


def _outside(before: Before, known: Sequence[Pair]) -> list[str]:
    """A sentence if data or backbone are unlike all pairs."""
    others = [pair.known_before for pair in known]
    shown: dict[str, tuple[float, list[float]]] = {
        "a start of {:.1f} %": (before.start, [one.start for one in others]),
        "an imbalance of {:.3g}": (before.imbalance, [one.imbalance for one in others]),
        "a backbone of {:,.0f} weights": (before.weights, [one.weights for one in others]),
    }
    far = [text.format(own) for text, (own, theirs) in shown.items() if not min(theirs) <= own <= max(theirs)]
    return [f"No pair has {' or '.join(far)}, so this is an extrapolation."] if far else []
