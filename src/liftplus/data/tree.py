"""Class folders, with or without split folders above them, in a folder, zip or tar alike."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from liftplus.data import class_names, names_file
from liftplus.data.dataset import SPLIT_OF, Table, listing, sorted_ids
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.stores import FileStore
from liftplus.errors import UserError

NAMES_FILE = "classnames.txt"
"""File at the root that gives the label order and the names, one class a line."""


@dataclass(frozen=True)
class Layout:
    """How a list of paths reads.

    Attributes:
        prefix: wrapper folders that were skipped, "" or ending in a slash.
        rows: (path, class folder) pairs of each split.
        folders: class folders in label order, those without images included.
        notes: what was left out.
    """

    prefix: str
    rows: dict[str, list[tuple[str, str]]]
    folders: tuple[str, ...]
    notes: tuple[str, ...]


def read(store: FileStore) -> Table:
    """The table of a folder or archive of class folders."""
    members = store.members()
    images = [name for name in members.files if _suffix(name) in IMAGE_SUFFIXES]
    others = [name for name in members.files if _suffix(name) not in IMAGE_SUFFIXES]
    if not images:
        raise UserError(_no_images(store.path, others))
    found = layout(images, members.empty_folders, store.path)
    notes = members.notes + found.notes + _ignored(others, found.prefix)
    folders, names = found.folders, {folder: class_names.words(folder) for folder in found.folders}
    for name in (found.prefix + NAMES_FILE, NAMES_FILE):
        if name in others:
            origin = store.where(name)
            named = class_names.match(_all_folders(found), names_file.parse(store.read(name), origin), origin)
            folders, names, notes = tuple(named.names), named.names, notes + named.notes
            notes += (f"{NAMES_FILE} in the data gives the label order and the names of {len(names)} classes.",)
            break
    return Table(found.rows, folders, names, notes)


def layout(images: Sequence[str], empty_folders: Sequence[str] = (), origin: str = "The data") -> Layout:
    """Find splits and classes in sorted relative image paths.

    Args:
        images: relative paths with forward slashes.
        empty_folders: folders without any file; at class level they are classes without images.
        origin: what an error calls the source.
    """
    prefix = _wrapper([*images, *(f"{folder}/" for folder in empty_folders)])
    paths = [name.removeprefix(prefix).split("/") for name in images]
    empty = [name.removeprefix(prefix).split("/") for name in empty_folders if name.startswith(prefix)]
    if _has_split_folders(paths, origin):
        rows, stray = _split_rows(images, paths)
        classes = {parts[1] for parts in empty if len(parts) == 2 and SPLIT_OF.get(parts[0].lower()) == "train"}
        classes |= {label for _, label in rows.get("train", [])}
    else:
        rows = {"train": [(name, parts[0]) for name, parts in zip(images, paths, strict=True) if len(parts) > 1]}
        stray = [name for name, parts in zip(images, paths, strict=True) if len(parts) == 1]
        classes = {parts[0] for parts in empty if len(parts) == 1} | {label for _, label in rows["train"]}
    notes: tuple[str, ...] = ()
    if stray:
        notes = (f"{len(stray):,} images outside any class folder were left out: {listing(stray, 3)}.",)
    return Layout(prefix, rows, sorted_ids(classes), notes)


def _wrapper(names: Iterable[str]) -> str:
    """The folders that hold everything and are neither a split nor a class."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(path) > depth + 2 for path in parts) and len({path[depth] for path in parts}) == 1:
        if parts[0][depth].lower() in SPLIT_OF:
            break
        depth += 1
    return "".join(f"{name}/" for name in parts[0][:depth])


def _has_split_folders(paths: Sequence[Sequence[str]], origin: str) -> bool:
    """Whether the top folders are splits; a class may be called "train", so what lies below counts too."""
    flat = {parts[0] for parts in paths if len(parts) == 2}
    nested = {parts[0] for parts in paths if len(parts) > 2}
    split_like = {name for name in flat | nested if name.lower() in SPLIT_OF}
    if split_like and split_like == flat | nested and not nested:
        raise UserError(
            f"{origin} has images directly in {listing(sorted(split_like))}, without class folders; use one folder "
            "a class (train/cat/1.jpg), or a .csv of path, label and split."
        )
    splits = {name for name in nested if name.lower() in SPLIT_OF}
    return bool(splits) and (len(splits) > 1 or not flat - splits)


def _split_rows(
    images: Sequence[str], paths: Sequence[Sequence[str]]
) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    rows: dict[str, list[tuple[str, str]]] = {}
    stray = []
    for name, parts in zip(images, paths, strict=True):
        split = SPLIT_OF.get(parts[0].lower())
        if split is None or len(parts) < 3:
            stray.append(name)
        else:
            rows.setdefault(split, []).append((name, parts[1]))
    return rows, stray


def _all_folders(found: Layout) -> tuple[str, ...]:
    labels = {label for rows in found.rows.values() for _, label in rows}
    return sorted_ids(labels | set(found.folders))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _ignored(others: Sequence[str], prefix: str) -> tuple[str, ...]:
    # Files beside the class folders (licence, metadata) are expected; below them they may be lost pictures.
    inside = [name for name in others if name.startswith(prefix) and "/" in name.removeprefix(prefix)]
    if not inside:
        return ()
    kinds = Counter(_suffix(name) or "no ending" for name in inside)
    return (f"{len(inside):,} files whose names do not end like an image were left out: {_kinds(kinds)}.",)


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))


def _no_images(origin: str, others: Sequence[str]) -> str:
    allowed = ", ".join(sorted(IMAGE_SUFFIXES))
    if not others:
        return f"{origin} is empty; put one folder of images a class into it."
    kinds = _kinds(Counter(_suffix(name) or "no ending" for name in others))
    return f"{origin} holds no images ({kinds} found); image names end in {allowed}."
