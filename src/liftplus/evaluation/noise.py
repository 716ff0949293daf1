"""Whether one method beats another by more than noise: the noise of seeds and that of test images.

A difference of two accuracies varies with the seeds and with the test images. Its variance is

    V = I - C + D,    I = Σ_k W_k² v_k / n_k,    D = s_a² / S_a + s_b² / S_b

I is the images' part, a sum over the strata of test images. For each image take the share of seeds that got it right,
and the difference of these shares between the methods: v_k is its variance over the n_k images of stratum k, and W_k is
the stratum's weight. D is the seeds' part: s is the standard deviation of a method's accuracy over its S seeds. C is
the variance by image and seed that both I and D contain; it is estimated from the images' scatter between the seeds of
one method. `seed_parts` says how several methods share one s. Two tests of one training (one crop, five crops) are
paired: their D is the variance of the difference by seed, divided by S.

Half the 95 % interval is the mean of Student's two quantiles, weighted by the parts (Cochran 1964, Approximate
significance levels of the Behrens-Fisher test, Biometrics 20):

    half = ((I - C) t(f) + D t(g)) / √V

f and g are the degrees of freedom of I and of D. With one seed only I is known, so no difference is called more than
noise. Bouthillier et al. 2021 (arXiv 2103.03098) show why both parts count. The p-values of several comparisons are
adjusted by Holm's method (Holm 1979, jstor.org/stable/4615733). tests/evaluation/test_noise_simulated.py simulates how
often the verdict is wrong; docs/sweeps.md gives the result in words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from liftplus.evaluation.metrics import group_of
from liftplus.evaluation.seed_variance import Runs, SeedPart, seed_parts

KEYS = ("overall", "mean_class", "many", "medium", "few")
RAREST = "rarest_third"  # this group keeps its classes when a data set is cut to other sizes
ONE_SEED = {"overall": 0.3, "mean_class": 0.3, "many": 1.0, "medium": 1.0, "few": 1.0, RAREST: 1.0}
"""Points by which a run may miss a published figure. For overall accuracy this is three times LIFT+'s spread over seeds
on ImageNet-LT (0.1); for its groups it is 1.3 to 2 times their spread (0.5 to 0.8)."""
MARGIN = {"overall": 1.0, "mean_class": 1.0, "many": 2.0, "medium": 2.0, "few": 2.0, RAREST: 2.0}
"""Default margin of "no worse" and "the same", in points. One point is about what a good part of a recipe adds. Groups
have two, because their accuracy scatters about twice as much over seeds."""
LEVEL = 0.05

_WORDS = {"overall": "overall", "mean_class": "in the mean over classes", RAREST: "on the rarest third of classes"}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ImagePart:
    """The test images' part of the variance of a difference, in squared points.

    Attributes:
        variance: I of the module's formula.
        freedom: its degrees of freedom.
        shared: C of the module's formula; 0 if it is not known.
    """

    variance: float
    freedom: float
    shared: float


@dataclass(frozen=True)
class Estimate:
    """A difference of two methods.

    Attributes:
        points: the mean difference.
        half: half the width of its 95 % interval, in points; None if unknown.
        p: p-value for no difference; None if unknown.
        part: the images' part of the variance.
    """

    points: float
    half: float | None
    p: float | None
    part: ImagePart | None


@dataclass(frozen=True)
class Difference:
    """Accuracy of method a minus that of method b, in percentage points.

    Attributes:
        a, b: the methods.
        key: the accuracy.
        points: mean difference over seeds.
        half: half the width of its 95 % interval; None if its noise is unknown.
        p: p-value for no difference, not adjusted.
        adjusted: p after Holm's adjustment for the other comparisons of the same accuracy.
        seeds, images: numbers of seeds and test images.
        part: the test images' part of its variance.
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
    part: ImagePart | None = None

    @property
    def exceeds(self) -> bool:
        """Whether the difference is more than noise. Never with one seed, since the seeds' variance is unknown."""
        return self.seeds > 1 and self.adjusted is not None and self.adjusted < LEVEL

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, not adjusted; None with one seed or if the noise is unknown."""
        if self.seeds < 2 or self.half is None:
            return None
        return self.points - self.half, self.points + self.half

    def sentence(self) -> str:
        """The finding in words."""
        name = _WORDS.get(self.key, f"{self.key}-shot")
        spread = "" if self.half is None else f" ± {self.half:.1f}"
        if self.exceeds:
            first, second = (self.a, self.b) if self.points > 0 else (self.b, self.a)
            return f"{first} beats {second} by {abs(self.points):.1f}{spread} points {name}: more than noise."
        found = "within noise" if self.seeds > 1 else "one seed cannot show more than noise"
        return f"{self.a} against {self.b}, {name}: {self.points:+.1f}{spread} points: {found}."


def weights(key: str, labels: Ints, train_counts: Sequence[int]) -> tuple[Floats, Ints]:
    """The weight of each test image in an accuracy, and the stratum of each image.

    Args:
        key: overall, mean_class, many, medium or few; or rarest_third, the mean over the third of the classes (rounded
            up) with the fewest training images. Ties take the later classes.
        labels: class of each image [N].
        train_counts: training images of each class [C].

    Returns:
        weights [N], which sum to 1 or are all 0 if no image belongs to the group; and strata [N]: a single one for
        overall, otherwise the classes.
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
    """Variance of a weighted sum over images from a stratified sample, and its degrees of freedom.

    A stratum of a single image gets the pooled variance of the others. If no stratum has two images, all images form
    one stratum, so differences between classes count as noise too. None for a single image.

    Args:
        values, weight, strata: of each image, [N].
    """
    found = _image_variances(values[None], weight, strata)
    return None if found is None else (float(found[0][0]), found[1])


def _image_variances(values: Floats, weight: Floats, strata: Ints) -> tuple[Floats, float] | None:
    """`image_variance` of each row of values [R, N]."""
    kept = np.flatnonzero(weight > 0)
    kept = kept[np.argsort(strata[kept], kind="stable")]
    starts = np.flatnonzero(np.diff(strata[kept], prepend=strata.min(initial=0) - 1))
    if 1 < len(kept) == len(starts):
        starts = starts[:1]
    n = np.diff(starts, append=len(kept))
    freedom = int((n - 1).sum())
    if freedom < 1:
        return None
    values = values[:, kept]
    means = np.add.reduceat(values, starts, axis=1) / n
    squares = np.add.reduceat((values - np.repeat(means, n, axis=1)) ** 2, starts, axis=1)
    pooled = squares.sum(1, keepdims=True) / freedom
    variances = np.where(n > 1, squares / np.maximum(n - 1, 1), pooled)
    total = np.add.reduceat(weight[kept], starts)
    return (total**2 * variances / n).sum(1), float(freedom)


def compare_all(
    right: Sequence[Floats],
    pairs: Sequence[tuple[int, int]],
    weight: Floats,
    strata: Ints,
    training: Sequence[Hashable] | None = None,
) -> list[Estimate]:
    """Compare pairs of methods. All pairs share one estimate of the seeds' variance (`seed_parts`).

    Args:
        right: for each method which images are right, 0 or 1, [S, N] for its S seeds.
        pairs: indices in `right` of the methods to compare.
        weight, strata: of the accuracy, see `weights`.
        training: identifies each method's training; by default all differ. Two tests of one training need the same
            seeds.
    """
    training = range(len(right)) if training is None else training
    percent = [100 * np.asarray(one, dtype=np.float64) for one in right]
    runs = [Runs(one @ weight, what, bool((one == one[0]).all())) for one, what in zip(percent, training, strict=True)]
    chance = [_chance(one, weight, strata) for one in percent]
    out = []
    for (a, b), seeds in zip(pairs, seed_parts(runs, pairs), strict=True):
        if training[a] == training[b]:
            shared = _chance(percent[a] - percent[b], weight, strata)
        else:
            shared = chance[a] + chance[b]
        images = image_variance(percent[a].mean(0) - percent[b].mean(0), weight, strata)
        part = None if images is None else ImagePart(*images, shared)
        out.append(estimate(float(runs[a].accuracies.mean() - runs[b].accuracies.mean()), part, seeds))
    return out


def _chance(percent: Floats, weight: Floats, strata: Ints) -> float:
    """C of one method: the variance of its mean over seeds due to single images in single seeds; 0 for one seed."""
    seeds = len(percent)
    found = _image_variances(percent - percent.mean(0), weight, strata) if seeds > 1 else None
    return 0.0 if found is None else float(found[0].sum()) / (seeds - 1) / seeds


def estimate(points: float, images: ImagePart | None, seeds: SeedPart | None) -> Estimate:
    """A difference with its interval. Without a seeds' part (one seed) the interval covers test images only."""
    if images is None:
        return Estimate(points, None, None, None)
    parts = [(images.variance, images.freedom)]
    if seeds is not None:
        own = max(0.0, images.variance - images.shared)
        parts = [(own, images.freedom), (seeds.variance, seeds.freedom)]
    total = sum(variance for variance, _ in parts)
    if total <= 1e-18:  # the methods are equal, or there are too few images to see a variance
        same = abs(points) < 1e-9
        return Estimate(points, 0.0 if same else None, 1.0 if same else None, images)
    parts = [(variance / total, freedom) for variance, freedom in parts if variance]
    error = math.sqrt(total)
    return Estimate(points, error * _quantile(LEVEL, parts), _p(abs(points) / error, parts), images)


def _quantile(p: float, parts: Sequence[tuple[float, float]]) -> float:
    """The weighted mean of Student's two-sided p quantiles; `parts` are pairs of weight and degrees of freedom."""
    from scipy import special

    return -sum(share * float(special.stdtrit(freedom, p / 2)) for share, freedom in parts)


def _p(value: float, parts: Sequence[tuple[float, float]]) -> float:
    """The p-value whose quantile is `value`; at least 1e-12."""
    from scipy import optimize

    least = 1e-12
    if value >= _quantile(least, parts):
        return least
    return float(optimize.brentq(lambda p: _quantile(p, parts) - value, least, 1.0, xtol=1e-14))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted by Holm's method (Holm 1979). None stays None and is not counted."""
    order = sorted((p, k) for k, p in enumerate(values) if p is not None)
    out: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        out[k] = highest
    return out
