"""JSON objects that are tables: path to label, path to row, label to paths, columns, and splits of any of these."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any

from liftplus.data import documents
from liftplus.data.dataset import SPLIT_OF
from liftplus.data.documents import Pairs
from liftplus.data.images import IMAGE_SUFFIXES

_ANNOTATIONS = re.compile(r'"(images|annotations)"\s*:\s*\[')


def rows(
    text: str, origin: object, is_path: Callable[[str], bool], is_label: Callable[[str], bool]
) -> list[Mapping[str, Any]] | None:
    """The rows of a JSON object as records; None where it is no table, such as iNaturalist's annotations.

    A duplicate key gives two rows, so that two labels of one picture are noticed.

    Args:
        text: the JSON text.
        origin: what an error calls it.
        is_path: whether a heading is that of a column of paths.
        is_label: whether it is that of labels.
    """
    if _ANNOTATIONS.search(text):
        return None
    content = documents.json_pairs(text, origin)
    if isinstance(content, Pairs) and len(content) == 1 and _is_wrapped(*content[0]):
        content = content[0][1]
    if not isinstance(content, Pairs) or not content:
        return _rows(content, is_path, is_label) if content else None
    keys = [key.lower() for key, _ in content]
    if all(key in SPLIT_OF for key in keys) and not any(_is_cell(value) for _, value in content):
        parts = [(split, _rows(value, is_path, is_label)) for split, value in content]
        if any(part is None for _, part in parts):
            return None
        return [{"split": split, **row} for split, part in parts for row in part or ()]
    return _rows(content, is_path, is_label)


def _rows(
    content: Any, is_path: Callable[[str], bool], is_label: Callable[[str], bool]
) -> list[Mapping[str, Any]] | None:
    """The rows of one split."""
    if isinstance(content, list):
        if content and all(isinstance(row, list) and len(row) == 2 and _is_picture(row[0]) for row in content):
            return [{"path": path, "label": label} for path, label in content]
        return [dict(row) for row in content] if all(isinstance(row, Pairs) for row in content) else None
    if not isinstance(content, Pairs):
        return None
    table = dict(content)
    if {"columns", "data"} <= table.keys():  # as pandas writes with orient="split"
        heads, data = table["columns"], table["data"]
        return [dict(zip(heads, row, strict=True)) for row in data] if _is_grid(heads, data) else None
    if any(map(is_path, table)) and any(map(is_label, table)):
        return _columns(table)
    values = [value for _, value in content]
    if all(_is_cell(value) or (_is_picture(key) and isinstance(value, list)) for key, value in content):
        # A list of one label stands for that label; `manifest.table` refuses several.
        return [{"path": key, "label": value[0] if _is_single(value) else value} for key, value in content]
    if all(isinstance(value, Pairs) for value in values):
        return [_row(key, value, is_path) for key, value in content]
    if all(isinstance(value, list) and all(isinstance(path, str) for path in value) for value in values):
        return [{"path": path, "label": label} for label, value in content for path in value]
    return None


def _is_wrapped(key: str, value: Any) -> bool:
    """Whether the only value of an object is the table: {"labels": {"1.png": "cat"}}, {"data": [{…}, …]}."""
    if isinstance(value, Pairs):
        return not _is_picture(key) and any(_is_picture(name) for name, _ in value)
    return isinstance(value, list) and any(isinstance(row, list | Pairs) for row in value)


def _columns(table: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Rows from columns: lists of one length, or objects with the same keys, as pandas writes by default."""
    columns: dict[str, dict[Any, Any] | None] = {
        head: dict(value) if isinstance(value, Pairs) else dict(enumerate(value)) if isinstance(value, list) else None
        for head, value in table.items()
    }
    held = [column for column in columns.values() if column is not None]
    if len(held) < len(columns) or any(column.keys() != held[0].keys() for column in held):
        return None
    return [{head: column[key] for head, column in columns.items() if column is not None} for key in held[0]]


def _row(key: str, value: Pairs, is_path: Callable[[str], bool]) -> Mapping[str, Any]:
    """One row by its key, which is the path unless the row has its own and the key is a number or an id."""
    row = dict(value)
    return row if not _is_picture(key) and any(map(is_path, row)) else {"path": key, **row}


def _is_grid(heads: Any, data: Any) -> bool:
    """Whether these are headings, and rows with as many cells."""
    return (
        isinstance(heads, list)
        and isinstance(data, list)
        and all(isinstance(head, str) for head in heads)
        and all(isinstance(row, list) and len(row) == len(heads) for row in data)
    )


def _is_cell(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_single(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and posixpath.splitext(value)[1].lower() in IMAGE_SUFFIXES
