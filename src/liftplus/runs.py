"""Whole runs: train into a folder, test a folder, predict with a folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftplus import checkpoint, results
from liftplus.checkpoint import Trained
from liftplus.config import RunConfig
from liftplus.data import sources
from liftplus.data.dataset import DataSet, Split
from liftplus.data.images import IMAGE_SUFFIXES, UnreadableImage
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import Evaluation
from liftplus.errors import UserError
from liftplus.evaluate import coinciding_grids, predict, score
from liftplus.metrics import Metrics
from liftplus.model import Classifier
from liftplus.runtime import Progress, Runtime, describe
from liftplus.train import build, fit, tuned_parameters


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    metrics: Metrics | None  # None where the data has no test split
    seconds: float
    parameters: dict[str, int]


def load_data(config: RunConfig) -> DataSet:
    """The data set of a run, broken pictures left out where the policy says so."""
    return sources.load(config.data)


def notes(config: RunConfig, dataset: DataSet, model: Classifier) -> list[str]:
    """What a user should know before training starts, one sentence each."""
    grids = coinciding_grids(config.evaluation, model.backbone.facts)
    untested = None if "test" in dataset.splits else "There is no test split, so nothing will be measured."
    return [*dataset.notes, *(note for note in (grids, untested) if note)]


def train_run(
    config: RunConfig,
    dataset: DataSet,
    model: Classifier,
    runtime: Runtime,
    folder: Path,
    progress: Progress | None = None,
) -> Outcome:
    """Train (where the method trains), test, and write everything into an empty folder."""
    parameters = model.count()
    about = {
        "config": config.to_dict(),
        "versions": describe(runtime),
        "backbone_identity": model.backbone.identity,
        "data": {
            "name": dataset.name,
            "train_counts": dataset.counts(),
            "notes": dataset.notes,
            "images": {name: len(split) for name, split in dataset.splits.items()},
        },
        "parameters": parameters,
    }
    results.write_json(folder / "config.json", about)
    seconds = 0.0
    if config.train.epochs:
        fitted = fit(
            model,
            config,
            dataset,
            runtime,
            progress=progress,
            log=lambda entry: results.append_json(folder / "log.jsonl", entry),
        )
        seconds = fitted.seconds
    checkpoint.save_model(folder, model, config, dataset)
    metrics = None
    if "test" in dataset.splits:
        figures = {"seconds": round(seconds, 2), "tuned_parameters": tuned_parameters(model)}
        metrics = test(model, config.evaluation, dataset, "test", dataset.counts(), runtime, folder, figures, progress)
    return Outcome(metrics, seconds, parameters)


def start(config: RunConfig, runtime: Runtime, progress: Progress | None = None) -> tuple[DataSet, Classifier]:
    """Everything before the first step: data, backbone, tuners, initialised head."""
    dataset = load_data(config)
    return dataset, build(config, dataset, runtime, progress)


def test(
    model: Classifier,
    evaluation: Evaluation,
    dataset: DataSet,
    split: str,
    train_counts: Sequence[int],
    runtime: Runtime,
    folder: Path,
    about: dict[str, Any],
    progress: Progress | None,
) -> Metrics:
    """Metrics and tables of one split, written into a folder."""
    if split not in dataset.splits:
        raise UserError(f"Data set {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    found = predict(
        model, dataset.store, dataset.splits[split], evaluation, model.backbone.facts, runtime, progress=progress
    )
    metrics = score(found, dataset.splits[split], tuple(train_counts))
    results.write_evaluation(
        folder,
        dataset,
        dataset.splits[split],
        found,
        metrics,
        train_counts,
        {"data": dataset.name, "split": split, "evaluation": evaluation.model_dump()} | about,
    )
    return metrics


def evaluate_run(
    trained: Trained, config: RunConfig, runtime: Runtime, folder: Path, split: str, progress: Progress | None = None
) -> Metrics:
    """Test a trained run on a split of the data in `config`, whose classes are matched to the run's."""
    dataset = aligned(load_data(config), trained, everything=split == "all")
    folder.mkdir(parents=True, exist_ok=True)
    return test(trained.model, config.evaluation, dataset, split, trained.train_counts, runtime, folder, {}, progress)


def aligned(dataset: DataSet, trained: Trained, everything: bool = False) -> DataSet:
    """The data set with its labels renumbered to the run's classes, by id, else by name.

    With `everything`, a further split "all" holds the images of all splits.
    """
    by_id = {class_id: k for k, class_id in enumerate(trained.class_ids)}
    by_name = {name: k for k, name in enumerate(trained.class_names)}
    moved = [by_id.get(i, by_name.get(name)) for i, name in zip(dataset.class_ids, dataset.class_names, strict=True)]
    splits, given = {}, dict(dataset.splits)
    if everything:
        parts = list(given.values())
        given["all"] = Split([key for part in parts for key in part.keys], [k for part in parts for k in part.labels])
    for name, split in given.items():
        strange = sorted({dataset.class_names[label] for label in split.labels if moved[label] is None})
        if strange and name != "train":
            raise UserError(
                f"Split {name!r} of {dataset.name!r} has classes that the run was not trained on: "
                f"{', '.join(strange[:5])}. The run knows {len(trained.class_names)} classes; rename the folders, "
                "or map them with data.class_names=FILE."
            )
        kept = [
            (key, moved[label]) for key, label in zip(split.keys, split.labels, strict=True) if moved[label] is not None
        ]
        splits[name] = Split([key for key, _ in kept], [int(label or 0) for _, label in kept])
    return DataSet(dataset.name, trained.class_names, trained.class_ids, splits, dataset.store, dataset.notes)


def image_files(inputs: Iterable[str]) -> list[str]:
    """Files named by paths, folders (searched through) and glob patterns, each once, in a fixed order."""
    found: dict[str, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            matches = [
                name
                for name in glob.iglob(os.path.join(glob.escape(given), "**"), recursive=True)
                if name.lower().endswith(tuple(IMAGE_SUFFIXES))
            ]
        else:
            matches = (
                [given]
                if os.path.isfile(given)
                else [name for name in glob.iglob(given, recursive=True) if os.path.isfile(name)]
            )
        if not matches:
            raise UserError(f"{given!r} names no image. Give image files, folders that hold some, or a glob pattern.")
        found |= dict.fromkeys(sorted(matches))
    return list(found)


@dataclass(frozen=True)
class Guess:
    """The best classes of one file, or why it could not be read."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None


def predict_files(
    trained: Trained,
    files: Sequence[str],
    evaluation: Evaluation,
    runtime: Runtime,
    *,
    skip_unreadable: bool,
    progress: Progress | None = None,
) -> list[Guess]:
    """Top-k classes of image files, in the order given."""
    store = FolderStore("")
    broken: dict[str, str] = {}
    if skip_unreadable:
        broken = broken_files(store, files)
    good = [name for name in files if name not in broken]
    guesses = {name: Guess(name, (), (), reason) for name, reason in broken.items()}
    if good:
        found = predict(
            trained.model,
            store,
            Split(good, [0] * len(good)),
            evaluation,
            trained.model.backbone.facts,
            runtime,
            progress=progress,
            label="Predicting",
        )
        for name, classes, values in zip(good, found.classes.tolist(), found.probabilities.tolist(), strict=True):
            guesses[name] = Guess(name, tuple(trained.class_names[k] for k in classes), tuple(values))
    return [guesses[name] for name in files]


def broken_files(store: FolderStore, files: Sequence[str]) -> dict[str, str]:
    """Those of the files that do not decode, each with the reason."""
    broken = {}
    for name in files:
        try:
            store.image(name)
        except UnreadableImage as error:
            broken[name] = str(error)
    return broken
