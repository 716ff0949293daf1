"""Read archives from untrusted sources: detect damage, archive bombs and names that lead out of the folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tarfile import HeaderError, ReadError
from typing import IO, Any, Self

from liftplus.data.images import UnreadableImage

LARGEST = 1 << 30
"""Bytes a member may unpack to; a picture is never larger, an archive bomb is."""

_EXPANSION = 100
"""How many times its own size, plus 1 GiB, a compressed tar may unpack to: pictures hardly shrink, masks 50 times."""

_LONGEST_HEADER = 1 << 16
"""Largest extended header of a tar in bytes: names have at most 4,096, and tarfile's time grows with the square."""

_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)

_JUNK = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", "lost.dir"),  # of ext4 and of Android
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),  # network disks
        *("__pycache__",),
    }
)
_CHECKED_DISK = re.compile(r"found\.\d{3}")  # where Windows puts what it finds when it checks a disk


def is_litter(name: str) -> bool:
    """Whether the name of a file or folder is hidden, or one that operating systems leave behind."""
    folded = name.casefold()
    hidden = name.startswith(".") and name != "."
    return hidden or folded in _JUNK or _CHECKED_DISK.fullmatch(folded) is not None


def is_safe(name: str) -> bool:
    """False for an empty name, and for names that would lead out of the folder if they were extracted."""
    outside = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) is not None
    return name != "" and not outside and ".." not in re.split(r"[\\/]", name) and "\0" not in name


def opened_zip(path: str) -> zipfile.ZipFile:
    """Open a zip. Names without a declared encoding are read as UTF-8 if all are valid UTF-8 (macOS, Info-ZIP)."""
    archive = zipfile.ZipFile(path)
    names = [info.orig_filename for info in archive.infolist() if _is_undeclared(info)]
    if not names:
        return archive
    try:
        for name in names:
            name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return archive
    archive.close()
    return zipfile.ZipFile(path, metadata_encoding="utf-8")


def are_misread(archive: zipfile.ZipFile) -> bool:
    """Whether names may be misread because the archive does not declare their encoding."""
    return getattr(archive, "metadata_encoding", None) is None and any(map(_is_undeclared, archive.infolist()))


def _is_undeclared(info: zipfile.ZipInfo) -> bool:
    return not info.flag_bits & 0x800 and not info.orig_filename.isascii()


def unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> bytes:
    """The first bytes of a member, never unpacked far beyond the size it declares."""
    size = min(size, info.file_size)
    with archive.open(info) as file:
        if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return file.read(max(1, size))  # zipfile checks the checksum only when it reads a byte
        if size == info.file_size:
            # Other methods unpack all of their input at once, so they get little at a time.
            return b"".join(iter(partial(file.read, 4096), b""))
        return b"".join(islice(iter(partial(file.read, 4096), b""), -(-size // 4096)))


def part_of(path: str | Path, offset: int, size: int, name: str) -> bytes:
    """The bytes of the picture `name`, which are a part of a file."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise UnreadableImage(f"{name} cannot be read: {error.strerror}.") from error
    if len(data) < size:
        raise UnreadableImage(f"{name} cannot be read: its file ends too early.")
    return data


def tar_members(path: str) -> Iterator[tarfile.TarInfo | None]:
    """Yield the members of an uncompressed tar, and a final None if the archive lacks its end mark.

    tarfile silently ignores what follows a damaged header; here that raises `ReadError`.
    """
    with tarfile.open(path, "r:", tarinfo=_Header) as archive:
        for info in archive:
            if archive.offset <= info.offset:
                raise ReadError("a header leads backwards")
            yield info
    with open(path, "rb") as file:
        file.seek(archive.offset)
        if not file.read(tarfile.BLOCKSIZE):
            yield None


class _Header(tarfile.TarInfo):
    """A header that raises `ReadError` if it is damaged, where tarfile would stop without an error."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next member."""
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in ("EOFHeaderError", "EmptyHeaderError"):
                raise
            raise ReadError(f"a header is damaged ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header of one block."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > _LONGEST_HEADER):
            raise ReadError(f"a header declares {header.size} bytes")
        return header


def compression(path: str) -> Any:
    """The function that opens a compressed file (gzip, bz2 or xz); None for a plain one."""
    with open(path, "rb") as file:
        magic = file.read(6)
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if magic.startswith(start):
            return opener
    return None


def copy_unpacked(packed: IO[bytes], plain: IO[bytes], packed_size: int) -> None:
    """Unpack into a file. Raises `ValueError` for an archive bomb."""
    room = LARGEST + _EXPANSION * packed_size
    while block := packed.read(1 << 20):
        room -= len(block)
        if room < 0:
            raise ValueError(f"it unpacks to more than {_EXPANSION} times its size, as an archive bomb does")
        plain.write(block)


def remove_temporary(path: str, owner: int) -> None:
    """Remove a temporary file, unless the process is a forked one: the file still serves the process `owner`."""
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)
