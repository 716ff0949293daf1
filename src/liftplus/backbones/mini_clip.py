"""The bundled model: a small CLIP trained on drawings (see `mini_clip.md` beside the weights)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, BackboneConfig, Facts, check_size
from liftplus.backbones.mini_tokenizer import CONTEXT_LENGTH, MERGES, MiniTokenizer, mini_tokenizer
from liftplus.backbones.mini_towers import ImageTower, TextTower
from liftplus.backbones.positions import settled
from liftplus.backbones.text import TextEncoder
from liftplus.backbones.weights import UnfitError, identity_of, load_strict, read_tensors, single_precision
from liftplus.errors import UserError
from liftplus.machine.paths import expanded

__all__ = ["CONTEXT_LENGTH", "MERGES", "MiniTokenizer", "backbone", "image_tower", "text_tower", "weight_file"]

IMAGE_SIZE, PATCH = 64, 8
HALF = (0.5, 0.5, 0.5)
WIDTH, JOINT = 192, 128
_FOLDER = Path(str(files("liftplus"))) / "weights"
WEIGHTS = {name: _FOLDER / f"{name}.safetensors" for name in ("mini_clip", "mini_clip_v1")}
"""The file of each name. The package has mini_clip's alone, the repository both."""
_V1 = "0c4152a9f7151c3acee216e27035630df48bff74ac26e06acbe5be9663428a6e"


def image_tower(image_size: int = IMAGE_SIZE) -> ImageTower:
    """ViT of width 192, 6 blocks, 3 heads, patch 8, on 64 x 64 pixels; features are the class token."""
    return ImageTower(image_size, PATCH, WIDTH, depth=6, heads=3)


def text_tower() -> TextTower:
    """Causal text transformer of width 192, 4 blocks, 3 heads; joint space of 128 dimensions."""
    return TextTower(CONTEXT_LENGTH, 512 + MERGES + 2, WIDTH, depth=4, heads=3, joint=JOINT)


def weight_file(config: BackboneConfig) -> Path:
    """The package's own weights, or those that the configuration names."""
    if config.weights is not None:
        return expanded(config.weights)
    file = WEIGHTS[config.name]
    if not file.is_file() and config.name != "mini_clip":
        raise UserError(
            f"The weights of {config.name!r} are in liftplus's repository and not in the package. Get the repository's "
            f"src/liftplus/weights/{file.name}, and give its path with backbone.weights=PATH."
        )
    return file


def place_of(identity: str) -> str:
    """A sentence on where the bundled model's former weights are, if the SHA-256 is theirs; else nothing."""
    if identity != _V1:
        return ""
    return (
        f" These are mini_clip's first weights: src/liftplus/weights/{WEIGHTS['mini_clip_v1'].name} in the repository."
    )


def backbone(config: BackboneConfig, *, weights: bool = True) -> Backbone:
    """mini_clip with its weights from the package, or from another file of the same form."""
    size = config.image_size or IMAGE_SIZE
    check_size(config.name, size, PATCH)
    with torch.device("meta") if weights else nullcontext():  # every one of its tensors is in the file
        image = image_tower(size)
    text = text_tower()
    projection: Tensor = nn.init.normal_(torch.empty(WIDTH, JOINT), std=WIDTH**-0.5)
    scale, identity = math.log(1 / 0.07), "random"
    if weights:
        path = weight_file(config)
        state = settled(single_precision(read_tensors(path)), config, size)
        tower = {name.removeprefix("image."): value for name, value in state.items() if name.startswith("image.")}
        if "pos_embed" in tower and tower["pos_embed"].shape != image.pos_embed.shape:
            from timm.layers import resample_abs_pos_embed

            grid = list(image.patch_embed.grid_size)
            tower["pos_embed"] = resample_abs_pos_embed(tower["pos_embed"], grid, num_prefix_tokens=1)
        load_strict(image, tower, "mini_clip's image tower", assign=True)
        words = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
        load_strict(text, words, "mini_clip's text tower", assign=True)
        wanted = {"image_projection": (WIDTH, JOINT), "logit_scale": ()}
        stray = [name for name in state if not name.startswith(("image.", "text.")) and name not in wanted]
        if stray:
            raise UnfitError("mini_clip", f"{stray[0]} is not expected")
        for name, shape in wanted.items():
            if name not in state or tuple(state[name].shape) != shape:
                raise UnfitError("mini_clip", f"{name} is missing or of another shape")
        projection, scale = state["image_projection"], float(state["logit_scale"])
        identity = identity_of(path)
    encoder = TextEncoder(text, mini_tokenizer(), scale)
    facts = Facts(size, HALF, HALF, patch_size=PATCH)
    return Backbone(config.name, image, facts, image_projection=projection, text=encoder, identity=identity)
