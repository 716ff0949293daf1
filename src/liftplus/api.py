"""liftplus from Python: load data, fit, evaluate, predict, save, load.

Everything here is also available as `liftplus.NAME`. Nothing is printed, and no run folder is written unless asked for.
Features of frozen towers are cached as by the commands; `cache=False` turns this off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from liftplus import config
from liftplus.config import RunConfig
from liftplus.data import sources
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.kept_facts import KeptFacts
from liftplus.data.labelled import Labelled, from_images
from liftplus.data.workers import leave_unguarded
from liftplus.errors import UserError
from liftplus.fitted import Data, Model, Predictions
from liftplus.machine import disk, parallel, runtime
from liftplus.machine.paths import expanded
from liftplus.machine.progress import Progress, Silent
from liftplus.runs import calibration_file, changes, execution, merging, opening
from liftplus.runs.opening import Session
from liftplus.training import checkpoint, loop, recipe
from liftplus.training.checkpoint import Chosen, Trained

__all__ = ["Model", "Predictions", "fit", "from_images", "load", "load_data", "merge"]


def load_data(source: str | os.PathLike[str], **settings: Any) -> DataSet:
    """Load a data set from a folder, archive, table or list, or by a known name.

    Args:
        source: anything that `--data` accepts.
        settings: `data.*` keys, such as `val_share=0.1` or `class_names="names.txt"`, and `cache`.

    Raises:
        UserError: the data do not exist, are incomplete or contradict themselves.

    >>> data = liftplus.load_data("photos", val_share=0.2)
    >>> data.class_names
    ('blue sky', 'green hill', 'red square')
    >>> {name: len(split) for name, split in data.splits.items()}
    {'train': 24, 'val': 6, 'test': 6}
    """
    chosen = config.resolve(data=os.fspath(source), overrides=_overrides(settings))
    return sources.load(chosen.data, kept=KeptFacts.of(chosen.cache))


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
        data: a path or known name, a `DataSet`, or (images, labels) as for `from_images`.
        backbone: a name from `liftplus info`; mini_clip by default.
        method: lift+, lift, linear_probe, linear_probe+, full, full+, closed_form or zeroshot.
        out: a run folder to write, tested and with the same files as by `liftplus train`. By default nothing is
            written. Fitting into the folder of an interrupted run continues it.
        progress: True shows a bar on stderr.
        settings: any key=value of the command line, such as `epochs=10`, `tte=False`, `tuner="lora"`. Write keys with a
            dot as `**{"tuner.lora.rank": 4}`.

    Raises:
        UserError: a setting or the data are not allowed; the message says what is.

    >>> model = liftplus.fit("photos", epochs=1, tte=False, seed=7)
    >>> model.class_names
    ('blue sky', 'green hill', 'red square')
    """
    if parallel.started_by_torchrun():
        raise UserError(
            "liftplus.fit trains in one process, but torchrun started several. Use `torchrun -m liftplus train` to "
            "train with all of them, or start this script with python."
        )
    leave_unguarded()
    place = None if out is None else expanded(out)
    dataset = None if isinstance(data, str | os.PathLike) else _dataset(data)
    chosen, notes = _chosen(data, dataset, backbone, method, settings)
    if chosen.track and out is None:
        raise UserError("track needs a run folder. Give one with out=FOLDER.")
    session = _session(chosen, progress)
    dataset = session.data() if dataset is None else dataset
    if place is not None and changes.unfinished(place) is None:
        disk.new_folder(place)
    session, classifier, said = opening.begin(session, dataset, place)
    chosen, notes = session.config, [*notes, *said]
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
    trained = Trained(
        classifier,
        chosen,
        dataset.class_names,
        dataset.class_ids,
        dataset.counts(),
        folder,
        weights,
        levels=dataset.levels,
    )
    return Model(trained, session, dataset, tuple(notes))


def _dataset(data: DataSet | Labelled) -> DataSet:
    return data if isinstance(data, DataSet) else from_images(*data)


def _chosen(
    data: Data, dataset: DataSet | None, backbone: str | None, method: str, settings: dict[str, Any]
) -> tuple[RunConfig, list[str]]:
    """The configuration, and notes on what was decided for the user."""
    read_by = dataset.config if dataset is not None else None
    source = os.fspath(cast(str, data)) if dataset is None else read_by.source if read_by else None
    overrides = _overrides(settings)
    usual = recipe.usual(source)
    chosen = config.resolve(data=source, backbone=backbone, method=method, overrides=overrides, recipe=usual)
    if dataset is None:
        return chosen, []
    if chosen.data != DataConfig(source=source or ""):
        raise UserError(
            "Settings of data.* say how data are read, but these data are already loaded. Give the settings to "
            "load_data, or give fit a path."
        )
    chosen = chosen.model_copy(update={"data": read_by or DataConfig()})
    if "head_init" in chosen.automatic or "head_init" in settings or chosen.head.name == "joint":
        return chosen, []
    if dataset.named or not chosen.head_init.reads_names:
        return chosen, []
    other = "ridge" if chosen.head_init.name == "mix" else "class_mean"
    chosen = config.changed(chosen.to_dict(), [f"head_init={other}"])
    return chosen, [
        f"The classes have no names, so the classifier starts with head_init={other}. Give names with class_names."
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


def load(folder: str | os.PathLike[str], *, progress: bool | Progress = False, **settings: Any) -> Model:
    """Load a model that was saved, or trained by `liftplus train`.

    Args:
        folder: a run folder, or a model file in it.
        progress: True shows bars on stderr.
        settings: settings that may change after training, such as `device="cpu"`, `tte=False` or
            `weights="clip.safetensors"`.

    Raises:
        UserError: the folder holds no model, or the backbone's weights differ from those in training.

    >>> again = liftplus.load("runs/photos", device="cpu")
    >>> again.predict("photos/test/blue sky").names == model.predict("photos/test/blue sky").names
    True
    """
    place = expanded(folder)
    chosen = config.after_training(config.saved(checkpoint.read_about(place)["config"]), _overrides(settings))
    session = _session(chosen, progress)
    trained = checkpoint.load_model(place, session.runtime, chosen.backbone)
    saved = calibration_file.read(trained.folder)
    return Model(trained, session, file=place if place.is_file() else place / checkpoint.FILE, calibration=saved)


def merge(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    start: float = 0.0,
    shares: Sequence[float] = (),
    progress: bool | Progress = False,
    **settings: Any,
) -> Model:
    """Merge runs: average their weights (model soups), or mix a run's weights with its start (WiSE-FT).

    Args:
        runs: folders of finished runs with the same backbone, tuner, head and classes, or model files in them.
        out: folder of the merged run; it must not exist yet. The merged run is not tested.
        start: share of the weights before training, from 0 to 1. These are rebuilt from the training pictures.
        shares: weight of each run; by default all are equal.
        progress: True shows bars on stderr.
        settings: as for `load`, for all runs. Give `**{"data.source": "photos"}` if their data were moved.

    Raises:
        UserError: the runs cannot be merged, or a start cannot be rebuilt.

    >>> between = liftplus.merge(["runs/photos"], "runs/between", start=0.5)
    >>> between.class_names
    ('blue sky', 'green hill', 'red square')
    """
    given, places = _overrides(settings), [expanded(run) for run in runs]
    if not places:
        raise UserError("No run was given. Give merge a list of run folders.")
    chosen = [config.after_training(config.saved(checkpoint.read_about(run)["config"]), given) for run in places]
    parts = [merging.Part.read(run, own) for run, own in zip(places, chosen, strict=True)]
    session = _session(chosen[0], progress)
    notes = merging.merge(parts, expanded(out), session, shares, start)
    model = load(out, progress=progress, **settings)
    model.notes = tuple(notes)
    return model
