"""Whether one method beats another by more than noise: paired by seed, and by test image.

A difference of two accuracies would come out otherwise with other seeds and with other test images. Both parts of its
variance are estimated and added:

    var = s_d² / S  +  Σ_k W_k² v_k / n_k

s_d is the standard deviation of the S differences of runs with equal seeds. The second sum goes over the strata of test
images that an accuracy averages: v_k is the variance over the n_k images of stratum k of the difference of the shares
of seeds that got the image right, W_k the stratum's weight. The 95 % interval takes Student's t with the degrees of
freedom of Welch and Satterthwaite (Satterthwaite 1946, doi:10.2307/3002019). Variation between runs and between test
samples as the two sources to account for: Bouthillier et al. 2021, arXiv 2103.03098. As the images' part still holds
1/S of the seeds' own scatter, the interval is wide with many seeds; with three it covers about 95 %, as
tests/test_noise.py simulates. With one seed only the second part is known, and the interval is the usual one of two
paired shares, the companion of McNemar's test (McNemar 1947, doi:10.1007/BF02295996).
Of several comparisons p-values are adjusted by Holm's method (Holm 1979, jstor.org/stable/4615733).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liftplus.metrics import group_of

KEYS = ("overall", "mean_class", "many", "medium", "few")
RAREST = "rarest_third"  # a group that does not change with the number of images, to compare data sets cut differently
ONE_SEED = {"overall": 0.3, "mean_class": 0.3, "many": 1.0, "medium": 1.0, "few": 1.0, RAREST: 1.0}
"""Points under which one seed proves nothing: three times the spread over seeds that LIFT+ saw on ImageNet-LT for
overall accuracy (0.1), and 1.3 to 2 times that of its groups (0.5 to 0.8)."""
LEVEL = 0.05

_WORDS = {"overall": "overall", "mean_class": "in the mean over classes", RAREST: "on the rarest third of classes"}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """By how much a beats b, in points of percent.

    Attributes:
        a, b: the methods.
        key: the accuracy.
        points: mean difference over seeds.
        half: half the width of its 95 % interval; None where nothing can be said of its noise.
        p: of no difference, by itself.
        adjusted: p after Holm's adjustment for the other comparisons of the same accuracy.
        seeds, images: how many the difference rests on.
    """

    a: str
    b: str
    key: str
    points: float
    half: float | None
    p: float | None
    adjusted: float | None
    seeds: int
    images: int

    @property
    def exceeds(self) -> bool:
        """Whether it is more than noise."""
        large = self.seeds > 1 or abs(self.points) >= ONE_SEED[self.key]
        return large and self.adjusted is not None and self.adjusted < LEVEL

    def sentence(self) -> str:
        """The finding in words."""
        name = _WORDS.get(self.key, f"{self.key}-shot")
        spread = "" if self.half is None else f" ± {self.half:.1f}"
        if self.exceeds:
            first, second = (self.a, self.b) if self.points > 0 else (self.b, self.a)
            return f"{first} beats {second} by {abs(self.points):.1f}{spread} points {name}: more than noise."
        return f"{self.a} against {self.b}, {name}: {self.points:+.1f}{spread} points: within noise."


def weights(key: str, labels: Ints, train_counts: Sequence[int]) -> tuple[Floats, Ints]:
    """How one accuracy weighs the test images, and the stratum that each belongs to.

    Args:
        key: overall, mean_class, many, medium or few; or rarest_third, the mean over the third of the classes, rounded
            up, with the fewest training images (of equal ones the last).
        labels: class of each image [N].
        train_counts: training images of each class [C].

    Returns:
        weights [N] with sum 1, or all 0 where no image belongs to the group, and strata [N]: one for overall, the
        classes otherwise.
    """
    if key == "overall":
        return np.full(len(labels), 1 / len(labels)), np.zeros(len(labels), dtype=np.int64)
    tested = np.bincount(labels, minlength=len(train_counts))
    if key == RAREST:
        from_most = np.argsort(-np.asarray(train_counts), kind="stable")
        chosen = np.isin(np.arange(len(train_counts)), from_most[len(train_counts) * 2 // 3 :])
    else:
        chosen = np.array([key in ("mean_class", group_of(count)) for count in train_counts])
    chosen &= tested > 0
    share = np.where(chosen, 1 / np.maximum(tested, 1), 0.0) / max(int(chosen.sum()), 1)
    return share[labels], labels


def image_variance(values: Floats, weight: Floats, strata: Ints) -> tuple[float, float] | None:
    """Variance of a weighted sum over images that were drawn stratum by stratum, and its degrees of freedom.

    A stratum of a single image has the others' pooled variance. None where no stratum has two images.
    """
    kept = weight > 0
    values, weight = values[kept], weight[kept]
    _, place = np.unique(strata[kept], return_inverse=True)
    n = np.bincount(place)
    total = np.bincount(place, weights=weight)
    means = np.bincount(place, weights=values) / n
    squares = np.bincount(place, weights=(values - means[place]) ** 2)
    freedom = int((n - 1).sum())
    if freedom < 1:
        return None
    pooled = squares.sum() / freedom
    variances = np.where(n > 1, squares / np.maximum(n - 1, 1), pooled)
    return float((total**2 * variances / n).sum()), float(freedom)


def compare(a: Floats, b: Floats, weight: Floats, strata: Ints) -> tuple[float, float | None, float | None]:
    """Mean difference of two methods in percent, half the width of its 95 % interval, and p.

    `a` and `b` tell which images are right, 0 or 1, [S, N] for S seeds.
    """
    from scipy import stats

    differences = 100 * (a - b)
    by_seed = differences @ weight
    points, seeds = float(by_seed.mean()), len(by_seed)
    images = image_variance(differences.mean(0), weight, strata)
    if images is None:
        return points, None, None
    parts = [images]
    if seeds > 1:
        parts.append((float(by_seed.var(ddof=1)) / seeds, seeds - 1.0))
    variance = sum(part for part, _ in parts)
    if variance <= 1e-18:  # nothing varies: equal methods, or too few images to see it
        return points, (0.0 if abs(points) < 1e-9 else None), (1.0 if abs(points) < 1e-9 else None)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    error = math.sqrt(variance)
    return (
        points,
        error * float(stats.t.ppf(1 - LEVEL / 2, freedom)),
        2 * float(stats.t.sf(abs(points) / error, freedom)),
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979); None stays, and does not count."""
    order = sorted((p, k) for k, p in enumerate(values) if p is not None)
    out: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        out[k] = highest
    return out
