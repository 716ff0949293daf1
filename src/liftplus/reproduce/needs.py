"""What experiments need (data and layout, packages, weights, memory, time), and which of it is missing here."""

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
MADE = "openmoji_lt"  # the only known data set that needs no files


class DataNeed(BaseModel):
    """What a data set needs. needs.toml describes the keys."""

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
    """Memory and speed of training with a backbone, and the source of these numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gigabytes: str
    images_per_second: float | None = None
    basis: str


@dataclass(frozen=True)
class Outline:
    """The settings of a run that determine its cost.

    Attributes:
        backbone: its name.
        epochs: number of epochs; 0 without training.
        tuner: names of the tuners.
        imbalance_ratio: to which the data are cut; None if it is not set.
    """

    backbone: str
    epochs: int
    tuner: tuple[str, ...]
    imbalance_ratio: float | None = None


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("needs.toml").read_text(encoding="utf-8"))


def all_data() -> dict[str, DataNeed]:
    """The needs of all known data sets, by name."""
    return {name: DataNeed.model_validate(entry) for name, entry in _tables()["data"].items()}


def data(source: str) -> DataNeed | None:
    """What a data set needs; None if it is not known."""
    entry = _tables()["data"].get(source)
    return None if entry is None else DataNeed.model_validate(entry)


def backbone(name: str) -> BackboneNeed | None:
    """Memory and speed of training with a backbone; None if not known."""
    entry = _tables()["backbones"].get(name)
    return None if entry is None else BackboneNeed.model_validate(entry)


def has_root(source: str) -> bool:
    """Whether a data set has a known name and its files are in a folder."""
    return source in names.DATA_SETS and source != MADE


def training_images(run: Outline, source: str) -> int | None:
    """Images per epoch; None if that cannot be known without the data."""
    if source == "cifar100_lt":
        from liftplus.data.long_tail import long_tailed_sizes

        ratio = run.imbalance_ratio or 100.0
        return sum(long_tailed_sizes(CIFAR_MOST, ratio, CIFAR_CLASSES))
    return need.train if (need := data(source)) else None


def estimate(run: Outline, source: str) -> float | None:
    """Seconds of training one run: images x epochs / images per second; None if they are not known.

    The speed was measured with AdaptFormer, so other tuners get no estimate.
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
    """What to put where for a data set; None if its files exist. The files are not opened."""
    need = data(source)
    if need is not None and (lacking := [name for name in need.packages if find_spec(name) is None]):
        return f"{need.title} needs the missing package {' and '.join(lacking)}: {need.get}."
    if not has_root(source):
        if source in names.DATA_SETS or Path(config.data.source).exists():
            return None
        told = f" Where to get it: {need.get}." if need else ""
        return f"There is no {config.data.source!r}.{told} Give another place with --data-root DIR."
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
        f"{need.title} ({source}) belongs into the folder {str(root)!r}, which {state}. Put there:\n"
        + "".join(f"    {line}\n" for line in need.layout)
        + f"  Where to get it: {need.get}\n"
        f"  Or give another place: --data-root DIR (with the data in DIR/{source}), or data.root=DIR."
    )


def missing_weights(config: BackboneConfig, *, fetch: bool) -> str | None:
    """Why a backbone's weight file is missing; None if it is here. With `fetch`, it is downloaded if possible."""
    from liftplus.backbones import catalogue as backbones

    try:
        backbones.locate(config, fetch=fetch)
    except UserError as error:
        return str(error)
    return None


def missing(configs: Sequence[tuple[str, RunConfig]]) -> list[str]:
    """Everything that these runs lack, one sentence each. Weights are downloaded only if no data are missing.

    Args:
        configs: pairs of (data set's name, settings).
    """
    places = {config.data.model_dump_json(): (source, config) for source, config in configs}
    absent = [text for source, config in places.values() if (text := missing_data(config, source))]
    towers = {config.backbone.model_dump_json(): config.backbone for _, config in configs}
    absent += [text for tower in towers.values() if (text := missing_weights(tower, fetch=not absent))]
    return list(dict.fromkeys(absent))
