"""The sizes of a CLIP by its tensors alone, for tests that have no open_clip configuration."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from liftplus.backbones.clip import Shape


def shape_of(
    state: dict[str, Tensor], *, heads: int | None = None, text_heads: int | None = None, quick_gelu: bool = True
) -> Shape:
    """Sizes read off a state dict; heads are width / 64, as in every published CLIP, unless given."""
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


def _numbered(state: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _image_shape(state: dict[str, Tensor], heads: int | None) -> dict[str, Any]:
    """Image size, patch, width, layers and heads of either kind of image tower."""
    if "visual.conv1.weight" in state and "visual.positional_embedding" in state:
        width, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
        size, layers = (
            _grid(state["visual.positional_embedding"]) * patch,
            _numbered(state, "visual.transformer.resblocks."),
        )
        return {
            "image_size": size,
            "patch": patch,
            "width": width,
            "layers": layers,
            "heads": heads or max(1, width // 64),
        }
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    # Five halvings lie before the attention pool, which has 32 times the first stage's width.
    return {
        "image_size": _grid(state["visual.attnpool.positional_embedding"]) * 32,
        "patch": None,
        "width": width,
        "layers": tuple(_numbered(state, f"visual.layer{stage}.") for stage in range(1, 5)),
        "heads": heads or max(1, 32 * width // 64),
    }


def _grid(positions: Tensor) -> int:
    return math.isqrt(positions.shape[0] - 1)
