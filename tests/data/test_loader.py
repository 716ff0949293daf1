"""Loaders: the same pictures with any number of workers, an epoch that persistent workers follow, clean errors."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import Split
from liftplus.data.images import UnreadableImage
from liftplus.data.loader import Batch, FixedView, Loader, Shuffled, TrainView, repeats
from liftplus.data.stores import ByteStore, FolderStore, ZipStore
from liftplus.data.transforms import MDA, CentreCrop
from liftplus.errors import UserError
from processes import MODULES

from ..conftest import picture


@pytest.fixture(autouse=True)
def _no_handler_of_torch() -> None:
    """A plain DataLoader of another test in this process leaves PyTorch's SIGCHLD handler, which raises anywhere."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[FolderStore, Split]:
    for index in range(11):
        picture((20 * index, 100, 200), index, (60 + index, 50)).save(tmp_path / f"{index}.png")
    return FolderStore(tmp_path), Split([f"{index}.png" for index in range(11)], [index % 3 for index in range(11)])


def batches(folder: tuple[ByteStore, Split], workers: int, epochs: int = 3) -> list[Batch]:
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


def failure(loader: Loader) -> UserError:
    """What the first epoch ends with, without the frames that would keep the loader."""
    try:
        list(loader.epoch())
    except UserError as error:
        return error.with_traceback(None)
    raise AssertionError("nothing was wrong")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(folder: tuple[FolderStore, Split], tmp_path: Path, workers: int) -> None:
    (tmp_path / "5.png").write_bytes(b"\x89PNG not really")
    store, split = folder
    loader = Loader(store, split, FixedView(CentreCrop(32)), batch_size=4, workers=workers)
    told = failure(loader)
    assert isinstance(told, UnreadableImage) and "5.png" in str(told)
    assert "Traceback" not in str(told)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How new processes begin, as the system or Python's version would have it."""
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {request.param} here")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload([*MODULES])
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def stores(folder: tuple[FolderStore, Split], tmp_path: Path) -> list[tuple[ByteStore, Split]]:
    """The same pictures in a folder, a zip and an array."""
    files, split = folder
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for key in split.keys:
            archive.write(files.where(key), key)
    array = ArrayStore(np.stack([np.asarray(files.image(key).resize((60, 50))) for key in split.keys]))
    return [folder, (ZipStore(tmp_path / "all.zip"), split), (array, Split([*map(str, range(11))], split.labels))]


START_METHODS = ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("start_method", START_METHODS, indirect=True)
def test_every_way_to_start_workers(folder: tuple[FolderStore, Split], tmp_path: Path, start_method: str) -> None:
    """Two epochs with persistent workers, MDA's crops among them, equal those without workers in each bit."""
    for source in stores(folder, tmp_path):
        source[0].image(source[1].keys[0])  # what this opens here must not be shared
        alone, shared = batches(source, 0, 2), batches(source, 1, 2)
        assert len(alone) == len(shared) == 6
        for left, right in zip(alone, shared, strict=True):
            assert torch.equal(left.images, right.images)
            assert torch.equal(left.indices, right.indices) and torch.equal(left.labels, right.labels)


in_children = {"thread": False}


def _thread_in_a_child() -> None:
    """As a library does that lives on in forked processes."""
    if in_children["thread"]:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread_in_a_child)


class Slow:
    """Crops that take a while."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        time.sleep(0.2)
        return CentreCrop(32)(image)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
@pytest.mark.parametrize("waiting", [True, False])
def test_a_killed_worker_ends_the_epoch(
    folder: tuple[FolderStore, Split], start_method: str, waiting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, when the next batch is asked for; never in the middle of the step under way."""
    # PyTorch looks after its workers every five seconds.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
    before = set(multiprocessing.active_children())
    epoch = Loader(*folder, FixedView(Slow()), batch_size=2, workers=1).epoch()
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    kill = threading.Timer(0.5 if waiting else 0.0, os.kill, (worker.pid, signal.SIGKILL))
    kill.start()
    if not waiting:
        for _ in range(20):  # the step
            time.sleep(0.05)
    with pytest.raises(UserError, match=rf"process {worker.pid}\) was killed.*memory.*workers=0"):
        list(epoch)
    kill.join()


def test_workers_end_with_their_loader(folder: tuple[FolderStore, Split], tmp_path: Path) -> None:
    """Also after an error, whose traceback must not keep them: the garbage collector would take ten seconds."""
    (tmp_path / "5.png").write_bytes(b"broken")
    before = set(multiprocessing.active_children())
    loader = Loader(*folder, FixedView(CentreCrop(32)), batch_size=2, workers=1)
    gc.disable()
    try:
        with contextlib.suppress(UnreadableImage):
            list(loader.epoch())
        assert set(multiprocessing.active_children()) - before
        del loader
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
@pytest.mark.parametrize("reason", ["No space left on device (28)", "Too many open files (24)"])
def test_no_room_for_a_batch(
    folder: tuple[FolderStore, Split], start_method: str, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def full(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"unable to allocate shared memory(shm) for file </torch_1>: {reason}")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    loader = Loader(*folder, FixedView(CentreCrop(32)), batch_size=4, workers=1)
    told = str(failure(loader))
    assert reason in told and "/dev/shm" in told and "ulimit -n" in told and "workers=0" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_is_gone_is_named(folder: tuple[FolderStore, Split], tmp_path: Path, workers: int) -> None:
    _, (store, split), _ = stores(folder, tmp_path)
    (tmp_path / "all.zip").unlink()
    loader = Loader(store, split, FixedView(CentreCrop(32)), batch_size=4, workers=workers)
    told = str(failure(loader))
    assert "all.zip cannot be opened" in told and "Traceback" not in told


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
@pytest.mark.parametrize("start_method", ["fork", "forkserver"], indirect=True)
def test_only_the_main_process_ends_a_worker(
    folder: tuple[FolderStore, Split], start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM to the whole job leaves it be, and the one by which Python ends its children at exit does not hang."""
    before = set(multiprocessing.active_children())
    loader = Loader(*folder, FixedView(Slow()), batch_size=2, workers=1)
    epoch = loader.epoch()
    monkeypatch.setitem(in_children, "thread", True)
    next(epoch)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    (worker,) = set(multiprocessing.active_children()) - before
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    assert len(list(epoch)) == 5 and worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError("reset"), BrokenPipeError()])
def test_a_worker_that_dies_while_sending_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The queue then ends in the middle of a batch."""

    def cut(_self: Loader) -> Iterator[Batch]:
        raise error

    loader = Loader(
        ArrayStore(np.zeros((2, 4, 4, 3), np.uint8)), Split(["0", "1"], [0, 1]), FixedView(CentreCrop(4)), batch_size=1
    )
    monkeypatch.setattr(Loader, "_begin", cut)
    with pytest.raises(UserError, match="A loader worker was killed or crashed"):
        next(iter(loader.epoch()))
