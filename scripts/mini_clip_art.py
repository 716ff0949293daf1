"""The drawings that `mini_clip` learns from: drawn once at 64 pixels and kept on disk, a file a set.

Coloured sets are kept as RGBA, sets in one tone as two bytes a pixel: the ink's alpha, and the number of the enclosed
region that the pixel lies in (0 outside), so that training can ink and fill an icon in any colours.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import mini_clip_sets
from liftplus.data import openmoji
from liftplus.data.compose import rasterise
from mini_clip_sets import IconSet

SPRITE = 64
_EMPTY, _FULL = 0.01, 0.97  # mean alpha below which a picture shows nothing, and above which it is a tile
_HASH_BITS, _DIFFERENCE = 8, 0.15


def regions(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The areas that ink [s, s] encloses, numbered from 1; the ink belongs to the nearest of them, 0 is outside."""
    labels, count = ndimage.label(alpha < 100)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    order = np.zeros(count + 1, dtype=np.uint8)
    inside = [number for number in range(1, count + 1) if number not in edge][:255]
    order[inside] = np.arange(1, len(inside) + 1)
    if not inside:
        return np.zeros_like(alpha)
    # A line is drawn over the edge of what it encloses: without this, a rim would show through its soft border.
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return order[labels][tuple(nearest)]


class Held:
    """The drawings of OpenMoji that the test shows, to be told from any nearly the same.

    Two are nearly the same if their difference hashes (64 bits) differ in few bits, and their pixels in little of what
    both have.
    """

    def __init__(self) -> None:
        names, art = openmoji.sprites(SPRITE)
        dark = art[:, 3].float() * (1 - art[:, :3].float().mean(1) / 255)
        self.names = names
        self._coloured = _looks(_premultiplied(art)), _hashes(_premultiplied(art))
        self._ink = _looks(dark[:, None] / 255), _hashes(dark[:, None] / 255)

    def nearest(self, pictures: Tensor) -> list[tuple[str, int, float]]:
        """For each picture, uint8 [n, 4 or 1, s, s]: the test's nearest one, the bits and the share they differ by."""
        ours = _premultiplied(pictures) if pictures.shape[1] == 4 else pictures.float() / 255
        theirs, codes = self._coloured if pictures.shape[1] == 4 else self._ink
        bits = (_hashes(ours)[:, None] != codes[None]).sum(-1)
        looks = _looks(ours)
        apart = torch.cdist(looks, theirs, p=1) / (looks.sum(1)[:, None] + theirs.sum(1)[None])
        best = (bits / 64 + apart).argmin(1)
        rows = torch.arange(len(ours))
        found = zip(best.tolist(), bits[rows, best].tolist(), apart[rows, best].tolist(), strict=True)
        return [(self.names[at], differing, share) for at, differing, share in found]

    def same(self, pictures: Tensor) -> list[str | None]:
        """The test's class whose picture is nearly the same, for each picture; None for most."""
        found = self.nearest(pictures)
        return [name if bits <= _HASH_BITS and share <= _DIFFERENCE else None for name, bits, share in found]


def _premultiplied(art: Tensor) -> Tensor:
    art = art.float() / 255
    return torch.cat([art[:, :3] * art[:, 3:], art[:, 3:]], 1)


def _looks(art: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(art, 32).flatten(1)


def _hashes(art: Tensor) -> Tensor:
    """The signs of the brightness' steps to the right on 8 x 8 cells (dHash), bool [n, 64]."""
    small = F.adaptive_avg_pool2d(art.mean(1, keepdim=True), (8, 9))[:, 0]
    return (small[:, :, 1:] > small[:, :, :-1]).flatten(1)


def _blank(picture: Tensor) -> bool:
    """Whether a picture shows nothing: it is empty, or a tile of one colour."""
    alpha = float(picture[-1].float().mean()) / 255
    return alpha < _EMPTY or (alpha > _FULL and float(picture.float().std((1, 2)).max()) < 2)


def draw_set(icons: IconSet, concepts: dict[str, str], held: Held) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The pictures of one set, [n, 64, 64, 4 or 2], and what they show and what was left out."""
    pictures, shown, empty = [], [], 0
    for name, concept in concepts.items():
        try:
            picture = rasterise(icons.svg(name), SPRITE)
        except ValueError:  # a document that the renderer refuses
            picture = torch.zeros(4, SPRITE, SPRITE, dtype=torch.uint8)
        if _blank(picture if icons.coloured else picture[3:]):
            empty += 1
            continue
        pictures.append(picture if icons.coloured else picture[3:])
        shown.append((name, concept))
    channels = 4 if icons.coloured else 2
    same = held.same(torch.stack(pictures)) if pictures else []
    kept = [row for row, found in enumerate(same) if found is None]
    out = np.empty((len(kept), SPRITE, SPRITE, channels), dtype=np.uint8)
    for at, row in enumerate(kept):
        drawn: NDArray[np.uint8] = pictures[row].permute(1, 2, 0).numpy()
        out[at] = drawn if icons.coloured else np.dstack([drawn[..., 0], regions(drawn[..., 0])])
    about = {
        "set": {"prefix": icons.prefix, "name": icons.name, "author": icons.author, "licence": icons.licence},
        "artist": icons.artist,
        "url": icons.url,
        "icons": [shown[row][0] for row in kept],
        "concepts": [shown[row][1] for row in kept],
        "blank": empty,
        "same as the test": [[shown[row][0], found] for row, found in enumerate(same) if found is not None],
    }
    return out, about


def draw(icons: Path, folder: Path, workers: int = 0) -> None:
    """Draw every set that `mini_clip_sets.collect` kept in `icons` and that is not drawn yet, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    left = [name for name in mini_clip_sets.order(icons) if not (folder / f"{name}.json").exists()]
    one = partial(_draw_kept, icons, folder)
    if not workers:
        for told in map(one, left):
            print(told, flush=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for told in pool.map(one, left):
            print(told, flush=True)


@cache
def _held() -> Held:
    return Held()


def _draw_kept(icons: Path, folder: Path, prefix: str) -> str:
    """Draw one set and write it, its description last; what there is to tell of it."""
    chosen = mini_clip_sets.kept_set(icons, prefix)
    pictures, about = draw_set(chosen, chosen.book["concepts"], _held())
    np.save(folder / f"{prefix}.tmp.npy", pictures)
    os.replace(folder / f"{prefix}.tmp.npy", folder / f"{prefix}.npy")
    (folder / f"{prefix}.tmp").write_text(json.dumps(about), encoding="utf-8")
    os.replace(folder / f"{prefix}.tmp", folder / f"{prefix}.json")
    less = f"{about['blank']} show nothing, {len(about['same as the test'])} are like the test's"
    return f"{prefix}: {len(pictures)} pictures; left out: {less}"


def credits(folder: Path) -> str:
    """The sets that are drawn, with authors and licences, and what was left out of them, as Markdown."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        told, like = about["set"], len(about["same as the test"])
        held = " (held out)" if told["prefix"] in mini_clip_sets.HELD_OUT else ""
        author = f"[{told['author']}]({about['url']})" if about["url"] else told["author"]
        cells = (f"{told['name']}{held}", author, told["licence"], len(about["icons"]), like, about["blank"])
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    head = "| set | author | licence | drawings | left out: like a test picture | left out: blank |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, ""])
