"""Closed forms against plain statements in NumPy, and against rows fitted again without the picture left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.covariance import oas
from torch import Tensor

from liftplus.errors import UserError
from liftplus.model.closed_form import RIDGES, Blend, Gathering, LeaveOneOut, Ridge, Sample, Statistics, discriminants

DIM, COUNTS = 6, (9, 4, 1, 0, 2)
"""A long tail: a class of one picture, one without any."""


def made(dim: int = DIM, counts: tuple[int, ...] = COUNTS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit features and labels, the classes mixed up."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(counts), dim, generator=generator)
    return F.normalize(centres[labels] + torch.randn(len(labels), dim, generator=generator), dim=-1), labels


def gathered(x: Tensor, y: Tensor, classes: int = len(COUNTS), batch: int = 3) -> Statistics:
    gathering = Gathering(torch.bincount(y, minlength=classes), x.shape[1])
    for features, labels in zip(x.split(batch), y.split(batch), strict=True):
        gathering.add(features, labels)
    return gathering.statistics()


def plain_ridge(x: Tensor, y: Tensor, gamma: float, weights: Tensor) -> NDArray[np.float64]:
    """(sum_i w_i x_i x_i^T + gamma I)^-1 (sum_i w_i x_i e_y^T), transposed [C, D]."""
    a, w = x.double().numpy(), weights.double().numpy()
    targets = np.eye(len(COUNTS))[y.numpy()]
    moment = (a * w[:, None]).T @ a + gamma * np.eye(a.shape[1])
    return np.linalg.solve(moment, (a * w[:, None]).T @ targets).T


def balanced(y: Tensor) -> Tensor:
    return 1 / torch.bincount(y, minlength=len(COUNTS))[y].double()


@pytest.mark.parametrize("dim", [DIM, 40])
def test_ridge_is_the_plain_statement(dim: int) -> None:
    """Also with more dimensions than pictures, where the second moment has no full rank."""
    x, y = made(dim)
    ridge = Ridge(gathered(x, y))
    for gamma in RIDGES:
        expected = torch.from_numpy(plain_ridge(x, y, gamma * ridge.unit, balanced(y)))
        torch.testing.assert_close(ridge.weights(gamma), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    rows = ridge.rows(0.1)
    torch.testing.assert_close(rows[torch.tensor(COUNTS) > 0].norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert not rows[3].any()


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("dim", [DIM, 40])
def test_leave_one_out_is_fitting_again(dim: int, texts: bool) -> None:
    """Scores of every picture are those of rows that were fitted without it."""
    x, y = made(dim)
    ridge, blend = Ridge(gathered(x, y)), Blend(kappa=3, weight=4)
    text = F.normalize(torch.randn(len(COUNTS), dim, generator=torch.Generator().manual_seed(7)), dim=-1).double()
    found = torch.cat(list(LeaveOneOut(ridge, Sample(x, y), text if texts else None).scores(0.1, blend)))
    for i in range(len(y)):
        rest = torch.arange(len(y)) != i
        rows = plain_ridge(x[rest], y[rest], 0.1 * ridge.unit, balanced(y)[rest])
        unit = F.normalize(torch.from_numpy(rows), dim=-1)
        n = torch.bincount(y[rest], minlength=len(COUNTS)).double()
        if texts:
            unit = F.normalize(text + (4 * n / (n + 3))[:, None] * unit, dim=-1)
        there = torch.ones(len(COUNTS), dtype=torch.bool) if texts else n > 0
        torch.testing.assert_close(found[i, there], (unit @ x[i].double())[there], rtol=1e-6, atol=1e-9)


def test_leave_one_out_accuracy_leaves_single_pictures_aside() -> None:
    """The mean over the classes of two or more; a class of one has nothing left to be recognised by."""
    x = torch.eye(4)[[0, 0, 1, 1, 1, 2]]
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    assert LeaveOneOut(Ridge(gathered(x, y, 3)), Sample(x, y)).accuracy(0.1) == 1.0
    x, y = torch.eye(4)[[0, 0, 0, 1, 1, 1, 2]], torch.tensor([0, 0, 0, 0, 1, 1, 2])
    assert LeaveOneOut(Ridge(gathered(x, y, 3)), Sample(x, y)).accuracy(0.1) == pytest.approx((3 / 4 + 1) / 2)
    single = torch.tensor([0])
    assert LeaveOneOut(Ridge(gathered(x[:1], single, 1)), Sample(x[:1], single)).accuracy(0.1) == 0.0


def test_a_class_added_later_gives_the_same_rows() -> None:
    """Ridge and discriminants know nothing of the order in which classes came."""
    x, y = made()
    old = y < 3
    later = gathered(x[old], y[old], 3) + gathered(x[~old], y[~old] - 3, 2)
    at_once = gathered(x, y, batch=100)
    torch.testing.assert_close(Ridge(later).rows(0.1), Ridge(at_once).rows(0.1), rtol=1e-10, atol=1e-12)
    for one, other in zip(discriminants(later), discriminants(at_once), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def plain_discriminants(x: Tensor, y: Tensor) -> Tensor:
    """-(x - mu_c)^T S^-1 (x - mu_c) / 2 for every x and class [N, C], S shrunk by scikit-learn's formula."""
    a = x.double().numpy()
    means = np.stack([a[y == c].mean(0) if (y == c).any() else np.zeros(a.shape[1]) for c in range(len(COUNTS))])
    there = np.bincount(y, minlength=len(COUNTS)) > 0
    means[~there] = means[there].mean(0)
    within, freedom = a - means[y], len(a) - there.sum()
    covariance, level = within.T @ within / freedom, np.trace(within.T @ within) / freedom / a.shape[1]
    square = (covariance**2).mean()
    amount = min(1.0, (square + level**2) / ((freedom + 1) * (square - level**2 / a.shape[1])))
    precision = np.linalg.inv((1 - amount) * covariance + amount * level * np.eye(a.shape[1]))
    apart = a[:, None] - means
    return torch.from_numpy(-np.einsum("ncd,de,nce->nc", apart, precision, apart) / 2)


@pytest.mark.parametrize("dim", [DIM, 40])
def test_discriminants_are_the_plain_statement(dim: int) -> None:
    """But for what is the same for all classes of one picture."""
    x, y = made(dim)
    weights, biases = discriminants(gathered(x, y))
    found, expected = x.double() @ weights.T + biases, plain_discriminants(x, y)
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], rtol=1e-7, atol=1e-7)


def test_shrinkage_is_that_of_scikit_learn() -> None:
    """One class of even numbers of mirrored pictures, whose mean is 0: N - C for N is all that differs."""
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([3.0, 1, 1, 0.5])
    both = torch.cat([x, -x])
    _, amount = oas(both.numpy(), assume_centered=True)
    statistics = gathered(both, torch.zeros(40, dtype=torch.long), 1)
    covariance = both.T @ both / 39
    square, level = covariance.square().mean(), covariance.trace() / 4
    ours = (square + level**2) / (40 * (square - level**2 / 4))
    assert float(ours) == pytest.approx(amount, rel=0.05)
    assert not discriminants(statistics)[0].any()  # one class is its own origin


@pytest.mark.parametrize("picture", [torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)])
def test_one_picture_a_class(picture: Tensor) -> None:
    """Without any spread within classes the nearest mean wins; equal or empty pictures give finite rows."""
    statistics = gathered(picture, torch.arange(3), 3)
    weights, biases = discriminants(statistics)
    assert weights.isfinite().all() and biases.isfinite().all()
    assert Ridge(statistics).rows(0.1).isfinite().all()
    if picture.equal(torch.eye(3)):
        assert (picture.double() @ weights.T + biases).argmax(1).tolist() == [0, 1, 2]
        assert (picture.double() @ Ridge(statistics).rows(0.1).T).argmax(1).tolist() == [0, 1, 2]


def test_texts_and_pictures_share_the_rows() -> None:
    """A class without pictures has its text alone; the more pictures, the less of it."""
    texts, pictures = F.normalize(torch.eye(3).double()), F.normalize(torch.eye(3).double().roll(1, 0))
    counts = torch.tensor([0, 2, 1000])
    rows = Blend(kappa=2, weight=3).rows(pictures, texts, counts)
    torch.testing.assert_close(rows[0], texts[0])
    torch.testing.assert_close(rows[1], F.normalize(texts[1] + 1.5 * pictures[1], dim=0))
    torch.testing.assert_close(rows[2], F.normalize(texts[2] + 3 * 1000 / 1002 * pictures[2], dim=0))
    assert Blend(kappa=0).share(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = made()
    x[3, 2] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        gathered(x, y)
