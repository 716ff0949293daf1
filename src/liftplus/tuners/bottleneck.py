"""The bottleneck that AdaptFormer, Adapter and CLIP-Adapter share; not a tuner itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """alpha * Up(ReLU(Down(LN(x)))), [.., width] -> [.., width]: zero at the start, since Up is zero.

    alpha is a learned scalar that starts at 1 where `scaled`, else 1.
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
        out: Tensor = self.up(F.relu(self.down(self.norm(x))))
        return out if self.scale is None else out * self.scale

    def add(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Hook after a module: its output y becomes y + own(y)."""
        out: Tensor = output + self(output)
        return out
