"""A backbone: an image tower as its library made it, the facts of its weights, and perhaps a text tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from liftplus.backbones.sites import Side, Site, residual_blocks, resnet_sites, vit_sites
from liftplus.backbones.text import TextEncoder
from liftplus.errors import UserError

__all__ = ["Backbone", "BackboneConfig", "Facts", "TextEncoder"]


class BackboneConfig(BaseModel):
    """Which pretrained model: the `backbone.*` keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    name: str = "mini_clip"
    """A name from `liftplus info`, such as clip_vit_b16."""
    weights: str | None = None
    """A local weight file to use instead of the hub's: OpenAI's archive, or open_clip's .pt, .bin, .safetensors."""
    image_size: int | None = None
    """Input side in pixels where it differs from the native one; position embeddings are resampled."""


@dataclass(frozen=True)
class Facts:
    """What has to be known to feed a set of weights."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    patch_size: int | None = None


class Backbone(nn.Module):
    """Images to features, [B, 3, R, R] -> [B, dim]; everything frozen and in evaluation mode.

    Attributes:
        name: the catalogue's name.
        image: the image tower: a timm model without head, or CLIP's ResNet.
        image_projection: P_img [dim, joint] where features lie before the joint space, else None.
        text: the text encoder where there is one; may be dropped once class features are known.
        facts: size, mean, std and resize kernel of the weights.
        identity: SHA-256 of the weight file, or "random".
        joint_end: passes joint-space features through; a place for hooks.
    """

    image_projection: Tensor | None

    def __init__(
        self,
        name: str,
        image: nn.Module,
        facts: Facts,
        *,
        image_projection: Tensor | None = None,
        text: TextEncoder | None = None,
        identity: str = "random",
    ) -> None:
        super().__init__()
        self.name, self.facts, self.identity = name, facts, identity
        self.image = image
        self.text = text
        projection = None if image_projection is None else nn.Parameter(image_projection.detach().clone())
        self.register_parameter("image_projection", projection)
        self.joint_end = nn.Identity()
        self.requires_grad_(False).eval()

    @property
    def label(self) -> str:
        """How errors call it."""
        return f"backbone {self.name!r}"

    @property
    def side(self) -> Side:
        """Tuners see the image side; the text encoder is a tower of its own."""
        return "image"

    @property
    def dim(self) -> int:
        """Width of the features."""
        width = getattr(self.image, "num_features", None)
        return int(self.image.output_dim if width is None else width)  # type: ignore[arg-type]

    @property
    def depth(self) -> int:
        """Number of residual blocks, L in the papers."""
        return len(residual_blocks(self.image))

    @property
    def trunk(self) -> nn.Module:
        """The image tower."""
        return self.image

    @property
    def to_joint(self) -> nn.Parameter | None:
        """P_img, where features lie before the joint space."""
        return self._parameters["image_projection"]

    def kinds(self) -> frozenset[str]:
        """Kinds of sites that the image tower has."""
        return frozenset(site.kind for site in self.sites())

    def sites(self, kind: str | None = None) -> list[Site]:
        """Sites of the image tower, of one kind or of all."""
        blocks = residual_blocks(self.image)
        if hasattr(self.image, "blocks"):
            sites = vit_sites(blocks, self.dim, int(getattr(self.image, "num_prefix_tokens", 0)))
        else:
            sites = resnet_sites(self.image, blocks, self.dim)
        if self.text is not None:
            joint = int(self.text.projection.shape[1])
            sites.append(Site("joint", len(blocks) - 1, self.joint_end, self.joint_end, joint, joint))
        return [site for site in sites if kind in (None, site.kind)]

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: dropout and batch statistics of frozen layers must not move."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.image(images)
        return features

    def joint(self, features: Tensor) -> Tensor:
        """Image features to unit vectors in the joint space, [B, dim] -> [B, joint]."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.image_projection is not None:
                features = features @ self.image_projection.float()
            return F.normalize(self.joint_end(features), dim=-1)

    def text_encoder(self, purpose: str) -> TextEncoder:
        """The text encoder, or an error that says what needed it."""
        if self.text is None:
            raise UserError(
                f"Backbone {self.name!r} has no text encoder, which {purpose} needs. "
                "Choose a CLIP backbone, or head_init=class_mean."
            )
        return self.text
