"""Whether light or heavy tuning is likely to win: measured pairs of data and backbone, and a rule that they give.

On each pair LIFT+ was compared with full fine-tuning from the same start, with the same crops and loss, each with a
rate that was searched. The pairs are in `tuning_map.json`, which `benchmarks/tuning_map.py write` makes from its runs
and from the experiments of docs/evidence.md. What separates them best is how good the classifier is before training.
"""

from __future__ import annotations

import itertools
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
METHODS = {"light": "lift+", "full": "full+"}


@dataclass(frozen=True)
class Pair:
    """Light and heavy tuning of one backbone on one data set.

    Attributes:
        name: data, imbalance and backbone.
        pictures, classes: of the training split.
        most, least: training pictures of the largest and the smallest class.
        start: accuracy of the closed form on the test split, one crop, in percent.
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


def limit(known: Sequence[Pair]) -> float:
    """The start, in percent, from which on light tuning is taken to win.

    It lies in the middle between two pairs, where the rule loses fewest points on all pairs together; of equally good
    places, the median. 0 or 101 where one side always wins.
    """
    starts = sorted({pair.start for pair in known})
    places = [0.0, *map(statistics.mean, itertools.pairwise(starts)), 101.0]
    lost = [sum(abs(pair.gain) for pair in known if (pair.start >= place) != pair.light_wins) for place in places]
    return statistics.median_low([place for place, points in zip(places, lost, strict=True) if points == min(lost)])


def left_out(known: Sequence[Pair]) -> list[bool]:
    """Whether the rule is right on each pair, with a limit from all the others."""
    found = []
    for number, pair in enumerate(known):
        others = [*known[:number], *known[number + 1 :]]
        found.append((pair.start >= limit(others)) == pair.light_wins)
    return found


def advice(start: float, pictures: int) -> str:
    """What the measured pairs say of data on which a classifier starts with this accuracy, in a few sentences.

    Args:
        start: in percent, before training.
        pictures: how many it was measured on.
    """
    known = pairs()
    border = limit(known)
    light = start >= border
    gains = sorted(pair.gain if light else -pair.gain for pair in known if (pair.start >= border) == light)
    won = sum(gain > 0 for gain in gains)
    one, other = ("light", "full") if light else ("full", "light")
    side = f"at {border:.0f} % or more" if light else f"under {border:.0f} %"
    said = (
        f"Of {len(gains)} measured pairs of data and small backbone that start {side}, {one} tuning (method "
        f"{METHODS[one]}) was better than {other} tuning ({METHODS[other]}) on {won}, with the same start and crops. "
        f"The difference is {gains[0]:+.1f} to {gains[-1]:+.1f} points in the mean over classes, "
        f"{statistics.median(gains):+.1f} in the middle."
    )
    noise = 200 * math.sqrt(start / 100 * (1 - start / 100) / pictures)
    if abs(start - border) <= noise:
        said += f" This start is within noise of {border:.0f} %, so either may win."
    return said + (" Compare the classes with few pictures too." if not light else "")
