"""Backbones by name: find their weights, build their towers, load them strictly."""

from __future__ import annotations

import hashlib
import math
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from open_clip import SimpleTokenizer
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from liftplus.backbones import clip, mini_clip
from liftplus.backbones.base import Backbone, BackboneConfig, Facts, TextEncoder
from liftplus.errors import UserError, unknown

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def entries() -> dict[str, dict[str, Any]]:
    """The catalogue, by name."""
    return tomllib.loads((files("liftplus") / "presets" / "backbones.toml").read_text(encoding="utf-8"))


def weight_folder() -> Path:
    """Where weight files may be put by hand: $LIFTPLUS_WEIGHTS, else ~/.cache/liftplus/weights."""
    default = Path.home() / ".cache" / "liftplus" / "weights"
    return Path(os.environ.get("LIFTPLUS_WEIGHTS") or default)


def find_weights(config: BackboneConfig) -> Path:
    """The weight file: as given, as put by hand, as cached, or fetched from the hub."""
    entry = _entry(config.name)
    if config.weights is not None:
        return Path(config.weights).expanduser()
    if entry["family"] == "mini_clip":
        return mini_clip.WEIGHTS
    by_hand = weight_folder() / config.name
    for suffix in (".safetensors", ".pt", ".bin"):
        if (found := by_hand.with_suffix(suffix)).is_file():
            return found
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(entry["hub"], entry["file"]))
    except Exception as error:  # the hub's client raises many kinds: no network, no such file, no access
        raise UserError(
            f"The weights of {config.name!r} are not on this machine and the model hub cannot be reached "
            f"({type(error).__name__}). Fetch {entry['file']!r} from https://huggingface.co/{entry['hub']} "
            f"and put it at {str(by_hand.with_suffix('.safetensors'))!r}, or give its path as backbone.weights=PATH. "
            "The bundled backbone mini_clip needs no download."
        ) from error


def load(config: BackboneConfig, *, weights: bool = True) -> Backbone:
    """Build a backbone with its weights, or without (on the current default device) to count parameters."""
    entry = _entry(config.name)
    _check_size(config, entry)
    path = find_weights(config) if weights else None
    if entry["family"] == "mini_clip":
        return _mini_clip(config, path)
    return _openai_clip(config, entry, path)


def _entry(name: str) -> dict[str, Any]:
    table = entries()
    if name not in table:
        raise unknown("backbone", name, table)
    entry: dict[str, Any] = table[name]
    return entry


def _check_size(config: BackboneConfig, entry: dict[str, Any]) -> None:
    shape = entry.get("shape", {"patch": 8})
    patch = shape.get("patch", 32)  # a ResNet halves its input five times
    size = config.image_size
    if size is not None and (size < patch or size % patch):
        raise UserError(f"backbone.image_size is {size}; {config.name!r} takes multiples of {patch} pixels.")


def identity_of(path: Path) -> str:
    """SHA-256 of a weight file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mini_clip(config: BackboneConfig, path: Path | None) -> Backbone:
    size = config.image_size or mini_clip.IMAGE_SIZE
    image, text = mini_clip.image_tower(size), mini_clip.text_tower()
    projection: Tensor = torch.empty(mini_clip.WIDTH, mini_clip.JOINT)
    scale, identity = math.log(1 / 0.07), "random"
    if path is not None:
        state = {name: value.float() for name, value in clip.read_tensors(path).items()}
        tower = {name.removeprefix("image."): value for name, value in state.items() if name.startswith("image.")}
        if "pos_embed" in tower:
            grid = list(image.patch_embed.grid_size)
            tower["pos_embed"] = resample_abs_pos_embed(tower["pos_embed"], grid, num_prefix_tokens=1)
        clip.load_strict(image, tower, "mini_clip's image tower")
        words = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
        clip.load_strict(text, words, "mini_clip's text tower")
        wanted = {"image_projection": (mini_clip.WIDTH, mini_clip.JOINT), "logit_scale": ()}
        for name, size_wanted in wanted.items():
            if name not in state or tuple(state[name].shape) != size_wanted:
                raise UserError(f"The weights do not fit mini_clip: {name} is missing or of another shape.")
        projection, scale = state["image_projection"], float(state["logit_scale"])
        identity = identity_of(path)
    facts = Facts(size, HALF, HALF, patch_size=8)
    encoder = TextEncoder(text, mini_clip.MiniTokenizer(), scale)
    return Backbone(config.name, image, facts, image_projection=projection, text=encoder, identity=identity)


def _openai_clip(config: BackboneConfig, entry: dict[str, Any], path: Path | None) -> Backbone:
    shape = clip.Shape(**{"patch": None} | entry["shape"])
    if path is None:
        return clip_backbone(config.name, shape, None, image_size=config.image_size)
    return clip_backbone(
        config.name, shape, clip.read_state(path), image_size=config.image_size, identity=identity_of(path)
    )


def clip_backbone(
    name: str,
    shape: clip.Shape,
    state: dict[str, Tensor] | None,
    *,
    image_size: int | None = None,
    tokenizer: Any = None,
    identity: str = "random",
) -> Backbone:
    """A CLIP from a state dict in OpenAI's names (None: random weights)."""
    image, text = clip.image_tower(shape, image_size), clip.text_tower(shape)
    projection, scale = clip.random_projection(shape), math.log(1 / 0.07)
    if state is not None:
        clip.load_strict(image, clip.image_state(state, image), f"the image tower of {name}")
        clip.load_strict(text, clip.text_state(state), f"the text tower of {name}")
        projection, scale = clip.projection_and_scale(state, shape, name)
    facts = Facts(image_size or shape.image_size, CLIP_MEAN, CLIP_STD, patch_size=shape.patch)
    encoder = TextEncoder(text, tokenizer or SimpleTokenizer(context_length=shape.context), scale)
    return Backbone(name, image, facts, image_projection=projection, text=encoder, identity=identity)
