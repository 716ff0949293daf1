"""Loaders: the same pictures with any number of workers, an epoch that persistent workers follow, clean errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liftplus.data.dataset import Split
from liftplus.data.images import UnreadableImage
from liftplus.data.loader import Batch, FixedView, Loader, Shuffled, TrainView, repeats
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import MDA, CentreCrop

from .conftest import picture


@pytest.fixture
def folder(tmp_path: Path) -> tuple[FolderStore, Split]:
    for index in range(11):
        picture((20 * index, 100, 200), index, (60 + index, 50)).save(tmp_path / f"{index}.png")
    return FolderStore(tmp_path), Split([f"{index}.png" for index in range(11)], [index % 3 for index in range(11)])


def batches(folder: tuple[FolderStore, Split], workers: int, epochs: int = 3) -> list[Batch]:
    store, split = folder
    view = TrainView(MDA(), 32, "bicubic", epochs, seed=4)
    loader = Loader(store, split, view, batch_size=4, order=Shuffled(len(split), 4), workers=workers)
    assert len(loader) == 3
    return [batch for epoch in range(epochs) for batch in loader.epoch(epoch)]


def test_workers_change_nothing(folder: tuple[FolderStore, Split]) -> None:
    alone, shared = batches(folder, 0), batches(folder, 2)
    assert len(alone) == len(shared) == 9
    for left, right in zip(alone, shared, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.indices, right.indices) and torch.equal(left.labels, right.labels)


def test_persistent_workers_follow_the_schedule(folder: tuple[FolderStore, Split]) -> None:
    # In the last epoch of MDA every crop is the whole short side; a frozen schedule would keep small crops.
    store, split = folder
    last = list(batches(folder, 1)[6:])
    whole = TrainView(MDA(schedule="max"), 32, "bicubic", 3, seed=4)
    for batch in last:
        for view, index in zip(batch.images, batch.indices.tolist(), strict=True):
            assert torch.equal(view, whole(store.image(split.keys[index]), 2, index))


def test_each_epoch_has_every_image_once_in_a_new_order(folder: tuple[FolderStore, Split]) -> None:
    found = batches(folder, 0)
    orders = [torch.cat([b.indices for b in found[3 * e : 3 * e + 3]]).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_repeats_count_how_often_an_entry_came_before() -> None:
    assert repeats(torch.tensor([5, 3, 5, 4, 5, 3])).tolist() == [0, 0, 1, 0, 2, 1]
    assert repeats(torch.arange(7)).tolist() == [0] * 7
    assert repeats(torch.tensor([], dtype=torch.long)).tolist() == []


def test_an_image_drawn_twice_is_cropped_in_two_ways(folder: tuple[FolderStore, Split]) -> None:
    store, split = folder
    view = TrainView(MDA(), 32, "bicubic", 3, seed=4)
    (batch,) = Loader(store, split, view, batch_size=11, order=lambda epoch: [7, 2, 7, 7], workers=0).epoch(0)
    assert batch.indices.tolist() == [7, 2, 7, 7]
    image = store.image(split.keys[7])
    assert torch.equal(batch.images[0], view(image, 0, 7))
    first, second, third = (batch.images[i] for i in (0, 2, 3))
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(folder: tuple[FolderStore, Split], tmp_path: Path, workers: int) -> None:
    (tmp_path / "5.png").write_bytes(b"\x89PNG not really")
    store, split = folder
    loader = Loader(store, split, FixedView(CentreCrop(32)), batch_size=4, workers=workers)
    with pytest.raises(UnreadableImage, match=r"5\.png") as told:
        list(loader.epoch())
    assert "Traceback" not in str(told.value)
