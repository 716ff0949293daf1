"""Single images with their labels as a data set: arrays, Pillow images or paths of files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from liftplus.data import class_names as naming
from liftplus.data import rows, splits
from liftplus.data.arrays import ArrayStore
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split, Table, are_numbers, sorted_ids
from liftplus.data.images import upright_rgb
from liftplus.data.labels import one_form
from liftplus.data.labels import read as read_labels
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.machine.paths import expanded
from liftplus.words import agreeing, counted

Labelled = tuple[Iterable[Any], Sequence[Hashable] | ArrayLike]
"""Images and their labels, as `from_images` takes them."""
OWN_WORDS = "class_names={label: name}, or write labels of one class in one way"


def from_images(
    images: Iterable[Any],
    labels: Sequence[Hashable] | ArrayLike,
    *,
    class_names: Mapping[Any, str] | Sequence[str] | None = None,
    test: Labelled | None = None,
    test_share: float = 0.0,
    seed: int = 0,
) -> DataSet:
    """A data set of single images with their labels.

    Args:
        images: uint8 [N, H, W, 3]; or N pictures [H, W, 3] of different sizes, Pillow images, or paths of files.
        labels: N labels of any kind, in a list, array, tensor or column; equal ones are one class. [N, 1] and one-hot
            [N, C] are taken as well.
        class_names: words for the labels, which the text encoder reads: a mapping from label to name, or the names in
            the order of the sorted labels. By default text labels are their own names; other labels have none.
        test: more images and labels, to test on.
        test_share: share of the pictures to set aside for testing, spread like the classes, where `test` is not given.
        seed: seed of that choice.

    Raises:
        UserError: a picture is invalid, labels are missing or of several types, or a path has two labels.

    >>> data = liftplus.from_images(images, labels, class_names={0: "red square", 1: "green hill", 2: "blue sky"})
    >>> data.class_names, data.counts()
    (('red square', 'green hill', 'blue sky'), (6, 4, 2))
    """
    classes, table, store = _joined(images, labels, test)
    ids = tuple(map(str, classes))
    place = {label: k for k, label in enumerate(ids)}
    made = dict(table.rows)
    if test is None and test_share:
        pairs = made["train"]
        held = set(splits.held_out([place[label] for _, label in pairs], test_share, seed).tolist())
        made["train"] = [row for k, row in enumerate(pairs) if k not in held]
        made["test"] = [row for k, row in enumerate(pairs) if k in held]
    names, named = _names(classes, class_names)
    twins = naming.check(dict(zip(ids, names, strict=True)), OWN_WORDS) if named else ()
    found = {
        split: Split([key for key, _ in part], [place[label] for _, label in part])
        for split, part in made.items()
        if part
    }
    return DataSet("images", names, ids, found, store, (*table.notes, *twins), named)


def _joined(
    images: Iterable[Any], labels: Any, test: Labelled | None
) -> tuple[list[Hashable], Table, FolderStore | ArrayStore]:
    """The classes in order; the rows of training and test, with the classes as text; where the pictures are."""
    pictures = pictures_of(images)
    given = read_labels(labels, len(pictures))
    values, merged = one_form(given.values)
    classes = _sorted(values)
    ids = list(map(str, classes))
    index = {label: k for k, label in enumerate(classes)}
    parts = {"train": [ids[index[label]] for label in values]}
    if test is not None:
        more = pictures_of(test[0])
        parts["test"] = _test_ids(test[1], len(more), index, ids)
        pictures = [*pictures, *more]
    store, keys = store_of(pictures)
    halves = {"train": keys[: len(values)], "test": keys[len(values) :]}
    pairs = {split: list(zip(halves[split], part, strict=True)) for split, part in parts.items()}
    return classes, rows.settled(Table(pairs, notes=(*given.notes, *merged)), store, "The list of images"), store


def _test_ids(given: Any, count: int, index: Mapping[Hashable, int], ids: Sequence[str]) -> list[str]:
    """The class ids of test labels, which may be of another Unicode form than those of training."""
    forms = {unicodedata.normalize("NFC", label): k for label, k in index.items() if isinstance(label, str)}
    labels = read_labels(given, count).values
    found = [index.get(one, forms.get(unicodedata.normalize("NFC", str(one)))) for one in labels]
    if None in found:
        raise UserError(
            f"The test labels have classes that training does not know, first {labels[found.index(None)]!r}; add "
            "training images of them, or leave them out."
        )
    return [ids[k] for k in found if k is not None]


def is_column(images: Any) -> bool:
    """Whether something is a column [N, 1] of an array or table, which holds no pixels but paths or pictures."""
    shape: Any = getattr(images, "shape", ())
    if len(shape) != 2 or shape[1] != 1:
        return False
    kinds = getattr(images, "dtypes", [getattr(images, "dtype", "")])
    return not any(re.match("u?int|float|bool", str(kind).lower().removeprefix("torch.")) for kind in kinds)


def pictures_of(images: Iterable[Any]) -> list[Any]:
    """Paths as text, and pictures [H, W, 3] of uint8, one kind of the two."""
    listed = np.asarray(images).ravel().tolist() if is_column(images) else images
    found = [_picture(number, one) for number, one in enumerate(listed)]
    if not found:
        raise UserError("There are no images. Give paths, Pillow images or uint8 arrays [H, W, 3].")
    if len({type(one) for one in found}) > 1:
        raise UserError("Some images are paths and some are not. Give either.")
    return found


def _picture(number: int, one: Any) -> str | NDArray[np.uint8]:
    if isinstance(one, list | tuple) and len(one) == 1 and isinstance(one[0], str | os.PathLike):
        one = one[0]
    if isinstance(one, str | os.PathLike):
        return str(expanded(one)) if os.fspath(one).startswith("~") else str(os.fspath(one))
    pixels = np.asarray(upright_rgb(one) if isinstance(one, Image.Image) else one)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(
            f"Image {number} is {pixels.dtype} {list(pixels.shape)}. Give paths, Pillow images or uint8 arrays "
            "[H, W, 3]: red, green and blue from 0 to 255."
        )
    return pixels


def store_of(pictures: list[Any]) -> tuple[FolderStore | ArrayStore, list[str]]:
    """Where pictures are read from, and the key of each."""
    store: FolderStore | ArrayStore
    if isinstance(pictures[0], str):
        store, keys = FolderStore(""), list(pictures)
    else:
        store, keys = ArrayStore(pictures, "image "), [str(k) for k in range(len(pictures))]
    store.decode = DataConfig().decode
    return store, keys


def _sorted(labels: Iterable[Hashable]) -> list[Hashable]:
    """Each label once: by value where they compare, else by their text."""
    once = list(dict.fromkeys(labels))
    try:
        return sorted(once)  # type: ignore[type-var]
    except TypeError:
        place = {text: k for k, text in enumerate(sorted_ids(map(str, once)))}
        return sorted(once, key=lambda label: place[str(label)])


def _names(classes: list[Hashable], given: Mapping[Any, str] | Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """A name for each class, and whether they are words."""
    if isinstance(given, Mapping):
        if missing := [label for label in classes if label not in given]:
            raise UserError(f"class_names has no name for {missing[0]!r}; give one for each label.")
        return tuple(str(given[label]) for label in classes), True
    if given is not None:
        if len(given) != len(classes):
            raise UserError(
                f"There {agreeing(len(classes), 'is', 'are')} {counted(len(classes), 'class', 'classes')} and "
                f"{counted(len(given), 'name')} in class_names; give one for each."
            )
        return tuple(map(str, given)), True
    words = tuple(map(str, classes))
    return words, all(isinstance(label, str) for label in classes) and not are_numbers(words)
