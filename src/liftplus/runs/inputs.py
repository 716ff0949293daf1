"""Pictures to be classified, as users name them: files, folders, patterns, archives and lists become rows."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from liftplus.data import archives, documents, shards
from liftplus.data.dataset import Store
from liftplus.data.images import IMAGE_SUFFIXES
from liftplus.data.stores import ByteStore, FileStore, FolderStore, is_tar, open_store
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

STDIN = "-"
_FORMS = "Give image files, folders, glob patterns, .zip or .tar archives, or a .txt list of paths"
_LISTS = (".txt", ".lst", ".list")
_TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".xlsx")
_PACKED = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")

Item = tuple[ByteStore, str]
"""Where a picture is read from, and its key there."""
_HERE = FolderStore("")


class RowStore(ByteStore):
    """Pictures of several stores, one after the other; keys are the numbers of the rows, so that one may come twice."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def read(self, key: str) -> bytes:
        """The bytes of the picture in this row."""
        store, inner = self.items[int(key)]
        return store.read(inner)

    def where(self, key: str) -> str:
        """The file of this row."""
        store, inner = self.items[int(key)]
        return store.where(inner)


@dataclass(frozen=True)
class Inputs:
    """Pictures in the order given; one that was given twice is there twice.

    Attributes:
        store: where they are read from.
        keys: the store's key of each.
        names: the file of each; none for pictures in memory.
        notes: what was left out or guessed, one sentence each.
        missing: what lists name and is not there, one sentence each.
    """

    store: Store
    keys: Sequence[str]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def complete(self) -> Inputs:
        """The rows themselves; where a list names files that are not there, that is refused."""
        if self.missing:
            others = len(self.missing) - 1
            more = f" {counted(others, 'more line is', 'more lines are')} like that." if others else ""
            raise UserError(f"{self.missing[0]}{more} Mend the list, or leave such lines out.")
        return self


def read(inputs: Iterable[str], stdin: Callable[[], bytes] | None = None) -> Inputs:
    """The pictures that paths name, in the order given.

    Args:
        inputs: files; folders, searched through; glob patterns; archives; lists of paths, one a line.
        stdin: what "-" reads such a list from; None where "-" means nothing.

    Raises:
        UserError: one of them names no picture.
    """
    found = _Found([], [], [])
    for given in inputs:
        before = len(found.items)
        if given == STDIN and stdin is not None:
            found.add_list(stdin(), "stdin", [""])
        elif _is_junk(given) and os.path.isfile(given):  # a shell's pattern names it too
            found.notes.append(f"{given} was left out; systems leave such files behind.")
            continue
        else:
            found.add(given)
        if len(found.items) == before:
            raise UserError(f"{given!r} names no image. {_FORMS}.")
    if not found.items:
        raise UserError(f"What was given names no image. {_FORMS}.")
    return _rows(found.items, found.notes, found.missing)


def each(paths: Sequence[str]) -> Inputs:
    """One row for each path, which must be a file.

    Raises:
        UserError: a path is a folder or not there.
    """
    for number, path in enumerate(paths):
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "does not exist"
            raise UserError(f"Path {number}, {path!r}, {what}. Give the path of one image file for each row.")
    return _rows([(_HERE, path) for path in paths], (), ())


def _rows(items: Sequence[Item], notes: Sequence[str], missing: Sequence[str]) -> Inputs:
    store = RowStore(items)
    names = tuple(inner.where(key) for inner, key in items)
    return Inputs(store, list(map(str, range(len(items)))), names, tuple(notes), tuple(missing))


@dataclass(frozen=True)
class _Found:
    """What is gathered on the way."""

    items: list[Item]
    notes: list[str]
    missing: list[str]

    def add(self, given: str) -> None:
        """What one path or pattern names."""
        path = str(documents.place(given)) if given.startswith("~") and not os.path.exists(given) else given
        if os.path.exists(path):
            self.add_path(path)
        else:
            self.add_pattern(path)

    def add_path(self, path: str) -> None:
        """A file, folder, archive or list that exists."""
        suffix = Path(path).suffix.lower()
        if os.path.isdir(path):
            self.add_folder(path)
        elif suffix == ".zip" or is_tar(Path(path)):
            self.add_members(open_store(path), path)
        elif suffix in _LISTS or (suffix not in IMAGE_SUFFIXES and _lists_files(path)):
            self.add_list(documents.content(Path(path), "list"), path, [os.path.dirname(path), ""])
        elif suffix in _TABLES:
            raise UserError(
                f"{path!r} is a table, and tables are read by training and by `liftplus eval RUN --data`. To predict, "
                "give a .txt file of paths, one a line."
            )
        elif suffix in _PACKED:
            raise UserError(f"{path!r} is an archive of a kind that is not read. Unpack it, or give a .zip or .tar.")
        else:
            self.items.append((_HERE, path))

    def add_folder(self, path: str) -> None:
        """All pictures below a folder, or those of a prepared copy."""
        if shards.is_prepared(Path(path)):
            table, store = shards.read(Path(path))
            self.items.extend((store, key) for rows in table.rows.values() for key, _ in rows)
        else:
            self.add_members(FolderStore(path), path)

    def add_members(self, store: FileStore, path: str) -> None:
        """All pictures of a folder or archive, in the order of their names."""
        members = store.members()
        others = [name for name in members.files if not _ends_like_a_picture(name)]
        self.items.extend((store, name) for name in members.files if _ends_like_a_picture(name))
        self.notes.extend(members.notes)
        self._left_out(others, path)

    def add_pattern(self, pattern: str) -> None:
        """What a glob pattern matches; of files only the pictures, where there are any."""
        matches = sorted(set(glob.iglob(pattern, recursive=True)))
        files = [name for name in matches if os.path.isfile(name) and not _is_junk(name)]
        pictures = [name for name in files if _ends_like_a_picture(name)]
        if pictures:
            self.items.extend((_HERE, name) for name in pictures)
            self._left_out([name for name in files if not _ends_like_a_picture(name)], pattern)
            return
        for name in files or _outermost([name for name in matches if os.path.isdir(name)]):
            self.add_path(name)

    def add_list(self, data: bytes, origin: str, roots: Sequence[str]) -> None:
        """The files that a list names, one a line; relative paths start in the first folder that has most of them."""
        lines = [(number, line) for number, line in enumerate(_lines(data), 1) if line.strip()]
        if not lines:
            raise UserError(f"{origin} is empty. Write paths of images into it, one a line.")
        places = {os.path.realpath(root): root for root in reversed(roots)}
        first, *others = [[_file(root, line) for _, line in lines] for root in reversed(places.values())]
        files = max([first, *others], key=lambda found: len(found) - found.count(None))
        if not any(files):
            raise UserError(
                f"No line of {origin} names a file, the first is {lines[0][1].strip()[:200]!r}. Write paths that start "
                "beside the list or in the current folder, or leave it out if it is no list."
            )
        if any(there not in (None, here) for other in others for there, here in zip(other, first, strict=True)):
            where = f"the folder of {origin}" if files is first else "the current folder"
            self.notes.append(f"Paths in {origin} are taken from {where}.")
        for (number, line), file in zip(lines, files, strict=True):
            if file is None:
                self.missing.append(f"{origin}, line {number} names {line.strip()!r}, which is no file.")
            self.items.append((_HERE, line.strip() if file is None else file))

    def _left_out(self, names: Sequence[str], origin: str) -> None:
        if names:
            kinds = Counter(Path(name).suffix.lower() or "no ending" for name in names).most_common(4)
            told = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
            count, does, was = len(names), agreeing(len(names), "does", "do"), agreeing(len(names), "was", "were")
            self.notes.append(
                f"{counted(count, 'file')} in {origin} {does} not end like an image and {was} left out: {told}."
            )


def _ends_like_a_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_junk(path: str) -> bool:
    """Whether systems leave files of that name behind; hidden ones are matched only by patterns that ask for them."""
    name = os.path.basename(path)
    return archives.is_litter(name) and not name.startswith(".")


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    """The folders of sorted paths that lie in none of the others."""
    last = ""
    for path in paths:
        if not last or not path.startswith(os.path.join(last, "")):
            last = path
            yield path


def _lines(data: bytes) -> list[str]:
    """The lines of a list: between zero bytes where there are any, as `find -print0` writes them."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell writes into files
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    parts = data.split(b"\0") if b"\0" in data else re.split(rb"\r\n|\r|\n", data)
    return [os.fsdecode(part) for part in parts]


def _file(root: str, line: str) -> str | None:
    """The file that a line names, as it is written or as lists are often written."""
    bare = line.strip().strip("\"'")
    unlabelled = re.sub(r"\s+\d+$", "", bare)
    for form in (line, bare, bare.replace("\\", "/"), unlabelled, unlabelled.lstrip("/")):
        path = os.path.join(root, form)
        if form and os.path.isfile(path):
            return path
    return None


def _lists_files(path: str) -> bool:
    """Whether the first line of a file names another file."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    first = next((line for line in _lines(start) if line.strip()), "")
    return any(_file(root, first) is not None for root in (os.path.dirname(path), ""))
