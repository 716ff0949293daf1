"""BitFit (Zaken et al. 2022): train the biases."""

from __future__ import annotations

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "bitfit")
class BitFit(Tuner):
    """Train every bias of the residual blocks, those of normalisation layers included."""

    needs = ("block",)

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        biases = [
            parameter
            for site in self.sites(tower, "block")
            for name, parameter in site.entry.named_parameters()
            if name.endswith("bias")
        ]
        if not biases:
            raise UserError(
                f"Tuner {self.name!r} trains biases, and the chosen blocks of {tower.label} have none. Choose other "
                "layers, or another tuner."
            )
        for bias in biases:
            bias.requires_grad_(True)
        return nn.Module()
