"""Facts about a picture's file: whether it decodes, its mode and size, whether it is nearly black or white.

Most JPEGs need no full decode for that. Once `plain_jpeg` has checked a file's structure up to the end mark, libjpeg
cannot fail on the coded pixels: it mends damage there. Decoding the first rows checks headers and tables.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from PIL import Image

from liftplus.data.images import UnreadableImage, extremes, header, is_upright, is_wide, original, scale, unreadable
from liftplus.data.pictures import plain_jpeg

DARK, PALE = 64, 191
"""A picture without a brighter or without a darker value is nearly black or white."""
DIGEST = 16
"""Bytes of a digest."""


class Facts(NamedTuple):
    """What one file holds.

    Attributes:
        digest: of its bytes; None where there are none.
        reason: why it cannot be decoded, or "".
        mode: as Pillow names it.
        size: (width, height) in pixels, upright.
        dark: no value is above `DARK`.
        pale: no value is under `PALE`.
        white: the value that becomes 255, for a floating-point picture; else None.
        below: some values are under 0.
        missing: some values are NaN or declared as no data.
    """

    digest: bytes | None = None
    reason: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    dark: bool = False
    pale: bool = False
    white: float | None = None
    below: bool = False
    missing: bool = False


def of_bytes(data: bytes, name: str) -> Facts:
    """The facts of an image file's content; an error calls it `name`."""
    found = digest(data) if data else None
    try:
        return _of_rows(data, name, found) or of_image(original(data, name), found)
    except UnreadableImage as error:
        return Facts(found, str(error))
    except Exception as error:  # a mode that Pillow cannot convert, or not enough memory
        return Facts(found, str(unreadable(name, error)))


def of_header(data: bytes, name: str) -> Facts:
    """What the first bytes of an image file say: whether its header can be read, mode and size."""
    try:
        return Facts(None, "", *header(data, name))
    except UnreadableImage as error:
        return Facts(reason=str(error))


def of_image(image: Image.Image, found: bytes | None = None) -> Facts:
    """The facts of a decoded picture; the digest is that of its pixels unless it is given."""
    if found is None:
        found = digest_of_pixels(image)
    low, high = extremes(image)
    dark, pale = high <= DARK, low >= PALE
    if not is_wide(image):
        return Facts(found, "", image.mode, image.size, dark, pale)
    own = scale(image)
    white = own.white if image.mode == "F" else None
    return Facts(found, "", image.mode, image.size, dark, pale, white, own.lowest < 0, own.missing > 0)


def _of_rows(data: bytes, name: str, found: bytes | None) -> Facts | None:
    """The facts of a plain JPEG, decoded only until it is neither dark nor pale; None for other files."""
    plain = plain_jpeg(data, name, scaled=False)
    if plain is None or (plain.annotated and not is_upright(data)):
        return None
    rows, height = plain.unit, plain.size[1]
    while (pixels := plain.top(rows)) is not None:
        dark, pale = int(pixels.max()) <= DARK, int(pixels.min()) >= PALE
        if rows >= height or not (dark or pale):
            return Facts(found, "", plain.mode, plain.size, dark, pale)
        rows *= 8
    return None


def digest_of_pixels(image: Image.Image) -> bytes:
    """Digest of a picture's size and pixels."""
    return digest(f"{image.size}".encode() + image.tobytes())


def digest(data: bytes) -> bytes:
    """The first `DIGEST` bytes of the data's SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST]
