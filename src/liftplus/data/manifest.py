"""Tables of path, label and perhaps split: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from liftplus.data import documents
from liftplus.data.class_names import words
from liftplus.data.dataset import SPLIT_OF, Table
from liftplus.data.lists import normal
from liftplus.errors import UserError

_COLUMNS = {
    "path": "path file filename file_name filepath file_path image image_path img",
    "label": "label class target category class_id label_id category_id y",
    "split": "split set subset partition",
    "name": "class_name label_name category_name name",
}


def read(path: Path, default_split: str = "train") -> Table:
    """The table of a manifest; without a split column every row belongs to `default_split`."""
    header, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    columns = _find_columns(header, path)
    if not rows:
        raise UserError(f"{path} has no rows; write one row of path and label an image.")
    splits: dict[str, list[tuple[str, str]]] = {}
    names: dict[str, str] = {}
    for number, row in rows:
        key, label = (
            _cell(row, columns["path"], path, number, "path"),
            _cell(row, columns["label"], path, number, "label"),
        )
        split = _split(row[columns["split"]], path, number) if "split" in columns else default_split
        splits.setdefault(split, []).append((normal(key), label))
        if "name" in columns:
            name = _cell(row, columns["name"], path, number, "class name")
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{path}, line {number} calls class {label!r} {name!r}, but an earlier line {names[label]!r}."
                )
    return _table(splits, names, path)


def _table(splits: dict[str, list[tuple[str, str]]], names: dict[str, str], path: Path) -> Table:
    ids = {label for rows in splits.values() for _, label in rows}
    if all(re.fullmatch(r"[+-]?\d{1,18}(\.0+)?", label, re.ASCII) for label in ids):
        # Tables that passed through floating point write 3.0 for 3.
        whole = {label: str(int(label.partition(".")[0])) for label in ids}
        negative = sorted(label for label in ids if int(label.partition(".")[0]) < 0)
        if negative:
            raise UserError(f"{path} has the label {negative[0]}; labels are words or whole numbers from 0 up.")
        splits = {split: [(key, whole[label]) for key, label in rows] for split, rows in splits.items()}
        names = _merged(names, whole, path)
    elif not names:
        names = {label: words(label) for label in ids}
    return Table(splits, None, names)


def _merged(names: dict[str, str], whole: dict[str, str], path: Path) -> dict[str, str]:
    merged: dict[str, str] = {}
    for label, name in names.items():
        if merged.setdefault(whole[label], name) != name:
            raise UserError(
                f"{path} calls class {whole[label]!r} {name!r} and {merged[whole[label]]!r}; keep one name."
            )
    return merged


def _find_columns(header: Sequence[str], path: Path) -> dict[str, int]:
    known = [name.strip().lower() for name in header]
    columns: dict[str, int] = {}
    for meaning, synonyms in _COLUMNS.items():
        place = next((known.index(word) for word in synonyms.split() if word in known), None)
        if place is not None:
            columns[meaning] = place
    if "label" not in columns and "name" in columns:
        columns["label"] = columns.pop("name")
    for meaning in ("path", "label"):
        if meaning not in columns:
            raise UserError(
                f"{path} has the columns {', '.join(map(repr, header))}, but none for the {meaning}; name one of them "
                f"{meaning!r} (also allowed: {', '.join(_COLUMNS[meaning].split()[1:])})."
            )
    return columns


def _cell(row: Sequence[str], column: int, path: Path, number: int, meaning: str) -> str:
    value = row[column].strip() if column < len(row) else ""
    if not value:
        raise UserError(f"{path}, line {number} has no {meaning}; every row needs one.")
    return value


def _split(value: str, path: Path, number: int) -> str:
    split = SPLIT_OF.get(value.strip().lower())
    if split is None:
        raise UserError(f"{path}, line {number} has the split {value!r}; write train, val or test.")
    return split


def _csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = documents.text(path, "table")
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    if not first.strip():
        raise UserError(f"{path} is empty; write a header with path and label, then one row an image.")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is damaged, perhaps by a stray quote: {error}.") from error
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {number} has {len(row)} fields, but the header {len(header)}; put values that hold "
                f"a {delimiter!r} in double quotes."
            )
    return header, rows


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow; install it, or save the table as .csv.") from error
    try:
        # Not read_table(), which would add columns for folders called "label=3".
        with parquet.ParquetFile(path) as file:
            table: Any = file.read()
        header = [str(name) for name in table.column_names]
        wanted = set(_find_columns(header, path).values())
        # Other columns may hold the pictures themselves, so they are not turned into text.
        columns = [col.to_pylist() if i in wanted else [""] * table.num_rows for i, col in enumerate(table.columns)]
    except UserError:
        raise
    except Exception as error:  # pyarrow's own errors derive from many of Python's
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be read as Parquet: {reason}.") from error
    rows = [["" if value is None else str(value) for value in row] for row in zip(*columns, strict=True)]
    return header, list(enumerate(rows, 1))
