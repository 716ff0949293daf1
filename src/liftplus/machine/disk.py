"""Files of a run folder: written whole or not at all, and kept from other processes by a lock."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from liftplus.errors import InUseError, UserError

LOCK = ".lock"

PATIENCE = 120.0  # seconds to wait for others where several processes write into one folder

# What a run leaves behind that was killed before its first file was whole.
_BARE = (LOCK, "config.json.tmp")


@contextmanager
def locked(folder: Path, patience: float = 0, name: str = LOCK) -> Iterator[None]:
    """Keep other processes from writing into a folder; one that is in use after `patience` seconds is refused.

    The system lets go of the lock with the process that held it, however that ended.

    Args:
        name: name of the lock's file, for a lock on a part of the folder.
    """
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise InUseError(
            f"Another process is writing into {str(folder)!r}. Wait for it, or choose another folder with --out."
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise _unwritable(folder / name, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone, and what was written counts
            lock.release()


def refuse_existing(path: Path) -> None:
    """Refuse a new folder's place that already holds something, so that nothing is lost."""
    try:
        taken = path.exists() and (not path.is_dir() or any(item.name not in _BARE for item in path.iterdir()))
    except OSError as error:
        raise UserError(f"The folder {str(path)!r} cannot be read ({error.strerror}). Choose another.") from error
    if taken:
        raise UserError(f"The folder {str(path)!r} already exists. Choose another with --out, or remove it first.")


def new_folder(path: Path) -> Path:
    """Create a new folder."""
    refuse_existing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {str(path)!r} cannot be made ({error.strerror}). Choose another with --out."
        ) from error
    return path


def check_new_folder(path: Path, option: str = "--out") -> None:
    """Refuse a new folder's place that already holds something or could not be written, before the work is done."""
    refuse_existing(path)
    _check_above(path, option)


def check_target(path: Path, option: str = "--out") -> None:
    """Refuse a file that could not be written, before the work is done; folders on the way to it can be missing."""
    if path.is_dir():
        raise UserError(f"{option} is {str(path)!r}, which is a folder; give the name of a file in it.")
    _check_above(path, option)


def _check_above(path: Path, option: str) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(
            f"{option} is {str(path)!r}, but {str(above)!r} is no folder that can be written to; choose another."
        )


def folder_of(path: Path) -> None:
    """Make the folder that a file is written into."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def room_beside(path: Path, prefix: str = ".export-") -> Iterator[Path]:
    """A temporary folder in the folder that a file or folder is made in, which is made if it is missing."""
    folder_of(path)
    try:
        temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix)
    except OSError as error:  # which would name the temporary folder
        raise _unwritable(path, error) from error
    with temporary as name:
        yield Path(name)


def _unwritable(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be written, with what to do about it."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if not path.parent.is_dir():
        return UserError(
            f"{str(path)!r} cannot be written: its folder was removed or is no folder. Put it back, or start anew."
        )
    space = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "Free some space" if space else "Make its folder writable"
    return UserError(
        f"{str(path)!r} cannot be written ({reason}). What was there before is unchanged. {cure} and give the same "
        "command again, or choose another place."
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one.

    Two processes must not write one file at once: they hold its folder `locked`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # half a file would only take up space
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Indented JSON in UTF-8."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path, *keys: str) -> Any:
    """The value of a JSON file that liftplus wrote; raises `UserError` if it is damaged or lacks one of these keys."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{key!r} is missing")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}). Restore it, or start anew elsewhere.") from error
    return value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV in UTF-8 with quoting where needed."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode(errors="backslashreplace"))


def append_json(path: Path, value: Any) -> None:
    """One JSON line at the end of a log."""
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def keep_lines(path: Path, keep: Callable[[Any], bool]) -> None:
    """Rewrite a log with the lines for which `keep` is true; a damaged line is dropped."""
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}). Restore or remove it.") from error
    kept = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            if keep(json.loads(line)):
                kept.append(line + b"\n")
    write_bytes(path, b"".join(kept))
