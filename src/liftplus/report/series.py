"""Group runs that differ only in their seed into series, and compute figures over the seeds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liftplus.errors import UserError
from liftplus.report.read import EvaluationFiles, Run, number

MEASURES = ("overall", "mean_class", "many", "medium", "few")
BINS = 15
# Settings that do not change what a run is, only where and how it was made.
_ELSEWHERE = {
    "seed",
    "device",
    "train.workers",
    "train.save_minutes",
    "backbone.weights",
    "backbone.grad_checkpointing",
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; `sd` is None for one value."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """The spread of the values that are not None; None if there are none."""
        given = [value for value in values if value is not None]
        if not given:
            return None
        return cls(statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else None, len(given))


@dataclass(frozen=True)
class Series:
    """Runs that differ only in their seed.

    Attributes:
        label: a short, unique name.
        runs: ordered by seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def tested(self) -> tuple[EvaluationFiles, ...]:
        """The runs' own tests."""
        return tuple(run.tested for run in self.runs if run.tested is not None)

    def tests(self, tte: bool) -> dict[int, EvaluationFiles]:
        """The tests of the runs' own data and split with five crops or one, by seed."""
        found = {}
        for run in self.runs:
            both = [test for test in (run.tested, run.other_crops) if test is not None and test.tte == tte]
            if both:
                found[run.seed] = both[0]
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The settings of all runs, with the first run's seed."""
        return self.runs[0].config

    def measure(self, key: str) -> Spread | None:
        """One accuracy in percent over the seeds."""
        return Spread.of([number(t.metrics.get(key)) for t in self.tested])

    def per_class(self) -> list[float | None]:
        """Each class's mean accuracy over the seeds, in percent; None without test pictures."""
        tables = [[row.accuracy for row in t.classes] for t in self.tested if t.classes]
        return [spread.mean if (spread := Spread.of(column)) else None for column in zip(*tables, strict=True)]

    def confusion(self) -> list[tuple[int, int, int]]:
        """Errors as (true class, predicted class, pictures over all seeds), most frequent first."""
        total: dict[tuple[int, int], int] = defaultdict(int)
        for test in self.tested:
            for true, guess, images in test.confusion:
                if true != guess:
                    total[true, guess] += images
        ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return [(true, guess, images) for (true, guess), images in ordered]


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted keys."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def grouped(runs: Sequence[Run]) -> list[Series]:
    """Group runs into series, in the order in which each series first appears.

    Raises:
        UserError: the runs have different classes.
    """
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.config) if key not in _ELSEWHERE}
        key = json.dumps(settings, sort_keys=True) if run.config else str(run.folder)
        if any(run.config and other.seed == run.seed for other in kinds.get(key, [])):
            key += str(run.folder)  # two runs with one seed say nothing about the spread over seeds
        kinds.setdefault(key, []).append(run)
    _refuse_other_classes(runs)
    members = [tuple(sorted(found, key=lambda run: run.seed)) for found in kinds.values()]
    return [Series(label, part) for label, part in zip(_labels([part[0] for part in members]), members, strict=True)]


def _refuse_other_classes(runs: Sequence[Run]) -> None:
    seen: tuple[Run, tuple[str, ...]] | None = None
    for run in runs:
        names = tuple(row.name for row in run.tested.classes) if run.tested else ()
        if names and seen and names != seen[1]:
            raise UserError(
                f"{str(seen[0].folder)!r} and {str(run.folder)!r} have different classes ({len(seen[1])} and "
                f"{len(names)}). Make one report for each data set."
            )
        if names and seen is None:
            seen = run, names


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Labels of series: the method, and if several series share it, the settings that differ."""
    labels = []
    for run in firsts:
        method = str(run.config.get("method", "")) or run.folder.name
        same = [other for other in firsts if other.config.get("method", "") == run.config.get("method", "")]
        values = dict(flat(run.config))
        tables = [dict(flat(other.config)) for other in same]
        odd = [k for k in values if k not in _ELSEWHERE and any(t.get(k) != values[k] for t in tables)]
        parts = {key.removesuffix(".name") for key in odd if key.endswith(".name")}
        odd.sort(key=lambda key: key.partition(".")[0] in parts and not key.endswith(".name"))  # options of parts last
        words = ", ".join(f"{key.removesuffix('.name').rpartition('.')[2]}={values[key]}" for key in odd[:3])
        labels.append(f"{method} ({_cut(words, 40)})" if words else method)
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[: place + 1].count(label)}"
        for place, label in enumerate(labels)
    ]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of the best class match the share of right answers.

    Attributes:
        ece: expected calibration error over `BINS` equal bins, in percent (Guo et al. 2017, arXiv 1706.04599).
        confidence, accuracy: means over all pictures, in percent.
        bins: (lower edge, pictures, mean probability, share right) of each bin with a picture; the last two 0 to 1.
    """

    ece: float
    confidence: float
    accuracy: float
    bins: tuple[tuple[float, int, float, float], ...]


def calibration(chances: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """Calibration of the best classes' probabilities [N], 0 to 1; `right` [N] says which answers are right."""
    place = np.clip(np.ceil(chances * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for k in range(BINS):
        inside = place == k
        if inside.any():
            bins.append((k / BINS, int(inside.sum()), float(chances[inside].mean()), float(right[inside].mean())))
    ece = sum(n * abs(accuracy - confidence) for _, n, confidence, accuracy in bins) / len(chances)
    return Calibration(100 * ece, 100 * float(chances.mean()), 100 * float(right.mean()), tuple(bins))


def calibrations(series: Series) -> tuple[Calibration, Spread] | None:
    """Calibration of all seeds' predictions together, and the spread of the ECE over seeds; None without any."""
    parts = []
    for tested in series.tested:
        if tested.predictions:
            chances = np.array([p.probability for p in tested.predictions])
            parts.append((chances, np.array([p.correct for p in tested.predictions])))
    spread = Spread.of([calibration(*part).ece for part in parts])
    if spread is None:
        return None
    chances, right = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return calibration(chances, right.astype(bool)), spread


def tte_effect(series: Series) -> dict[str, tuple[Spread, Spread, Spread]]:
    """For each measure: accuracy with one crop, with five, and the gain, over the seeds that were tested with both."""
    pairs = []
    for run in series.runs:
        if run.tested is not None and run.other_crops is not None:
            pair = (run.tested, run.other_crops)
            pairs.append(pair if pair[1].tte else pair[::-1])
    effect = {}
    for key in MEASURES:
        values = [(number(one.metrics.get(key)), number(five.metrics.get(key))) for one, five in pairs]
        both = [(a, b) for a, b in values if a is not None and b is not None]
        spreads = [
            Spread.of([a for a, _ in both]),
            Spread.of([b for _, b in both]),
            Spread.of([b - a for a, b in both]),
        ]
        if (one := spreads[0]) and (five := spreads[1]) and (gain := spreads[2]):
            effect[key] = (one, five, gain)
    return effect
