"""Predict with a trained run: the best classes for each picture."""

from __future__ import annotations

from dataclasses import dataclass

from liftplus.data.dataset import Split
from liftplus.evaluation.inference import SplitReader, TopK, predict
from liftplus.machine.determinism import deterministic
from liftplus.runs.inputs import Inputs
from liftplus.runs.opening import Session
from liftplus.runs.testing import expect
from liftplus.training.checkpoint import Trained


@dataclass(frozen=True)
class Guess:
    """The best classes of one file, or why it could not be read."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None


def predict_files(session: Session, trained: Trained, rows: Inputs, *, skip_unreadable: bool) -> list[Guess]:
    """The best k classes of image files (`evaluation.top_k`), one `Guess` per row.

    Args:
        skip_unreadable: report an unreadable picture in its row; otherwise it is an error.
    """
    unreadable: dict[str, str] = {}
    found = predict_rows(session, trained, rows, unreadable if skip_unreadable else None)
    guesses = []
    for key, name, classes, chances in zip(
        rows.keys, rows.names, found.classes.tolist(), found.probabilities.tolist(), strict=True
    ):
        reason = unreadable.get(key)
        best = () if reason else tuple(trained.class_names[k] for k in classes)
        guesses.append(Guess(name, best, () if reason else tuple(chances), reason))
    return guesses


def predict_rows(session: Session, trained: Trained, rows: Inputs, unreadable: dict[str, str] | None = None) -> TopK:
    """The best k classes of pictures, in the order of the rows.

    Args:
        unreadable: collects the key and the reason of each picture that cannot be decoded; its prediction is
            meaningless. If None, such a picture is an error.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    rows.store.decode = session.config.data.decode
    split, config, model = Split(rows.keys, [0] * len(rows)), session.config, trained.model
    reader = SplitReader(
        rows.store, split, config.train.workers, session.progress, label="Predicting", unreadable=unreadable
    )
    with deterministic(config.deterministic):
        return predict(model, reader, config.evaluation, model.backbone.facts, session.runtime)
