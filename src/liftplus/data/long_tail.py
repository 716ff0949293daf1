"""Class sizes of a long tail that is cut out of balanced classes."""

from __future__ import annotations


def long_tailed_sizes(largest: int, imbalance_ratio: float, classes: int) -> list[int]:
    """Class sizes that fall exponentially (Cao et al. 2019): n_k = int(n_max · (1/IR)^(k/(C-1))), k = 0 to C - 1."""
    return [int(largest * (1 / imbalance_ratio) ** (k / max(classes - 1, 1))) for k in range(classes)]
