"""Named places in a tower on which a tuner may act, found by the structure of its blocks.

Towers name sites and know no tuner; tuners ask for kinds of sites and know no tower. A tuner
acts through forward hooks, so that the library's own modules stay as their authors made them.

| kind      | module                          | what a tuner sees                                     |
|-----------|---------------------------------|-------------------------------------------------------|
| tokens    | a block                         | the sequence that enters it                           |
| qkv       | joint query-key-value linear    | its input and output [.., 3 x width]                  |
| proj      | attention's output linear       | its input and output                                  |
| fc1       | first linear of the MLP         | its input and output                                  |
| fc2       | second linear of the MLP        | its input and output                                  |
| mlp       | norm before the MLP .. its end  | the residual stream before the norm; the branch's end |
| norm      | a normalisation layer           | its input and output                                  |
| conv      | a convolution of a block        | its input and output                                  |
| block     | a residual block                | its parameters                                        |
| pool      | a whole convolutional tower     | the pooled feature it gives                           |
| embedding | the token embedding of a text   | token ids and their vectors                           |
| joint     | the end of a dual encoder       | features in the joint space, before normalisation     |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Side = Literal["image", "text"]


@dataclass(frozen=True)
class Site:
    """One place: `entry` sees the input, `exit` gives the output (the same module, but for `mlp`).

    Attributes:
        kind: what the place is, see the table above.
        layer: number of the block it belongs to, from 0; of the last block for what follows the blocks.
        entry, exit: the modules to hook.
        width, out_width: size of the last axis of its input and of its output.
        prefix: for `tokens`, how many tokens stand before those of the input (class token, registers).
    """

    kind: str
    layer: int
    entry: nn.Module
    exit: nn.Module
    width: int
    out_width: int
    prefix: int = 0


class Tower(Protocol):
    """What tuners act on: the image side of a backbone, or its text encoder."""

    @property
    def label(self) -> str:
        """How errors call it."""

    @property
    def side(self) -> Side:
        """Image or text."""

    @property
    def dim(self) -> int:
        """Width of its features."""

    @property
    def depth(self) -> int:
        """Number of residual blocks."""

    @property
    def trunk(self) -> nn.Module:
        """The library's own module, with all its parameters."""

    @property
    def to_joint(self) -> nn.Parameter | None:
        """Projection of its features to the joint space, where there is one."""

    def kinds(self) -> frozenset[str]:
        """Kinds of sites it has."""

    def sites(self, kind: str | None = None) -> list[Site]:
        """Its sites, of one kind or of all."""


class SplitAttention(nn.Module):
    """nn.MultiheadAttention's self-attention with its own weights behind two plain linears, which hooks can reach."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        assert packed.in_proj_weight is not None
        width = packed.embed_dim
        self.heads = packed.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=packed.in_proj_bias is not None, device="meta")
        self.qkv.weight, self.qkv.bias = packed.in_proj_weight, packed.in_proj_bias
        self.proj = packed.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """[B, T, width] -> ([B, T, width], no weights); query, key and value are one and the same."""
        batch, length, width = query.shape
        q, k, v = self.qkv(query).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width)), None


def _linear(kind: str, layer: int, module: nn.Module | None) -> list[Site]:
    if not isinstance(module, nn.Linear):
        return []
    return [Site(kind, layer, module, module, module.in_features, module.out_features)]


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def _norms(layer: int, block: nn.Module) -> Iterator[Site]:
    for module in block.modules():
        if isinstance(module, _NORMS):
            width = module.weight.numel() if module.weight is not None else 0
            yield Site("norm", layer, module, module, width, width)


def vit_sites(blocks: Iterable[nn.Module], width: int, prefix: int) -> list[Site]:
    """Sites of timm-style pre-norm transformer blocks, in order of the layers.

    A part that a block does not have (say, separate q, k and v) gives no site.
    """
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        sites.append(Site("block", layer, block, block, width, width))
        sites.append(Site("tokens", layer, block, block, width, width, prefix))
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        # With a bias of their own beside the linear, q, k and v are computed past it: hooks would see nothing.
        if getattr(attention, "q_bias", None) is None:
            sites += _linear("qkv", layer, getattr(attention, "qkv", None))
        sites += _linear("proj", layer, getattr(attention, "proj", None))
        sites += _linear("fc1", layer, getattr(mlp, "fc1", None))
        sites += _linear("fc2", layer, getattr(mlp, "fc2", None))
        norm, end = getattr(block, "norm2", None), getattr(block, "drop_path2", None)
        # Blocks that normalise after the MLP have a norm2 too, but no layer scale: theirs does not see the residual.
        if norm is not None and end is not None and (hasattr(block, "ls2") or hasattr(block, "gamma_2")):
            sites.append(Site("mlp", layer, norm, end, width, width))
        sites += _norms(layer, block)
    return sites


def text_sites(blocks: Iterable[nn.Module], width: int, kind: str | None) -> list[Site]:
    """Sites of open_clip's causal text blocks, in order of the layers.

    Where qkv or proj is asked for, packed attention is replaced by `SplitAttention` on the same weights:
    nn.MultiheadAttention calls neither of its linears, so that no hook on them would run.
    """
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        if kind in ("qkv", "proj") and isinstance(block.attn, nn.MultiheadAttention):
            block.attn = SplitAttention(block.attn)
        sites.append(Site("block", layer, block, block, width, width))
        sites.append(Site("tokens", layer, block, block, width, width, 1))
        if isinstance(block.attn, SplitAttention):
            sites += _linear("qkv", layer, block.attn.qkv) + _linear("proj", layer, block.attn.proj)
        mlp = getattr(block, "mlp", None)
        sites += _linear("fc1", layer, getattr(mlp, "c_fc", None)) + _linear("fc2", layer, getattr(mlp, "c_proj", None))
        norm, end = getattr(block, "ln_2", None), getattr(block, "ls_2", None)
        if norm is not None and end is not None:
            sites.append(Site("mlp", layer, norm, end, width, width))
        sites += _norms(layer, block)
    return sites


def resnet_sites(tower: nn.Module, blocks: Sequence[nn.Module], width: int) -> list[Site]:
    """Sites of a convolutional tower of residual blocks, in order of the layers; `width` is that of its feature."""
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        sites.append(Site("block", layer, block, block, 0, 0))
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                sites.append(Site("conv", layer, module, module, module.in_channels, module.out_channels))
        sites += _norms(layer, block)
    sites.append(Site("pool", len(blocks) - 1, tower, tower, width, width))
    return sites


def residual_blocks(tower: nn.Module) -> list[nn.Module]:
    """The residual blocks of an image tower in order: a transformer's `blocks`, or those of a ResNet's stages."""
    blocks = getattr(tower, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList):
        return list(blocks)
    stages = [getattr(tower, f"layer{number}", None) for number in range(1, 5)]
    return [block for stage in stages if isinstance(stage, nn.Sequential) for block in stage]
