"""Test a classifier on a split and write the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from liftplus.data.dataset import DataSet
from liftplus.evaluation import priors, results
from liftplus.evaluation.features import predict_once
from liftplus.evaluation.gla import Together
from liftplus.evaluation.inference import SplitReader, TopK, predict, score
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line, describe
from liftplus.model.classifier import Classifier
from liftplus.runs import debiasing
from liftplus.runs.matching import aligned, as_in_run, seen
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
    beside: Classifier | None = None,  # noqa: PT028 (no test of pytest's)
) -> Metrics:
    """Measure one split, and have the leader write metrics and tables into a folder.

    Args:
        train_counts: training pictures of each class, length C.
        about: further entries for metrics.json.
        beside: as for `measure`.
    """
    found, metrics = measure(session, model, dataset, split, train_counts, beside)
    what: dict[str, Any] = {"data": dataset.name, "split": split, "evaluation": session.config.evaluation.model_dump()}
    if session.cache.notes:
        what["cache"] = session.cache.notes
    if session.runtime.job.leads:
        results.write_evaluation(folder, dataset, dataset.splits[split], found, metrics, train_counts, what | about)
    return metrics


def measure(
    session: Session,
    model: Classifier,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    beside: Classifier | None = None,
) -> tuple[TopK, Metrics]:
    """The model's predictions for one split, and their metrics.

    Args:
        train_counts: training pictures of each class, length C.
        beside: a debiased zero-shot classifier whose logits are added (`debiasing.zeroshot`).
    """
    part, config = dataset.splits[split], session.config
    expect(session, model, dataset.class_names, train_counts, debiased=beside is not None)
    reader = SplitReader(dataset.store, part, config.train.workers, session.progress)
    with deterministic(config.deterministic):
        if beside is None:
            found = predict_once(model, reader, config.evaluation, session.runtime, session.cache)
        else:
            both = Together(model, beside)
            found = predict(both, reader, config.evaluation, model.backbone.facts, session.runtime)
    metrics = score(found, part, tuple(train_counts))
    if dataset.frequency:
        metrics = metrics.with_frequency([dataset.frequency.get(one, "") for one in dataset.class_ids])
    return found, metrics


def expect(
    session: Session,
    model: Classifier,
    class_names: Sequence[str],
    train_counts: Sequence[int],
    *,
    debiased: bool = False,
) -> None:
    """Set the model's logit shift for the prior that `evaluation.prior` names.

    Args:
        debiased: whether to remove the training prior even if `evaluation.prior` is "as_trained".
    """
    config = session.config
    named = config.evaluation.prior
    shift = priors.shift(config, class_names, train_counts, "uniform" if debiased and named == "as_trained" else named)
    model.shift = None if shift is None else shift.to(session.runtime.device)


def evaluate_run(
    session: Session, trained: Trained, split: str, folder: Path, *, other_data: bool, gla: bool = False
) -> tuple[DataSet, Metrics]:
    """Test a trained run on one split of the session's data. The data's classes are matched to the run's.

    The run's own pictures keep the splits they had in training. Other data are never split: if they have no test split,
    all pictures are tested.

    Args:
        other_data: whether the session's data differ from the run's.
        gla: whether to add debiased zero-shot logits (`evaluation.gla`); this doubles the time.

    Raises:
        UserError: the data cannot be read or do not fit the run, or the folder exists.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    dataset = session.data(for_testing=other_data)
    dataset = aligned(dataset if other_data else as_in_run(dataset, trained.folder, split), split, trained)
    if other_data and (note := seen(dataset, split, trained.folder)):
        dataset = replace(dataset, notes=(*dataset.notes, note))
    refuse_different(session, dataset, trained.model)
    debiased = debiasing.zeroshot(session, trained, other_data=other_data) if gla else None
    if session.runtime.job.leads:
        disk.new_folder(folder)
    about = about_weights(trained.chosen) | {
        "command": command_line(),
        "config": session.config.to_dict(),
        "versions": describe(session.runtime),
    }
    if debiased is None:
        return dataset, test(session, trained.model, dataset, split, trained.train_counts, folder, about)
    about["gla"] = {"pictures": debiased.pictures}
    metrics = test(session, trained.model, dataset, split, trained.train_counts, folder, about, debiased.model)
    if session.runtime.job.leads:
        debiased.write(folder, trained)
    return dataset, metrics


def about_weights(chosen: Chosen | None) -> dict[str, Any]:
    """An entry for metrics.json: which epoch's weights were tested."""
    return {"weights": None if chosen is None else asdict(chosen)}
