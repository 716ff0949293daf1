"""AdaptFormer (Chen et al. 2022): a bottleneck beside the MLP, LIFT's and LIFT+'s default module."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import TEXT_WIDTH, Sized
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
        out: Tensor = output + self(residual)
        return out


@register("tuner", "adaptformer")
class AdaptFormer(Sized):
    """A bottleneck with its own norm and a learned scale, parallel to each MLP (Chen et al. 2022, eq. 3)."""

    needs = ("mlp",)
    order = 20  # after adapter, which reads the MLP's own output

    width: int | None = Field(default=None, ge=1)
    """Bottleneck width r; by default 2^floor(log2(C / 2L)), on the text side 4; see `sizes`."""

    min_width: int = Field(default=1, ge=1)
    """Least width that the default may come to."""

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        default = TEXT_WIDTH if tower.side == "text" else max(self.min_width, self.auto_width(num_classes, 2, tower))
        layers = nn.ModuleDict()
        for site in self.sites(tower, "mlp"):
            branch = Parallel(site.width, self.width or default)
            site.entry.register_forward_pre_hook(branch.see)
            site.exit.register_forward_hook(branch.join)
            layers[site.key] = branch
        return layers
