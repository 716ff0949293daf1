"""The bottleneck that AdaptFormer, Adapter and CLIP-Adapter share; not a tuner itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftplus.tuners.branch import Branch


class Bottleneck(Branch):
    """alpha * Up(ReLU(Down(LN(x)))), [.., width] -> [.., width]: zero at the start, since Up is zero.

    With `scaled`, alpha is a learned scalar that starts at 1; without, it is 1.
    """

    def __init__(self, width: int, bottleneck: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(())) if scaled else None
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.down(self.norm(x)))
        if self.scale is None:
            return self.up(hidden)
        # Scaling the weights equals scaling their output, but keeps no copy of the output for the backward pass.
        return F.linear(hidden, self.up.weight * self.scale, self.up.bias * self.scale)

    def output_weights(self) -> tuple[Tensor, ...]:
        return self.up.weight, self.up.bias

    def add(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Hook after a module: its output y becomes y + own(y)."""
        self.joins(output)
        return output + self(output)
