"""Pictures from many requests through one model: threads read them, and one thread predicts those that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue

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
    """Reads pictures in threads and predicts them in batches; a batch is what waits when the model is free.

    So a picture that comes alone is predicted at once.

    Args:
        predictor: what predicts.
        readers: threads that decode.
        most_pixels: of a picture.

    Attributes:
        batches: how many have been predicted.
        failure: what keeps the model's thread from going on; what concerns a batch or a picture is its answer.
    """

    def __init__(self, predictor: Predictor, readers: int, most_pixels: int) -> None:
        self.predictor, self.most_pixels, self.batches = predictor, most_pixels, 0
        self.readers = ThreadPoolExecutor(readers, "reader")
        self._ready: Queue[_Waiting | None] = Queue(AHEAD * predictor.batch_size)
        self._began = threading.Event()
        self.failure: Exception | None = None
        self._model = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Batcher:
        """Start the model's thread; returns when it is ready. Raises what its first prediction raises."""
        self._model.start()
        self._began.wait()
        self._check()
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        """End the threads, after everything given has been answered; raises what ended the model's before."""
        self.readers.shutdown()
        self._ready.put(None)
        self._model.join()
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
            waiting.view = self.predictor.view(waiting.data, waiting.name, self.most_pixels)
        except UnreadableImage as error:
            _answer([waiting], [Guess(waiting.name, (), (), str(error))])
        except Exception as error:
            _answer([waiting], [error])
        else:
            waiting.data = b""
            self._ready.put(waiting)

    def _work(self) -> None:
        waiting: _Waiting | None = None
        try:
            with self.predictor.at_work():
                self._began.set()
                while (waiting := self._ready.get()) is not None:
                    batch = self._with_others(waiting)
                    _answer(batch, self._predicted(batch))
        except Exception as error:
            self.failure = error
            self._began.set()
            while waiting is not None:  # else it, and readers that wait for room, would wait for ever
                _answer([waiting], [error])
                waiting = self._ready.get()

    def _with_others(self, first: _Waiting) -> list[_Waiting]:
        """The first picture and those that wait behind it, without those whose time is over."""
        batch = [first]
        try:
            while len(batch) < self.predictor.batch_size:
                if (another := self._ready.get_nowait()) is None:
                    self._ready.put(None)
                    break
                batch.append(another)
        except Empty:
            pass
        return [waiting for waiting in batch if not waiting.answer.cancelled()]

    def _predicted(self, batch: Sequence[_Waiting]) -> list[Answer]:
        """Answers for a batch. If it fails, each picture is predicted alone, so that others' answers are not lost."""
        if not batch:
            return []
        try:
            self.batches += 1
            views = [waiting.view for waiting in batch if waiting.view is not None]
            return list(self.predictor.predict([waiting.name for waiting in batch], views))
        except Exception as error:
            return [error] if len(batch) == 1 else [self._predicted([waiting])[0] for waiting in batch]


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
