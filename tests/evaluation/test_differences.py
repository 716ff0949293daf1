"""Intervals of single accuracies in closed form, and which methods are compared on which pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from liftplus.evaluation import differences
from liftplus.evaluation.differences import Answers, Contender


def answers(right: list[list[float]], labels: list[int] | None = None, **more: object) -> Answers:
    """Runs right or wrong on pictures of one few class, or of the given classes with 3 training pictures each."""
    values, classes = np.array(right), np.array(labels or [0] * len(right[0]))
    images = tuple((f"{k}.png", str(label)) for k, label in enumerate(classes))
    about = {"images": images, "train_counts": (3,) * (int(classes.max()) + 1), "seeds": tuple(range(len(right)))}
    return Answers(values, classes, **about | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("right", "of"), [(3, 3), (0, 3), (1, 1), (0, 1), (66, 66)])
def test_all_or_none_right_keeps_clopper_and_pearsons_width(right: int, of: int) -> None:
    found = answers([[1.0] * right + [0.0] * (of - right)]).interval("overall")
    theirs = stats.binomtest(right, of).proportion_ci(method="exact")
    assert found == pytest.approx((100 * theirs.low, 100 * theirs.high))


def test_one_seed_is_clopper_and_pearsons_interval() -> None:
    """But for n - 1 in place of n pictures, as the variance is estimated."""
    found = answers([[1.0] * 300 + [0.0] * 100]).interval("overall")
    low, high = stats.beta.ppf(0.025, 0.75 * 399, 0.25 * 399 + 1), stats.beta.ppf(0.975, 0.75 * 399 + 1, 0.25 * 399)
    assert found == pytest.approx((100 * low, 100 * high), abs=1e-6)


def test_seeds_that_disagree_widen_the_interval() -> None:
    same = answers([[1.0, 0.0] * 50] * 3).interval("overall")
    apart = answers([[1.0, 0.0] * 50, [1.0, 1.0] * 50, [0.0, 0.0] * 50]).interval("overall")
    assert same is not None and apart is not None
    assert apart[0] < same[0] < 50 < same[1] < apart[1] and apart[0] >= 0 and apart[1] <= 100


def test_a_group_without_pictures_has_none() -> None:
    one = answers([[1.0, 0.0]])
    assert one.interval("many") is None and one.accuracy("many") is None and one.pictures("many") == 0
    assert one.accuracy("few") == 50 and one.pictures("few") == 2
    assert differences.counted(one) == "2 test images: few 2"


def test_runs_are_paired_by_picture_and_by_seed() -> None:
    a = answers([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], seeds=(0, 1))
    turned = Answers(np.array([[0.0, 0.0, 1.0]]), a.labels, a.images[::-1], a.train_counts, (1,))
    (found,) = [d for d in judged([("a", a), ("b", turned)]) if d.key == "overall"]
    assert found.points == pytest.approx(100 * (1 / 2 - 1 / 3)) and found.seeds == 1
    (crops,) = [
        d for d in differences.judged([Contender("a", False, a), Contender("a", True, turned)]) if d.key == "overall"
    ]
    assert crops.points == pytest.approx(100 * (2 / 3 - 1 / 3)), "the same seed of one training"
    assert judged([("a", a), ("b", answers([[1.0, 1.0]]))]) == []
    other = answers([[1.0, 1.0, 1.0]], images=(("x", "0"), ("y", "0"), ("z", "0")))
    assert judged([("a", a), ("b", other)]) == []


def judged(given: list[tuple[str, Answers]]) -> list[differences.Difference]:
    return differences.judged([Contender(name, False, one) for name, one in given])


def test_which_methods_are_compared() -> None:
    one = answers([[1.0, 0.0, 1.0, 1.0]])

    def pairs(*given: tuple[str, bool]) -> set[tuple[str, str]]:
        found = differences.judged([Contender(method, tte, one) for method, tte in given])
        return {(d.a, d.b) for d in found if d.key == "overall"}

    assert pairs(("a", False)) == set() == pairs()
    assert pairs(("a", False), ("a", True), ("b", False)) == {("a", "a (five crops)"), ("a", "b")}
    assert pairs(("a", True), ("b", False)) == {("a (five crops)", "b")}, "there is nothing else to compare"


def test_the_best_of_no_right_answers_has_headlines() -> None:
    zeros = [Contender(name, False, answers([[0.0, 0.0]])) for name in "ab"]
    assert differences.headlines(zeros, differences.judged(zeros))[0].startswith("a against b, overall: +0.0")
