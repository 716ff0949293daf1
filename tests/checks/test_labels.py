"""Wrong labels and classes that are one, in features where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from liftplus.checks import labels, outliers
from liftplus.checks.neighbours import nearest, reduced


def clusters(counts: list[int], dim: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around a direction for each class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.randn(len(counts), dim, generator=generator)
    return centres[label] + 0.4 * torch.randn(len(label), dim, generator=generator), label


def judged(features: Tensor, label: Tensor, training: Tensor | None = None) -> labels.Opinion:
    every = torch.ones(len(label), dtype=torch.bool) if training is None else training
    return labels.judge(features, label, every, int(label.max()) + 1)


def test_flipped_labels_are_suspicious_and_no_others() -> None:
    features, true = clusters([60, 30, 12, 5])
    given = true.clone()
    wrong = [3, 40, 65, 95, 103]  # one of them in each class, the last in the class of five
    for number, other in zip(wrong, (1, 2, 0, 3, 0), strict=True):
        given[number] = other
    found = judged(features, given)
    assert np.flatnonzero(found.suspicious).tolist() == wrong
    assert [int(found.best[k]) for k in wrong] == true[wrong].tolist()
    assert found.right > 0.8 and found.alike == ()


def test_sound_labels_are_not_suspicious() -> None:
    found = judged(*clusters([80, 20, 6, 2]))
    assert not found.suspicious.any() and not np.isnan(found.own).any()


def test_a_class_of_one_picture_is_not_judged_and_not_suggested() -> None:
    features, label = clusters([30, 20, 1])
    features[0] = features[50]  # looks like the picture of the third class
    found = judged(features, label)
    assert np.flatnonzero(np.isnan(found.own)).tolist() == [50]
    assert not found.suspicious[50] and not found.suspicious[0]


def test_pictures_of_a_test_split_are_judged_by_training_pictures() -> None:
    features, label = clusters([40, 40])
    training = torch.arange(80) % 4 != 0
    given = label.clone()
    given[0] = 1
    found = judged(features, given, training)
    assert np.flatnonzero(found.suspicious).tolist() == [0]


def test_a_class_split_in_two_is_told_and_others_are_not() -> None:
    features, label = clusters([60, 60, 60])
    label[:60:2] = 3
    found = judged(features, label)
    assert [pair[:2] for pair in found.alike] == [(0, 3)]
    assert found.alike[0][2] >= 0.4


def test_few_pictures_say_nothing_of_classes_being_one() -> None:
    features, label = clusters([8, 40])
    label[:4] = 2
    assert judged(features, label).alike == ()


@pytest.mark.parametrize("counts", [[12], [1, 1], [1]])
def test_nothing_to_compare_with(counts: list[int]) -> None:
    features, label = clusters(counts)
    found = judged(features, label)
    assert not found.suspicious.any() and found.alike == ()
    assert np.isnan(found.own).all() == (max(counts) == 1)


def test_a_picture_far_from_all_is_an_outlier_and_a_rare_class_is_none() -> None:
    features, _ = clusters([60, 50, 4], dim=200)
    strange = torch.randn(1, 200, generator=torch.Generator().manual_seed(9))
    rows = reduced(torch.cat([features, strange]).numpy())
    assert np.flatnonzero(outliers.far(nearest(rows, rows, 3))).tolist() == [114]
    assert not outliers.far(nearest(rows[:5], rows[:5], 3)).any()
