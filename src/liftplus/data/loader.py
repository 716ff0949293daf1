"""Batches of uint8 pictures. Every random choice follows from (seed, epoch, index, repeat), so any number of workers
gives the same batches, and persistent workers follow the epoch because it travels with each index. `repeat` counts how
often the epoch has shown the image before, so that an image drawn twice is cropped in two ways."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import torch
from PIL import Image as ImageModule
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import Split, Store
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import Picture
from liftplus.data.transforms import Augment, progress_of
from liftplus.data.workers import asked_to_end_later, cores, leave_unguarded, lost, refuse_nameless_script, settle
from liftplus.errors import UserError
from liftplus.machine.parallel import ALONE, Job


@dataclass(frozen=True)
class Batch:
    """Pictures with their labels and indices [B].

    Attributes:
        images: uint8 [B, 3, H, W]; [bytes], one after the other, where their sizes differ.
        sizes: height and width of each picture [B, 2].
        unreadable: by index, why a picture cannot be decoded; a black one stands in its row.
        seeds: a number for each training picture [B]; it differs between epochs and between repeats within one.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    sizes: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.long))
    unreadable: dict[int, str] = field(default_factory=dict)
    seeds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def pin_memory(self) -> Batch:
        """Called by the data loader for copies to a GPU."""
        return self.changed(Tensor.pin_memory)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each of its tensors changed."""
        images, labels, indices, sizes, seeds = map(change, self.parts())
        return Batch(images, labels, indices, sizes, self.unreadable, seeds)

    def parts(self) -> tuple[Tensor, ...]:
        """Its tensors, in order."""
        return self.images, self.labels, self.indices, self.sizes, self.seeds


def seeded(*parts: int) -> torch.Generator:
    """A generator whose state depends on all the numbers given."""
    return torch.Generator().manual_seed(mixed(*parts))


def mixed(*parts: int) -> int:
    """One number of 64 bits from several."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TrainView:
    """The training transform of one run."""

    skips: ClassVar[bool] = False
    augment: Augment
    size: int
    kernel: str
    epochs: int
    seed: int

    def __call__(self, picture: Image | Picture, epoch: int, index: int, repeat: int = 0) -> Tensor:
        generator = seeded(self.seed, epoch, index, repeat) if repeat else seeded(self.seed, epoch, index)
        return self.augment(picture, self.size, self.kernel, progress_of(epoch, self.epochs), generator)

    def number(self, epoch: int, index: int, repeat: int) -> int:
        """Seed, below 2^63, for what is random about a picture apart from its crop."""
        return mixed(self.seed, epoch, index, repeat) >> 1


@dataclass(frozen=True)
class FixedView:
    """A fixed transform, the same in every epoch; with `skips`, a black picture replaces one that cannot be decoded."""

    transform: Callable[[Image | Picture], Tensor]
    skips: bool = False

    def __call__(self, picture: Image | Picture, epoch: int, index: int, repeat: int = 0) -> Tensor:
        return self.transform(picture)

    def number(self, epoch: int, index: int, repeat: int) -> int:
        """0: a fixed view draws nothing."""
        return 0


Item = tuple[Tensor, int, int, str, int] | UserError


class _Pictures(Dataset[Item]):
    def __init__(self, store: Store, split: Split, view: TrainView | FixedView) -> None:
        self.store, self.split, self.view = store, split, view

    def __getitem__(self, where: Any) -> Item:
        epoch, index, repeat = where
        reason = ""
        try:
            view = self.view(self.store.picture(self.split.keys[index]), epoch, index, repeat)
        except UserError as error:  # returned, so that it reaches the user without a worker's traceback
            if not (self.view.skips and isinstance(error, UnreadableImage)):
                return error
            view, reason = self.view(ImageModule.new("RGB", (1, 1)), epoch, index, repeat), str(error)
        return view, self.split.labels[index], index, reason, self.view.number(epoch, index, repeat)


def repeats(indices: Tensor) -> Tensor:
    """How often each entry has come before [N]: 0 0 1 0 2 for 5 3 5 4 5."""
    ranked, place = indices.sort(stable=True)
    out = torch.empty_like(place)
    out[place] = torch.arange(len(ranked)) - torch.searchsorted(ranked, ranked)
    return out


class _Order:
    """The batches of the current epoch as lists of (epoch, index, repeat), restricted to this process's items."""

    def __init__(self, order: Callable[[int], Sequence[int]], count: int, batch_size: int, job: Job) -> None:
        self.order, self.count, self.batch_size, self.job = order, count, batch_size, job
        self.epoch, self.first = 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        indices = list(self.order(self.epoch))
        shown = repeats(torch.tensor(indices, dtype=torch.long)).tolist()
        for start in range(self.first * self.batch_size, len(indices), self.batch_size):
            piece = slice(start + self.job.rank, start + self.batch_size, self.job.size)
            yield [(self.epoch, index, repeat) for index, repeat in zip(indices[piece], shown[piece], strict=True)]

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)


def packed(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images and sizes of a `Batch`, from its pictures, each uint8 [3, H, W]."""
    sizes = torch.tensor([view.shape[-2:] for view in views])
    alike = all(view.shape == views[0].shape for view in views)
    return torch.stack(list(views)) if alike else torch.cat([view.flatten() for view in views]), sizes


def _collate(items: list[Item]) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    if not items:  # a batch smaller than the number of processes leaves some without items
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    views, labels, indices, reasons, seeds = zip(*items, strict=True)
    images, sizes = packed(views)
    unreadable = {index: reason for index, reason in zip(indices, reasons, strict=True) if reason}
    batch = Batch(images, torch.tensor(labels), torch.tensor(indices), sizes, unreadable, torch.tensor(seeds))
    return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | UserError:
    """Move a batch to shared memory. The queue would swallow a failure of this, and the run would wait for ever."""
    try:
        for part in batch.parts():
            part.share_memory_()
    except (RuntimeError, OSError) as error:
        return UserError(
            f"A loader worker cannot hand over its batch ({str(error).splitlines()[0]}). Give the machine or container "
            "more shared memory (/dev/shm; docker run --shm-size=8g) or more open files (ulimit -n), or use workers=0."
        )
    return batch


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
    """No worker processes for pictures in memory, else one fewer than the cores, at least 1 and at most 16.

    Processes that torchrun started side by side share the cores.
    """
    if isinstance(store, ArrayStore):
        return 0
    return min(16, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


class Loader:
    """Batches of one split; `epoch(e)` iterates over epoch e.

    Args:
        store: holds the pictures.
        split: their keys and labels.
        view: turns a picture into a tensor.
        batch_size: pictures in a batch, over all processes of the job.
        order: from the epoch to the indices it shows; by default every picture once, in order.
        workers: loader processes; None chooses by `auto_workers`, 0 loads in this process.
        pin: whether batches are pinned for copies to a GPU.
        job: the processes that share each batch.
    """

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
        job: Job = ALONE,
    ) -> None:
        self._order = _Order(order or InOrder(len(split)), len(split), batch_size, job)
        count = auto_workers(store) if workers is None else workers
        self._batches: Any = None
        if count:
            refuse_nameless_script()
        self._loader: DataLoader[Any] = DataLoader(
            _Pictures(store, split, view),
            batch_sampler=self._order,
            collate_fn=_collate,
            num_workers=count,
            persistent_workers=count > 0,
            pin_memory=pin,
            worker_init_fn=settle if count else None,
            generator=torch.Generator(),  # else it would draw from the caller's random stream
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._order)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on.

        Raises what the store raised at a broken picture; `UserError` where a worker process fails.
        """
        self._order.epoch, self._order.first = epoch, first
        # No variable here may hold a raised exception: with its traceback it would form a cycle, and workers that wait
        # for the garbage collector take ten seconds to end.
        try:
            self._batches = None
            self._batches = self._begin()
            for batch in self._batches:
                if isinstance(batch, UserError):
                    raise type(batch)(*batch.args)
                yield batch
        except (RuntimeError, EOFError, ConnectionError) as error:
            workers = getattr(self._batches, "_workers", ())
            if (reason := lost(error, [worker.exitcode for worker in workers])) is None:
                raise
            raise UserError(reason) from error

    def _begin(self) -> Iterator[Batch | UserError]:
        """Start the workers without PyTorch's handler of SIGCHLD.

        That handler raises in whatever code runs when a worker dies; asking for the next batch detects that as well.
        """
        leave_unguarded()
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        with asked_to_end_later():
            if before is None or threading.current_thread() is not threading.main_thread():
                return iter(self._loader)
            try:
                return iter(self._loader)
            finally:
                signal.signal(signal.SIGCHLD, before)
