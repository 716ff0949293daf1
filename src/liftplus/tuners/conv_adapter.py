"""A bottleneck beside each convolutional block: AdaptFormer's counterpart for convolutional networks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Sized
from liftplus.tuners.branch import Branch

LEAST_WIDTH = 4


class ConvBottleneck(Branch):
    """alpha * Up(ReLU(Depthwise(Down(N(x))))), [B, C, H, W] -> [B, C', H', W']: zero at the start, since Up is zero.

    N normalises each pixel over its channels, with learned scale and shift; Down and Up are 1 x 1, Depthwise is 3 x 3
    and starts as the identity; alpha is a learned scalar that starts at 1.
    """

    def __init__(self, width: int, out_width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Conv2d(width, bottleneck, 1)
        self.mix = nn.Conv2d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck, bias=False)
        self.up = nn.Conv2d(bottleneck, out_width, 1)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.dirac_(self.mix.weight, groups=bottleneck)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.up(F.relu(self.mix(self.down(normed))))
        return out * self.scale

    def output_weights(self) -> tuple[Tensor, ...]:
        assert self.up.bias is not None
        return self.up.weight, self.up.bias

    def add(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook after the block: adds the bottleneck's output; its input is pooled where the block shrinks the map."""
        self.joins(output)
        x = args[0]
        if x.shape[-2:] != output.shape[-2:]:
            x = F.adaptive_avg_pool2d(x, (output.shape[-2], output.shape[-1]))
        return output + self(x)


@register("tuner", "conv_adapter")
class ConvAdapter(Sized):
    """A bottleneck with a depthwise 3 x 3 beside each convolutional block (after Chen et al. 2022, Conv-Adapter).

    differs: the form is AdaptFormer's (norm, zero-initialised Up, learned scalar), parallel to the residual block.
    """

    needs = ("map",)
    order = 20

    width: int | None = Field(default=None, ge=1)
    """Bottleneck width r; by default 2^floor(log2(C / 2L)), at least 4; see `sizes`."""

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        width = self.width or max(LEAST_WIDTH, self.auto_width(num_classes, 2, tower))
        layers = nn.ModuleDict()
        for site in self.sites(tower, "map"):
            branch = ConvBottleneck(site.width, site.out_width, width)
            site.exit.register_forward_hook(branch.add)
            layers[site.key] = branch
        return layers
