"""Held-out splits: every image once, every class trained, nothing left to chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftplus.data.splits import complete, held_out


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 12), min_size=1, max_size=120),
    test_share=st.floats(0.01, 0.99),
    val_share=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    seed=st.integers(0, 1000),
)
def test_every_image_in_one_split_and_every_class_trained(
    labels: list[int], test_share: float, val_share: float, seed: int
) -> None:
    rows = [(f"{i}.jpg", str(label)) for i, label in enumerate(labels)]
    done, notes = complete({"train": rows}, test_share=test_share, val_share=val_share, seed=seed)
    assert sorted(row for split in done.values() for row in split) == sorted(rows)
    assert {label for _, label in done["train"]} == set(map(str, labels))
    assert all(len(split) > 0 for split in done.values())
    assert len(notes) == 1 + (val_share > 0)
    again, _ = complete({"train": rows}, test_share=test_share, val_share=val_share, seed=seed)
    assert again == done


@pytest.mark.parametrize(("share", "expected"), [(0.2, [20, 2, 1, 0]), (0.5, [50, 5, 1, 0])])
def test_shares_follow_the_classes(share: float, expected: list[int]) -> None:
    labels = [0] * 100 + [1] * 10 + [2] * 2 + [3]
    held = held_out(labels, share, seed=3)
    assert np.bincount(np.array(labels)[held], minlength=4).tolist() == expected


def test_largest_remainder_meets_the_total() -> None:
    labels = [k for k in range(5) for _ in range(7)]
    assert len(held_out(labels, 0.2, seed=0)) == 7


def test_seed_changes_the_choice() -> None:
    labels = [0] * 50 + [1] * 50
    assert held_out(labels, 0.3, 0).tolist() == held_out(labels, 0.3, 0).tolist()
    assert held_out(labels, 0.3, 0).tolist() != held_out(labels, 0.3, 1).tolist()


def test_golden_choice() -> None:
    # A change here changes everyone's splits.
    assert held_out([0] * 6 + [1] * 4, 0.4, seed=0).tolist() == [2, 5, 6, 9]


def test_val_serves_as_test() -> None:
    rows = {"train": [("a", "0"), ("b", "0")], "val": [("c", "0")]}
    done, notes = complete(rows, test_share=0.2, val_share=0.5, seed=0)
    assert done["test"] == [("c", "0")]
    assert len(done["val"]) == 1
    assert "validation split serves as the test split" in notes[0]
    assert "validation" not in notes[1]


def test_given_splits_stay() -> None:
    rows = {"train": [("a", "0")], "val": [("b", "0")], "test": [("c", "0")]}
    assert complete(rows, test_share=0.2, val_share=0.5, seed=0) == (rows, ())


def test_one_image_a_class_leaves_no_test_split() -> None:
    done, notes = complete({"train": [("a", "0"), ("b", "1")]}, test_share=0.5, val_share=0, seed=0)
    assert set(done) == {"train"}
    assert "No test split could be made" in notes[0]


def test_the_same_pictures_are_drawn_as_ever() -> None:
    """Classes were once gathered one by one; runs that noted their splits' digests go on."""
    labels = np.random.default_rng(0).integers(0, 40, 500).tolist()
    rng = np.random.RandomState(7)
    members = np.unique(np.array(labels), return_inverse=True)[1]
    shuffled = [rng.permutation(np.flatnonzero(members == k)) for k in range(40)]
    held = set(held_out(labels, 0.3, seed=7).tolist())
    sizes = [len(held & set(own.tolist())) for own in shuffled]
    assert held == {int(i) for own, size in zip(shuffled, sizes, strict=True) for i in own[:size]}
    assert len(held) == 150
