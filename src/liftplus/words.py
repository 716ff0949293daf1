"""Quantities in words for a person."""

from __future__ import annotations


def agreeing(number: float, one: str, many: str | None = None) -> str:
    """The words that go with a number: `one` with 1, else `many`, which is `one` with an s if not given."""
    return one if number == 1 else f"{one}s" if many is None else many


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and the words that go with it: 1 picture, 1,200 pictures."""
    return f"{number:,} {agreeing(number, one, many)}"


def duration(seconds: float) -> str:
    """Roughly how long something takes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
