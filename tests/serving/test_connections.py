"""Limits on connections, and clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from checked_pictures import drawn, jpeg
from liftplus.errors import UserError
from liftplus.serving import server
from liftplus.serving.app import Limits

from .conftest import Here, MadeUp, here
from .test_refusals import until

SOUND = jpeg(drawn(1))


@contextmanager
def opened(made: Here) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", made.client.port), 10) as found:
        yield found


def whole(found: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    while part := found.recv(1000):
        parts.append(part)
    return b"".join(parts)


def test_connections_that_are_too_many_are_told_so() -> None:
    with here(MadeUp(), Limits(connections=2)) as made, opened(made), opened(made):
        with opened(made) as third:
            head, _, body = whole(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"\r\nretry-after: 1" in head.lower()
        assert json.loads(body) == {"error": "2 connections are open already. Try again later."}
        assert made.service.metrics.requests == {503: 1}
    with here(MadeUp(), Limits(connections=1)) as made:
        for _ in range(3):  # a place becomes free with each that ends
            until(lambda: made.client.get("/health").status == 200)


@pytest.mark.parametrize("sent", [b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_arrive_ends_the_connection(sent: bytes) -> None:
    with here(MadeUp(), Limits(seconds=0.5)) as made:
        with opened(made) as first:
            first.sendall(sent)
            answer = whole(first)
            assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.5 s" in answer
        with opened(made) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert second.recv(1000).startswith(b"HTTP/1.1 200")
            second.sendall(sent)
            assert b"HTTP/1.1 408 " in whole(second)
        assert made.service.metrics.requests == {408: 2}


def test_the_rest_of_a_body_after_an_early_answer_is_no_new_request() -> None:
    with here(MadeUp(), Limits(seconds=0.3)) as made, opened(made) as found:
        found.sendall(b"POST /classes HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        assert found.recv(2000).startswith(b"HTTP/1.1 405 ")
        found.sendall(b"half")
        assert b"408" not in whole(found)
        assert made.service.metrics.requests == {}


def test_bytes_that_come_one_by_one_do_not_keep_a_connection() -> None:
    with here(MadeUp(), Limits(seconds=0.3)) as made, opened(made) as slow:
        end = time.monotonic() + 10
        with suppress(ConnectionError):
            while time.monotonic() < end:
                slow.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() < end


def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    with here(MadeUp(), Limits(seconds=0.3)) as made, opened(made) as silent:
        assert whole(silent) == b""
        assert made.client.get("/health").status == 200


def test_pictures_of_a_client_that_leaves_are_not_predicted() -> None:
    model = MadeUp(batch_size=1)
    with here(model) as made, opened(made) as stays, opened(made) as leaves:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
        request = head % len(SOUND) + SOUND
        stays.sendall(request)
        until(lambda: made.service.batcher.batches == 1)
        leaves.sendall(request)
        until(lambda: made.service.metrics.waiting == 2)
        leaves.close()
        until(lambda: made.service.metrics.waiting == 1)
        assert made.service.metrics.requests == {499: 1}
        model.let.set()
        assert stays.recv(100).startswith(b"HTTP/1.1 200")
        assert made.client.picture(SOUND).status == 200
        assert model.batches == [1, 1]


def test_what_is_refused_is_counted() -> None:
    with here(MadeUp()) as made, opened(made) as other:
        other.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        assert json.loads(whole(other).partition(b"\r\n\r\n")[2])["error"].startswith("What was sent is no request")
        assert made.client.get("/predict").status == 405
        assert made.client.send("POST", "/predict", b"", {"Sec-Fetch-Site": "cross-site"}).status == 403
        assert made.client.get("/health").status == 200
        assert made.service.metrics.requests == {400: 1, 403: 1, 405: 1}


def test_more_connections_than_files_may_be_open() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(400, soft), hard))
        server.make_room(500)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 500
        with pytest.raises(UserError, match="--max-connections 1000000000 takes 1,000,000,228 open files"):
            server.make_room(1_000_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
