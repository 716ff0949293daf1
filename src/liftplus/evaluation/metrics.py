"""Accuracies on long-tailed data: overall, mean over classes, and by the classes' training counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MANY_OVER, FEW_UNDER = 100, 20
GROUPS = ("many", "medium", "few")
"""The groups of `group_of`, the most frequent first."""
FREQUENCIES = ("frequent", "common", "rare")
"""The class groups of LVIS, by the training images of the whole data set. A data set may name a group per class."""


def group_of(count: int) -> str:
    """The group of a class: "many" over 100 training images, "few" under 20, else "medium" (Liu et al. 2019)."""
    return "many" if count > MANY_OVER else "few" if count < FEW_UNDER else "medium"


def ranked(scores: Tensor, k: int) -> Tensor:
    """The k best classes of each row of scores [N, C], best first, int64 [N, k]. Ties go to the lower class index."""
    import torch  # imported here because users of the groups alone do not need PyTorch

    classes = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    parts = []
    for left in scores.split(1024):  # all rows at once could fill memory
        left, found = left.clone(), []
        for _ in range(k):  # a sort is far slower, and torch.topk breaks ties arbitrarily
            best = left.amax(-1, keepdim=True)
            first = torch.where(left == best, classes, scores.shape[1] - 1).amin(-1).long()
            found.append(first)
            left.scatter_(1, first[:, None], -torch.inf)
        parts.append(torch.stack(found, dim=-1))
    return torch.cat(parts)


@dataclass(frozen=True)
class LevelAccuracy:
    """How often the group that is answered at a level above the classes is right.

    The answer is the group whose classes have the largest sum of probabilities, so it depends on their temperature.

    Attributes:
        groups: number of groups of the level.
        overall: share of test images whose group is right, in percent.
        mean_group: mean over the groups that have test images, in percent.
    """

    groups: int
    overall: float
    mean_group: float


@dataclass(frozen=True)
class Metrics:
    """Accuracies in percent. A group without test images is None.

    Attributes:
        overall: share of test images that are right.
        mean_class: mean of the classes' accuracies.
        many, medium, few: mean over the classes of one group.
        per_class: accuracy of each class; None for a class without test images.
        images: number of test images.
        frequency: mean over the classes of each group in `FREQUENCIES`; empty if the data name no such groups.
        levels: accuracies at levels above the classes, the highest first; empty if the data have no such levels.
    """

    overall: float
    mean_class: float
    many: float | None
    medium: float | None
    few: float | None
    per_class: tuple[float | None, ...]
    images: int
    frequency: Mapping[str, float | None] = field(default_factory=dict)
    levels: Mapping[str, LevelAccuracy] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """All figures except the per-class list."""
        plain = {key: value for key, value in vars(self).items() if key not in ("per_class", "frequency", "levels")}
        levels = {"levels": {name: asdict(one) for name, one in self.levels.items()}} if self.levels else {}
        return plain | dict(self.frequency) | levels

    def with_frequency(self, groups: Sequence[str]) -> Metrics:
        """A copy with means over the classes of each frequency group; `groups` has the group of each class [C]."""
        found = {}
        for name in FREQUENCIES:
            own = [a for a, group in zip(self.per_class, groups, strict=True) if group == name and a is not None]
            found[name] = float(np.mean(own)) if own else None
        return replace(self, frequency=found)

    def with_levels(self, levels: Mapping[str, LevelAccuracy]) -> Metrics:
        """A copy with accuracies at levels above the classes."""
        return replace(self, levels=levels)


def accuracies(
    predicted: Sequence[int] | NDArray[np.int64], labels: Sequence[int] | NDArray[np.int64], train_counts: Sequence[int]
) -> Metrics:
    """Metrics of predicted classes [N] against labels [N].

    A class without test images has no accuracy and does not enter a mean. Groups depend only on `train_counts` [C]; a
    class without training images counts as few.

    Raises:
        ValueError: the lengths differ, there is no image, or a label or prediction is not one of the C classes.
    """
    classes = len(train_counts)
    truth = np.asarray(labels, dtype=np.int64)
    guess = np.asarray(predicted, dtype=np.int64)
    if truth.shape != guess.shape or truth.size == 0:
        raise ValueError(f"need as many predictions as labels and at least one; got {guess.shape} and {truth.shape}")
    outside = [int(k) for k in np.unique(np.concatenate([truth, guess])) if not 0 <= k < classes]
    if outside:
        raise ValueError(f"labels and predictions are class indices from 0 to {classes - 1}; got {outside[:5]}")
    total = np.bincount(truth, minlength=classes)
    right = np.bincount(truth[truth == guess], minlength=classes)
    per_class = [100 * float(right[k]) / float(total[k]) if total[k] else None for k in range(classes)]
    groups: dict[str, list[float]] = {name: [] for name in GROUPS}
    for accuracy, count in zip(per_class, train_counts, strict=True):
        if accuracy is not None:
            groups[group_of(count)].append(accuracy)
    means = {name: float(np.mean(values)) if values else None for name, values in groups.items()}
    present = [accuracy for accuracy in per_class if accuracy is not None]
    return Metrics(
        overall=100 * float((truth == guess).mean()),
        mean_class=float(np.mean(present)),
        many=means["many"],
        medium=means["medium"],
        few=means["few"],
        per_class=tuple(per_class),
        images=int(truth.size),
    )
