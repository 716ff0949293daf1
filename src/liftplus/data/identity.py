"""Tell whether pictures have changed without reading them: the key of what was computed from them."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

from liftplus.data.dataset import Store
from liftplus.errors import UserError

SETTLED = 2.0
"""Seconds that a file must be unchanged before it has an identity: some file systems store times no finer."""
UNKNOWN = (OSError, ValueError, IndexError, KeyError, zipfile.BadZipFile, UserError)
"""What `Marks.of` raises where it cannot be told whether a picture is still the same."""


class Stamp(NamedTuple):
    """A file's size in bytes, its mtime and ctime in nanoseconds, and its inode.

    A program can set back only the mtime. The inode tells files apart that were written within one tick of the clock.
    """

    size: int
    changed: int
    entry: int
    inode: int


class Origin(NamedTuple):
    """Where a picture's bytes come from.

    Attributes:
        path: the file that holds it; "" where none does.
        part: what tells it from others in that file.
        opened: that file when it was opened or unpacked, where it is not opened anew for each picture.
    """

    path: str
    part: str = ""
    opened: Stamp | None = None


def stamp(path: str) -> Stamp:
    """Of a file as it is now. Raises OSError."""
    about = os.stat(path)
    return Stamp(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


def origin(store: Store, key: str) -> Origin:
    """Where a store's picture comes from. Raises ValueError where the store does not say."""
    own = vars(type(store)).get("origin")
    if own is None:  # a subclass may read other pictures than the class whose method it inherits
        raise ValueError(f"{type(store).__name__} does not say where its pictures come from")
    found: Origin = own(store, key)
    return found


class Marks:
    """Texts that change when a picture does, for pictures that are read after this was made."""

    def __init__(self) -> None:
        self._began, self._path, self._about = time.time(), "", Stamp(0, 0, 0, 0)
        self._folder, self._absolute = "", os.path.abspath("")

    def of(self, where: Origin) -> str:
        """The mark of one picture: its file's absolute path, "\\0", and more.

        Raises one of `UNKNOWN` if the file is missing, changed just now or changed after it was opened.
        """
        if not where.path:
            return f"\0{where.part}\n"
        if where.path != self._path:  # many pictures may lie in one file
            self._path, self._about = where.path, stamp(where.path)
        about = self._about
        if where.opened not in (None, about):
            raise ValueError(f"{where.path} changed after it was opened")
        if self._began - max(about.changed, about.entry) / 1e9 < SETTLED:
            raise ValueError(f"{where.path} changed just now")
        folder, name = os.path.split(where.path)
        if folder != self._folder:
            self._folder, self._absolute = folder, os.path.abspath(folder)
        path = os.path.join(self._absolute, name)
        return f"{path}\0{about.size} {about.changed} {about.entry} {about.inode}\0{where.part}\n"


def identity(store: Store, keys: Sequence[str]) -> str | None:
    """A digest that changes when any of the pictures changes; None where that is uncertain.

    Each store's `origin` tells where they lie. Stores without one, and files that changed just now, have no identity.
    """
    digest, marks = hashlib.sha256(repr((type(store).__name__, _options(store))).encode()), Marks()
    try:
        for key in keys:
            digest.update(marks.of(origin(store, key)).encode(errors="surrogateescape"))
    except UNKNOWN:
        return None  # reading the picture reports the reason
    digest.update("\0".join(keys).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _options(store: Store) -> dict[str, object]:
    """A store's own settings, such as how it decodes."""
    plain = (str, int, float, bool, type(None))
    return {name: value for name, value in vars(store).items() if name[0] != "_" and isinstance(value, plain)}
