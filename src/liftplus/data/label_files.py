"""Labels in a file beside each picture: 00001.png and 00001.cls, as WebDataset's shards have them."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from liftplus.data import split_names
from liftplus.data.dataset import listing
from liftplus.data.images import UnreadableImage
from liftplus.data.stores import FileStore
from liftplus.errors import UserError
from liftplus.words import agreeing

_ENDING = ".cls"
_LONGEST = 200
"""Most characters that a label may have."""

Rows = dict[str, list[tuple[str, str]]]


def rows_beside(store: FileStore, images: Sequence[str], others: Sequence[str]) -> Rows | None:
    """(picture, label) of each split where every picture has a file with its label, else None.

    Raises:
        UserError: no picture lies in a folder and only some have such a file, or a file holds no label.
    """
    labels = {name.removesuffix(_ENDING): name for name in others if name.endswith(_ENDING)}
    beside = {name: file for name in images if (file := _beside(name, labels)) is not None} if labels else {}
    if not beside:
        return None
    if len(beside) < len(images):
        if any("/" in name for name in images):
            return None  # class folders say more; a note lists the label files as left out
        absent = [name for name in images if name not in beside]
        raise UserError(
            f"{store.path}: {len(absent):,} of {len(images):,} images {agreeing(len(absent), 'has', 'have')} no "
            f"{_ENDING} file with the label beside "
            f"them: {listing(absent, 3)}; add the file, or take these images out."
        )
    rows: Rows = {}
    for name, file in beside.items():
        split = split_names.read(name.split("/")[0]) if "/" in name else None
        rows.setdefault(split.split if split is not None and not split.rest else "train", []).append(
            (name, _label(store, file))
        )
    return rows


def _beside(name: str, labels: dict[str, str]) -> str | None:
    """The label's file. In WebDataset, names share the part before the first dot."""
    folder, base = posixpath.split(name)
    first = posixpath.join(folder, base.split(".")[0])
    return labels.get(posixpath.splitext(name)[0]) or labels.get(first)


def _label(store: FileStore, name: str) -> str:
    try:
        text = store.read(name).decode().strip()
    except (UnreadableImage, UnicodeDecodeError):
        text = ""
    if not text or len(text) > _LONGEST or len(text.splitlines()) > 1:
        raise UserError(f"{store.where(name)} holds no label; write one number or one word into it.")
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) <= 18 else text
