"""CLIP as OpenAI published it: a timm ViT, or open_clip's ResNet with attention pooling, and a causal text tower."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, TextTransformer
from timm.layers import QuickGELU as TimmQuickGELU
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.text import TextEncoder
from liftplus.backbones.weights import UnfitError, load_strict, read_tensors, single_precision, with_scalar

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
QUICK = 1.702
"""QuickGELU's factor: it approximates GELU as x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2)."""

# Renaming of CLIP's image tower to timm's, tried in this order.
IMAGE_NAMES = (
    ("transformer.resblocks.", "blocks."),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)


@dataclass(frozen=True)
class Shape:
    """The sizes that define a CLIP.

    A ViT has a patch size and a number of layers. A ResNet has patch None and the blocks of its four stages;
    its width is that of the first stage, its heads are those of the attention pool.
    """

    image_size: int
    patch: int | None
    width: int
    layers: int | tuple[int, ...]
    heads: int
    joint: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int = 77
    vocabulary: int = 49408
    quick_gelu: bool = True
    mlp_ratio: float = 4.0


def shape_from(about: dict[str, Any], *, quick_gelu: bool) -> Shape:
    """Sizes from open_clip's configuration of a plain CLIP."""
    vision, text = about["vision_cfg"], about["text_cfg"]
    convolutional = isinstance(vision["layers"], list | tuple)
    width, head_width = vision["width"], vision.get("head_width", 64)
    return Shape(
        image_size=vision["image_size"],
        patch=None if convolutional else vision["patch_size"],
        width=width,
        layers=tuple(vision["layers"]) if convolutional else vision["layers"],
        heads=width * (32 if convolutional else 1) // head_width,
        joint=about["embed_dim"],
        text_width=text["width"],
        text_layers=text["layers"],
        text_heads=text["heads"],
        context=text["context_length"],
        vocabulary=text["vocab_size"],
        quick_gelu=quick_gelu,
        mlp_ratio=vision.get("mlp_ratio", 4.0),
    )


class LeanQuickGELU(TimmQuickGELU):
    """x sigmoid(1.702 x) by way of SiLU, whose one kernel keeps one tensor for the backward pass instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler fuses the factors with what is beside them
            return F.silu(QUICK * x) * (1 / QUICK)
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    """silu(a x) / a, whose gradient is that of silu at a x: the factors cancel, and two passes over it are saved."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        scaled = QUICK * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled) * (1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


def image_tower(shape: Shape, image_size: int | None = None) -> VisionTransformer | ModifiedResNet:
    """timm's ViT in CLIP's form (norm before the blocks, no patch bias, class-token features), or CLIP's ResNet."""
    if shape.patch is None or not isinstance(shape.layers, int):
        assert shape.patch is None and not isinstance(shape.layers, int), "a ViT has a patch size, a ResNet four stages"
        return ModifiedResNet(
            layers=list(shape.layers),
            output_dim=shape.joint,
            heads=shape.heads,
            image_size=image_size or shape.image_size,
            width=shape.width,
        )
    return VisionTransformer(
        img_size=image_size or shape.image_size,
        patch_size=shape.patch,
        embed_dim=shape.width,
        depth=shape.layers,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        num_classes=0,
        global_pool="token",
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer=LeanQuickGELU if shape.quick_gelu else nn.GELU,
    )


def text_tower(shape: Shape) -> TextTransformer:
    """open_clip's causal text transformer."""
    return TextTransformer(
        context_length=shape.context,
        vocab_size=shape.vocabulary,
        width=shape.text_width,
        heads=shape.text_heads,
        layers=shape.text_layers,
        output_dim=shape.joint,
        act_layer=QuickGELU if shape.quick_gelu else nn.GELU,
    )


@cache
def clip_tokenizer(context: int) -> SimpleTokenizer:
    """CLIP's byte-pair encoding for texts of so many tokens; reading its table takes a quarter of a second."""
    return SimpleTokenizer(context_length=context)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a CLIP weight file in OpenAI's names, fp32.

    The prefix "text." of open_clip's separate text towers is removed.
    """
    state = single_precision(read_tensors(path))
    plain = {name.removeprefix("text."): value for name, value in state.items()}
    for extra in ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"):
        plain.pop(extra, None)
    return with_scalar(plain, "logit_scale")


def _grid(positions: Tensor) -> int:
    return math.isqrt(positions.shape[0] - 1)


def image_state(state: dict[str, Tensor], tower: VisionTransformer | ModifiedResNet) -> dict[str, Tensor]:
    """The image tower's part in the tower's own names, position embeddings resampled to its input size."""
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    visual.pop("proj", None)
    if isinstance(tower, ModifiedResNet):
        place, size = "attnpool.positional_embedding", _grid(tower.attnpool.positional_embedding)
        if place in visual:
            visual[place] = resample_abs_pos_embed(visual[place][None], [size, size], num_prefix_tokens=1)[0]
        return visual
    out = {}
    for name, value in visual.items():
        if name == "class_embedding":
            out["cls_token"] = value.reshape(1, 1, -1)
        elif name == "positional_embedding":
            grid = list(tower.patch_embed.grid_size)
            out["pos_embed"] = resample_abs_pos_embed(value[None], grid, num_prefix_tokens=1)
        else:
            for old, new in IMAGE_NAMES:
                name = name.replace(old, new)
            out[name] = value
    return out


def text_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's part, in open_clip's own names."""
    return {name: value for name, value in state.items() if not name.startswith("visual.") and name != "logit_scale"}


def random_projection(shape: Shape) -> Tensor | None:
    """P_img [width, joint] for random weights; a ResNet's features lie in the joint space already."""
    if shape.patch is None:
        return None
    return nn.init.normal_(torch.empty(shape.width, shape.joint), std=shape.width**-0.5)


def projection_and_scale(state: dict[str, Tensor], shape: Shape, name: str) -> tuple[Tensor | None, float]:
    """P_img (None for a ResNet) and the logarithm of the logit scale."""
    wanted = {"logit_scale": torch.Size([])}
    if shape.patch is not None:
        wanted["visual.proj"] = torch.Size([shape.width, shape.joint])
    for key, size in wanted.items():
        if key not in state or state[key].shape != size:
            given = f"is {tuple(state[key].shape)} instead of {tuple(size)}" if key in state else "is missing"
            raise UnfitError(name, f"{key} {given}")
    return state.get("visual.proj"), float(state["logit_scale"])


def clip_backbone(
    name: str,
    shape: Shape,
    state: dict[str, Tensor] | None,
    *,
    facts: Facts | None = None,
    tokenizer: Any = None,
    identity: str = "random",
) -> Backbone:
    """A CLIP from a state dict in OpenAI's names (None: random weights), for the input size in `facts`."""
    facts = facts or Facts(shape.image_size, MEAN, STD, patch_size=shape.patch)
    image, text = image_tower(shape, facts.image_size), text_tower(shape)
    projection, scale = random_projection(shape), math.log(1 / 0.07)
    if state is not None:
        load_strict(image, image_state(state, image), f"the image tower of {name}")
        load_strict(text, text_state(state), f"the text tower of {name}")
        projection, scale = projection_and_scale(state, shape, name)
    encoder = TextEncoder(text, tokenizer or clip_tokenizer(shape.context), scale)
    return Backbone(name, image, facts, image_projection=projection, text=encoder, identity=identity)
