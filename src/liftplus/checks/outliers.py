"""Pictures that are like no other one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from liftplus.checks.neighbours import Neighbours

FENCES = 3.0
"""Interquartile ranges beyond the quartile where an outlier begins (Tukey's outer fence)."""
LEAST = 20
"""Pictures that there must be: of fewer, none is far out."""


def far(similar: Neighbours) -> NDArray[np.float64]:
    """How far each picture is beyond the fence, in interquartile ranges; 0 for those within [N].

    A picture is compared with its nearest ones of all classes, so that a rare class is not far from everything for
    having few pictures.
    """
    distance = 1 - similar.closeness().astype(np.float64)
    if len(distance) < LEAST:
        return np.zeros(len(distance))
    low, high = np.quantile(distance, [0.25, 0.75])
    range_ = max(high - low, 1e-9)
    beyond = (distance - high) / range_ - FENCES
    return np.maximum(beyond, 0.0)
