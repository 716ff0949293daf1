"""Scores of unknown pictures: closed forms, pytorch-ood as an oracle, and the choice by hidden classes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from liftplus.calibration import calibrated, unknown
from liftplus.calibration.calibrated import Frequencies, Pictures
from liftplus.calibration.unknown import Reference, Views
from liftplus.errors import UserError
from liftplus.evaluation.priors import RULED_OUT

CLASSES, WIDTH = 6, 12
COUNTS = (60, 40, 30, 20, 12, 8)


def made(seed: int, per_class: tuple[int, ...] = COUNTS) -> tuple[Tensor, Tensor]:
    """Features [N, D] around a centre for each class, and labels [N]."""
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(per_class))
    noise = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise + 3, labels


def logits_of(features: Tensor) -> Tensor:
    return features @ torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(98))


def test_pytorch_ood_gives_the_same_scores() -> None:
    from pytorch_ood import detector as ood

    (x, y), (q, _) = made(0), made(1)
    z = logits_of(q)
    views = Views.of(z, q, Reference.of(x, y, CLASSES))
    found = {name: unknown.SINGLE[name](views) for name in unknown.SINGLE}
    assert torch.allclose(found["energy"], ood.EnergyBased(None).predict_logits(z), atol=1e-5)
    assert torch.allclose(found["entropy"], ood.Entropy(None).predict_logits(z), atol=1e-5)
    # Distance of unit vectors to cosine: d^2 = 2 - 2 cos. The bank is kept in half precision.
    distance = ood.KNN(None, k=1).fit_features(x, y).predict_features(q).float()
    assert torch.allclose(1 - distance.square() / 2, -found["nearest"], atol=2e-3)
    head = torch.nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    own = Views.of(head(q), q, Reference.of(x, y, head.weight))
    theirs = ood.fDBD(None, head).fit_features(x, y).predict_features(q)
    assert torch.allclose(theirs, unknown.SINGLE["margin"](own), atol=1e-5)
    # A head whose rows are equally far from each other needs none of them.
    head.weight.copy_(torch.eye(CLASSES, WIDTH) / math.sqrt(2))
    with_rows, without = (Views.of(head(q), q, Reference.of(x, y, rows)) for rows in (head.weight, CLASSES))
    assert torch.allclose(unknown.SINGLE["margin"](with_rows), unknown.SINGLE["margin"](without), atol=1e-5)


def test_relative_is_the_difference_of_two_mahalanobis_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """By scikit-learn, whose covariances are maximum likelihood too."""
    from sklearn.covariance import EmpiricalCovariance

    monkeypatch.setattr(unknown, "SHRINK", 0.0)
    (x, y), (q, _) = made(0), made(1)
    means = torch.stack([x[y == k].mean(0) for k in range(CLASSES)])
    within = EmpiricalCovariance(assume_centered=True).fit((x - means[y]).numpy())
    each = torch.stack([torch.from_numpy(within.mahalanobis((q - one).numpy())) for one in means])
    every = torch.from_numpy(EmpiricalCovariance().fit(x.numpy()).mahalanobis(q.numpy()))
    found = unknown.SINGLE["relative"](Views.of(logits_of(q), q, Reference.of(x, y, CLASSES)))
    assert torch.allclose(found, (each.amin(0) - every).float(), rtol=1e-3, atol=1e-3)


def test_auroc_is_scikit_learn_s_with_ties() -> None:
    known, strange = torch.tensor([0.0, 1, 1, 2, 3]), torch.tensor([1.0, 2, 2, 5])
    flags = [0] * 5 + [1] * 4
    assert unknown.auroc(known, strange) == pytest.approx(roc_auc_score(flags, torch.cat([known, strange])))


def test_a_sum_is_of_scores_in_units_of_their_deviation() -> None:
    (x, y), (q, _) = made(0), made(1)
    views = Views.of(logits_of(q), q, Reference.of(x, y, CLASSES))
    by = unknown.scales("margin+nearest", views)
    expected = torch.zeros(len(q))
    for part in ("margin", "nearest"):
        values = unknown.SINGLE[part](views)
        expected += (values - values.mean()) / values.std(correction=0)
    assert torch.allclose(unknown.score("margin+nearest", views, by), expected, atol=1e-4)


def test_only_what_a_score_needs_is_kept_and_it_stays_the_same() -> None:
    (x, y), (q, _) = made(0), made(1)
    whole = Reference.of(x, y, CLASSES)
    for name in unknown.SCORES:
        less = whole.needed_by(name)
        views, fewer = (Views.of(logits_of(q), q, one) for one in (whole, less))
        by = unknown.scales(name, views)
        assert torch.equal(unknown.score(name, views, by), unknown.score(name, fewer, by))
    assert len(whole.needed_by("margin").bank) == 0 and len(whole.needed_by("nearest").means) == 0


def test_the_choice_by_hidden_classes_and_the_promised_rate() -> None:
    """Here features tell and logits at random do not."""
    (x, y), (q, truth), (new, new_truth) = made(0), made(1), made(2, (400,) * CLASSES)
    pictures = Pictures(torch.randn(len(q), CLASSES, generator=torch.Generator().manual_seed(3)), q, truth)
    found = calibrated.fit(pictures, Frequencies(COUNTS, torch.zeros(CLASSES)), (x, y))
    assert set(found.judged) == set(unknown.SCORES)
    assert found.score == max(found.judged, key=lambda name: found.judged[name])
    assert found.judged["nearest"] > 0.9 and found.judged["mean"] > 0.9
    assert found.score in ("nearest", "mean", "margin+nearest", "entropy+nearest")
    nearest = calibrated.with_score(
        pictures, Frequencies(COUNTS, torch.zeros(CLASSES)), "nearest", Reference.of(x, y, CLASSES), {}
    )
    scores = nearest.scores(torch.zeros(len(new), CLASSES), new)
    weight = torch.tensor(COUNTS)[new_truth] / 400.0
    alarms = float((weight * (scores > nearest.threshold(0.1))).sum() / weight.sum())
    assert 0.03 < alarms < 0.2
    far = nearest.scores(torch.zeros(500, CLASSES), torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(4)))
    assert float((far > nearest.threshold(0.1)).double().mean()) > 0.9


def test_a_rate_that_the_pictures_cannot_promise_is_refused() -> None:
    x, y = made(0)
    pictures = Pictures(logits_of(x), x, y)
    found = calibrated.with_score(pictures, Frequencies(COUNTS, torch.zeros(CLASSES)), "energy", None, {})
    assert len(y) == 170 and math.isfinite(found.threshold(0.01))
    with pytest.raises(UserError, match=r"0\.005 needs at least 199 calibration pictures .* there are 170"):
        found.threshold(0.005)


def test_without_training_features_logits_tell() -> None:
    x, y = made(0)
    found = calibrated.fit(Pictures(logits_of(x), x, y), Frequencies(COUNTS, torch.zeros(CLASSES)), None)
    assert found.score == "energy" and found.reference is None and not found.judged


def test_too_few_classes_to_hide_some() -> None:
    x, y = made(0)
    own = y < 3
    assert unknown.compare(x[own], y[own], x[own], y[own], 3) == {}


def test_classes_that_a_prior_rules_out_do_not_count() -> None:
    (x, y), (q, _) = made(0), made(1)
    head = torch.nn.Linear(WIDTH, CLASSES).requires_grad_(False)
    ruled = head(q)
    ruled[:, [1, 4]] += RULED_OUT
    left = [0, 2, 3, 5]
    whole = Views.of(ruled, q, Reference.of(x, y, head.weight))
    alone = Views.of(head(q)[:, left], q, dataclasses.replace(Reference.of(x, y, CLASSES), rows=head.weight[left]))
    assert torch.allclose(unknown.SINGLE["margin"](whole), unknown.SINGLE["margin"](alone), atol=1e-5)
