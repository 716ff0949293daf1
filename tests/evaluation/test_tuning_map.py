"""The rule for light and full tuning, on made-up pairs and on the measured ones."""

from __future__ import annotations

import re

import pytest

from liftplus.evaluation import tuning_map
from liftplus.evaluation.tuning_map import Pair


def pair(start: float, gain: float, imbalance: int = 10) -> Pair:
    return Pair("made up", 100, 5, 2 * imbalance, 2, start, (50.0 + gain,), (50.0,), (gain,))


PARTED = [pair(10, -3), pair(20, -2), pair(30, -1), pair(60, 1), pair(70, 2), pair(80, 4)]


def test_the_better_the_start_the_likelier_light_tuning_wins() -> None:
    chances = [tuning_map.chance(start, 10, PARTED) for start in (0, 20, 40, 60, 80, 100)]
    assert chances == sorted(chances) and chances[1] < 0.2 and chances[4] > 0.8
    assert tuning_map.left_out(PARTED) == [True] * 6
    assert tuning_map.left_out([*PARTED, pair(90, -1)])[-1] is False


def test_the_imbalance_counts_where_the_start_is_the_same() -> None:
    known = [pair(50, -2, 2), pair(50, -1, 5), pair(50, 1, 50), pair(50, 3, 200), pair(52, 2, 100), pair(48, -2, 3)]
    assert tuning_map.chance(50, 2, known) < 0.3 < 0.7 < tuning_map.chance(50, 200, known)


def test_pairs_with_little_at_stake_count_little() -> None:
    clear = tuning_map.chance(45, 10, [*PARTED, pair(46, 5)])
    assert clear > tuning_map.chance(45, 10, [*PARTED, pair(46, 0.01)])


def test_where_one_side_always_wins_it_is_sure() -> None:
    assert tuning_map.chance(50, 10, PARTED[3:]) == 1 and tuning_map.chance(50, 10, PARTED[:3]) == 0


def test_gains_are_means_over_seeds() -> None:
    two = Pair("two seeds", 100, 5, 50, 2, 30.0, (50.0, 52.0), (51.0, 50.0), ())
    assert two.gains == [-1.0, 2.0] and two.gain == 0.5 and two.light_wins


def test_advice_says_chance_and_uncertainty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_map, "pairs", lambda: tuple(PARTED))
    low, high, near = (tuning_map.advice(start, 500, 10.0) for start in (15.0, 75.0, 45.0))
    assert low.startswith(
        "Full tuning (method full+) is likely to beat light tuning (method lift+) with the same start"
    )
    assert high.startswith(
        "Light tuning (method lift+) is likely to beat full tuning (method full+) with the same start"
    )
    for text, start in ((low, 15.0), (high, 75.0)):
        likely = tuning_map.chance(start, 10, PARTED)
        assert f"a chance of {100 * max(likely, 1 - likely):.0f} % for this start and an imbalance of 10. This" in text
        assert "from 6 measured pairs" in text and "left out, the rule is right on 100 %." in text
    assert "few pictures" in low and "few pictures" not in high
    assert "Within the noise of the start either may win." in near and "noise" not in low + high
    assert "noise" in tuning_map.advice(35.0, 20, 10.0) and "noise" not in tuning_map.advice(35.0, 5000, 10.0)


def test_the_measured_pairs_support_the_rule() -> None:
    """With each left out in turn it is right on more than either method always is; four of five where it matters."""
    known = tuning_map.pairs()
    found, light = tuning_map.left_out(known), [one.light_wins for one in known]
    assert len(known) >= 20 and sum(found) >= 0.75 * len(known)
    assert sum(found) > 1.4 * max(sum(light), len(known) - sum(light))
    clear = [right for right, one in zip(found, known, strict=True) if abs(one.gain) >= 1]
    assert sum(clear) >= 0.8 * len(clear)
    for one in known:
        assert 0 <= one.start <= 100 and len(one.light) == len(one.heavy) >= 1 and one.most >= one.least >= 1, one
        assert one.pictures >= one.classes and re.search(r", \d+, ", one.name), one.name
        assert len(one.few) in (0, len(one.light))
