"""Tables of path, label and perhaps split: CSV, JSON lines, JSON lists and maps, and Parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liftplus.data import documents, hierarchy, json_maps, labels, split_names
from liftplus.data.cells import Cells, as_text, read_csv
from liftplus.data.class_names import words
from liftplus.data.dataset import SPLIT_OF, Table, listing
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.lists import normal
from liftplus.errors import UserError

COLUMNS = {
    "path": "path file filename file_name filepath file_path image image_path img image_id image_name img_path id_code",
    "label": "label class target category class_id label_id category_id y labels diagnosis",
    "split": "split set subset partition",
    "name": "class_name label_name category_name name",
    "parent": "parent parent_class superclass supercategory",
}
"""Headings that a column of each meaning may have; the first one present is used."""

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Text files that are tables by their name."""

_SPLITS = frozenset({"fold", "phase", "usage"})  # further headings of columns that may say a split


def read(path: Path, default_split: str = "train") -> Table:
    """The table in a text file; without a split column every row belongs to `default_split`."""
    return table(read_csv(path) if path.suffix.lower() in (".csv", ".tsv") else _records(path), path, default_split)


def has_records(path: Path) -> bool:
    """Whether a .json file holds a list of rows, one row a line or a map, and not annotations."""
    text = documents.text(path, "file").lstrip()
    return text.startswith("[") or _are_lines(text) or _mapped(text, path) is not None


def _are_lines(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return rest.lstrip().startswith("{") and first.rstrip().endswith("}")


def _mapped(text: str, path: Path) -> list[Mapping[str, Any]] | None:
    paths, classes = set(headings("path")), set(headings("label", "name"))
    return json_maps.rows(text, path, lambda name: plain(name) in paths, lambda name: plain(name) in classes)


def metadata(folder: Path) -> dict[str, Path]:
    """The files metadata.csv or metadata.jsonl with classes, in a folder or its split folders, by split."""
    places = {"train": folder}
    if not _metadata_in(folder):
        named = {SPLIT_OF[sub.name.lower()]: sub for sub in _folders(folder) if sub.name.lower() in SPLIT_OF}
        places = {split: named[split] for split in ("train", "val", "test") if split in named}
    found = {split: file for split, place in places.items() if (file := _metadata_in(place)) is not None}
    return found if "train" in found else {}


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:  # listing the pictures reports the reason
        return []


def _metadata_in(folder: Path) -> Path | None:
    for ending in (".csv", ".jsonl"):
        path = folder / f"metadata{ending}"
        if os.path.isfile(path):
            header = (read_csv(path) if ending == ".csv" else _records(path)).header
            known = {plain(cell) for cell in header}
            if plain("file_name") in known and known & {*headings("label", "name")}:
                return path
    return None


def table(cells: Cells, path: Path, default_split: str = "train", names: Mapping[str, str] | None = None) -> Table:
    """Paths, labels, splits and names out of the columns.

    Args:
        cells: what the file holds.
        path: what an error calls it.
        default_split: the split of all rows if there is no split column.
        names: by label, if the file declares its classes; each declared one is a class.

    Raises:
        UserError: a column, path or label is missing, or a class has two names.
    """
    if not cells.rows:
        raise UserError(f"{path} has no rows; write one row of path and label an image.")
    cells, notes = _with_label(cells, path)
    columns = find_columns(cells.header, path)
    splits: dict[str, list[tuple[str, str]]] = {}
    found: dict[str, str] = {}
    parents: list[tuple[str, str]] = []
    for number, row in cells.rows:
        key, label = (
            _cell(row, columns["path"], path, number, "path"),
            _cell(row, columns["label"], path, number, "label"),
        )
        if label[0] in "[{" and label[-1] in "]}":
            raise UserError(f"{path}, line {number} has the label {label[:40]}; a picture has one class here.")
        split = _split(row[columns["split"]], path, number) if "split" in columns else default_split
        splits.setdefault(split, []).append((normal(key), label))
        if "name" in columns:
            name = _cell(row, columns["name"], path, number, "class name")
            if found.setdefault(label, name) != name:
                raise _two_names(cells.header[columns["name"]], label, (found[label], name), path, number)
        if "parent" in columns:
            parents.append((label, row[columns["parent"]].strip()))
    notes += _choices(cells.header, columns, path)
    if "split" not in columns:
        splits, said = _by_folder(splits, default_split, path)
        notes += said
    levels, said = hierarchy.of_column(parents, cells.header[columns["parent"]] if parents else "", path.name)
    notes += said
    made = _classes(Table(splits, names=found, levels=levels), path)
    if names is not None:
        made = replace(made, class_ids=tuple(names), names={label: words(name) for label, name in names.items()})
    return replace(made, notes=notes + made.notes)


def _two_names(heading: str, label: str, names: tuple[str, str], path: Path, number: int) -> UserError:
    return UserError(
        f"{path}, line {number} calls class {label!r} {names[1]!r}, but an earlier line {names[0]!r}. The column "
        f"{heading!r} was taken for the names of classes; rename it if it holds something else."
    )


def _by_folder(
    splits: dict[str, list[tuple[str, str]]], default: str, path: Path
) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Splits by the first folder of the paths, where all of them start with train/, val/ or test/."""
    rows = splits.get(default, [])
    tops = {key.split("/", 1)[0] for key, _ in rows if "/" in key}
    places = {top: SPLIT_OF.get(top.lower()) for top in tops}
    wanted = default == "train" and len(places) > 1 and "train" in places.values() and None not in places.values()
    if not wanted or any("/" not in key for key, _ in rows):
        return splits, ()
    found: dict[str, list[tuple[str, str]]] = {}
    for key, label in rows:
        found.setdefault(SPLIT_OF[key.split("/", 1)[0].lower()], []).append((key, label))
    return found, (
        f"Splits were read from the folders that the paths in {path.name} start with: {listing(sorted(tops))}.",
    )


def _classes(table: Table, path: Path) -> Table:
    """The table with whole numbers as class ids where every label is one, and names of all classes."""
    ids, names = table.ids(), table.names
    numbers = [label for label in ids if re.fullmatch(r"[+-]?\d{1,18}(\.0+)?", label, re.ASCII)]
    if missing := labels.doubtful_text(ids):
        raise UserError(f"The label {missing!r} among numbers in {path} means a missing label; every row needs one.")
    doubtful = sorted(label for label in ids if label.lower() in labels.DOUBTFUL)
    notes = tuple(
        f"One class of {path.name} is called {label!r}, which often stands for a missing label." for label in doubtful
    )
    if len(numbers) < len(ids):
        return replace(table, names=names or {label: words(label) for label in ids}, notes=notes)
    # Tables that passed through floating point write 3.0 for 3.
    whole = {label: str(int(label.partition(".")[0])) for label in ids}
    negative = sorted(label for label in ids if int(label.partition(".")[0]) < 0)
    if negative:
        raise UserError(f"{path} has the label {negative[0]}; labels are words or whole numbers from 0 up.")
    spelled = {label.partition(".")[0] for label in ids}
    if len(spelled) > len(set(whole.values())):
        some = sorted(label for label in spelled if label != str(int(label)))
        notes += (f"Labels of equal value are one class: {some[0]!r} and {str(int(some[0]))!r}.",)
    rows = {split: [(key, whole[label]) for key, label in pairs] for split, pairs in table.rows.items()}
    levels = hierarchy.spelled(table.levels, whole, str(path))
    return replace(table, rows=rows, names=_merged(names, whole, path), notes=notes, levels=levels)


def _merged(names: Mapping[str, str], whole: dict[str, str], path: Path) -> dict[str, str]:
    merged: dict[str, str] = {}
    for label, name in names.items():
        if merged.setdefault(whole[label], name) != name:
            raise UserError(
                f"{path} calls class {whole[label]!r} {name!r} and {merged[whole[label]]!r}; keep one name."
            )
    return merged


def plain(heading: str) -> str:
    """A heading in small letters, without blanks, hyphens and underscores: ClassId is class_id."""
    return re.sub(r"[\s_-]+", "", heading.lower())


def headings(*meanings: str) -> list[str]:
    """The plain headings that a column of one of these meanings may have."""
    return [plain(word) for meaning in meanings for word in COLUMNS[meaning].split()]


def find_columns(header: Sequence[str], path: Path, shown: Sequence[str] = ()) -> dict[str, int]:
    """The column of each meaning; path and label must be there. An error lists `shown` where that is given."""
    known = [plain(name) for name in header]
    columns: dict[str, int] = {}
    for meaning in COLUMNS:
        place = next((known.index(word) for word in headings(meaning) if word in known), None)
        if place is not None:
            columns[meaning] = place
    if "label" not in columns and "name" in columns:
        columns["label"] = columns.pop("name")
    for meaning in ("path", "label"):
        if meaning not in columns:
            seems = any(os.path.splitext(cell.strip())[1].lower() in IMAGE_SUFFIXES for cell in header)
            hint = " The first line seems to be a row; write a line of headings above it." if seems else ""
            there = listing(shown or header, 12)
            raise UserError(
                f"{path} has the columns {there}, but none for the {meaning}; name one of them {meaning!r} (also "
                f"allowed: {', '.join(COLUMNS[meaning].split()[1:])}).{hint}"
            )
    return columns


def _choices(header: Sequence[str], columns: Mapping[str, int], path: Path) -> tuple[str, ...]:
    """A note for each meaning that several columns could have."""
    taken = set(columns.values())
    notes: tuple[str, ...] = ()
    if plain(header[columns["label"]]) in headings("name"):
        notes += (f"The class is in column {header[columns['label']]!r} of {path.name}.",)
    for meaning in ("path", "label", "split", "parent"):
        words_of = headings(meaning)
        others = [name for place, name in enumerate(header) if place not in taken and plain(name) in words_of]
        if others and meaning in columns:
            notes += (
                f"The {meaning} is in column {header[columns[meaning]]!r} of {path.name}, not in {listing(others)}.",
            )
    if "split" not in columns:
        read = {name: split_names.read(name) for name in header}
        alike = [k for k, v in read.items() if plain(k) in _SPLITS or (v is not None and v.rest in ((), ("is",)))]
        notes += tuple(
            f"The column {name!r} of {path.name} may hold splits but was not read. To use it, call it 'split' and "
            "write train, val or test in it."
            for name in alike
        )
    return notes


def _with_label(cells: Cells, path: Path) -> tuple[Cells, tuple[str, ...]]:
    """The table with a column of labels, where it has one column of 0 and 1 a class instead."""
    known = [plain(name) for name in cells.header]
    if set(known) & {*headings("label", "name")}:
        return cells, ()
    other = {*headings("path"), *headings("split"), ""}
    places = [k for k, name in enumerate(known) if name not in other]
    hot = [[k for k in places if _is_one(row[k])] for _, row in cells.rows]
    binary = all(re.fullmatch(r"[01](\.0+)?", row[k].strip()) for _, row in cells.rows for k in places)
    if len(places) < 2 or not binary:
        return cells, ()
    several = next((number for (number, _), ones in zip(cells.rows, hot, strict=True) if len(ones) != 1), None)
    if several is not None:
        raise UserError(
            f"{path} has a column of 0 and 1 for each class, but line {several} does not have exactly one 1. A picture "
            "has one class here; leave the other rows out."
        )
    rows = [
        (number, [*row, cells.header[ones[0]].strip()]) for (number, row), ones in zip(cells.rows, hot, strict=True)
    ]
    shown = listing([cells.header[k] for k in places], 3)
    note = f"The columns {shown} of {path.name} hold a single 1 in each row; its column is the class."
    return Cells([*cells.header, "label"], rows), (note,)


def _is_one(cell: str) -> bool:
    return re.fullmatch(r"1(\.0+)?", cell.strip()) is not None


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


def _records(path: Path) -> Cells:
    """Rows that are JSON objects: in one list, one a line, or in one object that maps."""
    text = documents.text(path, "table")
    records: list[tuple[int, Any]]
    if path.suffix.lower() == ".json" and not _are_lines(text.lstrip()) and (mapped := _mapped(text, path)) is not None:
        records = list(enumerate(mapped, 1))
    elif text.lstrip().startswith("["):
        content = documents.json_value(text, path)
        records = [(number, record) for number, record in enumerate(content, 1)]
    else:
        lines = [
            (number, line) for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1) if line.strip()
        ]
        records = [(number, documents.json_value(line, f"{path}, line {number}")) for number, line in lines]
    if not records:
        raise UserError(f"{path} is empty; write one object with path and label an image.")
    strange = next((number for number, record in records if not isinstance(record, Mapping)), None)
    if strange is not None:
        raise UserError(f"{path}, entry {strange} is no object; write one with path and label an image.")
    header = list(dict.fromkeys(key for _, record in records for key in record))
    return Cells(header, [(number, [as_text(record.get(key)) for key in header]) for number, record in records])
