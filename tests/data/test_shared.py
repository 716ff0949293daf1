"""The shared archives read in place, and the published CIFAR-LT indices."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from liftplus.data.cifar import long_tailed_indices
from liftplus.data.config import DataConfig
from liftplus.data.sources import load

from ..conftest import SHARED

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "largest", "smallest"),
    [
        ("clothing17_160", 17, 4073, 1023, 809, 15),
        ("cifar10_lt100", 10, 12406, 10000, 5000, 50),
        ("tinyimagenet200_lt100", 200, 21645, 5000, 500, 5),
        ("imagenet_sample_100", 100, 100, 0, 1, 1),
    ],
)
def test_archives(name: str, classes: int, train: int, test: int, largest: int, smallest: int) -> None:
    dataset = load(DataConfig(source=str(SHARED / "data" / f"{name}.zip")))
    counts = dataset.counts()
    assert (dataset.num_classes, sum(counts), sum(dataset.counts("test"))) == (classes, train, test)
    # Line number = label, and the classes lie in falling order of frequency.
    assert (counts[0], counts[-1]) == (largest, smallest)
    assert sorted(counts, reverse=True) == list(counts)
    assert dataset.store.image(dataset.splits["train"].keys[-1]).mode == "RGB"


@pytest.mark.parametrize("ratio", [10, 50, 100])
def test_cifar_lt_goldens(ratio: int) -> None:
    tensors = load_file(SHARED / "reference" / "reference_public.safetensors")
    counts = json.loads((SHARED / "reference" / "reference_public.json").read_text())[f"cifar_lt/ir{ratio}/counts"]
    labels = tensors["cifar_lt/labels"]
    kept = long_tailed_indices(labels, ratio)
    assert np.array_equal(kept, tensors[f"cifar_lt/ir{ratio}/index"])
    assert np.bincount(labels[kept]).tolist() == counts
