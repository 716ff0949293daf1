"""The one exception for everything a user can put right."""

from __future__ import annotations

import difflib
import signal
import traceback
from collections.abc import Iterable

LISTED = 60  # more names than these nobody reads; a data set can have thousands
FEW = 20  # names that are listed whole beside a guess


class UserError(Exception):
    """What was given, what is allowed and what to do next, in one or a few plain sentences.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Interrupted(KeyboardInterrupt):
    """Ended by the user or the system, with what was kept and how to go on."""

    def __init__(self, said: str, number: int = signal.SIGINT) -> None:
        self.number = int(number)
        super().__init__(said)


class RunFailedError(UserError):
    """A run that its own settings have ended: the loss diverged, or memory ran out. Others may go well.

    Attributes:
        what: what happened, without how this one run goes on; for a command that makes several.
    """

    def __init__(self, what: str, way_on: str = "") -> None:
        self.what = what
        super().__init__(f"{what} {way_on}" if way_on else what)


class DivergedError(RunFailedError):
    """Training left the finite numbers; what was saved before is sound."""


class InUseError(UserError):
    """A folder that another process is writing into."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one and the list of those that do.

    Of many names those that are like the given one are listed, where there are any.
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
