"""Text towers: open_clip's `TextTransformer`, read out before and after its projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from liftplus.backbones.sites import Side, Site, text_sites


def text_features(tower: TextTransformer, ids: Tensor) -> Tensor:
    """End-of-text features after the final LayerNorm and before the projection: [n, tokens] -> [n, width].

    Columns that are padding in every row may be left out: attention is causal, so they change nothing.
    """
    length = ids.shape[1]
    x = tower.token_embedding(ids)
    x = x + tower.positional_embedding[:length].to(x.dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x)
    # The end-of-text token has the largest id of all (Radford et al. 2021, published code).
    features: Tensor = x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
    return features


class TextEncoder(nn.Module):
    """A text tower with its tokenizer and the projection to the joint space.

    Attributes:
        tower: open_clip's text transformer.
        tokenizer: texts to ids [n, context].
        logit_scale: logarithm of the scale of cosines between image and text.
        ids: the class prompts that `forward` encodes [C, tokens], once `read` was told them.
        joint_end: passes joint-space features through; a place for hooks.
    """

    ids: Tensor | None

    def __init__(self, tower: TextTransformer, tokenizer: Any, logit_scale: float) -> None:
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer
        self.logit_scale = logit_scale
        self.joint_end = nn.Identity()
        self.register_buffer("ids", None, persistent=False)

    @property
    def projection(self) -> Tensor:
        """P_text, [width, joint]."""
        projection = self.tower.text_projection
        assert isinstance(projection, Tensor)
        return projection

    @property
    def label(self) -> str:
        """How errors call it."""
        return "the text encoder"

    @property
    def side(self) -> Side:
        """Always "text"."""
        return "text"

    @property
    def dim(self) -> int:
        """Width of the tower."""
        return int(self.tower.width)

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(self.tower.transformer.resblocks)

    @property
    def trunk(self) -> nn.Module:
        """The text transformer."""
        tower: nn.Module = self.tower
        return tower

    @property
    def to_joint(self) -> nn.Parameter | None:
        """P_text as a parameter."""
        projection = self.tower.text_projection
        return projection if isinstance(projection, nn.Parameter) else None

    def kinds(self) -> frozenset[str]:
        """Kinds of sites that the text tower has, attention's linears included; asking changes nothing."""
        packed = any(isinstance(block.attn, nn.MultiheadAttention) for block in self.tower.transformer.resblocks)
        return frozenset(site.kind for site in self.sites()) | (frozenset({"qkv", "proj"}) if packed else frozenset())

    def sites(self, kind: str | None = None) -> list[Site]:
        """Sites of the text tower, of one kind or of all.

        Attention's linears (qkv, proj) are there once they have been asked for by kind: that splits packed attention.
        """
        joint, last = int(self.projection.shape[1]), self.depth - 1
        embedding = self.tower.token_embedding
        sites = text_sites(self.tower.transformer.resblocks, self.dim, kind)
        sites.append(Site("embedding", 0, embedding, embedding, 1, self.dim))
        sites.append(Site("joint", last, self.joint_end, self.joint_end, joint, joint))
        return [site for site in sites if kind in (None, site.kind)]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, tokens], cut after the longest text's end."""
        ids: Tensor = self.tokenizer(list(texts))
        return ids[:, : int(ids.argmax(-1).max()) + 1].to(self.projection.device)

    def read(self, texts: Sequence[str]) -> None:
        """Set the class prompts that `forward` encodes."""
        self.ids = self.tokens(texts)

    def joint(self, ids: Tensor) -> Tensor:
        """Ids [n, tokens] to unit vectors in the joint space, fp32 [n, joint]; tuners act, gradients flow."""
        features = text_features(self.tower, ids)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.joint_end(features.float() @ self.projection.float()), dim=-1)

    def forward(self) -> Tensor:
        """Unit vectors of the class prompts, fp32 [C, joint]."""
        assert self.ids is not None, "the class prompts were never read"
        return self.joint(self.ids)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Unit vectors in the joint space, fp32 [n, joint], a chunk of texts at a time."""
        parts = [self.joint(self.tokens(texts[start : start + chunk])) for start in range(0, len(texts), chunk)]
        return torch.cat(parts)
