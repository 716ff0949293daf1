"""The zero-shot classifier with its prior removed, which Generalized Logit Adjustment adds to a trained run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.evaluation import gla
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.model.classifier import Classifier
from liftplus.model.head_init import Semantic
from liftplus.model.heads import Joint
from liftplus.runs.matching import aligned, as_in_run
from liftplus.runs.opening import Session
from liftplus.training import assembly
from liftplus.training.checkpoint import Trained

SHOTS, MOST = 100, 100_000_000
"""Limits for estimating the prior: pictures per class, and logits in total."""
FILE = "pretraining_prior.csv"


@dataclass(frozen=True)
class Debiased:
    """A zero-shot classifier without its pre-training prior.

    Attributes:
        model: the classifier; its `shift` [C] removes the prior from its logits.
        prior: the pre-training prior [C], fp64, summing to 1.
        pictures: number of training pictures the prior was estimated on.
    """

    model: Classifier
    prior: Tensor
    pictures: int

    def write(self, folder: Path, trained: Trained) -> None:
        """Write the prior of each class into the folder of a test."""
        rows = zip(trained.class_ids, trained.class_names, self.prior.tolist(), strict=True)
        disk.write_csv(folder / FILE, ("class", "id", "name", "prior"), ((k, *row) for k, row in enumerate(rows)))


def refuse_without_text(backbone: BackboneConfig) -> None:
    """Raise UserError if a backbone reads no text."""
    if not catalogue.traits(backbone.name, backbone.weights).reads_text:
        raise UserError(
            f"--gla adds zero-shot logits, but backbone {backbone.name!r} has no text tower. Use CLIP or another dual "
            "encoder, or leave --gla out."
        )


def zeroshot(session: Session, trained: Trained, *, other_data: bool) -> Debiased:
    """The zero-shot classifier for a run's classes, with its prior estimated on the run's training pictures.

    Args:
        other_data: whether the session's data differ from the run's.

    Raises:
        UserError: the backbone reads no text, or the training pictures cannot be read.
    """
    config = session.config
    refuse_without_text(trained.config.backbone)
    data = trained.config.data if other_data else config.data
    init = config.head_init if isinstance(config.head_init, Semantic) else Semantic()
    changes = {"data": data, "tuner": {}, "head": Joint(), "head_init": init}
    own = replace(
        session,
        config=config.model_copy(
            update=changes | {"train": config.train.model_copy(update={"epochs": 0, "keep": 1.0, "layer_decay": 1.0})}
        ),
    )
    dataset = _training_pictures(own, trained)
    with deterministic(config.deterministic):
        model = assembly.build(own.config, dataset, session.runtime, session.progress, session.cache)
        logits, labels = _logits(own, model, dataset)
    prior = gla.pretraining_prior(logits, labels)
    model.shift = -(prior.log() - prior.log().mean()).float().to(session.runtime.device)
    return Debiased(model, prior, len(labels))


def _training_pictures(session: Session, trained: Trained) -> DataSet:
    """The run's training split, labelled by the run's classes."""
    try:
        return aligned(as_in_run(session.data(), trained.folder, "train"), "train", trained)
    except UserError as error:
        raise UserError(
            f"--gla estimates the backbone's prior on the run's training pictures, but these cannot be read: {error}"
        ) from error


@torch.no_grad()
def _logits(session: Session, model: Classifier, dataset: DataSet) -> tuple[Tensor, Tensor]:
    """Zero-shot logits [N, C] and labels [N] of a sample of each class's training pictures; uses the feature cache."""
    shots = max(1, min(SHOTS, MOST // dataset.num_classes**2))
    backbone, runtime = model.backbone, session.runtime
    stream = assembly.plain_stream(session.config, dataset, backbone, runtime, session.cache, session.progress)(shots)
    parts = []
    for features, _ in stream.batches():
        for piece in features.split(4096):
            with runtime.autocast():
                parts.append(model(piece.to(runtime.device)).float().cpu())
    return torch.cat(parts), stream.labels
