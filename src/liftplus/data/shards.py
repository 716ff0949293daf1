"""A prepared copy of a data set: WebDataset shards (tar), and an index for reading pictures in any order.

A folder with, for each split, `train-000000.tar`, … of `00000000.jpg` (or .png …), `.cls` and `.json` members;
`index.csv`, which gives each picture's shard and place in it; and `classes.json`, written last. An unfinished copy has
another name and `plan.json`, which lets an interrupted copy continue.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from PIL import Image

from liftplus.data import archives, documents, workers
from liftplus.data.dataset import DataSet, Table
from liftplus.data.identity import Origin, identity
from liftplus.data.images import UnreadableImage, decode
from liftplus.data.pictures import resized
from liftplus.data.stores import ByteStore
from liftplus.errors import UserError
from liftplus.machine.progress import Advance, Progress, Silent

CLASSES, INDEX, PLAN = "classes.json", "index.csv", "plan.json"
_COLUMNS = ["split", "key", "class", "shard", "offset", "size"]
_FORMAT = 1
_SHARD = 1 << 30
_NOTED = 64
"""Pictures after which the files are flushed."""
_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")


@dataclass(frozen=True)
class CopyOptions:
    """How pictures are copied.

    Attributes:
        size: longest that the shorter side may be; pictures are never enlarged.
        quality: JPEG quality, with full colour resolution; lossless pictures stay lossless, as PNG.
    """

    size: int = 256
    quality: int = 95


class ShardStore(ByteStore):
    """Pictures of a prepared copy, read in place; keys are those of the data it was made from."""

    def __init__(self, folder: Path, index: dict[str, tuple[str, int, int]]) -> None:
        self.folder, self.index = folder, index

    def where(self, key: str) -> str:
        """The folder and the key."""
        return f"{self.folder}:{key}"

    def read(self, key: str) -> bytes:
        """The bytes of one picture."""
        return self.head(key, sys.maxsize)

    def head(self, key: str, size: int) -> bytes:
        """The first bytes of one picture."""
        if key not in self.index:
            raise UnreadableImage(f"{self.where(key)} cannot be read: the copy has no such picture.")
        shard, offset, whole = self.index[key]
        return archives.part_of(self.folder / shard, offset, min(size, whole), f"{self.where(key)} ({shard})")

    def size(self, key: str) -> int:
        """Of the picture's copy, in bytes."""
        return self.index[key][2]

    def origin(self, key: str) -> Origin:
        """The shard, and the picture's place in it."""
        shard, offset, size = self.index[key]
        return Origin(str(self.folder / shard), f"{offset} {size}")


def is_prepared(folder: Path) -> bool:
    """True for a folder that `write` made."""
    return (folder / CLASSES).is_file() and (folder / INDEX).is_file()


def read(folder: Path) -> tuple[Table, ShardStore]:
    """The table and the store of a prepared copy."""
    about = documents.json_value(documents.text(folder / CLASSES, "description"), folder / CLASSES)
    damaged = UserError(f"{folder} is no complete copy of a data set; make it anew with liftplus prepare.")
    rows: dict[str, list[tuple[str, str]]] = {}
    index: dict[str, tuple[str, int, int]] = {}
    try:
        if about["format"] > _FORMAT:
            raise UserError(f"{folder} was prepared by a newer liftplus. Update liftplus to read it.")
        ids, names = list(about["class_ids"]), list(about["class_names"])
        text = documents.content(folder / INDEX, "index").decode(errors="surrogateescape")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        if next(lines) != _COLUMNS:
            raise damaged
        for split, key, label, shard, offset, size in lines:
            rows.setdefault(split, []).append((key, ids[int(label)]))
            index[key] = (os.path.basename(shard), int(offset), int(size))
    except (KeyError, IndexError, ValueError, TypeError, StopIteration, csv.Error) as error:
        raise damaged from error
    if sum(map(len, rows.values())) != about.get("pictures") or not rows.keys() <= {"train", "val", "test"}:
        raise damaged
    table = Table(rows, tuple(ids), dict(zip(ids, names, strict=True)))
    table = replace(table, frequency=about.get("frequency", {}), levels=about.get("levels", {}))
    return table, ShardStore(folder, index)


def write(dataset: DataSet, folder: Path, how: CopyOptions, progress: Progress | None = None) -> None:
    """Copy every split into a new folder, which appears when it is complete.

    After an interrupted or killed copy, the same call continues it. A copy that ends with an error leaves nothing
    behind.

    Args:
        dataset: any data set whose pictures exist as files.
        folder: must not exist.
        how: size and quality of the copies.
        progress: shows each picture.

    Raises:
        UserError: the folder exists or cannot be written; a picture cannot be decoded.
    """
    if os.path.lexists(folder):
        raise UserError(f"{str(folder)!r} already exists. Choose another place with --out, or remove it first.")
    partial = unfinished(folder)
    try:
        done = _begin(partial, dataset, how)
        total = sum(map(len, dataset.splits.values()))
        try:
            with (progress or Silent()).task("Copying", total, len(done.rows)) as advance:
                _fill(partial, dataset, how, done, advance)
            os.replace(partial, folder)
            (folder / PLAN).unlink()
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror or error}). Free some space, or choose another place."
        ) from error


def unfinished(folder: Path) -> Path:
    """The folder of a copy until it is complete."""
    return folder.with_name(folder.name + ".partial")


def resumable(folder: Path) -> Path | None:
    """The folder of an interrupted copy that can be continued; None where there is none."""
    partial = unfinished(folder)
    with suppress(OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return None if None in _planned(partial)["pictures"].values() else partial
    return None


def _planned(partial: Path) -> Any:
    """The plan of the unfinished copy in a folder."""
    return documents.json_value(documents.text(partial / PLAN, "plan"), partial / PLAN)


@dataclass(frozen=True)
class _Done:
    """What an interrupted copy already holds.

    Attributes:
        rows: of the index, in the order of the data set.
        cut: length of the last row's shard; None where the next picture begins a shard.
    """

    rows: list[list[str]] = field(default_factory=list)
    cut: int | None = None


def _begin(partial: Path, dataset: DataSet, how: CopyOptions) -> _Done:
    """What already exists of this very copy; removes everything else from the folder."""
    plan = _plan(dataset, how)
    done = _Done()
    with suppress(OSError, UserError, ValueError, csv.Error):
        if _planned(partial) == plan:
            done = _done(partial)
    if not done.rows or None in plan["pictures"].values():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / PLAN).write_text(json.dumps(plan), encoding="utf-8")
        return _Done()
    kept = {row[3] for row in done.rows}
    for shard in partial.glob("*.tar"):
        if shard.name not in kept:
            shard.unlink()
    if done.cut is not None:
        os.truncate(partial / done.rows[-1][3], done.cut)
    return done


def _plan(dataset: DataSet, how: CopyOptions) -> dict[str, Any]:
    """What is copied and how; `pictures` has None for a split without an identity."""
    labels = hashlib.sha256(repr([part.labels for part in dataset.splits.values()]).encode()).hexdigest()
    pictures = {split: identity(dataset.store, part.keys) for split, part in dataset.splits.items()}
    return _about(dataset, how) | {"labels": labels, "pictures": pictures}


def _done(partial: Path) -> _Done:
    """The rows of the index that are complete; the last one and its picture may be cut short."""
    text = documents.content(partial / INDEX, "index").decode(errors="surrogateescape")
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    sizes = {shard.name: shard.stat().st_size for shard in partial.glob("*.tar")}
    while rows:
        last = rows.pop()
        if len(last) == len(_COLUMNS) and int(last[4]) - tarfile.BLOCKSIZE <= sizes.get(last[3], -1):
            same = bool(rows) and rows[-1][3] == last[3]
            return _Done(rows, int(last[4]) - tarfile.BLOCKSIZE if same else None)
    return _Done()


def _about(dataset: DataSet, how: CopyOptions) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "made_from": dataset.name,
        "size": how.size,
        "quality": how.quality,
        "class_ids": list(dataset.class_ids),
        "class_names": list(dataset.class_names),
        **({"frequency": dict(dataset.frequency)} if dataset.frequency else {}),
        **({"levels": {level: dict(groups) for level, groups in dataset.levels.items()}} if dataset.levels else {}),
    }


def _fill(folder: Path, dataset: DataSet, how: CopyOptions, done: _Done, advance: Advance) -> None:
    with (folder / INDEX).open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        index = csv.writer(stream)
        index.writerows([_COLUMNS, *done.rows])
        for split, part in dataset.splits.items():
            own = [row for row in done.rows if row[0] == split]
            if len(own) == len(part):
                continue
            last, cut, first = (own[-1][3], done.cut, len(own)) if own else (None, None, 0)
            with _Shards(folder, split, last, cut) as shards:
                for number, (data, ending) in enumerate(_copies(dataset, split, how, first), first):
                    key, label = part.keys[number], part.labels[number]
                    about = {"key": key, "class": dataset.class_names[label], "id": dataset.class_ids[label]}
                    place = shards.add(f"{number:08d}", data, ending, label, about)
                    index.writerow([split, key, label, *place, len(data)])
                    if number % _NOTED == 0:
                        shards.flush()
                        stream.flush()
                    advance()
    about = _about(dataset, how) | {"pictures": sum(map(len, dataset.splits.values()))}
    (folder / CLASSES).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _copies(dataset: DataSet, split: str, how: CopyOptions, first: int) -> Iterator[tuple[bytes, str]]:
    """Yield each picture's new file and its ending from `first` on; threads help, as Pillow releases the GIL."""
    threads = min(workers.cores(), 16)
    keys = islice(dataset.splits[split].keys, first, None)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(keys, 16 * threads)):
            yield from pool.map(lambda key: _copy(dataset, key, how), chunk)


def _copy(dataset: DataSet, key: str, how: CopyOptions) -> tuple[bytes, str]:
    store = dataset.store
    if not isinstance(store, ByteStore):
        return _encoded(store.image(key), "PNG", how), "png"
    data = store.read(key)
    image = decode(data, store.where(key))
    with Image.open(io.BytesIO(data)) as file:
        kind = file.format or ""
    if min(image.size) <= how.size and kind in _KEPT:
        return data, _KEPT[kind]  # nothing is gained by coding it once more
    kind = "JPEG" if kind in _LOSSY else "PNG"
    return _encoded(image, kind, how), _KEPT[kind]


def _encoded(image: Image.Image, kind: str, how: CopyOptions) -> bytes:
    share = how.size / min(image.size)
    if share < 1:
        width, height = (max(how.size, round(side * share)) for side in image.size)
        image = resized(image, (width, height), "bicubic")
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": how.quality, "subsampling": "4:4:4"} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class _Shards:
    """Writes the shards of one split, about 1 GiB each.

    Continues after the shard named `last`, or within it if `cut` gives its length so far.
    """

    def __init__(self, folder: Path, split: str, last: str | None = None, cut: int | None = None) -> None:
        self.folder, self.split = folder, split
        self.number = -1 if last is None else int(last.removesuffix(".tar").rpartition("-")[2])
        self.file: IO[bytes] | None = None if cut is None or last is None else (folder / last).open("ab")

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def add(self, name: str, data: bytes, ending: str, label: int, about: dict[str, Any]) -> tuple[str, int]:
        """Write one picture with its class; returns its shard and its offset there."""
        if self.file is None or self.file.tell() > _SHARD:
            self._close()
            self.number += 1
            self.file = (self.folder / f"{self.split}-{self.number:06d}.tar").open("wb")
        text = json.dumps(about).encode()
        place = _add(self.file, f"{name}.{ending}", data)
        _add(self.file, f"{name}.cls", b"%d" % label)
        _add(self.file, f"{name}.json", text)
        return os.path.basename(self.file.name), place

    def flush(self) -> None:
        """Write what the open shard holds in memory."""
        if self.file is not None:
            self.file.flush()

    def _close(self) -> None:
        if self.file is not None:
            self.file.write(b"\0" * tarfile.RECORDSIZE)
            self.file.close()


def _add(file: IO[bytes], name: str, content: bytes) -> int:
    """Write one member of a tar; returns the offset of its content."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    place = file.tell()
    file.write(content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    return place
