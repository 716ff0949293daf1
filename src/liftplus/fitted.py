"""A trained classifier in Python: predict, evaluate, save."""

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

from liftplus.calibration.calibrated import Calibration
from liftplus.calibration.sets import CLASS_SHARE, By
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
from liftplus.runs import calibrating, calibration_file, inputs, matching, predicting, testing
from liftplus.runs.calibration_file import Saved
from liftplus.runs.guesses import Asked, Found, LevelAsked, Promises
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
        names: names of the k best classes of each image, best first: N tuples of k.
        probabilities: their probabilities, fp32 [N, k].
        classes: their indices in `class_names`, int64 [N, k].
        paths: the file of each image; empty for images in memory.
        sets: names of the classes in the set of each image, best first; None if no sets were asked for.
        unknown: which images are of no known class, bool [N]; None if that was not asked.
        levels: the level that each image's group is of; "" if no level was sure; None if no level was asked for.
        groups: the name of each image's group at that level; "" if no level was sure; None likewise.
        group_probabilities: the group's probability, fp32 [N]; NaN if no level was sure; None likewise.
    """

    names: tuple[tuple[str, ...], ...]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int64]
    paths: tuple[str, ...] = ()
    sets: tuple[tuple[str, ...], ...] | None = None
    unknown: NDArray[np.bool_] | None = None
    levels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    group_probabilities: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.names)


class Model:
    """A trained classifier.

    Attributes:
        trained: the network, its configuration and its classes.
        session: its settings and device.
        dataset: the data it was fitted on; None if it was loaded.
        notes: what was decided for the user, one sentence each.
        file: the model file it was loaded from; None if it was fitted.
        calibration: what `calibrate` found, or what was in the run's folder.
    """

    def __init__(
        self,
        trained: Trained,
        session: Session,
        dataset: DataSet | None = None,
        notes: tuple[str, ...] = (),
        file: Path | None = None,
        calibration: Saved | None = None,
    ) -> None:
        self.trained, self.session, self.dataset, self.notes, self.file = trained, session, dataset, notes, file
        self.calibration = calibration

    def __repr__(self) -> str:
        kind = f"{self.config.method} on {self.config.backbone.name}"
        return f"<liftplus.Model: {kind}, {len(self.class_names)} classes, on {self.session.runtime.device}>"

    @property
    def network(self) -> Classifier:
        """The PyTorch module: normalised images [B, 3, R, R] -> logits [B, C]."""
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
        """Accuracies in percent on a split. The groups follow from the training counts.

        Args:
            data: as for `fit`; by default the data the model was fitted on. Classes are matched by id and name. If a
                path has no test split, all its pictures are tested; images in memory are always tested as a whole.
            split: test, val or train.
            tte: True for five crops, False for one; by default the run's setting.

        Raises:
            UserError: the data cannot be read, or have no such split or other classes.

        >>> metrics = model.evaluate()
        >>> metrics.images, metrics.overall > 50
        (6, True)
        >>> metrics.few == metrics.mean_class, metrics.many is None
        (True, True)
        """
        session = self._with(tte)
        dataset = matching.aligned(self._to_test(data, split, session), split, self.trained)
        calibration, _ = _calibration(self, session)
        temperature = 1.0 if calibration is None else calibration.temperature
        counts = self.trained.train_counts
        return testing.measure(session, self.network, dataset, split, counts, temperature=temperature)[1]

    def _to_test(self, data: Data | None, split: str, session: Session) -> DataSet:
        if self._is_own(data) or data is None:
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

    def _is_own(self, data: Data | None) -> bool:
        """Whether these are the data that the model was fitted on; None stands for them.

        Raises:
            UserError: they are, and were images in memory, which the folder of a loaded model does not have.
        """
        own = data is None or (isinstance(data, str | os.PathLike) and self._trained_on(data))
        if own and self.dataset is None and not self.config.data.source:
            raise UserError(
                "The model was fitted on images in memory, which its folder does not have. Give a path, or images and "
                "labels."
            )
        return own

    def calibrate(
        self, data: Data | None = None, *, split: str | None = None, share: float | None = None
    ) -> dict[str, Any]:
        """Make probabilities, sets and signs of unknown images keep what they promise (see the command `calibrate`).

        Afterwards probabilities have the temperature that was found, and `predict` takes `sets` and `unknown`. `save`
        keeps the calibration beside the model. `notes` gets a sentence on each class with too few images.

        Args:
            data: labelled images that the model was not trained on, as for `evaluate`; by default the data the model
                was fitted on.
            split: by default val of the model's own data and test of others.
            share: share of the split to use; by default all of it.

        Returns:
            What was measured on each half of the images with a calibration on the other half, as `calibrate --json`
            has it under "measured".

        Raises:
            UserError: there are no such images, or too few.

        >>> calibrated = liftplus.load("runs/photos")
        >>> measured = calibrated.calibrate("kept_aside")
        >>> found = calibrated.predict("photos/test", sets=0.8)
        >>> len(found.sets), {name for members in found.sets for name in members} <= set(calibrated.class_names)
        (6, True)
        """
        own = self._is_own(data)
        wanted = calibrating.Wanted(split, share, other_data=not own)
        dataset = self.dataset if own else self._to_test(data, split or "test", self.session)
        self.calibration, notes = calibrating.calibrate(self.session, self.trained, wanted, dataset, self.dataset)
        self.notes = (*self.notes, *notes)
        return dict(self.calibration.about["measured"])

    def _trained_on(self, data: str | os.PathLike[str]) -> bool:
        return matching.same_data(os.fspath(data), self.config.data.source)

    def predict(
        self,
        images: Pictures,
        *,
        top_k: int = 5,
        tte: bool | None = None,
        sets: float | None = None,
        sets_by: By = "group",
        class_share: float = CLASS_SHARE,
        unknown: float | None = None,
        level: str | None = None,
        sure: float | None = None,
    ) -> Predictions:
        """The best classes of images. The result has one row per image, in the order given, duplicates included.

        Args:
            images: one image, or several in a list or an array [N, H, W, 3]. An image is a file's path, a Pillow image
                or a uint8 array [H, W, 3]. A folder, glob pattern, archive or list of paths stands for all its
                pictures; `paths` of the result names them.
            top_k: the largest number of classes for each image.
            tte: True for five crops, False for one; by default the run's setting.
            sets: the coverage that sets of classes promise, such as 0.9; needs a calibration.
            sets_by: group, all or class, as for the command.
            class_share: with sets_by="class", the weight of a class's own quantile, from 0 to 1.
            unknown: the rate of known images that may be taken for unknown, such as 0.05; needs a calibration.
            level: the level above the classes at which to answer too; "leaf" for the classes themselves; "auto" for the
                deepest level that is sure.
            sure: the least probability of such an answer; with "auto" by default 0.9, else none.

        Raises:
            UserError: a path names no image, a file cannot be read, the model is not calibrated for these crops, or it
                has no such level.

        >>> found = model.predict("photos/test/blue sky", top_k=2)
        >>> best, second = found.names[0]
        >>> best, found.probabilities.shape
        ('blue sky', (2, 2))
        """
        rows = _rows(images)
        promises = Promises(sets, sets_by, class_share, unknown)
        asked = LevelAsked.of(self.trained, level, sure)
        found = _found(self, rows, top_k, tte, promises, asked)
        best = found.top.classes.numpy()
        answers = None if asked is None else list(asked.answers(found.top))
        return Predictions(
            self._named(best.tolist()),
            found.top.probabilities.numpy(),
            best,
            rows.names,
            None if found.members is None else self._named(found.members),
            None if found.unknown is None else found.unknown.numpy(),
            *((None, None, None) if answers is None else _columns(answers)),
        )

    def _named(self, rows: Iterable[Iterable[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(self.class_names[k] for k in row) for row in rows)

    def predict_proba(self, images: Pictures, *, tte: bool | None = None) -> NDArray[np.float32]:
        """Probabilities [N, C] of all classes, in the order of `class_names`. Arguments are as for `predict`.

        >>> chances = model.predict_proba(images)
        >>> chances.shape, bool(abs(chances.sum(axis=1) - 1).max() < 1e-4)
        ((12, 3), True)
        """
        return probabilities(self, _rows(images), tte)

    def _with(self, tte: bool | None, top_k: int = 1) -> Session:
        """A session with other test options."""
        crops = {} if tte is None else {"tte": tte}
        evaluation = self.config.evaluation.model_copy(update={"top_k": top_k, **crops})
        return replace(self.session, config=self.config.model_copy(update={"evaluation": evaluation}))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the learned weights into a new folder, for `load` and for the commands eval, predict and export.

        Raises:
            UserError: the folder already exists or cannot be written, or a weight is not finite.

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
            if self.calibration is not None:
                calibration_file.write(
                    target, self.calibration.moved(checkpoint.checksum(checkpoint.read_model(target)[1]))
                )
        except UserError:
            with suppress(OSError):  # a folder with other files stays
                target.rmdir()
            raise
        return target


def _columns(
    answers: Iterable[tuple[str, tuple[str, float] | None]],
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float32]]:
    """Levels, groups and their probabilities."""
    rows = [(level, *(group or ("", float("nan")))) for level, group in answers]
    chances = np.array([chance for *_, chance in rows], np.float32)
    return tuple(level for level, *_ in rows), tuple(group for _, group, _ in rows), chances


def probabilities(model: Model, rows: Inputs, tte: bool | None = None) -> NDArray[np.float32]:
    """Probabilities [N, C] of all classes, one row for each picture."""
    best, chances = _ranked(model, rows, len(model.class_names), tte)
    out = np.empty_like(chances)
    np.put_along_axis(out, best, chances, axis=1)
    return out


def _rows(images: Any) -> Inputs:
    """The images as rows, one picture each."""
    single = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    single |= getattr(images, "ndim", 4) in (0, 2, 3) and not is_column(images)
    pictures = pictures_of([images] if single else images)
    return inputs.read(pictures).complete() if isinstance(pictures[0], str) else Inputs(*store_of(pictures))


def _ranked(model: Model, rows: Inputs, top_k: int, tte: bool | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best classes of each row [N, k] and their probabilities."""
    found = _found(model, rows, top_k, tte, Promises()).top
    return found.classes.numpy(), found.probabilities.numpy()


def _found(
    model: Model, rows: Inputs, top_k: int, tte: bool | None, promises: Promises, level: LevelAsked | None = None
) -> Found:
    """Predictions for the rows, with the model's calibration if it holds for these crops."""
    session = model._with(tte, top_k)
    calibration, reason = _calibration(model, session)
    if reason is not None and promises.any:
        raise UserError(reason)
    if calibration is not None:
        promises.notes(calibration, model.class_names)
    return predicting.predict_rows(session, model.trained, rows, None, Asked(calibration, promises, level))


def _calibration(model: Model, session: Session) -> tuple[Calibration | None, str | None]:
    """The model's calibration for a session, or why there is none."""
    saved = model.calibration
    if saved is None:
        return None, "The model is not calibrated. Call calibrate first."
    reason = saved.misfit(session, model.trained)
    return (saved.calibration, None) if reason is None else (None, reason)
