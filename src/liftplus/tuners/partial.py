"""Partial fine-tuning: the last blocks."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "partial")
class Partial(Tuner):
    """Train every weight of the last residual blocks; the norm after them stays frozen."""

    needs = ("block",)
    by_layer = False

    blocks: int = Field(default=1, ge=1)
    """Number of blocks, counted from the end."""

    def chosen_layers(self, depth: int) -> frozenset[int]:
        if self.blocks > depth:
            raise UserError(f"partial.blocks is {self.blocks}; give a number from 1 to {depth}.")
        return frozenset(range(depth - self.blocks, depth))

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        for site in self.sites(tower, "block"):
            site.entry.requires_grad_(True)
        return nn.Module()
