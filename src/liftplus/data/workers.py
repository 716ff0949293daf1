"""Loader worker processes: how they end, and the errors for those that cannot start or have died."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from liftplus.errors import UserError


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle(_worker: int) -> None:
    """Tie a worker to the main process, which alone decides when to stop.

    Ctrl-C reaches every process of a terminal, and the SIGTERM of torchrun or Slurm every process of a job. A worker
    that outlived the main process would notice after seconds under fork, and never under forkserver, where its parent
    is the server.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (main := multiprocessing.parent_process()) is None:
        return
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in later threads too
        threading.Thread(target=_end_with, args=(partial(_asked_by, main.pid),), daemon=True).start()
    threading.Thread(target=_end_with, args=(main.join,), daemon=True).start()


@contextmanager
def asked_to_end_later() -> Iterator[None]:
    """Block SIGTERM while workers are forked; they inherit the block.

    Libraries (OpenTelemetry, which wandb uses) start threads in every forked process before `settle` runs there; a
    thread that does not block the signal would receive it and end the worker.
    """
    if not hasattr(signal, "pthread_sigmask") or multiprocessing.get_start_method() != "fork":
        yield  # a process server would pass the mask on to everything that it starts later
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with(event: Callable[[], None]) -> None:
    event()
    os._exit(1)


def _asked_by(sender: int | None) -> None:
    """Wait until the process `sender` sends SIGTERM; ignore those of others."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != sender:
        pass


UNGUARDED = 79
"""Exit code of a worker that was started while its own copy of the user's script had not come to its end."""

_GUARD = (
    'Loader workers run your script again, as far as its `if __name__ == "__main__":`. '
    "Put the call of liftplus below such a line, or use workers=0."
)


def leave_unguarded() -> None:
    """End a worker that came here by running the user's script again: what follows would start workers of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


def runs_script_again() -> bool:
    """Whether new processes begin by running the user's script."""
    return multiprocessing.get_start_method() != "fork"


def refuse_nameless_script() -> None:
    """Refuse workers that would look for a script that came from stdin."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if runs_script_again() and script is not None and not os.path.exists(script):
        raise UserError(
            f"Loader workers must run your script again, but it is not a file ({script}). "
            'Put it into a file, with the call of liftplus below `if __name__ == "__main__":`, or use workers=0.'
        )


def lost(error: Exception, codes: Sequence[int | None] = ()) -> str | None:
    """The message for worker processes that died or cannot be reached; None for any other error."""
    starting = isinstance(error, ConnectionError | EOFError) and not codes and runs_script_again()
    if UNGUARDED in codes or starting:  # a worker that ended before it had read what it was sent
        return _GUARD
    if "Too many open files" in str(error):
        return "The loader has too many open files. Raise the limit (ulimit -n), or use fewer workers."
    found = re.search(r"DataLoader worker \(pid\D*([\d, ]*\d)\)", str(error))
    if found is None and isinstance(error, RuntimeError):
        return None
    which = f" (process {found[1]})" if found else ""  # not known where it died in the middle of sending
    return (
        f"A loader worker{which} was killed or crashed. Most often the machine ran out of memory, or the "
        "container out of shared memory (/dev/shm; docker run --shm-size=8g). Use fewer workers, or workers=0."
    )
