"""Intervals and p-values against closed forms, and how often they are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from liftplus import noise
from liftplus.noise import Difference

COUNTS = (200, 50, 5, 3)
LABELS = np.repeat([0, 1, 2, 3], [7, 5, 3, 1])


def test_weights_are_the_accuracies() -> None:
    from liftplus.metrics import accuracies

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
    points, half, p = noise.compare(first, second, weight, strata)
    error = 100 * math.sqrt(((b + c) - (b - c) ** 2 / n) / (n * (n - 1)))
    assert points == pytest.approx(100 * (b - c) / n, rel=1e-12)
    assert half == pytest.approx(stats.t.ppf(0.975, n - 1) * error, rel=1e-10)
    assert p == pytest.approx(2 * stats.t.sf(points / error, n - 1), rel=1e-10)
    # McNemar's test, of which this is the companion, says nearly the same.
    assert p == pytest.approx(stats.chi2.sf((b - c) ** 2 / (b + c), 1), abs=0.002)


def test_without_image_noise_it_is_the_paired_t_test() -> None:
    """Where in every seed the same share of each stratum differs, only the seeds' part is left, or nearly."""
    a = np.array([[1.0] * 5000, [1.0] * 5000, [1.0] * 5000])
    b = a.copy()
    for seed, wrong in enumerate((50, 100, 150)):
        b[seed, 1000 * seed : 1000 * seed + wrong] = 0
    weight, strata = noise.weights("overall", np.zeros(5000, dtype=np.int64), (9,))
    points, half, p = noise.compare(a, b, weight, strata)
    by_seed = np.array([1.0, 2.0, 3.0])
    theirs = stats.ttest_1samp(by_seed, 0)
    delta = 100 * (a - b).mean(0)
    image, seed_part = delta.var(ddof=1) / 5000, 1 / 3
    freedom = (image + seed_part) ** 2 / (image**2 / 4999 + seed_part**2 / 2)
    assert points == pytest.approx(2.0)
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(image + seed_part), rel=1e-10)
    assert p is not None and theirs.pvalue * 0.8 < p < theirs.pvalue * 1.05


def test_strata_add_up() -> None:
    """A mean over classes has the variance Σ (1/K)² v_k / n_k; a class of one image takes the pooled v."""
    values = np.array([0.0, 1, 1, 0, 2, 1, 3.0])
    strata = np.array([0, 0, 0, 1, 1, 1, 2])
    weight = np.array([1 / 9] * 6 + [1 / 3])
    v0, v1 = np.var(values[:3], ddof=1), np.var(values[3:6], ddof=1)
    found = noise.image_variance(values, weight, strata)
    assert found is not None
    assert found[0] == pytest.approx((v0 / 3 + v1 / 3 + (v0 + v1) / 2) / 9, rel=1e-12) and found[1] == 4
    assert noise.image_variance(values[[0, 3, 6]], np.full(3, 1 / 3), np.arange(3)) is None


def test_equal_and_hopeless_cases() -> None:
    weight, strata = noise.weights("overall", np.zeros(4, dtype=np.int64), (9,))
    ones, zeros = np.ones((3, 4)), np.zeros((3, 4))
    assert noise.compare(ones, ones, weight, strata) == (0.0, 0.0, 1.0)
    # Nothing varies, so nothing is known of the noise: no claim is made.
    points, half, p = noise.compare(ones, zeros, weight, strata)
    assert (points, half, p) == (100.0, None, None)
    assert not Difference("a", "b", "overall", points, half, p, None, 3, 4).exceeds


@pytest.mark.parametrize(("seeds", "low", "high"), [(1, 0.0, 0.9), (3, 0.92, 0.97), (5, 0.95, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, low: float, high: float) -> None:
    """Images and seeds both drawn anew. One seed knows nothing of the others, and its interval is too narrow."""
    rng = np.random.default_rng(0)
    images, covered, trials = 300, 0, 400
    weight, strata = noise.weights("overall", np.zeros(images, dtype=np.int64), (9,))
    for _ in range(trials):
        hard = rng.normal(0, 1, images)  # shared by both methods
        skill = 0.6 + 0.1 * rng.normal(size=(2, seeds, 1))
        right = [(skill[k] - hard + 0.7 * rng.normal(size=(seeds, images)) > 0).astype(float) for k in (0, 1)]
        points, half, _ = noise.compare(right[0], right[1], weight, strata)
        covered += half is not None and abs(points) <= half  # the truth is 0
    assert low <= covered / trials <= high, covered / trials


def test_holm_against_a_worked_example() -> None:
    assert noise.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert noise.holm([0.5, None, 0.9]) == [1.0, None, 1.0]


@pytest.mark.parametrize(
    ("points", "seeds", "p", "said"),
    [
        (20.3, 3, 0.001, "lift+ beats full by 20.3 ± 1.1 points overall: more than noise."),
        (-20.3, 3, 0.001, "full beats lift+ by 20.3 ± 1.1 points overall: more than noise."),
        (0.4, 3, 0.3, "lift+ against full, overall: +0.4 ± 1.1 points: within noise."),
        (0.2, 1, 0.001, "lift+ against full, overall: +0.2 ± 1.1 points: within noise."),
    ],
)
def test_sentences(points: float, seeds: int, p: float, said: str) -> None:
    assert Difference("lift+", "full", "overall", points, 1.1, p, p, seeds, 99).sentence() == said
