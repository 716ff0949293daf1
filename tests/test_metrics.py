"""Every trap of long-tailed accuracies has a hand-made case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftplus.metrics import accuracies, group_of


@pytest.mark.parametrize(("count", "group"), [(101, "many"), (100, "medium"), (20, "medium"), (19, "few"), (0, "few")])
def test_group_borders(count: int, group: str) -> None:
    assert group_of(count) == group


def test_hand_made_case() -> None:
    found = accuracies([0, 0, 1, 2, 2, 0], [0, 0, 0, 1, 2, 2], [500, 50, 5])
    assert found.overall == pytest.approx(50)
    assert found.per_class == pytest.approx((200 / 3, 0, 50))
    assert (found.many, found.medium, found.few) == pytest.approx((200 / 3, 0, 50))
    assert found.mean_class == pytest.approx((200 / 3 + 0 + 50) / 3)


def test_class_missing_from_the_test_split_shifts_nothing() -> None:
    with_class = accuracies([0, 2, 3, 0], [0, 2, 2, 3], [500, 300, 50, 5])
    assert with_class.per_class[1] is None
    assert (with_class.many, with_class.medium, with_class.few) == (100, 50, 0)
    assert with_class.mean_class == 50


def test_empty_group_has_no_value() -> None:
    found = accuracies([0, 1], [0, 1], [500, 400])
    assert found.medium is None and found.few is None and found.many == 100


def test_groups_come_from_training_counts_only() -> None:
    assert accuracies([0] * 300, [0] * 300, [5, 500]).few == 100


def test_binary_and_single_image() -> None:
    assert accuracies([1], [0], [10, 10]).overall == 0


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        accuracies([], [], [1, 2])


@given(
    st.integers(2, 9).flatmap(
        lambda c: st.tuples(
            st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=60),
            st.lists(st.integers(0, 300), min_size=c, max_size=c),
        )
    )
)
def test_properties(case: tuple[list[tuple[int, int]], list[int]]) -> None:
    pairs, counts = case
    guess, truth = np.array(pairs).T
    found = accuracies(guess, truth, counts)
    assert found.overall == pytest.approx(100 * np.mean(guess == truth))
    present = [value for value in found.per_class if value is not None]
    assert len(present) == len(set(truth.tolist()))
    groups = [value for value in (found.many, found.medium, found.few) if value is not None]
    assert min(groups) - 1e-9 <= found.mean_class <= max(groups) + 1e-9
    order = np.random.default_rng(0).permutation(len(counts))
    place = np.argsort(order)
    moved = accuracies(place[guess], place[truth], [counts[k] for k in order])
    assert moved.summary() == pytest.approx(found.summary())
