"""Batches that are predicted at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from checked_pictures import drawn, jpeg
from liftplus.runs.predicting import Guess
from liftplus.serving.batching import Batcher

from .conftest import MadeUp
from .test_refusals import until

SOUND = jpeg(drawn(1))


@dataclass
class Noting(MadeUp):
    """Notes in how many threads PyTorch computes for each batch; `read` lets pictures be read."""

    seen: list[int] = field(default_factory=list)
    read: threading.Event = field(default_factory=threading.Event)

    def view(self, data: bytes, name: str, most: int | None = None) -> torch.Tensor:
        assert name != "late" or self.read.wait(20)
        return super().view(data, name, most)

    def predict(self, names: Sequence[str], views: Sequence[torch.Tensor]) -> list[Guess]:
        self.seen.append(torch.get_num_threads())
        return super().predict(names, views)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_two_batches_at_a_time_share_the_cores() -> None:
    let, seen = threading.Event(), list[int]()
    models = [Noting(let=let, seen=seen) for _ in range(2)]

    async def ask(batcher: Batcher) -> None:
        first = batcher.predict("a", SOUND)
        until(lambda: len(seen) == 1)
        second = batcher.predict("b", SOUND)
        until(lambda: len(seen) == 2)
        let.set()
        assert [(await one).classes for one in (first, second)] == [("ok",)] * 2
        await batcher.predict("c", SOUND)

    with Batcher(models, 2, 10**6) as batcher:  # type: ignore[arg-type]
        asyncio.run(ask(batcher))
    assert seen == [4, 2, 4] and batcher.batches == 3
    assert sorted(sum(model.batches) for model in models) in ([1, 2], [0, 3])
    assert torch.get_num_threads() == 4


def test_a_second_batch_waits_for_half_of_the_pictures_that_are_open() -> None:
    let, seen = threading.Event(), list[int]()
    models = [Noting(batch_size=64, let=let, seen=seen) for _ in range(2)]

    async def ask(batcher: Batcher) -> None:
        first = batcher.predict("a", SOUND)
        until(lambda: len(seen) == 1)
        others = [batcher.predict("late", SOUND) for _ in range(9)]
        models[0].read.set()
        until(lambda: len(seen) == 2)
        let.set()
        await asyncio.gather(first, *others)

    with Batcher(models, 2, 10**6) as batcher:  # type: ignore[arg-type]
        asyncio.run(ask(batcher))
    sizes = [size for model in models for size in model.batches]
    assert sum(sizes) == 10 and any(5 <= size <= 9 for size in sizes)
    assert len(sizes) <= 1 + 1 + 4


@pytest.mark.usefixtures("four_threads")
def test_a_batch_that_leaves_others_open_computes_on_half_of_the_cores_if_two_can() -> None:
    for count, threads in ((1, 4), (2, 2)):
        let, seen = threading.Event(), list[int]()
        models = [Noting(batch_size=1, let=let, seen=seen) for _ in range(count)]

        async def ask(batcher: Batcher, let: threading.Event = let, models: list[Noting] = models) -> None:
            answers = [batcher.predict("late", SOUND) for _ in range(4)]
            let.set()
            models[0].read.set()
            await asyncio.gather(*answers)

        with Batcher(models, 2, 10**6) as batcher:  # type: ignore[arg-type]
            asyncio.run(ask(batcher))
        assert seen[:2] == [threads] * 2


def test_both_threads_end_and_one_that_fails_does_not_stop_the_other() -> None:
    lost = RuntimeError("the device is gone")
    models = [MadeUp(), MadeUp()]
    for model in models:
        model.let.set()

    async def ask(batcher: Batcher) -> None:
        own, broken = batcher._predicted, iter([lost])

        def once(*given: object) -> object:
            for error in broken:
                raise error
            return own(*given)  # type: ignore[arg-type]

        batcher._predicted = once  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="the device is gone"):
            await batcher.predict("a", SOUND)
        assert batcher.failure is lost

    with pytest.raises(RuntimeError, match="the device is gone"), Batcher(models, 2, 10**6) as batcher:  # type: ignore[arg-type]
        asyncio.run(ask(batcher))
    assert not any(thread.is_alive() for thread in batcher._models)


def test_a_user_who_asks_twice_to_end_does_not_wait() -> None:
    let, seen = threading.Event(), list[int]()
    asked = pytest.raises(KeyboardInterrupt)
    with asked, Batcher([Noting(let=let, seen=seen)], 1, 10**6) as batcher:  # type: ignore[list-item]

        async def ask() -> None:
            batcher.predict("a", SOUND)
            until(lambda: bool(seen))
            raise KeyboardInterrupt

        asyncio.run(ask())
    let.set()  # only now can the prediction under way end
