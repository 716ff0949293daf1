"""Labels that are likely wrong, and classes that are likely one, by what the closed-form head says of each picture
when it was fitted without that one.

Suspicious labels are those of confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068): a picture counts
for a class where its probability reaches the mean probability of the pictures that bear the label. Here every class
counts the same in the head, so rare classes are not taken for wrong; their thresholds lean on all classes' mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from liftplus.model import closed_form
from liftplus.model.closed_form import Blend, LeaveOneOut, Sample

ODDS = 19.0
"""How much likelier another class must be than the label: with one wrong label in 20, it is then likelier wrong."""
LEANING = 5.0
"""So many pictures of the mean class count in each class's threshold."""
TEMPERATURES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
"""What is tried as the factor of the cosines."""
ALIKE, SURELY, EACH = 0.4, 0.25, 5
"""Two classes may be one where so many of their pictures score better for the other one, and surely over the second
share; each needs so many pictures. Half of them do so by chance."""
_SAMPLE = 5000  # pictures by which ridge and temperature are chosen


@dataclass(frozen=True)
class Opinion:
    """What the head says of N pictures.

    Attributes:
        own: probability of the label, 0 to 1 [N]; nan where the picture cannot be judged.
        best: the most likely other class that the picture counts for, else the most likely other one [N].
        chance: its probability [N].
        suspicious: bool [N].
        right: share of training pictures whose label is likeliest, mean over classes; nan where none can be judged.
        alike: pairs of classes that may be one, and the share of their pictures that score better for the other.
    """

    own: NDArray[np.float64]
    best: NDArray[np.int64]
    chance: NDArray[np.float64]
    suspicious: NDArray[np.bool_]
    right: float
    alike: tuple[tuple[int, int, float], ...] = ()


def judge(features: Tensor, labels: Tensor, training: Tensor, classes: int) -> Opinion:
    """The head's opinion of every picture: those of training are judged by what the others of them say.

    Args:
        features: [N, D].
        labels: class index of each [N].
        training: which pictures the head is fitted on, bool [N].
        classes: C.
    """
    head = _Head.fitted(F.normalize(features.float(), dim=1), labels, training, classes)
    own, alike = head.first_look()
    thresholds = _thresholds(own, labels, training & head.judged)
    parts = [_confident(head.chances(piece), y, thresholds, head.counts) for _, y, piece in head.scores()]
    best, chance, counted = (torch.cat(part) for part in zip(*parts, strict=True))
    suspicious = head.judged & counted & (chance > ODDS * own)
    own = own.masked_fill(~head.judged, torch.nan)
    return Opinion(own.numpy(), best.numpy(), chance.numpy(), suspicious.numpy(), head.right, alike)


def _thresholds(own: Tensor, labels: Tensor, judged: Tensor) -> Tensor:
    """The mean probability of each class's own label [C], leaning on the mean of all classes where pictures are few."""
    classes = int(labels.max()) + 1 if len(labels) else 0
    total = torch.zeros(classes, dtype=own.dtype).index_add_(0, labels[judged], own[judged])
    count = torch.bincount(labels[judged], minlength=classes)
    held = count > 0
    middle = (total[held] / count[held]).mean() if held.any() else own.new_tensor(1.0)
    return (total + LEANING * middle) / (count + LEANING)


def _confident(chances: Tensor, labels: Tensor, thresholds: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Another class for each picture, its probability, and whether the picture counts for it."""
    limits = torch.full((chances.shape[1],), torch.inf, dtype=chances.dtype)
    limits[: len(thresholds)] = thresholds
    limits[counts < 2] = torch.inf  # what one picture shows says little of a class
    others = chances.scatter(1, labels[:, None], -1.0)
    chance, best = others.max(1)
    reaching = torch.where(others >= limits, others, -1.0)
    most, place = reaching.max(1)
    counted = most > 0
    return torch.where(counted, place, best), torch.where(counted, most, chance), counted


@dataclass(frozen=True)
class _Head:
    """The class-balanced ridge of the training pictures.

    Attributes:
        counts: training pictures of each class [C].
        judged: which pictures can be judged: their class has another training picture, bool [N].
    """

    features: Tensor
    labels: Tensor
    training: Tensor
    ridge: closed_form.Ridge
    gamma: float
    temperature: float
    counts: Tensor
    judged: Tensor
    right: float

    @classmethod
    def fitted(cls, features: Tensor, labels: Tensor, training: Tensor, classes: int) -> _Head:
        """Ridge and temperature are chosen by leaving training pictures out."""
        x, y = features[training], labels[training]
        counts = torch.bincount(y, minlength=classes)
        gathering = closed_form.Gathering(counts, features.shape[1])
        gathering.add(x, y)
        ridge = closed_form.Ridge(gathering.statistics())
        chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
        sample = LeaveOneOut(ridge, Sample(x[chosen], y[chosen]))
        judged, usable = counts[labels] - training.long() > 0, counts[y[chosen]] > 1
        gamma, temperature = closed_form.RIDGES[-1], 1.0
        right = float("nan")
        if usable.any():
            gamma, temperature = _likeliest(sample, usable)
            right = sample.accuracy(gamma)
        return cls(features, labels, training, ridge, gamma, temperature, counts, judged, right)

    def chances(self, scores: Tensor) -> Tensor:
        """Probabilities [B, C] from scores."""
        return (self.temperature * scores).softmax(1)

    def scores(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers, labels and cosines [B, C] of all pictures, in order and in pieces."""
        rows = self.ridge.rows(self.gamma)
        rows = rows.masked_fill(~self.ridge.statistics.present[:, None], 0.0)
        for numbers in torch.arange(len(self.labels)).split(4096):
            x, y, mine = self.features[numbers], self.labels[numbers], self.training[numbers]
            scores = (x.double() @ rows.T).masked_fill(~self.ridge.statistics.present, -torch.inf)
            if mine.any():
                left_out = LeaveOneOut(self.ridge, Sample(x[mine], y[mine]))
                scores[mine] = torch.cat(list(left_out.scores(self.gamma, Blend())))
            yield numbers, y, scores

    def first_look(self) -> tuple[Tensor, tuple[tuple[int, int, float], ...]]:
        """Probabilities of the labels [N], and pairs of classes that cannot be told apart, the surest first.

        Both come of one pass, as scores take most of the time. They are too large to be kept: [N, C].
        """
        own, lost = [], torch.zeros(len(self.counts), len(self.counts))
        for numbers, y, scores in self.scores():
            own.append(self.chances(scores).gather(1, y[:, None])[:, 0])
            mine = self.training[numbers]
            lost.index_add_(0, y[mine], (scores > scores.gather(1, y[:, None])).float()[mine])
        return torch.cat(own), self._alike(lost)

    def _alike(self, lost: Tensor) -> tuple[tuple[int, int, float], ...]:
        """Pairs of classes, from how many training pictures of each class score better for each other one [C, C]."""
        n = self.counts.clamp(min=1).float()
        share = (lost / n[:, None] + (lost / n[:, None]).T) / 2
        error = (0.25 / n[:, None] + 0.25 / n).sqrt() / 2
        enough = (self.counts >= EACH)[:, None] & (self.counts >= EACH)
        found = (enough & (share >= ALIKE) & (share - 2 * error >= SURELY)).triu(1).nonzero().tolist()
        return tuple(sorted(((a, b, float(share[a, b])) for a, b in found), key=lambda pair: -pair[2]))


def _likeliest(sample: LeaveOneOut, usable: Tensor) -> tuple[float, float]:
    """Ridge, and the factor of the cosines, under which labels are likeliest, each class counting the same.

    Args:
        usable: pictures whose class has another one, bool [S].
    """
    labels = sample.labels[usable]
    weights = 1 / torch.bincount(labels)[labels].double()
    found: dict[tuple[float, float], float] = {}
    for gamma in closed_form.RIDGES:
        scores = torch.cat(list(sample.scores(gamma, Blend())))[usable]
        for factor in TEMPERATURES:
            own = (factor * scores).log_softmax(1).gather(1, labels[:, None])[:, 0]
            found[gamma, float(factor)] = float(-(own * weights).sum())
    return min(found, key=lambda pair: found[pair])
