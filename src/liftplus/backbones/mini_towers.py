"""The two towers of the bundled model, with the names and the bits of timm's and open_clip's.

timm and open_clip import all their models, torchvision and torch._dynamo; the bundled model saves these seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageTower(nn.Module):
    """timm's `VisionTransformer` in its plain form, with the class token as feature: [B, 3, R, R] -> [B, width].

    Weights have timm's names, and random ones are those that timm draws.

    Args:
        size: side R of the pictures in pixels, a multiple of the patch's.
        patch: side of a patch in pixels.
        width: width of a token, a multiple of the heads.
        depth: number of blocks.
        heads: heads of each block's attention.
    """

    num_prefix_tokens = 1

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_features = width
        self.patch_embed = _PatchEmbed(size, patch, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_ImageBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        _truncated_normal(self.pos_embed)
        nn.init.normal_(self.cls_token, std=1e-6)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            _truncated_normal(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        # len(x) would fix the batch's size in an exported graph.
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]


def _truncated_normal(weight: Tensor, std: float = 0.02) -> None:
    """Draw as timm does, by the inverse of the distribution, within [-2, 2]."""
    with torch.no_grad():
        weight.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).add_(0).clamp_(-2, 2)


class _PatchEmbed(nn.Module):
    def __init__(self, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.img_size, self.grid_size = (size, size), (size // patch, size // patch)
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, R, R] to patches [B, T, width], row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class _ImageAttention(nn.Module):
    """Attention in PyTorch's one kernel, or (`fused_attn` false) as two products and a softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.fused_attn = heads, True
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class _ImageBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); `ls2` ends the MLP's branch, where tuners act."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _ImageAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layers = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ls2(self.mlp(self.norm2(x)))


class TextTower(nn.Module):
    """The parts of open_clip's causal `TextTransformer`, which `text.text_features` puts together.

    Weights have open_clip's names, and random ones are those that open_clip draws.

    Args:
        context: most tokens of a text.
        vocabulary: number of token ids.
        width: width of a token, a multiple of the heads.
        depth: number of blocks.
        heads: heads of each block's attention.
        joint: dimensions of the joint space.
    """

    pool_type, cls_emb, use_pad_mask = "argmax", None, False  # read at the end of the text; padding is not masked
    attn_mask: Tensor

    def __init__(self, context: int, vocabulary: int, width: int, depth: int, heads: int, joint: int) -> None:
        super().__init__()
        self.context_length, self.width = context, width
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = _TextBlocks(width, depth, heads)
        self.ln_final = _TextNorm(width)
        causal = [[0.0] * (row + 1) + [-math.inf] * (context - row - 1) for row in range(context)]
        self.register_buffer("attn_mask", torch.tensor(causal), persistent=False)
        self.text_projection = nn.Parameter(torch.empty(width, joint))
        self._draw(width, depth)

    def _draw(self, width: int, depth: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        last = width**-0.5 * (2 * depth) ** -0.5
        stds = {"attn.in_proj_weight": width**-0.5, "attn.out_proj.weight": last}
        stds |= {"mlp.c_fc.weight": (2 * width) ** -0.5, "mlp.c_proj.weight": last}
        for block in self.transformer.resblocks:
            for name, std in stds.items():
                nn.init.normal_(block.get_parameter(name), std=std)
        nn.init.normal_(self.text_projection, std=width**-0.5)


class _TextNorm(nn.LayerNorm):
    """LayerNorm whose output has its input's precision, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class _TextBlocks(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_TextBlock(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class _TextBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); `ls_2` ends the MLP's branch, where tuners act."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = _TextNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = _TextNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed, mask = self.ln_1(x), None if attn_mask is None else attn_mask.to(x.dtype)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.ls_2(self.mlp(self.ln_2(x)))
