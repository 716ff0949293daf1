"""Listed pictures whose names lack the file's ending, or differ from the file in case."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from liftplus.data.dataset import Table, listing
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.stores import FileStore, FolderStore
from liftplus.errors import UserError
from liftplus.words import agreeing, counted


def completed(table: Table, store: FileStore, missing: Sequence[str], origin: str) -> Table:
    """Complete the names of a table that exactly one picture fits; a note says so.

    Args:
        table: paths as a list or table gives them.
        store: where the pictures are.
        missing: the paths that name no file.
        origin: what a message calls the list.

    Raises:
        UserError: several pictures fit a name.
    """
    beside = _pictures(store, missing)
    found: dict[str, str] = {}
    for key in missing:
        fitting = [name for name in beside.get(_stem(key).casefold(), ()) if _fits(key, name)]
        if len(fitting) > 1:
            raise UserError(f"{origin} names {key!r}, and several files fit: {listing(fitting)}; write the ending too.")
        if fitting:
            found[key] = fitting[0]
    if not found:
        return table
    rows = {split: [(found.get(key, key), label) for key, label in pairs] for split, pairs in table.rows.items()}
    first = next(iter(found))
    note = (
        f"{counted(len(found), 'name')} in {origin} {agreeing(len(found), 'has', 'have')} no ending, or another than "
        f"the file that was taken: {found[first]!r} for {first!r}."
    )
    return replace(table, rows=rows, notes=(*table.notes, note))


def _stem(key: str) -> str:
    stem, ending = posixpath.splitext(key)
    return stem if ending.lower() in IMAGE_SUFFIXES else key


def _fits(key: str, name: str) -> bool:
    """Whether a file fits a name: they differ only in case, or the name lacks the file's ending."""
    return key.casefold() == name.casefold() or (_stem(key) == key and _stem(name) == key)


def _pictures(store: FileStore, missing: Iterable[str]) -> dict[str, list[str]]:
    """Pictures near the missing ones, by their path without ending in small letters."""
    if isinstance(store, FolderStore):
        folders = {posixpath.dirname(key) for key in missing}
        names = [posixpath.join(folder, file) for folder in folders for file in _files(Path(store.path) / folder)]
    else:
        names = list(store.members().files)
    found: dict[str, list[str]] = {}
    for name in names:
        if posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            found.setdefault(_stem(name).casefold(), []).append(name)
    return found


def _files(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):  # reading the picture reports the reason
        return []


def near(store: FileStore, key: str) -> str | None:
    """A picture of the same name with another ending, for a message."""
    beside = _pictures(store, [key]).get(_stem(key).casefold(), [])
    return beside[0] if beside else None
