"""Conformal sets: closed forms, MAPIE as an oracle, coverage over draws, and what is said of classes with too few."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from liftplus.calibration import sets
from liftplus.calibration.calibrated import Frequencies
from liftplus.calibration.sets import Known

COUNTS = (300, 150, 60, 30, 12, 5)  # two classes of each group
CLASSES = len(COUNTS)


def drawn(per_class: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, C] of a poor classifier, poorer for rare classes, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(CLASSES), per_class)
    logits = torch.randn(len(labels), CLASSES, generator=generator)
    logits[torch.arange(len(labels)), labels] += 2.5 - 0.4 * labels
    return logits.double().log_softmax(-1), labels


def known(logs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Known:
    prior = torch.tensor(COUNTS).double().log().log_softmax(0)
    ones = torch.ones(CLASSES, dtype=torch.float64)
    return Known(logs.gather(1, labels[:, None])[:, 0], labels, COUNTS, prior, ones if weights is None else weights)


@pytest.mark.parametrize(("count", "level", "place"), [(9, 0.9, 9), (19, 0.9, 18), (99, 0.95, 95), (8, 0.9, None)])
def test_the_quantile_is_the_score_with_the_right_rank(count: int, level: float, place: int | None) -> None:
    scores = torch.arange(1, count + 1).double()[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    found = float(sets.quantiles(scores, torch.ones(count), level)(torch.ones(1))[0])
    assert found == (math.inf if place is None else place)
    assert (count >= sets.needed(level)) == math.isfinite(found)


def test_weights_count_like_copies() -> None:
    scores, copies = torch.tensor([0.3, 0.1, 0.7, 0.5]).double(), torch.tensor([2, 5, 1, 3])
    for level in (0.3, 0.5, 0.8, 0.91):
        weighted = sets.quantiles(scores, copies, level)(torch.ones(1))
        plain = sets.quantiles(scores.repeat_interleave(copies), torch.ones(11), level)(torch.ones(1))
        assert torch.equal(weighted, plain)


class _Given(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(CLASSES)

    def fit(self, _inputs: object, _labels: object) -> _Given:
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return inputs.argmax(1)

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        return inputs


@pytest.mark.parametrize("level", [0.6, 0.9, 0.95])
def test_mapie_makes_the_same_sets(level: float) -> None:
    """Over all pictures, and by group with a MAPIE for each group."""
    from mapie.classification import SplitConformalClassifier

    logs, labels = drawn(torch.tensor([200, 90, 70, 50, 40, 30]), 0)
    new, _ = drawn(torch.tensor([40] * CLASSES), 1)

    def theirs(inside: Tensor) -> Tensor:
        mapie = SplitConformalClassifier(_Given(), confidence_level=level, conformity_score="lac", prefit=True)
        mapie.conformalize(logs[inside].exp().numpy(), labels[inside].numpy())
        return torch.from_numpy(mapie.predict_set(new.exp().numpy())[1][:, :, 0])

    own = known(logs, labels)
    every = torch.ones_like(labels, dtype=torch.bool)
    assert torch.equal(sets.members(new, sets.limits(own, level, "all")), theirs(every))
    by_group = torch.zeros(len(new), CLASSES, dtype=torch.bool)
    for group in own.groups.unique():
        columns = own.groups == group
        by_group[:, columns] = theirs(columns[labels])[:, columns]
    assert torch.equal(sets.members(new, sets.limits(own, level, "group")), by_group)


@pytest.mark.parametrize("by", sets.RULES)
def test_coverage_over_draws_is_what_was_promised(by: sets.By) -> None:
    per_class = torch.tensor([120, 60, 50, 30, 30, 20])
    found = []
    for draw in range(60):
        logs, labels = drawn(per_class, 2 * draw)
        new, truth = drawn(per_class, 2 * draw + 1)
        inside = sets.members(new, sets.limits(known(logs, labels), 0.9, by)).gather(1, truth[:, None])[:, 0]
        groups = known(logs, labels).groups[truth]
        found.append([float(inside.double().mean()), *(float(inside[groups == g].double().mean()) for g in range(3))])
    overall, *groups = np.mean(found, axis=0)
    assert abs(overall - 0.9) < 0.01
    if by == "group":  # a finite sample adds at most 1 / (n + 1)
        for share, pictures in zip(groups, (180, 80, 50), strict=True):
            assert -0.01 < share - 0.9 < 0.01 + 1 / (pictures + 1)
    else:
        assert min(groups) < 0.87 if by == "all" else min(groups) > 0.85


def test_a_prior_of_use_keeps_the_promise_where_classes_are_as_frequent_as_it_says() -> None:
    """Calibrated on a long tail, used where all classes are alike: plain sets would cover too little."""
    tail, flat = torch.tensor([400, 200, 100, 60, 40, 30]), torch.tensor([100] * CLASSES)
    weights = Frequencies(COUNTS, torch.zeros(CLASSES), torch.zeros(CLASSES).log_softmax(0)).weights(tail)
    assert torch.allclose(weights * tail, (weights * tail).mean())
    weighted, plain = [], []
    for draw in range(40):
        logs, labels = drawn(tail, 2 * draw)
        new, truth = drawn(flat, 2 * draw + 1)
        for table, own in ((weighted, known(logs, labels, weights)), (plain, known(logs, labels))):
            inside = sets.members(new, sets.limits(own, 0.9, "all")).gather(1, truth[:, None])
            table.append(float(inside.double().mean()))
    assert abs(np.mean(weighted) - 0.9) < 0.01
    assert np.mean(plain) < 0.88


def test_class_goes_from_one_quantile_to_each_class_s_own() -> None:
    logs, labels = drawn(torch.tensor([200, 150, 120, 100, 90, 80]), 3)
    new, truth = drawn(torch.tensor([2000] * CLASSES), 4)
    own = known(logs, labels)
    spread = []
    for share in (0.0, 0.5, 1.0):
        inside = sets.members(new, sets.limits(own, 0.9, "class", share)).gather(1, truth[:, None])[:, 0]
        by_class = [float(inside[truth == k].double().mean()) for k in range(CLASSES)]
        spread.append(max(by_class) - min(by_class))
    assert all(before > after for before, after in pairwise(spread))
    # Without a share of the classes' own, it is the quantile of -log p + log prior over all pictures.
    scores = own.log_prior[labels] - own.own
    everyone = sets.quantiles(scores, torch.ones(len(labels)), 0.9)(torch.ones(1))
    assert torch.allclose(sets.limits(own, 0.9, "class", 0.0), everyone - own.log_prior)


def test_higher_levels_give_larger_sets() -> None:
    logs, labels = drawn(torch.tensor([100] * CLASSES), 5)
    for by in sets.RULES:
        tables = [sets.members(logs, sets.limits(known(logs, labels), level, by)) for level in (0.5, 0.8, 0.9, 0.97)]
        for less, more in pairwise(tables):
            assert bool((less <= more).all()) and int(more.sum()) > int(less.sum())


def test_too_few_pictures_are_told_and_their_classes_stay_in_every_set() -> None:
    names = [f"kind {k}" for k in range(CLASSES)]
    logs, labels = drawn(torch.tensor([40, 30, 20, 15, 8, 0]), 6)
    own = known(logs, labels)
    said = " ".join(sets.shortages(own, 0.9, "group", names))
    assert "1 class has no calibration picture: 'kind 5'" in said
    assert "few training pictures have 8 calibration pictures" in said and "needs 9" in said
    limits = sets.limits(own, 0.9, "group")
    assert limits[4:].isinf().all() and limits[:4].isfinite().all()
    said = " ".join(sets.shortages(own, 0.9, "class", names))
    assert "'kind 4', 'kind 5'" in said and "2 classes have fewer than the 9" in said
    assert sets.limits(own, 0.9, "class").isfinite().all()
    plenty = known(*drawn(torch.tensor([40] * CLASSES), 7))
    assert [note for by in sets.RULES for note in sets.shortages(plenty, 0.9, by, names)] == []


def test_a_class_that_never_occurs_in_use_is_in_no_set() -> None:
    logs, labels = drawn(torch.tensor([40] * CLASSES), 8)
    prior = torch.tensor([1.0, 1, 1, 1, 1, 0]).double().log().clamp(min=-1e4)
    weights = Frequencies(COUNTS, prior, prior).weights(torch.tensor([40] * CLASSES))
    for by in sets.RULES:
        assert not sets.members(logs, sets.limits(known(logs, labels, weights), 0.9, by))[:, 5].any()
