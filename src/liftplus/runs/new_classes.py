"""Add classes to a trained run from a few pictures each, without training. Feature statistics are kept for reuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.data.dataset import DataSet, Split, Store
from liftplus.data.file_facts import digest_of_pixels
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation.inference import SplitReader, collect
from liftplus.machine.determinism import deterministic
from liftplus.model import added_row, heads
from liftplus.model.added_row import Old
from liftplus.model.closed_form import RIDGES, LeaveOneOut, Ridge, Sample, Statistics
from liftplus.model.picture_init import sampled
from liftplus.runs import edit_classes
from liftplus.runs.inputs import Inputs
from liftplus.runs.opening import Session
from liftplus.training.checkpoint import FORMAT, Trained, checksum, read_model, read_tensors, write_tensors

FILE = "statistics.safetensors"
PICTURES, KEPT = 20_000, 4_000
"""Limits: training pictures used for the statistics, and how many of their features are kept."""
_SAMPLE = {"sample": "as unseen"}
_TENSORS = ("counts", "sums", "balanced", "pooled")


@dataclass(frozen=True)
class Added:
    """A class that was added.

    Attributes:
        pictures: number of distinct pictures used.
        equal: number of pictures left out because their pixels equal another's.
        text: whether the row also uses the name.
        own: leave-one-out accuracy on the class's own pictures, percent; None without or with one picture.
        harm: estimated loss of mean accuracy on unseen pictures of the older classes, in points.
    """

    name: str
    pictures: int
    equal: int
    text: bool
    own: float | None
    harm: float


@dataclass(frozen=True)
class Known:
    """Statistics and a sample of the tuned features of all classes so far, as the head sees them.

    Attributes:
        statistics: sums for closed-form classifiers, over all classes.
        sample: features of training pictures, moved to where unseen ones lie (`added_row.as_unseen`), and features of
            the pictures of added classes, unmoved because they were not trained on.
    """

    statistics: Statistics
    sample: Sample

    def write(self, folder: Path, belongs_to: Mapping[str, Any]) -> None:
        """Write into a run's folder, with `belongs_to`, which identifies the run."""
        tensors = {key: getattr(self.statistics, key) for key in _TENSORS}
        tensors |= {"features": self.sample.features, "labels": self.sample.labels}
        write_tensors(folder / FILE, tensors, {"format": FORMAT, **_SAMPLE, **belongs_to})

    @classmethod
    def read(cls, folder: Path, belongs_to: Mapping[str, Any]) -> Known | None:
        """Read what was kept with a run; None if there is nothing, or it belongs to other weights or classes."""
        if not (folder / FILE).is_file():
            return None
        about, tensors = read_tensors(folder / FILE)
        if any(about.get(key) != value for key, value in (_SAMPLE | dict(belongs_to)).items()):
            return None
        statistics = Statistics(*(tensors[key] for key in _TENSORS))
        return cls(statistics, Sample(tensors["features"], tensors["labels"]))

    def and_class(self, x: Tensor) -> Known:
        """A copy with one more class, from its features [n, D]."""
        labels = torch.full((len(x),), len(self.statistics.counts))
        sample = Sample(torch.cat([self.sample.features, x]), torch.cat([self.sample.labels, labels]))
        return Known(self.statistics + added_row.gathered(x), sample)


def features(session: Session, backbone: Backbone, store: Store, split: Split, label: str) -> Tensor:
    """Features of pictures as the head sees them, fp32 [N, D]."""
    view = CentreCrop(backbone.facts.image_size, backbone.facts.interpolation, margin=0)
    reader = SplitReader(store, split, session.config.train.workers, session.progress, label)
    with deterministic(session.config.deterministic):
        size = session.config.evaluation.batch_size
        out = collect(backbone, reader, view, backbone.facts, session.runtime, size, each=True)
    return session.config.head.view(out[:, 0].float())


def known(session: Session, trained: Trained, dataset: DataSet, rows: Tensor) -> Known:
    """Statistics of a run from a class-balanced sample of its training pictures.

    Args:
        rows: the run's unit rows [C, D].
    """
    train = dataset.splits["train"]
    labels, generator = torch.tensor(train.labels), torch.Generator().manual_seed(0)
    chosen = sampled(labels, PICTURES, generator)
    split = train.taken(chosen.tolist())
    found = features(session, trained.model.backbone, dataset.store, split, "Features of the training images")
    statistics = added_row.gathered(found, labels[chosen], len(trained.class_names))
    kept = sampled(labels[chosen], KEPT, generator)
    sample = Sample(found[kept], labels[chosen][kept])
    unseen = _unseen_accuracy(session, trained, dataset.store, split.taken(kept.tolist()))
    return Known(statistics, sample if unseen is None else added_row.as_unseen(sample, rows, unseen))


def _unseen_accuracy(session: Session, trained: Trained, store: Store, split: Split) -> float | None:
    """Estimate of the run's accuracy on unseen pictures, mean over classes, 0 to 1; None if no class has two pictures.

    It is the leave-one-out accuracy of ridge regression on features of the original backbone, which has not been
    trained on these labels.
    """
    backbone = catalogue.load(session.config.backbone)
    session.runtime.place(backbone)
    found = features(session, backbone, store, split, "Features before training")
    labels = torch.tensor(split.labels)
    if not (torch.bincount(labels) > 1).any():
        return None
    ridge = Ridge(added_row.gathered(found, labels, len(trained.class_names)))
    left_out = LeaveOneOut(ridge, Sample(found, labels))
    return max(left_out.accuracy(gamma) for gamma in RIDGES)


def add(
    session: Session,
    trained: Trained,
    run: Path,
    pictures: Mapping[str, Inputs | None],
    out: Path,
    data: Callable[[], DataSet],
    *,
    text: bool | None = None,
    weights: str | None = None,
    harm: float = 100 * added_row.HARM,
    parents: Mapping[str, str] | None = None,
) -> tuple[list[Added], list[str]]:
    """Copy a run and add classes from pictures; a class without pictures gets its row from its name.

    Returns what was added, and notes for the user.

    Args:
        pictures: by class name; None for a class without pictures.
        data: loads the run's own data; called only if no statistics were kept with the run.
        text: whether rows also use the class names; None: if the backbone has a text tower.
        weights: a local file of the backbone's weights.
        harm: accepted loss of the older classes' mean accuracy for each new class, in points. It decides among rows.
        parents: as for `edit_classes.add`.

    Raises:
        UserError: the head or backbone cannot take such rows, a name is bad or taken, or a parent is unknown.
    """
    about, state = read_model(run)
    _refuse(trained, pictures, text)
    edit_classes.refuse_names(run, list(pictures))
    levels = edit_classes.levels_with(about, list(pictures), parents or {})
    reads = reads_text(trained) if text is None else text
    found = [_features_of(session, trained, name, given) for name, given in pictures.items()]
    texts = edit_classes.text_rows_of(about, list(pictures), weights) if reads else None
    belongs = {"weights": _digest(about, state), "class_ids": about["class_ids"]}
    rows, added = F.normalize(trained.model.head.weight.detach().cpu().double(), dim=-1), []
    have = Known.read(run if run.is_dir() else run.parent, belongs) or known(session, trained, data(), rows)
    for (name, given), x in zip(pictures.items(), found, strict=True):
        old = Old(rows, have.sample, None if texts is None else texts[: len(rows)])
        row, one = _added(name, old, have.statistics, x, None if texts is None else texts[len(rows)], harm)
        added.append(one if given is None else replace(one, equal=len(given) - len(x)))
        rows, have = torch.cat([rows, row]), have.and_class(x)
    counts = [len(x) for x in found]
    edit = {"added": list(pictures), "pictures": counts, "measured": [asdict(one) for one in added]}
    notes = edit_classes.append(run, list(pictures), rows.float(), counts, out, edit, levels)
    have.write(out, belongs | {"class_ids": [*about["class_ids"], *pictures]})
    return added, notes


def _features_of(session: Session, trained: Trained, name: str, given: Inputs | None) -> Tensor:
    if given is None:
        return torch.empty(0, trained.model.backbone.dim)
    given.store.decode = session.config.data.decode
    # Leave-one-out would leave the copy of a picture in.
    first: dict[bytes, str] = {}
    for key in given.keys:
        first.setdefault(digest_of_pixels(given.store.image(key)), key)
    split = Split(list(first.values()), [0] * len(first))
    return features(session, trained.model.backbone, given.store, split, f"Features of {name}")


def reads_text(trained: Trained) -> bool:
    """Whether the run's backbone has a text tower."""
    backbone = trained.config.backbone
    return catalogue.traits(backbone.name, backbone.weights).reads_text


def _refuse(trained: Trained, pictures: Mapping[str, Inputs | None], text: bool | None) -> None:
    head, backbone = trained.config.head, trained.config.backbone.name
    if not head.unit_rows:
        raise UserError(
            f"The run's head is {head.name!r}, but a row from pictures fits only a head with rows of unit length. "
            f"Train with head={', '.join(heads.of_unit_rows())}."
        )
    if text and not reads_text(trained):
        raise UserError(f"Backbone {backbone!r} has no text tower to read the names. Leave --text out.")
    nameless = [name for name, given in pictures.items() if given is None]
    if nameless and (text is False or not reads_text(trained)):
        reason = "--no-text was given" if reads_text(trained) else f"backbone {backbone!r} has no text tower"
        raise UserError(f"Class {nameless[0]!r} has no pictures, and {reason}. Give pictures of it.")


def _digest(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Identifies the tuned features: a digest of the backbone's weights and of the tuned ones."""
    tuned = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    return f"{about['backbone_identity']} {checksum(tuned)}"


def _added(
    name: str, old: Old, statistics: Statistics, x: Tensor, text: Tensor | None, harm: float
) -> tuple[Tensor, Added]:
    """The new class's row [1, D], and its measured quality."""
    if not len(x):
        assert text is not None
        row = F.normalize(text.double(), dim=-1)[None]
        return row, Added(name, 0, 0, True, None, 100 * float(added_row.harm(old, row)))
    made = added_row.fit(old, statistics, x, text, harm / 100)
    own = None if made.own is None else 100 * made.own
    return made.row, Added(name, len(x), 0, made.choice.text, own, 100 * float(added_row.harm(old, made.row)))
