"""A trained model as one small file: safetensors whose header says how to rebuild the rest, with a checksum.

The state of a run under way (`saved_state`) has the same form.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.forms import other_form
from liftplus.backbones.text import ClassTexts
from liftplus.config import RunConfig, from_dict, saved
from liftplus.data import hierarchy
from liftplus.data.dataset import DataSet, Levels
from liftplus.errors import DivergedError, UserError
from liftplus.machine.determinism import own_stream
from liftplus.machine.disk import write_bytes
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.head_init import centres, class_prompts
from liftplus.words import counted

FILE, LAST_MODEL, STATE = "model.safetensors", "model-last.safetensors", "last.safetensors"
FORMAT = 2
"""Format 1 had a checksum of the tensors' values alone, and its first files had none."""


@dataclass(frozen=True)
class Chosen:
    """Which epoch a run's weights come from, and why that one.

    Attributes:
        epoch: epochs of training behind them.
        of: epochs of the run.
        by: "last", or the accuracy on the validation split (overall, mean_class) that was best after this epoch.
        validation: accuracies on the validation split after this epoch, in percent, where they were measured.
    """

    epoch: int
    of: int
    by: str = "last"
    validation: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.of == 0:
            return "without training"
        if self.by == "last":
            return f"weights after epoch {self.epoch} of {self.of}"
        best = f", {self.validation[self.by]:.1f} %" if self.validation else ""
        return f"weights after epoch {self.epoch} of {self.of}, the best {self.by} on the validation split{best}"


@dataclass(frozen=True)
class Trained:
    """A classifier with what it was trained on."""

    model: Classifier
    config: RunConfig
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    train_counts: tuple[int, ...]
    folder: Path = Path()  # of the run
    chosen: Chosen | None = None  # None for a file that was written before this was saved
    former_names: tuple[str, ...] = ()
    """Names [C] that the classes had in training, if some have changed since."""
    digest: str = ""
    """SHA-256 of the learned weights in its file; empty if it has no file."""
    levels: Levels = field(default_factory=dict)
    """Groups of the classes at levels above them, as the data had them."""


def save_model(
    path: Path,
    model: Classifier,
    config: RunConfig,
    dataset: DataSet,
    chosen: Chosen | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a model file: a few MB that restore the model together with the backbone's weights.

    Args:
        path: a run folder, where it becomes model.safetensors, or a file.
        chosen: which epoch's weights; by default the last one's.
        weights: other learned weights than those the model has.
    """
    epochs = config.train.epochs
    about = {
        "format": FORMAT,
        "config": config.to_dict(),
        "backbone_identity": model.backbone.identity,
        "class_names": dataset.class_names,
        # A file of descriptors may change or be gone when the model is loaded.
        "class_prompts": model.backbone.text.texts if model.reads_text and model.backbone.text else None,
        "class_ids": dataset.class_ids,
        "train_counts": dataset.counts(),
        "levels": dataset.levels,
        "weights": asdict(chosen or Chosen(epochs, epochs)),
    }
    write_tensors(path / FILE if path.is_dir() else path, weights or model.learned_state(), about)


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write a safetensors file with a description and checksums of both, whole or not at all.

    Raises:
        DivergedError: weights are not finite, or too large for fp32.
    """
    if broken := [name for name, value in tensors.items() if not sound(value)]:
        raise DivergedError(
            f"{counted(len(broken), 'weight is', 'weights are')} not finite or too large, first {broken[0]}, so "
            f"{str(path)!r} was not written; what was there before stays. Lower train.lr, or give a sound file of "
            "backbone weights."
        )
    about = json.loads(json.dumps(about | {"sha256": checksum(tensors)}))
    described = json.dumps(about | {"sha256_description": _seal(about, tensors)})
    write_bytes(path, save(tensors, {"liftplus": described}))


def sound(tensor: Tensor) -> bool:
    """Whether numbers and their norm are finite in fp32; a head that divides by an infinite norm gives zeros."""
    return bool(tensor.float().norm().isfinite())


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seal(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over a description, the tensors' checksum in it, and their types and shapes."""
    kinds = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([about, kinds], sort_keys=True).encode()).hexdigest()


def read_about(folder: Path) -> dict[str, Any]:
    """The description inside a run's model file."""
    return read_model(folder)[0]


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and learned tensors of a run's model file."""
    return read_tensors(_model_file(folder))


def _model_file(folder: Path) -> Path:
    if folder.is_file():
        return folder
    if not (folder / FILE).is_file():
        raise UserError(
            f"{str(folder)!r} holds no trained model ({FILE} is missing).{other_form(folder)} Give the folder of a "
            "finished run."
        )
    return folder / FILE


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a file that liftplus wrote; one that is cut short or changed is refused."""
    about, tensors = _open(path)
    number = about.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{str(path)!r} was written by a newer liftplus. Update liftplus to read it.")
    seal = about.pop("sha256_description", None)
    # The first format had no seal, and at first no checksum.
    whole = seal == _seal(about, tensors) if number == FORMAT else number == 1 and seal is None
    if not whole or checksum(tensors) != about.get("sha256", None if number == FORMAT else checksum(tensors)):
        raise UserError(f"{str(path)!r} is damaged: its checksum does not fit. Train again, or restore the file.")
    return about, tensors


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as stream:
            described = stream.metadata() or {}
            if "liftplus" not in described:
                raise UserError(
                    f"{str(path)!r} holds weights, but no run of liftplus.{other_form(path.parent)} Give the folder of "
                    "a finished run."
                )
            about = json.loads(described["liftplus"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        if not isinstance(about, dict):
            raise TypeError("the description is no mapping")
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged or was not written by liftplus. Train again, or restore the file."
        ) from error
    return about, tensors


def _class_texts(about: dict[str, Any], config: RunConfig) -> ClassTexts:
    """The prompts that a trained text side reads, as they were in training; the bare names without such a side."""
    names: list[str] = about["class_names"]
    if "class_prompts" not in about:  # a file from before they were saved
        return class_prompts(config.head_init, names)
    saved: list[list[str]] | None = about["class_prompts"]
    return names if saved is None else saved


def load_model(
    folder: Path,
    runtime: Runtime,
    backbone_config: BackboneConfig | None = None,
    give: str = "weights=PATH",
) -> Trained:
    """Rebuild a trained classifier from its folder or model file; other backbone weights than in training are refused.

    Args:
        backbone_config: replaces the run's own, for weights that have moved since.
        give: how the user gives the path of the right weights.
    """
    path = _model_file(folder)
    about, state = read_model(folder)
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(
            f"{str(path)!r} holds weights that are not finite, first {broken[0]}: the run diverged. Train again with a "
            "lower train.lr."
        )
    config = from_dict(saved(about["config"]))
    backbone = catalogue.load(backbone_config or config.backbone)
    catalogue.refuse_other_weights(backbone, about["backbone_identity"], f"The run in {str(path.parent)!r}", give)
    with own_stream(0):  # what is drawn here is replaced by what was learned
        head = config.head.build(backbone, len(about["class_names"]))
        model = Classifier.assemble(
            backbone,
            dict(config.tuner),
            head,
            _class_texts(about, config),
            centre=centres(config.head_init),
            sized_for=about.get("sized_for"),
        )
    try:
        model.load_learned(state)
    except ValueError as error:
        raise UserError(
            f"The weights in {str(path)!r} do not fit its configuration: {error}. Train again, or restore the file."
        ) from error
    model.put(runtime)
    model.requires_grad_(False)
    names, ids, counts = (tuple(about[key]) for key in ("class_names", "class_ids", "train_counts"))
    chosen = Chosen(**about["weights"]) if "weights" in about else None
    former, digest = tuple(about.get("former_names", ())), checksum(state)
    levels, _ = hierarchy.settled(about.get("levels", {}), dict(zip(ids, names, strict=True)))
    return Trained(model, config, names, ids, counts, path.parent, chosen, former, digest, levels)
