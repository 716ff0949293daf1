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
    """Notes in how many threads PyTorch computes for each batch."""

    seen: list[int] = field(default_factory=list)

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


def test_both_threads_end_and_one_that_fails_does_not_stop_the_other() -> None:
    lost = RuntimeError("the device is gone")
    models = [MadeUp(), MadeUp()]
    for model in models:
        model.let.set()

    async def ask(batcher: Batcher) -> None:
        own, broken = batcher._with_others, iter([lost])

        def once(first: object) -> object:
            for error in broken:
                raise error
            return own(first)  # type: ignore[arg-type]

        batcher._with_others = once  # type: ignore[method-assign, assignment]
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
