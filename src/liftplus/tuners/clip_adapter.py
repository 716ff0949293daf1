"""CLIP-Adapter (Gao et al. 2021): a residual bottleneck on features in the joint space."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import TEXT_WIDTH, Tuner
from liftplus.tuners.bottleneck import Bottleneck


@register("tuner", "clip_adapter")
class ClipAdapter(Tuner):
    """f + Up(ReLU(Down(LN(f)))) on image and text features before they are normalised (Gao et al. 2021).

    differs: plainly residual with a zero start, as LIFT uses it, not a fixed blend of old and new.
    """

    needs = ("joint",)
    by_layer = False
    in_joint_space = True

    side: Literal["image", "text", "both"] = "both"
    """Features to adapt."""

    width: int = Field(default=TEXT_WIDTH, ge=1)
    """Bottleneck width."""

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        (site,) = self.sites(tower, "joint")
        branch = Bottleneck(site.width, self.width)
        site.exit.register_forward_hook(branch.add)
        return branch
