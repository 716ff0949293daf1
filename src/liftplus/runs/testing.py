"""Test a classifier on a split and write the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liftplus.calibration import calibrated
from liftplus.calibration.calibrated import Pictures
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.evaluation import levels, priors, results
from liftplus.evaluation.gla import Together
from liftplus.evaluation.inference import Answering, SplitReader, TopK, best, predict, score
from liftplus.evaluation.metrics import Metrics
from liftplus.evaluation.outputs import outputs, predict_once
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line, describe
from liftplus.model.classifier import Classifier
from liftplus.runs import calibration_file, debiasing
from liftplus.runs.calibration_file import Saved
from liftplus.runs.matching import aligned, as_in_run, seen
from liftplus.runs.opening import Session, refuse_different
from liftplus.runs.recognising import own_data, trained_on
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
    saved: Saved | None = None,  # noqa: PT028
    known: Tensor | None = None,  # noqa: PT028
) -> tuple[Metrics, dict[str, Any] | None]:
    """Measure one split, and have the leader write metrics and tables into a folder.

    Args:
        train_counts: training pictures of each class, length C.
        about: further entries for metrics.json.
        beside: as for `measure`.
        saved: the run's calibration. Then what it promised is measured too, and is the second result.
        known: which pictures the run was trained on, bool [N]; no promise is measured on these. None: on none of them.
    """
    promised: dict[str, Any] | None = None
    if saved is None:
        found, metrics = measure(session, model, dataset, split, train_counts, beside)
    else:
        found, metrics, promised = _measure_promises(session, model, dataset, split, train_counts, saved, known)
    what: dict[str, Any] = {"data": dataset.name, "split": split, "evaluation": session.config.evaluation.model_dump()}
    if session.cache.notes:
        what["cache"] = session.cache.notes
    if promised is not None:
        what["calibration"] = promised
    if session.runtime.job.leads:
        results.write_evaluation(folder, dataset, dataset.splits[split], found, metrics, train_counts, what | about)
    return metrics, promised


def measure(
    session: Session,
    model: Classifier,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    beside: Classifier | None = None,
    temperature: float = 1.0,
) -> tuple[TopK, Metrics]:
    """The model's predictions for one split, and their metrics.

    Args:
        train_counts: training pictures of each class, length C.
        beside: a debiased zero-shot classifier whose logits are added (`debiasing.zeroshot`).
        temperature: of the probabilities. Accuracies at levels above the classes depend on it, and others do not.
    """
    part, config = dataset.splits[split], session.config
    how = Answering(temperature, levels.above(dataset.levels, dataset.class_ids))
    expect(session, model, dataset.class_names, train_counts, debiased=beside is not None)
    reader = SplitReader(dataset.store, part, config.train.workers, session.progress)
    with deterministic(config.deterministic):
        if beside is None:
            found = predict_once(model, reader, config.evaluation, session.runtime, session.cache, how)
        else:
            both = Together(model, beside)
            found = predict(both, reader, config.evaluation, model.backbone.facts, session.runtime, how)
    return found, _scored(found, dataset, split, train_counts, how)


def _scored(found: TopK, dataset: DataSet, split: str, train_counts: Sequence[int], how: Answering) -> Metrics:
    metrics = score(found, dataset.splits[split], tuple(train_counts))
    if dataset.frequency:
        metrics = metrics.with_frequency([dataset.frequency.get(one, "") for one in dataset.class_ids])
    if found.groups is None:
        return metrics
    labels = dataset.splits[split].labels
    return metrics.with_levels(
        {one.name: levels.accuracy(one, found.groups[:, k], labels) for k, one in enumerate(how.levels)}
    )


def _measure_promises(
    session: Session,
    model: Classifier,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    saved: Saved,
    known: Tensor | None,
) -> tuple[TopK, Metrics, dict[str, Any]]:
    """`measure`, and what the calibration keeps of its promises on pictures that are new to it and to the run."""
    part, config, runtime = dataset.splits[split], session.config, session.runtime
    expect(session, model, dataset.class_names, train_counts)
    reader = SplitReader(dataset.store, part, config.train.workers, session.progress)
    with deterministic(config.deterministic):
        logits, features = outputs(model, reader, config.evaluation, runtime, session.cache)
        own = logits if runtime.job.size == 1 else logits[runtime.job.part(len(logits))]
        how = Answering(saved.calibration.temperature, levels.above(dataset.levels, dataset.class_ids))
        found = best(own, config.evaluation, runtime, len(part), how)
    used = runtime.job.from_leader(lambda: saved.has(dataset.store, part.keys))
    known = torch.zeros_like(used) if known is None else known
    promised: dict[str, Any] = {
        "temperature": saved.calibration.temperature,
        "fitted_on": {key: saved.about[key] for key in ("data", "split", "share", "pictures")},
        "left_out": int(used.sum()),
        "left_out_of_training": int((known & ~used).sum()),
    }
    fresh = ~(used | known)
    if fresh.any():
        measured = Pictures(logits, features, torch.tensor(part.labels)).taken(fresh)
        promised |= calibrated.measure([(saved.calibration, measured)]).plain()
    return found, _scored(found, dataset, split, train_counts, how), promised


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
) -> tuple[DataSet, Metrics, dict[str, Any] | None]:
    """Test a trained run on one split of the session's data. The data's classes are matched to the run's.

    If the run's calibration holds for the session's crops and prior, the third result is what it keeps of its promises.

    The run's own pictures keep the splits they had in training. Other data are never split: if they have no test split,
    all pictures are tested.

    Args:
        other_data: whether the session's data differ from the run's.
        gla: whether to add debiased zero-shot logits (`evaluation.gla`); this doubles the time.

    Raises:
        UserError: the data cannot be read or do not fit the run, or the folder exists.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    whole = session.data(for_testing=other_data)
    whole = whole if other_data else as_in_run(whole, trained.folder, split)
    dataset = aligned(whole, split, trained)
    if other_data and (note := seen(dataset.splits[split].keys, trained.folder)):
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
        saved, note = calibration_file.fitting(session, trained)
        notes, known = [note] if note else [], None
        if saved is not None and split == "train" and not other_data:
            saved, notes = None, ["Promises are not measured on the pictures that the run was trained on."]
        if saved is not None:
            known, said = _known(session, trained, dataset, split, None if other_data else whole)
            notes += said
        dataset = replace(dataset, notes=(*dataset.notes, *notes))
        counts = trained.train_counts
        return dataset, *test(session, trained.model, dataset, split, counts, folder, about, None, saved, known)
    about["gla"] = {"pictures": debiased.pictures}
    if trained.digest and calibration_file.read(trained.folder) is not None:
        plain = (
            "The run's calibration is for its own logits and not for those of GLA. So probabilities have no "
            "temperature, and no promise is measured."
        )
        dataset = replace(dataset, notes=(*dataset.notes, plain))
    metrics, _ = test(session, trained.model, dataset, split, trained.train_counts, folder, about, debiased.model)
    if session.runtime.job.leads:
        debiased.write(folder, trained)
    return dataset, metrics, None


def _known(
    session: Session, trained: Trained, dataset: DataSet, split: str, own: DataSet | None
) -> tuple[Tensor | None, list[str]]:
    """Which pictures of a split the run was trained on, or a note if its own data cannot be read."""
    try:
        own = own or own_data(session, trained, other_data=True, to_decode=False)
    except UserError as error:
        return None, [
            "Promises may be measured on pictures that the run was trained on: its training pictures cannot be read, "
            f"so nobody can tell. {error}"
        ]
    return trained_on(session, dataset.store, dataset.splits[split], own), []


def about_weights(chosen: Chosen | None) -> dict[str, Any]:
    """An entry for metrics.json: which epoch's weights were tested."""
    return {"weights": None if chosen is None else asdict(chosen)}
