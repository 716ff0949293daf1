"""Distances between features of one class, in training and in test pictures.

The LIFT papers explain with them why heavy fine-tuning hurts: on rare classes the two come apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus import config
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.data.dataset import DataSet
from liftplus.data.loader import seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation.inference import SplitReader, collect
from liftplus.evaluation.metrics import group_of
from liftplus.machine import disk, runtime
from liftplus.machine.progress import Progress
from liftplus.machine.runtime import Runtime
from liftplus.report.series import Series, Spread
from liftplus.training import checkpoint
from liftplus.training.assembly import first_of_each

BARE = "bare backbone"
BINS, FARTHEST = 40, 1.2
"""Bins of the histograms, and the end of the last bin, which also counts all larger distances."""
SHOWN = 40
"""Largest number of classes in the similarity map."""


@dataclass(frozen=True)
class Distances:
    """Cosine distances, in [0, 2], among one model's features.

    Attributes:
        label: the model: a series' label, or the bare backbone with the series that do not tune it.
        train, test: mean distance between two pictures of each class; None for fewer than two pictures.
        between: mean distance between the mean directions of two classes' test features; None for fewer than two
            classes.
        pairs: by "split group", the share of same-class pairs in each distance bin, as the mean over the group's
            classes.
        shown: classes of the similarity map, from most to least training pictures; at most `SHOWN`, evenly spaced.
        likeness: cosine of the mean training direction of a row's class and the mean test direction of a column's.
    """

    label: str
    train: tuple[float | None, ...]
    test: tuple[float | None, ...]
    between: float | None
    pairs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    shown: tuple[int, ...] = ()
    likeness: tuple[tuple[float, ...], ...] = ()

    def gaps(self) -> list[float | None]:
        """Test minus train distance of each class; None if it lacks one."""
        return [None if a is None or b is None else b - a for a, b in zip(self.train, self.test, strict=True)]

    def gap(self, counts: Sequence[int], group: str) -> float | None:
        """Mean gap over the classes of a group; None if it has none. `counts` are the training counts [C]."""
        spread = Spread.of([g for g, n in zip(self.gaps(), counts, strict=True) if group_of(n) == group])
        return spread.mean if spread else None

    @property
    def within(self) -> float | None:
        """Mean distance between two test pictures of a class, over classes."""
        spread = Spread.of(self.test)
        return spread.mean if spread else None


def within(features: Tensor, labels: Tensor, classes: int) -> tuple[tuple[float | None, ...], Tensor, Tensor]:
    """Mean cosine distance between two different pictures of each class, without forming the pairs.

    With unit vectors u of n pictures, the mean cosine over pairs is (|sum u|^2 - n) / (n (n - 1)). This is a mean over
    pairs of different pictures, so its expectation does not depend on n: rare and frequent classes are comparable.

    Args:
        features: [N, D]; only their directions count.
        labels: class index of each row [N].
        classes: C.

    Returns:
        the distance of each class (None for n < 2), unit mean directions [C, D], and n [C].
    """
    unit = F.normalize(features.double(), dim=-1)
    total = torch.zeros(classes, unit.shape[1], dtype=unit.dtype).index_add_(0, labels, unit)
    n = torch.bincount(labels, minlength=classes).double()
    cosine = (total.square().sum(-1) - n) / (n * (n - 1))
    distances = tuple(float(1 - c) if k >= 2 else None for c, k in zip(cosine.tolist(), n.tolist(), strict=True))
    return distances, F.normalize(total, dim=-1), n


def between(directions: Tensor, n: Tensor) -> float | None:
    """Mean cosine distance between the directions [C, D] of two classes, over classes with pictures (n [C] > 0)."""
    held = directions[n > 0]
    count = len(held)
    if count < 2:
        return None
    return float(1 - (held.sum(0).square().sum() - count) / (count * (count - 1)))


def pair_shares(features: Tensor, labels: Tensor, groups: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """For each group of classes, a histogram of the cosine distances between two pictures of one class.

    Args:
        features: [N, D]; only their directions count.
        labels: class index of each row [N].
        groups: of each class [C].

    Returns:
        by group, shares in BINS bins from 0 to FARTHEST: the mean over the classes that have two pictures.
    """
    unit, found = F.normalize(features.double(), dim=-1), dict[str, list[Tensor]]()
    for k in labels.unique().tolist():
        own = unit[labels == k]
        if len(own) > 1:
            first, second = torch.triu_indices(len(own), len(own), 1)
            distances = (1 - (own @ own.T)[first, second]).clamp(0, FARTHEST)
            found.setdefault(groups[k], []).append(torch.histc(distances, BINS, 0.0, FARTHEST) / len(distances))
    return {group: tuple(torch.stack(every).mean(0).tolist()) for group, every in found.items()}


def spaced(counts: Sequence[int], held: Sequence[bool]) -> tuple[int, ...]:
    """At most SHOWN of the classes in `held`, from most to least training pictures, evenly spaced by rank."""
    order = [k for k in sorted(range(len(counts)), key=lambda k: -counts[k]) if held[k]]
    step = max(1.0, (len(order) - 1) / (SHOWN - 1))
    return tuple(order[round(place * step)] for place in range(min(len(order), SHOWN)))


@dataclass(frozen=True)
class Workbench:
    """Computes distances and keeps them in a file.

    Attributes:
        per_class: the largest number of pictures per class and split.
        cache: the file with distances from earlier reports.
    """

    dataset: DataSet
    runtime: Runtime
    progress: Progress
    per_class: int
    cache: Path
    batch_size: int = 128

    def distances(self, label: str, identity: str, load: Callable[[], Backbone]) -> Distances:
        """The distances of one model, from the cache if it has them.

        Args:
            identity: identifies the model's weights in the cache.
            load: loads the model's backbone.
        """
        prints = [self.dataset.fingerprint(split) for split in ("train", "test")]
        key = hashlib.sha256(json.dumps([identity, prints, self.per_class, BINS, SHOWN]).encode()).hexdigest()
        known = self._known()
        if key not in known:
            known[key] = asdict(self._compute(label, load()))
            disk.write_json(self.cache, known)
        found = known[key]
        return Distances(
            label,
            tuple(found["train"]),
            tuple(found["test"]),
            found["between"],
            {name: tuple(shares) for name, shares in found["pairs"].items()},
            tuple(found["shown"]),
            tuple(map(tuple, found["likeness"])),
        )

    def _known(self) -> dict[str, Any]:
        try:
            value = disk.read_json(self.cache)
        except UserError:  # the file is missing or damaged
            return {}
        return value if isinstance(value, dict) else {}

    def _compute(self, label: str, backbone: Backbone) -> Distances:
        classes, facts = self.dataset.num_classes, backbone.facts
        view = CentreCrop(facts.image_size, facts.interpolation)
        groups = [group_of(n) for n in self.dataset.counts()]
        found: dict[str, tuple[tuple[float | None, ...], Tensor, Tensor]] = {}
        pairs: dict[str, tuple[float, ...]] = {}
        for name in ("train", "test"):
            whole = self.dataset.splits[name]
            chosen = first_of_each(whole, self.per_class, seeded(0, -2))
            part = whole.taken(chosen)
            reader = SplitReader(self.dataset.store, part, progress=self.progress, label=f"Features ({label}, {name})")
            features = collect(backbone, reader, view, facts, self.runtime, self.batch_size)
            labels = torch.tensor(part.labels)
            found[name] = within(features, labels, classes)
            pairs |= {f"{name} {group}": row for group, row in pair_shares(features, labels, groups).items()}
        (train, from_train, n), (test, from_test, m) = found["train"], found["test"]
        shown = spaced(self.dataset.counts(), ((n > 0) & (m > 0)).tolist())
        likeness = (from_train[list(shown)] @ from_test[list(shown)].T).tolist()
        return Distances(label, train, test, between(from_test, m), pairs, shown, tuple(map(tuple, likeness)))


def measure(
    series: Sequence[Series], dataset: DataSet, out: Path, per_class: int, progress: Progress
) -> tuple[list[Distances], list[str]]:
    """Distances of the bare backbone and of the first run of each series that tunes it, and why some are missing.

    Raises:
        UserError: the backbone's weights or the test split are missing.
    """
    first = config.from_dict(series[0].config)
    place = runtime.choose(first.device, first.precision, compiling=first.compile)
    if "test" not in dataset.splits:
        raise UserError(f"{dataset.name!r} has no test split, so train and test features cannot be compared.")
    bench = Workbench(dataset, place, progress, per_class, out / "features.json", first.evaluation.batch_size)
    still = [s.label for s in series if not s.config.get("tuner")]
    name = f"{BARE} ({', '.join(still)})" if still else BARE

    def bare() -> Backbone:
        backbone = catalogue.load(first.backbone)
        run = series[0].runs[0]
        if recorded := run.about.get("backbone_identity"):
            catalogue.refuse_other_weights(
                backbone, recorded, f"The run in {str(run.folder)!r}", "backbone.weights=PATH"
            )
        place.place(backbone)
        return backbone

    problems: list[str] = []
    tower = first.backbone.model_dump_json(include={"image_size", "interpolation", "pooling", "positions"})
    found = [bench.distances(name, f"{series[0].runs[0].about.get('backbone_identity')} {tower}", bare)]
    for one in series:
        if one.label not in still:
            folder = one.runs[0].folder
            try:
                found.append(bench.distances(one.label, _identity(folder), partial(_tuned, folder, place, dataset)))
            except UserError as error:
                problems.append(f"Features of {one.label} could not be computed: {error}")
    return found, problems


def _identity(folder: Path) -> str:
    about = checkpoint.read_about(folder)
    return json.dumps([about["backbone_identity"], about.get("sha256")])


def _tuned(folder: Path, place: Runtime, dataset: DataSet) -> Backbone:
    trained = checkpoint.load_model(folder, place)
    if trained.class_ids != dataset.class_ids:
        raise UserError(
            f"The classes of {dataset.name!r} have changed since {str(folder)!r} was trained. Restore its data."
        )
    return trained.model.backbone
