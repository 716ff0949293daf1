"""Pictures in memory as a store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from liftplus.data.identity import Origin
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import ArrayPicture, Picture, PillowPicture
from liftplus.data.stores import ByteStore


class ArrayStore(ByteStore):
    """Pictures in memory, uint8 [N, H, W, 3] or a sequence of [H, W, 3]; keys are indices."""

    def __init__(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], name: str = "array") -> None:
        self.images = images
        self.name = name

    def where(self, key: str) -> str:
        """The array's name and the index."""
        return f"{self.name}[{key}]"

    def image(self, key: str) -> Image.Image:
        """The picture at this index."""
        try:
            return Image.fromarray(self.images[int(key)])
        except (ValueError, IndexError) as error:
            raise UnreadableImage(f"{self.where(key)} cannot be read: {error}.") from error

    def picture(self, key: str) -> Picture:
        """The picture, to be cut and resized as `decode` says."""
        image = self.image(key)
        return PillowPicture(image) if self.decode == "exact" else ArrayPicture(np.asarray(image))

    def size(self, key: str) -> int:
        """Of the pixels, in bytes."""
        return self.images[int(key)].nbytes

    def origin(self, key: str) -> Origin:
        """The pixels."""
        image = self.images[int(key)]
        return Origin("", f"{image.shape} {image.dtype.str} {hashlib.sha256(image.tobytes()).hexdigest()}")

    def read(self, key: str) -> bytes:
        """The picture as an uncompressed image file, so that equal pixels are equal bytes."""
        return uncompressed(self.image(key))


def uncompressed(image: Image.Image) -> bytes:
    """A picture as a file without compression."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()
