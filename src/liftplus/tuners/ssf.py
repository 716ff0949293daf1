"""SSF (Lian et al. 2022): scale and shift features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner, nest
from liftplus.tuners.merging import plain

_LINEARS = ("qkv", "proj", "fc1", "fc2")


class ScaleShift(nn.Module):
    """scale * y + shift, both [width]; they start at N(1, 0.02^2) and N(0, 0.02^2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width).normal_(1.0, 0.02))
        self.shift = nn.Parameter(torch.empty(width).normal_(0.0, 0.02))

    def forward(self, y: Tensor) -> Tensor:
        return (y * self.scale + self.shift).to(y.dtype)

    def replace(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Hook after a module."""
        return self(output)

    @torch.no_grad()
    def merge(self, module: nn.Module) -> bool:
        """Scale a linear's weight and bias and add the shift; a linear without a bias gets one."""
        if not plain(module):
            return False
        module.weight.mul_(self.scale.reshape(-1, *[1] * (module.weight.ndim - 1)))
        shift = self.shift.detach().clone()
        if module.bias is None:
            module.bias = nn.Parameter(shift, requires_grad=False)
        else:
            module.bias.copy_(module.bias * self.scale + shift)
        return True


@register("tuner", "ssf")
class SSF(Tuner):
    """A scale and a shift after every linear of the blocks; without linears, once on the pooled feature.

    differs: attention that adds its biases behind its linear (BEiT's) is scaled before them.
    """

    order = 20  # after lora, whose addition is scaled too
    identity_at_start = False

    def kinds(self, tower: Tower) -> Sequence[str]:
        there = tower.kinds()
        found = [kind for kind in _LINEARS if kind in there] or [kind for kind in ("pool",) if kind in there]
        if not found:
            raise UserError(
                f"Tuner {self.name!r} needs linears or a pooled feature; {tower.label} has neither. "
                "Choose another tuner."
            )
        return found

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        layers = nn.ModuleDict()
        for kind in self.kinds(tower):
            for site in self.sites(tower, kind):
                branch = ScaleShift(site.out_width)
                site.exit.register_forward_hook(branch.replace)
                nest(layers, site.layer, site.name or kind, branch)
        return layers
