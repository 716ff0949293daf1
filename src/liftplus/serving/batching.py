"""Pictures from many requests through one model: some threads read them, others predict those that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue

import torch
from torch import Tensor

from liftplus.data.images import UnreadableImage
from liftplus.runs.guesses import Guess
from liftplus.runs.predicting import Predictor

AHEAD = 4
"""Read pictures that wait for the model, in batches. Beyond that, readers wait."""

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

    So a picture that comes alone is predicted at once, and by all cores.

    Args:
        predictors: what predicts; each has a thread.
        readers: threads that decode, on one core each.
        most_pixels: of a picture.

    Attributes:
        batches: how many have been predicted.
        failure: what keeps a predictor's thread from going on; what concerns a batch or a picture is its answer.
    """

    def __init__(self, predictors: Sequence[Predictor], readers: int, most_pixels: int) -> None:
        self.most_pixels, self.batches = most_pixels, 0
        self._view, self._batch_size = predictors[0].view, predictors[0].batch_size
        self._threads = torch.get_num_threads()
        self.readers = ThreadPoolExecutor(readers, "reader", torch.set_num_threads, (1,))
        self._ready: Queue[_Waiting | None] = Queue(AHEAD * self._batch_size)
        self._began, self._lock, self._at_work = threading.Semaphore(0), threading.Lock(), 0
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
        self._ready.put(None)
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
        self.readers.submit(self._read, waiting)
        return waiting.answer

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
            self._ready.put(waiting)

    def _work(self, predictor: Predictor) -> None:
        waiting: _Waiting | None = None
        try:
            with predictor.at_work():
                self._began.release()
                while (waiting := self._ready.get()) is not None:
                    batch = self._with_others(waiting)
                    _answer(batch, self._predicted(predictor, batch))
        except Exception as error:
            self.failure = error
            self._began.release()
            while waiting is not None:  # else it, and readers that wait for room, would wait for ever
                _answer([waiting], [error])
                waiting = self._ready.get()
        self._ready.put(None)  # the other threads end too

    def _with_others(self, first: _Waiting) -> list[_Waiting]:
        """The first picture and those that wait behind it, without those whose time is over."""
        batch = [first]
        try:
            while len(batch) < self._batch_size:
                if (another := self._ready.get_nowait()) is None:
                    self._ready.put(None)
                    break
                batch.append(another)
        except Empty:
            pass
        return [waiting for waiting in batch if not waiting.answer.cancelled()]

    def _predicted(self, predictor: Predictor, batch: Sequence[_Waiting]) -> list[Answer]:
        """Answers for a batch. If it fails, each picture is predicted alone, so that others' answers are not lost."""
        if not batch:
            return []
        try:
            with self._share_of_cores():
                views = [waiting.view for waiting in batch if waiting.view is not None]
                return list(predictor.predict([waiting.name for waiting in batch], views))
        except Exception as error:
            return [error] if len(batch) == 1 else [self._predicted(predictor, [waiting])[0] for waiting in batch]

    @contextmanager
    def _share_of_cores(self) -> Iterator[None]:
        """The batches that are predicted at a time share PyTorch's threads."""
        with self._lock:
            self.batches += 1
            self._at_work += 1
            share = max(1, self._threads // self._at_work)
        if torch.get_num_threads() != share:
            torch.set_num_threads(share)  # for the calling thread alone
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1


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
