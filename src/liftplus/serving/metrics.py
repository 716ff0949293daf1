"""Counts of a server, in the text format of Prometheus."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: the upper bounds of the histogram's buckets."""


class Metrics:
    """What has been answered so far. Used from one thread.

    Attributes:
        requests: number of answers by HTTP status: of `/predict`, and to what names no path.
        pictures: number of pictures by result, answered or unreadable.
        waiting: requests that are not answered yet.
    """

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.pictures: Counter[str] = Counter(answered=0, unreadable=0)
        self.waiting = 0
        self._buckets = [0] * (len(EDGES) + 1)
        self._seconds = 0.0

    def request(self, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests[status] += 1
        self._buckets[bisect.bisect_left(EDGES, seconds)] += 1
        self._seconds += seconds

    def refused(self, status: int) -> None:
        """Count what is answered before it is a request."""
        self.requests[status] += 1

    def text(self, batches: int) -> str:
        """All counts, one a line.

        Args:
            batches: that the model has predicted.
        """
        return "".join(f"{line}\n" for line in self._lines(batches))

    def _lines(self, batches: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Answers of /predict, and to what is no request, by HTTP status.")
        for status, count in sorted(self.requests.items()):
            yield f'liftplus_requests_total{{status="{status}"}} {count}'
        yield from _head("pictures_total", "counter", "Pictures by result.")
        for result, count in self.pictures.items():
            yield f'liftplus_pictures_total{{result="{result}"}} {count}'
        yield from _head("batches_total", "counter", "Batches that the model has predicted.")
        yield f"liftplus_batches_total {batches}"
        yield from _head("waiting_requests", "gauge", "Requests that are not answered yet.")
        yield f"liftplus_waiting_requests {self.waiting}"
        yield from _head("request_seconds", "histogram", "Seconds from a request's head to its answer.")
        for edge, count in zip((*EDGES, "+Inf"), accumulate(self._buckets), strict=True):
            yield f'liftplus_request_seconds_bucket{{le="{edge}"}} {count}'
        yield f"liftplus_request_seconds_sum {self._seconds:.6f}"
        yield f"liftplus_request_seconds_count {sum(self._buckets)}"
        if (resident := _resident()) is not None:
            yield from _head("resident_bytes", "gauge", "Memory of the process.")
            yield f"liftplus_resident_bytes {resident}"


def _head(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP liftplus_{name} {about}", f"# TYPE liftplus_{name} {kind}"


def _resident() -> int | None:
    """Bytes of this process in memory; None where the system has no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
