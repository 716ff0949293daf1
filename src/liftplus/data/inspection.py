"""What a data set really holds: counts, tail, duplicates and files that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from liftplus.data import samples
from liftplus.data.dataset import DataSet
from liftplus.data.each_picture import Progress
from liftplus.data.file_facts import DARK, PALE
from liftplus.data.kept_facts import KeptFacts
from liftplus.data.looking import looked_at
from liftplus.data.samples import Sample
from liftplus.data.tally import Tally, spread
from liftplus.words import counted


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
        levels: for each level above the classes, the highest first, its groups and how many classes each has.
        without_training: classes without training images.
        absent_from_test: classes that the test split cannot measure.
        checked: whether the files were opened; the next six are empty if not.
        sample: what the random sample says, if not every file was read completely.
        duplicates: groups of byte-identical files, among those that were read completely.
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
    levels: dict[str, dict[str, int]]
    without_training: tuple[int, ...]
    absent_from_test: tuple[int, ...]
    checked: bool
    sample: Sample | None
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
        """All fields as JSON values, with `totals` and the properties of each duplicate."""
        twins = [
            {**asdict(twin), "across_splits": twin.across_splits, "conflicting": twin.conflicting}
            for twin in self.duplicates
        ]
        return {**asdict(self), "duplicates": twins, "totals": self.totals}


def inspect(
    dataset: DataSet,
    check_files: bool = True,
    progress: Progress | None = None,
    whole: int | None = None,
    kept: KeptFacts | None = None,
) -> Inspection:
    """Count pictures; with `check_files`, also read every picture's file.

    Args:
        dataset: what to look at.
        check_files: open the files; without it the answer is immediate.
        progress: called after each file.
        whole: how many random pictures are read completely; of the others only the headers are. None: all.
        kept: findings of earlier inspections; new ones are added.
    """
    counts = {split: dataset.counts(split) for split in dataset.splits}
    train = counts.get("train", ())
    present = [count for count in train if count > 0]
    pictures = _Pictures(dataset)
    keys = pictures.keys if check_files else []
    drawn, tally, hidden = samples.drawn(keys, whole), Tally(), set[str]()
    with kept or KeptFacts() as known:
        for key, found in zip(keys, looked_at(dataset.store, keys, drawn, known, progress), strict=True):
            tally.add(found.facts)
            if found.hidden:
                hidden.add(key)
    bad = frozenset(keys[number] for number, _ in tally.unreadable)
    sample = None if drawn is None else Sample.of(dict.fromkeys(keys), drawn, bad, len(hidden))
    return Inspection(
        name=dataset.name,
        class_names=dataset.class_names,
        counts=counts,
        imbalance_ratio=max(present) / min(present) if present else None,
        groups=_groups(train),
        levels={level: dict(Counter(groups.values())) for level, groups in dataset.levels.items()},
        without_training=tuple(k for k, count in enumerate(train) if count == 0),
        absent_from_test=tuple(k for k, count in enumerate(counts.get("test", ())) if count == 0),
        checked=check_files,
        sample=sample,
        duplicates=tuple(Duplicate(tuple(map(pictures.place, group))) for group in tally.equal()),
        unreadable=tuple(Broken(pictures.place(number), reason) for number, reason in tally.unreadable),
        modes=dict(tally.modes.most_common()),
        widths=spread(tally.widths),
        heights=spread(tally.heights),
        notes=(*dataset.notes, *_range_notes(tally, pictures.keys), *(sample.notes if sample else ())),
    )


def _range_notes(tally: Tally, keys: Sequence[str]) -> tuple[str, ...]:
    """Notes on pictures whose values fill so little of their format's range that they come out black or white."""
    notes: tuple[str, ...] = ()
    for found, what in ((tally.dark, f"black: no value above {DARK}"), (tally.pale, f"white: no value under {PALE}")):
        if found.count:
            notes += (
                f"{counted(found.count, 'picture comes', 'pictures come')} out nearly {what} of 255, first "
                f"{keys[found.first]!r} of mode {found.mode}. Check that values fill the range of their format.",
            )
    if count := tally.below.count:
        have = counted(count, "picture has", "pictures have")
        notes += (f"{have} values under 0, which come out black, first {keys[tally.below.first]!r}.",)
    if count := tally.missing.count:
        notes += (
            f"{counted(count, 'picture has', 'pictures have')} missing values (declared as no data, or NaN), "
            f"which come out black, first {keys[tally.missing.first]!r}.",
        )
    if len(tally.whites) > 1:
        shown = ", ".join(f"{count:,} with white at {value:g}" for value, count in sorted(tally.whites.items()))
        notes += (f"Floating-point pictures are on different scales: {shown}. Save them on one scale.",)
    return notes


def unreadable(dataset: DataSet, progress: Progress | None = None, kept: KeptFacts | None = None) -> dict[str, str]:
    """Key and reason of every picture that cannot be decoded."""
    keys = list(dict.fromkeys(_Pictures(dataset).keys))
    with kept or KeptFacts() as known:
        all_found = looked_at(dataset.store, keys, None, known, progress)
        return {key: found.facts.reason for key, found in zip(keys, all_found, strict=True) if found.facts.reason}


class _Pictures:
    """All pictures of a data set by one number."""

    def __init__(self, dataset: DataSet) -> None:
        self.splits = dataset.splits
        self.keys = [key for split in dataset.splits.values() for key in split.keys]

    def place(self, number: int) -> Place:
        """Where the picture of this number is."""
        for name, split in self.splits.items():
            if number < len(split):
                return Place(name, split.keys[number], split.labels[number])
            number -= len(split)
        raise IndexError(number)


def _groups(train: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        "many": tuple(k for k, count in enumerate(train) if count > 100),
        "medium": tuple(k for k, count in enumerate(train) if 20 <= count <= 100),
        "few": tuple(k for k, count in enumerate(train) if count < 20),
    }
