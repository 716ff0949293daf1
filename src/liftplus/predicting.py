"""Predict with a trained run: which files, and the best classes of each."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from liftplus.checkpoint import Trained
from liftplus.data.dataset import Split
from liftplus.data.images import IMAGE_SUFFIXES, UnreadableImage
from liftplus.data.stores import FolderStore
from liftplus.determinism import deterministic
from liftplus.errors import UserError
from liftplus.evaluate import Reading, predict
from liftplus.runs import Session, expect


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


def predict_files(session: Session, trained: Trained, files: Sequence[str], *, skip_unreadable: bool) -> list[Guess]:
    """Top-k classes of image files, in the order given."""
    store = FolderStore("")
    store.decode = session.config.data.decode
    broken = broken_files(store, files) if skip_unreadable else {}
    good = [name for name in files if name not in broken]
    guesses = {name: Guess(name, (), (), reason) for name, reason in broken.items()}
    if good:
        expect(session, trained.model, trained.class_names, trained.train_counts)
        split, workers = Split(good, [0] * len(good)), session.config.train.workers
        reading = Reading(store, split, workers, session.progress, label="Predicting")
        with deterministic(session.config.deterministic):
            found = predict(
                trained.model, reading, session.config.evaluation, trained.model.backbone.facts, session.runtime
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
