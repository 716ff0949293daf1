"""Parquet tables of paths and labels, or with the pictures inside, as Hugging Face publishes them."""

from __future__ import annotations

import json
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from liftplus.data import archives, hierarchy, manifest
from liftplus.data.cells import Cells, as_text
from liftplus.data.dataset import SPLIT_OF, Table, listing
from liftplus.data.identity import Origin, Stamp, stamp
from liftplus.data.images import UnreadableImage
from liftplus.data.manifest import COLUMNS, headings
from liftplus.data.stores import ByteStore
from liftplus.errors import UserError

Files = Mapping[str, Sequence[Path]]
"""The tables of each split."""

_SHARD = re.compile(r"(?P<start>.*?)-?(?P<number>\d{4,6})-of-(?P<total>\d{4,6})(?P<end>.*)\.parquet", re.IGNORECASE)


class ParquetStore(ByteStore):
    """Pictures from Parquet tables, copied once to a temporary file, since a table is read by whole row groups only.

    Attributes:
        files: each table by the start of its keys, and as it was when it was copied.
        index: place and size of each picture in the temporary file; keys are file name and row.
    """

    def __init__(self, files: Sequence[tuple[str, Path, str]]) -> None:
        self.files: dict[str, tuple[str, Stamp]] = {}
        self.index: dict[str, tuple[int, int]] = {}
        with tempfile.NamedTemporaryFile(prefix="liftplus-", suffix=".pictures", delete=False) as plain:
            self.plain = plain.name
            remove = weakref.finalize(self, archives.remove_temporary, plain.name, os.getpid())
            try:
                for start, path, column in files:
                    self._copy(start, path, column, plain)
            except BaseException:
                remove()
                raise

    def _copy(self, start: str, path: Path, column: str, plain: IO[bytes]) -> None:
        self.files[start] = (os.fspath(path), stamp(os.fspath(path)))
        with _opened(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    row += 1
                    if not data:
                        raise UserError(f"{path}, line {row} has no picture in column {column!r}; leave the row out.")
                    self.index[f"{start}/{row}"] = (plain.tell(), len(data))
                    plain.write(data)

    def where(self, key: str) -> str:
        """The table and the row."""
        return key

    def read(self, key: str) -> bytes:
        """The bytes of one picture."""
        if key not in self.index:
            raise UnreadableImage(f"{key} cannot be read: the tables have no such picture.")
        return archives.part_of(self.plain, *self.index[key], key)

    def size(self, key: str) -> int:
        """Of the picture, in bytes."""
        return self.index[key][1]

    def origin(self, key: str) -> Origin:
        """The table and the row."""
        start, _, row = key.rpartition("/")
        path, opened = self.files[start]
        return Origin(path, row, opened)


def siblings(path: Path) -> Files:
    """The tables that belong to a named one: its other shards and, for a training table, the other splits."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return {"train": [path]}
    beside = [other for other in sorted(path.parent.glob("*.parquet")) if _SHARD.fullmatch(other.name)]
    own = _split_of(path)
    start = _without_split(match["start"])
    files: dict[str, list[Path]] = {}
    for other in beside:
        found = _SHARD.fullmatch(other.name)
        if found and _without_split(found["start"]) == start:
            files.setdefault(_split_of(other) or "train", []).append(other)
    chosen = _in_order(files) if own in ("train", None) else {"train": files[own]}
    _refuse_incomplete(chosen)
    return chosen


def in_folder(folder: Path, files: Sequence[str]) -> Files:
    """The tables among the files of a folder; empty where there are none."""
    found = [folder / name for name in files if name.lower().endswith(".parquet")]
    places = {_base(path, folder) for path in found}
    if len(places) > 1:
        raise UserError(
            f"{folder} holds Parquet tables of several data sets ({listing(sorted(places))}); give the folder of one."
        )
    tables: dict[str, list[Path]] = {}
    for path in found:
        tables.setdefault(_split_of(path, folder) or "train", []).append(path)
    _refuse_incomplete(tables)
    return _in_order(tables)


def _in_order(files: Files) -> Files:
    return {split: files[split] for split in ("train", "val", "test") if split in files}


def _base(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts[:-1]
    return "/".join(parts[:-1] if parts and parts[-1].lower() in SPLIT_OF else parts) or "."


def _split_of(path: Path, folder: Path | None = None) -> str | None:
    """The split that a table's name or its folder says."""
    parts = re.split(r"[-_.]", path.stem.lower())
    if folder is not None and path.parent != folder:
        parts.append(path.parent.name.lower())
    return next((SPLIT_OF[part] for part in parts if part in SPLIT_OF), None)


def _without_split(start: str) -> str:
    return "-".join(part for part in re.split(r"[-_.]", start.lower()) if part not in SPLIT_OF)


def _refuse_incomplete(files: Files) -> None:
    for paths in files.values():
        shards = [match for path in paths if (match := _SHARD.fullmatch(path.name))]
        for total in {int(match["total"]) for match in shards}:
            have = {int(match["number"]) for match in shards if int(match["total"]) == total}
            missing = sorted(set(range(total)) - have)
            if missing and max(have) < total:
                raise UserError(
                    f"{paths[0].parent} holds {len(have)} of {total} tables, {paths[0].name} and so on; number "
                    f"{missing[0]} is missing. Put all of them into one folder."
                )


@dataclass(frozen=True)
class _Part:
    """One table: its cells, the column of pictures if it has one, and the names of its classes if it declares them."""

    cells: Cells
    pictures: str | None
    names: dict[str, str] | None
    notes: tuple[str, ...] = ()

    def by_name(self, path: Path) -> _Part:
        """The same with names in place of the numbers that the table declares."""
        names, place = self.names or {}, manifest.find_columns(self.cells.header, path)["label"]
        rows = [
            (line, [*row[:place], names.get(row[place], row[place]), *row[place + 1 :]])
            for line, row in self.cells.rows
        ]
        return replace(self, cells=Cells(self.cells.header, rows), names=None)


def _numbered_apart(parts: Sequence[_Part]) -> bool:
    """Whether one number means different classes in different tables, and each table names all of its own apart.

    Hugging Face's `class_encode_column` numbers the classes of each split alone: a class that the test split lacks
    moves the numbers of all classes after it.
    """
    declared = [part.names for part in parts if part.names]
    if len(declared) < len(parts) or any(len({*names.values()}) < len(names) for names in declared):
        return False
    first: dict[str, str] = {}
    return any(first.setdefault(number, name) != name for names in declared for number, name in names.items())


def read(files: Files, found: bool = False) -> tuple[Table, ParquetStore | None]:
    """The table of all files, and the store of the pictures where they are in the tables.

    Args:
        files: by split.
        found: whether liftplus found the files itself; a note then lists them.
    """
    root = os.path.commonpath([path.parent for paths in files.values() for path in paths])
    parts: list[tuple[str, Path, _Part]] = []
    embedded: list[tuple[str, Path, str]] = []
    notes: tuple[str, ...] = ()
    used: dict[str, list[str]] = {}
    for split, paths in files.items():
        for path in paths:
            start = os.path.relpath(path, root).replace(os.sep, "/")
            part = _read(path, start)
            if split != "train" and _unlabelled(part.cells):
                notes += (f"{path.name} has no labels and was left out.",)
                continue
            used.setdefault(split, []).append(start)
            parts.append((split, path, part))
            notes += tuple(note for note in part.notes if note not in notes)
            if part.pictures is not None:
                embedded.append((start, path, part.pictures))
    if _numbered_apart([part for *_, part in parts]):
        parts = [(split, path, part.by_name(path)) for split, path, part in parts]
        notes += ("The tables number their classes differently, so classes are matched by their names.",)
    tables = [manifest.table(part.cells, path, split, part.names) for split, path, part in parts]
    if embedded and len(embedded) < len(tables):
        raise UserError(f"{root}: some tables hold pictures and some hold paths; give tables of one kind.")
    joined = combined(tables)
    if found and sum(map(len, used.values())) > 1:
        said = ", ".join(f"{split} from {listing(part, 2)}" for split, part in used.items())
        notes += (f"Splits were read as {said}.",)
    store = None
    if embedded:
        store = ParquetStore(embedded)
        notes += ("The pictures in the tables were copied to a temporary file; liftplus prepare makes a lasting copy.",)
    return replace(joined, notes=(*joined.notes, *notes)), store


def combined(tables: Sequence[Table]) -> Table:
    """Several tables of one data set as one."""
    rows: dict[str, list[tuple[str, str]]] = {}
    names: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    for table in tables:
        for label, name in table.names.items():
            if names.setdefault(label, name) != name:
                raise UserError(f"One table calls class {label!r} {names[label]!r}, another {name!r}; keep one name.")
        notes += tuple(note for note in table.notes if note not in notes)
        for split, pairs in table.rows.items():
            rows.setdefault(split, []).extend(pairs)
    declared = {label: None for table in tables for label in table.class_ids or ()}
    return Table(rows, tuple(declared) or None, names, notes, levels=hierarchy.joined([one.levels for one in tables]))


def _unlabelled(cells: Cells) -> bool:
    """Whether no row has a label, as in a competition's test split; Hugging Face writes -1 there."""
    try:
        column = manifest.find_columns(cells.header, Path("table"))["label"]
    except UserError:
        return False
    return all(row[column] in ("", "-1") for _, row in cells.rows)


def _read(path: Path, start: str) -> _Part:
    with _opened(path) as file:
        schema = file.schema_arrow
        header = [str(name) for name in schema.names]
        pictures = _pictures(schema, file)
        classes = _class_labels(schema)
        heading, notes = _renamed(header, pictures, classes, path)
        # Reports missing columns before anything is read.
        manifest.find_columns(["path" if name == pictures else name for name in heading], path, header)
        wanted = [k for k, name in enumerate(heading) if manifest.plain(name) in _MEANT and header[k] != pictures]
        if pictures is None and not any(manifest.plain(heading[k]) in headings("label") for k in wanted):
            wanted = list(range(len(header)))
        columns = [_column(file, schema, header[k]) for k in wanted]
        count = file.metadata.num_rows
    if pictures is not None:
        columns = [[f"{start}/{row}" for row in range(1, count + 1)], *columns]
    if any(len(column) != len(columns[0]) for column in columns):
        raise UserError(f"{path} is damaged: its columns have different numbers of rows. Copy or write it again.")
    rows = [list(row) for row in zip(*columns, strict=True)]
    names = [heading[k] for k in wanted]
    cells = Cells(["path", *names] if pictures is not None else names, list(enumerate(rows, 1)))
    label = next((header[k] for k in wanted if heading[k] == names[_label_place(names, path)]), None)
    return _Part(cells, pictures, classes.get(label or ""), notes)


_MEANT = set(headings(*COLUMNS))


def _label_place(names: Sequence[str], path: Path) -> int:
    return manifest.find_columns(["path", *names], path)["label"] - 1


def _renamed(
    header: list[str], pictures: str | None, classes: Mapping[str, Any], path: Path
) -> tuple[list[str], tuple[str, ...]]:
    """The headings; if none is a label, the only column of declared classes becomes it."""
    paths = headings("path")
    heading = ["" if pictures and name != pictures and manifest.plain(name) in paths else name for name in header]
    if {manifest.plain(name) for name in header} & set(headings("label")) or not classes:
        return heading, ()
    if len(classes) > 1:
        raise UserError(
            f"{path} has several columns of classes ({listing(list(classes))}); call the one to learn 'label'."
        )
    own = next(iter(classes))
    note = f"The class is in column {own!r} of {path.name}."
    return ["label" if name == own else name for name in heading], (note,)


def _pictures(schema: Any, file: Any) -> str | None:
    """The column that holds pictures: bytes, or bytes and path in one."""
    types = import_module("pyarrow").types
    found = []
    for field in schema:
        inner = {field.type.field(k).name for k in range(field.type.num_fields)} if types.is_struct(field.type) else ()
        plain = types.is_binary(field.type) or types.is_large_binary(field.type)
        if "bytes" in inner or (plain and manifest.plain(field.name) in headings("path")):
            found.append(field.name)
    order = headings("path")
    found.sort(key=lambda name: order.index(manifest.plain(name)) if manifest.plain(name) in order else len(order))
    if not found:
        return None
    first = next(file.iter_batches(batch_size=1, columns=[found[0]]), None)
    value = first.column(0).to_pylist()[0] if first is not None and len(first) else None
    held = value.get("bytes") if isinstance(value, dict) else value
    return str(found[0]) if held or first is None else None


def _class_labels(schema: Any) -> dict[str, dict[str, str]]:
    """Names by label of each column that Hugging Face's library wrote as ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            str(column): {str(number): str(name) for number, name in enumerate(about["names"])}
            for column, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel" and about.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _column(file: Any, schema: Any, name: str) -> list[str]:
    """A column as text; for a column of bytes and path, the path."""
    if "bytes" in {schema.field(name).type.field(k).name for k in range(schema.field(name).type.num_fields)}:
        return [as_text((row or {}).get("path")) for row in _values(file, f"{name}.path", name)]
    return [as_text(value) for value in _values(file, name, name)]


def _values(file: Any, column: str, name: str) -> list[Any]:
    found: list[Any] = file.read(columns=[column]).column(name).to_pylist()
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow; install it, or save the table as .csv.") from error
    try:
        # Not read_table(), which would add columns for folders called "label=3".
        with parquet.ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # pyarrow's own errors derive from many of Python's
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be read as Parquet: {reason[:200]}.") from error
