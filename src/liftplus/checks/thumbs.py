"""Every picture read once: a small copy of it, and a digest by which equal ones are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from liftplus.data.dataset import Store
from liftplus.data.each_picture import Progress, over
from liftplus.data.file_facts import DIGEST, digest, digest_of_pixels
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import PillowPicture, picture
from liftplus.data.stores import ByteStore

SIDE = 48
"""Pixels of a side of the small copies, whatever the shape of the picture."""


class Thumb(NamedTuple):
    """One picture.

    Attributes:
        pixels: of the small copy, SIDE x SIDE x 3 bytes; none where the picture cannot be decoded.
        digest: of the file's bytes, or of the pixels where the picture is no file of its own.
        reason: why it cannot be decoded, or "".
    """

    pixels: bytes = b""
    digest: bytes = b""
    reason: str = ""


@dataclass(frozen=True)
class Thumbs:
    """The small copies of N pictures.

    Attributes:
        pixels: uint8 [N, SIDE, SIDE, 3], 0 where a picture cannot be decoded.
        digests: bytes [N, DIGEST], 0 likewise.
        unreadable: the reason by a picture's number.
    """

    pixels: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    unreadable: dict[int, str]

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """The number of the first picture with the same digest, for each [N]; an unreadable one has its own number."""
        _, firsts, group = np.unique(self.digests, axis=0, return_index=True, return_inverse=True)
        found = firsts[group.ravel()].astype(np.int64)
        found[list(self.unreadable)] = list(self.unreadable)
        return found


def read(store: Store, keys: Sequence[str], progress: Progress | None = None) -> Thumbs:
    """Small copies of the pictures of these keys, in order."""
    pixels = np.zeros((len(keys), SIDE, SIDE, 3), np.uint8)
    digests = np.zeros((len(keys), DIGEST), np.uint8)
    unreadable: dict[int, str] = {}
    for number, thumb in enumerate(over(store, keys, _thumbs, progress)):
        if thumb.reason:
            unreadable[number] = thumb.reason
            continue
        pixels[number] = np.frombuffer(thumb.pixels, np.uint8).reshape(SIDE, SIDE, 3)
        digests[number] = np.frombuffer(thumb.digest, np.uint8)
    return Thumbs(pixels, digests, unreadable)


def _thumbs(store: Store, keys: Sequence[str]) -> list[Thumb]:
    return [_thumb(store, key) for key in keys]


def _thumb(store: Store, key: str) -> Thumb:
    try:
        if isinstance(store, ByteStore) and type(store).picture is ByteStore.picture:
            data = store.read(key)
            found, known = picture(data, store.where(key), "scaled"), digest(data)
        else:
            image = store.image(key)
            found, known = PillowPicture(image), digest_of_pixels(image)
        small = found.cut((0, 0, *found.size), (SIDE, SIDE), "bilinear")
    except UnreadableImage as error:
        return Thumb(reason=str(error))
    return Thumb(small.permute(1, 2, 0).contiguous().numpy().tobytes(), known)
