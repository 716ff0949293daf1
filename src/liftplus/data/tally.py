"""The facts of very many files in little memory: numbers in columns, and only the first picture of each kind."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from liftplus.data.file_facts import DIGEST, Facts


@dataclass
class Kind:
    """How many pictures are of a kind, the number of the first one and its mode."""

    count: int = 0
    first: int = 0
    mode: str = ""

    def add(self, number: int, mode: str) -> None:
        """One more."""
        if not self.count:
            self.first, self.mode = number, mode
        self.count += 1


class Tally:
    """Facts in the order in which they are added; the first one has number 0.

    Attributes:
        modes: how many pictures have which mode.
        widths: pixels, of those that can be read.
        heights: likewise.
        unreadable: number and reason of the others.
        whites: how many pictures of fractions are on which scale.
        dark, pale, below, missing: pictures of each kind; see `Facts`.
    """

    def __init__(self) -> None:
        self.modes: Counter[str] = Counter()
        self.widths, self.heights = array("q"), array("q")
        self.unreadable: list[tuple[int, str]] = []
        self.whites: Counter[float] = Counter()
        self.dark, self.pale, self.below, self.missing = Kind(), Kind(), Kind(), Kind()
        self._digests = bytearray()
        self._count = 0

    def add(self, facts: Facts) -> None:
        """Note one file."""
        number, mode = self._count, facts.mode
        self._count += 1
        self._digests += facts.digest or bytes(DIGEST)
        if facts.reason:
            self.unreadable.append((number, facts.reason))
            return
        self.modes[mode] += 1
        self.widths.append(facts.size[0])
        self.heights.append(facts.size[1])
        if facts.dark:
            self.dark.add(number, mode)
        if facts.pale:
            self.pale.add(number, mode)
        if facts.below:
            self.below.add(number, mode)
        if facts.missing:
            self.missing.add(number, mode)
        if facts.white is not None:
            self.whites[facts.white] += 1

    def equal(self) -> list[list[int]]:
        """Groups of numbers of files with the same bytes, ordered by the first of each."""
        if not self._digests:
            return []
        halves = np.frombuffer(self._digests, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort(halves.T)  # stable, so that each group is in order
        ranked = halves[order]
        alike = (ranked[1:] == ranked[:-1]).all(axis=1) & ranked[1:].any(axis=1)
        groups: list[list[int]] = []
        last = -2
        for place in np.flatnonzero(alike).tolist():
            if place != last + 1:
                groups.append([int(order[place])])
            groups[-1].append(int(order[place + 1]))
            last = place
        return sorted(groups)


def spread(values: array[int]) -> tuple[int, int, int] | None:
    """The smallest, the median and the largest value; None without values."""
    ordered = np.sort(np.frombuffer(values, dtype=np.int64)) if values else np.zeros(0, dtype=np.int64)
    return (int(ordered[0]), int(ordered[len(ordered) // 2]), int(ordered[-1])) if len(ordered) else None
