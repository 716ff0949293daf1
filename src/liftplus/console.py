"""What a person sees in a terminal: progress bars, tables, sentences. Only the command line uses it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from liftplus.runtime import Advance, Silent

READER_GONE = 141  # what a shell reports of a program that SIGPIPE ended


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Who read the output has gone, as `head` does: no mistake of anyone."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(READER_GONE) from None


# Names from data are shown as they are: brackets in them are no markup.
out = _Console(soft_wrap=True, markup=False, highlight=False)
err = _Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


detail = _Console(stderr=True, soft_wrap=True, markup=False, highlight=False, quiet=True)
"""What is said with --verbose only."""


def speak(*, quiet: bool, verbose: bool) -> None:
    """How much to say: with `quiet` errors and results alone, with `verbose` details too."""
    err.quiet, detail.quiet = quiet, not verbose
    if quiet:
        warnings.simplefilter("ignore")


def silence() -> None:
    """Say nothing any more: another process speaks for this one."""
    out.quiet = err.quiet = detail.quiet = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)


class Bars:
    """Progress bars with time left and running figures, on stderr so that stdout stays clean.

    Where stderr is no terminal, each task reports a line now and then instead.
    """

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        if err.quiet:
            with Silent().task(label, total, done) as advance:
                yield advance
            return
        if not sys.stderr.isatty():
            yield _Lines(label, total, done)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with RichProgress(*columns, console=err, transient=True) as bar:
            number = bar.add_task(label, total=total, completed=done, figures="")

            def step(**figures: float) -> None:
                text = {"figures": "  ".join(f"{key} {value:.4g}" for key, value in figures.items())} if figures else {}
                bar.update(number, advance=1, **text)  # type: ignore[arg-type]

            yield step


class _Lines:
    """A line at every fifth of a task."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done = label, total, done

    def __call__(self, **figures: float) -> None:
        self.done += 1
        if self.done * 5 // self.total > (self.done - 1) * 5 // self.total:
            text = "".join(f"  {key} {value:.4g}" for key, value in figures.items())
            print(f"{self.label}: {self.done} of {self.total}{text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; columns of numbers stand on the right."""
    shown = Table(title=Text(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numbers = all(value is None or isinstance(value, int | float) for value in (row[index] for row in rows))
        shown.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        shown.add_row(*(Text(figure(value)) for value in row))
    out.print(shown)


def figure(value: Any) -> str:
    """One cell: percentages to a tenth, large counts with separators, a dash for no value."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def accuracy_table(title: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Overall, many, medium, few of several results, in percent."""
    keys = ("overall", "many", "medium", "few", "mean_class")
    table(
        title, ("", *(key.replace("_", " ") for key in keys)), [(name, *(m[key] for key in keys)) for name, m in rows]
    )
