"""Calibrate a finished run on labelled pictures that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from liftplus.calibration import sets, temperature
from liftplus.calibration.calibrated import ALARMS, LEVEL, Frequencies, Pictures, by_halves, fit
from liftplus.data.contents import Contents
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import seeded
from liftplus.data.splits import held_out
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import SplitReader
from liftplus.evaluation.outputs import outputs
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line, describe
from liftplus.runs.calibration_file import Saved, crops_of
from liftplus.runs.matching import aligned, as_in_run, seen
from liftplus.runs.opening import Session
from liftplus.runs.recognising import own_data, trained_on
from liftplus.runs.testing import expect
from liftplus.training.assembly import first_of_each
from liftplus.training.checkpoint import Trained
from liftplus.words import agreeing, counted

LEAST = 20
"""The smallest number of pictures to calibrate on."""
SHOTS, MOST = 100, 20_000
"""Limits of the training pictures that others are compared with: for each class, and in total."""


@dataclass(frozen=True)
class Wanted:
    """Which pictures to calibrate on.

    Attributes:
        split: a split of the session's data; by default "val" of the run's own data and "test" of others.
        share: share of the split that is used, spread like the classes; by default all.
        other_data: whether the session's data differ from the run's.
    """

    split: str | None = None
    share: float | None = None
    other_data: bool = False


def calibrate(
    session: Session, trained: Trained, wanted: Wanted, dataset: DataSet | None = None, own: DataSet | None = None
) -> tuple[Saved, list[str]]:
    """The calibration for the session's prior and crops, with notes.

    Args:
        dataset: the pictures, if they are not read as the session's data.
        own: the run's own data with its training split, if they are not read from where the run read them.

    Raises:
        UserError: there are no such pictures, or too few, or the run was trained on them.
    """
    if session.runtime.job.size > 1:
        raise UserError("A run is calibrated by one process. Start it without torchrun.")
    dataset, split, notes = _pictures(session, trained, wanted, dataset)
    own, unread = _own(session, trained, wanted, own)
    part, said = _chosen(session, dataset, split, wanted.share, own)
    notes += said
    if wanted.other_data and (note := seen(part.keys, trained.folder)):
        notes.append(f"{note} Pictures that the run was trained on make the promises too good.")
    expect(session, trained.model, trained.class_names, trained.train_counts)
    logits, features = _run(session, trained, replace(dataset, splits={split: part}), split, "Calibration pictures")
    pictures = Pictures(logits, features, torch.tensor(part.labels))
    config, names, counts = session.config, trained.class_names, trained.train_counts
    prior = config.evaluation.prior
    frequencies = Frequencies(
        counts, priors.stood_for(config, names, counts, prior), priors.in_use(names, counts, prior)
    )
    training, unread = (None, unread) if own is None else _training(session, trained, own)
    model = trained.model  # a trained text side gives other rows than those of the head
    rows = None if model.reads_text or (found := model.head.rows()) is None else found.detach().float().cpu()
    saved = fit(pictures, frequencies, training, rows, config.seed)
    half = _half(part.labels, config.seed)
    measured = by_halves(saved, pictures, frequencies, half)
    about = {
        "data": dataset.name,
        "split": split,
        "share": wanted.share,
        "pictures": len(part),
        "crops": crops_of(config.evaluation),
        "prior": prior,
        "weights": trained.digest,
        "measured": measured.plain(),
        "command": command_line(),
        "versions": describe(session.runtime),
    }
    notes += [*unread, *_shortages(saved.known, names, measured.alarms)]
    if saved.temperature in (temperature.COLDEST, temperature.HOTTEST):
        what = "no class is likelier than another" if saved.temperature > 1 else "the best class has all of it"
        notes.append(
            f"The temperature is at its limit, {saved.temperature:g}: {what} in every picture. The model is hardly "
            "ever, or always, right on these pictures, so look at them and at their labels."
        )
    return Saved(saved, about, Contents.of(dataset.store, part.keys)), notes


def _half(labels: Sequence[int], seed: int) -> Tensor:
    """Places of half of the pictures: half of each class, or of all where most classes have one picture."""
    half = torch.from_numpy(held_out(labels, 0.5, seed)).long()
    if min(len(half), len(labels) - len(half)) * 4 >= len(labels):
        return half
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: len(labels) // 2]


def _shortages(known: sets.Known, names: Sequence[str], alarms: float | None) -> list[str]:
    notes = list(dict.fromkeys(note for by in sets.RULES for note in sets.shortages(known, LEVEL, by, names)))
    weights = known.weights[known.labels]
    worth = float(weights.sum() ** 2 / weights.square().sum())
    if worth < 0.5 * len(weights):
        notes.append(
            f"Under the prior of use a few rare classes' pictures count most, so these {len(weights):,} pictures are "
            f"worth {worth:,.0f} that count alike."
        )
    if alarms is None:
        notes.append(
            f"Half of the pictures are too few to measure a rate of false alarms of {ALARMS:g}, which needs "
            f"{sets.needed(1 - ALARMS)} pictures that count alike."
        )
    return notes


def _pictures(
    session: Session, trained: Trained, wanted: Wanted, dataset: DataSet | None
) -> tuple[DataSet, str, list[str]]:
    """The data with the run's classes, the split, and notes."""
    other, folder = wanted.other_data, trained.folder
    split = wanted.split or ("test" if other else "val")
    if not other and split == "train":
        raise UserError("The run was trained on its train split, so that split cannot calibrate it. Give another.")
    if dataset is None:
        dataset = session.data(for_testing=other)
        dataset = dataset if other else as_in_run(dataset, folder, split)
    if not other and split == "val" and split not in dataset.splits:
        raise UserError(
            "The run has no validation split, and it must be calibrated on labelled pictures that it was not trained "
            "on. Give such pictures with --data, set a part of the test split aside with --split test --share 0.5, or "
            "train with val_share=0.1."
        )
    dataset = aligned(dataset, split, trained)
    notes = list(dataset.notes)
    if not other and split == "test" and wanted.share is None:
        notes.append(
            "All pictures of the test split are used, so eval can measure no promise on that split. Give --share 0.5 "
            "to keep the other half for that."
        )
    chosen = trained.chosen
    if not other and split == "val" and chosen is not None and chosen.by != "last":
        notes.append("The run's epoch was chosen on these pictures too, so the promises may be a little too good.")
    return dataset, split, notes


def _run(session: Session, trained: Trained, dataset: DataSet, split: str, label: str) -> tuple[Tensor, Tensor]:
    config = session.config
    reader = SplitReader(dataset.store, dataset.splits[split], config.train.workers, session.progress, label)
    with deterministic(config.deterministic):
        return outputs(trained.model, reader, config.evaluation, session.runtime, session.cache)


def _own(session: Session, trained: Trained, wanted: Wanted, own: DataSet | None) -> tuple[DataSet | None, list[str]]:
    """The run's own data, or a note if others calibrate it and its own cannot be read or have changed."""
    try:
        return own or own_data(session, trained, other_data=wanted.other_data), []
    except UserError as error:
        if not wanted.other_data:  # these very data were read, so they have changed since training
            raise
        return None, [
            "The run's training pictures cannot be read, so whether these pictures are among them was not checked, and "
            f"unknown pictures are told by logits alone: {error}"
        ]


def _chosen(
    session: Session, dataset: DataSet, split: str, share: float | None, own: DataSet | None
) -> tuple[Split, list[str]]:
    """The pictures to calibrate on, and a note on those that the run was trained on.

    Raises:
        UserError: there are too few.
    """
    part = dataset.splits[split]
    known = torch.zeros(len(part)).bool() if own is None else trained_on(session, dataset.store, part, own)
    left_out = int(known.sum())
    part = part.taken((~known).nonzero()[:, 0].tolist()) if left_out else part
    part = part if share is None else part.taken(held_out(part.labels, share, session.config.seed).tolist())
    if len(part) < LEAST:
        beside = f" beside {left_out:,} that the run was trained on" if left_out else ""
        raise UserError(
            f"There {agreeing(len(part), 'is', 'are')} {counted(len(part), 'picture')} to calibrate on{beside}, and at "
            f"least {LEAST} are needed. Give more labelled pictures, or a greater share of them."
        )
    if not left_out:
        return part, []
    return part, [
        f"{counted(left_out, 'picture was', 'pictures were')} left out, as the run was trained on "
        f"{agreeing(left_out, 'it', 'them')}: {agreeing(left_out, 'its file is', 'their files are')} equal to "
        f"{agreeing(left_out, 'a training picture', 'training pictures')}."
    ]


def _training(session: Session, trained: Trained, own: DataSet) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """Features and labels of the run's training pictures, some of each class; or a note if they cannot be read."""
    try:
        dataset = aligned(own, "train", trained)
        split = dataset.splits["train"]
        shots = max(1, min(SHOTS, MOST // len(trained.class_names)))
        split = split.taken(first_of_each(split, shots, seeded(session.config.seed, -2)))
        dataset = replace(dataset, splits={"train": split})
        _, features = _run(session, trained, dataset, "train", "Training pictures")
    except UserError as error:
        return None, [
            f"The run's training pictures cannot be read, so unknown pictures are told by logits alone: {error}"
        ]
    return (features, torch.tensor(split.labels)), []
