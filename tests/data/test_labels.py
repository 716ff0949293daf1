"""Labels in every form that Python's libraries have: the right classes, or one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from liftplus.data.labelled import from_images
from liftplus.data.labels import read
from liftplus.errors import UserError

TWELVE = [0] * 6 + [1] * 6
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)


class Column:
    """What pandas' Series, Categorical and DataFrame have: no list, but an array on request.

    A stand-in, as pandas is no dependency of the tests. `kind` is the type of the array that pandas 2.2 gives: int64
    for whole numbers, object where a value is missing or for words. A frame is iterated over its headings.
    """

    def __init__(self, values: Sequence[object], kind: type = object, headings: Sequence[str] = ()) -> None:
        self.array, self.headings = np.array(values, dtype=kind), headings

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.array

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[object]:
        return iter(self.headings or self.array.tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor(TWELVE),
        torch.tensor(TWELVE, dtype=torch.bfloat16),
        torch.tensor(TWELVE, dtype=torch.float32, requires_grad=True),
        torch.tensor(TWELVE)[:, None],
        [torch.tensor(label) for label in TWELVE],
        np.array(TWELVE),
        np.array(TWELVE, dtype=np.uint8),
        np.array(TWELVE, dtype=float),
        np.array(TWELVE)[:, None],
        np.array(TWELVE)[None],
        [[label] for label in TWELVE],
        np.eye(2)[TWELVE],
        np.eye(2, dtype=bool)[TWELVE],
        torch.eye(3)[TWELVE],
        Column(TWELVE),
        Column(np.array(TWELVE)[:, None]),
        pa.array(TWELVE),
        (label for label in TWELVE),
        [1.0 * label for label in TWELVE],
    ],
)
def test_numbers(labels: object) -> None:
    data = from_images(IMAGES, labels)
    assert (data.class_ids, data.counts()) == (("0", "1"), (6, 6))


def test_a_sparse_tensor() -> None:
    assert from_images(IMAGES, torch.eye(2)[[0] * 6 + [1] * 6].to_sparse()).counts() == (6, 6)


def test_text_and_truth() -> None:
    assert from_images(IMAGES, np.array([b"cat"] * 6 + [b"dog"] * 6)).class_names == ("cat", "dog")
    assert from_images(IMAGES, np.array(["cat"] * 6 + ["dog"] * 6)).counts() == (6, 6)
    assert from_images(IMAGES, [True] * 6 + [False] * 6).class_ids == ("False", "True")


class Missing:
    """As pandas' NA: comparing it is neither true nor false."""

    def __eq__(self, other: object) -> object:  # type: ignore[override]
        return self

    def __ne__(self, other: object) -> object:  # type: ignore[override]
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0] * 5 + [1.0] * 4 + [np.nan] * 3),
        [0] * 11 + [None],
        Column([0] * 11 + [Missing()]),
        [0] * 11 + [Missing()],
        np.ma.array(TWELVE, mask=[0] * 11 + [1]),
        np.array(["2020-01-01"] * 11 + ["NaT"], dtype="datetime64[D]"),
        np.array([["2020-01-01"]] * 11 + [["NaT"]], dtype="datetime64[ns]"),
        [np.timedelta64(1, "ns")] * 11 + [np.timedelta64("NaT", "ns")],
        ["a"] * 6 + [""] * 6,
        pa.array([0] * 11 + [None]),
    ],
)
def test_missing(labels: object) -> None:
    with pytest.raises(UserError, match=r"labels? (is|are) missing: the first is that of picture"):
        from_images(IMAGES, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([True] * 6 + [1] * 6, "True and 1 are of different types"),
        ([True] * 6 + [0.0] * 6, "True and 0 are of different types"),
        (["1"] * 6 + [1] * 6, "'1' and 1 are of different types"),
        (np.ones((12, 2)), "not one-hot"),
        ([("owl", "wren")] * 12, "not one-hot"),
        (np.full((12, 2), 0.5), "not one-hot"),
        ([[0], [1, 0]] * 6, "not one-hot"),
        ([{}] * 12, "is a dict; give a number or a word"),
        (np.zeros((12, 1, 1)), "is a list; give a number or a word"),
        ("aaaaaabbbbbb", "labels are a str"),
        (dict.fromkeys(range(12)), "labels are a dict"),
        (set(range(12)), "labels are a set"),
        (7, "labels are a int"),
        ([0.0] * 11 + [np.inf], "label of picture 11 is inf"),
        ([0, 1], "12 pictures and 2 labels"),
        (["Cat"] * 6 + ["cat"] * 6, "'Cat' and 'cat' have the same name.*own words with class_names="),
        (["cat"] * 6 + ["cat "] * 6, "'cat' and 'cat ' have the same name"),
        (["0"] * 6 + ["1"] * 5 + ["nan"], "label 'nan' among numbers"),
        (torch.tensor(TWELVE, device="meta"), "a tensor on meta, which holds no values"),
    ],
)
def test_refused(labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_images(IMAGES, labels)


def test_what_was_decided_is_said() -> None:
    assert read(np.eye(2)[TWELVE], 12).notes == (
        "The labels are one-hot [12, 2]; the column number is used as the class.",
    )
    assert "'0.5', '1.5'" in from_images(IMAGES, [0.5] * 6 + [1.5] * 6).notes[0]
    data = from_images(IMAGES, ["caf\u00e9"] * 3 + ["cafe\u0301"] * 3 + ["b"] * 6)
    assert (data.class_names, data.counts()) == (("b", "caf\u00e9"), (6, 6))
    assert "Unicode form" in data.notes[0]


def test_dates_below_a_microsecond_are_no_numbers() -> None:
    days = np.array(["2020-01-01"] * 6 + ["2021-01-01"] * 6, dtype="datetime64[ns]")
    for labels in (days, list(days), days[:, None]):
        data = from_images(IMAGES, labels)
        assert data.counts() == (6, 6) and data.class_ids[0].startswith("2020-01-01T")


def test_words_for_missing_values_are_told() -> None:
    assert "'None', which often stands for a missing label" in from_images(IMAGES, ["a"] * 6 + ["None"] * 6).notes[0]


def test_labels_of_the_test_pictures() -> None:
    data = from_images(IMAGES, TWELVE, test=(IMAGES[:2], torch.tensor([[1], [0]])))
    assert data.splits["test"].labels == [1, 0]
    other = from_images(IMAGES, ["caf\u00e9"] * 6 + ["b"] * 6, test=(IMAGES[:2], ["cafe\u0301", "b"]))
    assert other.counts("test") == (1, 1)


def test_one_file_given_several_times(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (9, 9), (number * 40, 0, 0)).save(path)
    labels = [0, 0, 0, 0, 1, 1]
    data = from_images(paths * 3, labels * 3, test_share=0.3)
    assert not set(data.splits["train"].keys) & set(data.splits["test"].keys)
    assert sum(map(len, data.splits.values())) == 6
    assert data.notes[0].startswith("12 rows that repeat a picture were left out")
    again = from_images([*paths, os.path.join(str(tmp_path), ".", "0.png")], [*labels, 0])
    assert again.counts() == (4, 2)
    with pytest.raises(UserError, match=r"several labels to 1 of 6 pictures: first .*0\.png', which has '0', '1'"):
        from_images([*paths, paths[0]], [*labels, 1])
    both = from_images(paths, labels, test=(paths[:1], [0]))
    assert both.notes[0].startswith("1 picture is in train and test at once")


def test_columns_of_pandas() -> None:
    """By the stand-in `Column`: a Series of Int64, a DataFrame of one column, and Categoricals."""
    for labels in (Column(TWELVE, np.int64), Column([[label] for label in TWELVE], np.int64, headings=["y"])):
        assert from_images(IMAGES, labels).counts() == (6, 6)
    assert from_images(IMAGES, Column(["b"] * 6 + ["a"] * 6)).class_ids == ("a", "b")
    for missing in (Missing(), np.nan):
        with pytest.raises(UserError, match="1 label is missing: the first is that of picture 11"):
            from_images(IMAGES, Column([*TWELVE[:11], missing]))
