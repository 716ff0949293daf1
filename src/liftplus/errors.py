"""The one exception for everything a user can put right."""

from __future__ import annotations

import difflib
import signal
import traceback
from collections.abc import Iterable

LISTED = 60  # more names than these nobody reads; a data set can have thousands


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
    """A run that its own settings have ended: the loss diverged, or memory ran out. Others may go well."""


class DivergedError(RunFailedError):
    """Training left the finite numbers; what was saved before is sound."""


class InUseError(UserError):
    """A folder that another process is writing into."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one and the list of those that do."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return UserError(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(names[:LISTED])}{more}.")


def told(error: BaseException, *, in_full: bool = False) -> tuple[str, int]:
    """What the command line says of an error, and its exit code; of a mistake of ours, where it happened.

    With `in_full`, where any error happened.
    """
    if in_full:
        return "".join(traceback.format_exception(error)), told(error)[1]
    if isinstance(error, UserError):
        return f"Error: {error}", 2
    if isinstance(error, OSError):
        return f"Error: {error.filename or 'A file'} cannot be used: {error.strerror or error}.", 2
    if isinstance(error, Interrupted):
        return str(error), 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return "Stopped.", 130
    return "".join(traceback.format_exception(error)), 1
