"""Find listed pictures whose paths are spelled differently in the store, as other systems write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from liftplus.data.dataset import Table
from liftplus.data.stores import FileStore
from liftplus.words import agreeing, counted


def respelled(table: Table, store: FileStore, missing: Sequence[str], origin: Path) -> Table:
    """Replace paths by the store's own spelling; a note says so.

    Slashes, a slash at the start, the Unicode form and the case of letters may differ. Paths that the store holds in no
    spelling, or in several, stay as they are.

    Args:
        table: rows of listed paths.
        store: holds the pictures.
        missing: those of its paths that the store does not hold.
        origin: the file that lists them.
    """
    names = store.respelled(dict.fromkeys(missing))
    if not names:
        return table
    key, name = next(iter(names.items()))
    note = (
        f"{counted(len(names), 'path')} in {origin.name} {agreeing(len(names), 'was', 'were')} found under another "
        f"spelling: {key!a} as {name!a}."
    )
    rows = {split: [(names.get(key, key), label) for key, label in pairs] for split, pairs in table.rows.items()}
    return dataclasses.replace(table, rows=rows, notes=(*table.notes, note))
