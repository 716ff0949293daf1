"""Train the projections to the joint space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from liftplus.backbones.sites import Tower
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner


@register("tuner", "projection")
class Projection(Tuner):
    """Train the projection of image features, of text features, or of both, to the joint space."""

    needs = ("joint",)
    by_layer = False
    in_joint_space = True

    side: Literal["image", "text", "both"] = "both"
    """Projections to train."""

    def kinds(self, tower: Tower) -> Sequence[str]:
        if tower.to_joint is None:
            raise UserError(
                f"Tuner {self.name!r} needs a projection to the joint space, which {tower.label} does not "
                "have: its features lie there already. Give projection.side the other tower."
            )
        return self.needs

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        assert tower.to_joint is not None, "checked by kinds"
        tower.to_joint.requires_grad_(True)
        return nn.Module()
