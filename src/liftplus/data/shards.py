"""A prepared copy of a data set: WebDataset shards (tar), and an index by which pictures are read at random.

A folder with, for each split, `train-000000.tar`, … of `00000000.jpg` (or .png …), `.cls` and `.json` members;
`index.csv`, which says where in which shard each picture lies; and `classes.json`, written last.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from PIL import Image

from liftplus.data import documents
from liftplus.data.dataset import DataSet, Table
from liftplus.data.images import UnreadableImage, decode
from liftplus.data.stores import ByteStore, part_of
from liftplus.errors import UserError

CLASSES, INDEX = "classes.json", "index.csv"
_COLUMNS = ["split", "key", "class", "shard", "offset", "size"]
_FORMAT = 1
_SHARD = 1 << 30
_KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")


@dataclass(frozen=True)
class Recipe:
    """How pictures are copied.

    Attributes:
        size: longest that the shorter side may be; pictures are never enlarged.
        quality: of JPEG, with full colour resolution; what was lossless stays so, as PNG.
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
        if key not in self.index:
            raise UnreadableImage(f"{self.where(key)} cannot be read: the copy has no such picture.")
        shard, offset, size = self.index[key]
        return part_of(self.folder / shard, offset, size, f"{self.where(key)} ({shard})")


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
    return Table(rows, tuple(ids), dict(zip(ids, names, strict=True))), ShardStore(folder, index)


def write(dataset: DataSet, folder: Path, recipe: Recipe, advance: Callable[[], object] = lambda: None) -> None:
    """Copy every split into a new folder, which appears when it is whole.

    Args:
        dataset: any data set whose pictures exist as files.
        folder: must not exist.
        recipe: size and quality of the copies.
        advance: called after each picture.

    Raises:
        UserError: the folder exists or cannot be written; a picture cannot be decoded.
    """
    if os.path.lexists(folder):
        raise UserError(f"{str(folder)!r} exists already. Choose another place with --out, or remove it first.")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a copy that was killed
        partial.mkdir(parents=True)
        try:
            _fill(partial, dataset, recipe, advance)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror or error}). Free some space, or choose another place."
        ) from error


def _fill(folder: Path, dataset: DataSet, recipe: Recipe, advance: Callable[[], object]) -> None:
    with (folder / INDEX).open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        index = csv.writer(stream)
        index.writerow(_COLUMNS)
        for split, part in dataset.splits.items():
            with _Shards(folder, split) as shards:
                for number, (data, ending) in enumerate(_copies(dataset, split, recipe)):
                    key, label = part.keys[number], part.labels[number]
                    about = {"key": key, "class": dataset.class_names[label], "id": dataset.class_ids[label]}
                    place = shards.add(f"{number:08d}", data, ending, label, about)
                    index.writerow([split, key, label, *place, len(data)])
                    advance()
    classes = {
        "format": _FORMAT,
        "made_from": dataset.name,
        "size": recipe.size,
        "quality": recipe.quality,
        "pictures": sum(map(len, dataset.splits.values())),
        "class_ids": dataset.class_ids,
        "class_names": dataset.class_names,
    }
    (folder / CLASSES).write_text(json.dumps(classes, indent=1), encoding="utf-8")


def _copies(dataset: DataSet, split: str, recipe: Recipe) -> Iterator[tuple[bytes, str]]:
    """The new file of each picture with its ending, in order; threads, as Pillow leaves the interpreter free."""
    threads = min(os.cpu_count() or 1, 16)
    keys = iter(dataset.splits[split].keys)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(keys, 16 * threads)):
            yield from pool.map(lambda key: _copy(dataset, key, recipe), chunk)


def _copy(dataset: DataSet, key: str, recipe: Recipe) -> tuple[bytes, str]:
    store = dataset.store
    if not isinstance(store, ByteStore):
        return _encoded(store.image(key), "PNG", recipe), "png"
    data = store.read(key)
    image = decode(data, store.where(key))
    with Image.open(io.BytesIO(data)) as file:
        kind = file.format or ""
    if min(image.size) <= recipe.size and kind in _KEPT:
        return data, _KEPT[kind]  # nothing is gained by coding it once more
    kind = "JPEG" if kind in _LOSSY else "PNG"
    return _encoded(image, kind, recipe), _KEPT[kind]


def _encoded(image: Image.Image, kind: str, recipe: Recipe) -> bytes:
    share = recipe.size / min(image.size)
    if share < 1:
        width, height = (max(recipe.size, round(side * share)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": recipe.quality, "subsampling": "4:4:4"} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class _Shards:
    """The shards of one split: each is closed when it has a gigabyte."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split, self.number = folder, split, -1
        self.file: IO[bytes] | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def add(self, name: str, data: bytes, ending: str, label: int, about: dict[str, Any]) -> tuple[str, int]:
        """Write one picture with its class; its shard and its place there."""
        if self.file is None or self.file.tell() > _SHARD:
            self._close()
            self.number += 1
            self.file = (self.folder / f"{self.split}-{self.number:06d}.tar").open("wb")
        text = json.dumps(about).encode()
        place = _add(self.file, f"{name}.{ending}", data)
        _add(self.file, f"{name}.cls", b"%d" % label)
        _add(self.file, f"{name}.json", text)
        return os.path.basename(self.file.name), place

    def _close(self) -> None:
        if self.file is not None:
            self.file.write(b"\0" * tarfile.RECORDSIZE)
            self.file.close()


def _add(file: IO[bytes], name: str, content: bytes) -> int:
    """Write one member of a tar; where its content begins."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    place = file.tell()
    file.write(content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    return place
