"""Keep facts about pictures on disk for later runs, in the file `facts/facts.sqlite` in the cache folder.

Each row holds its picture's mark and a checksum, so a damaged file never leads to wrong facts. Facts about unreadable
pictures are not kept: they are read again, and the error names the file as the user gave it this time. The file may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Self

from PIL import Image

from liftplus.data.dataset import Store
from liftplus.data.file_facts import DIGEST, Facts
from liftplus.data.identity import UNKNOWN, Marks, origin
from liftplus.data.images import formats
from liftplus.data.stores import ByteStore
from liftplus.machine.paths import cache_folder

LIMIT = 1_000_000_000
"""Bytes that the file may have, about 8 million pictures; the half that was kept first goes where it is full."""
_BATCH, _SECONDS = 8192, 10.0  # rows that are written at once, and how long fewer of them wait
_PATIENCE = 20.0  # seconds to wait for another process that writes
_TABLE = "CREATE TABLE IF NOT EXISTS facts (place BLOB PRIMARY KEY, kept INTEGER, row BLOB) WITHOUT ROWID"
_HALVE = (
    "DELETE FROM facts WHERE kept <= "
    "(SELECT kept FROM facts ORDER BY kept LIMIT 1 OFFSET (SELECT count(*) / 2 FROM facts))"
)
_SIZES = ("page_count", "freelist_count", "page_size")
_ROW = struct.Struct(f"<16s{DIGEST}sqq?B?d")  # mark, digest, width, height, and what `_packed` says; the mode follows
_SPOILED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: it has other columns


class Slip(NamedTuple):
    """Where the facts of a picture are kept, and what they must be marked by; both 16 bytes."""

    place: bytes
    mark: bytes


@dataclass
class KeptFacts:
    """Facts of earlier runs and of this one. Used as a context manager, which writes the rest at its end.

    Attributes:
        path: the file; None: nothing is kept and nothing read.
        found: pictures whose facts were there.
        notes: why facts could not be kept, one sentence.
    """

    path: Path | None = None
    found: int = 0
    notes: list[str] = field(default_factory=list)
    _rows: dict[bytes, bytes] = field(default_factory=dict)
    _checked: bool = False
    _written: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, wanted: bool) -> Self:
        """The user's, or none."""
        return cls(cache_folder() / "facts" / "facts.sqlite" if wanted else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._write()

    def add(self, slip: Slip, facts: Facts) -> None:
        """Keep the facts of a picture that could be read."""
        if self.path is None:
            return
        self._rows[slip.place] = _packed(slip.mark, facts)
        if len(self._rows) >= _BATCH or time.monotonic() - self._written > _SECONDS:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, {}
        if self.path is None or not rows:
            return
        try:
            try:
                _insert(self.path, rows, check=not self._checked)
            except Exception as error:
                if not _is_spoiled(self.path, error):
                    raise
                self.path.unlink()
                _insert(self.path, rows, check=False)
            self._checked = True
        except Exception as error:  # as in `look_up`
            reason = getattr(error, "strerror", None) or str(error)
            self.notes.append(f"The findings about the pictures could not be kept in {self.path} ({reason}).")
            self.path = None
        self._written = time.monotonic()


def slips(store: Store, keys: Sequence[str], depths: Sequence[str]) -> list[Slip | None]:
    """Where facts of these pictures are kept, before they are read; None where it cannot be told what they are.

    Args:
        depths: how each is looked at; other facts are kept of each depth.
    """
    if not isinstance(store, ByteStore):
        return [None] * len(keys)
    marks, judge, folder, group = Marks(), _judge(), None, b""
    found: list[Slip | None] = []
    for key, depth in zip(keys, depths, strict=True):
        try:
            where = origin(store, key)
            mark = marks.of(where)
        except UNKNOWN:
            found.append(None)
            continue
        path = mark.partition("\0")[0]
        own, name = os.path.split(f"{path}\0{key}" if where.part else path)
        if own != folder:  # what lies in one folder is looked up together, so it stands together
            folder, group = own, _digest(own.encode(errors="surrogateescape"), 8)
        place = group + _digest(f"{depth}\0{name}".encode(errors="surrogateescape"), 8)
        found.append(Slip(place, _digest(judge + f"{depth}\0{mark}".encode(errors="surrogateescape"), 16)))
    return found


def look_up(path: Path, wanted: Sequence[Slip | None]) -> list[Facts | None]:
    """The facts that are kept under these slips; a file that is missing, damaged or in use has none."""
    places = [slip.place for slip in wanted if slip is not None]
    rows: dict[bytes, bytes] = {}
    try:
        if places and path.is_file():
            # Not mode=ro, with which what a killed process left half written could not be undone.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_PATIENCE)) as kept:
                marks = ",".join("?" * len(places))
                rows = dict(kept.execute(f"SELECT place, row FROM facts WHERE place IN ({marks})", places))
    except Exception:  # a damaged file makes SQLite's module raise nearly anything
        rows = {}
    return [None if slip is None else _unpacked(slip.mark, rows.get(slip.place)) for slip in wanted]


def _is_spoiled(path: Path, error: Exception) -> bool:
    """Whether an error comes from what is in the file; a damaged header may say that it is not to be written to."""
    if isinstance(error, OSError):
        return False
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in _SPOILED or (code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK))


def _insert(path: Path, rows: dict[bytes, bytes], check: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    now = int(time.time())
    values = [(place, now, rows[place]) for place in sorted(rows)]
    with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as kept:
        kept.execute("PRAGMA synchronous=OFF")  # rows that a power failure spoils are found out
        kept.execute("BEGIN IMMEDIATE")
        kept.execute(_TABLE)
        pages, free, size = (kept.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
        if (pages - free) * size > LIMIT:
            kept.execute(_HALVE)
        kept.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", values)
        if check and kept.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("the file is damaged")
        kept.execute("COMMIT")


def _packed(mark: bytes, facts: Facts) -> bytes:
    flags = facts.dark | facts.pale << 1 | facts.below << 2 | facts.missing << 3
    white = facts.white
    numbers = (*facts.size, facts.digest is not None, flags, white is not None, white or 0.0)
    row = _ROW.pack(mark, facts.digest or b"", *numbers) + facts.mode.encode()
    return row + zlib.crc32(row).to_bytes(4, "little")


def _unpacked(mark: bytes, row: object) -> Facts | None:
    """The facts in a whole row with this mark, else None."""
    if not isinstance(row, bytes) or not row.startswith(mark) or len(row) < _ROW.size + 4:
        return None
    if zlib.crc32(row[:-4]).to_bytes(4, "little") != row[-4:]:
        return None
    _, digest, width, height, digested, flags, fractions, white = _ROW.unpack_from(row)
    known, mode = digest if digested else None, row[_ROW.size : -4].decode()
    dark, pale, below, missing = bool(flags & 1), bool(flags & 2), bool(flags & 4), bool(flags & 8)
    return Facts(known, "", mode, (width, height), dark, pale, white if fractions else None, below, missing)


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def _judge() -> bytes:
    """What facts follow from beside the pictures: our code, libraries, known formats, the limit of pixels, the user."""
    # Another user may not be allowed to read the same files.
    return _judged_by(Image.MAX_IMAGE_PIXELS, getattr(os, "geteuid", int)())


@cache
def _judged_by(pixels: int | None, user: int) -> bytes:
    code = b"".join((files("liftplus.data") / name).read_bytes() for name in _CODE)
    about = repr((user, pixels, formats(), [version(name) for name in ("pillow", "simplejpeg", "numpy")]))
    return _digest(code + about.encode(), 16)


_CODE = ("file_facts.py", "images.py", "pictures.py", "looking.py", "kept_facts.py")
