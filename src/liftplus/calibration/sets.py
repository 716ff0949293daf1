"""Conformal sets of classes: sets that hold a picture's class as often as promised.

N labelled pictures that the model was not trained on, C classes. Every rule gives one limit per class, and a class y is
in the set of a picture x where -log p(y | x) is at most its limit. The limits are quantiles over the N pictures of the
same quantity for their own class, so a new picture of the same kind is within its own limit with the promised
probability (Vovk et al. 2005; Sadinle et al. 2019 for the sets with a limit on p):

`all`: one quantile over all pictures. The promise holds overall; sets are the smallest for it.
`group`: one quantile for the classes of each group. The promise holds overall and for the pictures of each group.
`class`: for long tails, after Ding et al. 2025 (arXiv 2507.06867). The score is -log(p(y | x) / prior(y)), so that rare
    classes get no harder limit because they are rare, and each class's limit lies between its own quantile and one for
    all. The promise holds overall; rare classes are covered more evenly than by `all`.

The quantile of n scores at a level a is the ceil((n + 1) a)-th smallest, and infinite if there are fewer; then the
class is in every set. Pictures count by `Known.weights` if the classes' frequencies in use differ from those among
the N pictures; a new picture counts like one of the class that is asked about (Podkopaev and Ramdas 2021).

differs: the paper interpolates and accepts a weaker promise. Here, all limits of `class` are then moved by one constant
that restores the promised level over the N pictures, each scored with the quantile of its class without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from liftplus.data.dataset import listing
from liftplus.evaluation.metrics import GROUPS, group_of
from liftplus.words import agreeing, counted

By = Literal["group", "all", "class"]
RULES: tuple[By, ...] = get_args(By)
CLASS_SHARE = 0.5
"""How much a class's own quantile counts in the rule `class`."""
_ROUNDING = 1e-9


def needed(level: float) -> int:
    """The smallest number of pictures whose quantile at this level is finite: 9 at 0.9."""
    return math.ceil(level / (1 - level) - _ROUNDING)


def groups_of(train_counts: Sequence[int]) -> Tensor:
    """The group of each class [C] by its training pictures, as an index into `GROUPS`."""
    return torch.tensor([GROUPS.index(group_of(count)) for count in train_counts])


@dataclass(frozen=True)
class Known:
    """What sets need of the calibration pictures.

    Attributes:
        own: log-probability of each picture's own class, fp64 [N].
        labels: their classes [N].
        train_counts: training pictures of each class [C]; they decide on its group.
        log_prior: log of the prior that the probabilities stand for [C]; only differences matter.
        weights: how much a calibration picture of each class counts [C]; 0 for a class that never occurs in use.
    """

    own: Tensor
    labels: Tensor
    train_counts: tuple[int, ...]
    log_prior: Tensor
    weights: Tensor

    @cached_property
    def counts(self) -> Tensor:
        """Calibration pictures of each class [C]."""
        return torch.bincount(self.labels, minlength=len(self.train_counts))

    @cached_property
    def groups(self) -> Tensor:
        """The group of each class [C], as an index into `GROUPS`."""
        return groups_of(self.train_counts)

    def taken(self, places: Tensor) -> Known:
        """These pictures alone."""
        return Known(self.own[places], self.labels[places], self.train_counts, self.log_prior, self.weights)


def limits(known: Known, level: float, by: By = "group", class_share: float = CLASS_SHARE) -> Tensor:
    """The largest -log p with which each class is in a set, fp64 [C]; infinite if it is in every set.

    Args:
        level: the promised coverage, between 0 and 1.
        by: the rule; see the top of this file.
        class_share: for `class`: 0 for one quantile for all classes, 1 for each class's own.
    """
    found = _by_class(known, level, class_share) if by == "class" else _pooled(known, level, grouped=by == "group")
    return found.masked_fill(known.weights == 0, -math.inf)


def members(log_chances: Tensor, limits: Tensor) -> Tensor:
    """Which classes are in each picture's set, bool [N, C], from log-probabilities [N, C]."""
    return -log_chances.double() <= limits


def shortages(known: Known, level: float, by: By, names: Sequence[str]) -> list[str]:
    """Which classes have too few calibration pictures and what is done about it, one sentence each."""
    used, least = known.weights > 0, needed(level)
    notes = []
    if missing := _named(used & (known.counts == 0), names):
        count, listed = missing
        notes.append(
            f"{counted(count, 'class has', 'classes have')} no calibration picture: {listed}. "
            f"{agreeing(count, 'Its', 'Their')} coverage cannot be measured."
        )
    if by == "group":
        for index, name in enumerate(GROUPS):
            own = used & (known.groups == index)
            pictures = int(known.counts[own].sum())
            if own.any() and pictures < least:
                notes.append(
                    f"The classes with {name} training pictures have {counted(pictures, 'calibration picture')}, and a "
                    f"promise of {level:g} needs {least}. All {int(own.sum())} of them are in every set. Calibrate on "
                    f"more pictures{', or give --sets-by all' if int(known.counts[used].sum()) >= least else ''}."
                )
    if by == "class" and (few := _named(used & (known.counts < least), names)):
        count, listed = few
        notes.append(
            f"{counted(count, 'class has', 'classes have')} fewer than the {least} calibration pictures that a "
            f"quantile at {level:g} needs: {listed}. {agreeing(count, 'It takes', 'They take')} the quantile over all "
            "classes."
        )
    return notes


def _named(which: Tensor, names: Sequence[str]) -> tuple[int, str] | None:
    found = [names[k] for k in which.nonzero()[:, 0].tolist()]
    return (len(found), listing(found)) if found else None


def _pooled(known: Known, level: float, *, grouped: bool) -> Tensor:
    groups = known.groups if grouped else torch.zeros_like(known.groups)
    found = torch.empty(len(groups), dtype=torch.float64)
    for group in groups.unique():
        inside, classes = groups[known.labels] == group, groups == group
        quantile = quantiles(-known.own[inside], known.weights[known.labels[inside]], level)
        found[classes] = quantile(known.weights[classes])
    return found


def quantiles(scores: Tensor, weights: Tensor, level: float) -> Callable[[Tensor], Tensor]:
    """A function from weights of new pictures [M] to the conformal quantiles of weighted scores [N], fp64 [M].

    It is the smallest score such that the weights up to it are at least `level` of all weights, the new one included;
    infinite if no score is.
    """
    order = scores.double().argsort()
    values = torch.cat([scores.double()[order], torch.tensor([math.inf], dtype=torch.float64)])
    summed = weights.double()[order].cumsum(0)
    total = float(summed[-1]) if len(summed) else 0.0

    def quantile(new: Tensor) -> Tensor:
        wanted = level * (total + new.double())
        return values[torch.searchsorted(summed, wanted - _ROUNDING * (total + new.double()))]

    return quantile


def _by_class(known: Known, level: float, share: float) -> Tensor:
    scores = known.log_prior[known.labels] - known.own
    own = torch.zeros(len(known.train_counts), dtype=torch.float64)
    without = torch.zeros_like(scores)  # the quantile of the picture's class without the picture
    enough = known.counts >= needed(level)
    common = _common(scores, known, level)
    own[~enough], without[~enough[known.labels]] = common, common
    for k in enough.nonzero()[:, 0].tolist():
        at = (known.labels == k).nonzero()[:, 0]
        ordered, order = scores[at].sort()
        n = len(at)
        place = min(math.ceil(level * (n + 1) - _ROUNDING), n) - 1
        inner = min(math.ceil(level * n - _ROUNDING), n - 1) - 1
        own[k] = ordered[place]
        # Without one of the first `inner + 1` scores, the later ones move up by one place.
        without[at[order]] = torch.where(torch.arange(n) <= inner, ordered[inner + 1], ordered[inner])
    move = quantiles(scores - share * without, known.weights[known.labels], level)(known.weights)
    return move + share * own - known.log_prior + _ROUNDING


def _common(scores: Tensor, known: Known, level: float) -> float:
    """The finite quantile over all pictures."""
    found = quantiles(scores, known.weights[known.labels], level)(torch.zeros(1))
    return float(found[0])
