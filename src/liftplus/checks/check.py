"""A data set's doubles, wrong labels, classes that are one, and outliers. No picture is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.checks import doubles, labels, neighbours, outliers, thumbs
from liftplus.checks.doubles import Double
from liftplus.checks.labels import Opinion
from liftplus.checks.neighbours import Neighbours
from liftplus.data.dataset import DataSet, Split
from liftplus.data.inspection import Place
from liftplus.data.transforms import CentreCrop
from liftplus.evaluation.features import image_features
from liftplus.evaluation.inference import SplitReader
from liftplus.runs.opening import Session
from liftplus.words import agreeing, counted

POOR = 0.3
"""Share of training pictures that the head is right on under which its opinion of labels is worth little."""


@dataclass(frozen=True)
class Check:
    """What was found among N pictures, which are numbered through all splits in their order.

    Attributes:
        dataset: what was looked at.
        places: of each picture [N].
        unreadable: why pictures cannot be decoded, by number.
        doubles: pairs of equal and near pictures.
        opinion: on the labels.
        outlying: how far beyond the fence each picture is, 0 for those within [N].
        notes: how the data were read, and what could not be judged, one sentence each.
    """

    dataset: DataSet
    places: Sequence[Place]
    unreadable: dict[int, str]
    doubles: list[Double]
    opinion: Opinion
    outlying: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def groups(self) -> list[list[int]]:
        """Pictures that are doubles of each other."""
        return doubles.groups(self.doubles, len(self.places))

    def suspicious(self) -> list[int]:
        """Pictures whose labels are likely wrong, the least likely label first."""
        return sorted(np.flatnonzero(self.opinion.suspicious).tolist(), key=lambda k: float(self.opinion.own[k]))

    def outliers(self) -> list[int]:
        """Pictures like no other one, the farthest first."""
        return sorted(np.flatnonzero(self.outlying > 0).tolist(), key=lambda k: -float(self.outlying[k]))


def check(session: Session, dataset: DataSet) -> Check:
    """Read every picture once for its small copy and once for its features, then compare all of them."""
    keys = [place.key for place in places_of(dataset)]
    with session.progress.task("Reading pictures", max(1, len(keys))) as advance:
        small = thumbs.read(dataset.store, keys, lambda _done, _total: advance())
    return compared(session, dataset, small, features_of(session, dataset, set(small.unreadable)))


def compared(session: Session, dataset: DataSet, small: thumbs.Thumbs, features: Tensor) -> Check:
    """What small copies [N] and the features of the readable ones among them [R, D] tell."""
    places = places_of(dataset)
    count = len(places)
    readable = np.array([k for k in range(count) if k not in small.unreadable], np.int64)
    with session.progress.task("Comparing pictures", max(1, (doubles.ROUNDS + 1) * count)) as advance:

        def searched(done: int) -> None:
            for _ in range(done):
                advance()

        similar = _similar(features, readable, count, searched)
        found = doubles.equal(small) + doubles.near(small, similar.whole, searched)
    opinion = _opinion(dataset, places, features, readable)
    outlying = np.zeros(count)
    outlying[readable] = outliers.far(similar.own)
    check = Check(dataset, places, small.unreadable, found, opinion, outlying)
    notes = (*dataset.notes, *session.cache.notes, *_notes(check, session.config.backbone.name))
    return replace(check, notes=notes)


def places_of(dataset: DataSet) -> list[Place]:
    """Where every picture is, through all splits in their order."""
    return [
        Place(name, key, label)
        for name, split in dataset.splits.items()
        for key, label in zip(split.keys, split.labels, strict=True)
    ]


def features_of(session: Session, dataset: DataSet, unreadable: set[int]) -> Tensor:
    """Of all pictures that can be decoded, split by split, as a start of training takes them [R, D]."""
    backbone = catalogue.load(session.config.backbone)
    session.runtime.place(backbone)
    facts = backbone.facts
    view = CentreCrop(facts.image_size, facts.interpolation, margin=0)
    parts, start = [torch.empty(0, backbone.dim)], 0
    for name, split in dataset.splits.items():
        part: Split = split.taken(k for k in range(len(split)) if start + k not in unreadable)
        start += len(split)
        if len(part):
            reader = SplitReader(
                dataset.store, part, session.config.train.workers, session.progress, f"Features of {name}"
            )
            rows = image_features(
                session.cache, backbone, reader, view, session.runtime, session.config.evaluation.batch_size
            )
            parts.append(rows[:, 0])
    return torch.cat(parts)


@dataclass(frozen=True)
class _Similar:
    """Nearest neighbours by features: `own` among the readable pictures, `whole` by the numbers of all."""

    own: Neighbours
    whole: Neighbours


def _similar(features: Tensor, readable: NDArray[np.int64], total: int, searched: neighbours.Searched) -> _Similar:
    if len(features) < 2:
        none = Neighbours(np.zeros((len(features), 0), np.int64), np.zeros((len(features), 0), np.float32))
        return _Similar(none, Neighbours(np.zeros((total, 0), np.int64), np.zeros((total, 0), np.float32)))
    rows = neighbours.reduced(features.numpy())
    own = neighbours.nearest(rows, rows, doubles.NEAREST, searched)
    numbers = np.broadcast_to(np.arange(total)[:, None], (total, own.numbers.shape[1])).copy()
    cosines = np.full(numbers.shape, -1.0, np.float32)
    numbers[readable], cosines[readable] = readable[own.numbers], own.cosines
    return _Similar(own, Neighbours(numbers, cosines))


def _opinion(dataset: DataSet, places: Sequence[Place], features: Tensor, readable: NDArray[np.int64]) -> Opinion:
    """The head's opinion of all pictures; none of those that cannot be decoded."""
    count = len(places)
    chosen = torch.tensor([places[k].label for k in readable.tolist()], dtype=torch.long)
    training = torch.tensor([places[k].split == "train" for k in readable.tolist()], dtype=torch.bool)
    own, chance = np.full(count, np.nan), np.zeros(count)
    best, suspicious = np.zeros(count, np.int64), np.zeros(count, bool)
    if not training.any():
        return Opinion(own, best, chance, suspicious, float("nan"))
    found = labels.judge(features, chosen, training, dataset.num_classes)
    own[readable], chance[readable] = found.own, found.chance
    best[readable], suspicious[readable] = found.best, found.suspicious
    return Opinion(own, best, chance, suspicious, found.right, found.alike)


def _notes(check: Check, backbone: str) -> tuple[str, ...]:
    notes: list[str] = []
    unjudged = int(np.isnan(check.opinion.own).sum()) - len(check.unreadable)
    if unjudged:
        alone = agreeing(unjudged, "its class has", "their classes have")
        notes.append(
            f"The labels of {counted(unjudged, 'picture')} could not be judged: {alone} no other training picture."
        )
    if check.opinion.right < POOR:
        notes.append(
            f"By the features of {backbone} only {100 * check.opinion.right:.0f} % of training pictures are nearest to "
            "their own class (mean over classes), so what it says of labels and classes is of little worth. Give a "
            "backbone that knows such pictures with --backbone."
        )
    return tuple(notes)
