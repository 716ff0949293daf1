"""The settings a sweep varies: `key=value` as in training, with a range or a list in place of the value."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from liftplus import config as configs
from liftplus.config import RunConfig
from liftplus.errors import UserError
from liftplus.training import recipe

NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})((?::\w*)*)")
FORMS = (
    "Write a list as lr=0.01,0.03. Write a range as lr=0.001..0.1:log or epochs=5..20, and one with five points as "
    "lr=0.01..0.1:5."
)
SEED = "seed"

Point = dict[str, str]
"""The value, as text, of each varied key."""


@dataclass(frozen=True)
class Choices:
    """A list of values, as text. A trial takes one of them."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """The values to check: if these are allowed, all values are."""
        return self.values

    def text(self, value: Any) -> str:
        """The setting's text for a value from Optuna."""
        return str(value)

    def draw(self, rng: random.Random) -> str:
        """A random value."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included. With `whole`, only integers. Methods are as in `Choices`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        return self.text(self.low), self.text(self.high)

    @property
    def values(self) -> range | None:
        """Every number of an integer range; None for a range of fractions, which is infinite."""
        return range(round(self.low), round(self.high) + 1) if self.whole else None

    def text(self, value: Any) -> str:
        return str(round(value)) if self.whole else repr(float(value))

    def number(self, text: str) -> float:
        """The number that `text` spells."""
        return int(text) if self.whole else float(text)

    def between(self, share: float) -> str:
        """The number at a share (0 to 1) of the way from `low` to `high`, on a linear or logarithmic scale."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.text(min(max(value, self.low), self.high))

    def draw(self, rng: random.Random) -> str:
        """A random number, uniform or log-uniform."""
        if self.whole and not self.log:
            return str(rng.randint(round(self.low), round(self.high)))
        return self.between(rng.random())


@dataclass(frozen=True)
class Space:
    """All settings of a sweep, in the order given. A setting is fixed, a list or a range."""

    data: str
    backbone: str
    method: str
    terms: tuple[tuple[str, str | Choices | Range], ...]

    @property
    def varied(self) -> dict[str, Choices | Range]:
        """The varied keys, each with its list or range."""
        return {key: given for key, given in self.terms if not isinstance(given, str)}

    def config(self, point: Point) -> RunConfig:
        """The run at one point."""
        known = {key for key, _ in self.terms}
        given = [f"{key}={value if isinstance(value, str) else point[key]}" for key, value in self.terms]
        given += [f"{key}={value}" for key, value in point.items() if key not in known]
        usual = recipe.usual(self.data)
        return configs.resolve(
            data=self.data, backbone=self.backbone, method=self.method, overrides=given, recipe=usual
        )

    def first(self) -> Point:
        """A point of the space: each list's first value and each range's low end."""
        return {key: given.ends[0] for key, given in self.varied.items()}

    def size(self) -> int | None:
        """Number of points; None if the space is infinite."""
        return math.prod(0 if given.values is None else len(given.values) for given in self.varied.values()) or None

    def grid(self) -> list[Point]:
        """Every point.

        Raises:
            UserError: a range of fractions has no number of points.
        """
        axes = []
        for key, given in self.varied.items():
            if isinstance(given, Range) and not given.whole:
                raise UserError(
                    f"A grid needs the values of {key!r}. List them, or add a number of points, as in "
                    f"{key}={given.low:g}..{given.high:g}:5. Or use --sampler tpe."
                )
            axes.append(list(map(str, given.values or ())))
        return [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*axes)]

    def draws(self, seed: int) -> Iterator[Point]:
        """An endless stream of distinct random points; the same seed gives the same points."""
        seen: set[tuple[str, ...]] = set()
        for number in itertools.count():
            rng = random.Random(f"{seed}/{number}")
            point = {key: given.draw(rng) for key, given in self.varied.items()}
            if tuple(point.values()) not in seen:
                seen.add(tuple(point.values()))
                yield point

    def check(self) -> None:
        """Check every value before a run begins; raises UserError for one that a run cannot have."""
        for key, given in self.varied.items():
            for value in given.ends:
                self.config(self.first() | {key: value})


def read(data: str, backbone: str, method: str, given: Sequence[str], *, fixed: Sequence[str] = ()) -> Space:
    """The space that `key=value` pairs describe. All its values are checked.

    Args:
        data, backbone, method: as in training.
        given: pairs in the order in which they apply.
        fixed: keys that must not be varied.

    Raises:
        UserError: a key or value is not allowed, or a key is given twice.
    """
    terms: list[tuple[str, str | Choices | Range]] = []
    for pair in given:
        key, equals, text = pair.partition("=")
        start = Space(data, backbone, method, tuple(terms))
        base = start.config(start.first())
        if not equals or not key:
            configs.changed(base.to_dict(), [pair])  # raises, with what is wrong
        full, is_text = configs.locate(base, key.strip())
        value = text.strip() if is_text else parse(key, text.strip())
        if not isinstance(value, str) and (full in fixed or full.startswith("data.")):
            raise UserError(f"{key!r} must be the same in all trials, else they cannot be compared. Give it one value.")
        if any(full == other for other, _ in terms):
            raise UserError(f"{key!r} is given twice. Give each key once.")
        terms.append((full, value))
    space = Space(data, backbone, method, tuple(terms))
    space.check()
    return space


def parse(key: str, text: str) -> str | Choices | Range:
    """Parse the value of `key`: a range, a list, or plain text.

    `LOW..HIGH` is a range, of integers if both ends are integers. `:log` makes it logarithmic, and `:N` takes N points
    of it. Commas separate the values of a list, except inside brackets or quotes.

    Raises:
        UserError: a range or list is malformed.
    """
    found = RANGE.fullmatch(text)
    if found:
        return _range(key, text, *found.groups())
    values = split(text, ",")
    if ".." in text and not text.startswith(('"', "'", "[", "{")):
        raise UserError(f"{key}={text} is not a range of numbers. {FORMS}")
    if len(values) == 1:
        return text
    if any(not value for value in values):
        raise UserError(f"{key}={text} has an empty value between its commas. {FORMS}")
    if len(set(values)) < len(values):
        raise UserError(f"{key}={text} names a value twice. Give each once.")
    return Choices(tuple(values))


def _range(key: str, text: str, low: str, high: str, options: str) -> Choices | Range:
    words = options.split(":")[1:]
    log, rest = "log" in words, [word for word in words if word != "log"]
    if len(rest) > 1 or any(not word.isdecimal() or int(word) < 2 for word in rest) or words.count("log") > 1:
        raise UserError(f"{key}={text}: a range may end in :log, a number of points (at least 2), or both. {FORMS}")
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high))
    span = Range(float(low), float(high), log, whole)
    if not span.low < span.high:
        raise UserError(f"{key}={text}: the first number of a range must be the smaller one. {FORMS}")
    if log and span.low <= 0:
        raise UserError(f"{key}={text}: a logarithmic range must start above 0. {FORMS}")
    if not rest:
        return span
    steps = int(rest[0]) - 1
    return Choices(tuple(dict.fromkeys(span.between(step / steps) for step in range(steps + 1))))


def split(text: str, separator: str) -> list[str]:
    """Split a text at separators that are outside brackets and quotes; blanks around the parts are removed."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == separator and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
