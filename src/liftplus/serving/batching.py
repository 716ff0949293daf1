"""Pictures from many requests through one model: some threads read them, others predict those that wait."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from liftplus.data.images import UnreadableImage
from liftplus.runs.guesses import Guess
from liftplus.runs.predicting import Predictor

AHEAD = 4
"""Read pictures that wait for the model, in batches. Beyond that, readers wait."""
WORTH = 8
"""Pictures from which on a second batch begins beside the first. Smaller batches take more time for each picture."""

MOST = 16
"""Pictures of a batch, at most, where two are predicted at a time: larger ones push each other out of the caches."""

Answer = Guess | Exception


@dataclass(eq=False)
class _Waiting:
    """A picture on its way; `view` is what was read of it."""

    name: str
    data: bytes
    answer: asyncio.Future[Guess]
    view: Tensor | None = None


class Batcher:
    """Reads pictures in threads and predicts them in batches; a batch is what waits when a predictor is free.

    So a picture that comes alone is predicted at once, and by all cores. While another batch is being predicted, one
    begins once `WORTH` pictures wait, or half of those that have no answer yet.

    Args:
        predictors: what predicts, at most two; each has a thread.
        readers: threads that decode, on one core each.
        most_pixels: of a picture.

    Attributes:
        batches: how many have been predicted.
        failure: what keeps a predictor's thread from going on; what concerns a batch or a picture is its answer.
    """

    def __init__(self, predictors: Sequence[Predictor], readers: int, most_pixels: int) -> None:
        self.most_pixels, self.batches = most_pixels, 0
        self._view, size = predictors[0].view, predictors[0].batch_size
        self._batch_size = min(size, MOST) if len(predictors) > 1 else size
        self._threads = torch.get_num_threads()
        self.readers = ThreadPoolExecutor(readers, "reader", torch.set_num_threads, (1,))
        self._open = 0
        self._ready, self._room = deque[_Waiting](), AHEAD * size
        self._changed = threading.Condition()
        self._began, self._at_work, self._ended = threading.Semaphore(0), 0, False
        self.failure: Exception | None = None
        self._models = [
            threading.Thread(target=self._work, args=(one,), name="model", daemon=True) for one in predictors
        ]

    def __enter__(self) -> Batcher:
        """Start the predictors' threads; returns when they are ready. Raises what a first prediction raises."""
        for model in self._models:
            model.start()
            self._began.acquire()
            self._check()
        return self

    def __exit__(self, kind: object, error: object, _traceback: object) -> None:
        """End the threads, after everything given has been answered; raises what ended a predictor's before.

        If the user asked twice to end, nothing more is answered.
        """
        if isinstance(error, KeyboardInterrupt):
            self.readers.shutdown(wait=False, cancel_futures=True)
            return
        self.readers.shutdown()
        self._end()
        for model in self._models:
            model.join()
        if kind is None:
            self._check()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def predict(self, name: str, data: bytes) -> asyncio.Future[Guess]:
        """The answer for one image file; called in an event loop.

        If the future is cancelled before the picture's turn, no work is done for it.
        """
        waiting = _Waiting(name, data, asyncio.get_running_loop().create_future())
        self._open += 1
        waiting.answer.add_done_callback(self._close)
        self.readers.submit(self._read, waiting)
        return waiting.answer

    def _close(self, _answer: object) -> None:
        self._open -= 1

    def _read(self, waiting: _Waiting) -> None:
        if waiting.answer.cancelled():
            return
        try:
            waiting.view = self._view(waiting.data, waiting.name, self.most_pixels)
        except UnreadableImage as error:
            _answer([waiting], [Guess(waiting.name, (), (), str(error))])
        except Exception as error:
            _answer([waiting], [error])
        else:
            waiting.data = b""
            self._put(waiting)

    def _put(self, waiting: _Waiting) -> None:
        """Hand a read picture to the predictors; waits for room."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._ready) < self._room)
            if self.failure is None:
                self._ready.append(waiting)
                self._changed.notify_all()
                return
        _answer([waiting], [self.failure])

    def _end(self) -> None:
        """Let the predictors end once nothing waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _work(self, predictor: Predictor) -> None:
        batch: list[_Waiting] = []
        try:
            with predictor.at_work():
                self._began.release()
                while batch := self._next():
                    try:
                        _answer(batch, self._predicted(predictor, batch))
                    finally:
                        self._done()
        except Exception as error:
            with self._changed:
                self.failure = error
                batch += self._ready
                self._ready.clear()
            _answer(batch, [error] * len(batch))
            self._began.release()
            self._end()

    def _next(self) -> list[_Waiting]:
        """A batch of what waits, once there is something; empty at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(self._due)
                if not self._ready:
                    return []
                batch = [self._ready.popleft() for _ in range(min(len(self._ready), self._batch_size))]
                self._changed.notify_all()
                if batch := [waiting for waiting in batch if not waiting.answer.cancelled()]:
                    self.batches += 1
                    self._at_work += 1
                    return batch

    def _due(self) -> bool:
        """Whether a batch may begin."""
        waits = len(self._ready)
        worth = min(WORTH, self._batch_size, math.ceil(self._open / 2)) if self._at_work else 1
        return self._ended or waits >= max(1, worth)

    def _done(self) -> None:
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()

    def _predicted(self, predictor: Predictor, batch: Sequence[_Waiting]) -> list[Answer]:
        """Answers for a batch. If it fails, each picture is predicted alone, so that others' answers are not lost."""
        try:
            self._share_cores(len(batch))
            views = [waiting.view for waiting in batch if waiting.view is not None]
            return list(predictor.predict([waiting.name for waiting in batch], views))
        except Exception as error:
            return [error] if len(batch) == 1 else [self._predicted(predictor, [waiting])[0] for waiting in batch]

    def _share_cores(self, pictures: int) -> None:
        """Take a batch's share of PyTorch's threads, for the calling thread alone.

        More threads than cores wait for one another, so a batch beside which another soon begins takes half of them.
        """
        another = len(self._models) > 1 and (self._at_work > 1 or 2 * (self._open - pictures) >= pictures)
        share = max(1, self._threads // 2) if another else self._threads
        if torch.get_num_threads() != share:
            torch.set_num_threads(share)


def _answer(batch: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
    """Hand answers to the event loop, all of a batch in one call."""
    with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        if batch:
            batch[0].answer.get_loop().call_soon_threadsafe(_settle, batch, answers)


def _settle(batch: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.answer.done():
            continue
        if isinstance(answer, Exception):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
