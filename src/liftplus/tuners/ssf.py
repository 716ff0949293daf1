"""SSF (Lian et al. 2022): scale and shift features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner, nest

_KINDS = ("qkv", "proj", "fc1", "fc2", "pool")


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
        out: Tensor = self(output)
        return out


@register("tuner", "ssf")
class SSF(Tuner):
    """A scale and a shift after every linear of a transformer's blocks, or on a ResNet's pooled feature."""

    order = 20  # after lora, whose addition is scaled too
    identity_at_start = False

    def kinds(self, tower: Tower) -> Sequence[str]:
        found = [kind for kind in _KINDS if kind in tower.kinds()]
        if not found:
            raise UserError(f"Tuner {self.name!r} needs one of the sites {', '.join(_KINDS)}; {tower.label} has none.")
        return found

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        layers = nn.ModuleDict()
        for kind in self.kinds(tower):
            for site in self.sites(tower, kind):
                branch = ScaleShift(site.out_width)
                site.exit.register_forward_hook(branch.replace)
                nest(layers, site.layer, kind, branch)
        return layers
