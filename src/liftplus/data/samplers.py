"""Which training images an epoch shows, and in which order. n_k: training images of class k; N: of all classes.

All but `instance` draw N images an epoch with replacement: a class by its probability p_k, then one of its images
uniformly. Classes without images are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from liftplus.data.loader import Shuffled, seeded
from liftplus.data.transforms import progress_of
from liftplus.registry import Component, register


class Sampler(Component):
    """Configuration of a sampler."""

    rebalances: ClassVar[bool] = True
    """Whether rare classes are shown more often than the data holds them."""

    @abstractmethod
    def order(self, labels: Sequence[int], epochs: int, seed: int) -> Callable[[int], Sequence[int]]:
        """A function from the epoch to the N image indices it shows, the same for the same seed; it pickles."""


class Resampler(Sampler):
    """A sampler that draws by class probabilities."""

    def order(self, labels: Sequence[int], epochs: int, seed: int) -> Drawn:
        _, classes, counts = torch.unique(torch.tensor(labels), return_inverse=True, return_counts=True)
        return Drawn(self, classes, counts.double(), epochs, seed)

    @abstractmethod
    def probabilities(self, counts: Tensor, progress: float) -> Tensor:
        """p_k [K] up to a common factor, for n_k > 0 [K] in fp64; `progress` goes from 0 to 1 over the epochs."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images drawn with replacement, by (seed, epoch): classes [N] from 0 to K - 1, counts [K] in fp64."""

    sampler: Resampler
    classes: Tensor
    counts: Tensor
    epochs: int
    seed: int

    def __call__(self, epoch: int) -> Sequence[int]:
        an_image = self.sampler.probabilities(self.counts, progress_of(epoch, self.epochs)) / self.counts
        ends = an_image[self.classes].cumsum(0)
        points = torch.rand(len(ends), generator=seeded(self.seed, epoch), dtype=torch.float64) * ends[-1]
        # A point that rounding puts on the very end belongs to the last image.
        chosen: list[int] = torch.searchsorted(ends, points, right=True).clamp_max(len(ends) - 1).tolist()
        return chosen


@register("sampler", "instance")
class Instance(Sampler):
    """Every image once an epoch, shuffled: classes come as often as the data holds them."""

    rebalances: ClassVar[bool] = False

    def order(self, labels: Sequence[int], epochs: int, seed: int) -> Shuffled:
        return Shuffled(len(labels), seed)


@register("sampler", "class_balanced")
class ClassBalanced(Resampler):
    """Every class equally often, p_k = 1 / C (Kang et al. 2020, eq. 1 with q = 0)."""

    def probabilities(self, counts: Tensor, progress: float) -> Tensor:
        return torch.ones_like(counts)


@register("sampler", "square_root")
class SquareRoot(Resampler):
    """Classes by the square root of their images, p_k ~ n_k^(1/2) (Mahajan et al. 2018)."""

    def probabilities(self, counts: Tensor, progress: float) -> Tensor:
        return counts.sqrt()


@register("sampler", "effective_number")
class EffectiveNumber(Resampler):
    """Every image by (1 - beta) / (1 - beta^n_k), its class's inverse effective number (Cui et al. 2019, resampled)."""

    beta: float = Field(default=0.9999, ge=0, lt=1)
    """How fast further images of a class lose value; 0 draws every image equally often."""

    def probabilities(self, counts: Tensor, progress: float) -> Tensor:
        return counts * (1 - self.beta) / (1 - self.beta**counts)


@register("sampler", "progressive")
class Progressive(Resampler):
    """From instance to class-balanced over the epochs, p_k = (1 - t) n_k / N + t / C (Kang et al. 2020, eq. 3).

    t = e / (E - 1) in epoch e of E; 1 when there is one epoch.
    """

    def probabilities(self, counts: Tensor, progress: float) -> Tensor:
        return (1 - progress) * counts / counts.sum() + progress / len(counts)
