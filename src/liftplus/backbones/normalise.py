"""Normalise pictures for a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Facts


class Normalise(nn.Module):
    """uint8 pictures [B, 3, R, R] to the backbone's input: (x / 255 - mean) / std. Features [B, dim] stay as given."""

    mean: Tensor
    std: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(facts.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(facts.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim == 2:  # features
            return images
        return (images.float() - self.mean) / self.std
