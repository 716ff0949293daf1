"""The state of a run under way: its position, what it needs to continue, and the file in its folder with both."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from liftplus.errors import UserError
from liftplus.machine.parallel import ALONE, Job
from liftplus.machine.progress import Advance, Progress, Silent
from liftplus.machine.stopping import StopRequest
from liftplus.training.checkpoint import FORMAT, STATE, read_tensors, write_tensors
from liftplus.training.selection import BEST, Selection
from liftplus.words import counted


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: epochs that are finished.
        step: batches done of the epoch under way.
        total: sum of those batches' losses.
        losses: mean loss of each finished epoch.
        seconds: time spent in training.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    losses: tuple[float, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{counted(self.epoch, 'epoch')} and {counted(self.step, 'step')}"


def _position(about: dict[str, Any]) -> Position:
    return Position(**about["position"] | {"losses": tuple(about["position"]["losses"])})


class Resumable(Protocol):
    """What a keeper saves and restores: the training step with model and optimiser."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain values."""

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave; raises ValueError where it does not fit."""


class Stopped(Exception):  # noqa: N818 (it is asked for, not an error)
    """Training was asked to stop and its state is saved."""

    def __init__(self, folder: Path, position: Position) -> None:
        self.folder, self.position = folder, position
        super().__init__(f"Stopped after {position}; the state is saved.")


class Keeper:
    """Writes the state of a run into its folder and brings it back; of a job's processes the leader alone does.

    Everything random follows from seed, epoch and index, so weights, momentum and position are the whole state.

    Args:
        folder: of the run.
        belongs_to: values, by name, that must be unchanged when the run continues.
        minutes: most time between two saves.
        stop: whether the training was asked to stop; that of one process stops all.
        job: the processes that train together.
    """

    def __init__(
        self,
        folder: Path,
        belongs_to: dict[str, Any],
        minutes: float,
        stop: StopRequest | None = None,
        job: Job = ALONE,
    ) -> None:
        self.path, self.belongs_to, self.minutes = folder / STATE, belongs_to, minutes
        self.stop, self.job = stop or StopRequest(), job
        self.saved = time.monotonic()

    def position(self) -> Position:
        """The saved position, on the leader; the start where nothing was saved."""
        if not self.job.leads or not self.path.is_file():
            return Position()
        return _position(read_tensors(self.path)[0])

    def restore(self, run: Resumable) -> Position:
        """Bring the leader's run to the saved position; to the start where nothing was saved."""
        if not self.job.leads or not self.path.is_file():
            return Position()
        about, tensors = read_tensors(self.path)
        for key, value in self.belongs_to.items():
            if about.get(key) != value:
                raise UserError(
                    f"{str(self.path)!r} was saved with another {key.replace('_', ' ')}, so the run cannot go on as it "
                    "began. Restore what it was, or start anew in another folder."
                )
        try:
            run.load_state(tensors, about["values"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{str(self.path)!r} does not fit this run ({error}). Start anew elsewhere.") from error
        return _position(about)

    def due(self) -> bool:
        """Whether to save in the middle of an epoch: any process was asked to stop, or the last save is old."""
        late = self.job.leads and time.monotonic() - self.saved > 60 * self.minutes
        return any(self.job.greatest(int(self.stop()), int(late)))

    def save(self, run: Resumable, position: Position) -> None:
        """Save. If any process was asked to stop, raise `Stopped` in all of them."""
        if self.job.leads:
            tensors, values = run.state()
            about = {"format": FORMAT, "position": asdict(position), "values": values} | self.belongs_to
            write_tensors(self.path, tensors, about)
            self.saved = time.monotonic()
        mine = self.stop.signal if self.stop() else None
        if asked := max(self.job.from_all(mine or 0)):
            self.stop.signal = asked
            raise Stopped(self.path.parent, position)

    def discard(self) -> None:
        """Remove the state of a run that is finished."""
        if self.job.leads:
            self.path.unlink(missing_ok=True)


class TrainingState:
    """What training has reached: the position, and the step and the selection as one thing to save and restore."""

    def __init__(self, step: Resumable, selection: Selection, keeper: Keeper | None = None, job: Job = ALONE) -> None:
        self.step, self.selection, self.keeper, self.job = step, selection, keeper, job
        self.at = Position()
        self.began = time.perf_counter()

    def begin(self) -> None:
        """Move all processes to the saved position, or to the start where there is none."""
        if self.keeper is not None:
            self.at = self.keeper.restore(self)
        if self.job.size > 1:
            (tensors, values), self.at = self.job.from_leader(lambda: (self.state(), self.at))
            if not self.job.leads:
                self.load_state(tensors, values)
        self.began = time.perf_counter() - self.at.seconds

    def progress(self, epochs: int, batches: int, shown: Progress | None) -> AbstractContextManager[Advance]:
        """Progress from here to the end of so many epochs of so many batches; those of the validation split count."""

        def work(at: Position) -> int:
            return at.epoch * batches + at.step + self.selection.batches(at.epoch)

        return (shown or Silent()).task("Training", work(Position(epochs)), work(self.at))

    def seconds(self) -> float:
        """Time spent in training so far, before interruptions too."""
        return time.perf_counter() - self.began

    def due(self) -> bool:
        """Whether to save in the middle of an epoch."""
        return self.keeper is not None and self.keeper.due()

    def move(self, at: Position) -> None:
        """Set the position, with the time spent so far."""
        self.at = replace(at, seconds=self.seconds())

    def leave_out(self, epochs: int) -> bool:
        """Skip so many epochs without training; returns whether there were any."""
        self.at = replace(self.at, epoch=self.at.epoch + epochs)
        return epochs > 0

    def save(self) -> None:
        """Save this position, if there is a run folder; raises `Stopped` if a stop was requested."""
        if self.keeper is not None:
            self.keeper.save(self, self.at)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain values."""
        tensors, values = self.step.state()
        best, choice = self.selection.state()
        return tensors | best, values | choice

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        best = {name: value for name, value in tensors.items() if name.startswith(BEST)}
        self.step.load_state({name: value for name, value in tensors.items() if name not in best}, values)
        self.selection.load_state(best, values)
