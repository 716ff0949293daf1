"""Words for classes: reading a file of names, matching it to the data's class ids, refusing ambiguity."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from liftplus.data import documents
from liftplus.data.dataset import are_numbers, listing
from liftplus.errors import UserError

_WORDNET = re.compile(r"n\d{8}\s+\S", re.ASCII)
_HEADERS = frozenset({"id", "class_id", "label", "index", "key", "name", "class", "class_name", "wnid", "folder"})


def words(class_id: str) -> str:
    """A class id as the text encoder should see it."""
    return " ".join(class_id.replace("_", " ").split()) or class_id


def read(path: str) -> list[str] | dict[str, str]:
    """The names of a file: a list in label order, or a mapping from class id to name."""
    file = documents.place(path)
    data = documents.content(file, "class names file")
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return _parse_csv(data, path)
    if suffix in (".json", ".toml"):
        return _parse_document(documents.decoded(data, path), suffix, path)
    return parse_lines(data, path)


def parse_lines(data: bytes, origin: str) -> list[str]:
    """One name a line; empty lines are allowed at the end only."""
    # Not splitlines(): it would also break at rare separators within a name.
    lines = [line.strip() for line in documents.decoded(data, origin).replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{origin} is empty; write one class name a line, in label order.")
    if "" in lines:
        raise UserError(f"{origin}, line {lines.index('') + 1} is empty; every class needs a name.")
    return lines


def from_lines(ids: Sequence[str], lines: Sequence[str], origin: str) -> dict[str, str]:
    """Class id to name, in label order, from names in label order.

    Args:
        ids: the class ids that occur, in the order labels would get without the file.
        lines: one name a class; "id name" lines, and lines that are the class ids, also set the order.
        origin: what an error calls the lines.
    """
    plain = {_fold(line): line for line in lines}
    by_name = {_fold(label): label for label in ids}
    if set(by_name) <= set(plain) and len(by_name) == len(ids):
        _refuse_twins([f"line {i}" for i in range(1, len(lines) + 1)], [words(line) for line in lines], origin)
        return {by_name.get(_fold(line), line): words(line) for line in lines}
    first = dict(line.split(None, 1) for line in lines if len(line.split(None, 1)) == 2)
    if len(first) == len(lines) and set(ids) <= set(first):
        return first
    # A number beyond 18 digits is no line number, and converting thousands of digits is refused by Python.
    by_number = {int(label): label for label in ids if len(label) <= 18} if are_numbers(ids) else {}
    if by_number and all(_WORDNET.match(line) for line in lines):  # "n01440764 tench", in label order
        lines = [line.split(None, 1)[1] for line in lines]
    if by_number and len(by_number) == len(ids) and max(by_number) < len(lines):
        return {by_number.get(number, str(number)): line for number, line in enumerate(lines)}
    if len(ids) == len(lines):
        return dict(zip(ids, lines, strict=True))
    raise UserError(
        f"{origin} has {len(lines)} class names, but the data have {len(ids)} classes ({listing(ids, 3)}); give one "
        "line a class in label order, or a .csv, .json or .toml file that maps class ids to names."
    )


def from_mapping(ids: Sequence[str], mapping: Mapping[str, str], origin: str) -> dict[str, str]:
    """Class id to name for the ids that occur, in their order; the mapping may know more."""
    absent = [label for label in ids if label not in mapping]
    if absent:
        raise UserError(f"{origin} has no name for {len(absent)} of {len(ids)} class ids: {listing(absent)}; add them.")
    return {label: mapping[label] for label in ids}


def check(names: Mapping[str, str]) -> None:
    """Refuse names that are empty or that two classes share, as the text encoder could not tell these apart."""
    for label, name in names.items():
        if not name.strip():
            raise UserError(f"Class {label!r} has an empty name; give it one with data.class_names.")
        if not documents.is_unicode(name):
            raise UserError(
                f"Class {label!r} has the name {name!r}, which is no Unicode text; give it one with data.class_names."
            )
    _refuse_twins([repr(label) for label in names], list(names.values()), "The data")


def _refuse_twins(ids: Sequence[str], names: Sequence[str], origin: str) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        first = seen.setdefault(name.strip().casefold(), i)
        if first != i:
            raise UserError(
                f"{origin}: classes {ids[first]} and {ids[i]} have the same name {name.strip()!r}; give each its own "
                "words with data.class_names, a file of names in label order or from class id to name."
            )


def _fold(text: str) -> str:
    return words(text).casefold()


def _parse_csv(data: bytes, origin: str) -> list[str] | dict[str, str]:
    reader = csv.reader(io.StringIO(documents.decoded(data, origin), newline=""), strict=True)
    try:
        rows = [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{origin}, line {reader.line_num} is damaged, perhaps by a stray quote: {error}.") from error
    if rows and all(cell.strip().lower() in _HEADERS for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"{origin} is empty; write lines of class id and name.")
    if all(len(row) == 1 for row in rows):
        return [row[0].strip() for row in rows]
    return _mapping([_pair(row, number, origin) for number, row in enumerate(rows, 1)], origin)


def _pair(row: Sequence[str], number: int, origin: str) -> tuple[str, str]:
    if len(row) != 2:
        raise UserError(
            f"{origin}, entry {number} has {len(row)} fields instead of class id and name; put a name with commas "
            "in double quotes."
        )
    return row[0], row[1]


def _parse_document(text: str, suffix: str, origin: str) -> list[str] | dict[str, str]:
    content = documents.json_value(text, origin, distinct=True) if suffix == ".json" else _toml(text, origin)
    if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), dict | list):
        content = next(iter(content.values()))  # a TOML file needs a table or key around its entries
    values = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{origin} must hold a list of names or a mapping from class id to name, all as text.")
    return _mapping(list(content.items()), origin) if isinstance(content, dict) else [name.strip() for name in values]


def _toml(text: str, origin: str) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits are a ValueError
        raise UserError(f"{origin} is not valid TOML: {error}.") from error


def _mapping(pairs: Sequence[tuple[str, str]], origin: str) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for label, name in pairs:
        if label.strip() in mapping:
            raise UserError(f"{origin} names class {label.strip()!r} twice; keep one line of it.")
        mapping[label.strip()] = name.strip()
    return mapping
