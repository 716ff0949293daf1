"""The rule for light and full tuning, on made-up pairs and on the measured ones."""

from __future__ import annotations

import re

import pytest

from liftplus.evaluation import tuning_map
from liftplus.evaluation.tuning_map import Pair


def pair(start: float, gain: float, seeds: int = 1) -> Pair:
    return Pair("made up", 100, 5, 50, 2, start, (50.0 + gain,) * seeds, (50.0,) * seeds, (gain,) * seeds)


def test_the_limit_lies_between_the_pairs_that_it_parts() -> None:
    known = [pair(20, -3), pair(30, -1), pair(60, 1), pair(80, 4)]
    assert tuning_map.limit(known) == 45
    assert tuning_map.left_out(known) == [True, True, True, True]
    assert [one.light_wins for one in known] == [False, False, True, True]
    assert tuning_map.limit([*known, pair(90, -1)]) == 45  # one pair on the wrong side changes nothing
    assert tuning_map.left_out([*known, pair(90, -1)])[-1] is False


def test_where_one_side_always_wins_the_limit_lies_beyond() -> None:
    assert tuning_map.limit([pair(20, 1), pair(60, 2)]) == 0
    assert tuning_map.limit([pair(20, -1), pair(60, -2)]) == 101
    assert tuning_map.left_out([pair(20, -1), pair(60, -2)]) == [True, True]


def test_gains_are_means_over_seeds() -> None:
    two = Pair("two seeds", 100, 5, 50, 2, 30.0, (50.0, 52.0), (51.0, 50.0), ())
    assert two.gains == [-1.0, 2.0] and two.gain == 0.5 and two.light_wins


def test_advice_counts_the_pairs_on_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (pair(10, -3), pair(20, 0.5), pair(30, -1), pair(40, -2), pair(60, 1), pair(80, 4))
    monkeypatch.setattr(tuning_map, "pairs", lambda: known)
    low, high, near = (tuning_map.advice(*given) for given in ((10.0, 500), (90.0, 500), (48.0, 500)))
    assert low.startswith(
        "Of 4 measured pairs of data and small backbone that start under 50 %, full tuning (method full+"
    )
    assert "(method full+) was better than light tuning (lift+) on 3, with" in low
    assert "is -0.5 to +3.0 points" in low and "+1.5 in the middle" in low
    assert high.startswith("Of 2 measured pairs") and "start at 50 % or more, light tuning (method lift+) was" in high
    assert "better than full tuning (full+) on 2, with" in high and "is +1.0 to +4.0 points" in high
    assert "within noise of 50 %" in near and "noise" not in low + high
    assert "noise" in tuning_map.advice(40.0, 30) and "noise" not in tuning_map.advice(40.0, 3000)


def test_the_measured_pairs_support_the_rule() -> None:
    """With each left out in turn it is right on four of five, and more often than either method always is."""
    known = tuning_map.pairs()
    right, light = sum(tuning_map.left_out(known)), sum(one.light_wins for one in known)
    assert len(known) >= 16 and right >= 0.8 * len(known) and right > max(light, len(known) - light)
    for one in known:
        assert 0 <= one.start <= 100 and len(one.light) == len(one.heavy) >= 1 and one.most >= one.least >= 1, one
        assert one.pictures >= one.classes and re.search(r", \d+, ", one.name), one.name
        assert len(one.few) in (0, len(one.light))
