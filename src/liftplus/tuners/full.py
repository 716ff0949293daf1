"""Full fine-tuning of the blocks."""

from __future__ import annotations

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "full")
class Full(Tuner):
    """Train every weight of the residual blocks; embeddings and outer norms stay frozen, as in the papers."""

    needs = ("block",)

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        for site in self.sites(tower, "block"):
            site.entry.requires_grad_(True)
        return nn.Module()
