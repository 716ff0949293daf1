"""Several processes that train or test together, as torchrun starts them; one process alone exchanges nothing.

Each process takes its part of every batch; gradients are summed explicitly, once a step. All exchanges of the project
are methods of `Job`, so that the loss of a process is handled in one place.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from liftplus.errors import UserError

T = TypeVar("T")
TIMEOUT = "LIFTPLUS_TIMEOUT"
ANSWER = 60.0  # seconds
# Reading data, starting workers and writing files take some machines longer than others: torch's own limit for gloo.
PATIENCE = timedelta(minutes=30)


class Lost(UserError):  # noqa: N818 - it states what is the matter
    """Another process of the job is gone or does not answer."""


@dataclass(frozen=True, eq=False)
class Job:
    """The processes that work together; by default this one alone.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine.
        seconds: how long the others may take to answer within a step.
        store: the table that torchrun keeps for all.
        patient: the group for exchanges after uneven work.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    seconds: float = ANSWER
    store: Any = None
    patient: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks for all."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place and in one exchange; all of them get the same bits."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._answered():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def greatest(self, *numbers: int) -> list[int]:
        """Each number's maximum over the processes."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        with self._answered():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return [int(number) for number in largest]

    def from_leader(self, make: Callable[[], T]) -> T:
        """The value of `make` on the leader, for all processes; the others do not call it."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.leads else None]
        with self._answered():
            dist.broadcast_object_list(box, src=0, group=self.patient)
        value: T = box[0]
        return value

    def from_all(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(found, value, group=self.patient)
        return found

    def part(self, count: int) -> list[int]:
        """This process's share of `count` items: every size-th; the last one repeats where the division has a rest."""
        return [min(start + self.rank, count - 1) for start in range(0, count, self.size)]

    def whole(self, own: Tensor, count: int) -> Tensor:
        """Gather each process's rows [n, ...] of its `part` as those of all items [count, ...], in order, for all."""
        if self.size == 1:
            return own
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._answered():
            dist.all_gather(found, own.contiguous(), group=self.patient)
        return torch.stack(found, 1).flatten(0, 1)[:count]

    def meet(self) -> None:
        """Wait until all processes are here."""
        self.from_all(None)

    def speaks(self) -> bool:
        """Whether this process is the first of the job to fail, so that its reason is the one to print."""
        if self.store is None:
            return True
        try:
            return self.store.compare_set("failed", "", str(self.rank)) == str(self.rank).encode()
        except RuntimeError:  # torchrun itself is gone
            return True

    def leave(self) -> None:
        """Close the connections."""
        if self.size > 1:
            dist.destroy_process_group()

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise Lost(
                f"Another process of this job was killed, or did not answer for {self.seconds:g} s, so all of them "
                "end. What was saved stays, and the same command goes on from there. torchrun says which one it was; "
                f"if it was only slow, set {TIMEOUT} to more seconds."
            ) from error


ALONE = Job()


@cache
def job() -> Job:
    """The job that this process belongs to: joined at the first call, alone where torchrun started none."""
    return join(os.environ)


def started_by_torchrun(given: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that torchrun started."""
    return given.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in given


def join(given: Mapping[str, str]) -> Job:
    """Connect to the other processes of the job, by torchrun's environment variables.

    Raises:
        UserError: a variable is no allowed number, or the processes do not find each other.
    """
    rank, size, local_rank = (int(_number(given, key, default)) for key, default in _WHOLE.items())
    seconds = _number(given, TIMEOUT, ANSWER)
    if size == 1:
        return ALONE
    if not dist.is_available():
        raise UserError("This build of PyTorch has no torch.distributed. Start one process, or install another build.")
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=PATIENCE))
        store.set(f"here {rank}", socket.gethostname())
        store.wait([f"here {other}" for other in range(size)], PATIENCE)
        store.set_timeout(timedelta(seconds=seconds))
        # Tensors of a GPU go by NCCL, all others by gloo, which notices at once when a process has gone.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
        )
        patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The {size} processes of this job did not find each other ({str(error).splitlines()[0]}). "
            "Start them with torchrun, as docs/parallel.md shows."
        ) from error
    return Job(rank, size, local_rank, seconds, store, patient)


_WHOLE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _number(given: Mapping[str, str], key: str, default: float) -> float:
    text = given.get(key) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    lowest = 0 if key.endswith("RANK") else 1
    if value < lowest or (key in _WHOLE and value % 1):
        raise UserError(f"The environment variable {key} is {text!r}; allowed are numbers from {lowest} on.")
    return value
