"""liftplus from Python: load data, fit, evaluate, predict, save, load.

Everything here is also under `liftplus` itself. Nothing is printed, and no run folder is written unless asked for.
Features of frozen towers are kept for the next time as by the commands; `cache=False` keeps none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from liftplus import config
from liftplus.config import RunConfig
from liftplus.data import labels as labelling
from liftplus.data import sources
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.labelled import Labelled, from_images, is_column, pictures_of, store_of
from liftplus.data.workers import leave_unguarded
from liftplus.errors import UserError
from liftplus.evaluation import results
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import parallel, runtime
from liftplus.machine.paths import expanded
from liftplus.machine.progress import Progress, Silent
from liftplus.model.classifier import Classifier
from liftplus.runs import changes, execution, inputs, matching, opening, predicting, testing
from liftplus.runs.inputs import Rows
from liftplus.runs.opening import Session
from liftplus.training import checkpoint, loop, recipe
from liftplus.training.checkpoint import Chosen, Trained

__all__ = ["Model", "Predictions", "fit", "from_images", "load", "load_data"]

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Pictures = Picture | Sequence[Picture]
"""One image or several: paths, Pillow images or uint8 [H, W, 3]; an array [N, H, W, 3] is several."""
Data = str | os.PathLike[str] | DataSet | Labelled


def load_data(source: str | os.PathLike[str], **settings: Any) -> DataSet:
    """The data set in a folder, archive, table or list, or of a known name.

    Args:
        source: what `--data` takes.
        settings: `data.*` keys, such as `val_share=0.1` or `class_names="names.txt"`.

    Raises:
        UserError: it does not exist, is incomplete or contradicts itself.

    >>> data = liftplus.load_data("photos", val_share=0.2)
    >>> data.class_names
    ('blue sky', 'green hill', 'red square')
    >>> {name: len(split) for name, split in data.splits.items()}
    {'train': 24, 'val': 6, 'test': 6}
    """
    chosen = config.resolve(data=os.fspath(source), overrides=_overrides(settings)).data
    return sources.load(chosen)


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    data: Data,
    backbone: str | None = None,
    method: str = "lift+",
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool | Progress = False,
    **settings: Any,
) -> Model:
    """Fine-tune a backbone on a data set.

    Args:
        data: a path or known name, a `DataSet`, or (images, labels) as `from_images` takes them.
        backbone: a name from `liftplus info`; mini_clip by default.
        method: lift+, lift, linear_probe, full, closed_form or zeroshot.
        out: a run folder to write, with the same files as `liftplus train` and tested at the end; in memory alone if
            not given. A run that was interrupted goes on when it is fitted again into the same folder.
        progress: True shows a bar on stderr.
        settings: any key=value of the command line, such as `epochs=10`, `tte=False`, `tuner="lora"`; keys with a dot
            as `**{"tuner.lora.rank": 4}`.

    Raises:
        UserError: a setting or the data are not allowed; says what is.

    >>> model = liftplus.fit("photos", epochs=1, tte=False, seed=7)
    >>> model.class_names
    ('blue sky', 'green hill', 'red square')
    """
    if parallel.started_by_torchrun():
        raise UserError(
            "liftplus.fit trains in one process, and torchrun started several. Train with all of them by "
            "`torchrun -m liftplus train`, or start this script by python."
        )
    leave_unguarded()
    place = None if out is None else expanded(out)
    dataset = None if isinstance(data, str | os.PathLike) else _dataset(data)
    chosen, notes = _chosen(data, dataset, backbone, method, settings)
    if chosen.track and out is None:
        raise UserError("track follows a run folder; give one with out.")
    session = _session(chosen, progress)
    dataset = session.data() if dataset is None else dataset
    if place is not None and changes.unfinished(place) is None:
        results.new_folder(place)
    session, classifier = session.start(dataset, place)
    chosen = session.config
    notes += [*recipe.sentences(chosen, dataset, session.seconds), *opening.notes(chosen, dataset, classifier)]
    weights: Chosen | None = None
    if place is not None:
        outcome = execution.train_run(session, dataset, classifier, place)
        weights = outcome.chosen
        notes += (*outcome.notes, *outcome.signs)
    elif chosen.train.epochs:
        fitted = loop.fit(
            classifier,
            chosen,
            dataset,
            session.runtime,
            progress=session.progress,
            cache=session.cache,
            began=session.began,
        )
        weights = fitted.chosen
        notes += fitted.notes
    folder = place or Path()
    trained = Trained(classifier, chosen, dataset.class_names, dataset.class_ids, dataset.counts(), folder, weights)
    return Model(trained, session, dataset, tuple(notes))


def _dataset(data: DataSet | Labelled) -> DataSet:
    return data if isinstance(data, DataSet) else from_images(*data)


def _chosen(
    data: Data, dataset: DataSet | None, backbone: str | None, method: str, settings: dict[str, Any]
) -> tuple[RunConfig, list[str]]:
    """The configuration, and what was decided for the user."""
    read_by = dataset.config if dataset is not None else None
    source = os.fspath(cast(str, data)) if dataset is None else read_by.source if read_by else None
    overrides = _overrides(settings)
    usual = recipe.usual(source)
    chosen = config.resolve(data=source, backbone=backbone, method=method, overrides=overrides, recipe=usual)
    if dataset is None:
        return chosen, []
    if chosen.data != DataConfig(source=source or ""):
        raise UserError("Settings of data.* say how data are read. Give them to load_data, or give fit a path.")
    chosen = chosen.model_copy(update={"data": read_by or DataConfig()})
    if "head_init" in chosen.automatic or "head_init" in settings or chosen.head.name == "joint":
        return chosen, []
    if dataset.named or not chosen.head_init.reads_names:
        return chosen, []
    other = "ridge" if chosen.head_init.name == "mix" else "class_mean"
    chosen = config.changed(chosen.to_dict(), [f"head_init={other}"])
    return chosen, [
        f"The classes have no names, so the classifier starts by head_init={other}; class_names gives names."
    ]


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as key=value pairs; None leaves a setting at its default."""
    return [f"{key}={_text(value)}" for key, value in settings.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return json.dumps(value.item() if isinstance(value, np.generic) else value)


def _session(chosen: RunConfig, progress: bool | Progress) -> Session:
    if progress is True:
        from liftplus import console

        progress = console.Bars()
    place = runtime.choose(chosen.device, chosen.precision, compiling=chosen.compile)
    return Session(chosen, place, progress or Silent())


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
        target = results.new_folder(expanded(folder))
        try:
            if self.dataset is None and self.file is not None:
                results.write_bytes(target / checkpoint.FILE, self.file.read_bytes())
            else:
                dataset = cast(DataSet, self.dataset)
                checkpoint.save_model(target, self.network, self.config, dataset, self.trained.chosen)
        except UserError:
            with suppress(OSError):  # a folder that was there with other files stays
                target.rmdir()
            raise
        return target


def probabilities(model: Model, rows: Rows, tte: bool | None = None) -> NDArray[np.float32]:
    """Probabilities [N, C] of all classes, one row for each picture."""
    best, chances = _ranked(model, rows, len(model.class_names), tte)
    out = np.empty_like(chances)
    np.put_along_axis(out, best, chances, axis=1)
    return out


def _rows(images: Any) -> Rows:
    """What was given as rows, one picture each."""
    single = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    single |= getattr(images, "ndim", 4) in (0, 2, 3) and not is_column(images)
    pictures = pictures_of([images] if single else images)
    return inputs.read(pictures).complete() if isinstance(pictures[0], str) else Rows(*store_of(pictures))


def _ranked(model: Model, rows: Rows, top_k: int, tte: bool | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best classes of each row [N, k] and their probabilities."""
    found = predicting.predict_rows(model._with(tte, top_k), model.trained, rows)
    return found.classes.numpy(), found.probabilities.numpy()


def load(folder: str | os.PathLike[str], *, progress: bool | Progress = False, **settings: Any) -> Model:
    """A model that was saved, or trained by `liftplus train`.

    Args:
        folder: a run folder, or a model file in it.
        progress: True shows bars on stderr.
        settings: what may change after training, such as `device="cpu"`, `tte=False` or `weights="clip.safetensors"`.

    Raises:
        UserError: the folder holds no model, or the backbone's weights are others than in training.

    >>> again = liftplus.load("runs/photos", device="cpu")
    >>> again.predict("photos/test/blue sky").names == model.predict("photos/test/blue sky").names
    True
    """
    place = expanded(folder)
    chosen = config.after_training(config.saved(checkpoint.read_about(place)["config"]), _overrides(settings))
    session = _session(chosen, progress)
    trained = checkpoint.load_model(place, session.runtime, chosen.backbone)
    return Model(trained, session, file=place if place.is_file() else place / checkpoint.FILE)
