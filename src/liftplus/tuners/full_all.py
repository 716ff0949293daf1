"""Full fine-tuning of a whole tower."""

from __future__ import annotations

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "full_all")
class FullAll(Tuner):
    """Train every weight of the tower, embeddings and outer norms included; the projection to the joint space stays.

    differs: the papers' full fine-tuning is `full`, which trains the residual blocks alone.
    """

    by_layer = False

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        for parameter in tower.trunk.parameters():
            if parameter is not tower.to_joint:
                parameter.requires_grad_(True)
        return nn.Module()
