"""Every kind of picture comes out as upright 8-bit RGB; everything else is named and refused."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from liftplus.data.images import UnreadableImage, decode, original, upright_rgb


def save(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def near(pixel: object, expected: tuple[int, int, int], tolerance: int = 0) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True))


def noise(size: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("1", 0, "TIFF", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("LA", (40, 255), "PNG", (40, 40, 40)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("LA", (0, 128), "PNG", (127, 127, 127)),
        ("RGBA", (0, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), "PNG", (255, 127, 127)),
        ("RGBA", (1, 2, 3, 255), "WEBP", (1, 2, 3)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 32896, "PNG", (128, 128, 128)),
        ("I;16", 300, "TIFF", (1, 1, 1)),
        ("I", 32896, "TIFF", (128, 128, 128)),
        ("F", 0.5, "TIFF", (128, 128, 128)),
        ("F", 200.0, "TIFF", (200, 200, 200)),
    ],
)
def test_modes(mode: str, colour: object, kind: str, expected: tuple[int, int, int]) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(save(Image.new(mode, (5, 3), colour), kind, **options), "x")  # type: ignore[arg-type]
    assert image.mode == "RGB"
    assert image.size == (5, 3)
    assert near(image.getpixel((1, 1)), expected, tolerance=1)


def test_wide_greyscale_keeps_its_steps() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    values = np.asarray(decode(save(Image.fromarray(ramp)), "ramp"))[..., 0]
    assert len(np.unique(values)) == 256  # clipping would leave almost everything at 255


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((0, 0), 1)
    decoded = decode(save(image, transparency=0), "x")
    assert decoded.getpixel((3, 3)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (0, 0, 200)


def test_transparent_colour_of_an_rgb_file_lies_on_white() -> None:
    decoded = decode(save(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)), "x")
    assert decoded.getpixel((1, 1)) == (255, 255, 255)


def test_cmyk_jpeg() -> None:
    decoded = decode(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), "x")
    assert near(decoded.getpixel((8, 8)), (255, 0, 0), tolerance=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    # A viewer shows the red corner at the top left, however the file stores it.
    upright = Image.new("RGB", (32, 16), "blue")
    upright.paste("red", (0, 0, 8, 8))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose members that undo each orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(save(stored, "JPEG", exif=exif, quality=95), "x")
    assert decoded.size == (32, 16)
    assert near(decoded.getpixel((3, 3)), (254, 0, 0), tolerance=6)
    assert near(decoded.getpixel((28, 12)), (0, 0, 254), tolerance=6)
    assert decoded.getexif().get(0x0112, 1) == 1  # or a second reader would turn it again


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = save(noise(16), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, "x").size == (16, 16)


def test_content_counts_not_the_ending(png: object) -> None:
    assert decode(save(noise(8), "PNG"), "really-a-png.jpg").size == (8, 8)


JPEG = save(noise(), "JPEG")
PNG = save(noise())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"not an image at all", "no image format"),
        (b"<html><body>404</body></html>", "no image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:20], ""),
        (PNG[: len(PNG) // 2], ""),
        (PNG[:40], ""),
        (b"\0" * 5000, "no image format"),
    ],
)
def test_faults_name_the_file_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(data, "cats/broken one.jpg")
    message = str(caught.value)
    assert message.startswith("cats/broken one.jpg cannot be read as an image: ")
    assert reason in message
    assert message.endswith(".")
    assert "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # it must survive the way out of a worker


def test_decompression_bomb() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = PNG[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(data, "bomb.png")


def test_original_keeps_the_mode() -> None:
    assert original(save(Image.new("L", (3, 3))), "x").mode == "L"


def ramp(low: float, high: float, kind: type) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 64).reshape(8, 8).astype(kind))


def shades(data: bytes) -> tuple[int, int]:
    values = np.asarray(decode(data, "x"))
    return int(values.min()), int(values.max())


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 65535, np.uint16, (0, 255)),
        (0, 4095, np.uint16, (0, 16)),
        (0, 65535, np.int32, (0, 255)),
        (0, 2**30, np.int32, (0, 255)),
        (-1000, 32768, np.int32, (0, 128)),
        (0, 1, np.float32, (0, 255)),
        (0, 0.5, np.float32, (0, 128)),
        (0, 255, np.float32, (0, 255)),
        (0, 4095, np.float32, (0, 16)),
        (0, 65535, np.float32, (0, 255)),
        (0, 1e6, np.float32, (0, 255)),
        (-1, 1, np.float32, (0, 255)),
        (0, 0, np.float32, (0, 0)),
    ],
)
def test_one_rule_for_values_of_more_than_8_bits(
    low: float, high: float, kind: type, expected: tuple[int, int]
) -> None:
    assert shades(save(ramp(low, high, kind), "TIFF")) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_change_no_scale(value: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0] = value
    decoded = np.asarray(decode(save(Image.fromarray(values), "TIFF"), "x"))
    assert decoded[1, 1].tolist() == [128] * 3
    assert decoded[0, 0, 0] == (255 if value == np.inf else 0)


LOWEST, HIGHEST = -3.4028234663852886e38, 3.4028234663852886e38  # what floats of 32 bits hold
NO_DATA = 42113  # GDAL's tag


@pytest.mark.parametrize(
    ("kind", "no_data", "declared", "brightest", "expected"),
    [
        (np.float32, LOWEST, "-3.4028234663852886e+38", 0.5, 128),
        (np.float32, HIGHEST, "3.4028234663852886e+38", 0.5, 128),
        (np.float32, HIGHEST, "3.40282e+38\0", 0.5, 128),  # written with fewer digits
        (np.float32, np.inf, "1.7976931348623157e+308", 0.5, 128),  # a no-data value of 64 bits
        (np.float32, 9999.9, "9999.9", 200, 200),
        (np.float32, np.nan, "nan", 0.5, 128),
        (np.uint16, 65535, "65535", 32768, 128),
        (np.int32, 2**31 - 1, "2147483647", 32768, 128),
        (np.int32, -32768, " -32768 ", 32768, 128),
    ],
)
def test_declared_no_data_is_missing(
    kind: type, no_data: float, declared: str, brightest: float, expected: int
) -> None:
    values = ramp(0, brightest, kind)
    pixels = np.asarray(values).copy()
    pixels[0, 0] = no_data
    data = save(Image.fromarray(pixels), "TIFF", tiffinfo={NO_DATA: declared})
    decoded = np.asarray(decode(data, "x"))[..., 0]
    assert decoded[0, 0] == 0
    assert decoded.max() == expected
    assert np.array_equal(np.asarray(upright_rgb(Image.open(io.BytesIO(data))))[..., 0], decoded)


@pytest.mark.parametrize("declared", ["", "none", "1 2"])
def test_text_that_is_no_number_declares_no_missing_values(declared: str) -> None:
    data = save(ramp(0, 65535, np.uint16), "TIFF", tiffinfo={NO_DATA: declared})
    assert shades(data) == (0, 255)


def test_huge_values_change_no_scale_undeclared_either() -> None:
    pixels = np.full((70, 3), 0.5, np.float32)
    pixels[69, :2] = HIGHEST, LOWEST
    decoded = np.asarray(decode(save(Image.fromarray(pixels), "TIFF"), "x"))[..., 0]
    assert decoded[69].tolist() == [255, 0, 128]
    assert decoded[:69].tolist() == [[128] * 3] * 69


def test_32_bits_without_sign() -> None:
    """Pillow reads values from 2**31 up as negative ones."""
    pixels = struct.pack("<4I", 0, 2**30, 2**31, 2**32 - 1)
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 32), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(pixels)))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + table + bytes(4)
    assert np.asarray(decode(data, "x"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_declared_12_bits_fill_the_range() -> None:
    values = [round(value) for value in np.linspace(0, 4095, 64)]
    pairs = zip(values[::2], values[1::2], strict=True)
    pixels = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 8)]
    tags.append((279, 4, len(pixels)))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    start = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    assert shades(start + pixels + struct.pack("<H", len(tags)) + table + bytes(4)) == (0, 255)


def test_an_accepted_picture_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow warns above it, and refuses above twice of it
    palette = Image.new("P", (8, 8))
    palette.putpalette([200, 0, 0] * 2)
    files = [
        save(noise(64)),
        save(noise(16), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        save(palette, transparency=b"\0\x80"),
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(lambda data: decode(data, "x").size, files * 8))) == 24
        assert warnings.filters == before
    assert seen == []
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(save(noise(80)), "x")
