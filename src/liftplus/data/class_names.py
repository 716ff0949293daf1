"""Class names: match a file of names to the data's class ids, and refuse what can be read in two ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from liftplus.data import documents
from liftplus.data.dataset import are_numbers, listing
from liftplus.data.names_file import counts_up, heading_note, is_heading
from liftplus.data.names_values import HEADINGS, Names, plain
from liftplus.errors import UserError
from liftplus.words import counted

_WORDNET = re.compile(r"n\d{8}\s+\S", re.ASCII)
_CODE = re.compile(r"\d+|n\d{8}", re.ASCII)
_SEPARATORS = ("\t", ";", ":", "=", "|", ",", None)


@dataclass(frozen=True)
class Named:
    """Names by class id, in label order. Where there was a choice, `notes` say how the names were read."""

    names: dict[str, str]
    notes: tuple[str, ...] = ()


def words(class_id: str) -> str:
    """A class id as the text encoder should see it."""
    return " ".join(class_id.replace("_", " ").split()) or class_id


def is_code(class_id: str) -> bool:
    """True for numbers and WordNet ids, which mean nothing as text."""
    return _CODE.fullmatch(class_id) is not None


def match(ids: Sequence[str], found: Names, origin: str, extra: Sequence[str] = ()) -> Named:
    """The names of a file for the class ids that occur.

    Args:
        ids: in the order labels would get without the file.
        found: the file's content. Names in label order may include classes that do not occur.
        origin: what an error calls the file.
        extra: `ids` with the ids of other splits, in order; a file of names by id makes all of them classes.

    Raises:
        UserError: a class has no name, or there are two readings.
    """
    named = from_mapping(extra or ids, found.by_id, origin) if found.by_id else from_lines(ids, found.lines, origin)
    return Named(named.names, found.notes + named.notes)


def from_lines(ids: Sequence[str], lines: Sequence[str], origin: str) -> Named:
    """Class id to name, in label order, from names in label order.

    Args:
        ids: the class ids that occur, in the order labels would get without the file.
        lines: one name a class; "id name" lines, and lines that are the class ids, also set the order.
        origin: what an error calls the lines.
    """
    notes: tuple[str, ...] = ()
    heads = is_heading(lines[0]) or (plain(lines[0]) in HEADINGS and len(lines) != len(ids))
    if len(lines) > 1 and heads and fold(lines[0]) not in map(fold, ids):
        lines, notes = lines[1:], (heading_note(lines[0], origin),)
    readings: tuple[Callable[[Sequence[str], Sequence[str], str], Named | None], ...] = (
        _the_ids,
        _id_and_name,
        _ordered,
    )
    for reading in readings:
        found = reading(ids, lines, origin)
        if found is not None:
            return Named(found.names, notes + found.notes)
    raise UserError(
        f"{origin} has {counted(len(lines), 'class name')}, but the data have {counted(len(ids), 'class', 'classes')} "
        f"({listing(ids, 3)}); give one "
        "line a class in label order, or a .csv, .json or .toml file that maps class ids to names."
    )


def _the_ids(ids: Sequence[str], lines: Sequence[str], origin: str) -> Named | None:
    """Lines that are the class ids themselves, in another order and perhaps more of them."""
    named = {fold(line) for line in lines}
    by_name = {fold(label): label for label in ids}
    if not set(by_name) <= named or len(by_name) != len({unicodedata.normalize("NFC", label) for label in ids}):
        return None
    _refuse_twins([f"line {i}" for i in range(1, len(lines) + 1)], [words(line) for line in lines], origin)
    names = {by_name.get(fold(line), line): words(line) for line in lines}
    by_line = {fold(line): words(line) for line in lines}
    return Named(names | {label: by_line[fold(label)] for label in ids if label not in names})


def _id_and_name(ids: Sequence[str], lines: Sequence[str], origin: str) -> Named | None:
    """Lines of id and name, separated by a blank or another character."""
    known = {_form(label): label for label in ids}
    for separator in _SEPARATORS:
        pairs = [[part.strip() for part in line.split(separator, 1)] for line in lines]
        if any(len(pair) < 2 or not pair[1] for pair in pairs):
            continue
        names = {known.get(_form(label), label): name for label, name in pairs}
        if len(names) == len(lines) and set(ids) <= set(names):
            return Named(names)
    return None


def _ordered(ids: Sequence[str], lines: Sequence[str], origin: str) -> Named | None:
    """Names by position: id n is line n if the ids are numbers; otherwise there is one line a class."""
    if not are_numbers(ids) and all(map(_WORDNET.match, lines)):
        return None  # the lines are of other classes, or they would have been matched by id
    names, notes = _without_folders(lines, origin) if all(map(is_code, ids)) else (lines, ())
    by_number = _by_number(ids)
    if not by_number or len(ids) == len(lines):
        return Named(dict(zip(ids, names, strict=True)), notes) if len(ids) == len(lines) else None
    from_zero, from_one = max(by_number) < len(lines), min(by_number) > 0 and max(by_number) <= len(lines)
    if from_zero and from_one:
        label = min(by_number)
        raise UserError(
            f"{origin} can be read in two ways: class {by_number[label]} is {names[label]!r} if classes are counted "
            f"from 0, and {names[label - 1]!r} if from 1. Write the number before each name (`{label}: NAME`), or give "
            "a .csv of class id and name."
        )
    if from_one:
        first = min(by_number)
        notes += (f"Classes are counted from 1: class {by_number[first]} is line {first} of {origin}.",)
    start = 0 if from_zero else 1
    if not from_zero and not from_one:
        return None
    return Named({by_number.get(number, str(number)): name for number, name in enumerate(names, start)}, notes)


def _by_number(ids: Sequence[str]) -> dict[int, str]:
    """Ids by numeric value; empty if one is not a number, or if two have the same value."""
    # A number of over 18 digits is no line number, and Python refuses to convert thousands of digits.
    found = {int(label): label for label in ids if len(label) <= 18} if are_numbers(ids) else {}
    return found if len(found) == len(ids) else {}


def _without_folders(lines: Sequence[str], origin: str) -> tuple[Sequence[str], tuple[str, ...]]:
    """Names without the folder before each of them, as the papers' lists for ImageNet-LT and Places-LT have it."""
    pairs = [line.split(None, 1) for line in lines]
    if any(len(pair) < 2 for pair in pairs):
        return lines, ()
    wordnet = all(map(_WORDNET.match, lines))
    if not wordnet and not all(_same_words(*pair) for pair in pairs):
        return lines, ()
    what = "WordNet id" if wordnet else "folder"
    note = f"The lines of {origin} were read as {what} and name: the first class is {pairs[0][1]!r}."
    return [pair[1] for pair in pairs], (note,)


def _same_words(folder: str, name: str) -> bool:
    """Whether a folder is called like the class but for the signs between words."""
    return re.split(r"[\s_/-]+", folder) == re.split(r"[\s_/-]+", name)


def from_mapping(ids: Sequence[str], mapping: Mapping[str, str], origin: str) -> Named:
    """Class id to name for the ids that occur, in their order; the mapping may know more."""
    forms: dict[str, list[str]] = {}
    for label, name in mapping.items():
        forms.setdefault(_form(label), []).append(name)
    alike = {form: names[0] for form, names in forms.items() if len(names) == 1}
    names = {label: mapping.get(label, alike.get(_form(label))) for label in ids}
    absent = [label for label, name in names.items() if name is None]
    if not absent:
        return Named({label: name for label, name in names.items() if name is not None})
    numbers = list(mapping)
    if not any(map(is_code, ids)) and counts_up(numbers):
        found = from_lines(ids, [mapping[number] for number in sorted(numbers, key=int)], origin)
        note = f"The numbers in {origin} were read as the order of the classes: {ids[0]!r} is {found.names[ids[0]]!r}."
        return Named(found.names, (*found.notes, note))
    raise UserError(
        f"{origin} has no name for {len(absent)} of {len(ids)} class ids: {listing(absent)}; it names "
        f"{listing(numbers, 3)}. Add those that are missing, and count from 0 or from 1 in both."
        if are_numbers(ids)
        else f"{origin} has no name for {len(absent)} of {len(ids)} class ids: {listing(absent)}; add them."
    )


def _form(label: str) -> str:
    """Canonical form of an id: 01, 1.0 and 1 share one, and so do the Unicode forms of one word."""
    label = re.sub(r"^(\d+)\.0+$", r"\1", label, flags=re.ASCII)
    if len(label) <= 18 and label.isascii() and label.isdecimal():
        return str(int(label))
    return unicodedata.normalize("NFC", label)


FILE = "data.class_names, a file of names in label order or from class id to name"


def check(names: Mapping[str, str], way: str = FILE) -> tuple[str, ...]:
    """Refuse names that are empty or that two classes share, as the text encoder could not tell these apart.

    Classes with codes for ids may share a name, as in ImageNet's published names; that is noted.

    Args:
        names: from class id to name.
        way: how the user can give other names, for the error.
    """
    for label, name in names.items():
        if not name.strip():
            raise UserError(f"Class {label!r} has an empty name; give it one with {way}.")
        if not documents.is_unicode(name):
            raise UserError(f"Class {label!r} has the name {name!r}, which is no Unicode text; give it one with {way}.")
    if not all(map(is_code, names)):
        _refuse_twins([repr(label) for label in names], list(names.values()), "The data", way)
        return ()
    classes: dict[str, list[str]] = {}
    for label, name in names.items():
        classes.setdefault(fold(name), []).append(label)
    twins = [labels for labels in classes.values() if len(labels) > 1]
    if not twins:
        return ()
    shown = [f"{names[labels[0]]!r} ({', '.join(labels)})" for labels in twins]
    more = f" and {len(shown) - 5:,} more" if len(shown) > 5 else ""
    return (
        f"Several classes have one name: {'; '.join(shown[:5])}{more}. They start from the same text, and their ids "
        "tell them apart.",
    )


def _refuse_twins(ids: Sequence[str], names: Sequence[str], origin: str, way: str = FILE) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        first = seen.setdefault(fold(name), i)
        if first != i:
            raise UserError(
                f"{origin}: classes {ids[first]} and {ids[i]} have the same name {name.strip()!r}; give each its own "
                f"words with {way}."
            )


def fold(text: str) -> str:
    """Canonical form of a name. The text encoder ignores what differs: case, blanks, underscores, Unicode forms."""
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf" or letter == "\u200d")
    return words(unicodedata.normalize("NFKC", seen)).casefold()
