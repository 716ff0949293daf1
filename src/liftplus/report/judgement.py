"""The intervals and differences of a report's series, judged as `compare` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from liftplus.evaluation.differences import Answers, Contender, judged, named
from liftplus.evaluation.noise import Difference
from liftplus.report.read import EvaluationFiles
from liftplus.report.series import Series


@dataclass(frozen=True)
class Judgement:
    """The judged tests of all series, with one crop and with five.

    Attributes:
        contenders: the tests whose predictions can be read.
        differences: between the contenders.
        problems: tests that could not be used, one sentence each.
    """

    contenders: tuple[Contender, ...] = ()
    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = ()

    def answers(self, label: str, tte: bool) -> Answers | None:
        """The answers of a series with one crop or five; None if they cannot be read."""
        return next((one.answers for one in self.contenders if (one.method, one.tte) == (label, tte)), None)

    def own(self, one: Series) -> Answers | None:
        """The answers of a series in its runs' own tests."""
        return self.answers(one.label, one.tested[0].tte) if one.tested else None

    def between(self, a: str, b: str, key: str) -> Difference | None:
        """The difference a minus b; None if the two were not compared."""
        for one in self.differences:
            if one.key == key and (one.a, one.b) == (a, b):
                return one
            if one.key == key and (one.a, one.b) == (b, a):
                return replace(one, a=a, b=b, points=-one.points)
        return None

    def beaten(self, name: str, key: str) -> bool:
        """Whether another contender beats this one by more than noise."""
        found = [one for one in self.differences if one.key == key and one.exceeds]
        return any(name == (one.b if one.points > 0 else one.a) for one in found)

    def rival(self, one: Series, other: Series, key: str) -> Difference | None:
        """The difference of two series in their own tests, or else with the same number of crops."""
        if not one.tested or not other.tested:
            return None
        own = [(one.tested[0].tte, other.tested[0].tte)]
        for a, b in [*own, (True, True), (False, False)]:
            if (found := self.between(named(one.label, a), named(other.label, b), key)) is not None:
                return found
        return None


def judge(series: Sequence[Series]) -> Judgement:
    """Compare all series that were tested on the same pictures."""
    contenders, problems = [], []
    for one in series:
        for tte in (False, True):
            tests = {seed: test for seed, test in one.tests(tte).items() if test.predictions and test.classes}
            kept = {seed: test for seed, test in tests.items() if _images(test) == _images(next(iter(tests.values())))}
            problems += [
                f"{test.folder} was tested on other pictures than the other seeds, so no interval includes it."
                for seed, test in tests.items()
                if seed not in kept
            ]
            if kept and (found := _answers(kept)) is not None:
                contenders.append(Contender(one.label, tte, found))
    return Judgement(tuple(contenders), tuple(judged(contenders)), tuple(problems))


def _images(test: EvaluationFiles) -> tuple[tuple[str, str], ...]:
    """The tested pictures with their true classes, sorted, so that runs can be compared."""
    return tuple(sorted((one.path, one.true) for one in test.predictions))


def _answers(tests: dict[int, EvaluationFiles]) -> Answers | None:
    """The answers by seed; None if a true class is missing from the table of classes."""
    first = next(iter(tests.values()))
    index = {row.name: k for k, row in enumerate(first.classes)}
    rows = [sorted(test.predictions, key=lambda one: (one.path, one.true)) for test in tests.values()]
    if any(one.true not in index for one in rows[0]):
        return None
    return Answers(
        np.array([[float(one.correct) for one in row] for row in rows]),
        np.array([index[one.true] for one in rows[0]], dtype=np.int64),
        _images(first),
        tuple(row.train_images for row in first.classes),
        tuple(tests),
    )
