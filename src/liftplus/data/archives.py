"""Reading archives that strangers made: damage, bombs and names that would lead elsewhere."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from tarfile import HeaderError, ReadError
from typing import IO, Any, Self

LARGEST = 1 << 30
"""Bytes a member may unpack to; a picture is never larger, an archive bomb is."""

_EXPANSION = 100
"""Times its size that a compressed tar may unpack to, beyond 1 GiB: pictures hardly shrink, plain masks 50 times."""

_LONGEST_HEADER = 1 << 16
"""Bytes of a tar's extended header: names have at most 4,096, and tarfile takes the square of them in time."""

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
    """True for hidden files and what systems leave behind; of one file or folder."""
    folded = name.casefold()
    hidden = name.startswith(".") and name != "."
    return hidden or folded in _JUNK or _CHECKED_DISK.fullmatch(folded) is not None


def is_safe(name: str) -> bool:
    """False for names that would leave the folder if they were extracted, and for none at all."""
    outside = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name) is not None
    return name != "" and not outside and ".." not in re.split(r"[\\/]", name) and "\0" not in name


def opened_zip(path: str) -> zipfile.ZipFile:
    """A zip; names that declare no encoding but are UTF-8, as macOS and Info-ZIP write them, are read as such."""
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
    """Whether names may be misread, as they are in an encoding that the archive does not declare."""
    return getattr(archive, "metadata_encoding", None) is None and any(map(_is_undeclared, archive.infolist()))


def _is_undeclared(info: zipfile.ZipInfo) -> bool:
    return not info.flag_bits & 0x800 and not info.orig_filename.isascii()


def unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a member, never unpacked far beyond the size it declares."""
    with archive.open(info) as file:
        if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return file.read(max(1, info.file_size))  # the checksum is compared when something is asked for
        # Other methods unpack whole what they are fed, so it is little at a time.
        return b"".join(iter(partial(file.read, 4096), b""))


def tar_members(path: str) -> Iterator[tarfile.TarInfo | None]:
    """The members of an uncompressed tar; at the end None, where the archive lacks its end mark.

    tarfile passes over what follows a damaged header in silence; here it is an error.
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
    """A header that is right, the end of the archive, or an error."""

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
    """What opens a compressed file, None for a plain one."""
    with open(path, "rb") as file:
        magic = file.read(6)
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if magic.startswith(start):
            return opener
    return None


def copy_unpacked(packed: IO[bytes], plain: IO[bytes], packed_size: int) -> None:
    """Unpack into a file, but no bomb."""
    room = LARGEST + _EXPANSION * packed_size
    while block := packed.read(1 << 20):
        room -= len(block)
        if room < 0:
            raise ValueError(f"it unpacks to more than {_EXPANSION} times its size, as an archive bomb does")
        plain.write(block)
