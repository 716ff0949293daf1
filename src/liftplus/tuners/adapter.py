"""Adapter (Houlsby et al. 2019): a residual bottleneck after the MLP."""

from __future__ import annotations

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Bottlenecked
from liftplus.tuners.bottleneck import Bottleneck


@register("tuner", "adapter")
class Adapter(Bottlenecked):
    """m + Up(ReLU(Down(LN(m)))) on the MLP branch's end m, layer scale included (Houlsby et al. 2019, figure 2).

    differs: only after the MLP, and with a norm of its own, as LIFT uses it.
    """

    order = 10

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        width, layers = self.chosen_width(tower, num_classes), nn.ModuleDict()
        for site in self.sites(tower, "mlp"):
            branch = Bottleneck(site.width, width)
            site.exit.register_forward_hook(branch.add)
            layers[site.key] = branch
        return layers
