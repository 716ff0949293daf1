"""A request to stop, by a signal, which long work checks when it can stop."""

from __future__ import annotations

import signal
import threading
from time import monotonic
from typing import Any

from liftplus.machine.parallel import ALONE, Job

AT_ONCE = 0.5
"""Seconds."""


def replaceable() -> list[int]:
    """SIGINT and SIGTERM, but not where a C library set the handler, which Python could not restore."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]


class StopRequest:
    """Whether the user or the system asked the process to end: the first SIGINT or SIGTERM is noted, a second ends it.

    In a job of several processes a second one changes nothing: Slurm sends one to each process and to torchrun, which
    passes it on, and kills after half a minute.

    Wrappers such as `timeout` send one request twice, to the process and to its group: a signal within `AT_ONCE` of the
    first is taken for the same.

    Use it as a context manager in the main thread; in other threads signals keep their effect.
    """

    def __init__(self, job: Job = ALONE) -> None:
        self.job = job
        self._first = 0.0
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """True once asked."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in replaceable()}
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is None:
            self.signal, self._first = number, monotonic()
        elif self.job.size == 1 and monotonic() - self._first > AT_ONCE:
            self._restore()
            signal.raise_signal(number)
