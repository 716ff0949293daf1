"""What was measured of sets and of unknown pictures, overall and for classes with many, medium and few pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from liftplus.calibration.sets import groups_of
from liftplus.evaluation.metrics import GROUPS

OVERALL = "overall"


@dataclass(frozen=True)
class Covered:
    """Sets of some pictures.

    Attributes:
        pictures: how many.
        coverage: share of them whose set holds their class, in percent.
        size: mean number of classes in a set.
        empty: share of sets without a class, in percent.
    """

    pictures: int
    coverage: float
    size: float
    empty: float

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {key: round(value, 2) for key, value in asdict(self).items()}


def covered(members: Tensor, labels: Tensor, train_counts: Sequence[int], weights: Tensor) -> dict[str, Covered]:
    """`Covered` for all pictures and for those of each group of classes; a group without pictures is left out.

    Args:
        members: which classes are in each picture's set, bool [N, C].
        labels: classes of the pictures [N].
        train_counts: training pictures of each class [C].
        weights: how much each picture counts [N]; a group whose pictures count nothing is left out.
    """
    inside = members.gather(1, labels[:, None])[:, 0].double()
    sizes = members.sum(1).double()
    return {
        name: Covered(
            int(own.sum()),
            100 * _mean(inside[own], weights[own]),
            _mean(sizes[own], weights[own]),
            100 * _mean((sizes[own] == 0).double(), weights[own]),
        )
        for name, own in _parts(labels, train_counts).items()
        if weights[own].sum() > 0
    }


def mean_class(members: Tensor, labels: Tensor) -> float:
    """Mean over the classes with pictures of the share of their pictures that are covered, in percent."""
    inside = members.gather(1, labels[:, None])[:, 0].double()
    counts = torch.bincount(labels, minlength=members.shape[1])
    right = torch.zeros(members.shape[1], dtype=torch.float64).index_add_(0, labels, inside)
    return 100 * float((right[counts > 0] / counts[counts > 0]).mean())


def shares(flags: Tensor, labels: Tensor, train_counts: Sequence[int], weights: Tensor) -> dict[str, float]:
    """Share of pictures with a flag [N], in percent, overall and by group. Arguments are as for `covered`."""
    return {
        name: 100 * _mean(flags[own].double(), weights[own])
        for name, own in _parts(labels, train_counts).items()
        if weights[own].sum() > 0
    }


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def _parts(labels: Tensor, train_counts: Sequence[int]) -> dict[str, Tensor]:
    groups = groups_of(train_counts)[labels]
    found = {OVERALL: torch.ones_like(labels, dtype=torch.bool)}
    found |= {name: groups == index for index, name in enumerate(GROUPS)}
    return {name: own for name, own in found.items() if own.any()}
