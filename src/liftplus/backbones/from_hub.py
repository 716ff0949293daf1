"""hf/OWNER/NAME: a transformers model, from the model hub's cache or a folder, as a backbone of timm or open_clip."""

from __future__ import annotations

import re
from pathlib import Path

from liftplus.backbones import transformers_config, weights
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.counterparts import counterpart
from liftplus.backbones.forms import SAVED
from liftplus.backbones.transformers_config import CONFIG, PROCESSOR, About
from liftplus.errors import UserError
from liftplus.machine.paths import expanded

_LABELS = (1000, 21841, 21843)
"""How many classes ImageNet's usual lists have."""


def same(config: BackboneConfig, *, weight: bool = True, fetch: bool = True) -> BackboneConfig:
    """The configuration of timm's or open_clip's backbone that equals hf/OWNER/NAME, with the model's file and size.

    Args:
        config: its name is hf/OWNER/NAME.
        weight: whether the weight file is wanted; without, config.json is enough.
        fetch: whether the hub is asked for what is not on this machine.
    """
    weight = weight and config.pretrained
    folder = _where(config, weight=weight and config.weights is None, fetch=fetch)
    about = _about(config.name, folder)
    found = counterpart(about)
    if found is None:
        image = about.image
        raise UserError(
            f"{config.name!r} is a {about.whole['model_type']} of width {image['hidden_size']} with "
            f"{image['num_hidden_layers']} blocks and patches of {image['patch_size']} px; no backbone of timm or "
            "open_clip is known to have these sizes. Choose another model."
        )
    path = (config.weights or str(weights.existing(folder))) if weight else None
    size = config.image_size or about.image["image_size"]
    return config.model_copy(update={"name": found, "weights": path, "image_size": size})


def saw_imagenet(config: BackboneConfig) -> bool:
    """Whether a model was trained with ImageNet's labels, as far as its name and its classes tell."""
    labels = _about(config.name, _where(config, weight=False, fetch=False)).whole.get("id2label") or {}
    return len(labels) in _LABELS or re.search(r"in\d+k|ft\d+k|imagenet", config.name, re.IGNORECASE) is not None


def _where(config: BackboneConfig, *, weight: bool, fetch: bool) -> Path:
    """The folder of the given weights if it has a config.json; else see `_folder`."""
    if config.weights is not None:
        folder = weights.existing(expanded(config.weights)).parent
        if (folder / CONFIG).is_file():
            return folder
    return _folder(config.name, weight=weight, fetch=fetch)


def _about(name: str, folder: Path) -> About:
    about = transformers_config.read(folder)
    if about is None:
        raise UserError(
            f"{name!r} has a {CONFIG} that names no model_type, so it is no model of transformers. Weights in timm's "
            "or open_clip's form are named timm/ARCH.TAG or open_clip/ARCH/TAG."
        )
    return about


def _folder(name: str, *, weight: bool, fetch: bool) -> Path:
    """The folder with config.json and, where wanted, a weight file: as put by hand, as cached, or fetched.

    All files are of one commit, since the hub's client keeps a folder for each.
    """
    repository = name.removeprefix("hf/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"Unknown backbone {name!r}: write hf/OWNER/NAME, such as hf/openai/clip-vit-base-patch16.")
    for place in weights.weight_folders():
        if _complete(by_hand := place / name.replace("/", "__"), weight):
            return by_hand
    problem: Exception | None = None
    for local in (True, False) if fetch else (True,):
        for file in SAVED if weight else (CONFIG,):
            try:
                found = _snapshot(repository, [CONFIG, PROCESSOR, file, f"{file}.index.json"], local)
            except Exception as error:  # the hub's client raises many kinds: no network, no such repository, no access
                problem = error
                if not local:  # a repository without this file raises nothing
                    break
                continue
            if _complete(found, weight):
                return found
    raise UserError(_missing(name, repository, problem, fetch=fetch)) from problem


def _snapshot(repository: str, files: list[str], local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=files, local_files_only=local))


def _complete(folder: Path, weight: bool) -> bool:
    """Whether a folder has config.json and, where wanted, weights; parts of weights too, so that they are refused."""
    parts = (folder / f"{name}{end}" for name in SAVED for end in ("", ".index.json"))
    return (folder / CONFIG).is_file() and (not weight or any(part.is_file() for part in parts))


def _missing(name: str, repository: str, problem: Exception | None, *, fetch: bool) -> str:
    place = weights.weight_folders()[0] / name.replace("/", "__")
    why = f"the model hub gave none ({type(problem).__name__})" if problem else "the model hub's copy has none"
    reason = why if fetch else "the model hub was not asked"
    return (
        f"{name!r} is not on this machine with its config.json and weights, and {reason}. Fetch config.json, "
        f"preprocessor_config.json and {SAVED[0]} from https://huggingface.co/{repository} and put them into "
        f"the folder {str(place)!r}."
    )
