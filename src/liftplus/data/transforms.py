"""Pictures to uint8 tensors: minimalist data augmentation, LIFT's augmentation, and the crops for testing.

All resizing is bicubic with antialiasing unless the weights ask for another kernel; normalisation
happens later, on the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from liftplus.data.pictures import Box, Picture, PillowPicture
from liftplus.registry import Component, register

LONGEST = 100
"""Longest side as a multiple of the shorter one: without a bound, a line of 1 x 60,000 pixels fills memory."""


def short_side(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with a shorter side of `size`; the longer one is rounded down, and at most 100 `size`."""
    if width <= height:
        return size, min(max(size, int(size * height / width)), LONGEST * size)
    return min(max(size, int(size * width / height)), LONGEST * size), size


Resize = Literal["short_side", "square"]
"""Whether the whole picture keeps its shape when it is resized for testing, or is squashed to a square."""


def _scaled(picture: Image.Image | Picture, size: int, kernel: str, resize: Resize) -> Tensor:
    """The whole picture with a shorter side, or both sides, of `size`: uint8 [3, H, W]."""
    picture = _as_picture(picture)
    target = (size, size) if resize == "square" else short_side(*picture.size, size)
    return picture.cut((0, 0, *picture.size), target, kernel)


def _as_picture(picture: Image.Image | Picture) -> Picture:
    return PillowPicture(picture) if isinstance(picture, Image.Image) else picture


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
        self, picture: Image.Image | Picture, size: int, kernel: str, progress: float, generator: torch.Generator
    ) -> Tensor:
        """One training view, uint8 [3, size, size]; `progress` t runs from 0 to 1 over the epochs."""
        picture = _as_picture(picture)
        return picture.cut(self.box(*picture.size, progress, generator), (size, size), kernel)


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
        self, picture: Image.Image | Picture, size: int, kernel: str, progress: float, generator: torch.Generator
    ) -> Tensor:
        view = super().__call__(picture, size, kernel, progress, generator)
        return view.flip(-1) if _rand(generator) < 0.5 else view


@register("augment", "none")
class NoAugment(Augment):
    """The largest central square: what testing with one crop sees, without its margin."""

    fixed: ClassVar[bool] = True

    def box(self, width: int, height: int, progress: float, generator: torch.Generator) -> Box:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


class Crops(Protocol):
    """The crops of a fixed size that testing cuts. Workers make one small picture, the device cuts it."""

    def picture(self, picture: Image.Image | Picture) -> Tensor:
        """What the crops are cut from: uint8 [3, H, W], of any size."""
        ...

    def cut(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """The crops [B, crops, 3, R, R] of pictures that follow each other in memory, on their device.

        Args:
            pictures: uint8, of any shape.
            sizes: height and width of each, whole numbers [B, 2].
        """
        ...


@dataclass(frozen=True)
class CentreCrop:
    """Resize the short side or both to R + margin (by default R // 7), cut the central R x R: uint8 [1, 3, R, R]."""

    size: int
    kernel: str = "bicubic"
    margin: int | None = None
    resize: Resize = "short_side"

    count: ClassVar[int] = 1
    """Crops of each picture."""

    @property
    def short(self) -> int:
        """Pixels of the short side that the crop is cut from; of both sides with resize="square"."""
        return self.size + (self.size // 7 if self.margin is None else self.margin)

    def __call__(self, picture: Image.Image | Picture) -> Tensor:
        return self.picture(picture)[None]

    def picture(self, picture: Image.Image | Picture) -> Tensor:
        """The crop itself, uint8 [3, R, R]."""
        whole = _scaled(picture, self.short, self.kernel, self.resize)
        top, left = (round((side - self.size) / 2) for side in whole.shape[1:])
        return whole[:, top : top + self.size, left : left + self.size].contiguous()

    def cut(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """See `Crops`."""
        return pictures.view(len(sizes), 1, 3, self.size, self.size)


@dataclass(frozen=True)
class FiveCrops:
    """Resize the short side or both to R + e and cut four corners and the centre: uint8 [5, 3, R, R]."""

    size: int
    expand: int = 24
    kernel: str = "bicubic"
    resize: Resize = "short_side"

    count: ClassVar[int] = 5
    """Crops of each picture."""

    @property
    def short(self) -> int:
        """Pixels of the short side that the crops are cut from; of both sides with resize="square"."""
        return self.size + self.expand

    def __call__(self, picture: Image.Image | Picture) -> Tensor:
        small = self.picture(picture)
        return self.cut(small, torch.tensor([small.shape[1:]]))[0]

    def picture(self, picture: Image.Image | Picture) -> Tensor:
        """The resized picture, uint8 [3, H, W]; a side over 3 R keeps only the three parts that the crops show."""
        whole = _scaled(picture, self.short, self.kernel, self.resize)
        for side in (1, 2):
            slack = whole.shape[side] - self.size
            if slack > 2 * self.size:
                whole = torch.cat([whole.narrow(side, at, self.size) for at in (0, round(slack / 2), slack)], side)
        return whole

    def cut(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """See `Crops`. One gather of whole rows for the batch."""
        height, width = sizes[:, :1], sizes[:, 1:]
        area = height * width
        begin = (3 * area).cumsum(0) - 3 * area
        left, top = (side - self.size for side in (width, height))
        # torch.round takes halves to the even number, as Python's does.
        middle = [(slack / 2).round().long() for slack in (left, top)]
        none = torch.zeros_like(left)
        left = torch.cat([none, left, none, left, middle[0]], 1)
        top = torch.cat([none, none, top, top, middle[1]], 1)
        first = begin + top * width + left
        offsets = torch.arange(3, device=sizes.device)[:, None], torch.arange(self.size, device=sizes.device)
        rows = offsets[0] * area[:, :, None, None] + offsets[1] * width[:, :, None, None]
        return pictures.flatten().unfold(0, self.size, 1)[first[:, :, None, None] + rows]
