"""Class folders, with or without split folders above them, in a folder, zip or tar alike."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from liftplus.data import class_names, names_file, split_folders, split_names
from liftplus.data.dataset import Table, listing, sorted_ids
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.label_files import rows_beside
from liftplus.data.members import Members, parts_of
from liftplus.data.stores import FileStore
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

NAMES_FILE = "classnames.txt"
"""File at the root that gives the label order and the names, one class a line."""

_Parts = list[str]


@dataclass(frozen=True)
class Layout:
    """The splits and classes that a list of paths means.

    Attributes:
        prefix: wrapper folders that were skipped, "" or ending in a slash.
        rows: (path, class folder) pairs of each split.
        folders: class folders in label order, those without images included.
        left_out: images that have no class.
        notes: what was guessed, merged and left out.
    """

    prefix: str
    rows: dict[str, list[tuple[str, str]]]
    folders: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read(store: FileStore, worded: bool = False) -> Table:
    """The table of a folder or archive of class folders, or of pictures with a .cls file beside each.

    Args:
        store: holds the pictures.
        worded: whether the user gives the class names, so that folder names need not be words.
    """
    members = store.members()
    images = [name for name in members.files if _suffix(name) in IMAGE_SUFFIXES]
    others = [name for name in members.files if _suffix(name) not in IMAGE_SUFFIXES]
    if not images:
        raise UserError(_no_images(store, others))
    beside = rows_beside(store, images, others)
    found = _by_files(beside) if beside is not None else layout(images, members.empty_folders, store.path)
    if not any(found.rows.values()):
        raise UserError(_no_folders(store, found, others))
    notes = members.notes + found.notes + (() if beside else _ignored(others, found.prefix))
    folders, names = found.folders, {folder: class_names.words(folder) for folder in found.folders}
    at = {"/".join(parts_of(name)): name for name in others}
    for name in (at.get(found.prefix + NAMES_FILE), at.get(NAMES_FILE)):
        if name is not None:
            origin = store.where(name)
            named = class_names.match(_all_folders(found), names_file.parse(store.read(name), origin), origin)
            folders, names, notes = tuple(named.names), named.names, notes + named.notes
            worded = True
            notes += (
                f"{NAMES_FILE} in the data gives the label order and the names of "
                f"{counted(len(names), 'class', 'classes')}.",
            )
            break
    return Table(found.rows, folders, names, notes + _undeclared(members, folders, worded))


def _by_files(rows: dict[str, list[tuple[str, str]]]) -> Layout:
    labels = {label for pairs in rows.values() for _, label in pairs}
    return Layout("", rows, sorted_ids(labels), (), ("Labels were read from the .cls files beside the pictures.",))


def layout(images: Sequence[str], empty_folders: Sequence[str] = (), origin: str = "The data") -> Layout:
    """Find splits and classes in sorted relative image paths.

    Args:
        images: relative paths with forward slashes; backslashes in file names are taken for folders too.
        empty_folders: folders without any file; at class level they are classes without images.
        origin: what an error calls the source.

    Raises:
        UserError: the folders can be read in two ways.
    """
    placed = {name: parts_of(name) for name in images}
    notes: list[str] = []
    example = next((name for name, parts in placed.items() if len(parts) > name.count("/") + 1), None)
    if example is not None:
        notes.append(f"Backslashes in names, such as {example}, were read as slashes between folders.")
    bare = [folder.split("/") for folder in empty_folders]
    prefix = _wrapper([*placed.values(), *([*parts, ""] for parts in bare)])
    depth = len(prefix)
    if depth:
        notes.append(f"All folders lie in {'/'.join(prefix)!r}, so those in it were read.")
    placed = {name: parts[depth:] if parts[:depth] == prefix else parts[-1:] for name, parts in placed.items()}
    bare = [parts[depth:] for parts in bare if parts[:depth] == prefix and len(parts) > depth]
    placed, bare = _unwrapped(placed, bare, notes)
    tops = split_folders.folders(placed.values())
    reading = split_folders.read(tops, max(map(len, placed.values())), origin)
    notes += reading.notes
    found = _rows(placed, bare, reading, notes)
    return Layout("".join(f"{part}/" for part in prefix), *found, tuple(notes))


def _wrapper(paths: Iterable[_Parts]) -> _Parts:
    """The folders that hold everything and are neither a split nor a class."""
    deep = [parts for parts in paths if len(parts) > 1]  # a note lists images at the root as left out
    depth = 0
    while deep and all(len(parts) > depth + 2 for parts in deep) and len({parts[depth] for parts in deep}) == 1:
        name = split_names.read(deep[0][depth])
        if name is not None and not name.rest:
            break
        depth += 1
    return deep[0][:depth] if deep else []


def _unwrapped(
    placed: Mapping[str, _Parts], bare: Sequence[_Parts], notes: list[str]
) -> tuple[dict[str, _Parts], list[_Parts]]:
    """The paths without folders that hold all of a split folder: training_set/training_set/cats, train/images/cats."""
    done, empty = dict(placed), list(bare)
    classes: set[str] = set()
    named = [top for top in split_folders.folders(placed.values()) if split_names.read(top) is not None]
    for top in sorted(named, key=lambda top: not _is_train(top)):
        while (inner := _only_inside(top, [parts for parts in done.values() if parts[0] == top], classes)) is not None:
            notes.append(f"All of {top!r} lies in {f'{top}/{inner}'!r}, so the folders in that were read.")
            outer = [top, inner]
            done = {name: [top, *parts[2:]] if parts[:2] == outer else parts for name, parts in done.items()}
            empty = [[top, *parts[2:]] if parts[:2] == outer else parts for parts in empty]
        if _is_train(top):
            classes |= {parts[1] for parts in done.values() if parts[0] == top and len(parts) > 2}
    return done, [parts for parts in empty if parts]


def _only_inside(top: str, paths: Sequence[_Parts], classes: set[str]) -> str | None:
    """The one folder in a split folder that is no class."""
    deep = [parts for parts in paths if len(parts) > 2]  # a note lists images without a folder as left out
    inside = {parts[1] for parts in deep}
    if len(inside) != 1:
        return None
    inner = inside.pop()
    same = inner.casefold() == top.casefold() or (
        (name := split_names.read(inner)) is not None and name.split == _split(top) and name.plain
    )
    deeper = all(len(parts) > 3 for parts in deep)
    unlabelled = bool(classes) and split_names.says_nothing(inner)  # Tiny ImageNet's val/images/1.jpg
    return inner if inner not in classes and (same or deeper or unlabelled) else None


def _rows(
    placed: Mapping[str, _Parts], bare: Sequence[_Parts], reading: split_folders.Reading, notes: list[str]
) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...], tuple[str, ...]]:
    """Rows of each split, classes in label order, and the images without a class."""
    rows: dict[str, list[tuple[str, str]]] = {}
    loose: list[str] = []
    apart: list[str] = []
    below: dict[str, set[str]] = {}
    spelled: dict[str, set[str]] = {}
    level = 1 if reading.splits else 0
    for name, parts in placed.items():
        folders = parts[:-1]
        split = reading.splits.get(parts[0]) if reading.splits else "train"
        if split is None or len(folders) <= level:
            (apart if split is None and folders else loose).append(name)
            continue
        if reading.swapped:
            split = _split(folders.pop(1)) or "train"
        label = normalize("NFC", folders[level])
        spelled.setdefault(label, set()).add(folders[level])
        below.setdefault(label, set()).update(folders[level + 1 : level + 2])
        rows.setdefault(split, []).append((name, label))
    classes = {label for _, label in rows.get("train", [])} | _bare_classes(bare, reading, notes)
    notes += [*_left_out(loose, apart, placed), *_forms(spelled), *_below(below)]
    return rows, sorted_ids(classes), (*loose, *apart)


def _bare_classes(bare: Sequence[_Parts], reading: split_folders.Reading, notes: list[str]) -> set[str]:
    """Empty folders at class level."""
    if reading.splits:
        return {normalize("NFC", parts[1]) for parts in bare if len(parts) == 2 and _is_train(parts[0])}
    tops = [parts[0] for parts in bare if len(parts) == 1]
    splits = [top for top in tops if (name := split_names.read(top)) is not None and not name.rest]
    if splits:
        notes.append(f"Empty folders called like splits were left out: {listing(splits)}.")
    return {normalize("NFC", top) for top in tops if top not in splits}


def _left_out(loose: Sequence[str], apart: Sequence[str], placed: Mapping[str, _Parts]) -> list[str]:
    """Notes on images that lie in no class folder, and on those in folders beside the splits."""
    notes = []
    if loose:
        tops = sorted({placed[name][0] for name in loose if len(placed[name]) > 1})
        where = f" (in {agreeing(len(tops), 'the folder')} {listing(tops, 3)})" if tops else ""
        were = f"outside any class folder {agreeing(len(loose), 'was', 'were')}"
        notes.append(f"{counted(len(loose), 'image')} {were} left out: {listing(loose, 3)}{where}.")
    if apart:
        tops = sorted({placed[name][0] for name in apart})
        of = f"{listing(tops, 3)}, which {agreeing(len(tops), 'is no split', 'are no splits')}"
        was = agreeing(len(apart), "was", "were")
        notes.append(f"{counted(len(apart), 'image')} in {of}, {was} left out: {listing(apart, 3)}.")
    return notes


def _forms(spelled: Mapping[str, set[str]]) -> list[str]:
    twins = [label for label, forms in spelled.items() if len(forms) > 1]
    if not twins:
        return []
    return [f"Folders whose names differ by their Unicode form alone were read as one class each: {listing(twins)}."]


def _below(below: Mapping[str, set[str]]) -> list[str]:
    """A note on folders in class folders: if all class folders hold the same ones, those may be the classes."""
    tally = Counter(name for names in below.values() for name in names)
    if not tally:
        return []
    shared = [name for name, count in tally.items() if count > 1 and count * 2 > len(below)]
    if len(shared) > 1 and all(below.values()):
        return [
            f"Every class folder ({listing(sorted_ids(below), 3)}) holds the same sub-folders, "
            f"{listing(sorted_ids(shared), 3)}, and their pictures got the class above them. If the sub-folders "
            "are the classes, give a .csv of path and label."
        ]
    example = next(f"{label}/{min(names)}" for label, names in sorted(below.items()) if names)
    total = sum(map(len, below.values()))
    return [f"Sub-folders of class folders were read as parts of their classes ({total:,}, such as {example!r})."]


def _is_train(top: str) -> bool:
    return _split(top) == "train"


def _split(name: str) -> str | None:
    found = split_names.read(name)
    return found.split if found is not None else None


def _all_folders(found: Layout) -> tuple[str, ...]:
    labels = {label for rows in found.rows.values() for _, label in rows}
    return sorted_ids(labels | set(found.folders))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _ignored(others: Sequence[str], prefix: str) -> tuple[str, ...]:
    # Files beside the class folders (licence, metadata) are expected; inside them they may be lost pictures.
    paths = ["/".join(parts_of(name)) for name in others]
    inside = [name for name in paths if name.startswith(prefix) and "/" in name.removeprefix(prefix)]
    if not inside:
        return ()
    kinds = Counter(_suffix(name) or "no ending" for name in inside)
    what = counted(len(inside), "file whose name does", "files whose names do")
    return (f"{what} not end like an image {agreeing(len(inside), 'was', 'were')} left out: {_kinds(kinds)}.",)


def _undeclared(members: Members, folders: Sequence[str], worded: bool) -> tuple[str, ...]:
    odd = [folder for folder in folders if not folder.isascii()]
    if not members.undeclared or worded or not odd:
        return ()
    return (
        f"Class names such as {listing(odd, 2)} may be misread, as the archive does not say how its names are encoded; "
        "give the right words with data.class_names.",
    )


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(4))


def _no_images(store: FileStore, others: Sequence[str]) -> str:
    allowed = ", ".join(sorted(IMAGE_SUFFIXES))
    if not others:
        return f"{store.path} is empty; put one folder of images a class into it."
    kinds = _kinds(Counter(_suffix(name) or "no ending" for name in others))
    return f"{store.path} holds no images ({kinds} found); image names end in {allowed}.{_instead(store, others)}"


def _no_folders(store: FileStore, found: Layout, others: Sequence[str]) -> str:
    count = len(found.left_out)
    return (
        f"{store.path} has {counted(count, 'image')}, first {found.left_out[0]!r}, but no class folders: no folder "
        "says what they show. Use one folder a class (cat/1.jpg), a .csv of path and label, or a .cls file with the "
        f"label beside each picture.{_instead(store, others)}"
    )


def _instead(store: FileStore, others: Sequence[str]) -> str:
    """A hint at other files that the user may have meant."""
    if any(_suffix(name) == ".arrow" for name in others):
        return " Hugging Face's .arrow files are not read; load them with its library and save them with to_parquet."
    endings = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
    tables = sorted(
        (name for name in others if _suffix(name) in endings), key=lambda name: endings.index(_suffix(name))
    )
    packed = [name for name in others if _suffix(name) in (".zip", ".tar", ".tgz", ".gz")]
    if tables and os.path.isfile(store.where(tables[0])):
        return f" There are also tables; to read one of them, give it instead: {store.where(tables[0])}."
    if packed:
        return f" Archives in it, such as {packed[0]!r}, are not opened; unpack them, or give one of them instead."
    return ""
