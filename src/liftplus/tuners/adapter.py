"""Adapter (Houlsby et al. 2019): a residual bottleneck after the MLP."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import TEXT_WIDTH, Sized
from liftplus.tuners.bottleneck import Bottleneck


@register("tuner", "adapter")
class Adapter(Sized):
    """m + Up(ReLU(Down(LN(m)))) on the MLP branch's end m, layer scale included (Houlsby et al. 2019, figure 2).

    differs: only after the MLP, and with a norm of its own, as LIFT uses it.
    """

    needs = ("mlp",)
    order = 10

    width: int | None = Field(default=None, ge=1)
    """Bottleneck width r; by default 2^floor(log2(C / 2L)), on the text side 4; see `sizes`."""

    min_width: int = Field(default=1, ge=1)
    """Least width that the default may come to."""

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        default = TEXT_WIDTH if tower.side == "text" else max(self.min_width, self.auto_width(num_classes, 2, tower))
        layers = nn.ModuleDict()
        for site in self.sites(tower, "mlp"):
            branch = Bottleneck(site.width, self.width or default)
            site.exit.register_forward_hook(branch.add)
            layers[site.key] = branch
        return layers
