"""Intervals and p-values against closed forms, and how often they are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from liftplus.evaluation import noise
from liftplus.evaluation.noise import Difference, ImagePart
from liftplus.evaluation.seed_variance import SeedPart

COUNTS = (200, 50, 5, 3)
LABELS = np.repeat([0, 1, 2, 3], [7, 5, 3, 1])


def compare(*given: Any) -> tuple[float, float | None, float | None]:
    """Points, half the interval's width and p of two methods by themselves."""
    a, b, weight, strata = given
    found = noise.compare_all([a, b], [(0, 1)], weight, strata)[0]
    return found.points, found.half, found.p


def test_weights_are_the_accuracies() -> None:
    from liftplus.evaluation.metrics import accuracies

    rng = np.random.default_rng(0)
    guess = np.where(rng.random(len(LABELS)) < 0.6, LABELS, (LABELS + 1) % 4)
    found = accuracies(guess, LABELS, COUNTS)
    for key in noise.KEYS:
        weight, _ = noise.weights(key, LABELS, COUNTS)
        assert 100 * float(weight @ (guess == LABELS)) == pytest.approx(getattr(found, key), rel=1e-12)
        assert weight.sum() == pytest.approx(1)
    assert not noise.weights("many", LABELS, (1, 1, 1, 1))[0].any()
    third = [k == LABELS for k in (2, 3)]  # of four classes the two with the fewest training images
    weight, strata = noise.weights(noise.RAREST, LABELS, COUNTS)
    wanted = np.mean([(guess == LABELS)[of].mean() for of in third])
    assert float(weight @ (guess == LABELS)) == pytest.approx(wanted, rel=1e-12)
    assert strata.tolist() == LABELS.tolist()
    assert noise.weights(noise.RAREST, LABELS, (9, 9, 9, 9))[0] == pytest.approx(weight)  # of equal ones the last
    # A class without test images shifts nothing.
    assert noise.weights("few", LABELS, (*COUNTS, 4))[0] == pytest.approx(noise.weights("few", LABELS, COUNTS)[0])


def test_one_seed_is_the_interval_of_paired_shares() -> None:
    """b, c: images that only one of both got right. Var = ((b + c) - (b - c)² / n) / n², with n - 1 for one n."""
    n, both, b, c = 400, 210, 60, 35
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [both, b, c, n - both - b - c])[None]
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [both, b, c, n - both - b - c])[None]
    weight, strata = noise.weights("overall", np.zeros(n, dtype=np.int64), (n,))
    points, half, p = compare(first, second, weight, strata)
    error = 100 * math.sqrt(((b + c) - (b - c) ** 2 / n) / (n * (n - 1)))
    assert points == pytest.approx(100 * (b - c) / n, rel=1e-12)
    assert half == pytest.approx(stats.t.ppf(0.975, n - 1) * error, rel=1e-10)
    assert p == pytest.approx(2 * stats.t.sf(points / error, n - 1), rel=1e-10)
    # McNemar's test, of which this is the companion, says nearly the same.
    assert p == pytest.approx(stats.chi2.sf((b - c) ** 2 / (b + c), 1), abs=0.002)


def test_the_interval_is_made_of_both_parts() -> None:
    """Images 1.0, of which 0.25 is chance that the seeds' 0.5 holds too: Student's quantiles weigh 0.75 and 0.5."""
    images, seeds = ImagePart(1.0, 2399, 0.25), SeedPart(0.5, 4)
    half = (0.75 * stats.t.ppf(0.975, 2399) + 0.5 * stats.t.ppf(0.975, 4)) / math.sqrt(1.25)
    found = noise.estimate(3.0, images, seeds)
    assert found.half == pytest.approx(half, rel=1e-9)
    assert noise.estimate(half, images, seeds).p == pytest.approx(0.05, rel=1e-9)
    assert found.p is not None and found.p < 0.05
    assert noise.estimate(1e6, images, seeds).p == 1e-12
    alone = noise.estimate(3.0, ImagePart(1.0, 2399, 0.25), None)  # one seed of a method
    assert alone.half == pytest.approx(stats.t.ppf(0.975, 2399), rel=1e-9)
    assert alone.p == pytest.approx(2 * stats.t.sf(3.0, 2399), rel=1e-6)
    chance = noise.estimate(3.0, ImagePart(1.0, 2399, 1.1), seeds)  # the images are nothing but chance
    assert chance.half == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.5), rel=1e-9)
    assert noise.estimate(3.0, None, seeds) == noise.Estimate(3.0, None, None, None)


def test_where_images_do_not_vary_it_is_the_t_test_with_pooled_variance() -> None:
    a = np.ones((3, 20_000))
    b = a.copy()
    for seed, wrong in enumerate((600, 1200, 1800)):
        b[seed, :wrong] = 0
    a[:, -600:] = 0
    a[1, -900:] = a[2, -300:] = 0
    a[2, -600:-300] = 1
    weight, strata = noise.weights("overall", np.zeros(20_000, dtype=np.int64), (9,))
    (found,) = noise.compare_all([a, b], [(0, 1)], weight, strata)
    theirs = stats.ttest_ind(100 * a.mean(1), 100 * b.mean(1))
    assert found.points == pytest.approx(3.0)
    assert found.part is not None and found.part.variance < 0.02 * 4  # the seeds' part is 4
    low, high = theirs.confidence_interval()
    assert found.half == pytest.approx((high - low) / 2, rel=0.03)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.03)


def test_strata_add_up() -> None:
    """A mean over classes has the variance Σ (1/K)² v_k / n_k; a class of one image takes the pooled v."""
    values = np.array([0.0, 1, 1, 0, 2, 1, 3.0])
    strata = np.array([0, 0, 0, 1, 1, 1, 2])
    weight = np.array([1 / 9] * 6 + [1 / 3])
    v0, v1 = np.var(values[:3], ddof=1), np.var(values[3:6], ddof=1)
    found = noise.image_variance(values, weight, strata)
    assert found is not None
    assert found[0] == pytest.approx((v0 / 3 + v1 / 3 + (v0 + v1) / 2) / 9, rel=1e-12) and found[1] == 4
    # Where every class has one image, the images are one stratum, so that seeds still allow a verdict.
    single = noise.image_variance(values[[0, 3, 6]], np.full(3, 1 / 3), np.arange(3))
    assert single == (pytest.approx(np.var(values[[0, 3, 6]], ddof=1) / 3), 2)
    assert noise.image_variance(values[:1], np.ones(1), np.zeros(1, dtype=np.int64)) is None


def test_classes_of_one_image_get_a_verdict() -> None:
    rng = np.random.default_rng(0)
    counts = (5,) * 60
    weight, strata = noise.weights("few", np.arange(60), counts)
    right = [(rng.random((3, 60)) < share).astype(float) for share in (0.9, 0.2)]
    points, half, p = compare(*right, weight, strata)
    assert half is not None and p is not None and half < points and p < 0.001
    points, half, p = compare(*(one[:, :1] for one in right), weight[:1], strata[:1])
    assert (half, p) == (None, None)  # of a single image nothing is known


def test_equal_and_hopeless_cases() -> None:
    weight, strata = noise.weights("overall", np.zeros(4, dtype=np.int64), (9,))
    ones, zeros = np.ones((3, 4)), np.zeros((3, 4))
    assert compare(ones, ones, weight, strata) == (0.0, 0.0, 1.0)
    # Nothing varies, so nothing is known of the noise: no claim is made.
    points, half, p = compare(ones, zeros, weight, strata)
    assert (points, half, p) == (100.0, None, None)
    assert not Difference("a", "b", "overall", points, half, p, None, 3, 4).exceeds


def test_holm_against_a_worked_example() -> None:
    assert noise.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert noise.holm([0.5, None, 0.9]) == [1.0, None, 1.0]


@pytest.mark.parametrize(
    ("points", "seeds", "p", "said"),
    [
        (20.3, 3, 0.001, "lift+ beats full by 20.3 ± 1.1 points overall: more than noise."),
        (-20.3, 3, 0.001, "full beats lift+ by 20.3 ± 1.1 points overall: more than noise."),
        (0.4, 3, 0.3, "lift+ against full, overall: +0.4 ± 1.1 points: within noise."),
        (0.2, 1, 0.001, "lift+ against full, overall: +0.2 ± 1.1 points: one seed cannot show more than noise."),
        (20.3, 1, 1e-9, "lift+ against full, overall: +20.3 ± 1.1 points: one seed cannot show more than noise."),
    ],
)
def test_sentences(points: float, seeds: int, p: float, said: str) -> None:
    assert Difference("lift+", "full", "overall", points, 1.1, p, p, seeds, 99).sentence() == said
