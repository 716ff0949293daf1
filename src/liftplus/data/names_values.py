"""Class names from the values of JSON, TOML and Python, and the headings of columns of ids and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from liftplus.errors import UserError

ID_COLUMNS = (
    *("id", "classid", "labelid", "categoryid", "index", "idx", "classindex", "wnid", "synset", "folder", "key"),
    *("code", "number", "no", "nr", ""),
)
NAME_COLUMNS = ("name", "classname", "labelname", "categoryname", "signname", "text", "title", "commonname")
EITHER = ("class", "label", "category", "species")
"""Headings of a column of ids or of names, whichever the other column is not."""
HEADINGS = frozenset({*ID_COLUMNS, *NAME_COLUMNS, *EITHER} - {""})


_WRAPPERS = ("id2label", "names", "class_names", "classnames", "classes", "categories", "labels")


@dataclass(frozen=True)
class Names:
    """What a file of class names says.

    Attributes:
        lines: names in label order, where the file has no ids.
        by_id: name by class id, where it has; else empty.
        notes: how the file was read, where there was a choice.
    """

    lines: tuple[str, ...] = ()
    by_id: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plain(heading: str) -> str:
    """A heading in small letters, without blanks, quotes and underscores."""
    return re.sub(r"[\s_\-'\"]", "", heading.lower())


def roles_of(heading: Sequence[str]) -> tuple[int, int] | None:
    """The columns of ids and of names."""

    def first(words: Sequence[str], other: int | None = None) -> int | None:
        return next((heading.index(word) for word in words if word in heading and heading.index(word) != other), None)

    name = first(NAME_COLUMNS)
    ids = first(ID_COLUMNS)
    if name is None:
        name = first(EITHER, ids)
    if ids is None:
        ids = first(EITHER, name)
    if len(heading) == 2 and (ids is None) != (name is None):
        ids, name = (1 - name, name) if name is not None else (ids, 1 - (ids or 0))
    return None if ids is None or name is None else (ids, name)


def are_ids(cells: Sequence[str]) -> bool:
    """Whether all are numbers or WordNet ids."""
    return bool(cells) and all(re.fullmatch(r"\d+|n\d{8}", cell.strip(), re.ASCII) for cell in cells)


def is_index(cells: Sequence[str]) -> bool:
    """Whether all are numbers and none repeats, as one number for each class."""
    numbers = [cell.strip() for cell in cells]
    return all(re.fullmatch(r"\d+", cell, re.ASCII) for cell in numbers) and len(set(numbers)) == len(numbers)


def document(content: Any, origin: str) -> Names:
    """Names from the values of JSON, TOML or Python."""
    notes: tuple[str, ...] = ()
    if isinstance(content, dict):
        inner = {key: value for key, value in content.items() if isinstance(value, dict | list)}
        wrapper = next((key for key in _WRAPPERS if key in inner), None)
        if len(content) == 1 and inner:
            content = next(iter(inner.values()))  # a TOML file needs a table or key around its entries
        elif wrapper is not None:
            content = inner[wrapper]
            notes = (f"Class names were read from {wrapper!r} in {origin}.",)
    for reading in (_of_texts, _of_pairs, _of_objects, _to_numbers):
        found = reading(content, origin)
        if found is not None:
            return Names(found.lines, found.by_id, notes + found.notes)
    raise UserError(f"{origin} must hold a list of names or a mapping from class id to name, all as text.")


def _of_texts(content: Any, origin: str) -> Names | None:
    values = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    if not isinstance(content, dict):
        return Names(tuple(name.strip() for name in values))
    if is_index(values) and not are_ids([str(key) for key in content]):
        return None
    return Names(by_id=mapping_of([(str(key), name) for key, name in content.items()], origin))


def _of_pairs(content: Any, origin: str) -> Names | None:
    """`{"0": ["n01440764", "tench"], …}`, as Keras publishes ImageNet's classes."""
    if not isinstance(content, dict) or not content:
        return None
    values = list(content.values())
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in values):
        return None
    pairs = [(str(key), pair[1]) for key, pair in content.items()]
    return Names(by_id=mapping_of([*pairs, *((pair[0], pair[1]) for pair in values)], origin))


def _of_objects(content: Any, origin: str) -> Names | None:
    """`[{"id": 1, "name": "cat"}, …]`, as annotations have their categories; also by id."""
    items = content
    if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
        items = [{"id": key, **value} for key, value in content.items()]
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return None
    headings = list(items[0])
    roles = roles_of([plain(str(heading)) for heading in headings])
    if roles is None:
        return None
    label, name = (headings[role] for role in roles)
    if not all(_is_text(item.get(name)) and isinstance(item.get(label), str | int) for item in items):
        return None
    return Names(by_id=mapping_of([(str(item[label]), item[name]) for item in items], origin))


def _to_numbers(content: Any, origin: str) -> Names | None:
    """`{"cat": 0, "dog": 1}`, as torchvision's class_to_idx."""
    if not isinstance(content, dict) or not content or are_ids([str(key) for key in content]):
        return None
    values = list(content.values())
    if any(isinstance(value, bool) for value in values) or not is_index([str(value) for value in values]):
        return None
    pairs = sorted(((int(value), str(key)) for key, value in content.items()))
    note = f"{origin} was read as the number of each class: {pairs[0][0]} is {pairs[0][1]!r}."
    return Names(by_id=mapping_of([(str(number), name) for number, name in pairs], origin), notes=(note,))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def mapping_of(pairs: Sequence[tuple[str, str]], origin: str) -> dict[str, str]:
    """Name by id; refuses an id that is there twice."""
    mapping: dict[str, str] = {}
    for label, name in pairs:
        if label.strip() in mapping:
            raise UserError(f"{origin} names class {label.strip()!r} twice; keep one line of it.")
        mapping[label.strip()] = name.strip()
    return mapping
