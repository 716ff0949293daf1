"""Pictures that are there twice: equal ones by their bytes, and near doubles by hash, features and pixels.

Near doubles are re-encoded, resized, slightly cropped or mirrored copies. Pairs that could be some are the nearest
neighbours by a perceptual hash and by the backbone's features; each is then laid over the other and looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from liftplus.checks import alignment, neighbours
from liftplus.checks.neighbours import Neighbours, Searched
from liftplus.checks.thumbs import SIDE, Thumbs

NEAREST = 4
"""Neighbours of a picture that are looked at, by each way of comparing."""
HASH_LEAST = 0.85
"""Cosine of hashes under which two pictures are not laid over each other."""
FEATURES_LEAST = 0.5
"""Cosine of features under which they are not."""
EARLY_LEAST = 0.5
"""Likeness at 16 pixels under which they are given up after half of the steps that lay one over the other.

Of 4,500 photographs and copies cropped by up to 13 % of each side, either way round, none that passes in the end is
under 0.66 then; seven of eight random pairs are under 0.5.
"""
COARSE_LEAST = (0.85, 0.7)
"""Likeness and detail at 16 pixels under which they are not looked at more closely."""
LIKENESS_LEAST, DETAIL_LEAST = 0.9, 0.87
"""What the small copies of near doubles share at least; see docs/data-check.md for how these were chosen."""
_FREQUENCIES = 8  # of the cosine transform, down and across
_CROP = 43  # pixels of the small copy's middle that stand for a picture cropped by 10 %
_AT_ONCE, _QUERIES = 256, 2048  # pairs that are laid over each other, and pictures that are searched for, at once
_COARSE_AT_ONCE = 1024  # pairs of 16 pixels
_COARSE, _MIDDLE = 16, 32
_HALF = 2  # of the steps at 16 pixels


class Double(NamedTuple):
    """Two pictures by their numbers, the smaller first.

    Attributes:
        exact: equal bytes.
        mirrored: one is the mirror image of the other.
        likeness: correlation of the pixels that both show, at most 1.
    """

    first: int
    second: int
    exact: bool
    mirrored: bool
    likeness: float


@dataclass(frozen=True)
class Hashes:
    """Perceptual hashes of N pictures before they are rounded to bits: unit vectors of low frequencies, fp32 [N, 63].

    Attributes:
        whole: of the pictures.
        middle: of their middles, as a copy that is cropped by 10 % has it.
        plain: pictures without structure, which have no hash.
    """

    whole: NDArray[np.float32]
    middle: NDArray[np.float32]
    plain: NDArray[np.bool_]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Hashes:
        """Those of small copies [N, SIDE, SIDE, 3]."""
        edge = (SIDE - _CROP) // 2
        parts = [
            (*_frequencies(gray), _frequencies(gray[:, edge : edge + _CROP, edge : edge + _CROP])[0])
            for gray in (_gray(pixels[i : i + _QUERIES]) for i in range(0, len(pixels), _QUERIES))
        ]
        whole, length, middle = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(whole, middle, length < 4 * SIDE)  # under a standard deviation of 4 of 255


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _frequencies(gray: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Low frequencies without the mean, as unit vectors, and their length before."""
    low = dctn(gray, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES].reshape(len(gray), -1)[:, 1:]
    length = np.linalg.norm(low, axis=1)
    return (low / np.maximum(length, 1e-6)[:, None]).astype(np.float32), length.astype(np.float32)


MIRROR = np.tile((-1.0) ** np.arange(_FREQUENCIES), _FREQUENCIES)[1:].astype(np.float32)
"""What a hash is multiplied with to be that of the mirror image: odd frequencies across change their sign."""


def equal(thumbs: Thumbs) -> list[Double]:
    """Pictures of the same bytes, each with the first one."""
    later = np.flatnonzero(thumbs.first != np.arange(len(thumbs.first)))
    return [Double(int(thumbs.first[number]), int(number), True, False, 1.0) for number in later]


def near(thumbs: Thumbs, similar: Neighbours | None, searched: Searched = lambda _: None) -> list[Double]:
    """Near doubles among the pictures that are not equal to an earlier one.

    Args:
        thumbs: small copies of N pictures.
        similar: each one's nearest by features, or None to go by hashes alone.
        searched: of every picture that was searched for; `ROUNDS` times N in all.
    """
    if len(thumbs.pixels) < 2:
        return []
    hashes = Hashes.of(thumbs.pixels)
    usable = (thumbs.first == np.arange(len(thumbs.first))) & ~hashes.plain
    usable[list(thumbs.unreadable)] = False
    if usable.sum() < 2:
        return []
    pixels = torch.from_numpy(thumbs.pixels)
    return list(_verified(pixels, _coarse(pixels, hashes, _candidates(hashes, similar, usable, searched))))


ROUNDS = 3
"""How often every picture is searched for."""


def _candidates(
    hashes: Hashes, similar: Neighbours | None, usable: NDArray[np.bool_], searched: Searched
) -> NDArray[np.int64]:
    """Pairs [P, 2] that may be doubles, each once, the smaller number first."""
    numbers, total = np.flatnonzero(usable), len(usable)
    whole = hashes.whole[numbers]
    found = [
        numbers[neighbours.nearest(whole, queries, NEAREST, searched).pairs(HASH_LEAST)]
        for queries in (whole, whole * MIRROR, hashes.middle[numbers])
    ]
    if similar is not None:
        pairs = similar.pairs(FEATURES_LEAST)
        found.append(pairs[usable[pairs].all(1)])
    codes = np.unique(np.concatenate([pairs[:, 0] * total + pairs[:, 1] for pairs in found]))
    return np.stack([codes // total, codes % total], 1)


@dataclass(frozen=True)
class _Coarse:
    """Pairs [P, 2] that are alike at 16 pixels, whether the first is to be mirrored [P], and their places [P, 4]."""

    pairs: Tensor
    mirrored: Tensor
    place: Tensor

    def parts(self) -> Iterator[_Coarse]:
        """A few at a time."""
        columns = (self.pairs, self.mirrored, self.place)
        for part in zip(*(column.split(_AT_ONCE) for column in columns), strict=True):
            yield _Coarse(*part)


@torch.inference_mode()
def _coarse(pixels: Tensor, hashes: Hashes, pairs: NDArray[np.int64]) -> _Coarse:
    gray = torch.cat([alignment.gray(part, _COARSE) for part in pixels.split(_QUERIES)])
    kept: list[_Coarse] = [_Coarse(torch.empty(0, 2, dtype=torch.long), torch.empty(0).bool(), torch.empty(0, 4))]
    for start in range(0, len(pairs), _COARSE_AT_ONCE):
        part = pairs[start : start + _COARSE_AT_ONCE]
        kept += [_laid(gray, part[either], mirrored) for mirrored, either in _ways(hashes, part)]
    return _Coarse(*(torch.cat(column) for column in zip(*((k.pairs, k.mirrored, k.place) for k in kept), strict=True)))


def _ways(hashes: Hashes, pairs: NDArray[np.int64]) -> list[tuple[bool, NDArray[np.bool_]]]:
    """Which pairs are to be looked at as they are and which mirrored; where the hashes leave it open, both."""
    one, other = hashes.whole[pairs[:, 0]], hashes.whole[pairs[:, 1]]
    ahead = (one * other).sum(1) - (one * MIRROR * other).sum(1)
    return [(False, ahead > -0.2), (True, ahead < 0.2)]


def _laid(gray: Tensor, pairs: NDArray[np.int64], mirrored: bool) -> _Coarse:
    numbers = torch.from_numpy(pairs)
    first, second = gray[numbers[:, 0]], gray[numbers[:, 1]]
    first = first.flip(-1) if mirrored else first
    place = alignment.laid(first, second, alignment.still(len(numbers)), _HALF)
    alike = alignment.likeness(first[:, None], second[:, None], place) >= EARLY_LEAST
    numbers, first, second = numbers[alike], first[alike], second[alike]
    place = alignment.laid(first, second, place[alike], _HALF)
    match = alignment.measured(first[:, None], second[:, None], place)
    good = (match.likeness >= COARSE_LEAST[0]) & (match.detail >= COARSE_LEAST[1])
    return _Coarse(numbers[good], torch.full((int(good.sum()),), mirrored), place[good])


@torch.inference_mode()
def _verified(pixels: Tensor, coarse: _Coarse) -> Iterator[Double]:
    """Those of the pairs that are doubles at the small copies' own size; each once, the better way round."""
    best: dict[tuple[int, int], Double] = {}
    for part in coarse.parts():
        match = matched(pixels, part.pairs, part.mirrored, part.place)
        good = (match.likeness >= LIKENESS_LEAST) & (match.detail >= DETAIL_LEAST)
        for row in good.nonzero()[:, 0].tolist():
            first, second = part.pairs[row].tolist()
            found = Double(first, second, False, bool(part.mirrored[row]), min(1.0, float(match.likeness[row])))
            known = best.get((first, second), found)
            best[first, second] = max(known, found, key=lambda double: double.likeness)
    yield from (best[key] for key in sorted(best))


def matched(pixels: Tensor, pairs: Tensor, mirrored: Tensor, place: Tensor) -> alignment.Match:
    """What pairs [P, 2] share at the small copies' own size, from a place near the right one."""
    first, second = pixels[pairs[:, 0]], pixels[pairs[:, 1]]
    first = torch.where(mirrored[:, None, None, None], first.flip(2), first)
    for side, steps in ((_MIDDLE, 3), (SIDE, 2)):
        place = alignment.laid(alignment.gray(first, side), alignment.gray(second, side), place, steps)
    return alignment.measured(_channels(first), _channels(second), place)


def _channels(pictures: Tensor) -> Tensor:
    """Bytes [P, S, S, 3] as fp32 [P, 3, S, S]."""
    return pictures.permute(0, 3, 1, 2).float()


def groups(doubles: list[Double], count: int) -> list[list[int]]:
    """Numbers of the pictures that are doubles of each other, also by way of a third one, ascending."""
    if not doubles:
        return []
    pairs = np.array([(double.first, double.second) for double in doubles], np.int32)
    # With indices of 64 bits SciPy 1.11 prints an error and joins all pictures into one group.
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    members: dict[int, list[int]] = {}
    label = connected_components(links, directed=False)[1]
    for number in np.unique(pairs).tolist():
        members.setdefault(int(label[number]), []).append(number)
    return sorted(members.values())
