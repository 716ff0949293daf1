"""Decide whether folders are splits or classes; what can be read in two ways is refused with both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from liftplus.data import split_names
from liftplus.data.dataset import listing
from liftplus.data.split_names import SplitName
from liftplus.errors import UserError


@dataclass(frozen=True)
class Folder:
    """A top folder that holds pictures.

    Attributes:
        loose: whether pictures lie right in it.
        inside: the folders in it that hold pictures, at any depth.
    """

    loose: bool
    inside: frozenset[str]


@dataclass(frozen=True)
class Reading:
    """What the top folders are.

    Attributes:
        splits: the split of each folder that is one; without any, every folder is a class.
        swapped: whether the classes come first and the splits lie inside each.
        notes: what was guessed, one sentence each.
    """

    splits: Mapping[str, str]
    swapped: bool = False
    notes: tuple[str, ...] = ()


def folders(paths: Iterable[Sequence[str]]) -> dict[str, Folder]:
    """The top folders of paths, each path split into its parts."""
    loose: set[str] = set()
    inside: dict[str, set[str]] = {}
    for parts in paths:
        if len(parts) == 2:
            loose.add(parts[0])
        elif len(parts) > 2:
            inside.setdefault(parts[0], set()).add(parts[1])
    return {top: Folder(top in loose, frozenset(inside.get(top, ()))) for top in sorted(loose | inside.keys())}


def read(tops: Mapping[str, Folder], deepest: int, origin: str) -> Reading:
    """Decide what the top folders are.

    Args:
        tops: the folders.
        deepest: parts of the longest path; 3 where no picture lies deeper than top/inside/picture.
        origin: what an error calls the data.

    Raises:
        UserError: both readings are plausible, or splits hold pictures without class folders.
    """
    reading = _read(tops, deepest, origin)
    classes = {name for top in reading.splits for name in tops[top].inside} if reading.splits else set(tops)
    _refuse_unlabelled(classes, tops, origin)
    if not reading.splits and not reading.swapped:
        _refuse_copies(tops, origin)
    return reading


def _read(tops: Mapping[str, Folder], deepest: int, origin: str) -> Reading:
    splits = _candidates(tops)
    if not splits:
        return _inside_out(tops, deepest, origin)
    others = {top: folder for top, folder in tops.items() if top not in splits}
    nested = [top for top in splits if tops[top].inside]
    if not nested:
        if others:
            return _as_class(next(iter(splits)), others)
        raise UserError(
            f"{origin} has images directly in {listing(list(splits))}, without class folders; use one folder "
            "a class (train/cat/1.jpg), or a .csv of path, label and split."
        )
    if others and len({name.split for name in splits.values()}) == 1:
        return _alone(nested, tops, others, origin)
    if others and not _belong(splits, tops, others):
        raise _two_readings(nested, tops, others, origin)
    _refuse_twins(splits, nested, origin)
    found = {top: name.split for top, name in splits.items()}
    guessed = any(name.rest for name in splits.values())
    shown = ", ".join(f"{split} from {top!r}" for top, split in found.items())
    return Reading(found, notes=(f"Splits were read from folders: {shown}.",) if guessed else ())


def _candidates(tops: Mapping[str, Folder]) -> dict[str, SplitName]:
    """The folders whose names may mean splits: all such names where they belong together, else the plain words."""
    named = {top: name for top in tops if (name := split_names.read(top)) is not None}
    alone = {top: name for top, name in named.items() if not name.rest}
    several = len({name.split for name in named.values()}) > 1
    return named if named and (several or alone) and split_names.alike(named.values()) else alone


def _belong(splits: Mapping[str, SplitName], tops: Mapping[str, Folder], others: Mapping[str, Folder]) -> bool:
    """Whether splits are splits although other folders lie beside them."""
    inside = {name.split: tops[top].inside for top, name in splits.items() if tops[top].inside}
    if len(others) > 1 and all(folder.inside == inside.get("train") for folder in others.values()):
        return False
    plain = not any(name.rest for name in splits.values())
    return plain or any(inside.get("train", frozenset()) & inside.get(split, frozenset()) for split in ("val", "test"))


def _alone(nested: Sequence[str], tops: Mapping[str, Folder], others: Mapping[str, Folder], origin: str) -> Reading:
    """One split's name beside other folders: a class of that name, or a split with something beside it."""
    top = nested[0]
    inside = tops[top].inside
    alike = len(others) > 1 and all(folder.inside == inside and not folder.loose for folder in others.values())
    # A split with one folder would have one class; and classes filmed by the same cameras hold the same folders.
    clear = len(inside) == 1 or alike
    if len(nested) > 1 or not clear or inside & others.keys():
        raise _two_readings(nested, tops, others, origin)
    return _as_class(top, others)


def _as_class(top: str, others: Mapping[str, Folder]) -> Reading:
    split = _split(top)
    return Reading(
        {},
        notes=(f"The folder {top!r} is read as a class, like {listing(list(others), 2)}, not as the {split} split.",),
    )


def _two_readings(
    nested: Sequence[str], tops: Mapping[str, Folder], others: Mapping[str, Folder], origin: str
) -> UserError:
    inside = sorted({name for top in nested for name in tops[top].inside})
    first = f"are splits with the classes {listing(inside, 3)}, or are classes"
    if len(nested) == 1:
        first = f"is the {_split(nested[0])} split with the classes {listing(inside, 3)}, or is a class"
    return UserError(
        f"{origin} can be read in two ways: {listing(nested)} {first} like {listing(list(others), 3)}. For the first, "
        "leave the other folders out, or move them into their split; for the second, give a .csv of path and label."
    )


def _refuse_unlabelled(classes: Collection[str], tops: Mapping[str, Folder], origin: str) -> None:
    """Refuse a class whose name says that its pictures have none."""
    without = sorted(name for name in classes if split_names.is_unlabelled(name))
    others = sorted(set(classes) - set(without))
    if not without or not others:
        return
    first = f"take {listing(without)} out"
    if len(others) == 1 and split_names.is_part(others[0]) and others[0] in tops and tops[others[0]].inside:
        first = f"give {others[0]!r} alone, with the classes {listing(sorted(tops[others[0]].inside), 3)}"
    raise UserError(
        f"{origin} can be read in two ways: pictures in {listing(without)} have no class, or that is a class like "
        f"{listing(others, 3)}. For the first, {first}; for the second, give a .csv of path and label."
    )


def _refuse_copies(tops: Mapping[str, Folder], origin: str) -> None:
    """Refuse folders such as fold1 and fold2, or color and grayscale, that hold the same sub-folders."""
    shared = frozenset.intersection(*(folder.inside for folder in tops.values())) if tops else frozenset()
    if len(tops) > 1 and len(shared) > 1 and all(map(split_names.is_part, tops)):
        raise UserError(
            f"{origin} can be read in two ways: {listing(list(tops), 3)} are parts or copies of the data, each with "
            f"the classes {listing(sorted(shared), 3)}, or are classes. For the first, give one of them, or join them; "
            "for the second, give a .csv of path and label."
        )


def _refuse_twins(splits: Mapping[str, SplitName], nested: Sequence[str], origin: str) -> None:
    of = Counter(splits[top].split for top in nested)
    for split, count in of.items():
        if count > 1:
            twins = [top for top in nested if splits[top].split == split]
            raise UserError(
                f"{origin} has several folders for the {split} split, {listing(twins)}, which may hold the same "
                "pictures; leave all but one out, or join them."
            )


def _inside_out(tops: Mapping[str, Folder], deepest: int, origin: str) -> Reading:
    """Class folders, each perhaps with its splits inside."""
    kinds = {top: _kinds(folder) for top, folder in tops.items()}
    every = frozenset().union(*kinds.values()) if kinds else frozenset()
    if len(tops) < 2 or "train" not in every or len(every) == 1:
        return Reading({})
    only = all(kinds.values()) and not any(
        folder.loose or any(_split(name) is None for name in folder.inside) for folder in tops.values()
    )
    if only and deepest <= 3:
        note = f"Every class folder holds its own splits, such as {_example(tops)}; they were read as such."
        return Reading({}, swapped=True, notes=(note,))
    if any(len(found) > 1 for found in kinds.values()):
        raise UserError(
            f"{origin} can be read in several ways: {listing(list(tops), 3)} are classes, or data sets with classes of "
            f"their own, and {_example(tops)} are splits, or parts of a class. Put splits above the classes "
            "(train/cat/1.jpg), or give one of the data sets."
        )
    return Reading({})


def _kinds(folder: Folder) -> frozenset[str]:
    return frozenset(split for name in folder.inside if (split := _split(name)) is not None)


def _split(name: str) -> str | None:
    found = split_names.read(name)
    return found.split if found is not None and found.plain else None


def _example(tops: Mapping[str, Folder]) -> str:
    top = max(tops, key=lambda name: len(_kinds(tops[name])))
    return listing([f"{top}/{name}" for name in sorted(tops[top].inside) if _split(name)], 3)
