"""The rule for light and full tuning, on made-up pairs and on the measured ones."""

from __future__ import annotations

import math
import re

import pytest
from scipy.stats import linregress, t

from liftplus.evaluation import tuning_map
from liftplus.evaluation.tuning_map import Before, Pair


def pair(start: float, gain: float, imbalance: int = 10, weights: int = 10**7) -> Pair:
    return Pair("made up", 100, 5, 2 * imbalance, 2, weights, start, (50.0 + gain,), (50.0,), (gain,))


def of(start: float, imbalance: float = 10.0, weights: int = 10**7) -> Before:
    return Before(start, imbalance, weights)


PARTED = [pair(10, -3), pair(20, -2), pair(30, -1), pair(60, 1), pair(70, 2), pair(80, 3), pair(90, 4.5)]


def test_the_better_the_start_the_likelier_light_tuning_wins() -> None:
    found = [tuning_map.expected(of(start), PARTED) for start in (0, 20, 40, 60, 80, 100)]
    assert [one.gain for one in found] == sorted(one.gain for one in found)
    assert [one.chance for one in found] == sorted(one.chance for one in found)
    assert found[1].chance < 0.1 and found[4].chance > 0.9
    assert tuning_map.hits(PARTED) == [True] * 7
    assert tuning_map.hits([*PARTED, pair(95, -1)])[-1] is False


def test_it_is_least_squares_with_the_interval_of_a_new_pair() -> None:
    """Against statsmodels' formulas by hand, for one predictor that varies."""
    starts, gains = [10.0, 30.0, 40.0, 60.0, 80.0, 85.0], [-2.0, -2.5, 0.0, 1.5, 1.0, 4.0]
    made = [pair(start, gain) for start, gain in zip(starts, gains, strict=True)]
    line = linregress(starts, gains)
    new, free = 50.0, 2  # six pairs less four coefficients
    errors = [gain - line.intercept - line.slope * start for start, gain in zip(starts, gains, strict=True)]
    middle = sum(starts) / 6
    lever = 1 / 6 + (new - middle) ** 2 / sum((start - middle) ** 2 for start in starts)
    scale = math.sqrt(sum(error**2 for error in errors) / free * (1 + lever))
    found = tuning_map.expected(of(new), made)
    assert found.gain == pytest.approx(line.intercept + line.slope * new)
    assert found.low == pytest.approx(found.gain - t.ppf(0.9, free) * scale)
    assert found.high == pytest.approx(found.gain + t.ppf(0.9, free) * scale)
    assert found.chance == pytest.approx(t.cdf(found.gain / scale, free))


def test_imbalance_and_size_count_where_the_start_is_the_same() -> None:
    imbalances = [
        pair(50, gain, imbalance) for gain, imbalance in ((-2, 2), (-1, 5), (1, 50), (3, 200), (2, 100), (-2, 3))
    ]
    assert tuning_map.expected(of(50, 2), imbalances).chance < 0.3 < 0.7
    assert tuning_map.expected(of(50, 200), imbalances).chance > 0.7
    sizes = [pair(50, gain, 10, weights) for gain, weights in ((-2, 10**6), (-1, 2 * 10**6), (1, 10**7), (3, 10**8))]
    sizes += [pair(51, 2, 10, 5 * 10**7), pair(49, 0, 10, 4 * 10**6)]
    assert (
        tuning_map.expected(of(50, 10, 10**6), sizes).gain < -1 < 1 < tuning_map.expected(of(50, 10, 10**8), sizes).gain
    )


def test_gains_are_means_over_seeds() -> None:
    two = Pair("two seeds", 100, 5, 50, 2, 10**7, 30.0, (50.0, 52.0), (51.0, 50.0), ())
    assert two.gains == [-1.0, 2.0] and two.gain == 0.5 and two.light_wins
    assert two.known_before == Before(30.0, 25.0, 10**7)


def test_advice_says_chance_and_uncertainty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_map, "pairs", lambda: tuple(PARTED))
    low, high, near = (tuning_map.advice(of(start), 500) for start in (15.0, 75.0, 47.0))
    assert low.startswith(
        "Full tuning (method full+) is likely to beat light tuning (method lift+) with the same start"
    )
    assert high.startswith(
        "Light tuning (method lift+) is likely to beat full tuning (method full+) with the same start"
    )
    for text, start in ((low, 15.0), (high, 75.0)):
        likely = tuning_map.expected(of(start), PARTED)
        assert f"a chance of {100 * max(likely.chance, 1 - likely.chance):.0f} %. Light minus full" in text
        assert f"expected at {likely.gain:+.1f} points" in text
        assert f"with 80 % probability between {likely.low:+.1f} and {likely.high:+.1f}." in text
        assert "from 7 measured pairs" in text and "left out, 100 % of such answers are right." in text
    assert tuning_map.FEW in low and tuning_map.FEW not in high
    assert "Within the noise of the start either may win." in near and "noise" not in low + high
    assert "noise" in tuning_map.advice(of(35.0), 20) and "noise" not in tuning_map.advice(of(35.0), 5000)


def test_advice_says_where_it_goes_beyond_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_map, "pairs", lambda: tuple(PARTED))
    assert "extrapolation" not in tuning_map.advice(of(50.0), 500)
    far = tuning_map.advice(of(95.0, 300, 86_000_000), 500)
    said = "No pair has a start of 95.0 % or an imbalance of 300 or a backbone of 86,000,000 weights, so this is an"
    assert said in far


def test_the_measured_pairs_support_the_rule() -> None:
    """With each left out in turn it is right more often than always saying one method, also where it matters."""
    known = tuning_map.pairs()
    found, light = tuning_map.hits(known), [one.light_wins for one in known]
    assert len(known) >= 20 and sum(found) > max(sum(light), len(known) - sum(light))
    clear = [(right, one.light_wins) for right, one in zip(found, known, strict=True) if abs(one.gain) >= 1]
    wins = sum(won for _, won in clear)
    assert sum(right for right, _ in clear) > max(wins, len(clear) - wins)
    for one in known:
        assert 0 <= one.start <= 100 and len(one.light) == len(one.heavy) >= 1 and one.most >= one.least >= 1, one
        assert one.pictures >= one.classes and re.search(r", \d+, ", one.name), one.name
        assert len(one.few) in (0, len(one.light))
