"""Single images with their labels as a data set: arrays, Pillow images or paths of files."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from liftplus.data import splits
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split, are_numbers, sorted_ids
from liftplus.data.images import upright_rgb
from liftplus.data.stores import ArrayStore, FolderStore
from liftplus.errors import UserError

Labelled = tuple[Iterable[Any], Sequence[Hashable] | ArrayLike]
"""Images and their labels, as `from_images` takes them."""


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
        labels: N labels of any kind; equal ones are one class.
        class_names: words for the labels, which the text encoder reads: a mapping from label to name, or the names in
            the order of the sorted labels. By default text labels are their own names, and others mean nothing.
        test: more images and labels, to test on.
        test_share: share of the pictures to set aside for testing, spread like the classes, where `test` is not given.
        seed: of that choice.

    Raises:
        UserError: a picture or label is none.

    >>> data = liftplus.from_images(images, labels, class_names={0: "red square", 1: "green hill", 2: "blue sky"})
    >>> data.class_names, data.counts()
    (('red square', 'green hill', 'blue sky'), (6, 4, 2))
    """
    pictures = pictures_of(images)
    given = labels_of(labels, len(pictures))
    classes = _sorted(given)
    index = {label: k for k, label in enumerate(classes)}
    parts = {"train": list(range(len(given)))}
    if test is not None:
        more = pictures_of(test[0])
        parts["test"] = list(range(len(given), len(given) + len(more)))
        pictures, given = [*pictures, *more], [*given, *labels_of(test[1], len(more))]
        if strange := [label for label in given if label not in index]:
            raise UserError(f"The test labels have classes that training does not know, first {strange[0]!r}.")
    elif test_share:
        held = splits.held_out([index[label] for label in given], test_share, seed).tolist()
        parts = {"train": sorted(set(parts["train"]) - set(held)), "test": held}
    store, keys = store_of(pictures)
    names, named = _names(classes, class_names)
    made = {name: Split([keys[i] for i in rows], [index[given[i]] for i in rows]) for name, rows in parts.items()}
    return DataSet(
        "images", names, tuple(map(str, classes)), {k: v for k, v in made.items() if len(v)}, store, (), named
    )


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
        return str(os.fspath(one))
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


def labels_of(labels: Any, count: int) -> list[Hashable]:
    """Labels as Python's own values, one for each picture."""
    given = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(given) != count:
        raise UserError(f"There are {count} pictures and {len(given)} labels; give one label for each picture.")
    return given


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
            raise UserError(f"There are {len(classes)} classes and {len(given)} class_names; give one for each.")
        return tuple(map(str, given)), True
    words = tuple(map(str, classes))
    return words, all(isinstance(label, str) for label in classes) and not are_numbers(words)
