"""Answers at levels above the classes: at each the group whose classes have the largest sum of probabilities.

The temperature of the probabilities changes which sum is the largest, though not which class is the best. Say they are
0.4, 0.3 and 0.3, and the last two classes are a group. It is ahead with 0.6. At temperature 1/3 each becomes its cube,
divided by the sum of the cubes. Before the division the group has 0.054, and the first class has 0.064.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liftplus.data.dataset import Levels
from liftplus.evaluation.metrics import LevelAccuracy


@dataclass(frozen=True)
class Level:
    """One level above the classes.

    Attributes:
        name: of the level.
        groups: names of its G groups, in the order in which the classes reach them.
        of: the group of each class, int64 [C].
    """

    name: str
    groups: tuple[str, ...]
    of: Tensor

    def sums(self, chances: Tensor) -> Tensor:
        """Probabilities of the groups [N, G] from those of the classes [N, C]."""
        count = chances.shape[0]  # len() would fix a graph's size of a batch
        # In ONNX index_add becomes ScatterND, which some runtimes compute in parallel, and its sums then race.
        return chances.new_zeros(count, len(self.groups)).scatter_add(
            1, self.of.to(chances.device).expand(count, -1), chances
        )


def above(levels: Levels, class_ids: Sequence[str]) -> tuple[Level, ...]:
    """The levels above these classes, highest first; each must have a group of every class."""
    found = []
    for name, groups in levels.items():
        order = tuple(dict.fromkeys(groups[label] for label in class_ids))
        place = {group: k for k, group in enumerate(order)}
        found.append(Level(name, order, torch.tensor([place[groups[label]] for label in class_ids])))
    return tuple(found)


def classes(names: Sequence[str]) -> Level:
    """The classes themselves as the lowest level; it is not called class, which is a level of the taxonomy."""
    return Level("leaf", tuple(names), torch.arange(len(names)))


def accuracy(level: Level, answers: Tensor, labels: Sequence[int]) -> LevelAccuracy:
    """The accuracy of a level's answers, group numbers int64 [N], for pictures with these classes [N]."""
    truth, given, count = level.of[torch.tensor(labels)].numpy(), answers.numpy(), len(level.groups)
    total = np.bincount(truth, minlength=count)
    right = np.bincount(truth[truth == given], minlength=count)
    tested = total > 0
    share = right[tested] / total[tested]
    return LevelAccuracy(count, 100 * float(right.sum() / total.sum()), 100 * float(share.mean()))
