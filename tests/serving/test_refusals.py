"""Damaged pictures, hostile requests and limits: one sentence each, and the next request is answered."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from python_multipart.multipart import parse_options_header

from checked_pictures import drawn, jpeg
from liftplus.data.images import UnreadableImage, decode
from liftplus.errors import DivergedError
from liftplus.serving.app import Limits

from .conftest import Client, MadeUp, form, here

SOUND = jpeg(drawn(1))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header claims side x side pixels."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(bytes(1000))) + block(b"IEND", b"")
    )


DAMAGED = {
    "empty": b"",
    "text": b"no picture",
    "page": b"<!doctype html><script>alert(1)</script>",
    "drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "archive": b"PK\x03\x04" + bytes(40),
    "zeros": bytes(5000),
    "half a PNG": png(drawn(2))[:2000],
    "half a JPEG": SOUND[: len(SOUND) // 2],
    "head of a JPEG": SOUND[:30],
    "noise behind a JPEG's head": SOUND[:200] + bytes(range(256)) * 20,
    "bomb": bomb(),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_picture_is_refused_in_the_words_of_predict(kind: str, client: Client) -> None:
    data = DAMAGED[kind]
    with pytest.raises(UnreadableImage) as expected:
        decode(data, "a.jpg")
    answer = client.form([("a.jpg", data)])
    assert answer.status == 422 and answer.json["pictures"][0]["top"] == []
    said = answer.json["error"]
    assert said == answer.json["pictures"][0]["error"]
    assert said == str(expected.value) or (kind == "bomb" and "60,000 x 60,000 pixels, and at most 1,000,000" in said)
    raw = client.picture(data)
    assert raw.status == 422 and raw.json["error"] == said.replace("a.jpg", "picture 1", 1)


def test_a_damaged_picture_among_others(client: Client) -> None:
    answer = client.form([("a.jpg", SOUND), ("b.jpg", b"x"), ("c.jpg", SOUND)])
    assert answer.status == 200 and "error" not in answer.json
    first, broken, last = answer.json["pictures"]
    assert first["top"] == last["top"] and first["error"] is None
    assert broken["top"] == [] and broken["error"].startswith("b.jpg cannot be read as an image: ")
    assert client.form([("a.jpg", b""), ("b.jpg", b"x")]).status == 422


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


REQUESTS: dict[str, tuple[bytes, str, int, str]] = {
    "no type": (SOUND, "", 415, "no content type"),
    "another type": (SOUND, "text/plain", 415, "'text/plain'"),
    "no JSON": (b"{", "application/json", 400, "not valid JSON"),
    "no UTF-8": (b"\xff\xfe\xfd", "application/json", 400, "not in UTF-8"),
    "deep": (b"[" * 5_000, "application/json", 400, "nested too deeply"),
    "many values": (b"[" * 100_000, "application/json", 400, "more values than 8 pictures"),
    "long number": (b'{"images": ' + b"1" * 5000 + b"}", "application/json", 400, "not valid JSON"),
    "no list": (b'{"pictures": []}', "application/json", 400, 'no list "images"'),
    "empty list": (b'{"images": []}', "application/json", 400, "no picture"),
    "no object": (b'{"images": ["a"]}', "application/json", 400, "Entry 1"),
    "number as data": (b'{"images": [{"data": 1}]}', "application/json", 400, "Entry 1"),
    "number as name": (b'{"images": [{"name": 1, "data": ""}]}', "application/json", 400, "Entry 1"),
    "no base64": (b'{"images": [{"data": "a?b="}]}', "application/json", 400, "not base64"),
    "other letters": ('{"images": [{"data": "äöü"}]}'.encode(), "application/json", 400, "not base64"),
    "too many": (json.dumps({"images": [{"data": ""}] * 9}).encode(), "application/json", 413, "more than 8 pictures"),
    "no boundary": (b"", "multipart/form-data", 400, "no boundary"),
    "wrong boundary": (form([("a", SOUND)]), "multipart/form-data; boundary=other", 400, "names another boundary"),
    "form cut short": (
        form([("a", SOUND)])[:-30],
        "multipart/form-data; boundary=edge",
        400,
        "before its last boundary",
    ),
    "form of nothing": (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400, ""),
    "too many in a form": (form([("a", b"")] * 9), "multipart/form-data; boundary=edge", 413, "more than 8 pictures"),
    "field": (
        b'--edge\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n5\r\n--edge--\r\n',
        *("multipart/form-data; boundary=edge", 400, "field 'top_k' has no parameter filename"),
    ),
    "filename of another kind": (
        b"--edge\r\nContent-Disposition: form-data; name=\"a\"; filename*=UTF-8''a.jpg\r\n\r\n5\r\n--edge--\r\n",
        *("multipart/form-data; boundary=edge", 400, "has no parameter filename"),
    ),
    "long header": (
        b"--edge\r\nX: " + b"x" * 20_000 + b"\r\n\r\n5\r\n--edge--\r\n",
        *("multipart/form-data; boundary=edge", 400, ""),
    ),
    "too large": (bytes(1 << 20) + b"x", "image/png", 413, "more than 1,048,576 bytes"),
}


if b"filename" in parse_options_header(b"form-data; filename*=UTF-8''a.jpg")[1]:  # python-multipart 0.0.20
    del REQUESTS["filename of another kind"]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_wrong_request_gets_a_sentence(kind: str, client: Client) -> None:
    body, content_type, status, said = REQUESTS[kind]
    answer = client.send("POST", "/predict", body, {"Content-Type": content_type} if content_type else {})
    assert answer.status == status and said in answer.json["error"], answer
    assert set(answer.json) == {"error"} and "Traceback" not in answer.json["error"]


def test_names_are_kept_as_they_are(client: Client) -> None:
    names = ["../../etc/passwd", "<img src=x onerror=alert(1)>", "Pilz № 3.jpg", "C:\\a.jpg"]
    answer = client.images([{"name": name, "data": coded(SOUND)} for name in names])
    assert [one["name"] for one in answer.json["pictures"]] == names
    long = client.images([{"name": "n" * 10_000, "data": ""}])
    assert long.status == 422 and len(long.json["pictures"][0]["name"]) == 200
    half = client.send(
        "POST", "/predict", b'{"images": [{"name": "\\ud800", "data": ""}]}', {"Content-Type": "application/json"}
    )
    assert half.status == 422 and half.json["pictures"][0]["name"] == "?"


def test_other_paths_and_methods(client: Client) -> None:
    assert client.get("/nothing").status == 404 and "/predict" in client.get("/nothing").json["error"]
    assert client.get("/predict").status == 405 and client.get("/predict").headers["allow"] == "POST"
    assert client.send("DELETE", "/").status == 405
    assert client.send("POST", "/predict", b"", {"Content-Encoding": "gzip", "Content-Type": "image/png"}).status == 415


def test_only_allowed_hosts_and_pages(client: Client) -> None:
    assert client.get("/health", Host="evil.example").status == 403
    assert "--allow-host" in client.get("/", Host="evil.example:80").json["error"]
    for host in ("localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST:1"):
        assert client.get("/health", Host=host).status == 200
    for host in ("", "[", "localhost.evil.example"):
        assert client.get("/health", Host=host).status == 403
    assert client.get("/health", Sec_Fetch_Site="cross-site").status == 403
    assert client.get("/health", Sec_Fetch_Site="same-origin").status == 200
    allowed = client.get("/")
    assert (
        allowed.headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in allowed.headers
    )
    assert "default-src 'none'" in allowed.headers["content-security-policy"]


def test_pixels_are_counted_before_decoding(client: Client) -> None:
    for data in (png(Image.new("L", (1001, 1000))), jpeg(Image.new("RGB", (1001, 1000)))):
        answer = client.picture(data)
        said = "picture 1 cannot be read as an image: it has 1,001 x 1,000 pixels, and at most 1,000,000 are allowed."
        assert answer.status == 422 and answer.json["error"] == said
        fits = client.picture(png(Image.new("L", (1000, 1000))))
        assert fits.status == 200


def chunks(data: bytes, size: int = 100_000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_bodies_without_a_length(client: Client) -> None:
    connection = client.connection()
    connection.request("POST", "/predict", chunks(SOUND, 1000), {"Content-Type": "image/jpeg"}, encode_chunked=True)
    assert connection.getresponse().read() and True
    connection.request("POST", "/predict", chunks(bytes(3 << 20)), {"Content-Type": "image/jpeg"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_leave_to_send_is_not_given_for_too_much(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), 10) as opened:
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99999999\r\n"
        opened.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert opened.recv(100).startswith(b"HTTP/1.1 413")


def test_what_is_no_http_is_closed(client: Client) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", client.port), 10) as opened:
            opened.sendall(sent)
            assert opened.recv(100).startswith(b"HTTP/1.1 400")
    assert client.get("/health").status == 200


def together(count: int, ask: Any) -> list[Any]:
    """Answers of `ask(number)`, all asked at once."""
    found: list[Any] = [None] * count

    def one(number: int) -> None:
        found[number] = ask(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_request_that_arrives_slowly_ends() -> None:
    model = MadeUp()
    with (
        here(model, Limits(seconds=0.3)) as made,
        socket.create_connection(("127.0.0.1", made.client.port), 10) as opened,
    ):
        opened.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 50\r\n\r\nabc")
        answer = opened.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408")


def test_an_answer_that_takes_too_long_ends_and_its_work_is_dropped() -> None:
    model = MadeUp(batch_size=1)
    with here(model, Limits(seconds=0.3)) as made:
        answers = together(3, lambda _: made.client.picture(SOUND))
        assert [answer.status for answer in answers] == [504] * 3 and "within 0.3 s" in answers[0].json["error"]
        model.let.set()
        assert made.client.picture(SOUND).status == 200
        assert len(model.batches) <= 2, "pictures that nobody waits for were predicted"


def test_too_many_requests_are_told_to_come_again() -> None:
    model = MadeUp()
    with here(model, Limits(requests=2)) as made:
        threads = [threading.Thread(target=made.client.picture, args=(SOUND,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: made.service.metrics.waiting == 2)
        answer = made.client.picture(bytes(1 << 20))
        assert (
            answer.status == 503 and answer.headers["retry-after"] == "1" and "2 requests wait" in answer.json["error"]
        )
        assert made.client.get("/health").status == 200
        model.let.set()
        for thread in threads:
            thread.join(10)
        assert made.client.picture(SOUND).status == 200


def test_bodies_together_stay_below_a_bound() -> None:
    """Requests that send slowly hold their bodies; a further one is refused, and room comes back with their end."""
    with here(MadeUp(), Limits(body=10_000, seconds=1.0)) as made:
        made.model.let.set()
        slow = [socket.create_connection(("127.0.0.1", made.client.port)) for _ in range(8)]
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 10000\r\n\r\n"
        for opened in slow:
            opened.sendall(head + bytes(9_900))
        until(lambda: made.service.metrics.waiting == 8)
        time.sleep(0.1)
        assert made.client.picture(bytes(5_000)).status == 503
        assert [opened.recv(100)[9:12] for opened in slow] == [b"408"] * 8
        assert made.client.picture(bytes(5_000)).status == 422
        for opened in slow:
            opened.close()


def until(happened: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_waits_becomes_one_batch_and_a_failure_stays_with_its_picture() -> None:
    def fails(name: str) -> Exception | None:
        return DivergedError("The model's outputs are not finite.") if name == "bad" else None

    model = MadeUp(batch_size=8, fails=fails)
    with here(model) as made:
        first = threading.Thread(target=made.client.picture, args=(SOUND,))
        first.start()
        until(lambda: made.service.batcher.batches == 1)
        names = ["a", "b", "bad", "c", "d"]
        waiting = threading.Thread(target=made.client.form, args=([(name, SOUND) for name in ("e", "f", "g")],))
        waiting.start()
        until(lambda: made.service.metrics.waiting == 2)
        time.sleep(0.1)
        model.let.set()
        first.join(10), waiting.join(10)
        assert model.batches == [1, 3]
        answers = together(5, lambda number: made.client.images([{"name": names[number], "data": coded(SOUND)}]))
        assert [answer.status for answer in answers] == [200, 200, 500, 200, 200]
        assert "not finite" in answers[2].json["error"]


def test_a_model_that_cannot_go_on_fails_every_request_and_the_start_fails_with_it() -> None:
    model = MadeUp()
    model.let.set()
    lost = RuntimeError("the device is gone")

    def broken(*_given: object) -> None:
        raise lost

    def ask() -> None:
        with here(model) as made:
            made.service.batcher._predicted = broken  # type: ignore[method-assign, assignment]
            assert together(3, lambda _: made.client.picture(SOUND).status) == [500] * 3
            assert made.service.batcher.failure is lost

    with pytest.raises(RuntimeError, match="the device is gone"):
        ask()

    @contextmanager
    def never() -> Iterator[None]:
        raise DivergedError("The model's outputs are not finite.")
        yield

    model.at_work = never  # type: ignore[method-assign]
    with pytest.raises(DivergedError), here(model):
        pass


def test_an_unforeseen_failure_is_500_without_a_traceback_for_the_client(capfd: pytest.CaptureFixture[str]) -> None:
    with here(MadeUp(fails=lambda _: RuntimeError("a secret"))) as made:
        made.model.let.set()
        answer = made.client.picture(SOUND)
        assert answer.status == 500 and "secret" not in answer.json["error"]
        assert made.service.metrics.requests == {500: 1} and made.service.metrics.waiting == 0
        assert made.client.get("/health").status == 200


def test_a_picture_larger_than_the_limit_names_it_in_each_form(client: Client, tmp_path: Path) -> None:
    answer = client.images([{"name": "wide.png", "data": coded(png(Image.new("1", (2000, 1000))))}])
    assert answer.json["error"].startswith("wide.png cannot be read as an image: it has 2,000 x 1,000 pixels")
