"""`backbone.positions=plain`: position embeddings for another input size are resampled without antialiasing.

The table of a weight file is resampled before timm, open_clip or liftplus would do it with antialiasing; they then find
the size that they need.
"""

from __future__ import annotations

import math

from torch import Tensor

from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.errors import UserError

_BEFORE = ("", "visual.", "visual.trunk.", "image.")
_NAMES = (("pos_embed", "patch_embed.proj.weight"), ("positional_embedding", "conv1.weight"))


def settled(state: dict[str, Tensor], config: BackboneConfig, size: int) -> dict[str, Tensor]:
    """A file's table whose positions [..., tokens, width] are for pictures of this side, where plain ones are asked."""
    if config.positions != "plain":
        return state
    from timm.layers import resample_abs_pos_embed

    for place, embedding in ((f"{before}{one}", f"{before}{other}") for before in _BEFORE for one, other in _NAMES):
        given, patches = state.get(place), state.get(embedding)
        if given is None or patches is None or given.ndim not in (2, 3) or patches.ndim != 4:
            continue
        (tokens, width), side = given.shape[-2:], size // patches.shape[-1]
        own = math.isqrt(tokens)  # the class token and the like are fewer than a further row and column
        if own != side and side and given.numel() == tokens * width:
            rows = given.float().reshape(1, tokens, width)
            found = resample_abs_pos_embed(
                rows, [side, side], old_size=[own, own], num_prefix_tokens=tokens - own**2, antialias=False
            )
            state = state | {place: found.reshape(*given.shape[:-2], -1, width)}
    return state


def check(backbone: Backbone, name: str) -> None:
    """Refuse plain positions for a tower without a square grid of absolute ones.

    Raises:
        UserError: nothing of it is resampled when weights are read.
    """
    tower, patch = backbone.image, backbone.facts.patch_size
    found = next((own for own, _ in _NAMES if isinstance(getattr(tower, own, None), Tensor)), None)
    shape = tuple(getattr(tower, found).shape) if found else ()
    before = {0, 1, getattr(tower, "num_prefix_tokens", 1)}
    if not patch or len(shape) not in (2, 3) or shape[-2] - (backbone.facts.image_size // patch) ** 2 not in before:
        raise UserError(
            f"backbone.positions is 'plain', but {name!r} has no square grid of absolute positions that is resampled "
            "when weights are read. Leave it out; it is for CLIP's and SigLIP's transformers, ViT and DINOv2."
        )
