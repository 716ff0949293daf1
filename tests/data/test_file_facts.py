"""What a file's bytes say: the same as a full decode by Pillow, with less work."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from liftplus.data import file_facts
from liftplus.data.file_facts import DARK, PALE, Facts, of_bytes, of_header
from liftplus.data.images import UnreadableImage, decode, extremes, formats, original

from .test_pictures import OTHERS, PLAIN, encoded, photo


def by_pillow(data: bytes) -> Facts:
    """All pixels decoded, as it was done for every file before."""
    try:
        image = original(data, "x")
    except UnreadableImage as error:
        return Facts(reason=str(error))
    low, high = extremes(image)
    return Facts(mode=image.mode, size=image.size, dark=high <= DARK, pale=low >= PALE)


def verdict(data: bytes) -> str:
    """Why `decode`, which training calls, gives no picture, or ""."""
    try:
        decode(data, "x")
    except UnreadableImage as error:
        return str(error)
    return ""


def told(facts: Facts) -> tuple[object, ...]:
    return facts.reason, facts.mode, facts.size, facts.dark, facts.pale


def with_block(data: bytes, kind: int, content: bytes) -> bytes:
    return data[:2] + bytes([0xFF, kind]) + (2 + len(content)).to_bytes(2, "big") + content + data[2:]


def changed(seed: int) -> bytes:
    """A JPEG with a few bytes changed, cut out or put in, a marker somewhere, or its end cut off."""
    rng = random.Random(seed)
    data = bytearray(rng.choice([*PLAIN.values(), *OTHERS.values()]))
    place = rng.randrange(min(len(data), rng.choice((700, 10**6))))
    way = rng.randrange(5)
    if way == 0:
        del data[-rng.randrange(1, 30) :]
    elif way == 1:
        data[place] = rng.randrange(256)
    elif way == 2:
        del data[place : place + rng.randrange(1, 30)]
    elif way == 3:
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    else:
        data[place : place + 2] = bytes([0xFF, rng.choice((0xC0, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1, 0xED))])
    return bytes(data)


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_same_verdict_as_a_full_decode(count: int) -> None:
    files = [changed(seed) for seed in range(count)]
    assert [told(of_bytes(data, "x")) for data in files] == [told(by_pillow(data)) for data in files]
    assert {of_bytes(data, "x").reason == "" for data in files} == {True, False}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_whole_files(name: str) -> None:
    data = (PLAIN | OTHERS)[name]
    found = of_bytes(data, "x")
    assert told(found) == told(by_pillow(data))
    assert found.digest == of_bytes(data, "y").digest != of_bytes(data + b"x", "x").digest
    assert verdict(data) == found.reason


def test_few_rows_of_a_plain_jpeg_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: bytes, name: str) -> Image.Image:
        raise AssertionError(f"all of {name} is decoded")

    monkeypatch.setattr(file_facts, "original", full)
    data = encoded(photo(301, 803))
    rows = file_facts.plain_jpeg(data, "x", False)
    assert rows is not None
    pixels = rows.top(16)
    assert pixels is not None and np.array_equal(pixels, np.asarray(decode(data, "x"))[:16])
    assert told(of_bytes(data, "x")) == ("", "RGB", (301, 803), False, False)
    assert verdict(data) == ""


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 10_000])
def test_a_jpeg_that_ends_too_early_is_found(cut: int) -> None:
    data = encoded(photo(301, 203))[:-cut]
    assert "truncated" in of_bytes(data, "x").reason or "broken" in of_bytes(data, "x").reason
    assert verdict(data) == of_bytes(data, "x").reason == by_pillow(data).reason


def test_empty_files_have_a_reason_and_no_twin() -> None:
    found = of_bytes(b"", "x")
    assert found.digest is None and "0 bytes" in found.reason == verdict(b"")


@pytest.mark.parametrize("last", [0, 255])
def test_one_bright_or_dark_corner_at_the_end_counts(last: int) -> None:
    plain = np.full((400, 64, 3), 255 - last, dtype=np.uint8)
    assert told(of_bytes(encoded(Image.fromarray(plain)), "x"))[3:] == (last == 255, last == 0)
    plain[-8:, -8:] = last
    assert told(of_bytes(encoded(Image.fromarray(plain)), "x"))[3:] == (False, False)


def test_a_side_longer_than_libjpeg_takes_is_refused() -> None:
    data = bytearray(encoded(photo(16, 24)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 2] = (65_520).to_bytes(2, "big")
    assert of_bytes(bytes(data), "x").reason == by_pillow(bytes(data)).reason != ""


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (0xE2, b"ICC_PROFILE\0"),  # no number of its part
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),  # no name
        (0xEE, b"Adobe"),  # no version
        (0xE0, b"JFIF\0"),
        (0xE2, b"MPF\0" + bytes(20)),  # of several pictures, damaged
    ],
)
def test_blocks_that_only_pillow_reads_are_read(kind: int, content: bytes) -> None:
    data = with_block(encoded(photo(90, 60)), kind, content)
    assert told(of_bytes(data, "x")) == told(by_pillow(data))


def test_a_mode_without_rgb_is_no_traceback() -> None:
    out = io.BytesIO()
    Image.new("LAB", (8, 8)).save(out, "TIFF")
    assert of_bytes(out.getvalue(), "x").reason == verdict(out.getvalue())


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_a_header_says_mode_and_upright_size(name: str) -> None:
    data = (PLAIN | OTHERS)[name]
    assert told(of_header(data, "x")) == (*told(by_pillow(data))[:3], False, False)
    assert told(of_header(data[: len(data) // 2 + 600], "x")) == told(of_header(data, "x")), "without the last pixels"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_headers_of_other_formats(kind: str, mode: str) -> None:
    if kind not in formats():
        pytest.skip("this Pillow cannot read the format")
    out = io.BytesIO()
    photo(90, 60, mode).save(out, kind)
    assert told(of_header(out.getvalue(), "x"))[:3] == told(of_bytes(out.getvalue(), "x"))[:3]


@pytest.mark.parametrize("data", [b"", b"junk" * 9, encoded(photo(90, 60))[:100]])
def test_a_bad_header_has_the_reason_of_a_full_decode(data: bytes) -> None:
    assert of_header(data, "x").reason == verdict(data) != ""
