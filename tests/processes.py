"""`liftplus ARGS` in processes of their own that start at once: a server imports everything and forks them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

MODULES = (
    "liftplus.cli",
    "liftplus.console",
    "liftplus.runs.execution",
    "liftplus.config",
    "liftplus.backbones.mini_clip",
)


class Running:
    """A command under way; what it prints goes to a file."""

    def __init__(self, arguments: tuple[object, ...], told: Path, start: str | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(MODULES))
        self.told_in = told
        given = (list(map(str, arguments)), str(told), start or multiprocessing.get_start_method())
        self.process: ForkServerProcess = context.Process(target=_command, args=given)
        self.process.start()

    def wait(self, seconds: float = 120.0) -> int | None:
        """Its exit code; None where it still runs then."""
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, as the system does when memory runs out."""
        self.send(signal.SIGKILL)
        self.process.join()

    @property
    def told(self) -> str:
        """What it printed so far, errors included."""
        return self.told_in.read_text() if self.told_in.exists() else ""


def liftplus(*arguments: object, told: Path, start: str | None = None) -> Running:
    """Start `liftplus ARGS`; `start` is how it starts loader workers, by default as this process would."""
    return Running(arguments, told, start)


def below(pid: int | None) -> list[int]:
    """The processes that a process has started, and those that these have; needs Linux."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended since
            continue
        children.setdefault(parent, []).append(int(place.name))
    found = children.get(pid or 0, [])
    return found + [lower for child in found for lower in below(child)]


def until(happened: Callable[[], bool], running: Running, seconds: float = 90.0) -> None:
    """Wait for something that a command does."""
    end = time.monotonic() + seconds
    while not happened():
        assert running.process.is_alive() and time.monotonic() < end, running.told
        time.sleep(0.005)


def _command(arguments: list[str], told: str, start: str) -> None:
    from liftplus import cli

    with open(told, "w", encoding="utf-8") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    multiprocessing.set_start_method(start, force=True)
    sys.argv = ["liftplus", *arguments]
    cli.main()
