"""CLIP's dual encoders: OpenAI's and open_clip's file formats into an image tower and an open_clip text tower.

The image tower is a timm ViT, or open_clip's ResNet with attention pooling.
"""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, TextTransformer
from safetensors.torch import load_file
from timm.layers import QuickGELU as TimmQuickGELU
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus.errors import UserError

# Renaming of CLIP's image tower to timm's, tried in this order.
_IMAGE_NAMES = (
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
        num_classes=0,
        global_pool="token",
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
        act_layer=TimmQuickGELU if shape.quick_gelu else nn.GELU,
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


def read_tensors(path: Path) -> dict[str, Any]:
    """What a weight file holds by name: .safetensors, OpenAI's TorchScript archive, .pt or .bin.

    Code in a file is never unpickled. Anything unreadable ends in a `UserError`.
    """
    if not path.is_file():
        raise UserError(f"Weight file {str(path)!r} does not exist. Give backbone.weights an existing file.")
    try:
        with warnings.catch_warnings():  # torch warns of its own plans for TorchScript and pickles
            warnings.simplefilter("ignore")
            return _read_any(path)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds code or objects besides tensors, which are never loaded"
        raise UserError(
            f"Weight file {str(path)!r} cannot be read as CLIP weights ({reason}). "
            "Allowed are OpenAI's archive and open_clip's .pt, .bin or .safetensors; fetch the file again if it is one."
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a CLIP weight file in OpenAI's names, fp32.

    Training wrappers ("module.", "state_dict", "text.") are removed.
    """
    state = read_tensors(path)
    plain = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if name.startswith("text."):
            name = name.removeprefix("text.")
        if isinstance(value, Tensor):
            plain[name] = value.float() if value.is_floating_point() else value
    for extra in ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"):
        plain.pop(extra, None)
    return plain


def _read_any(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())
        if scripted:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise ValueError("it holds no table of tensors")
    return state


def shape_of(
    state: dict[str, Tensor], *, heads: int | None = None, text_heads: int | None = None, quick_gelu: bool = True
) -> Shape:
    """Sizes read off a state dict; heads are width / 64, as in every published CLIP, unless given."""
    absent = [name for name in _TEXT_MARKS if name not in state]
    if absent:
        raise UserError(f"These weights hold no CLIP text tower: {absent[0]!r} is missing. Give a CLIP weight file.")
    text_width = state["ln_final.weight"].shape[0]
    return Shape(
        **_image_shape(state, heads),
        joint=state["text_projection"].shape[1],
        text_width=text_width,
        text_layers=_numbered(state, "transformer.resblocks."),
        text_heads=text_heads or max(1, text_width // 64),
        context=state["positional_embedding"].shape[0],
        vocabulary=state["token_embedding.weight"].shape[0],
        quick_gelu=quick_gelu,
    )


_TEXT_MARKS = ("ln_final.weight", "text_projection", "positional_embedding", "token_embedding.weight")


def _numbered(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _image_shape(state: dict[str, Tensor], heads: int | None) -> dict[str, Any]:
    """Image size, patch, width, layers and heads of either kind of image tower."""
    if "visual.conv1.weight" in state and "visual.positional_embedding" in state:
        width, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
        return {
            "image_size": _grid(state["visual.positional_embedding"]) * patch,
            "patch": patch,
            "width": width,
            "layers": _numbered(state, "visual.transformer.resblocks."),
            "heads": heads or max(1, width // 64),
        }
    if "visual.layer1.0.conv1.weight" in state and "visual.attnpool.positional_embedding" in state:
        width = state["visual.layer1.0.conv1.weight"].shape[0]
        stages = tuple(_numbered(state, f"visual.layer{stage}.") for stage in range(1, 5))
        # Five halvings lie before the attention pool, which has 32 times the first stage's width.
        return {
            "image_size": _grid(state["visual.attnpool.positional_embedding"]) * 32,
            "patch": None,
            "width": width,
            "layers": stages,
            "heads": heads or max(1, 32 * width // 64),
        }
    raise UserError(
        "These weights hold no CLIP image tower that liftplus knows: neither 'visual.positional_embedding' "
        "of a ViT nor 'visual.attnpool.positional_embedding' of a ResNet is there."
    )


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
            for old, new in _IMAGE_NAMES:
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
            raise UserError(
                f"The weights do not fit {name}: {key} {given}. Give the file that belongs to this backbone."
            )
    return state.get("visual.proj"), float(state["logit_scale"])


def load_strict(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load every tensor or refuse, naming the first few that do not fit."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not expected" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"The weights do not fit {what}: {'; '.join(wrong[:3])}{more}. Give the file that belongs to this backbone."
        )
    module.load_state_dict(state)
