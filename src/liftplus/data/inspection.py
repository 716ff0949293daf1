"""What a data set really holds: counts, tail, duplicates and files that cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from liftplus.data.dataset import DataSet, Store
from liftplus.data.images import UnreadableImage, extremes, is_wide, original, scale
from liftplus.data.stores import ByteStore
from liftplus.words import counted

_Found = TypeVar("_Found")

Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files."""

DARK, PALE = 64, 191
"""A picture without a brighter or without a darker value is nearly black or white."""


@dataclass(frozen=True)
class Place:
    """One file of a split."""

    split: str
    key: str
    label: int


@dataclass(frozen=True)
class Duplicate:
    """Files with the same bytes."""

    places: tuple[Place, ...]

    @property
    def across_splits(self) -> bool:
        """True where a test or validation image was also seen in another split."""
        return len({place.split for place in self.places}) > 1

    @property
    def conflicting(self) -> bool:
        """True where the same picture has different labels."""
        return len({place.label for place in self.places}) > 1


@dataclass(frozen=True)
class Broken:
    """A file that cannot be decoded, and why."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The findings about one data set; class lists hold class indices.

    Attributes:
        name: the data set's name.
        class_names: words for each class index.
        counts: images a class of each split.
        imbalance_ratio: largest over smallest training class that has images; None without any.
        groups: classes with many (> 100), medium (20 to 100) and few (< 20) training images.
        without_training: classes without training images.
        absent_from_test: classes that the test split cannot measure.
        checked: whether the files were opened; what follows is empty if not.
        duplicates: groups of byte-identical files.
        unreadable: files that cannot be decoded.
        modes: how many files have which colour mode, as Pillow names it.
        widths: smallest, median and largest width in pixels.
        heights: smallest, median and largest height in pixels.
        notes: what was decided when the data were loaded, and pictures that come out nearly black or white.
    """

    name: str
    class_names: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    imbalance_ratio: float | None
    groups: dict[str, tuple[int, ...]]
    without_training: tuple[int, ...]
    absent_from_test: tuple[int, ...]
    checked: bool
    duplicates: tuple[Duplicate, ...]
    unreadable: tuple[Broken, ...]
    modes: dict[str, int]
    widths: tuple[int, int, int] | None
    heights: tuple[int, int, int] | None
    notes: tuple[str, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(counts) for split, counts in self.counts.items()}

    @property
    def leaks(self) -> tuple[Duplicate, ...]:
        """Duplicates between splits."""
        return tuple(twin for twin in self.duplicates if twin.across_splits)

    @property
    def conflicts(self) -> tuple[Duplicate, ...]:
        """Duplicates with different labels."""
        return tuple(twin for twin in self.duplicates if twin.conflicting)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, with what follows from the duplicates."""
        twins = [
            {**asdict(twin), "across_splits": twin.across_splits, "conflicting": twin.conflicting}
            for twin in self.duplicates
        ]
        return {**asdict(self), "duplicates": twins, "totals": self.totals}


@dataclass(frozen=True)
class _File:
    digest: bytes | None = None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    reason: str = ""
    shades: tuple[int, int] = (0, 255)
    white: float | None = None
    below: bool = False
    missing: bool = False


def inspect(dataset: DataSet, check_files: bool = True, progress: Progress | None = None) -> Inspection:
    """Count, and with `check_files` read and decode every picture.

    Args:
        dataset: what to look at.
        check_files: open the files; without it the answer is immediate.
        progress: told after each file.
    """
    counts = {split: dataset.counts(split) for split in dataset.splits}
    train = counts.get("train", ())
    present = [count for count in train if count > 0]
    places = _places(dataset) if check_files else []
    files = list(_over(dataset.store, [place.key for place in places], _examine, progress))
    good = [file for file in files if not file.reason]
    return Inspection(
        name=dataset.name,
        class_names=dataset.class_names,
        counts=counts,
        imbalance_ratio=max(present) / min(present) if present else None,
        groups=_groups(train),
        without_training=tuple(k for k, count in enumerate(train) if count == 0),
        absent_from_test=tuple(k for k, count in enumerate(counts.get("test", ())) if count == 0),
        checked=check_files,
        duplicates=_duplicates(places, files),
        unreadable=tuple(Broken(place, file.reason) for place, file in zip(places, files, strict=True) if file.reason),
        modes=dict(Counter(file.mode for file in good).most_common()),
        widths=_spread([file.size[0] for file in good]),
        heights=_spread([file.size[1] for file in good]),
        notes=(*dataset.notes, *_range_notes(places, files)),
    )


def _range_notes(places: list[Place], files: list[_File]) -> tuple[str, ...]:
    """Notes on pictures whose values fill so little of their format's range that they come out black or white."""
    good = [(place.key, file) for place, file in zip(places, files, strict=True) if not file.reason]
    dark = [(key, file.mode) for key, file in good if file.shades[1] <= DARK]
    pale = [(key, file.mode) for key, file in good if file.shades[0] >= PALE]
    scales = Counter(file.white for _, file in good if file.white is not None)
    notes: tuple[str, ...] = ()
    for found, what in ((dark, f"black: no value above {DARK}"), (pale, f"white: no value under {PALE}")):
        if found:
            key, mode = found[0]
            notes += (
                f"{counted(len(found), 'picture comes', 'pictures come')} out nearly {what} of 255, first {key!r} of "
                f"mode {mode}. Check that values fill the range of their format.",
            )
    if under := [key for key, file in good if file.below]:
        have = counted(len(under), "picture has", "pictures have")
        notes += (f"{have} values under 0, which come out black, first {under[0]!r}.",)
    if absent := [key for key, file in good if file.missing]:
        notes += (
            f"{counted(len(absent), 'picture has', 'pictures have')} missing values (declared as no data, or NaN), "
            f"which come out black, first {absent[0]!r}.",
        )
    if len(scales) > 1:
        shown = ", ".join(f"{count:,} with white at {value:g}" for value, count in sorted(scales.items()))
        notes += (f"Pictures of fractions are on different scales: {shown}. Save them on one.",)
    return notes


def unreadable(dataset: DataSet, progress: Progress | None = None) -> dict[str, str]:
    """Key and reason of every picture that cannot be decoded."""
    keys = list(dict.fromkeys(place.key for place in _places(dataset)))
    reasons = _over(dataset.store, keys, _reason, progress)
    return {key: reason for key, reason in zip(keys, reasons, strict=True) if reason}


def _places(dataset: DataSet) -> list[Place]:
    return [
        Place(name, key, label)
        for name, split in dataset.splits.items()
        for key, label in zip(split.keys, split.labels, strict=True)
    ]


def _examine(store: Store, key: str) -> _File:
    try:
        if not isinstance(store, ByteStore):
            image = store.image(key)
            content = f"{image.size}".encode() + image.tobytes()
            return _File(_digest(content), image.mode, image.size, shades=extremes(image))
        data = store.read(key)
    except UnreadableImage as error:
        return _File(reason=str(error))
    try:
        image = original(data, store.where(key))
        found = _File(_digest(data), image.mode, image.size, shades=extremes(image))
        if not is_wide(image):
            return found
        own = scale(image)
        full = own.white if image.mode == "F" else None
        return replace(found, white=full, below=own.lowest < 0, missing=own.missing > 0)
    except UnreadableImage as error:
        return _File(_digest(data) if data else None, reason=str(error))


def _reason(store: Store, key: str) -> str:
    try:
        store.image(key)
    except UnreadableImage as error:
        return str(error)
    return ""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _over(
    store: Store, keys: list[str], work: Callable[[Store, str], _Found], progress: Progress | None
) -> Iterator[_Found]:
    """The work on every key, in order; several threads, as decoding leaves the interpreter free."""
    # A store that draws its pictures may not be safe to call from several threads.
    threads = min(os.cpu_count() or 1, 8) if isinstance(store, ByteStore) else 1
    remaining = iter(keys)
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(remaining, 64 * threads)):
            for result in pool.map(lambda key: work(store, key), chunk):
                done += 1
                if progress is not None:
                    progress(done, len(keys))
                yield result


def _duplicates(places: list[Place], files: list[_File]) -> tuple[Duplicate, ...]:
    groups: dict[bytes, list[Place]] = {}
    for place, file in zip(places, files, strict=True):
        if file.digest is not None:
            groups.setdefault(file.digest, []).append(place)
    return tuple(Duplicate(tuple(group)) for group in groups.values() if len(group) > 1)


def _groups(train: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        "many": tuple(k for k, count in enumerate(train) if count > 100),
        "medium": tuple(k for k, count in enumerate(train) if 20 <= count <= 100),
        "few": tuple(k for k, count in enumerate(train) if count < 20),
    }


def _spread(values: list[int]) -> tuple[int, int, int] | None:
    ordered = sorted(values)
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None
