"""Batches of uint8 pictures. Every random choice follows from (seed, epoch, index, repeat), so any number of workers
gives the same batches, and persistent workers follow the epoch because it travels with each index. `repeat` counts how
often the epoch has shown the image before, so that an image drawn twice is cropped in two ways."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from liftplus.data.dataset import Split, Store
from liftplus.data.images import UnreadableImage
from liftplus.data.stores import ArrayStore
from liftplus.data.transforms import Augment, progress_of


@dataclass(frozen=True)
class Batch:
    """uint8 images [B, 3, R, R] in training, [B, crops, 3, R, R] in testing; labels and indices [B]."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def pin_memory(self) -> Batch:
        """Called by the data loader for copies to a GPU."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory())


def seeded(*parts: int) -> torch.Generator:
    """A generator whose state depends on all the numbers given."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class TrainView:
    """The training transform of one run."""

    augment: Augment
    size: int
    kernel: str
    epochs: int
    seed: int

    def __call__(self, image: Image, epoch: int, index: int, repeat: int = 0) -> Tensor:
        generator = seeded(self.seed, epoch, index, repeat) if repeat else seeded(self.seed, epoch, index)
        return self.augment(image, self.size, self.kernel, progress_of(epoch, self.epochs), generator)


@dataclass(frozen=True)
class FixedView:
    """A fixed transform, the same in every epoch."""

    crops: Callable[[Image], Tensor]

    def __call__(self, image: Image, epoch: int, index: int, repeat: int = 0) -> Tensor:
        return self.crops(image)


Item = tuple[Tensor, int, int] | UnreadableImage


class _Pictures(Dataset[Item]):
    def __init__(self, store: Store, split: Split, view: TrainView | FixedView) -> None:
        self.store, self.split, self.view = store, split, view

    def __getitem__(self, where: Any) -> Item:
        epoch, index, repeat = where
        try:
            image = self.store.image(self.split.keys[index])
        except UnreadableImage as error:  # returned, so that it reaches the user without a worker's traceback
            return error
        return self.view(image, epoch, index, repeat), self.split.labels[index], index


def repeats(indices: Tensor) -> Tensor:
    """How often each entry has come before [N]: 0 0 1 0 2 for 5 3 5 4 5."""
    ranked, place = indices.sort(stable=True)
    out = torch.empty_like(place)
    out[place] = torch.arange(len(ranked)) - torch.searchsorted(ranked, ranked)
    return out


class _Order:
    """The batches of the current epoch, as lists of (epoch, index, repeat)."""

    def __init__(self, order: Callable[[int], Sequence[int]], count: int, batch_size: int) -> None:
        self.order, self.count, self.batch_size = order, count, batch_size
        self.epoch, self.first = 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        indices = list(self.order(self.epoch))
        shown = repeats(torch.tensor(indices, dtype=torch.long)).tolist()
        for start in range(self.first * self.batch_size, len(indices), self.batch_size):
            piece = slice(start, start + self.batch_size)
            yield [(self.epoch, index, repeat) for index, repeat in zip(indices[piece], shown[piece], strict=True)]

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)


def _leave_interrupts(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one alone decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Item]) -> Batch | UnreadableImage:
    for item in items:
        if isinstance(item, UnreadableImage):
            return item
    views, labels, indices = zip(*items, strict=True)
    return Batch(torch.stack(views), torch.tensor(labels), torch.tensor(indices))


@dataclass(frozen=True)
class InOrder:
    """Every image once, in order."""

    count: int

    def __call__(self, epoch: int) -> Sequence[int]:
        return range(self.count)


@dataclass(frozen=True)
class Shuffled:
    """Every image once an epoch, in an order that follows from seed and epoch (instance sampling)."""

    count: int
    seed: int

    def __call__(self, epoch: int) -> Sequence[int]:
        order: list[int] = torch.randperm(self.count, generator=seeded(self.seed, epoch)).tolist()
        return order


def auto_workers(store: Store) -> int:
    """No worker processes for pictures in memory, else one fewer than the cores, at most 8."""
    if isinstance(store, ArrayStore):
        return 0
    return min(8, max(1, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else 1))


class Loader:
    """Batches of one split; `epoch(e)` iterates over epoch e."""

    def __init__(
        self,
        store: Store,
        split: Split,
        view: TrainView | FixedView,
        *,
        batch_size: int,
        order: Callable[[int], Sequence[int]] | None = None,
        workers: int | None = None,
        pin: bool = False,
    ) -> None:
        self._order = _Order(order or InOrder(len(split)), len(split), batch_size)
        count = auto_workers(store) if workers is None else workers
        self._loader: DataLoader[Any] = DataLoader(
            _Pictures(store, split, view),
            batch_sampler=self._order,
            collate_fn=_collate,
            num_workers=count,
            persistent_workers=count > 0,
            pin_memory=pin,
            worker_init_fn=_leave_interrupts if count else None,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._order)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on; raises `UnreadableImage` at a broken picture."""
        self._order.epoch, self._order.first = epoch, first
        for batch in self._loader:
            if isinstance(batch, UnreadableImage):
                raise batch
            yield batch
