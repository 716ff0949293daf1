"""Every trap of long-tailed accuracies has a hand-made case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import DataSet, Split
from liftplus.errors import UserError
from liftplus.evaluation.metrics import accuracies, group_of, ranked
from liftplus.runs.matching import aligned
from liftplus.training.checkpoint import Trained


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


def test_binary_problem() -> None:
    found = accuracies([0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1], [200, 7])
    assert found.per_class == (75, 50)
    assert (found.many, found.medium, found.few) == (75, None, 50)
    assert found.mean_class == 62.5
    assert found.overall == pytest.approx(100 * 4 / 6)


def test_binary_with_one_class_tested_only() -> None:
    found = accuracies([0, 1, 1], [1, 1, 1], [200, 7])
    assert found.per_class == (None, pytest.approx(200 / 3))
    assert found.many is None
    assert (found.few, found.mean_class, found.overall) == pytest.approx((200 / 3,) * 3)


def test_one_class_groups_are_that_class() -> None:
    found = accuracies([0, 1, 1, 2, 0, 0], [0, 0, 1, 2, 2, 2], [101, 100, 19])
    assert (found.many, found.medium, found.few) == (found.per_class[0], found.per_class[1], found.per_class[2])
    assert found.per_class == (50, 100, pytest.approx(100 / 3))


def test_class_with_test_but_no_training_images_is_among_the_few() -> None:
    found = accuracies([0, 0, 2, 1], [0, 1, 2, 1], [150, 0, 5])
    assert found.per_class == (100, 50, 100)
    assert found.few == 75 and found.many == 100 and found.medium is None


def test_all_classes_without_training_images() -> None:
    assert accuracies([0, 1], [0, 0], [0, 0]).few == 50


def test_groups_average_classes_and_not_images() -> None:
    found = accuracies([0] * 98 + [1, 1] + [1], [0] * 100 + [1], [300, 200])
    assert found.many == found.mean_class == 99
    assert found.overall == pytest.approx(100 * 99 / 101)


@pytest.mark.parametrize(
    ("guess", "truth"), [([0, 1], [0, 2]), ([0, 2], [0, 1]), ([0, 1], [0, -1]), ([-1, 1], [0, 1]), ([9], [9])]
)
def test_a_label_unknown_to_training_is_never_passed_over(guess: list[int], truth: list[int]) -> None:
    with pytest.raises(ValueError, match="class indices from 0 to 1"):
        accuracies(guess, truth, [30, 30])


def test_lengths_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="as many predictions"):
        accuracies([0, 1], [0], [1, 1])


@pytest.mark.parametrize("classes", [2, 7, 1200])
def test_ties_go_to_the_first_class(classes: int) -> None:
    """torch.topk promises no order among equal scores; one order makes every machine give one answer."""
    scores = torch.zeros(3, classes)
    scores[1, 1] = 1.0
    assert ranked(scores, 2).tolist() == [[0, 1], [1, 0], [0, 1]]
    found = accuracies(ranked(scores, 1)[:, 0].numpy(), [0, 1, 1], [5] * classes)
    assert found.per_class[:2] == (100, 50)


def test_mean_of_groups_weighted_by_their_classes_is_the_mean_class() -> None:
    counts = [500, 400, 300, 50, 5]
    found = accuracies([0, 1, 0, 3, 4, 0], [0, 1, 2, 3, 4, 4], counts)
    assert found.many is not None and found.medium is not None and found.few is not None
    assert found.mean_class == pytest.approx((3 * found.many + found.medium + found.few) / 5)


def matched(dataset: DataSet, trained: SimpleNamespace) -> list[int]:
    return list(aligned(dataset, "test", cast(Trained, trained)).splits["test"].labels)


def test_labels_are_matched_before_they_are_counted() -> None:
    """Non-contiguous ids, other orders and missing classes end at the training's own indices; strangers are refused."""
    trained = SimpleNamespace(
        class_ids=("3", "10", "700"), class_names=("cat", "dog", "emu"), former_names=(), levels={}
    )
    store = ArrayStore(np.zeros((1, 2, 2, 3), dtype=np.uint8))
    some = DataSet("d", ("emu", "cat"), ("700", "3"), {"test": Split(["0"] * 3, [0, 1, 0])}, store)
    assert matched(some, trained) == [2, 0, 2]
    other_ids = DataSet("d", ("Dog", "EMU"), ("0", "1"), {"test": Split(["0"] * 2, [0, 1])}, store)
    assert matched(other_ids, trained) == [1, 2]
    bare = DataSet("d", ("10", "3"), ("10", "3"), {"test": Split(["0"] * 2, [0, 1])}, store, named=False)
    assert matched(bare, trained) == [1, 0]
    strange = DataSet("d", ("cat", "yak"), ("3", "5"), {"test": Split(["0"] * 2, [0, 1])}, store)
    with pytest.raises(UserError, match="not trained on: 'yak'"):
        matched(strange, trained)
    unused = DataSet("d", ("cat", "yak"), ("3", "5"), {"test": Split(["0"] * 2, [0, 0])}, store)
    assert matched(unused, trained) == [0, 0]  # a class without images harms nothing


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
