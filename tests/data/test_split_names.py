"""Names of splits as data sets write them, and names that only look like one."""

from __future__ import annotations

import pytest

from liftplus.data import split_names


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train training TRAIN training_set seg_train TrainingSet trainset train_mini train2017 imgs_train", "train"),
        ("trainval train_val2018 01_train Train-Images asl_alphabet_train", "train"),
        ("val valid validation dev val2017 images_valid ValidationSet", "val"),
        ("test testing test_set seg_test testset test1 eval evaluation", "test"),
    ],
)
def test_names_of_splits(names: str, split: str) -> None:
    found = {name: split_names.read(name) for name in names.split()}
    assert {name: one.split if one else None for name, one in found.items()} == dict.fromkeys(found, split)


@pytest.mark.parametrize("name", ["cat", "constrain", "toytrain", "train_test_split", "contest", "latest", "", "猫"])
def test_names_of_no_split(name: str) -> None:
    assert split_names.read(name) is None


@pytest.mark.parametrize(
    ("names", "together"),
    [
        (("training_set", "test_set"), True),
        (("seg_train", "seg_test"), True),
        (("asl_alphabet_train", "asl_alphabet_test"), True),
        (("train_mini", "val"), True),
        (("train_station", "test_tube"), False),
        (("train", "bullet_train"), False),
    ],
)
def test_which_names_belong_together(names: tuple[str, ...], together: bool) -> None:
    found = [name for text in names if (name := split_names.read(text)) is not None]
    assert len(found) == len(names)
    assert split_names.alike(found) is together
