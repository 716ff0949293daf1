"""Pictures that are cut and resized as `data.decode` says: by Pillow, or by faster code that gives nearly its pixels.

Bicubic and bilinear resizing antialias in both. Decoded JPEGs are the same bits; resizing differs by rounding.
"""

from __future__ import annotations

import math
import re
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liftplus.data.images import decode, header, is_upright, unreadable

if TYPE_CHECKING:  # what only looks at files starts without PyTorch
    from torch import Tensor

Box = tuple[int, int, int, int]
Decode = Literal["fast", "exact", "scaled"]

KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Picture(Protocol):
    """An upright RGB picture; whether its data can be decoded may show only when pixels are asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        ...

    def cut(self, box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        """The part (left, top, right, bottom) at another size (width, height): uint8 [3, height, width]."""
        ...


def resized(image: Image.Image, size: tuple[int, int], kernel: str) -> Image.Image:
    """The picture at another size (width, height), by Pillow: first the width, then the height.

    Pillow rounds to whole grey levels in between. Before version 13 it always takes this order; 13 takes the other for
    tall pictures (its pull request 9549), whose pixels would then depend on the version.
    """
    for side in ((size[0], image.height), size):
        image = image if image.size == side else image.resize(side, KERNELS[kernel])
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to uint8 [3, H, W]."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class PillowPicture:
    """The reference: Pillow decodes, cuts and resizes."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def cut(self, box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        part = self.image if box == (0, 0, *self.image.size) else self.image.crop(box)
        return to_tensor(resized(part, size, kernel))


@dataclass(frozen=True)
class ArrayPicture:
    """Decoded pixels [H, W, 3] of uint8."""

    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]

    def cut(self, box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        return _resized(self.pixels, box, size, kernel)


class JpegPicture(NamedTuple):
    """A plain JPEG of one scan, of which only the rows down to the end of the box are decoded.

    Attributes:
        data: the file.
        name: what an error calls it.
        mode: as Pillow names it, RGB or L.
        size: (width, height) in pixels.
        end: where its end mark ends.
        frame: where the header of the frame starts.
        unit: rows that are coded together, 8 or 16 as a rule.
        scaled: decode at 1/2, 1/4 or 1/8 of the size where the box is still no smaller than what is asked for.
        annotated: whether there are blocks that Pillow reads and libjpeg ignores.
    """

    data: bytes
    name: str
    mode: str
    size: tuple[int, int]
    end: int
    frame: int
    unit: int
    scaled: bool
    annotated: bool = False

    def top(self, rows: int) -> NDArray[np.uint8] | None:
        """The first rows of pixels, [rows, W, 3], until the next call; None where the file is not what it seems."""
        pixels = self._decoded(min(rows, self.size[1]), 1)
        return None if pixels is None else pixels[:rows]

    def cut(self, box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        least = min((box[2] - box[0]) // size[0], (box[3] - box[1]) // size[1])
        shrink = max(k for k in (1, 2, 4, 8) if k <= max(least, 1)) if self.scaled else 1
        pixels = self._decoded(box[3], shrink)
        if pixels is None:  # Pillow decides what is wrong with the file
            return ArrayPicture(np.asarray(decode(self.data, self.name))).cut(box, size, kernel)
        left, top, right, bottom = (round(edge / shrink) for edge in box)
        return _resized(pixels, (left, top, right, bottom), size, kernel)

    def _decoded(self, bottom: int, shrink: int) -> NDArray[np.uint8] | None:
        import simplejpeg

        width, height = self.size
        # One unit more than the box, since colours are interpolated from the rows below.
        rows = min(height, (-(-bottom // self.unit) + 1) * self.unit)
        data: bytes | NDArray[np.uint8] = self.data
        if rows < height or self.end < len(self.data):
            data = _file.of(self.end)
            data[:] = np.frombuffer(self.data, np.uint8, self.end)
            data[self.frame + 5 : self.frame + 7] = divmod(rows, 256)
        wanted = (-(-rows // shrink), -(-width // shrink))
        try:
            # Not strict: damage that libjpeg can mend is mended, as Pillow has it.
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data,
                "RGB",
                min_height=wanted[0],
                min_width=wanted[1],
                min_factor=shrink,
                buffer=_pixels.of(3 * wanted[0] * wanted[1]),
                strict=False,
            )
        except ValueError:
            return None
        return pixels if pixels.shape == (*wanted, 3) else None


class _Memory(threading.local):
    """Memory that each thread keeps: new pages from the system would take a sixth of the time."""

    most = 1 << 26
    kept = np.empty(0, np.uint8)

    def of(self, size: int) -> NDArray[np.uint8]:
        """An array of this many bytes, which the next call may hand out again."""
        if size > self.most:
            return np.empty(size, np.uint8)
        if size > len(self.kept):
            self.kept = np.empty(min(2 * size, self.most), np.uint8)
        return self.kept[:size]


_file, _pixels = _Memory(), _Memory()


def picture(data: bytes, name: str, how: Decode, most: int | None = None) -> Picture:
    """The picture in the bytes of an image file. Raises `UnreadableImage`, here or when pixels are asked for.

    Args:
        most: refuse a picture of more pixels by its header, before it is decoded; by default Pillow's limit applies.
    """
    plain = None if how == "exact" else plain_jpeg(data, name, how == "scaled")
    if most is not None:
        width, height = plain.size if plain else header(data, name)[1]
        if width * height > most:
            error = ValueError(f"it has {width:,} x {height:,} pixels, and at most {most:,} are allowed")
            raise unreadable(name, error)
    if plain is not None:
        return plain
    image = decode(data, name)
    return PillowPicture(image) if how == "exact" else ArrayPicture(np.asarray(image))


# In the coded pixels of one scan, 0xFF stands before 0x00, before restart marks or before further 0xFF only.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_BLOCK = struct.Struct(">BH")  # the kind of a block and its length
_PASSED = frozenset(
    {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF}
)  # tables, comments and blocks that no decoder reads
_LARGEST = 65_500  # the longest side that libjpeg takes
_TURNS = (b"Exif\0", b"http://ns.adobe.com/xap")  # blocks that may say that the picture is turned
_READ = (0xE2, 0xED)  # colour profiles, several pictures in one file, Photoshop's
_SHORT = {0xE0: 16, 0xEE: 14}  # JFIF's and Adobe's, which are of one length


def plain_jpeg(data: bytes, name: str, scaled: bool) -> JpegPicture | None:
    """A JPEG that libjpeg is certain to read; None for all other files, which Pillow reads."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    place, frame, parts, annotated = 2, 0, 0, False
    last = len(data) - 10
    while place < last and data[place] == 0xFF:
        kind, length = _BLOCK.unpack_from(data, place + 1)
        if kind in _PASSED:
            pass
        elif kind in (0xC0, 0xC1):
            frame, parts = place, data[place + 9]
            if length != 8 + 3 * parts:
                return None
        elif kind == 0xDA:
            break
        elif 0xC2 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return None  # progressive, lossless or arithmetic
        elif kind == 0xE1 and data.startswith(_TURNS, place + 4) and not is_upright(data):
            return None
        elif kind in _READ or (kind in _SHORT and length < _SHORT[kind]):
            annotated = True
        place += 2 + length
    if not frame or parts not in (1, 3):
        return None
    # All colours in one scan of all frequencies, and nothing behind it but the end.
    scan = place + 4 + 2 * parts
    start = b"\xff\xda" + bytes([0, 6 + 2 * parts, parts])
    if data[place : place + 5] != start or data[scan + 1 : scan + 4] != b"\0\x3f\0":
        return None
    depth, height, width = data[frame + 4], _number(data, frame + 5), _number(data, frame + 7)
    if depth != 8 or not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or math.inf) or max(width, height) > _LARGEST:
        return None  # Pillow may take it for a bomb
    end = _MARKER.search(data, scan + 4)
    if end is None or end.group() != b"\xff\xd9":
        return None
    factors = [data[frame + 11 + 3 * part] & 15 for part in range(parts)]
    unit = 8 * (max(factors) if parts > 1 else 1)
    mode = "RGB" if parts == 3 else "L"
    return JpegPicture(data, name, mode, (width, height), end.end(), frame, unit, scaled, annotated)


def _number(data: bytes, place: int) -> int:
    return data[place] << 8 | data[place + 1]


def _resized(pixels: NDArray[np.uint8], box: Box, size: tuple[int, int], kernel: str) -> Tensor:
    import torch
    from torch.nn.functional import interpolate

    left, top, right, bottom = box
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    part = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
    if (right - left, bottom - top) == size:
        return part.clone(memory_format=torch.contiguous_format)
    return interpolate(part.unsqueeze(0), size[::-1], mode=kernel, antialias=True).squeeze(0).contiguous()
