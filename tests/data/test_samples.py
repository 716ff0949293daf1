"""A sample of pictures: the same one each time, and what it says of the others."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from liftplus.data.samples import Sample, drawn, interval

KEYS = [f"{k}.jpg" for k in range(1000)]


def test_a_larger_sample_holds_a_smaller_one() -> None:
    few, more = drawn(KEYS, 20), drawn(KEYS, 200)
    assert few is not None and more is not None
    assert (len(few), len(more)) == (20, 200) and few < more and few == drawn(KEYS, 20)


def test_all_or_none() -> None:
    assert drawn(KEYS, None) is None
    assert drawn(KEYS, 1000) is None
    assert drawn([*KEYS, *KEYS], 1500) is None, "each picture counts once"
    assert drawn(KEYS, 0) == frozenset()


@pytest.mark.parametrize(("hits", "count"), [(0, 3000), (1, 20), (7, 50), (50, 50), (3, 100_000)])
def test_the_interval_is_clopper_and_pearsons(hits: int, count: int) -> None:
    known = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert interval(hits, count) == pytest.approx((known.low, known.high), rel=1e-9)


def test_nothing_is_said_from_nothing() -> None:
    assert interval(0, 0) == (0.0, 1.0)


def test_what_a_sample_says() -> None:
    """Of 100 drawn, 4 have bad headers, as 6 others have, and 2 of 96 are damaged behind a sound one."""
    chosen = frozenset(KEYS[:100])
    sample = Sample.of(KEYS, chosen, frozenset(KEYS[:6] + KEYS[-6:]), 2)
    assert (sample.drawn, sample.hidden, sample.others) == (100, 2, 894)
    known = binomtest(2, 96).proportion_ci(0.95, "exact")
    assert (sample.low, sample.high) == pytest.approx((known.low, known.high))
    assert "0.25 to 7.3 % of the other 894 are too: 2 to 66 pictures" in sample.notes[1]
