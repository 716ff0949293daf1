"""Damaged, hostile and odd picture files: each is an RGB picture or one sentence, and the counts say which."""

from __future__ import annotations

import io
import random
import struct
import time
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liftplus.data.config import DataConfig
from liftplus.data.images import UnreadableImage, decode
from liftplus.data.inspection import inspect
from liftplus.data.sources import load
from liftplus.data.transforms import MDA, CentreCrop, FiveCrops, LiftAugment, NoAugment

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
SECONDS = 20.0  # for one file, on a machine that may be busy
HUGE = (0, 1, 255, 30_000, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
STARTS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"%!PS",
    b"\0\0\0\x0cjP  ",
)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@cache
def whole() -> tuple[bytes, ...]:
    """One good file of every kind that people have."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    wide = Image.fromarray(rng.integers(0, 65_536, (24, 24), dtype=np.uint16))
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        *(save(rgb, "JPEG"), save(rgb, "JPEG", progressive=True, exif=exif), save(rgb.convert("CMYK"), "JPEG")),
        *(save(rgb.convert("L"), "JPEG"), save(rgb, "PNG"), save(wide, "PNG"), save(rgb.convert("P"), "PNG")),
        *(save(rgb.convert("LA"), "PNG"), save(rgb, "PNG", save_all=True, append_images=frames)),
        *(save(rgb, "WEBP"), save(rgb.convert("RGBA"), "WEBP", lossless=True)),
        *(save(rgb, "WEBP", save_all=True, append_images=frames),),
    )


def damaged(seed: int) -> bytes:
    """A file with flipped bits, a cut, another's start, a huge number or noise in it; or one of them whole."""
    rng = random.Random(seed)
    data = bytearray(whole()[seed % len(whole())])
    way = rng.randrange(7)
    if way == 0:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 1:
        data = data[: rng.randrange(len(data))]
    elif way == 2:
        start = rng.choice(STARTS)
        data[: len(start)] = start
    elif way == 3:  # a large number somewhere in the header, its checksum made right where it is a PNG's
        place = rng.randrange(8, min(len(data) - 4, 60)) if rng.random() < 0.5 else 16 + 4 * rng.randrange(2)
        data[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(HUGE))
        if data.startswith(b"\x89PNG"):
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif way == 4:
        start = rng.randrange(len(data))
        data[start : start + rng.randrange(200)] = rng.randbytes(rng.randrange(200))
    elif way == 5:
        other = whole()[rng.randrange(len(whole()))]
        data = data[: len(data) // 2] + bytearray(other[len(other) // 2 :])
    return bytes(data)


def readable(data: bytes, name: str) -> bool:
    """Whether the file decodes, to RGB with pixels; within bounded time, and otherwise with one sentence."""
    started = time.monotonic()
    try:
        image = decode(data, name)
    except UnreadableImage as error:
        message = str(error)
        if not message.startswith(f"{name} cannot be read as an image: ") or message[-1] != "." or "\n" in message:
            pytest.fail(f"no sentence: {message}")
        return False
    finally:
        assert time.monotonic() - started < SECONDS
    assert image.mode == "RGB"
    assert min(image.size) > 0
    return True


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_files_one_by_one(count: int) -> None:
    outcomes = {readable(damaged(seed), f"{seed}.jpg") for seed in range(count)}
    assert outcomes == {True, False}


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
def test_every_readable_file_is_counted_and_no_other(tmp_path: Path, packed: bool, count: int) -> None:
    """Endings are wrong on purpose: the content decides."""
    names = {seed: f"{'ab'[seed % 2]}/{seed}{('.jpg', '.PNG', '.webp', '.gif')[seed % 4]}" for seed in range(count)}
    good = {seed for seed in names if readable(damaged(seed), names[seed])}
    root = tmp_path / ("x.zip" if packed else "x")
    if packed:
        with zipfile.ZipFile(root, "w") as archive:
            for seed, name in names.items():
                archive.writestr(name, damaged(seed))
    else:
        for seed, name in names.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(damaged(seed))
    dataset = load(DataConfig(source=str(root), unreadable="skip"))
    kept = [key for split in dataset.splits.values() for key in split.keys]
    assert sorted(kept) == sorted(names[seed] for seed in good)
    assert any(note.startswith(f"{count - len(good)} images that cannot be read") for note in dataset.notes)
    found = inspect(load(DataConfig(source=str(root))))
    assert sum(found.totals.values()) == count
    # What decodes may still have no RGB form, so the inspection, which keeps each mode, may call fewer unreadable.
    assert {broken.place.key for broken in found.unreadable} <= {names[seed] for seed in set(names) - good}
    assert len(found.unreadable) + sum(found.modes.values()) == count


def png(width: int, height: int, depth: int, colour: int, body: bytes = b"") -> bytes:
    """A PNG with this header and this raw data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(0, 5, 8, 2), ""),
        (png(60_000, 60_000, 8, 2), "decompression bomb"),
        (png(2**31 - 1, 2**31 - 1, 16, 6), "decompression bomb"),
        (png(13_000, 13_000, 8, 2), "truncated"),
        (b"P6 13000 13000 255\n1", "truncated"),
        (b"P3 13000 13000 255\n1 2 3", "not enough"),
        (b"P6 0 0 255\n", ""),
        (b"P6 60000 60000 255\n", "decompression bomb"),
        (b"GIF89a\0\0\0\0\0\0\0;", ""),
        (b"GIF89a\xff\xff\xff\xff\0\0\0;", ""),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0), "bomb"),
    ],
)
def test_headers_that_promise_too_much_or_nothing(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode(data, "x.png")


def test_a_bomb_inside_a_text_block_is_refused() -> None:
    text = zlib.compress(bytes(80_000_000), 9)
    body = b"k\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = png(2, 2, 8, 0, bytes(6))
    with pytest.raises(UnreadableImage, match="too large"):
        decode(data[:33] + chunk + data[33:], "x.png")


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (3, 5000), (1, 1), (2, 1)])
def test_very_long_pictures_are_cropped_in_bounded_memory(size: tuple[int, int]) -> None:
    image = decode(save(Image.new("RGB", size, (9, 90, 200)), "PNG"), "x")
    assert CentreCrop(64)(image).shape == (1, 3, 64, 64)
    assert FiveCrops(64, 24)(image).shape == (5, 3, 64, 64)
    for augment in (MDA(), LiftAugment(), NoAugment()):
        for progress in (0.0, 1.0):
            view = augment(image, 64, "bicubic", progress, torch.Generator().manual_seed(0))
            assert view.shape == (3, 64, 64)
            assert view[:, 5, 5].tolist() == [9, 90, 200]


def test_ordinary_long_pictures_are_cropped_as_before() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 30, 3), dtype=np.uint8))
    expected = image.resize((36, 720), Image.Resampling.BICUBIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(CentreCrop(32)(image)[0].permute(1, 2, 0).numpy(), np.asarray(expected)[344:376, 2:34])


def test_wide_greyscale_takes_little_memory() -> None:
    rows = np.linspace(0, 65_535, 3 * 4000, dtype=np.uint16).reshape(4000, 3)
    values = np.asarray(decode(save(Image.fromarray(rows), "PNG"), "x"))[..., 0]
    assert np.array_equal(values, np.rint(rows / 257).astype(np.uint8))
