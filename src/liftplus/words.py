"""Quantities in words."""

from __future__ import annotations


def agreeing(number: float, one: str, many: str | None = None) -> str:
    """`one` if the number is 1, else `many`. By default `many` is `one` with an s."""
    return one if number == 1 else f"{one}s" if many is None else many


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: 1 picture, 1,200 pictures."""
    return f"{number:,} {agreeing(number, one, many)}"


def duration(seconds: float) -> str:
    """A rounded duration: 40 s, 12 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
