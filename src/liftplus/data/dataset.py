"""What every data source becomes: splits of (key, label) over a store that decodes pictures."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

from liftplus.data.config import DataConfig
from liftplus.data.pictures import Decode, Picture


class Store(Protocol):
    """Where pictures come from. Stores travel to loader workers, so they pickle and open files lazily."""

    decode: Decode

    def image(self, key: str) -> Image:
        """The picture decoded by Pillow, in RGB, upright. Raises `UnreadableImage`, which names the file."""
        ...

    def picture(self, key: str) -> Picture:
        """The picture, to be cut and resized as `decode` says. Raises `UnreadableImage`, here or when it is cut."""
        ...


Levels = Mapping[str, Mapping[str, str]]
"""Levels above the classes, the highest first: name of the level -> class id -> name of its group there."""


@dataclass(frozen=True)
class Split:
    """Pictures of one split: `keys[i]` is understood by the store, `labels[i]` is a class index."""

    keys: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)

    def taken(self, places: Iterable[int]) -> Split:
        """The pictures at these places, in their order."""
        chosen = list(places)
        return Split([self.keys[i] for i in chosen], [self.labels[i] for i in chosen])


@dataclass(frozen=True)
class DataSet:
    """A named collection of splits.

    Attributes:
        name: what the user called it.
        class_names: words for each class index; these reach the text encoder.
        class_ids: the source's own identifiers (folder names, list ids), in class-index order.
        splits: some of "train", "val", "test".
        store: decodes keys.
        notes: what was decided for the user, one sentence each, shown before training.
        made: splits that the source did not have; they were drawn from its pictures.
        named: False where the names are only numbers, so that text features of them mean nothing.
        config: the configuration it was read with; None where it was made in memory.
        frequency: "frequent", "common" or "rare" by class id, where the source says it of every class (LVIS).
        levels: where the source groups its classes; each level has a group of every class.
    """

    name: str
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    splits: dict[str, Split]
    store: Store
    notes: tuple[str, ...] = field(default=())
    named: bool = True
    made: tuple[str, ...] = ()
    config: DataConfig | None = None
    frequency: Mapping[str, str] = field(default_factory=dict)
    levels: Levels = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def counts(self, split: str = "train") -> tuple[int, ...]:
        """Pictures a class in one split, in class-index order."""
        tally = Counter(self.splits[split].labels) if split in self.splits else Counter()
        return tuple(tally[label] for label in range(self.num_classes))

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a split's keys and labels, in order."""
        part, digest = self.splits[split], hashlib.sha256()
        for key, label in zip(part.keys, part.labels, strict=True):
            digest.update(f"{key}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Table:
    """What a source says, before class ids become class indices and missing splits are made.

    Attributes:
        rows: (key, class id) pairs of each split.
        class_ids: the classes in label order where the source declares them, else None.
        names: words for class ids; an id that is not in it is its own name.
        notes: what the reader decided or left out, one sentence each.
        frequency: as in `DataSet`.
        levels: groups of classes; a level may lack some classes.
    """

    rows: Mapping[str, Sequence[tuple[str, str]]]
    class_ids: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frequency: Mapping[str, str] = field(default_factory=dict)
    levels: Levels = field(default_factory=dict)

    def ids(self, *splits: str) -> set[str]:
        """The class ids that occur in the given splits, or in all of them."""
        return {label for split in splits or self.rows for _, label in self.rows.get(split, ())}


_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
"""The split that a folder, file or cell of this (lower-case) name means."""


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts "class10" after "class9"."""
    parts = re.split(r"(\d+)", text.casefold())
    return [_place(part) for part in parts if part], text


def _place(part: str) -> tuple[int, int, str]:
    if not part.isdecimal():
        return 1, 0, part
    digits = part.lstrip("0")  # compared as text of equal length: Python converts no number of over 4,300 digits
    return 0, len(digits), digits


def sorted_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Class ids in the order labels get when the source gives none: numbers by value, words naturally."""
    return tuple(sorted(ids, key=natural_key))


def are_numbers(ids: Iterable[str]) -> bool:
    """True where every id is a whole number, so that it carries no meaning of its own."""
    return all(label.isascii() and label.isdecimal() for label in ids)


def listing(items: Sequence[str], limit: int = 5) -> str:
    """The first few items for a sentence, and how many more there are."""
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(repr(item) for item in items[:limit]) + more
