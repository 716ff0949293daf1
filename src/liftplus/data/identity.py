"""Whether pictures are still the same, without reading all of them: the key of what was computed from them."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Sequence

from liftplus.data.dataset import Store
from liftplus.data.parquet import ParquetStore
from liftplus.data.shards import ShardStore
from liftplus.data.stores import ArrayStore, FolderStore, TarStore, ZipStore

SETTLED = 2.0
"""Seconds that a file must have been left alone: some file systems note times no finer."""


def identity(store: Store, keys: Sequence[str]) -> str | None:
    """A digest that changes when any of the pictures does; None where that cannot be told for sure.

    Arrays are hashed. Of files, path, size and the times of the last change of contents and of entry count, which a
    program that sets the former back cannot avoid; of a zip, each picture's checksum too. Other kinds of stores, and
    files that changed just now, have no identity.
    """
    digest = hashlib.sha256(repr((type(store).__name__, _options(store))).encode(errors="surrogateescape"))
    newest = 0
    try:
        if type(store) is ArrayStore:
            for key in keys:
                image = store.images[int(key)]
                digest.update(repr((image.shape, image.dtype.str)).encode())
                digest.update(image.tobytes())
        elif type(store) is FolderStore:
            for key in keys:
                newest = max(newest, _file(digest, store.where(key)))
        elif isinstance(store, ZipStore | TarStore) and type(store) in (ZipStore, TarStore):
            newest = _file(digest, store.path)
        elif type(store) is ShardStore:
            for shard in sorted({store.index[key][0] for key in keys}):
                newest = max(newest, _file(digest, str(store.folder / shard)))
            digest.update(repr([store.index[key] for key in keys]).encode(errors="surrogateescape"))
        elif type(store) is ParquetStore:
            newest = max(_file(digest, path) for path in store.files)
        else:
            return None
        if type(store) is ZipStore:
            with zipfile.ZipFile(store.path) as archive:
                for key in keys:
                    info = archive.getinfo(key)
                    digest.update(f"{info.CRC} {info.file_size}\n".encode())
    except (OSError, ValueError, IndexError, KeyError, zipfile.BadZipFile):
        return None  # whoever reads the picture says what is the matter
    if time.time() - newest / 1e9 < SETTLED:
        return None
    digest.update("\0".join(keys).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file(digest: hashlib._Hash, path: str) -> int:
    """Add a file's path, size and times; the latest of the times in nanoseconds."""
    about = os.stat(path)
    where = os.path.abspath(path)
    digest.update(
        f"{where}\0{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode(errors="surrogateescape")
    )
    return max(about.st_mtime_ns, about.st_ctime_ns)


def _options(store: Store) -> dict[str, object]:
    """A store's own settings, such as how it decodes."""
    plain = (str, int, float, bool, type(None))
    return {name: value for name, value in vars(store).items() if name[0] != "_" and isinstance(value, plain)}
