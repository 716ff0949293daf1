"""From the bytes of an image file to an upright RGB picture, or one clear sentence why not."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
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
        raise _unreadable(name, error) from error


def original(data: bytes, name: str) -> Image.Image:
    """The picture fully decoded and upright, in the mode that the file stores."""
    if not data:
        raise UnreadableImage(f"{name} cannot be read as an image: the file is empty (0 bytes).")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if 0 in image.size:
            raise ValueError("it has no pixels")
        image.load()
        return _turned(image)
    except Exception as error:  # damaged files make Pillow's readers raise nearly every built-in exception
        raise _unreadable(name, error) from error


def is_upright(data: bytes) -> bool:
    """Whether a JPEG needs no turning; False for damaged ones."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # left to `decode`, which says what is the matter
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode in 8-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """An open picture as `decode` would have it."""
    return to_rgb(_turned(image))


@cache
def _formats() -> tuple[str, ...]:
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


def _eight_bit(image: Image.Image) -> Image.Image:
    """Wide greyscale scaled to 8 bit; Pillow's own conversion would clip everything above 255 to white.

    Row by row, since a file that declares many pixels would take dozens of bytes for each.
    """
    rows = np.asarray(image)
    largest = max((float(np.nan_to_num(row.astype(np.float64)).max(initial=0.0)) for row in rows), default=0.0)
    # 32-bit modes mostly hold 16-bit data; what is larger has no agreed white, so its own maximum serves.
    full = max(65535.0, largest) if image.mode != "F" else 255.0 if largest > 1.0 else 1.0
    scaled = np.empty(rows.shape, dtype=np.uint8)
    for place, row in zip(scaled, rows, strict=True):
        place[:] = np.clip(np.rint(np.nan_to_num(row.astype(np.float64)) * (255.0 / full)), 0, 255)
    return Image.fromarray(scaled)


def _unreadable(name: str, error: Exception) -> UnreadableImage:
    if isinstance(error, UnidentifiedImageError):
        reason = "its content is no image format that is supported"
    elif isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        reason = "it claims so many pixels that it may be a decompression bomb"
    else:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UnreadableImage(f"{name} cannot be read as an image: {reason}.")
