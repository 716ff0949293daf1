"""Predict with a trained run: files all at once, or pictures as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from liftplus.data.dataset import Split
from liftplus.data.loader import packed
from liftplus.data.pictures import picture
from liftplus.evaluation.inference import CropOutputs, SplitReader, best, crops, predict, share_unreadable
from liftplus.evaluation.outputs import WithFeatures, outputs
from liftplus.machine.determinism import deterministic
from liftplus.model.classifier import Classifier
from liftplus.runs.guesses import PLAIN, Asked, Found, Guess
from liftplus.runs.inputs import Inputs
from liftplus.runs.opening import Session
from liftplus.runs.testing import expect
from liftplus.training.checkpoint import Trained


def predict_files(
    session: Session, trained: Trained, rows: Inputs, *, skip_unreadable: bool, asked: Asked = PLAIN
) -> list[Guess]:
    """The best k classes of image files (`evaluation.top_k`) and what else is asked, one `Guess` per row.

    Args:
        skip_unreadable: report an unreadable picture in its row; otherwise it is an error.
    """
    unreadable: dict[str, str] = {}
    found = predict_rows(session, trained, rows, unreadable if skip_unreadable else None, asked)
    guesses = asked.guesses(rows.names, found, trained.class_names)
    reasons = [unreadable.get(key) for key in rows.keys]
    return [
        Guess(guess.path, (), (), reason) if reason else guess for guess, reason in zip(guesses, reasons, strict=True)
    ]


def predict_rows(
    session: Session,
    trained: Trained,
    rows: Inputs,
    unreadable: dict[str, str] | None = None,
    asked: Asked = PLAIN,
) -> Found:
    """Predictions for pictures, in the order of the rows.

    Args:
        unreadable: collects the key and the reason of each picture that cannot be decoded; its prediction is
            meaningless. If None, such a picture is an error.
    """
    expect(session, trained.model, trained.class_names, trained.train_counts)
    rows.store.decode = session.config.data.decode
    split, config, model = Split(rows.keys, [0] * len(rows)), session.config, trained.model
    evaluation, runtime = config.evaluation, session.runtime
    reader = SplitReader(
        rows.store, split, config.train.workers, session.progress, label="Predicting", unreadable=unreadable
    )
    with deterministic(config.deterministic):
        if not asked.promises.any:
            return Found(predict(model, reader, evaluation, model.backbone.facts, runtime, asked.how))
        logits, features = outputs(model, reader, evaluation, runtime, session.cache)
        share_unreadable(reader, runtime)
        own = logits if runtime.job.size == 1 else logits[runtime.job.part(len(logits))]
        top = best(own, evaluation, runtime, len(split), asked.how)
    return asked.found(top, logits, features)


class Predictor:
    """Predicts pictures that come one by one, as `predict_files` predicts files.

    Attributes:
        batch_size: the largest number of pictures that go through the model together.
    """

    def __init__(self, session: Session, trained: Trained, asked: Asked = PLAIN) -> None:
        expect(session, trained.model, trained.class_names, trained.train_counts)
        self.session, self.trained, self.asked = session, trained, asked
        facts, evaluation = trained.model.backbone.facts, session.config.evaluation
        self.batch_size = evaluation.batch_size
        self._crops = crops(evaluation, facts)
        model = WithFeatures(trained.model) if asked.promises.any else trained.model
        self._outputs = CropOutputs(model, self._crops, facts, session.runtime)

    def view(self, data: bytes, name: str, most: int | None = None) -> Tensor:
        """The part of a picture that its crops are cut from, uint8 [3, H, W]; threads may call it side by side.

        Args:
            data: the content of an image file.
            name: what an error calls it.
            most: the largest number of pixels.

        Raises:
            UnreadableImage: the data give no picture, or one of more pixels.
        """
        return self._crops.picture(picture(data, name, self.session.config.data.decode, most))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Where `predict` is called: one thread of the process. The first pictures take longer, so it predicts some."""
        config = self.session.config
        # Compiled models fill each batch up to the size of the largest so far.
        count = self.batch_size if self.session.runtime.compiles else 1
        black = self._crops.picture(Image.new("RGB", (1, 1)))
        with torch.inference_mode(), deterministic(config.deterministic), self._outputs.kept():
            self.predict([""] * count, [black] * count)
            yield

    def predict(self, names: Sequence[str], views: Sequence[Tensor]) -> list[Guess]:
        """The best classes of at most `batch_size` views.

        Raises:
            DivergedError: a logit is not finite.
        """
        out = self._outputs(*packed(views)).mean(1).cpu()
        count = len(self.trained.class_names)
        logits, features = out[:, :count], out[:, count:] if self.asked.promises.any else None
        top = best(logits, self.session.config.evaluation, self.session.runtime, len(views), self.asked.how)
        return self.asked.guesses(names, self.asked.found(top, logits, features), self.trained.class_names)


def side_by_side(session: Session, trained: Trained, asked: Asked = PLAIN) -> list[Predictor]:
    """Predictors for threads of their own: two on a CPU of several cores, else one.

    Threads of PyTorch wait for one another in every layer, so a core that does something else meanwhile leaves the
    others idle. Two batches at a time do not wait for each other.
    """
    runtime = session.runtime
    two = runtime.device.type == "cpu" and torch.get_num_threads() > 1 and not runtime.compiles
    models = [trained.model, copied(trained.model)] if two else [trained.model]
    return [Predictor(session, replace(trained, model=model), asked) for model in models]


def copied(model: Classifier) -> Classifier:
    """A model of modules of its own, with the same weights in the same memory.

    Tuners keep in their modules what one batch brings, so threads that predict at the same time cannot share them.
    """
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, tensors)
