"""Pictures to uint8 tensors: minimalist data augmentation, LIFT's augmentation, and the crops for testing.

All resizing is bicubic with antialiasing unless the weights ask for another kernel; normalisation
happens later, on the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from liftplus.registry import Component, register

KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Box = tuple[int, int, int, int]


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


_LONGEST = 100
"""Times the shorter side that a longer one is scaled to: without a bound, a line of 1 x 60,000 pixels fills memory."""


def resize_short_side(image: Image.Image, size: int, kernel: str) -> Image.Image:
    """Scale so that the shorter side is `size`; the longer side is truncated to whole pixels, and to 100 `size`."""
    width, height = image.size
    if width <= height:
        target = (size, min(max(size, int(size * height / width)), _LONGEST * size))
    else:
        target = (min(max(size, int(size * width / height)), _LONGEST * size), size)
    return image if target == image.size else image.resize(target, KERNELS[kernel])


def crop_resized(image: Image.Image, box: Box, size: int, kernel: str) -> Tensor:
    """Cut (left, top, right, bottom) and resize to a square of `size` pixels."""
    return to_tensor(image.crop(box).resize((size, size), KERNELS[kernel]))


def _rand(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _randint(generator: torch.Generator, most: int) -> int:
    """Uniform whole number from 0 to `most`, both included."""
    return int(torch.randint(most + 1, (), generator=generator))


class Augment(Component):
    """Configuration of a training augmentation; also the function itself, so that it travels to workers."""

    fixed: ClassVar[bool] = False
    """Whether it gives the same view in every epoch."""

    @abstractmethod
    def box(self, width: int, height: int, progress: float, generator: torch.Generator) -> Box:
        """The part of a width x height picture to train on (left, top, right, bottom)."""

    def __call__(
        self, image: Image.Image, size: int, kernel: str, progress: float, generator: torch.Generator
    ) -> Tensor:
        """One training view, uint8 [3, size, size]; `progress` t runs from 0 to 1 over the epochs."""
        return crop_resized(image, self.box(*image.size, progress, generator), size, kernel)


def progress_of(epoch: int, epochs: int) -> float:
    """t = e / (E - 1); 1 when there is one epoch."""
    return epoch / (epochs - 1) if epochs > 1 else 1.0


MIN_AREA = 0.08


@register("augment", "mda")
class MDA(Augment):
    """Minimalist data augmentation (LIFT+, section 4): square crops that grow over training, nothing else."""

    schedule: Literal["convex", "linear", "concave", "min", "max"] = "convex"
    """How the smallest area share grows from 0.08 to 1; "min" stays at 0.08, "max" at 1."""

    def min_area(self, progress: float) -> float:
        """Smallest area share s_e = 0.08 + 0.92 g(t)."""
        growth = {
            "convex": 1 - math.sqrt(max(0.0, 1 - progress**2)),
            "linear": progress,
            "concave": math.sqrt(max(0.0, 1 - (1 - progress) ** 2)),
            "min": 0.0,
            "max": 1.0,
        }[self.schedule]
        return MIN_AREA + growth * (1 - MIN_AREA)

    def box(self, width: int, height: int, progress: float, generator: torch.Generator) -> Box:
        largest = min(width, height) ** 2 / (width * height)
        low, high = min(self.min_area(progress), largest), min(1.0, largest)
        side = round(math.sqrt(_rand(generator, low, high) * width * height))
        side = max(1, min(side, width, height))
        top, left = _randint(generator, height - side), _randint(generator, width - side)
        return left, top, left + side, top + side


@register("augment", "lift")
class LiftAugment(Augment):
    """LIFT's augmentation: a random crop of 8 to 100 % of the area and ratio 3/4 to 4/3, and a horizontal flip."""

    def box(self, width: int, height: int, progress: float, generator: torch.Generator) -> Box:
        for _ in range(10):
            area = _rand(generator, MIN_AREA, 1.0) * width * height
            ratio = math.exp(_rand(generator, math.log(3 / 4), math.log(4 / 3)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top, left = _randint(generator, height - high), _randint(generator, width - wide)
                return left, top, left + wide, top + high
        # No crop of that ratio fits a very long picture: the largest central one does (as torchvision falls back).
        wide = min(width, round(height * 4 / 3))
        high = min(height, round(width * 4 / 3))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high

    def __call__(
        self, image: Image.Image, size: int, kernel: str, progress: float, generator: torch.Generator
    ) -> Tensor:
        view = super().__call__(image, size, kernel, progress, generator)
        return view.flip(-1) if _rand(generator) < 0.5 else view


@register("augment", "none")
class NoAugment(Augment):
    """The largest central square: what testing with one crop sees, without its margin."""

    fixed: ClassVar[bool] = True

    def box(self, width: int, height: int, progress: float, generator: torch.Generator) -> Box:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


class Evaluation(Component):
    """How pictures are cut for testing: the `evaluation.*` keys."""

    tte: bool = False
    """Test-time ensembling: the mean of the logits over five crops."""
    expand: int = Field(default=24, ge=1)
    """Pixels by which the short side exceeds the input size under TTE; best no multiple of the patch size."""
    batch_size: int = Field(default=128, ge=1)
    """Images a batch (five crops each under TTE)."""
    top_k: int = Field(default=5, ge=1)
    """Classes kept for each image in predictions."""


@dataclass(frozen=True)
class CentreCrop:
    """Resize the short side to R + R // 7, cut the central R x R: uint8 [1, 3, R, R]."""

    size: int
    kernel: str = "bicubic"
    margin: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        margin = self.size // 7 if self.margin is None else self.margin
        image = resize_short_side(image, self.size + margin, self.kernel)
        left, top = _middle(image.width - self.size), _middle(image.height - self.size)
        return to_tensor(image.crop((left, top, left + self.size, top + self.size)))[None]


@dataclass(frozen=True)
class FiveCrops:
    """Resize the short side to R + e and cut four corners and the centre: uint8 [5, 3, R, R]."""

    size: int
    expand: int = 24
    kernel: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        image = resize_short_side(image, self.size + self.expand, self.kernel)
        right, bottom = image.width - self.size, image.height - self.size
        corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (_middle(right), _middle(bottom)))
        picture = to_tensor(image)
        return torch.stack([picture[:, y : y + self.size, x : x + self.size] for x, y in corners])


def _middle(slack: int) -> int:
    return round(slack / 2)
