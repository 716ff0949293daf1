"""Test a split with a classifier, and write what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from liftplus.data.dataset import DataSet
from liftplus.evaluation import priors, results
from liftplus.evaluation.features import predict_once
from liftplus.evaluation.inference import SplitReader, TopK, score
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line, describe
from liftplus.model.classifier import Classifier
from liftplus.runs.matching import aligned, as_in_run
from liftplus.runs.opening import Session, refuse_different
from liftplus.training.checkpoint import Chosen, Trained


def test(
    session: Session,
    model: Classifier,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    folder: Path,
    about: dict[str, Any],
) -> Metrics:
    """Metrics and tables of one split, written into a folder by the leader."""
    found, metrics = measure(session, model, dataset, split, train_counts)
    what: dict[str, Any] = {"data": dataset.name, "split": split, "evaluation": session.config.evaluation.model_dump()}
    if session.cache.notes:
        what["cache"] = session.cache.notes
    if session.runtime.job.leads:
        results.write_evaluation(folder, dataset, dataset.splits[split], found, metrics, train_counts, what | about)
    return metrics


def measure(
    session: Session, model: Classifier, dataset: DataSet, split: str, train_counts: Sequence[int]
) -> tuple[TopK, Metrics]:
    """The model's predictions for one split, and how good they are."""
    part = dataset.splits[split]
    expect(session, model, dataset.class_names, train_counts)
    reader = SplitReader(dataset.store, part, session.config.train.workers, session.progress)
    with deterministic(session.config.deterministic):
        found = predict_once(model, reader, session.config.evaluation, session.runtime, session.cache)
    metrics = score(found, part, tuple(train_counts))
    if dataset.frequency:
        metrics = metrics.with_frequency([dataset.frequency.get(one, "") for one in dataset.class_ids])
    return found, metrics


def expect(session: Session, model: Classifier, class_names: Sequence[str], train_counts: Sequence[int]) -> None:
    """Have the model reckon with the prior that `evaluation.prior` names."""
    config = session.config
    shift = priors.shift(config, class_names, train_counts, config.evaluation.prior)
    model.shift = None if shift is None else shift.to(session.runtime.device)


def evaluate_run(
    session: Session, trained: Trained, split: str, folder: Path, *, other_data: bool
) -> tuple[DataSet, Metrics]:
    """Test a trained run on one split of the session's data, whose classes are matched to the run's.

    Other data than the run's is never split: without a test split, all of it is tested. The run's own pictures are in
    the splits they had in training.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    dataset = session.data(for_testing=other_data)
    dataset = aligned(dataset if other_data else as_in_run(dataset, trained.folder, split), split, trained)
    refuse_different(session, dataset, trained.model)
    if session.runtime.job.leads:
        disk.new_folder(folder)
    about = about_weights(trained.chosen) | {
        "command": command_line(),
        "config": session.config.to_dict(),
        "versions": describe(session.runtime),
    }
    return dataset, test(session, trained.model, dataset, split, trained.train_counts, folder, about)


def about_weights(chosen: Chosen | None) -> dict[str, Any]:
    """For a result: which weights were tested."""
    return {"weights": None if chosen is None else asdict(chosen)}
