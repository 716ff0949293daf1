"""Rows of a table before they become splits: each picture once, each class in one spelling."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from liftplus.data import hierarchy, labels
from liftplus.data.dataset import Store, Table, listing
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

Rows = Mapping[str, Sequence[tuple[str, str]]]


def settled(table: Table, store: Store, name: str) -> Table:
    """The table with every picture once in a split and every class in one spelling, and notes on what was merged.

    Args:
        table: as a source gave it.
        store: what its keys are for; keys of one file count as one.
        name: what an error calls the source.

    Raises:
        UserError: a picture has two labels.
    """
    spelling, notes = labels.spellings(table.ids() | set(table.class_ids or ()))
    if spelling:
        table = _spelled(table, spelling, name)
    rows, merged = _once(table.rows, _identity(table.rows, store), name)
    return replace(table, rows=rows, notes=(*table.notes, *notes, *merged))


def _spelled(table: Table, spelling: Mapping[str, str], name: str) -> Table:
    def one(label: str) -> str:
        return spelling.get(label, label)

    declared = None if table.class_ids is None else tuple(dict.fromkeys(map(one, table.class_ids)))
    rows = {split: [(key, one(label)) for key, label in pairs] for split, pairs in table.rows.items()}
    names = {one(k): one(v) for k, v in table.names.items()}
    return replace(
        table, rows=rows, class_ids=declared, names=names, levels=hierarchy.spelled(table.levels, spelling, name)
    )


def _identity(rows: Rows, store: Store) -> Callable[[str], str]:
    """A function from a key to its file: a table may give one path both in full and from its folder."""
    if not isinstance(store, FolderStore):
        return str
    if not any("./" in key or "//" in key or os.path.isabs(key) for part in rows.values() for key, _ in part):
        return str
    root = os.path.abspath(store.path)
    return lambda key: os.path.normpath(os.path.join(root, key))


def _once(rows: Rows, same: Callable[[str], str], name: str) -> tuple[Rows, tuple[str, ...]]:
    label_of: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    several: dict[str, list[str]] = {}
    repeated: list[str] = []
    kept: dict[str, list[tuple[str, str]]] = {}
    for split, pairs in rows.items():
        seen: set[str] = set()
        kept[split] = []
        for key, label in pairs:
            picture = same(key)
            if label_of.setdefault(picture, label) != label:
                several.setdefault(key, [label_of[picture]]).append(label)
            elif picture in seen:
                repeated.append(key)
                continue
            elif picture in places or len(rows) > 1:
                places.setdefault(picture, []).append(split)
            seen.add(picture)
            kept[split].append((key, label))
    if several:
        raise _two_labels(several, len(label_of), name)
    shared = {picture: splits for picture, splits in places.items() if len(splits) > 1}
    if not repeated and not shared:
        return rows, ()
    return kept, (*_repeated(repeated), *_shared(shared))


def _two_labels(several: Mapping[str, Sequence[str]], count: int, name: str) -> UserError:
    key, found = next(iter(several.items()))
    boxes = " If the file has boxes, data.boxes=true takes each as a picture." if name.endswith(".json") else ""
    return UserError(
        f"{name} gives several labels to {len(several):,} of {counted(count, 'picture')}: first {key!r}, which has "
        f"{listing(list(dict.fromkeys(found)))}. A picture has one class here. Keep one label of each such picture, or "
        f"leave it out.{boxes}"
    )


def _repeated(keys: Sequence[str]) -> tuple[str, ...]:
    if not keys:
        return ()
    some = listing(list(dict.fromkeys(keys)), 3)
    what = counted(len(keys), "row that repeats a picture was", "rows that repeat a picture were")
    return (f"{what} left out, so that each picture counts once: {some}.",)


def _shared(pictures: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    tally = Counter(" and ".join(splits) for splits in pictures.values())
    return tuple(
        f"{counted(count, 'picture is', 'pictures are')} in {splits} at once, first "
        f"{next(key for key, where in pictures.items() if ' and '.join(where) == splits)!r}; a test on "
        f"{agreeing(count, 'it', 'them')} says little about unseen pictures."
        for splits, count in tally.items()
    )
