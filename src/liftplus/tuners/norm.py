"""Train the normalisation layers."""

from __future__ import annotations

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "norm")
class Norm(Tuner):
    """Train weight and bias of the blocks' normalisation layers (LayerNorm, BatchNorm, ...); batch statistics stay."""

    needs = ("norm",)

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        for site in self.sites(tower, "norm"):
            site.entry.requires_grad_(True)
        return nn.Module()
