"""What experiments need: data and their layout, packages, weights, memory and time; and what of it is missing here."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from liftplus import names
from liftplus.errors import UserError

if TYPE_CHECKING:
    from liftplus.backbones.base import BackboneConfig
    from liftplus.config import RunConfig

CIFAR_MOST, CIFAR_CLASSES = 500, 100
MADE = "openmoji_lt"  # the one known data set that needs no files


class DataNeed(BaseModel):
    """What a data set takes; the keys are described in needs.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    get: str
    layout: tuple[str, ...] = ()
    wanted: tuple[tuple[str, ...], ...] = ()
    packages: tuple[str, ...] = ()
    class_names: str | None = None
    classes: int | None = None
    train: int | None = None
    test: int | None = None


class BackboneNeed(BaseModel):
    """Memory and speed of training with a backbone, and where they are from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gigabytes: str
    images_per_second: float | None = None
    basis: str


@dataclass(frozen=True)
class Outline:
    """The settings of a run that tell its cost.

    Attributes:
        backbone: its name.
        epochs: of training; 0 for none.
        tuner: names of the tuners that are asked for.
        imbalance_ratio: to which the data are cut, where it is set.
    """

    backbone: str
    epochs: int
    tuner: tuple[str, ...]
    imbalance_ratio: float | None = None


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("needs.toml").read_text(encoding="utf-8"))


def all_data() -> dict[str, DataNeed]:
    """What is known of data sets, by name."""
    return {name: DataNeed.model_validate(entry) for name, entry in _tables()["data"].items()}


def data(source: str) -> DataNeed | None:
    """What a data set takes; None for one that nothing is known of."""
    entry = _tables()["data"].get(source)
    return None if entry is None else DataNeed.model_validate(entry)


def backbone(name: str) -> BackboneNeed | None:
    """Memory and speed of training with a backbone; None where nothing is known."""
    entry = _tables()["backbones"].get(name)
    return None if entry is None else BackboneNeed.model_validate(entry)


def has_root(source: str) -> bool:
    """Whether a data set is one of the known names whose files lie in a folder."""
    return source in names.DATA_SETS and source != MADE


def training_images(run: Outline, source: str) -> int | None:
    """How many images an epoch has, where that is known without the data."""
    if source == "cifar100_lt":
        from liftplus.data.long_tail import long_tailed_sizes

        ratio = run.imbalance_ratio or 100.0
        return sum(long_tailed_sizes(CIFAR_MOST, ratio, CIFAR_CLASSES))
    return need.train if (need := data(source)) else None


def estimate(run: Outline, source: str) -> float | None:
    """Seconds of training one run: images x epochs / images a second; None without a basis for it.

    The speed is that of training a light module; a method that trains no weights within the tower, or most of them,
    takes another time.
    """
    if not run.epochs:
        return 0.0
    images, speed = training_images(run, source), backbone(run.backbone)
    light = set(run.tuner) == {"adaptformer"}
    if images is None or speed is None or speed.images_per_second is None or not light:
        return None
    return images * run.epochs / speed.images_per_second


def memory(run: Outline) -> str:
    """GPU memory of a training step, in words."""
    need = backbone(run.backbone)
    if need is None or not run.epochs:
        return f"not known; `liftplus info --backbone {run.backbone} --memory` predicts it"
    return f"{need.gigabytes} GB ({need.basis})"


def missing_data(config: RunConfig, source: str) -> str | None:
    """What to put where for a data set to be there; None where its files are, which are not opened."""
    need = data(source)
    if need is not None and (lacking := [name for name in need.packages if find_spec(name) is None]):
        return f"{need.title} needs {' and '.join(lacking)}, which this Python lacks: {need.get}."
    if not has_root(source):
        if source in names.DATA_SETS or Path(config.data.source).exists():
            return None
        told = f" Where to get it: {need.get}." if need else ""
        return f"The data {config.data.source!r} are not there.{told} --data-root DIR names another place to look in."
    assert need is not None and config.data.root is not None, "every known data set with files is in needs.toml"
    root = Path(config.data.root).expanduser()
    given = {need.class_names} if config.data.class_names != str(Path(config.data.root) / str(need.class_names)) else ()
    absent = [
        " or ".join(names)
        for names in need.wanted
        if not any((root / name).exists() or name in given for name in names)
    ]
    if not absent:
        return None
    state = f"lacks {', '.join(absent)}" if root.is_dir() else "does not exist"
    return (
        f"{need.title} ({source}) is looked for in the folder {str(root)!r}, which {state}. Put there:\n"
        + "".join(f"    {line}\n" for line in need.layout)
        + f"  Where to get it: {need.get}\n"
        f"  Or name another place: --data-root DIR (the data then lie in DIR/{source}), or data.root=DIR."
    )


def missing_weights(config: BackboneConfig, *, fetch: bool) -> str | None:
    """Why a backbone's weight file is not at hand; with `fetch`, it is fetched where it can be."""
    from liftplus.backbones import catalogue as backbones

    try:
        backbones.locate(config, fetch=fetch)
    except UserError as error:
        return str(error)
    return None


def missing(configs: Sequence[tuple[str, RunConfig]]) -> list[str]:
    """Everything that runs of these settings lack, each said once; weights are fetched once all data are there.

    Args:
        configs: (data set's name, settings) of the runs.
    """
    places = {config.data.model_dump_json(): (source, config) for source, config in configs}
    absent = [text for source, config in places.values() if (text := missing_data(config, source))]
    towers = {config.backbone.model_dump_json(): config.backbone for _, config in configs}
    absent += [text for tower in towers.values() if (text := missing_weights(tower, fetch=not absent))]
    return list(dict.fromkeys(absent))
