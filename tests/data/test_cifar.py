"""CIFAR's published files and their long tail."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from liftplus.data.cifar import long_tailed_indices
from liftplus.data.config import DataConfig
from liftplus.data.sources import load
from liftplus.errors import UserError


def write(root: Path, per_class: int = 20) -> Path:
    """CIFAR-10's layout in small, as protocol 2 like the original."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for batch in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = list(range(10)) * (per_class // 5)
        data = np.zeros((len(labels), 3, 1024), dtype=np.uint8)
        data[:, 0] = np.array(labels)[:, None]  # red holds the label
        data[:, 2] = 200 if batch == "test_batch" else 100
        content = {"data": data.reshape(len(labels), -1), "labels": labels}
        (folder / batch).write_bytes(pickle.dumps(content, protocol=2))
    names = ["air_plane", *(f"thing {k}" for k in range(1, 10))]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    return root


@pytest.mark.parametrize(("ratio", "expected"), [(100, (500, 477, 5)), (10, (500, 488, 50)), (1, (500, 500, 500))])
def test_counts_follow_the_rule(ratio: float, expected: tuple[int, int, int]) -> None:
    labels = np.tile(np.arange(100), 500)
    kept = long_tailed_indices(labels, ratio)
    counts = np.bincount(labels[kept], minlength=100)
    assert (counts[0], counts[1], counts[99]) == expected
    assert counts.tolist() == [int(500 * (1 / ratio) ** (k / 99)) for k in range(100)]
    assert len(set(kept.tolist())) == len(kept)


def test_indices_depend_on_the_seed_alone() -> None:
    labels = np.tile(np.arange(7), 30)
    assert np.array_equal(long_tailed_indices(labels, 5), long_tailed_indices(labels.tolist(), 5))
    assert not np.array_equal(long_tailed_indices(labels, 5, seed=1), long_tailed_indices(labels, 5))


def test_load(tmp_path: Path) -> None:
    dataset = load(DataConfig(source="cifar10_lt", root=str(write(tmp_path)), imbalance_ratio=10))
    assert dataset.class_names[0] == "air plane"
    assert dataset.class_ids[0] == "air_plane"
    assert dataset.counts() == tuple(int(20 * 0.1 ** (k / 9)) for k in range(10))
    assert dataset.counts("test") == (4,) * 10
    for split, blue in (("train", 100), ("test", 200)):
        part = dataset.splits[split]
        for key, label in zip(part.keys, part.labels, strict=True):
            assert dataset.store.image(key).getpixel((5, 5)) == (label, 0, blue)


def test_missing_files_say_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar-100-python\.tar\.gz .* set data\.root"):
        load(DataConfig(source="cifar100_lt", root=str(tmp_path)))
    (write(tmp_path) / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3 missing"):
        load(DataConfig(source="cifar10_lt", root=str(tmp_path)))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle ran code",)


def test_pickles_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(tmp_path) / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="not allowed"):
        load(DataConfig(source="cifar10_lt", root=str(tmp_path)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("label", "message"), [(10, "labels outside 0 to 9"), (-1, "outside"), (float("inf"), "hold")])
def test_labels_that_cannot_be(tmp_path: Path, label: float, message: str) -> None:
    batch = write(tmp_path) / "cifar-10-batches-py" / "data_batch_2"
    content = pickle.loads(batch.read_bytes())
    content["labels"][3] = label
    batch.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=message):
        load(DataConfig(source="cifar10_lt", root=str(tmp_path)))


def test_names_that_occur_twice(tmp_path: Path) -> None:
    meta = write(tmp_path) / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": ["a"] * 10}, protocol=2))
    with pytest.raises(UserError, match="class name twice"):
        load(DataConfig(source="cifar10_lt", root=str(tmp_path)))
