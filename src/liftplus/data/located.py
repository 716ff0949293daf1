"""Where the pictures that a list or table names really are: paths are spelled otherwise on other systems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from liftplus.data.dataset import Table
from liftplus.data.stores import FileStore
from liftplus.errors import UserError


def located(table: Table, store: FileStore, origin: Path) -> Table:
    """The table with every path as the store spells it, and a note where that differs from what was listed.

    Args:
        table: rows of listed paths.
        store: holds the pictures.
        origin: the file that lists them.

    Raises:
        UserError: pictures do not exist in any spelling.
    """
    missing = store.missing(key for rows in table.rows.values() for key, _ in rows)
    if not missing:
        return table
    names = store.respelled(dict.fromkeys(missing))
    if absent := [key for key in missing if key not in names]:
        total = sum(map(len, table.rows.values()))
        raise UserError(
            f"{len(absent):,} of the {total:,} images that {origin.name} names do not exist, first "
            f"{store.where(absent[0])}; set data.root to the folder or archive that the paths start from."
        )
    rows = {split: [(names.get(key, key), label) for key, label in pairs] for split, pairs in table.rows.items()}
    return dataclasses.replace(table, rows=rows, notes=(*table.notes, _note(names, origin)))


def _note(names: Mapping[str, str], origin: Path) -> str:
    key, name = next(iter(names.items()))
    return f"{len(names):,} paths in {origin.name} were found under another spelling: {key!a} as {name!a}."
