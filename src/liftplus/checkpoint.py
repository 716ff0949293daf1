"""A trained model as one small file: learned weights, how to rebuild the rest, class names and training counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.config import RunConfig, from_dict
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.head_init import class_prompts
from liftplus.model import Classifier
from liftplus.results import write_bytes
from liftplus.runtime import Runtime

FILE = "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A classifier with what it was trained on."""

    model: Classifier
    config: RunConfig
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    train_counts: tuple[int, ...]


def save_model(folder: Path, model: Classifier, config: RunConfig, dataset: DataSet) -> None:
    """Write model.safetensors: a few MB that give the model back together with the backbone's weights."""
    about = {
        "format": FORMAT,
        "config": config.to_dict(),
        "backbone_identity": model.backbone.identity,
        "class_names": dataset.class_names,
        "class_ids": dataset.class_ids,
        "train_counts": dataset.counts(),
    }
    write_bytes(folder / FILE, save(model.learned_state(), {"liftplus": json.dumps(about)}))


def read_about(folder: Path) -> dict[str, Any]:
    """The description inside a run's model file."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} holds no trained model ({FILE} is missing). Give the folder of a finished run."
        )
    try:
        with safe_open(path, "pt") as stream:
            about: dict[str, Any] = json.loads((stream.metadata() or {})["liftplus"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged or was not written by liftplus. Train again, or restore the file."
        ) from error
    if about["format"] > FORMAT:
        raise UserError(f"{str(path)!r} was written by a newer liftplus. Update liftplus to read it.")
    return about


def load_model(folder: Path, runtime: Runtime, backbone_config: BackboneConfig | None = None) -> Trained:
    """Rebuild a trained classifier from its folder; other backbone weights than in training are refused.

    `backbone_config` replaces the run's own, for weights that have moved since.
    """
    about = read_about(folder)
    config = from_dict(about["config"])
    backbone = catalogue.load(backbone_config or config.backbone)
    if backbone.identity != about["backbone_identity"]:
        raise UserError(
            f"The run in {str(folder)!r} was trained on other weights of {config.backbone.name!r} "
            f"(SHA-256 {about['backbone_identity'][:12]}…, here {backbone.identity[:12]}…). "
            "Put the original file in place, or give its path: liftplus eval RUN weights=PATH."
        )
    classes = len(about["class_names"])
    head = config.head.build(backbone, classes)
    model = Classifier.assemble(
        backbone, dict(config.tuner), head, class_prompts(config.head_init, about["class_names"])
    )
    with safe_open(folder / FILE, "pt") as stream:
        state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    try:
        model.load_learned(state)
    except ValueError as error:
        raise UserError(f"The weights in {str(folder / FILE)!r} do not fit its configuration: {error}.") from error
    runtime.place(model)
    model.requires_grad_(False)
    return Trained(model, config, tuple(about["class_names"]), tuple(about["class_ids"]), tuple(about["train_counts"]))
