"""The exceptions for everything that a user can correct."""

from __future__ import annotations

import difflib
import signal
import traceback
from collections.abc import Iterable

LISTED = 60  # the largest number of names in a message; a data set can have thousands
FEW = 20  # up to this number, all names are listed even if some are similar


class UserError(Exception):
    """An error that the user can correct. Its message says what was given, what is allowed and what to do next.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Interrupted(KeyboardInterrupt):
    """Stopped by the user or the system. The message says what was kept and how to continue."""

    def __init__(self, said: str, number: int = signal.SIGINT) -> None:
        self.number = int(number)
        super().__init__(said)


class RunFailedError(UserError):
    """A run failed because of its own settings: the loss diverged, or memory ran out. Other runs may succeed.

    Attributes:
        what: what happened, without advice on this run; for commands that make several runs.
    """

    def __init__(self, what: str, way_on: str = "") -> None:
        self.what = what
        super().__init__(f"{what} {way_on}" if way_on else what)


class DivergedError(RunFailedError):
    """The loss or an output is not finite. Anything saved before is intact."""


class InUseError(UserError):
    """Another process is writing into the folder."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for an unknown name, with the most similar name and a list of known names.

    If there are many names, only similar ones are listed; if none is similar, the first `LISTED`.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=6, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = near if near and len(names) > FEW else names[:LISTED]
    more = f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
    return UserError(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(shown)}{more}.")


def explained(error: BaseException, *, in_full: bool = False) -> tuple[str, int]:
    """Message and exit code for an exception; internal errors include a traceback, with `in_full` all of them."""
    if in_full:
        return "".join(traceback.format_exception(error)), explained(error)[1]
    if isinstance(error, UserError):
        return f"Error: {error}", 2
    if isinstance(error, OSError):
        return f"Error: {error.filename or 'A file'} cannot be used: {error.strerror or error}.", 2
    if isinstance(error, Interrupted):
        return str(error), 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return "Stopped.", 130
    return "".join(traceback.format_exception(error)), 1
