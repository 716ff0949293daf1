"""The nearest neighbours of every picture, by hash or by features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

WIDTH = 128
"""Main directions of the features that are searched in: more take longer and change little."""
_QUERIES = 2048  # pictures that are searched for at once
_SAMPLE = 20_000  # features that the main directions are found by

Searched = Callable[[int], None]
"""Called with how many pictures were searched for since the last call."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest of N pictures to each of them, itself among them as a rule.

    Attributes:
        numbers: of the k nearest, nearest first [N, k].
        cosines: -1 to 1 [N, k].
    """

    numbers: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def pairs(self, least: float) -> NDArray[np.int64]:
        """Pairs [P, 2] of at least that cosine, the smaller number first; some may be there twice."""
        own = np.broadcast_to(np.arange(len(self.numbers))[:, None], self.numbers.shape)
        good = (self.cosines >= least) & (self.numbers != own)
        return np.sort(np.stack([own[good], self.numbers[good]], 1), axis=1)

    def closeness(self) -> NDArray[np.float32]:
        """Mean cosine of each picture with the others among its nearest [N]; 0 where there are none."""
        own = np.arange(len(self.numbers))[:, None]
        others = self.numbers != own
        total = np.where(others, self.cosines, 0).sum(1)
        return (total / np.maximum(others.sum(1), 1)).astype(np.float32)


def nearest(
    among: NDArray[np.float32], queries: NDArray[np.float32], count: int, searched: Searched = lambda _: None
) -> Neighbours:
    """For each of the queries [N, D] the nearest of the rows [N, D]; both are unit vectors.

    Args:
        count: how many beside the picture itself.
    """
    search = NearestNeighbors(n_neighbors=min(count + 1, len(among)), algorithm="brute").fit(among)
    numbers, cosines = [], []
    for start in range(0, len(queries), _QUERIES):
        distances, found = search.kneighbors(queries[start : start + _QUERIES])
        numbers.append(found.astype(np.int64))
        cosines.append((1 - distances**2 / 2).astype(np.float32))
        searched(len(found))
    return Neighbours(np.concatenate(numbers), np.concatenate(cosines))


def reduced(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors [N, at most WIDTH] of features' main directions, their mean taken away."""
    centred = features - features.mean(0)
    if centred.shape[1] > WIDTH and len(centred) > WIDTH:
        sample = np.random.default_rng(0).permutation(len(centred))[:_SAMPLE]
        centred = PCA(WIDTH, svd_solver="randomized", random_state=0).fit(centred[sample]).transform(centred)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.ascontiguousarray(centred / np.maximum(lengths, 1e-12), np.float32)
