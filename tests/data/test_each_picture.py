"""Work on every picture: in order, by processes and by threads alike."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from time import sleep

import pytest

from liftplus.data import each_picture, workers
from liftplus.data.config import DataConfig
from liftplus.data.dataset import Store
from liftplus.data.each_picture import over
from liftplus.data.inspection import inspect, unreadable
from liftplus.data.sources import load
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError

from .test_inspection import faulty

__all__ = ["faulty"]

forks = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="no process is forked here")


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures are enough for processes, and there are two cores."""
    monkeypatch.setattr(each_picture, "MANY", 2)
    monkeypatch.setattr(each_picture, "_CHUNK", 3)
    monkeypatch.setattr(workers, "cores", lambda: 2)


def named(store: Store, keys: Sequence[str]) -> list[tuple[str, int]]:
    return [(key, os.getpid()) for key in keys]


def killed(store: Store, keys: Sequence[str]) -> list[None]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@forks
def test_processes_give_results_in_order(many: None) -> None:
    keys = [str(number) for number in range(50)]
    seen: list[tuple[int, int]] = []
    found = list(over(FolderStore("x"), keys, named, lambda done, total: seen.append((done, total))))
    assert [key for key, _ in found] == keys
    assert os.getpid() not in {pid for _, pid in found}
    assert seen == [(number, 50) for number in range(1, 51)]


@forks
def test_no_warning_where_threads_run(many: None) -> None:
    thread = Thread(target=sleep, args=(0.3,))
    thread.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(over(FolderStore("x"), list("abcdef"), named))) == 6
    thread.join()


@forks
def test_a_killed_process_is_told(many: None) -> None:
    with pytest.raises(UserError, match="ran out of memory"):
        list(over(FolderStore("x"), list("abcdef"), killed))


@pytest.mark.parametrize("alone", [True, False])
def test_threads_where_none_can_be_forked(many: None, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    if alone:
        monkeypatch.setattr(workers, "cores", lambda: 1)
    else:
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert {pid for _, pid in over(FolderStore("x"), list("abcdef"), named)} == {os.getpid()}


def test_the_same_findings_by_processes(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load(DataConfig(source=str(faulty)))
    by_threads = inspect(dataset), unreadable(dataset)
    monkeypatch.setattr(each_picture, "MANY", 2)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert (inspect(dataset), unreadable(dataset)) == by_threads
    assert len(by_threads[0].duplicates) == 2 and len(by_threads[1]) == 3
