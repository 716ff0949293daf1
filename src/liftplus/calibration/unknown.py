"""Tell pictures of no known class from the others, by scores of logits and features. A higher score is more unknown.

N pictures, C classes, D the width of the features h. z are the logits, p is their softmax.

`energy`: -log sum exp z (Liu et al. 2020).
`entropy`: of p.
`margin`: -(mean over other classes c of (z_k - z_c) / |r_k - r_c|) / |h - m|, where k is the best class, r are the
    head's rows and m is the mean of the training features. This is the mean distance to the decision boundaries in
    units of the distance from the centre (Liu and Qin 2024, fDBD). If the head has no rows, |r_k - r_c| is left out.
`mean`: -cos(h, the nearest class mean of training features).
`nearest`: -cos(h, the nearest training feature) (Sun et al. 2022, with k = 1).
`relative`: the least squared Mahalanobis distance from a class mean, by the covariance within classes, less that from
    the mean of all, by the covariance of all (Ren et al. 2021). Both covariances are shrunk by `SHRINK`.
`margin+nearest`, `entropy+nearest`: sums of two scores, each in units of its deviation over known pictures.

`compare` judges them by classes of the run's own. Some are hidden: a linear head is fitted to the training features
without them, and their calibration pictures play the unknown ones. (Dropping their logits alone would not do: the other
classes' logits were trained to be low on their pictures.) A tuned backbone did see these classes in training, so the
figures tell which score is best rather than how many unknown pictures it will find.

differs: Sun et al. take the k-th nearest feature, with a k of 50 to 1000. In a long tail most classes have fewer
pictures than that, and all of their pictures would be far from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftplus.evaluation.priors import RULED_OUT

FOLDS = 5
"""Parts in which classes are hidden. Each class with calibration pictures is hidden once."""
USUAL = "margin+nearest"
"""The score where there are too few classes to hide some of them."""
SHRINK = 0.01
"""How much of the mean variance replaces a covariance, so that few pictures suffice."""
_PIECE = 1024  # pictures that are compared at once
_STEPS, _BATCH, _RATE = 250, 256, 2e-3  # of a head that is fitted without some classes


@dataclass(frozen=True)
class Reference:
    """What pictures are compared with.

    Attributes:
        centre: mean of the training features [D].
        means: mean of each class's unit features [C, D]; 0 for a class without any.
        bank: unit features of training pictures, fp16 [M, D].
        rows: the head's rows [C, R], or [0, 0] if it has none.
        whiten: D x D maps under which the covariance within classes and that of all are the identity [2, D, D].
        whitened: class means less `centre` under the first of them [C, D]; of classes with features alone.
    """

    centre: Tensor
    means: Tensor
    bank: Tensor
    rows: Tensor
    whiten: Tensor
    whitened: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, rows: Tensor | int) -> Reference:
        """From features of training pictures [M, D] and their labels [M].

        Args:
            rows: the head's rows [C, R], or the number of classes C if it has none.
        """
        classes, rows = (rows, torch.empty(0, 0)) if isinstance(rows, int) else (len(rows), rows.float())
        features = features.float()
        unit, centre = F.normalize(features, dim=-1), features.mean(0)
        counts = torch.bincount(labels, minlength=classes)

        def means(of: Tensor) -> Tensor:
            return torch.zeros(classes, of.shape[1]).index_add_(0, labels, of) / counts.clamp(min=1)[:, None]

        apart, away = means(features - centre), features - centre
        whiten = torch.stack([_whitening(away - apart[labels]), _whitening(away)])
        return cls(centre, means(unit), unit.half(), rows, whiten, apart[counts > 0] @ whiten[0].T)

    def needed_by(self, name: str) -> Reference:
        """A copy without what a score does not use; features of a whole data set are large."""
        parts = name.split("+")
        return Reference(
            self.centre,
            self.means if "mean" in parts else self.means[:0],
            self.bank if "nearest" in parts else self.bank[:0],
            self.rows if "margin" in parts else torch.empty(0, 0),
            self.whiten if "relative" in parts else torch.empty(2, 0, 0),
            self.whitened if "relative" in parts else self.whitened[:0],
        )


def _whitening(away: Tensor) -> Tensor:
    """A map W [D, D] with W S W^T = 1, where S is the shrunk covariance of rows [M, D] of mean 0."""
    covariance = (away.T @ away).double() / len(away)
    size = covariance.diagonal().mean().clamp(min=1e-12)
    one = torch.eye(len(covariance), dtype=torch.float64)
    lower = torch.linalg.cholesky((1 - SHRINK) * covariance + SHRINK * size * one)
    return torch.linalg.solve_triangular(lower, one, upper=False).float()


@dataclass(frozen=True)
class Views:
    """What the scores are made of.

    Attributes:
        logits: [N, C].
        margin: mean distance to the decision boundaries [N]; None without training features.
        mean: cosine to the nearest class mean [N]; None without class means.
        nearest: cosine to the nearest training feature [N]; None without training features.
        relative: squared distance from the mean of all less that from the nearest class mean, both whitened [N]; None
            without training features.
    """

    logits: Tensor
    margin: Tensor | None = None
    mean: Tensor | None = None
    nearest: Tensor | None = None
    relative: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, features: Tensor, reference: Reference | None) -> Views:
        """From logits [N, C] and features [N, D]; `reference` is None if there are no training features."""
        parts = zip(logits.split(_PIECE), features.split(_PIECE), strict=True)
        found = [vars(cls.at_once(z, h, reference)) for z, h in parts]

        def joined(name: str) -> Tensor | None:
            return None if found[0][name] is None else torch.cat([part[name] for part in found])

        return cls(logits.float(), *(joined(name) for name in ("margin", "mean", "nearest", "relative")))

    @classmethod
    def at_once(cls, logits: Tensor, features: Tensor, reference: Reference | None) -> Views:
        """`of` for a batch, in operations that a graph can hold."""
        logits = logits.float()
        if reference is None:
            return cls(logits)
        features = features.float()
        unit, means = F.normalize(features, dim=-1), F.normalize(reference.means, dim=-1)
        away = features - reference.centre
        margin = _boundaries(logits, reference.rows) / away.norm(dim=-1).clamp(min=1e-12)
        relative = _relative(away, reference) if len(reference.whitened) else None
        return cls(logits, margin, _nearest(unit, means), _nearest(unit, reference.bank), relative)

    def taken(self, pictures: Tensor) -> Views:
        """Those of some pictures."""

        def own(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[pictures]

        return Views(self.logits[pictures], own(self.margin), own(self.mean), own(self.nearest), own(self.relative))


def _nearest(unit: Tensor, others: Tensor) -> Tensor | None:
    """The greatest cosine of each unit row [N, D] with one of the others [M, D]; None without others."""
    if not len(others):
        return None
    return torch.stack([(unit @ part.float().T).amax(1) for part in others.split(_PIECE)]).amax(0)


def _relative(away: Tensor, reference: Reference) -> Tensor:
    """`Views.relative` from features less the centre [N, D]."""
    within, every = (away @ one.T for one in reference.whiten)
    return every.square().sum(-1) - _squared_distances(within, reference.whitened).amin(-1)


def _boundaries(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean distance [N] from the best class's decision boundaries with the others, from logits [N, C]."""
    top, best = logits.max(-1)
    gaps = top[:, None] - logits
    allowed = gaps < -RULED_OUT / 2  # a prior can rule classes out, whose logits say nothing
    if len(rows):
        gaps = gaps / _squared_distances(rows[best], rows).sqrt().clamp(min=1e-8)
    return torch.where(allowed, gaps, 0.0).sum(-1) / (allowed.sum(-1) - 1).clamp(min=1)


def _squared_distances(some: Tensor, others: Tensor) -> Tensor:
    """Between rows [N, D] and [M, D], fp32 [N, M]."""
    # In fp32 these differences would lose distances between rows that are close; ONNX has no other quick way.
    some, others = some.double(), others.double()
    apart = some.square().sum(-1)[:, None] + others.square().sum(-1) - 2 * some @ others.T
    return apart.clamp(min=0).float()


def _entropy(views: Views) -> Tensor:
    logs = views.logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def _far(near: Tensor | None) -> Tensor:
    assert near is not None
    return -near


SINGLE: Mapping[str, Callable[[Views], Tensor]] = {
    "energy": lambda views: -views.logits.logsumexp(-1),
    "entropy": _entropy,
    "margin": lambda views: _far(views.margin),
    "mean": lambda views: _far(views.mean),
    "nearest": lambda views: _far(views.nearest),
    "relative": lambda views: _far(views.relative),
}
SCORES = (*SINGLE, USUAL, "entropy+nearest")
OF_LOGITS = ("energy", "entropy")
"""The scores that need no training features."""

Scales = Mapping[str, tuple[float, float]]
"""Mean and deviation over known pictures of each score that is part of a sum."""


def scales(name: str, known: Views) -> Scales:
    """The scales that a score takes from known pictures."""
    found = {part: SINGLE[part](known) for part in name.split("+")}
    return {part: (float(one.mean()), max(float(one.std(correction=0)), 1e-12)) for part, one in found.items()}


def score(name: str, views: Views, by: Scales) -> Tensor:
    """The score of each picture [N], fp32."""
    parts = name.split("+")
    if len(parts) == 1:
        return SINGLE[name](views)
    return torch.stack([(SINGLE[part](views) - by[part][0]) / by[part][1] for part in parts]).sum(0)


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Probability that an unknown picture's score [U] is above a known one's [K]; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(torch.cat([unknown, known]).numpy())[: len(unknown)]
    return float((ranks.sum() - len(unknown) * (len(unknown) + 1) / 2) / (len(unknown) * len(known)))


def compare(
    features: Tensor, labels: Tensor, training: Tensor, training_labels: Tensor, classes: int, seed: int = 0
) -> dict[str, float]:
    """The mean `auroc` of each score over hidden parts of the classes; empty if fewer than four could be hidden.

    Args:
        features: of calibration pictures [N, D], with their labels [N].
        training: features of training pictures [M, D], with their labels [M].
        classes: number of classes C.
        seed: draws which classes are hidden together, and the batches of the heads.
    """
    present = labels.unique()[torch.isin(labels.unique(), training_labels)]
    if len(present) < 4:
        return {}
    generator = torch.Generator().manual_seed(seed)
    drawn = present[torch.randperm(len(present), generator=generator)]
    parts = drawn.tensor_split(min(FOLDS, len(present) // 2))
    found = dict.fromkeys(SCORES, 0.0)
    for hidden in parts:
        strange, seen = torch.isin(labels, hidden), ~torch.isin(training_labels, hidden)
        left = torch.arange(classes)[~torch.isin(torch.arange(classes), hidden)]
        x, y = training[seen].float(), torch.searchsorted(left, training_labels[seen])
        head = _head(x, y, len(left), generator)
        views = Views.of(head(features.float()), features, Reference.of(x, y, head.weight))
        known, unknown = views.taken(~strange), views.taken(strange)
        for name in SCORES:
            by = scales(name, known)
            found[name] += auroc(score(name, known, by), score(name, unknown, by)) / len(parts)
    return found


@torch.inference_mode(False)
@torch.enable_grad()
def _head(x: Tensor, y: Tensor, classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear head for features [M, D] with the classes' frequencies in its loss, as logit_adjusted has them."""
    x, y = x.clone(), y.clone()
    centre, prior = x.mean(0), torch.bincount(y, minlength=classes).clamp(min=1).double().log().float()
    deviation = (x - centre).square().mean().sqrt().clamp(min=1e-12)
    head = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.Adam(head.parameters(), lr=_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(x), (_BATCH,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(head((x[batch] - centre) / deviation) + prior, y[batch]).backward()
        optimiser.step()
        decay.step()
    head.requires_grad_(False)
    head.weight.div_(deviation)  # a head for the features as they are
    head.bias.sub_(head.weight @ centre)
    return head
