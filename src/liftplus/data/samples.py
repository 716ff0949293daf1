"""Pictures drawn at random to be read whole, and what they say of the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from liftplus.words import agreeing, counted

SEED = 0
"""Of the order in which pictures are drawn; a larger sample holds a smaller one."""
CONFIDENCE = 0.95

_UNSEEN = (
    "equal files, pictures that come out nearly black or white, missing values, values under 0, scales of "
    "floating-point pictures"
)


@dataclass(frozen=True)
class Sample:
    """What was found of pictures that were read whole, and what it says of those of which only the header was.

    Attributes:
        drawn: how many were read whole.
        seed: they were drawn with.
        hidden: how many of them have a sound header and cannot be read.
        others: how many more pictures have a sound header.
        low: of the others, the share that cannot be read is no smaller with 95 % confidence.
        high: it is no larger; 1 where none was drawn.
    """

    drawn: int
    seed: int
    hidden: int
    others: int
    low: float
    high: float

    @classmethod
    def of(cls, keys: Collection[str], drawn: frozenset[str], unreadable: frozenset[str], hidden: int) -> Sample:
        """From all pictures, each once, those drawn, those that cannot be read, and how many of both are `hidden`."""
        sound = len(drawn) - len(drawn & unreadable) + hidden
        others = sum(key not in drawn and key not in unreadable for key in keys)
        return cls(len(drawn), SEED, hidden, others, *interval(hidden, sound))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not looked for, and what the sample says of it."""
        if not self.drawn:
            return (
                f"Only the headers were read. Not checked: damage behind an intact header, {_UNSEEN}. --read whole "
                "checks all of that.",
            )
        low, high = floor(self.low * self.others), ceil(self.high * self.others)
        of = f"{self.drawn:,} {agreeing(self.drawn, 'picture was', 'pictures were')}"
        return (
            f"{of} drawn at random (seed {self.seed}) and read completely, of the others only the headers. Checked in "
            f"the drawn ones only: damage behind an intact header, {_UNSEEN}. --read whole checks all pictures.",
            f"{counted(self.hidden, 'drawn picture is', 'drawn pictures are')} damaged behind an intact header. An "
            f"estimated {100 * self.low:.2g} to {100 * self.high:.2g} % of the other {self.others:,} are too: "
            f"{low:,} to {high:,} pictures (95 % Clopper-Pearson interval).",
        )


def drawn(keys: Sequence[str], count: int | None) -> frozenset[str] | None:
    """As many of the keys, each taken once; None where that is all of them, or all are asked for."""
    if count is None:
        return None
    each = list(dict.fromkeys(keys))
    if count >= len(each):
        return None
    return frozenset(each[k] for k in np.random.default_rng(SEED).permutation(len(each))[:count].tolist())


def interval(hits: int, count: int) -> tuple[float, float]:
    """Bounds of a share of which `hits` in `count` were seen, after Clopper and Pearson (Biometrika 26, 1934)."""
    if not count:
        return 0.0, 1.0
    from scipy.special import betaincinv  # here, as only samples need it

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high
