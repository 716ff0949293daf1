"""LoRA (Hu et al. 2022): low-rank additions to linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Site, Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import TEXT_WIDTH, Sized, nest
from liftplus.tuners.branch import Branch
from liftplus.tuners.merging import plain

Target = Literal["q", "k", "v", "out", "fc1", "fc2", "conv1x1"]

_KINDS = {"out": "proj"}  # other targets are called as their sites are


class LowRank(Branch):
    """(x W_d W_u) * scale / r, added to a part of a linear's output: zero at the start, since W_u is zero.

    On feature maps [B, C, H, W] it is a convolution of one pixel, with the stride of the one it adds to.
    """

    def __init__(self, site: Site, rank: int, scale: float, start: Literal["lift", "peft"]) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(site.width, rank))
        self.up = nn.Parameter(torch.zeros(rank, site.out_width))
        self.factor, self.start = scale / rank, site.start
        self.stride = site.entry.stride if isinstance(site.entry, nn.Conv2d) else None
        # PyTorch takes the second side for the fan-in: r of [width, r], the width of the transpose.
        nn.init.kaiming_uniform_(self.down if start == "lift" else self.down.T, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride is None:
            return x @ self.down @ self.up * self.factor
        hidden = F.conv2d(x, self.down.T[:, :, None, None], stride=self.stride)
        return F.conv2d(hidden, self.up.T[:, :, None, None]) * self.factor

    def output_weights(self) -> tuple[Tensor, ...]:
        return (self.up,)

    def add(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook after the linear: adds the low-rank product to its part of the output."""
        self.joins(output)
        delta = self(args[0])
        if self.stride is not None:
            return output + delta
        before, after = self.start, output.shape[-1] - self.start - delta.shape[-1]
        return output + F.pad(delta, (before, after)) if before or after else output + delta

    @torch.no_grad()
    def merge(self, module: nn.Module) -> bool:
        """Add the low-rank product to the weight of the hooked linear or convolution of one pixel."""
        if not plain(module):
            return False
        delta = (self.down.double() @ self.up.double()).T * self.factor
        rows = module.weight[self.start : self.start + len(delta)]
        rows.copy_(rows.double() + (delta if self.stride is None else delta[:, :, None, None]))
        return True


@register("tuner", "lora")
class LoRA(Sized):
    """Low-rank additions to the attention's queries and values, or to other linears (Hu et al. 2022, eq. 3)."""

    order = 10

    rank: int | None = Field(default=None, ge=1)
    """Rank r; by default 2^floor(log2(C / 4L)), on the text side 4; see `sizes`."""

    start: Literal["lift", "peft"] = "lift"
    """First W_d: lift, uniform between -1/sqrt(r) and 1/sqrt(r), as LIFT and LIFT+ draw it; peft, between
    -1/sqrt(width) and 1/sqrt(width), as Hu et al.'s and peft's code. W_u is 0 in both."""

    targets: tuple[Target, ...] | None = Field(default=None, min_length=1)
    """Maps to add to: any of q, k, v, out, fc1, fc2, conv1x1; by default q and v, and where the tower has no
    attention that can be reached, all of fc1, fc2 and conv1x1 that it has."""

    scale: float = Field(default=1.0, gt=0)
    """Numerator of the scale / r by which the low-rank part is multiplied."""

    @classmethod
    def upgraded(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {"start": "peft"} | super().upgraded(options)

    def kinds(self, tower: Tower) -> Sequence[str]:
        if self.targets is not None:
            return [_KINDS.get(target, target) for target in dict.fromkeys(self.targets)]
        there = tower.kinds()
        choices = (("q", "v"), ("fc1", "fc2", "conv1x1"))
        found = next((kinds for choice in choices if (kinds := [kind for kind in choice if kind in there])), None)
        if not found:
            raise UserError(
                f"Tuner {self.name!r} needs linears or 1 x 1 convolutions; {tower.label} has none. "
                "Choose another tuner."
            )
        return found

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        divisor = 2 if self.sizes == "lift" else 4
        rank = self.rank or (TEXT_WIDTH if tower.side == "text" else self.auto_width(num_classes, divisor, tower))
        layers = nn.ModuleDict()
        for site in [site for kind in self.kinds(tower) for site in self.sites(tower, kind)]:
            branch = LowRank(site, rank, self.scale, self.start)
            site.exit.register_forward_hook(branch.add)
            nest(layers, site.layer, {"proj": "out"}.get(site.name, site.name), branch)
        return layers
