"""What each picture of a store is found to be: read whole, or its header alone; kept for the next time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from liftplus.data import file_facts, kept_facts
from liftplus.data.dataset import Store
from liftplus.data.each_picture import Progress, over
from liftplus.data.file_facts import Facts
from liftplus.data.images import UnreadableImage
from liftplus.data.kept_facts import KeptFacts, Slip
from liftplus.data.stores import ByteStore

HEAD = 1 << 16
"""Bytes in which most headers are; files whose header is longer or stands at the end are read whole for it."""


class Found(NamedTuple):
    """What a picture is found to be.

    Attributes:
        slip: where it is kept; None where it is not to be kept, as it is already or cannot be read.
        kept: whether it was found before.
        hidden: it cannot be read, but its header can.
    """

    facts: Facts
    slip: Slip | None = None
    kept: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Look:
    """How pictures are looked at, many at a time.

    Attributes:
        whole: keys of those that are read whole; None: all.
        kept: the file of what was found before.
    """

    whole: Collection[str] | None
    kept: Path | None

    def __call__(self, store: Store, keys: Sequence[str]) -> list[Found]:
        """What these pictures are."""
        if self.kept is None:
            return [self._read(store, key, None) for key in keys]
        # First, since a picture that changes from here on will have another mark.
        slips = kept_facts.slips(store, keys, ["whole" if self._is_whole(key) else "header" for key in keys])
        known = kept_facts.look_up(self.kept, slips)
        return [
            self._read(store, key, slip) if facts is None else Found(facts, kept=True)
            for key, slip, facts in zip(keys, slips, known, strict=True)
        ]

    def _is_whole(self, key: str) -> bool:
        return self.whole is None or key in self.whole

    def _read(self, store: Store, key: str, slip: Slip | None) -> Found:
        facts = _whole(store, key) if self._is_whole(key) else _header(store, key)
        if not facts.reason:
            return Found(facts, slip)
        return Found(facts, hidden=self.whole is not None and self._is_whole(key) and not _header(store, key).reason)


def looked_at(
    store: Store, keys: Sequence[str], whole: Collection[str] | None, kept: KeptFacts, progress: Progress | None = None
) -> Iterator[Found]:
    """What each picture is, in order.

    Args:
        store: holds the pictures.
        keys: of the pictures.
        whole: keys of those that are read whole; None: all.
        kept: what was found before; what is new is added.
        progress: told after each picture.
    """
    for found in over(store, keys, Look(whole, kept.path), progress):
        kept.found += found.kept
        if found.slip is not None:
            kept.add(found.slip, found.facts)
        yield found


def _whole(store: Store, key: str) -> Facts:
    try:
        if isinstance(store, ByteStore):
            return file_facts.of_bytes(store.read(key), store.where(key))
        return file_facts.of_image(store.image(key))
    except UnreadableImage as error:
        return Facts(reason=str(error))


def _header(store: Store, key: str) -> Facts:
    if not isinstance(store, ByteStore):
        return _whole(store, key)
    try:
        data, name = store.head(key, HEAD), store.where(key)
        found = file_facts.of_header(data, name)
        if found.reason and len(data) >= HEAD:
            found = file_facts.of_header(store.read(key), name)
    except UnreadableImage as error:
        return Facts(reason=str(error))
    return found
