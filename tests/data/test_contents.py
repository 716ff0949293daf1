"""Pictures are recognised by their content, in every store, and only those of equal size are read or decoded."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from liftplus.data import contents
from liftplus.data.arrays import ArrayStore
from liftplus.data.boxes import BoxStore
from liftplus.data.contents import Contents
from liftplus.data.parquet import ParquetStore
from liftplus.data.stores import FileStore, FolderStore, open_store

BYTES = {"a.png": b"one", "b.png": b"two", "c.png": b"three", "d/a.png": b"four.", "e.png": b"one"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files" / "d").mkdir(parents=True)
    for name, data in BYTES.items():
        (tmp_path / "files" / name).write_bytes(data)
    return tmp_path / "files"


def stores(folder: Path) -> list[FileStore]:
    with zipfile.ZipFile(folder.parent / "f.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in BYTES.items():
            packed.writestr(name, data)
    with tarfile.open(folder.parent / "f.tar", "w") as tar:
        tar.add(folder, "")
    return [open_store(path) for path in (folder, folder.parent / "f.zip", folder.parent / "f.tar")]


class Watched(FolderStore):
    """Remembers what was read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def read(self, key: str) -> bytes:
        self.opened.append(key)
        return super().read(key)


def test_equal_bytes_are_found_in_every_store(folder: Path) -> None:
    keys, others = [*BYTES, "gone.png"], ["b.png", "d/a.png", "gone.png"]
    for one in stores(folder):
        assert contents.sizes_of(one, keys).tolist() == [3, 3, 5, 5, 3, -1]
        for other in stores(folder):
            assert contents.shared(one, keys, other, others).tolist() == [False, True, False, True, False, False]
            assert Contents.of(other, ["a.png"]).hold(one, keys).tolist() == [True, False, False, False, True, False]
    pq.write_table(pa.table({"image": list(BYTES.values())}), folder / "t.parquet")
    inside = ParquetStore([("t", folder / "t.parquet", "image")])
    rows = [f"t/{k}" for k in range(1, 6)]
    assert contents.sizes_of(inside, rows).tolist() == [3, 3, 5, 5, 3]
    assert contents.shared(inside, rows, FolderStore(folder), ["c.png"]).tolist() == [False, False, True, False, False]


def test_only_pictures_of_equal_size_are_read(folder: Path) -> None:
    own, other = Watched(folder), Watched(folder)
    (folder / "new.png").write_bytes(b"of no equal size")
    found = contents.shared(own, ["new.png", "c.png"], other, ["a.png", "b.png", "d/a.png"])
    assert found.tolist() == [False, False] and own.opened == ["c.png"] and other.opened == ["d/a.png"]
    assert contents.shared(own, [], other, list(BYTES)).shape == (0,)
    assert not contents.shared(own, list(BYTES), other, []).any()


def test_boxes_of_one_image_differ(folder: Path) -> None:
    boxes, zipped = (BoxStore(base, {}) for base in stores(folder)[:2])
    keys = ["a.png#0,0,4,4", "a.png#0,0,4,5", "e.png#0,0,4,4", "b.png#0,0,4,4"]
    assert contents.shared(boxes, keys, zipped, keys[:1]).tolist() == [True, False, True, False]


def test_arrays_are_told_by_shape_and_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    own = ArrayStore([*pixels, pixels[0].reshape(6, 4, 3)])
    found = contents.shared(own, ["0", "1", "2", "3"], ArrayStore(pixels[:1].copy()), ["0"])
    assert found.tolist() == [True, False, False, False]


class Decoded(FolderStore):
    """Remembers what was decoded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.keys: list[str] = []

    def image(self, key: str) -> Image.Image:
        self.keys.append(key)
        return super().image(key)


def test_pictures_in_memory_and_files_are_compared_by_their_pixels(tmp_path: Path) -> None:
    """Also turned and transparent ones, which are decoded as `fit` on Pillow images has them; in both directions."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[0, ..., :3]).save(tmp_path / "plain.png")
    Image.fromarray(noise[1]).save(tmp_path / "clear.png")
    Image.fromarray(noise[2, ..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(noise[3, ..., :3]).save(tmp_path / "other.png")
    Image.fromarray(noise[3, :, :-1, :3]).save(tmp_path / "smaller.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "plain.png").read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    keys = ["plain.png", "clear.png", "turned.jpg", "other.png", "smaller.png", "broken.png", "empty.png", "gone.png"]
    files, again = Decoded(tmp_path), FolderStore(tmp_path)
    arrays = ArrayStore([np.asarray(again.image(key)) for key in keys[:3]] + [noise[4, ..., :3]])
    own = ["0", "1", "2", "3"]
    assert contents.shared(files, keys, arrays, own).tolist() == [True, True, True, *[False] * 5]
    assert files.keys == ["plain.png", "clear.png", "turned.jpg", "other.png", "broken.png"]
    assert contents.shared(arrays, own, files, keys).tolist() == [True, True, True, False]
    assert contents.shared(arrays, own, again, ["plain.png"]).tolist() == [True, False, False, False]
    assert not contents.shared(arrays, own, again, []).any() and contents.shared(arrays, [], again, keys).shape == (0,)
