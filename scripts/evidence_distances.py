"""Distances within classes in finished runs: the papers' explanation of why heavy tuning hurts rare classes.

Two pictures of a class have a cosine distance in the features. The gap of a class is the mean over pairs of test
pictures minus the mean over pairs of training pictures. The LIFT papers say that heavy tuning widens the gap of rare
classes (arXiv 2309.10019). All pictures of both splits count, each as one centre crop without margin.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from liftplus import config
from liftplus.data import sources
from liftplus.evaluation.metrics import GROUPS, group_of
from liftplus.machine.progress import Silent
from liftplus.report import features, read
from liftplus.report.features import BARE, Distances
from liftplus.report.series import grouped

Record = dict[str, Any]


def measured(runs: Sequence[tuple[str, int, Path]], scratch: Path) -> list[Record]:
    """A line for the backbone before training, and one for each run: its name, seed, and folder.

    A line has the mean distances and gaps by group, and for a run two rank correlations (Spearman), over classes: of
    what training added to the gap with the number of training pictures; and over few-shot classes, of what it added
    with the accuracy of one crop, in both cases minus those of the first run with the same seed. `scratch` is a folder
    that keeps what is common to the runs.
    """
    lines: list[Record] = []
    first: dict[int, tuple[list[float], list[float]]] = {}
    for name, seed, folder in runs:
        run = read.run(folder)
        data = sources.load(config.from_dict(run.config).data)
        counts = data.counts()
        series, pictures = grouped([run]), len(data.splits["train"])
        found, problems = features.measure(series, data, scratch, pictures, Silent())
        if problems:
            raise SystemExit(" ".join(problems))
        if not lines:
            lines.append({"model": BARE, "seed": None} | by_group(found[0], counts))
        added = [a - b for a, b in zip(numbers(found[-1].gaps()), numbers(found[0].gaps()), strict=True)]
        right = one_crop(run)
        gaps, accuracies = first.setdefault(seed, (added, right))
        few = [k for k, n in enumerate(counts) if group_of(n) == "few"]
        lines.append(
            {"model": name, "seed": seed}
            | by_group(found[-1], counts)
            | {"rank_with_count": rank(added, counts)}
            | {"rank_with_accuracy": rank([added[k] - gaps[k] for k in few], [right[k] - accuracies[k] for k in few])}
        )
    return lines


def by_group(one: Distances, counts: Sequence[int]) -> Record:
    """Mean train distance, test distance and gap of each group of classes."""
    out: Record = {}
    for group in GROUPS:
        own = [k for k, n in enumerate(counts) if group_of(n) == group]
        columns = (("train", one.train), ("test", one.test), ("gap", one.gaps()))
        out[group] = {key: round(statistics.mean(numbers([values[k] for k in own])), 4) for key, values in columns}
    return out


def numbers(values: Sequence[float | None]) -> list[float]:
    """The values; every class must have one, that is two pictures in both splits."""
    if None in values:
        raise SystemExit("A class has fewer than two pictures in a split, so it has no distance.")
    return [value for value in values if value is not None]


def one_crop(run: read.Run) -> list[float]:
    """A run's accuracy by class with one crop and the usual margin."""
    tests = [test for test in (run.tested, *run.others) if test and not test.tte and test.margins[1] is None]
    if not tests:
        raise SystemExit(f"{str(run.folder)!r} has no test with one crop.")
    return numbers([row.accuracy for row in tests[0].classes])


def rank(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one side is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return round(float(stats.spearmanr(a, b).statistic), 3)
