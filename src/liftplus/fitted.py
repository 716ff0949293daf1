"""A trained classifier from Python: predict, evaluate, save."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liftplus.config import RunConfig
from liftplus.data import labels as labelling
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.labelled import Labelled, from_images, is_column, pictures_of, store_of
from liftplus.errors import UserError
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk
from liftplus.machine.paths import expanded
from liftplus.model.classifier import Classifier
from liftplus.runs import inputs, matching, predicting, testing
from liftplus.runs.inputs import Inputs
from liftplus.runs.opening import Session
from liftplus.training import checkpoint
from liftplus.training.checkpoint import Trained

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Pictures = Picture | Sequence[Picture]
"""One image or several: paths, Pillow images or uint8 [H, W, 3]; an array [N, H, W, 3] is several."""

Data = str | os.PathLike[str] | DataSet | Labelled


@dataclass(frozen=True)
class Predictions:
    """The best classes of N images.

    Attributes:
        names: the k best classes of each image, best first: N tuples of k.
        probabilities: theirs, fp32 [N, k].
        classes: their indices in `class_names`, int64 [N, k].
        paths: the N files, where paths were given; of a folder those that lie in it.
    """

    names: tuple[tuple[str, ...], ...]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int64]
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


class Model:
    """A trained classifier.

    Attributes:
        trained: the network, its configuration and its classes.
        session: settings and device that it runs with.
        dataset: what it was fitted on; None where it was loaded.
        notes: what was decided for the user, one sentence each.
        file: what it was loaded from.
    """

    def __init__(
        self,
        trained: Trained,
        session: Session,
        dataset: DataSet | None = None,
        notes: tuple[str, ...] = (),
        file: Path | None = None,
    ) -> None:
        self.trained, self.session, self.dataset, self.notes, self.file = trained, session, dataset, notes, file

    def __repr__(self) -> str:
        kind = f"{self.config.method} on {self.config.backbone.name}"
        return f"<liftplus.Model: {kind}, {len(self.class_names)} classes, on {self.session.runtime.device}>"

    @property
    def network(self) -> Classifier:
        """The PyTorch module, normalised images [B, 3, R, R] to logits [B, C]."""
        return self.trained.model

    @property
    def config(self) -> RunConfig:
        """Every setting of the run."""
        return self.session.config

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their indices."""
        return self.trained.class_names

    def evaluate(self, data: Data | None = None, *, split: str = "test", tte: bool | None = None) -> Metrics:
        """Accuracies in percent on a split; groups go by the training counts.

        Args:
            data: as for `fit`; by default what the model was fitted on. Classes are matched by id and name. A path
                without a test split is tested as a whole, and arrays always are.
            split: test, val or train.
            tte: five crops or one; as in training if not given.

        >>> metrics = model.evaluate()
        >>> metrics.images, metrics.overall > 50
        (6, True)
        >>> metrics.few == metrics.mean_class, metrics.many is None
        (True, True)
        """
        session = self._with(tte)
        dataset = matching.aligned(self._to_test(data, split, session), split, self.trained)
        return testing.measure(session, self.network, dataset, split, self.trained.train_counts)[1]

    def _to_test(self, data: Data | None, split: str, session: Session) -> DataSet:
        source = self.config.data.source
        if data is None or (isinstance(data, str | os.PathLike) and matching.same_data(os.fspath(data), source)):
            if self.dataset is None and not source:
                raise UserError("The model was fitted on images in memory, so give evaluate some: a path or images.")
            return self.dataset or matching.as_in_run(session.data(), self.trained.folder, split)
        if isinstance(data, str | os.PathLike):
            old = self.config.data
            other = DataConfig(source=os.fspath(data), unreadable=old.unreadable, decode=old.decode)
            return replace(session, config=session.config.model_copy(update={"data": other})).data(for_testing=True)
        if isinstance(data, DataSet):
            return data
        names = dict(zip(self.trained.class_ids, self.class_names, strict=True))
        images = pictures_of(data[0])
        labels = labelling.read(data[1], len(images)).values
        known = {label: names.get(matching.id_of(label, names), str(label)) for label in dict.fromkeys(labels)}
        made = from_images(images, labels, class_names=known)
        return replace(made, splits={"test": made.splits["train"]})

    def predict(self, images: Pictures, *, top_k: int = 5, tte: bool | None = None) -> Predictions:
        """The best classes of images: rows in the order given, also where one is given twice.

        Args:
            images: paths of files; Pillow images; or uint8 pictures [H, W, 3]. One, or several in a list or array
                [N, H, W, 3]. A folder, glob pattern, archive or list of paths stands for all its pictures, whose names
                are in `paths` of the result.
            top_k: classes for each image, at most.
            tte: five crops or one; as in training if not given.

        Raises:
            UserError: a path names no image, or a file cannot be read.

        >>> found = model.predict("photos/test/blue sky", top_k=2)
        >>> best, second = found.names[0]
        >>> best, found.probabilities.shape
        ('blue sky', (2, 2))
        """
        rows = _rows(images)
        best, chances = _ranked(self, rows, top_k, tte)
        names = tuple(tuple(self.class_names[k] for k in row) for row in best.tolist())
        return Predictions(names, chances, best, rows.names)

    def predict_proba(self, images: Pictures, *, tte: bool | None = None) -> NDArray[np.float32]:
        """Probabilities [N, C] of all classes, in the order of `class_names`; arguments as for `predict`.

        >>> chances = model.predict_proba(images)
        >>> chances.shape, bool(abs(chances.sum(axis=1) - 1).max() < 1e-4)
        ((12, 3), True)
        """
        return probabilities(self, _rows(images), tte)

    def _with(self, tte: bool | None, top_k: int = 1) -> Session:
        """The session with other test options."""
        crops = {} if tte is None else {"tte": tte}
        evaluation = self.config.evaluation.model_copy(update={"top_k": top_k, **crops})
        return replace(self.session, config=self.config.model_copy(update={"evaluation": evaluation}))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the learned weights into a new folder, for `load` and the commands eval, predict and export.

        Raises:
            UserError: the folder exists already or cannot be written, or weights are not finite.

        >>> model.save("models/photos").name
        'photos'
        """
        target = disk.new_folder(expanded(folder))
        try:
            if self.dataset is None and self.file is not None:
                disk.write_bytes(target / checkpoint.FILE, self.file.read_bytes())
            else:
                dataset = cast(DataSet, self.dataset)
                checkpoint.save_model(target, self.network, self.config, dataset, self.trained.chosen)
        except UserError:
            with suppress(OSError):  # a folder that was there with other files stays
                target.rmdir()
            raise
        return target


def probabilities(model: Model, rows: Inputs, tte: bool | None = None) -> NDArray[np.float32]:
    """Probabilities [N, C] of all classes, one row for each picture."""
    best, chances = _ranked(model, rows, len(model.class_names), tte)
    out = np.empty_like(chances)
    np.put_along_axis(out, best, chances, axis=1)
    return out


def _rows(images: Any) -> Inputs:
    """What was given as rows, one picture each."""
    single = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    single |= getattr(images, "ndim", 4) in (0, 2, 3) and not is_column(images)
    pictures = pictures_of([images] if single else images)
    return inputs.read(pictures).complete() if isinstance(pictures[0], str) else Inputs(*store_of(pictures))


def _ranked(model: Model, rows: Inputs, top_k: int, tte: bool | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best classes of each row [N, k] and their probabilities."""
    found = predicting.predict_rows(model._with(tte, top_k), model.trained, rows)
    return found.classes.numpy(), found.probabilities.numpy()
