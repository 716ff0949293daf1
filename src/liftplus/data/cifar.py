"""CIFAR-10 and CIFAR-100 from their published files, cut to a long tail."""

from __future__ import annotations

import codecs
import io
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import Table
from liftplus.data.long_tail import long_tailed_sizes as long_tailed_sizes
from liftplus.errors import UserError
from liftplus.words import counted


@dataclass(frozen=True)
class _Files:
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


_CIFAR = {
    10: _Files(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    100: _Files(
        "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta", "fine_labels", "fine_label_names"
    ),
}


def long_tailed_indices(labels: ArrayLike, imbalance_ratio: float, seed: int = 0) -> NDArray[np.int64]:
    """Which images of a balanced set remain when class sizes fall exponentially.

    `long_tailed_sizes` gives the sizes n_k. For each class in label order, one legacy NumPy generator shuffles its
    indices and the first n_k are kept, as in the published CIFAR-LT splits (Cao et al. 2019).
    """
    array = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(array)
    rng = np.random.RandomState(seed)
    kept = []
    sizes = long_tailed_sizes(int(counts.max(initial=0)), imbalance_ratio, len(counts))
    for k, size in enumerate(sizes):
        members = np.flatnonzero(array == k)
        rng.shuffle(members)
        kept.append(members[:size])
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def read(root: Path, classes: int, imbalance_ratio: float) -> tuple[Table, ArrayStore]:
    """The long-tailed training split and the full test split; test keys follow on all training images."""
    files = _CIFAR[classes]
    folder = root if root.name == files.folder else root / files.folder
    absent = [name for name in (*files.train, files.test, files.meta) if not os.path.isfile(folder / name)]
    if absent:
        raise UserError(
            f"CIFAR-{classes} is not complete at {folder} ({', '.join(absent)} missing); unpack {files.archive} from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html so that {folder / files.test} exists, and set data.root "
            f"to the folder that holds {files.folder}."
        )
    parts = [_batch(folder / name, files.labels, classes) for name in (*files.train, files.test)]
    images = np.concatenate([part[0] for part in parts])
    train_labels = [label for part in parts[:-1] for label in part[1]]
    ids = _names(folder / files.meta, files.names, classes)
    kept = long_tailed_indices(train_labels, imbalance_ratio).tolist()
    start = len(train_labels)
    rows = {
        "train": [(str(i), ids[train_labels[i]]) for i in kept],
        "test": [(str(start + i), ids[label]) for i, label in enumerate(parts[-1][1])],
    }
    names = {label: label.replace("_", " ") for label in ids}
    note = f"The training split was cut to imbalance ratio {imbalance_ratio:g}: {len(kept):,} of {start:,} images."
    return Table(rows, tuple(ids), names, (note,)), ArrayStore(images, f"cifar{classes}")


def _batch(path: Path, key: str, classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    content = _load(path)
    try:
        pixels = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = [int(label) for label in content[key]]
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} does not hold CIFAR images and {key}; fetch it again.") from error
    if len(labels) != len(pixels):
        raise UserError(
            f"{path} holds {counted(len(pixels), 'image')} but {counted(len(labels), 'label')}; fetch it again."
        )
    if not all(0 <= label < classes for label in labels):
        raise UserError(f"{path} holds labels outside 0 to {classes - 1}; fetch it again.")
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _names(path: Path, key: str, classes: int) -> Sequence[str]:
    names = _load(path).get(key)
    if not isinstance(names, list) or len(names) != classes:
        raise UserError(f"{path} does not hold the {classes} class names; fetch it again.")
    ids = [str(name) for name in names]
    if len(set(ids)) != classes:
        raise UserError(f"{path} holds a class name twice; fetch it again.")
    return ids


def _load(path: Path) -> dict[str, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} cannot be read as a CIFAR file: {error}; fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read as a CIFAR file: it holds no dictionary; fetch it again.")
    return content


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # NumPy 2 has renamed its module


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values; a pickle may otherwise run any code."""

    _ALLOWED: ClassVar = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The few callables that arrays need."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")
        return self._ALLOWED[module, name]
