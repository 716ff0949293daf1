"""Where the bytes of pictures come from: a folder, a zip or a tar.

Every store pickles, opens its files in the process that reads them, and extracts nothing.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import threading
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from PIL import Image

from liftplus.data import archives, documents, members
from liftplus.data.identity import Origin, Stamp, stamp
from liftplus.data.images import UnreadableImage, decode
from liftplus.data.members import Members
from liftplus.data.pictures import Decode, Picture, picture
from liftplus.errors import UserError


class ByteStore(ABC):
    """A store whose pictures exist as encoded files.

    Attributes:
        decode: how `picture` decodes and resizes.
    """

    decode: Decode = "exact"

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes of one image file. Raises `UnreadableImage` where there are none."""

    def head(self, key: str, size: int) -> bytes:
        """The first bytes of one image file, at most `size` of them. Raises `UnreadableImage`."""
        return self.read(key)[:size]

    def size(self, key: str) -> int:
        """How large a picture's `content` is: equal pictures have equal sizes. Raises `UnreadableImage`."""
        return len(self.content(key))

    def content(self, key: str) -> bytes:
        """What tells a picture from others, whatever its path: the bytes of its file. Raises `UnreadableImage`."""
        return self.read(key)

    @abstractmethod
    def where(self, key: str) -> str:
        """The file's name in messages."""

    def image(self, key: str) -> Image.Image:
        """The decoded picture in RGB, upright."""
        return decode(self.read(key), self.where(key))

    def picture(self, key: str) -> Picture:
        """The picture, to be cut and resized as `decode` says."""
        return picture(self.read(key), self.where(key), self.decode)


class FileStore(ByteStore):
    """A store with named members, whose keys are relative paths with forward slashes."""

    path: str

    @abstractmethod
    def members(self) -> Members:
        """All members, hidden files and system litter left out."""

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that the store does not hold."""
        held = set(self.members().files)
        return [key for key in keys if key not in held]

    def respelled(self, keys: Iterable[str]) -> dict[str, str]:
        """For keys that the store does not hold, its own spelling where exactly one fits."""
        held = members.spellings(self.members().files)
        return {key: name for key in keys if (name := held.get(members.spelling(key))) is not None}

    def where(self, key: str) -> str:
        """The archive's path and the member's name."""
        return f"{self.path}:{key}"


class FolderStore(FileStore):
    """Files below a folder; a key may also be an absolute path, as manifests sometimes hold."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.path = os.fspath(root)

    def where(self, key: str) -> str:
        """The file's path."""
        if os.sep == "/" and self.path and not key.startswith("/"):  # the same, in half the time
            return f"{self.path}{key}" if self.path.endswith("/") else f"{self.path}/{key}"
        return os.path.join(self.path, key)

    def read(self, key: str) -> bytes:
        """The bytes of one file."""
        return self.head(key, -1)

    def head(self, key: str, size: int) -> bytes:
        """The first bytes of one file; all with -1."""
        try:
            with open(self.where(key), "rb", buffering=0, opener=_without_waiting) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise ValueError("it is a device or a pipe, no file")
                if about.st_size > archives.LARGEST:
                    raise ValueError("it is over 1 GiB large")
                return file.read(size)
        except (OSError, ValueError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "there is not enough memory"
            raise UnreadableImage(f"{self.where(key)} cannot be read: {reason}.") from error

    def size(self, key: str) -> int:
        """Of the file, in bytes."""
        try:
            return os.stat(self.where(key)).st_size
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"{self.where(key)} cannot be read: {error}.") from error

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that name no file; checks each one, as the folder may hold far more files."""
        return [key for key in keys if not os.path.isfile(self.where(key))]

    def members(self) -> Members:
        """All files below the folder; links are followed, each folder is read once."""
        return members.of_folder(self.path)

    def respelled(self, keys: Iterable[str]) -> dict[str, str]:
        """For keys that the folder does not hold, its own spelling where exactly one fits."""
        return members.respelled(self.path, keys)

    def origin(self, key: str) -> Origin:
        """The file itself."""
        return Origin(self.where(key))


class ZipStore(FileStore):
    """Members of a zip, read in place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._open: tuple[int, zipfile.ZipFile, threading.Lock, Stamp] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _handle(self) -> tuple[int, zipfile.ZipFile, threading.Lock, Stamp]:
        # A forked worker that shared the parent's file position would read the wrong bytes.
        if self._open is None or self._open[0] != os.getpid():
            try:
                about = stamp(self.path)  # before, so that a change in between is noticed
                self._open = (os.getpid(), archives.opened_zip(self.path), threading.Lock(), about)
            except Exception as error:  # damaged archives make the readers raise nearly anything
                raise UserError(f"{self.path} cannot be opened as a zip archive: {error}.") from error
        return self._open

    def read(self, key: str) -> bytes:
        """The bytes of one member, its checksum verified."""
        return self.head(key, archives.LARGEST)

    def head(self, key: str, size: int) -> bytes:
        """The first bytes of one member."""
        _, archive, lock, _ = self._handle()
        try:
            with lock:
                info = archive.getinfo(key)
                if info.file_size > archives.LARGEST:
                    raise UnreadableImage(f"{self.where(key)} cannot be read: it would unpack to over 1 GiB.")
                return archives.unzipped(archive, info, size)
        except UnreadableImage:
            raise
        except KeyError as error:
            raise UnreadableImage(f"{self.where(key)} cannot be read: the archive has no such member.") from error
        except Exception as error:
            raise UnreadableImage(f"{self.where(key)} cannot be read: {str(error) or 'damaged data'}.") from error

    def size(self, key: str) -> int:
        """Of the unpacked member, in bytes."""
        try:
            return self._handle()[1].getinfo(key).file_size
        except KeyError as error:
            raise UnreadableImage(f"{self.where(key)} cannot be read: the archive has no such member.") from error

    def members(self) -> Members:
        """All members with safe names that are files and not encrypted."""
        files: list[str] = []
        folders: set[str] = set()
        refused: list[str] = []
        for info in self._handle()[1].infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            if link or info.flag_bits & 0x1 or not archives.is_safe(info.filename):
                refused.append(info.filename)
            elif info.filename.endswith(("/", "\\")):
                folders.add("/".join(members.parts_of(info.filename.rstrip("/\\"))))
            else:
                files.append(info.filename)
        undeclared = archives.are_misread(self._handle()[1])
        return members.of_archive(files, folders, refused, undeclared=undeclared)

    def origin(self, key: str) -> Origin:
        """The archive, and the picture's place and checksum."""
        _, archive, _, opened = self._handle()
        info = archive.getinfo(key)
        return Origin(self.path, f"{info.header_offset} {info.file_size} {info.CRC}", opened)


class TarStore(FileStore):
    """Members of a tar, read in place; a compressed tar is unpacked once to a temporary plain tar.

    It keeps no open file: opening costs little next to decoding, and nothing can be shared by mistake.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._plain: str | None = None
        self._opened: Stamp | None = None
        self._index: dict[str, tuple[int, int]] = {}
        self._members: Members | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_members": None}  # workers need the index alone

    def read(self, key: str) -> bytes:
        """The bytes of one member."""
        return self.head(key, archives.LARGEST)

    def head(self, key: str, size: int) -> bytes:
        """The first bytes of one member."""
        offset, whole = self._place(key)
        return archives.part_of(self._plain_path(), offset, min(size, whole), self.where(key))

    def size(self, key: str) -> int:
        """Of the member, in bytes."""
        return self._place(key)[1]

    def _place(self, key: str) -> tuple[int, int]:
        if not self._index:
            self.members()
        if key not in self._index:
            raise UnreadableImage(f"{self.where(key)} cannot be read: the archive has no such member.")
        offset, size = self._index[key]
        if size > archives.LARGEST:
            raise UnreadableImage(f"{self.where(key)} cannot be read: it is over 1 GiB large.")
        return offset, size

    def members(self) -> Members:
        """All regular files with safe names; the index found here travels to the workers."""
        if self._members is None:
            try:
                self._members = self._scan()
            except Exception as error:
                raise UserError(f"{self.path} cannot be opened as a tar archive: {error}.") from error
        return self._members

    def _scan(self) -> Members:
        files: list[tuple[str, tuple[int, int]]] = []
        folders: set[str] = set()
        refused: list[str] = []
        notes = self._unpacked_note(self._plain_path())
        for info in archives.tar_members(self._plain_path()):
            if info is None:
                notes += (f"{self.path} lacks the end mark of a tar, so members may be missing from it.",)
            elif not archives.is_safe(info.name) or not (info.isdir() or info.isreg()) or info.issparse():
                refused.append(info.name)
            elif info.isdir():
                folders.add(info.name.removeprefix("./"))
            else:
                files.append((info.name.removeprefix("./"), (info.offset_data, info.size)))
        self._index = dict(files)
        return members.of_archive([name for name, _ in files], folders, refused, notes)

    def origin(self, key: str) -> Origin:
        """The archive, and the picture's place."""
        offset, size = self._place(key)
        return Origin(self.path, f"{offset} {size}", self._opened)

    def _unpacked_note(self, plain: str) -> tuple[str, ...]:
        if plain == self.path:
            return ()
        name = os.path.basename(self.path)
        return (f"{name} is compressed and was unpacked to a temporary file; a plain .tar or .zip avoids that.",)

    def _plain_path(self) -> str:
        if self._plain is None or not os.path.exists(self._plain):
            self._opened = stamp(self.path)
            opener = archives.compression(self.path)
            self._plain = self.path if opener is None else self._unpack(opener(self.path, "rb"))
        return self._plain

    def _unpack(self, packed: IO[bytes]) -> str:
        with packed, tempfile.NamedTemporaryFile(prefix="liftplus-", suffix=".tar", delete=False) as plain:
            remove = weakref.finalize(self, archives.remove_temporary, plain.name, os.getpid())
            try:
                archives.copy_unpacked(packed, plain, os.path.getsize(self.path))
            except BaseException:
                remove()
                raise
        return plain.name


def open_store(path: str | os.PathLike[str]) -> FileStore:
    """The store for a folder, a .zip or a .tar (also .tar.gz, .tgz, .tar.bz2, .tar.xz)."""
    where = documents.place(os.fspath(path))
    if not os.path.exists(where):
        raise UserError(f"{where} does not exist; give the path of a folder, .zip or .tar that holds the pictures.")
    if where.is_dir():
        return FolderStore(where)
    if where.suffix.lower() == ".zip":
        return ZipStore(where)
    if is_tar(where):
        return TarStore(where)
    raise UserError(f"{where} is neither a folder nor a .zip or .tar archive; give one of these.")


def is_tar(path: Path) -> bool:
    """True for the file names that tar archives have."""
    return re.search(r"\.(tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))$", path.name.lower()) is not None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting: a pipe without a writer would block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
