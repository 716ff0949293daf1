"""Run a function on each of many pictures, in forked processes or else in threads; results come in order.

Checking a small file is so fast that threads would mostly wait for each other. Processes are forked because spawned
ones would run the user's script again.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from liftplus.data import workers
from liftplus.data.dataset import Store
from liftplus.data.stores import ByteStore
from liftplus.errors import UserError

_Found = TypeVar("_Found")
Work = Callable[[Store, Sequence[str]], list[_Found]]
"""What is found of some pictures, in their order."""
Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files."""

MANY = 2048  # from this many pictures on, processes are forked
_CHUNK = 128  # pictures sent to a process or thread at a time: sending one alone costs more than checking it


def over(store: Store, keys: Sequence[str], work: Work[_Found], progress: Progress | None = None) -> Iterator[_Found]:
    """Yield the result of `work` for every key, in order.

    Args:
        store: holds the pictures; one that draws them is used from one thread only.
        keys: of the pictures.
        work: called with some of the keys at a time.
        progress: called after each picture.

    Raises:
        UserError: a process was killed.
    """
    # A store that draws its pictures may not be safe to call from several threads.
    count = min(workers.cores(), 8) if isinstance(store, ByteStore) else 1
    with _pool(store, keys, work, count) as pool:
        starts = iter(range(0, len(keys), _CHUNK))
        done, waiting = 0, deque(_submitted(pool, islice(starts, 3 * count)))
        while waiting:
            for result in _result(waiting.popleft()):
                done += 1
                if progress is not None:
                    progress(done, len(keys))
                yield result
            waiting.extend(_submitted(pool, islice(starts, 1)))


class _Pool:
    """An executor, and the function that its workers call with the index of a chunk's first key."""

    def __init__(self, executor: Executor, part: Callable[[int], list[Any]]) -> None:
        self.executor, self.part = executor, part


@contextmanager
def _pool(store: Store, keys: Sequence[str], work: Work[Any], count: int) -> Iterator[_Pool]:
    if count > 1 and len(keys) >= MANY and _can_fork():
        # A fork inherits these arguments; nothing is sent.
        context = multiprocessing.get_context("fork")
        executor: Executor = ProcessPoolExecutor(count, context, _begin, (store, keys, work))
        pool = _Pool(executor, _part)
    else:
        executor = ThreadPoolExecutor(count)
        pool = _Pool(executor, lambda start: work(store, keys[start : start + _CHUNK]))
    try:
        yield pool
    finally:
        executor.shutdown(cancel_futures=True)


def _submitted(pool: _Pool, starts: Iterator[int]) -> Iterator[Future[list[Any]]]:
    for start in starts:
        with warnings.catch_warnings():
            # Python warns of forking beside threads; the forked processes need none of those threads.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            yield pool.executor.submit(pool.part, start)


def _result(future: Future[list[Any]]) -> list[Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that checked pictures was killed or crashed. Most often the machine ran out of memory. Free "
            "some memory and try again."
        ) from error


def _can_fork() -> bool:
    return not workers.runs_script_again() and not multiprocessing.current_process().daemon and _has_locks()


def _has_locks() -> bool:
    """Whether the system has the locks that processes share; some containers have none."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (ImportError, OSError):
        return False
    return True


_given: list[tuple[Store, Sequence[str], Work[Any]]] = []  # in a forked process: what it works on


def _begin(store: Store, keys: Sequence[str], work: Work[Any]) -> None:
    workers.settle(0)
    _given.append((store, keys, work))


def _part(start: int) -> list[Any]:
    store, keys, work = _given[0]
    return work(store, keys[start : start + _CHUNK])
