"""Output for the terminal: progress bars, tables and messages. Only the command line uses it."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from liftplus.machine.progress import Advance

LONG_WORD = 24
"""A narrow table may break words that are longer than this."""
READER_GONE = 141  # the exit code that shells report for SIGPIPE


class _Console(Console):
    @property
    def options(self) -> ConsoleOptions:
        """Do not wrap lines if the output is not a terminal."""
        given = super().options
        return given if self.is_terminal else given.update(max_width=10_000)

    def on_broken_pipe(self) -> None:
        """End quietly if the reader of the output has ended, as `head` does."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(READER_GONE) from None


# Without markup, because names from data may contain brackets.
out = _Console(soft_wrap=True, markup=False, highlight=False)
err = _Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


detail = _Console(stderr=True, soft_wrap=True, markup=False, highlight=False, quiet=True)
"""Prints only with --verbose."""


def speak(*, quiet: bool, verbose: bool) -> None:
    """Set how much is printed: with `quiet` only errors and results, with `verbose` also details."""
    err.quiet, detail.quiet = quiet, not verbose
    if quiet:
        warnings.simplefilter("ignore")


def silence() -> None:
    """Print nothing from now on, because another process prints for this one."""
    out.quiet = err.quiet = detail.quiet = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)


class Bars:
    """Progress bars on stderr, with the time left and running figures.

    If stderr is not a terminal, each task prints a line at every fifth of its work instead.
    """

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        if err.quiet:
            from liftplus.machine.progress import Silent

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
    """Prints a line at every fifth of a task."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done = label, total, done

    def __call__(self, **figures: float) -> None:
        self.done += 1
        if self.done * 5 // self.total > (self.done - 1) * 5 // self.total:
            text = "".join(f"  {key} {value:.4g}" for key, value in figures.items())
            print(f"{self.label}: {self.done} of {self.total}{text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table. Numbers are right-aligned, and a narrow terminal breaks lines between words."""
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0), "header_style": "bold"}
    shown = Table(title=Text(title), title_justify="left", **look)
    cells = [[figure(value) for value in row] for row in rows]
    numbers = [all(_NUMBER.fullmatch(row[index]) for row in cells) for index in range(len(columns))]
    heads = [column.replace(" ", "\n") if number else column for column, number in zip(columns, numbers, strict=True)]
    texts = [[head, *(row[index] for row in cells)] for index, head in enumerate(heads)]
    needed = 2 * len(columns) + sum(map(_longest_word, texts))
    spare = out.options.max_width - needed
    shown.width = needed if spare < 0 else None
    for head, number, column in zip(heads, numbers, texts, strict=True):
        least, most = _longest_word(column), max(len(line) for text in column for line in (text.splitlines() or [""]))
        more = max(0, min(most - least, spare))
        spare -= more
        shown.add_column(Text(head), justify="right" if number else "left", overflow="fold", width=least + more)
    for row in cells:
        shown.add_row(*map(Text, row))
    out.print(shown)


def _longest_word(texts: Sequence[str]) -> int:
    """Length of the longest word that must not be broken, at most `LONG_WORD`. ± and its number are one word."""
    return min(max(len(word) for text in texts for word in (text.replace("± ", "±_").split() or [""])), LONG_WORD)


_NUMBER = re.compile(r"[-+−]?[\d.,]+( ± [\d.,]+)?( [%\w]{1,3})?|–")


def figure(value: Any) -> str:
    """A cell as text: floats with one decimal, counts with separators, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def accuracy_table(title: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print the accuracies of several results in percent, also by frequency if the data have such groups."""
    from liftplus.evaluation.metrics import FREQUENCIES  # imported here because it imports NumPy

    by_frequency = [key for key in FREQUENCIES if any(key in metrics for _, metrics in rows)]
    keys = ("overall", "many", "medium", "few", "mean_class", *by_frequency)
    columns = ("", *(key.replace("_", " ") for key in keys))
    table(title, columns, [(name, *(metrics.get(key) for key in keys)) for name, metrics in rows])
    for name, metrics in rows:
        if levels := metrics.get("levels"):
            shown = [(level, one["groups"], one["overall"], one["mean_group"]) for level, one in levels.items()]
            table(f"{name}, by level", ("level", "groups", "overall", "mean group"), shown)


def promise_table(measured: dict[str, Any], title: str) -> None:
    """Print promised against measured coverage, the sizes of sets, and false alarms, by group of classes."""
    from liftplus.calibration.measured import OVERALL  # imported here because these import NumPy and PyTorch
    from liftplus.evaluation.metrics import GROUPS

    tables, names = measured["sets"], (OVERALL, *GROUPS)
    rows = []
    for by, found in tables.items():
        for what, key in (("coverage %", "coverage"), ("classes in a set", "size")):
            own = found["mean_class"] if key == "coverage" else None
            rows.append((f"by {by}", what, *(found[name][key] if name in found else None for name in names), own))
    if measured["promised_false_alarms"] is not None:
        shown = [measured["false_alarms"].get(name) for name in names]
        rows.append((f"unknown, {measured['promised_false_alarms']:g} % promised", "false alarms %", *shown, None))
    first = next(iter(tables.values()))
    rows.append(("pictures", "", *(first[name]["pictures"] if name in first else None for name in names), None))
    table(title, ("", "", *names, "mean class"), rows)
