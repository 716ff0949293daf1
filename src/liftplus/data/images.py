"""From the bytes of an image file to an upright RGB picture, or one clear sentence why not."""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from liftplus.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
    }
)
"""File name endings, in lower case, that count as pictures when a folder or archive is listed."""

# A closed list, because Pillow would also run an external program on PostScript files.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ON_SIDE = (5, 6, 7, 8)  # of these, width and height change places

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _NO_DATA = 258, 339, 42113  # TIFF's and GDAL's tags
_BITS, _UNSIGNED, _MISSING = "liftplus_bits", "liftplus_unsigned", "liftplus_missing"
_HUGE = 1e37  # No picture measures such values; some stand for missing ones, as float's largest does.
_BLOCK = 64  # rows that are converted to float64 at a time


class _Silence:
    """Suppress Pillow's warnings about pictures that are accepted, in any number of threads.

    The first thread that enters sets Python's warning filters, and the last one that leaves restores them.
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # a thread that the child lacks may hold the lock

    def _forget(self) -> None:
        self.lock, self.inside, self.kept = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.kept = warnings.catch_warnings()
                self.kept.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.kept.__exit__(None, None, None)


_SILENCE = _Silence()


class UnreadableImage(UserError):  # noqa: N818 - it states what is the matter
    """A picture that cannot be decoded; the message names the file and the reason."""


def decode(data: bytes, name: str) -> Image.Image:
    """The picture in RGB, upright, with transparency laid on white.

    Args:
        data: the whole content of the file.
        name: what the error calls the file.

    Raises:
        UnreadableImage: the data are empty, damaged, unsafe or no image.
    """
    try:
        return to_rgb(original(data, name))
    except UnreadableImage:
        raise
    except Exception as error:  # a mode that Pillow cannot convert, or not enough memory
        raise unreadable(name, error) from error


def original(data: bytes, name: str) -> Image.Image:
    """The picture fully decoded and upright, in the mode that the file stores."""
    try:
        with _SILENCE:
            image = _opened(data)
            declared = _declared(image)
            image.load()
            image.info.update(declared)
            return _turned(image)
    except Exception as error:  # damaged files make Pillow's readers raise nearly every built-in exception
        raise unreadable(name, error) from error


def header(data: bytes, name: str) -> tuple[str, tuple[int, int]]:
    """Mode, and (width, height) of the upright picture, by the header alone; pixels may be missing.

    A PNG that says how it is turned behind its pixels counts as it is stored.
    """
    try:
        with _SILENCE, _opened(data) as image:
            mode, size = image.mode, image.size
            with contextlib.suppress(Exception):  # as in `_turned`
                if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION) in _ON_SIDE:
                    size = size[1], size[0]
            return mode, size
    except Exception as error:
        raise unreadable(name, error) from error


def _opened(data: bytes) -> Image.Image:
    """A picture of which the header has been read."""
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    image = Image.open(io.BytesIO(data), formats=formats())
    if 0 in image.size:
        raise ValueError("it has no pixels")
    return image


def _declared(image: Image.Image) -> dict[str, float]:
    """What a TIFF file declares of its values: bits, unsigned or not, and the value that stands for missing ones."""
    tags = getattr(image, "tag_v2", {})
    found: dict[str, float] = {}
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        found[_BITS] = 12
    if tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        found[_UNSIGNED] = 1
    with contextlib.suppress(ValueError):  # text that is no number declares nothing
        found[_MISSING] = float(str(tags.get(_NO_DATA, "")).strip("\0 ,"))
    return found


def is_upright(data: bytes) -> bool:
    """Whether a JPEG needs no turning; False for damaged ones."""
    try:
        with _SILENCE, Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # `decode` reports the reason
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode in 8-bit RGB."""
    with _SILENCE:
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_wide(image):
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def extremes(image: Image.Image) -> tuple[int, int]:
    """The darkest and the brightest value of an upright picture's 8-bit channels."""
    if image.mode not in ("L", "RGB") or image.has_transparency_data:
        image = to_rgb(image)
    found = image.getextrema()
    ranges: Any = found if isinstance(found[0], tuple) else (found,)
    return int(min(low for low, _ in ranges)), int(max(high for _, high in ranges))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An open picture as `decode` returns it: upright, RGB."""
    declared = _declared(image)
    turned = _turned(image)
    if declared and is_wide(turned):
        turned = turned.copy()  # the caller's picture stays as it is
        turned.info.update(declared)
    return to_rgb(turned)


@cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here, as Pillow names them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _turned(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which did decode
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    image = image.transpose(method)
    for block in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        image.info.pop(block, None)  # the turn is done; nobody should do it again
    return image


def is_wide(image: Image.Image) -> bool:
    """Whether a picture is grey with more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


@dataclass(frozen=True)
class Scale:
    """How the values of a grey picture of more than 8 bits become 8.

    Attributes:
        white: the value that becomes 255; 0 and less become 0. Whole numbers: 65,535, or 4,095 where the file declares
            12 bits. Fractions: 1, 255 or 65,535, the smallest that no value exceeds. Larger values have no agreed
            white, so the largest serves.
        lowest: the smallest value; 0 without any.
        missing: how many values are missing. They become 0 and count neither for `white` nor for `lowest`; infinite
            and huge ones do not count either.
    """

    white: float
    lowest: float
    missing: int


def scale(image: Image.Image) -> Scale:
    """The scale of a grey picture of more than 8 bits."""
    lowest, largest, missing = math.inf, 0.0, 0
    for values, absent in _blocks(image):
        counted = ~absent & (np.abs(values) < _HUGE)
        largest = max(largest, float(values.max(initial=0.0, where=counted)))
        lowest = min(lowest, float(values.min(initial=math.inf, where=counted)))
        missing += int(np.count_nonzero(absent))
    bits = image.info.get(_BITS)
    levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((level for level in levels if largest <= level), largest)
    if bits is not None and image.mode != "F":
        white = float(2**bits - 1)
    return Scale(white, lowest if math.isfinite(lowest) else 0.0, missing)


def _blocks(image: Image.Image) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Values and which of them are missing, some rows at a time: a whole picture in float64 takes much memory."""
    rows = np.asarray(image)
    declared = image.info.get(_MISSING)
    unsigned = image.mode == "I" and _UNSIGNED in image.info
    for start in range(0, len(rows), _BLOCK):
        values = rows[start : start + _BLOCK].astype(np.float64)
        if unsigned:  # Pillow reads them as signed
            values[values < 0] += 2.0**32
        absent = np.isnan(values)
        if declared is not None and abs(declared) >= _HUGE:  # written with few digits, or beyond what floats hold
            absent |= values * math.copysign(1.0, declared) >= _HUGE
        elif declared is not None:
            absent |= (values == declared) | (values == float(np.float32(declared)))
        yield values, absent


def _eight_bit(image: Image.Image) -> Image.Image:
    """Wide greyscale scaled to 8 bit; Pillow's own conversion would clip everything above 255 to white."""
    full = scale(image).white
    scaled = np.empty(image.size[::-1], dtype=np.uint8)
    for number, (values, absent) in enumerate(_blocks(image)):
        values[absent] = 0.0
        part = scaled[number * _BLOCK : (number + 1) * _BLOCK]
        part[:] = np.clip(np.rint(np.clip(values, 0.0, full) * (255.0 / full)), 0, 255)
    return Image.fromarray(scaled)


def unreadable(name: str, error: Exception) -> UnreadableImage:
    """One sentence on why an image file gives no picture."""
    if isinstance(error, UnidentifiedImageError):
        reason = "its content is no image format that is supported"
    elif isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        reason = "it claims so many pixels that it may be a decompression bomb"
    else:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UnreadableImage(f"{name} cannot be read as an image: {reason}.")
