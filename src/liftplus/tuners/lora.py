"""LoRA (Hu et al. 2022): low-rank additions to linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import TEXT_WIDTH, Tuner, auto_width, nest

Target = Literal["q", "k", "v", "out", "fc1", "fc2"]

# The site each target lies in; q, k and v are thirds of one linear's output.
_SITES = {"q": "qkv", "k": "qkv", "v": "qkv", "out": "proj", "fc1": "fc1", "fc2": "fc2"}
_THIRDS = {"q": 0, "k": 1, "v": 2}


class LowRank(nn.Module):
    """(x W_d W_u) * scale / r, added to a slice of a linear's output: zero at the start, since W_u is zero."""

    def __init__(self, width: int, out_width: int, rank: int, scale: float, start: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, rank))
        self.up = nn.Parameter(torch.zeros(rank, out_width))
        self.factor, self.start = scale / rank, start
        # Transposed, so that the fan-in is the width of x, as in a linear layer.
        nn.init.kaiming_uniform_(self.down.T, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down @ self.up * self.factor

    def add(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook after the linear: its output, with the low-rank part added to the own slice."""
        delta = self(args[0])
        before, after = self.start, output.shape[-1] - self.start - delta.shape[-1]
        return output + nn.functional.pad(delta, (before, after)) if before or after else output + delta


@register("tuner", "lora")
class LoRA(Tuner):
    """Low-rank additions to the attention's queries and values, or to other linears (Hu et al. 2022, eq. 3)."""

    needs = ("qkv",)
    order = 10

    rank: int | None = Field(default=None, ge=1)
    """Rank r; by default 2^floor(log2(C / 4L)), on the text side 4."""

    targets: tuple[Target, ...] = Field(default=("q", "v"), min_length=1)
    """Maps to add to: any of q, k, v, out, fc1, fc2."""

    scale: float = Field(default=1.0, gt=0)
    """Numerator of the scale / r by which the low-rank part is multiplied."""

    def kinds(self, tower: Tower) -> Sequence[str]:
        return sorted({_SITES[target] for target in self.targets})

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        rank = self.rank or (TEXT_WIDTH if tower.side == "text" else auto_width(num_classes, 4, tower.depth))
        found = [(target, site) for target in dict.fromkeys(self.targets) for site in self.sites(tower, _SITES[target])]
        layers = nn.ModuleDict()
        for target, site in found:
            width = site.out_width // 3 if target in _THIRDS else site.out_width
            branch = LowRank(site.width, width, rank, self.scale, width * _THIRDS.get(target, 0))
            site.exit.register_forward_hook(branch.add)
            nest(layers, site.layer, target, branch)
        return layers
