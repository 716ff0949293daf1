"""Runs that differ by seed alone taken together, and the figures over them."""

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
# Settings that say where and how a run was made, not what it is.
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
    """Mean and sample standard deviation over n values; no deviation of one value."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Over those values that exist; None without any."""
        given = [value for value in values if value is not None]
        if not given:
            return None
        return cls(statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else None, len(given))


@dataclass(frozen=True)
class Series:
    """Runs that differ by seed alone.

    Attributes:
        label: short and different from every other series'.
        runs: ordered by seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def tested(self) -> tuple[EvaluationFiles, ...]:
        """The runs' own evaluations."""
        return tuple(run.tested for run in self.runs if run.tested is not None)

    def tests(self, tte: bool) -> dict[int, EvaluationFiles]:
        """The evaluations of the runs' own data and split with five crops or one, by seed."""
        found = {}
        for run in self.runs:
            both = [test for test in (run.tested, run.other_crops) if test is not None and test.tte == tte]
            if both:
                found[run.seed] = both[0]
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The settings that all share, with the first run's seed."""
        return self.runs[0].config

    def measure(self, key: str) -> Spread | None:
        """One accuracy in percent over the seeds."""
        return Spread.of([number(t.metrics.get(key)) for t in self.tested])

    def per_class(self) -> list[float | None]:
        """Mean accuracy over the seeds of each class, in percent."""
        tables = [[row.accuracy for row in t.classes] for t in self.tested if t.classes]
        return [spread.mean if (spread := Spread.of(column)) else None for column in zip(*tables, strict=True)]

    def confusion(self) -> list[tuple[int, int, int]]:
        """Wrong (true class, predicted class, how often over all seeds), most first."""
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
    """The runs by what they are, in the order in which each kind first appears."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.config) if key not in _ELSEWHERE}
        key = json.dumps(settings, sort_keys=True) if run.config else str(run.folder)
        if any(run.config and other.seed == run.seed for other in kinds.get(key, [])):
            key += str(run.folder)  # the same run twice says nothing about spread
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
                f"{str(seen[0].folder)!r} and {str(run.folder)!r} know different classes ({len(seen[1])} and "
                f"{len(names)}). Make one report for each data set."
            )
        if names and seen is None:
            seen = run, names


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The method, and where several have one method, what differs between them."""
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
    """How far probabilities of the best class are from the share that is right.

    Attributes:
        ece: expected calibration error over `BINS` equal bins, in percent (Guo et al. 2017).
        confidence, accuracy: mean over all pictures, in percent.
        bins: (lower edge, pictures, mean probability, share right) of bins that hold a picture.
    """

    ece: float
    confidence: float
    accuracy: float
    bins: tuple[tuple[float, int, float, float], ...]


def calibration(chances: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """Calibration of probabilities [N] in [0, 1] against whether each was right [N]."""
    place = np.clip(np.ceil(chances * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for k in range(BINS):
        inside = place == k
        if inside.any():
            bins.append((k / BINS, int(inside.sum()), float(chances[inside].mean()), float(right[inside].mean())))
    ece = sum(n * abs(accuracy - confidence) for _, n, confidence, accuracy in bins) / len(chances)
    return Calibration(100 * ece, 100 * float(chances.mean()), 100 * float(right.mean()), tuple(bins))


def calibrations(series: Series) -> tuple[Calibration, Spread] | None:
    """Calibration of all seeds' predictions together, and the ECE over the seeds."""
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
    """One crop, five crops and the gain, in points, over the seeds that were tested with both; by measure."""
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
