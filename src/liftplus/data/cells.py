"""Tables as they stand in their files: headings, and rows of text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftplus.data import documents
from liftplus.errors import UserError
from liftplus.words import counted


@dataclass(frozen=True)
class Cells:
    """A table as it stands in its file.

    Attributes:
        header: the headings of the columns.
        rows: line number and cells of each row, as text; missing values are empty.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_csv(path: Path) -> Cells:
    """The table in a CSV file; the separator is a comma, semicolon, tab or bar.

    Raises:
        UserError: it is empty or damaged, or a row has another number of fields than the header.
    """
    text = documents.text(path, "table")
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    if not first.strip():
        raise UserError(f"{path} is empty; write a header with path and label, then one row an image.")
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is damaged, perhaps by a stray quote: {error}.") from error
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {number} has {counted(len(row), 'field')}, but the header {len(header)}; put values "
                f"that hold a {delimiter!r} in double quotes."
            )
    return Cells(header, rows)


def as_text(value: Any) -> str:
    """A cell as text; missing values are empty, and lists and objects stay recognisable as no label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return str(value)
