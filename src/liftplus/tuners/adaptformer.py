"""AdaptFormer (Chen et al. 2022): a bottleneck beside the MLP, LIFT's and LIFT+'s default module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Bottlenecked
from liftplus.tuners.bottleneck import Bottleneck


class Parallel(Bottleneck):
    """A scaled bottleneck that reads the residual stream before the MLP's norm and adds to the MLP's end."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__(width, bottleneck, scaled=True)
        self._residual: Tensor | None = None

    def see(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook before the MLP's norm: keep the residual stream x'."""
        self._residual = args[0]

    def join(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Hook at the end of the MLP branch: MLP(LN(x')) + own(x')."""
        residual, self._residual = self._residual, None
        assert residual is not None
        self.joins(residual)
        return output + self(residual)


@register("tuner", "adaptformer")
class AdaptFormer(Bottlenecked):
    """A bottleneck with its own norm and a learned scale, parallel to each MLP (Chen et al. 2022, eq. 3)."""

    order = 20  # after adapter, which reads the MLP's own output

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        width, layers = self.chosen_width(tower, num_classes), nn.ModuleDict()
        for site in self.sites(tower, "mlp"):
            branch = Parallel(site.width, width)
            site.entry.register_forward_pre_hook(branch.see)
            site.exit.register_forward_hook(branch.join)
            layers[site.key] = branch
        return layers
