"""Recognise pictures by what is in their files: equal bytes are one picture, whatever the paths.

Pictures in memory have no files, so they are compared with files by their pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from liftplus.data import each_picture
from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import Store
from liftplus.data.file_facts import DIGEST, digest, digest_of_pixels
from liftplus.data.images import UnreadableImage
from liftplus.data.kept_facts import KeptFacts
from liftplus.data.looking import looked_at
from liftplus.data.stores import ByteStore

_UNREADABLE = -1


@dataclass(frozen=True)
class Contents:
    """What N pictures are recognised by. An unreadable one is equal to no other.

    Attributes:
        sizes: of each picture as its store counts them, int64 [N]; -1 if it cannot be read.
        digests: of each picture, uint8 [N, DIGEST].
    """

    sizes: NDArray[np.int64]
    digests: NDArray[np.uint8]

    @classmethod
    def of(cls, store: Store, keys: Sequence[str]) -> Self:
        """Reads every picture once."""
        found = list(each_picture.over(store, keys, _digests))
        sizes = sizes_of(store, keys)
        sizes[[k for k, one in enumerate(found) if not one]] = _UNREADABLE
        joined = b"".join(one or bytes(DIGEST) for one in found)
        return cls(sizes, np.frombuffer(joined, np.uint8).reshape(-1, DIGEST).copy())

    def hold(self, store: Store, keys: Sequence[str]) -> NDArray[np.bool_]:
        """Which of other pictures are among these, bool [M]. Only those whose size occurs here are read."""
        held = np.isin(sizes_of(store, keys), self.sizes[self.sizes != _UNREADABLE])
        places = np.flatnonzero(held)
        other = Contents.of(store, [keys[k] for k in places.tolist()])
        own = {(int(size), row.tobytes()) for size, row in zip(self.sizes, self.digests, strict=True)}
        for place, size, row in zip(places, other.sizes, other.digests, strict=True):
            held[place] = size != _UNREADABLE and (int(size), row.tobytes()) in own
        return held


def shared(store: Store, keys: Sequence[str], other: Store, others: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures [N] are among the others [M], bool [N]. Only pictures of equal size are read."""
    if isinstance(store, ArrayStore) != isinstance(other, ArrayStore):
        return _shared_pixels(store, keys, other, others)
    places = np.flatnonzero(np.isin(sizes_of(other, others), sizes_of(store, keys)))
    return Contents.of(other, [others[k] for k in places.tolist()]).hold(store, keys)


def _shared_pixels(store: Store, keys: Sequence[str], other: Store, others: Sequence[str]) -> NDArray[np.bool_]:
    """`shared` by size and pixels of the decoded pictures; of files of other sizes only the headers are read."""
    own, their = _areas(store, keys), _areas(other, others)
    known = {one for _, one in _decoded(other, others, np.isin(their, own))} - {b""}
    found = np.zeros(len(keys), np.bool_)
    for place, one in _decoded(store, keys, np.isin(own, their)):
        found[place] = one in known
    return found


def _decoded(store: Store, keys: Sequence[str], taken: NDArray[np.bool_]) -> Iterator[tuple[int, bytes]]:
    """The places of some pictures, and a digest of the pixels of each; b"" if it cannot be read."""
    places: list[int] = np.flatnonzero(taken).tolist()
    yield from zip(places, each_picture.over(store, [keys[k] for k in places], _pixel_digests), strict=True)


def _areas(store: Store, keys: Sequence[str]) -> NDArray[np.int64]:
    """Pixels of each picture, int64 [N]: 0 if it cannot be read. A header may not say how its picture is turned."""
    if isinstance(store, ArrayStore):
        sizes = [store.picture(key).size for key in keys]
    else:
        sizes = [found.facts.size for found in looked_at(store, keys, (), KeptFacts.of(False))]
    return np.array(sizes, np.int64).reshape(-1, 2).prod(1)


def sizes_of(store: Store, keys: Sequence[str]) -> NDArray[np.int64]:
    """The size of each picture, int64 [N]: 0 if it is drawn, -1 if it cannot be read."""
    return np.array([_size(store, key) for key in keys], np.int64)


def _size(store: Store, key: str) -> int:
    if not isinstance(store, ByteStore):
        return 0
    try:
        return store.size(key)
    except (UnreadableImage, LookupError, ValueError):
        return _UNREADABLE


def _digests(store: Store, keys: Sequence[str]) -> list[bytes]:
    return [_digest(store, key) for key in keys]


def _pixel_digests(store: Store, keys: Sequence[str]) -> list[bytes]:
    return [_pixel_digest(store, key) for key in keys]


def _pixel_digest(store: Store, key: str) -> bytes:
    try:
        return digest_of_pixels(store.image(key))
    except (UnreadableImage, LookupError, ValueError):
        return b""


def _digest(store: Store, key: str) -> bytes:
    try:
        return digest(store.content(key)) if isinstance(store, ByteStore) else _pixel_digest(store, key)
    except (UnreadableImage, LookupError, ValueError):
        return b""
