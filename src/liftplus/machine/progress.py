"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Shows the progress of long work; the command line shows a bar, the library is silent."""

    def task(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """A piece of work of `total` steps, of which some may be done already."""
        ...


class Advance(Protocol):
    """Called after every step, with running figures to show."""

    def __call__(self, **figures: float) -> None: ...


class Silent:
    """Progress that nobody sees."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        def advance(**figures: float) -> None:
            return None

        yield advance
