"""The module for graphs: the same sets and unknown pictures as the calibration itself, and answers at levels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from liftplus.calibration import calibrated, promised, unknown
from liftplus.calibration.calibrated import Calibration, Frequencies, Pictures
from liftplus.calibration.promised import Promised
from liftplus.calibration.sets import RULES, By
from liftplus.calibration.unknown import Reference, Views
from liftplus.evaluation import levels

from .test_unknown import CLASSES, COUNTS, logits_of, made

FREQUENCIES = Frequencies(COUNTS, torch.zeros(CLASSES))


@pytest.fixture(scope="module")
def whole() -> Calibration:
    training, (x, y) = made(0), made(1)
    head = torch.nn.Linear(12, CLASSES).requires_grad_(False)
    return calibrated.fit(Pictures(logits_of(x), x, y), FREQUENCIES, training, head.weight)


def with_score(name: str) -> Calibration:
    (x, y), (q, labels) = made(0), made(1)
    reference = Reference.of(x, y, torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(3)))
    given = Pictures(logits_of(q), q, labels)
    return calibrated.with_score(given, FREQUENCIES, name, reference.needed_by(name), {})


def test_nothing_asked_gives_probabilities_alone(whole: Calibration) -> None:
    x, _ = made(2)
    plain, warm = Promised(), Promised(whole)
    assert list(plain.outputs) == list(warm.outputs) == ["probabilities"] and not plain.asked and not warm.asked
    (found,), (scaled,) = plain(logits_of(x), x), warm(logits_of(x), x)
    assert torch.equal(found, logits_of(x).softmax(-1)) and whole.temperature != 1
    assert torch.allclose(scaled, (logits_of(x) / whole.temperature).softmax(-1))


@pytest.mark.parametrize("by", RULES)
def test_sets_are_the_calibrations(by: By, whole: Calibration) -> None:
    x, _ = made(2)
    module = Promised(whole, 0.9, by, 0.25)
    _, inside = module(logits_of(x), x)
    expected = whole.members(logits_of(x), 0.9, by, 0.25)
    assert list(module.outputs) == ["probabilities", "in_set"]
    assert torch.equal(inside, expected) and 0 < expected.float().mean() < 1


def test_a_class_that_is_in_every_set_or_in_none() -> None:
    (x, y), frequencies = made(1), dataclasses.replace(FREQUENCIES, in_use=torch.tensor([1.0, 1, 1, 1, 1, 0]).log())
    found = calibrated.fit(Pictures(logits_of(x), x, y), frequencies, None)
    _, inside = Promised(found, 0.999, "all")(logits_of(x), x)  # more than the pictures can promise
    assert inside[:, :-1].all() and not inside[:, -1].any()


@pytest.mark.parametrize("name", unknown.SCORES)
def test_unknown_pictures_are_the_calibrations(name: str) -> None:
    found, (x, _) = with_score(name), made(2)
    x = torch.cat([x, 5 * torch.randn(20, 12)])
    module = Promised(found, alarms=0.1)
    _, score, flagged = module(logits_of(x), x)
    expected = found.scores(logits_of(x), x)
    assert list(module.outputs) == ["probabilities", "unknown_score", "unknown"]
    assert module.needs_features == (name not in unknown.OF_LOGITS)
    assert torch.allclose(score, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(flagged, expected > found.threshold(0.1)) and 0 < flagged.float().mean() < 1


def test_answers_are_at_the_deepest_sure_level(whole: Calibration) -> None:
    groups = {"kingdom": dict.fromkeys("abc", "all"), "genus": {"a": "x", "b": "x", "c": "y"}}
    every = (*levels.above(groups, "abc"), levels.classes("abc"))
    chances = torch.tensor([[0.95, 0.03, 0.02], [0.5, 0.45, 0.05], [0.4, 0.25, 0.35]])
    told = Promised(levels=every, sure=0.9)
    assert list(told.outputs) == ["probabilities", "level", "group", "group_probability"] and not told.asked
    _, level, group, chance = told(chances.log(), chances)
    assert level.tolist() == [2, 1, 0] and group.tolist() == [0, 0, 0]
    torch.testing.assert_close(chance, torch.tensor([0.95, 0.95, 1.0]))
    _, level, group, chance = Promised(levels=every[1:], sure=0.9)(chances.log(), chances)
    assert level.tolist() == [1, 0, -1] and group.tolist() == [0, 0, -1] and chance.isnan().tolist() == [0, 0, 1]
    _, level, group, _ = Promised(levels=every[1:2])(chances.log(), chances)
    assert level.tolist() == [0, 0, 0] and group.tolist() == [0, 0, 0]
    # The sums are of the calibrated probabilities.
    _, _, _, chance = Promised(whole, levels=every[2:])(chances.log(), chances)
    torch.testing.assert_close(chance, (chances.log() / whole.temperature).softmax(-1).amax(1))


@pytest.mark.parametrize("sure", [0.1, 0.3, 0.7, 0.9, 1 / 3, 1.0])
def test_the_least_probability_is_that_of_predict_to_the_bit(sure: float) -> None:
    """`predict` compares in double precision."""
    near = torch.tensor(sure)
    for one in (near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(2.0))):
        assert bool(one >= promised._least(sure)) == (float(one) >= sure)


def test_many_pictures_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (q, _) = made(0), made(1)
    reference = Reference.of(x, y, CLASSES)
    once = Views.of(logits_of(q), q, reference)
    monkeypatch.setattr(unknown, "_PIECE", 7)
    parts = Views.of(logits_of(q), q, reference)
    for one, other in zip(vars(once).values(), vars(parts).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
