"""Tables of pictures and their classes, from named files and from folders; pictures lie beside or inside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from liftplus.data import manifest, parquet
from liftplus.data.dataset import Store, Table, listing
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.stores import FileStore, FolderStore

ENDINGS = (*manifest.ENDINGS, ".parquet")


def is_one(path: Path) -> bool:
    """Whether a named file is a table, by its ending or, for .json, by what it holds."""
    ending = path.suffix.lower()
    return ending in ENDINGS or (ending == ".json" and manifest.has_records(path))


def read(paths: Mapping[str, Path], alone: bool = True) -> tuple[Table, Store | None]:
    """The table of one file a split, and the store of its pictures if the file holds them.

    Args:
        paths: by split.
        alone: whether only this file was named; the data set's other Parquet tables are then looked for.
    """
    if all(path.suffix.lower() == ".parquet" for path in paths.values()):
        if alone:
            return parquet.read(parquet.siblings(paths["train"]), found=True)
        return parquet.read({split: [path] for split, path in paths.items()})
    return parquet.combined([_one(path, split) for split, path in paths.items()]), None


def _one(path: Path, split: str) -> Table:
    if path.suffix.lower() == ".parquet":
        return parquet.read({split: [path]})[0]
    return manifest.read(path, split)


def described(folder: Path) -> Table | None:
    """The table of a folder whose metadata.csv or metadata.jsonl gives the classes; None for other folders."""
    files = manifest.metadata(folder)
    if not files:
        return None
    parts = []
    for split, path in files.items():
        start = "" if path.parent == folder else f"{path.parent.name}/"
        table = manifest.read(path, split)
        rows = {name: [(start + key, label) for key, label in pairs] for name, pairs in table.rows.items()}
        parts.append(replace(table, rows=rows))
    names = listing([str(path.relative_to(folder)) for path in files.values()])
    joined = parquet.combined(parts)
    return replace(joined, notes=(*joined.notes, f"The classes are those in {names}, whatever the folders are called."))


def without_pictures(store: FileStore) -> tuple[Table, Store] | None:
    """The Parquet tables of a folder that has no pictures as files; None where there are any, or no tables."""
    if not isinstance(store, FolderStore):
        return None
    files = store.members().files
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files):
        return None
    found = parquet.in_folder(Path(store.path), files)
    if not found:
        return None
    table, inside = parquet.read(found, found=True)
    return table, inside or store
