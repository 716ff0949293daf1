"""A backbone: an image tower as its library made it, the facts of its weights, and perhaps a text tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from liftplus.backbones.sites import Site, Tower, is_norm, residual_blocks, sites_of, split_packed_attention
from liftplus.backbones.text import TextEncoder
from liftplus.errors import UserError

__all__ = ["Backbone", "BackboneConfig", "Facts", "TextEncoder"]


class BackboneConfig(BaseModel):
    """Which pretrained model: the `backbone.*` keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    name: str = "mini_clip"
    """A name from `liftplus info`, such as clip_vit_b16; any timm/ARCH.TAG, open_clip/ARCH/TAG or hf/OWNER/NAME."""
    weights: str | None = None
    """A local weight file to use instead of the hub's: .safetensors, .pt, .pth, .bin, OpenAI's archive; or a folder of
    transformers."""
    pretrained: bool = True
    """False leaves the weights out, as a control: the library's random initialisation, always drawn with seed 0."""
    image_size: int | None = Field(default=None, ge=1)
    """Input side in pixels where it differs from the native one; position embeddings of another size are resampled."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Kernel that pictures are resized with, antialiased; by default the weights' own."""
    pooling: Literal["token", "mean"] | None = None
    """Features are the class token, or the mean over patches; by default as timm pools this model. Only for timm's ViT,
    EVA (DINOv3 too) and BEiT."""
    positions: Literal["antialias", "plain"] = "antialias"
    """How positions are resampled to another image_size: antialiased, as in timm, or plain, as transformers does it for
    CLIP, SigLIP, ViT and DINOv2."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""

    @model_validator(mode="after")
    def _either(self) -> BackboneConfig:
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights names a file, and pretrained=false leaves weights out; give one of them")
        if self.positions == "plain" and not self.pretrained:
            raise ValueError("positions=plain is for positions of weights, and pretrained=false leaves weights out")
        return self


@dataclass(frozen=True)
class Facts:
    """Input size, mean, std and resize kernel that a set of weights needs, its patch size, and a chosen pooling."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    patch_size: int | None = None
    pooling: str | None = None  # "token" or "mean" where the user chose it
    saw_imagenet: bool = False  # trained with ImageNet's labels, so that ImageNet's classes are no fair test


class Backbone(Tower):
    """Images to features, [B, 3, R, R] -> [B, dim]; everything frozen and in evaluation mode.

    Attributes:
        name: the catalogue's name.
        image: the image tower without head or projection, as timm or open_clip made it.
        image_projection: P_img [dim, joint] where features lie before the joint space, else None.
        image_bias: bias added after it [joint], in the few models that have one; else None.
        text: the text encoder where there is one; may be dropped once class features are known.
        facts: size, mean, std and resize kernel of the weights.
        identity: SHA-256 of the weight file, or "random".
        notes: what a user should know about the weights before long work starts, one sentence each.
    """

    side = "image"  # the text encoder is a tower of its own
    image_projection: Tensor | None
    image_bias: Tensor | None

    def __init__(
        self,
        name: str,
        image: nn.Module,
        facts: Facts,
        *,
        image_projection: Tensor | None = None,
        image_bias: Tensor | None = None,
        text: TextEncoder | None = None,
        identity: str = "random",
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.name, self.facts, self.identity, self.notes = name, facts, identity, notes
        self.label = f"backbone {name!r}"
        split_packed_attention(image)
        self.image = image
        self.text = text
        self.register_buffer("image_bias", image_bias, persistent=False)
        projection = None if image_projection is None else nn.Parameter(image_projection.detach().clone())
        self.register_parameter("image_projection", projection)
        for first in residual_blocks(image)[:1]:
            first.register_forward_pre_hook(in_precision)
        self.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        for name in ("head_hidden_size", "num_features", "output_dim"):
            width = getattr(self.image, name, None)
            if isinstance(width, int):
                return width
        raise AssertionError(f"{type(self.image).__name__} does not say how wide its features are")

    @property
    def trunk(self) -> nn.Module:
        return self.image

    @property
    def to_joint(self) -> nn.Parameter | None:
        return self._parameters["image_projection"]

    def all_sites(self) -> list[Site]:
        blocks = residual_blocks(self.image)
        sites = sites_of(blocks, self._prefix())
        last = max(0, len(blocks) - 1)
        if any(site.kind == "map" for site in sites):
            sites.append(Site("pool", last, self.image, self.image, self.dim, self.dim))
        if self.text is not None:
            joint = self.text.joint_dim
            sites.append(Site("joint", last, self.joint_end, self.joint_end, joint, joint))
        return sites

    def _prefix(self) -> int | None:
        """Class and register tokens of a plain transformer's sequence; None for other towers."""
        if hasattr(self.image, "class_embedding"):  # open_clip's own
            return 1
        prefix = getattr(self.image, "num_prefix_tokens", None)
        return prefix if isinstance(prefix, int) else None

    def recompute(self) -> None:
        """Turn on gradient checkpointing: blocks keep only their inputs and run again in the backward pass."""
        towers = [self.image] if self.text is None else [self.image, self.text.tower]
        for block in (block for tower in towers for block in residual_blocks(tower)):
            block.forward = Recomputed(block)

    def store_frozen(self, dtype: torch.dtype) -> None:
        """Store the towers' frozen weights in the precision of their products, so that no step casts them.

        Norms stay in fp32, in which they are computed, and so do projections to the joint space.
        """
        towers = [self.image] if self.text is None else [self.image, self.text.tower]
        for module in (module for tower in towers for module in tower.modules() if not is_norm(module)):
            for name, p in module.named_parameters(recurse=False):
                if p.dtype == torch.float32 and not p.requires_grad and name != "text_projection":
                    p.data = p.data.to(dtype)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: dropout and batch statistics of frozen layers must not move."""
        super().train(False)
        for module in self.modules():
            if hasattr(module, "attention_bias_cache"):
                # In evaluation mode LeViT, TinyViT and EfficientFormer (timm 1.0.31) keep the biases of the first pass
                # with its graph. A second backward pass fails, and trained biases have no effect. No dropout is theirs.
                module.training = True
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.image(images)

    def joint(self, features: Tensor) -> Tensor:
        """Image features to unit vectors in the joint space, [B, dim] -> [B, joint]."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.image_projection is not None:
                features = features @ self.image_projection.float()
            if self.image_bias is not None:
                features = features + self.image_bias.float()
            return F.normalize(self.joint_end(features), dim=-1)

    def text_encoder(self, purpose: str) -> TextEncoder:
        """The text encoder, or an error that says what needed it."""
        if self.text is None:
            raise UserError(
                f"Backbone {self.name!r} has no text encoder, which {purpose} needs. "
                "Choose a CLIP backbone, or head_init=class_mean."
            )
        return self.text


def check_size(name: str, size: int, patch: int | None) -> None:
    """Refuse an input side that is no multiple of the patch side, or without patches one below 32 (five halvings)."""
    if size < (patch or 32) or size % (patch or 1):
        allowed = f"multiples of {patch} pixels" if patch else "32 pixels or more"
        raise UserError(f"backbone.image_size is {size}; {name!r} takes {allowed}.")


def in_precision(_block: nn.Module, args: tuple[Any, ...]) -> Any:
    """Hook before the first block: under autocast the residual stream runs in its precision.

    A norm before the blocks, as CLIP has it, would leave the stream in fp32 on a GPU: twice the memory traffic.
    """
    x = args[0]
    if not torch.is_autocast_enabled(x.device.type):
        return None
    return (x.to(torch.get_autocast_dtype(x.device.type)), *args[1:])


class Recomputed:
    """Stands in for a block's `forward`: the same function, checkpointed where gradients flow."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.block).forward
        if not torch.is_grad_enabled():
            return forward(self.block, *args, **kwargs)
        # Nothing in a frozen block is random, so the generators' state need not be kept.
        return checkpoint(forward, self.block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
