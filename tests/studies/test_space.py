"""Ranges and lists in place of values, and what is said of mistyped ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftplus.errors import UserError
from liftplus.runs import changes
from liftplus.studies import space
from liftplus.studies.space import Choices, Range


def read(*pairs: str) -> space.Space:
    return space.read("photos", "mini_clip", "lift+", pairs, fixed=(*changes.FREE, "method"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0.01", "0.01"),
        ("4,8,16", Choices(("4", "8", "16"))),
        ("focal, cross_entropy", Choices(("focal", "cross_entropy"))),
        ("0..2", Range(0, 2, whole=True)),
        ("0.001..0.1:log", Range(0.001, 0.1, log=True)),
        ("1e-4..1", Range(1e-4, 1)),
        ("-1..+1", Range(-1, 1, whole=True)),
        ("0.01..1:log:3", Choices(("0.01", "0.1", "1.0"))),
        ("0..10:3", Choices(("0", "5", "10"))),
        ("[0,1]", "[0,1]"),
        ("[0,1],[2]", Choices(("[0,1]", "[2]"))),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}'),
    ],
)
def test_forms(text: str, meant: object) -> None:
    found = space.parse("lr", text)
    if isinstance(meant, Choices) and isinstance(found, Choices):
        assert len(found.values) == len(meant.values)
        for mine, theirs in zip(found.values, meant.values, strict=True):
            assert mine == theirs or float(mine) == pytest.approx(float(theirs), rel=1e-12)
    else:
        assert found == meant


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("lr=0.1..0.01", "smaller one"),
        ("lr=0.1..0.1", "smaller one"),
        ("lr=0..1:log", "must start above 0"),
        ("lr=0.1..1:lgo", ":log, a number of points"),
        ("lr=0.1..1:1", "at least 2"),
        ("lr=0.1..1:log:log", ":log, a number of points"),
        ("lr=0.1...1", "not a range of numbers"),
        ("lr=0.1..high", "not a range of numbers"),
        ("lr=0.1,,1", "empty value"),
        ("lr=0.1,0.1", "twice"),
        ("lr=0.1,fast", "train.lr = 'fast' is not allowed"),
        ("lr=-1.0..0.1", "train.lr = -1.0 is not allowed"),
        ("epochs=1.5,2", "train.epochs = 1.5"),
        ("rl=0.1,0.2", "Unknown key 'rl'"),
        ("loss=focal,fokal", "Unknown loss 'fokal'. Did you mean 'focal'"),
        ("lr", "not of the form key=value"),
        ("val_share=0.1,0.2", "must be the same in all trials"),
        ("split_seed=0..2", "must be the same in all trials"),
        ("workers=0,1", "must be the same in all trials"),
    ],
)
def test_mistakes_are_told_before_any_run(pair: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace("+", r"\+").replace(".", r"\.")):
        read("epochs=3" if not pair.startswith("epochs") else "lr=0.1", pair)


def test_settings_apply_in_their_order() -> None:
    found = read("tuner=lora", "rank=2,4", "lr=0.1", "seed=0..1")
    assert list(found.varied) == ["tuner.lora.rank", "seed"] and found.size() == 4
    grid = found.grid()
    assert [tuple(point.values()) for point in grid] == list(itertools.product(("2", "4"), ("0", "1")))
    made = found.config(grid[-1])
    assert made.tuner["lora"].rank == 4 and made.seed == 1 and made.train.lr == 0.1  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="given twice"):
        read("lr=0.1,0.2", "train.lr=0.3")


def test_a_grid_needs_an_end() -> None:
    found = read("lr=0.01..0.1")
    assert found.size() is None
    with pytest.raises(UserError, match=r"lr=0\.01\.\.0\.1:5"):
        found.grid()


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.001, 1e4),
    log=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_draws_stay_inside_and_repeat(low: float, factor: float, log: bool, whole: bool, seed: int) -> None:
    high = low * factor
    span = Range(float(int(low) + 1), float(int(high) + 2), log, True) if whole else Range(low, high, log)
    made = space.Space("photos", "mini_clip", "lift+", (("train.lr", span),))
    first, again = (list(itertools.islice(made.draws(seed), 2)) for _ in range(2))
    assert first == again
    for point in first:
        assert span.low <= float(point["train.lr"]) <= span.high
        assert not whole or point["train.lr"].isdecimal()


def test_logarithmic_draws_spread_over_the_decades() -> None:
    made = space.Space("photos", "mini_clip", "lift+", (("train.lr", Range(0.001, 1.0, log=True)),))
    drawn = [float(point["train.lr"]) for point in itertools.islice(made.draws(0), 3000)]
    for low in (0.001, 0.01, 0.1):
        assert sum(low <= value < 10 * low for value in drawn) == pytest.approx(1000, abs=110)  # four deviations
    assert len(set(drawn)) == 3000


@given(st.lists(st.text(st.characters(exclude_characters=",\"'[](){}"), min_size=1).map(str.strip), min_size=1))
def test_plain_lists_come_apart_as_written(parts: list[str]) -> None:
    assert space.split(",".join(parts), ",") == parts
