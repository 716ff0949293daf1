"""The pictures to predict: turns files, folders, glob patterns, archives and lists into rows."""

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
"""A picture's store, and its key in that store."""
_HERE = FolderStore("")


class RowStore(ByteStore):
    """Pictures of several stores in one. A picture's key is its row number, so a picture may come twice."""

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
    """Pictures in the order given. A picture that was given twice is in here twice.

    Attributes:
        store: reads the pictures.
        keys: each picture's key in the store.
        names: each picture's file; empty for pictures in memory.
        notes: what was left out or guessed, one sentence each.
        missing: lines of lists that name no existing file, one sentence each.
    """

    store: Store
    keys: Sequence[str]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def complete(self) -> Inputs:
        """These inputs, if every file that a list names exists.

        Raises:
            UserError: a list names a file that does not exist.
        """
        if self.missing:
            others = len(self.missing) - 1
            more = f" {counted(others, 'more line has', 'more lines have')} the same fault." if others else ""
            raise UserError(f"{self.missing[0]}{more} Correct the list, or delete such lines.")
        return self


def read(inputs: Iterable[str], stdin: Callable[[], bytes] | None = None) -> Inputs:
    """The pictures that paths name, in the order given.

    Args:
        inputs: files; folders, searched recursively; glob patterns; archives; lists with one path per line.
        stdin: gives the bytes of a list for the input "-"; None if "-" is an ordinary path.

    Raises:
        UserError: one of them names no picture.
    """
    found = _Found([], [], [])
    for given in inputs:
        before = len(found.items)
        if given == STDIN and stdin is not None:
            found.add_list(stdin(), "stdin", [""])
        elif _is_junk(given) and os.path.isfile(given):  # the shell expands patterns to such files too
            found.notes.append(f"{given} was left out: the operating system makes such files.")
            continue
        else:
            found.add(given)
        if len(found.items) == before:
            raise UserError(f"{given!r} names no image. {_FORMS}.")
    if not found.items:
        raise UserError(f"The inputs name no image. {_FORMS}.")
    return _rows(found.items, found.notes, found.missing)


def each(paths: Sequence[str]) -> Inputs:
    """One row for each path. Each must be a file.

    Raises:
        UserError: a path is a folder or does not exist.
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
    """Collects rows, notes and missing files."""

    items: list[Item]
    notes: list[str]
    missing: list[str]

    def add(self, given: str) -> None:
        """Add the pictures of one path or pattern."""
        path = str(documents.place(given)) if given.startswith("~") and not os.path.exists(given) else given
        if os.path.exists(path):
            self.add_path(path)
        else:
            self.add_pattern(path)

    def add_path(self, path: str) -> None:
        """Add the pictures of an existing file, folder, archive or list."""
        suffix = Path(path).suffix.lower()
        if os.path.isdir(path):
            self.add_folder(path)
        elif suffix == ".zip" or is_tar(Path(path)):
            self.add_members(open_store(path), path)
        elif suffix in _LISTS or (suffix not in IMAGE_SUFFIXES and _lists_files(path)):
            self.add_list(documents.content(Path(path), "list"), path, [os.path.dirname(path), ""])
        elif suffix in _TABLES:
            raise UserError(
                f"{path!r} is a table. Only training and `liftplus eval RUN --data` read tables. To predict, give a "
                ".txt file with one path per line."
            )
        elif suffix in _PACKED:
            raise UserError(f"{path!r} is an archive that liftplus cannot read. Unpack it, or give a .zip or .tar.")
        else:
            self.items.append((_HERE, path))

    def add_folder(self, path: str) -> None:
        """Add all pictures below a folder, or those of a prepared copy."""
        if shards.is_prepared(Path(path)):
            table, store = shards.read(Path(path))
            self.items.extend((store, key) for rows in table.rows.values() for key, _ in rows)
        else:
            self.add_members(FolderStore(path), path)

    def add_members(self, store: FileStore, path: str) -> None:
        """Add all pictures of a folder or archive, in the order of their names."""
        members = store.members()
        others = [name for name in members.files if not _ends_like_a_picture(name)]
        self.items.extend((store, name) for name in members.files if _ends_like_a_picture(name))
        self.notes.extend(members.notes)
        self._left_out(others, path)

    def add_pattern(self, pattern: str) -> None:
        """Add what a glob pattern matches. If it matches any picture files, all other matches are left out."""
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
        """Add the files of a list, one per line.

        Relative paths are taken from whichever of `roots` has most of the files; the first one wins a tie.
        """
        lines = [(number, line) for number, line in enumerate(_lines(data), 1) if line.strip()]
        if not lines:
            raise UserError(f"{origin} is empty. Write image paths into it, one per line.")
        places = {os.path.realpath(root): root for root in reversed(roots)}
        first, *others = [[_file(root, line) for _, line in lines] for root in reversed(places.values())]
        files = max([first, *others], key=lambda found: len(found) - found.count(None))
        if not any(files):
            raise UserError(
                f"No line of {origin} names a file. The first line is {lines[0][1].strip()[:200]!r}. Write paths "
                "relative to the list or to the current folder, or leave it out if it is no list."
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
    """Whether an operating system makes such files. Hidden ones do not count; only explicit patterns match them."""
    name = os.path.basename(path)
    return archives.is_litter(name) and not name.startswith(".")


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    """The folders that lie inside no other folder of the list; the paths must be sorted."""
    last = ""
    for path in paths:
        if not last or not path.startswith(os.path.join(last, "")):
            last = path
            yield path


def _lines(data: bytes) -> list[str]:
    """The lines of a list. If it has zero bytes, these separate its entries, as in the output of `find -print0`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # PowerShell redirects output as UTF-16
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    parts = data.split(b"\0") if b"\0" in data else re.split(rb"\r\n|\r|\n", data)
    return [os.fsdecode(part) for part in parts]


def _file(root: str, line: str) -> str | None:
    """The file that a line names: as written, or without quotes, backslashes, a trailing label or a leading slash."""
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
