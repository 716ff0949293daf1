"""Which methods share the seeds' variance, against variances by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from liftplus.evaluation.seed_variance import Runs, SeedPart, seed_parts

# Standard deviations 1, 1.1 and 0.9 over three seeds, then 5.
A, B, C, WILD = ([50 + sd * x for x in (-1, 0, 1)] for sd in (1.0, 1.1, 0.9, 5.0))


def runs(*accuracies: list[float], training: str = "abcdef", fixed: tuple[int, ...] = ()) -> list[Runs]:
    return [Runs(np.array(one), training[k], k in fixed) for k, one in enumerate(accuracies)]


def parts(found: list[Runs], pairs: list[tuple[int, int]] | None = None) -> list[SeedPart | None]:
    return seed_parts(found, pairs or list(combinations(range(len(found)), 2)))


def near(variance: float, freedom: float) -> SeedPart:
    return SeedPart(pytest.approx(variance), pytest.approx(freedom))


def test_methods_that_scatter_alike_share_a_variance() -> None:
    assert parts(runs(A, B)) == [near((1 + 1.21) / 3, 4)]
    pooled = near(2 * (1 + 1.21 + 0.81) / 3 / 3, 6)
    assert parts(runs(A, B, C)) == [pooled] * 3


def test_a_method_that_scatters_more_keeps_its_own() -> None:
    """Its pairs have Welch's degrees of freedom, and the others do not suffer from it."""
    found = parts(runs(A, B, C, WILD))
    alone = near((1 + 25) / 3, 26**2 / ((1 + 625) / 2))
    assert found[0] == near(2 * (1 + 1.21 + 0.81) / 3 / 3, 6) and found[2] == alone
    assert parts(runs(A, WILD)) == [alone]


def test_a_pair_that_scatters_less_keeps_its_own() -> None:
    calm = [[50 + 0.01 * x for x in (-1, 0, 1)] for _ in range(2)]
    assert parts(runs(A, B, *calm))[-1] == near(2e-4 / 3, 4)


def test_methods_without_chance_add_nothing() -> None:
    """As zero-shot: its variance is known to be 0, and does not make the others' look smaller."""
    found = parts(runs(A, [60.0] * 3, B, fixed=(1,)))
    assert found[0] == found[2] == near((1 + 1.21) / 2 / 3, 4)
    assert found[1] == near((1 + 1.21) / 3, 4)
    both = parts(runs([60.0] * 3, [61.0] * 3, fixed=(0, 1)))[0]
    assert both is not None and both.variance == 0


def test_equal_accuracies_of_different_predictions_are_chance() -> None:
    assert parts(runs(A, [60.0] * 3)) == [near(1 / 3, 2)]  # 0 by luck; Welch's
    assert parts(runs([60.0] * 3, [61.0] * 3)) == [near(0, 4)]


def test_two_tests_of_one_training_are_paired() -> None:
    """Five crops gain 2, 3 and 4 points over one, so that the seeds' own scatter cancels."""
    more = [x + gain for x, gain in zip(A, (2, 3, 4), strict=True)]
    assert parts(runs(A, more, training="aa")) == [near(1 / 3, 2)]
    # A training counts once among the others.
    found = seed_parts(runs(A, more, B, training="aab"), [(0, 2), (1, 2), (0, 1)])
    assert found[0] == near((1 + 1.21) / 3, 4) and found[1] == near((1 + 1.21) / 3, 4) and found[2] == near(1 / 3, 2)


def test_one_seed_tells_nothing() -> None:
    assert parts(runs([50.0], [60.0])) == [None]
    assert parts(runs(A, B, [60.0])) == [near((1 + 1.21) / 3, 4), None, None]


def test_different_numbers_of_seeds() -> None:
    five = [50 + x for x in (-1.2, 0.4, 1.1, -0.9, 0.6)]
    variance = (2 * 1.0 + 4 * float(np.var(five, ddof=1))) / 6
    assert parts(runs(A, five)) == [near(variance * (1 / 3 + 1 / 5), 6)]
