"""Whether one method beats another by more than noise: the noise of seeds and that of test images.

A difference of two accuracies would come out otherwise with other seeds and with other test images. Its variance is

    V = I - C + D,    I = Σ_k W_k² v_k / n_k,    D = s_a² / S_a + s_b² / S_b

I is the images' part. The sum goes over the strata of test images that an accuracy averages: v_k is the variance over
the n_k images of stratum k of the difference of the shares of seeds that got the image right, W_k the stratum's weight.
D is the seeds' part: s is the standard deviation of a method's accuracy over its S seeds. C is the chance by image and
seed that I and D both hold; the images' scatter between the seeds of one method gives it. `seed_parts` says how several
methods share one s. Two tests of one training (one crop, five crops) are paired: their D is the variance of the
difference by seed over S.

Half the 95 % interval is the mean of Student's two quantiles, weighted by the parts (Cochran 1964, Approximate
significance levels of the Behrens-Fisher test, Biometrics 20):

    half = ((I - C) t(f) + D t(g)) / √V

f and g are the degrees of freedom of I and of D. Of one seed only I is known, and nothing is called more than noise.
That both parts have to be counted: Bouthillier et al. 2021, arXiv 2103.03098. Of several comparisons p-values are
adjusted by Holm's method (Holm 1979, jstor.org/stable/4615733). tests/evaluation/test_noise_simulated.py simulates how
often all this is wrong; docs/sweeps.md says it in words.
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
RAREST = "rarest_third"  # a group that does not change with the number of images, to compare data sets cut differently
ONE_SEED = {"overall": 0.3, "mean_class": 0.3, "many": 1.0, "medium": 1.0, "few": 1.0, RAREST: 1.0}
"""Points by which a run may miss a published figure: three times the spread over seeds that LIFT+ saw on ImageNet-LT
for overall accuracy (0.1), and 1.3 to 2 times that of its groups (0.5 to 0.8)."""
MARGIN = {"overall": 1.0, "mean_class": 1.0, "many": 2.0, "medium": 2.0, "few": 2.0, RAREST: 2.0}
"""Points that "no worse" and "the same" allow where a claim states no margin of its own: one point, about what a good
part of a recipe adds; two on a group, whose accuracy scatters about twice as much over seeds."""
LEVEL = 0.05

_WORDS = {"overall": "overall", "mean_class": "in the mean over classes", RAREST: "on the rarest third of classes"}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ImagePart:
    """What test images contribute to the variance of a difference, in squared points.

    Attributes:
        variance: I of the module's formula.
        freedom: its degrees of freedom.
        shared: C, chance by image and seed, which the seeds' part holds as well; 0 where it is not known.
    """

    variance: float
    freedom: float
    shared: float


@dataclass(frozen=True)
class Estimate:
    """Mean difference of two methods in points, half the width of its 95 % interval, p, and the images' part."""

    points: float
    half: float | None
    p: float | None
    part: ImagePart | None


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
        part: what the test images contribute to its variance.
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
        """Whether it is more than noise; never with one seed, since other seeds differ by an unknown amount."""
        return self.seeds > 1 and self.adjusted is not None and self.adjusted < LEVEL

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, not adjusted; None with one seed or where nothing is known of the noise."""
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

    A stratum of a single image has the others' pooled variance. Where no stratum has two images, all of them are one
    stratum, which counts what sets the classes apart as noise too. None for a single image.
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
    """Pairs of methods, of which all share what is known of the seeds' scatter.

    Args:
        right: for each method which images are right, 0 or 1, [S, N] for its S seeds.
        pairs: places of the methods to compare.
        weight, strata: of the accuracy, see `weights`.
        training: what was trained for each method; by default something different. Two tests of one training need
            equal seeds.
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
    """Variance of a mean over seeds by chance that is of one image and one seed alone; 0 of a single seed."""
    seeds = len(percent)
    found = _image_variances(percent - percent.mean(0), weight, strata) if seeds > 1 else None
    return 0.0 if found is None else float(found[0].sum()) / (seeds - 1) / seeds


def estimate(points: float, images: ImagePart | None, seeds: SeedPart | None) -> Estimate:
    """A difference with its interval; without a seeds' part (one seed) the interval is over images alone."""
    if images is None:
        return Estimate(points, None, None, None)
    parts = [(images.variance, images.freedom)]
    if seeds is not None:
        own = max(0.0, images.variance - images.shared)
        parts = [(own, images.freedom), (seeds.variance, seeds.freedom)]
    total = sum(variance for variance, _ in parts)
    if total <= 1e-18:  # nothing varies: equal methods, or too few images to see it
        same = abs(points) < 1e-9
        return Estimate(points, 0.0 if same else None, 1.0 if same else None, images)
    parts = [(variance / total, freedom) for variance, freedom in parts if variance]
    error = math.sqrt(total)
    return Estimate(points, error * _quantile(LEVEL, parts), _p(abs(points) / error, parts), images)


def _quantile(p: float, parts: Sequence[tuple[float, float]]) -> float:
    """Where both tails hold p: the mean of Student's quantiles; `parts` are weights and degrees of freedom."""
    from scipy import special

    return -sum(share * float(special.stdtrit(freedom, p / 2)) for share, freedom in parts)


def _p(value: float, parts: Sequence[tuple[float, float]]) -> float:
    """The p of which `value` is the quantile; 1e-12 for anything smaller."""
    from scipy import optimize

    least = 1e-12
    if value >= _quantile(least, parts):
        return least
    return float(optimize.brentq(lambda p: _quantile(p, parts) - value, least, 1.0, xtol=1e-14))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979); None stays, and does not count."""
    order = sorted((p, k) for k, p in enumerate(values) if p is not None)
    out: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        out[k] = highest
    return out
