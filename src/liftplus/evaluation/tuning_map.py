"""Whether light or heavy tuning is likely to win: measured pairs of data and backbone, and a rule that they give.

On each pair LIFT+ was compared with full fine-tuning from the same start, with the same crops and loss, each with a
rate that was searched. The pairs are in `tuning_map.json`, which `benchmarks/tuning_map.py write` makes from its runs
and from the experiments of docs/evidence.md. What separates them is how good the classifier is before training, and the
imbalance: a logistic regression on both, in which a pair counts by the points that are at stake.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

FILE = "tuning_map.json"
STARTS = ("mix", "auto", "ridge")
"""Starts of the classifier from all training pictures, whose accuracy the rule is about."""
LIGHT, FULL = "light tuning (method lift+)", "full tuning (method full+)"
WEAK = 10.0
"""The inverse strength of the regression's L2 penalty; a hundred gives the same answers."""


@dataclass(frozen=True)
class Pair:
    """Light and heavy tuning of one backbone on one data set.

    Attributes:
        name: data, imbalance and backbone.
        pictures, classes: of the training split.
        most, least: training pictures of the largest and the smallest class; the imbalance is their ratio.
        start: mean accuracy over classes of the closed form on the test split, one crop, in percent.
        light, heavy: mean accuracy over classes after training, one crop, in percent, by seed.
        few: light minus heavy on classes with fewer than 20 training pictures, in points, by seed; empty without such.
    """

    name: str
    pictures: int
    classes: int
    most: int
    least: int
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
    def light_wins(self) -> bool:
        """Whether light tuning was better, by however little."""
        return self.gain > 0


@cache
def pairs() -> tuple[Pair, ...]:
    """Every measured pair."""
    text = files("liftplus.evaluation").joinpath(FILE).read_text(encoding="utf-8")
    return tuple(Pair(**row | {key: tuple(row[key]) for key in ("light", "heavy", "few")}) for row in json.loads(text))


def chance(start: float, imbalance: float, known: Sequence[Pair]) -> float:
    """How likely light tuning is to be better, 0 to 1, by the known pairs.

    Args:
        start: mean accuracy over classes before training, in percent.
        imbalance: training pictures of the largest class over those of the smallest.
    """
    return chances([start], imbalance, known)[0]


def chances(starts: Sequence[float], imbalance: float, known: Sequence[Pair]) -> list[float]:
    """`chance` of each start, from one fit."""
    from sklearn.linear_model import LogisticRegression

    if len({pair.light_wins for pair in known}) == 1:
        return [float(known[0].light_wins)] * len(starts)
    rows = [_row(pair.start, pair.most / pair.least) for pair in known]
    stakes = [abs(pair.gain) / statistics.mean(abs(other.gain) for other in known) for pair in known]
    model = LogisticRegression(C=WEAK).fit(rows, [pair.light_wins for pair in known], stakes)
    found: list[float] = model.predict_proba([_row(start, imbalance) for start in starts])[:, 1].tolist()
    return found


def _row(start: float, imbalance: float) -> tuple[float, float]:
    return start / 20, math.log10(imbalance)  # numbers that scatter about as much as each other


def left_out(known: Sequence[Pair]) -> list[bool]:
    """Whether the rule is right on each pair, from all the others."""
    found = []
    for number, pair in enumerate(known):
        others = [*known[:number], *known[number + 1 :]]
        found.append((chance(pair.start, pair.most / pair.least, others) >= 0.5) == pair.light_wins)
    return found


def advice(start: float, pictures: int, imbalance: float) -> str:
    """What the measured pairs say of data, in a few sentences.

    Args:
        start: mean accuracy over classes before training, in percent.
        pictures: how many it was measured on.
        imbalance: as for `chance`.
    """
    from scipy.stats import binomtest

    known = pairs()
    noise = binomtest(round(start / 100 * pictures), pictures).proportion_ci(method="wilson")
    low, likely, high = chances([100 * noise.low, start, 100 * noise.high], imbalance, known)
    one, other = (LIGHT, FULL) if likely >= 0.5 else (FULL, LIGHT)
    right = left_out(known)
    either = " Within the noise of the start either may win." if low < 0.5 <= high else ""
    few = "" if likely >= 0.5 else " Compare the classes with few pictures too."
    return (
        f"{one.capitalize()} is likely to beat {other} with the same start and crops, with a chance of "
        f"{100 * max(likely, 1 - likely):.0f} % for this start and an imbalance of {imbalance:.3g}.{either} "
        f"This follows from {len(known)} measured pairs of data and small backbone; of pairs that are left out, the "
        f"rule is right on {100 * sum(right) / len(right):.0f} %.{few}"
    )
