"""What a server answers, as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liftplus.errors import UserError
from liftplus.publishing.page import page
from liftplus.runs.guesses import Guess, told
from liftplus.serving import answers, reading
from liftplus.serving.batching import Batcher
from liftplus.serving.metrics import Metrics
from liftplus.serving.reading import LONGEST_NAME, Refused, Sent
from liftplus.words import counted

SMALL = 1 << 16
"""Bytes of a body that is read in the event loop; reading a larger one would keep others waiting."""
BODIES = 8
"""All bodies in memory together may have so many times the bytes of the largest one."""
LEFT = 499
"""Status in the metrics, as nginx has it, of a request whose client closes the connection before its answer."""
PLACES = "POST /predict takes pictures; GET /classes, /health, /metrics and / (a page for people) need nothing."
PAGE_RULES = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """What one request may have, and how many may wait.

    Attributes:
        body: bytes.
        pixels: of each picture.
        pictures: of a request.
        seconds: from its head to its answer.
        requests: that are answered at the same time.
        connections: that are open at the same time.
    """

    body: int = 32 << 20
    pixels: int = 50_000_000
    pictures: int = 64
    seconds: float = 30.0
    requests: int = 64
    connections: int = 512


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        name: of the run.
        classes: their names.
        about: how it predicts, for programs.
        hosts: names that the header Host may have; empty for any.
    """

    name: str
    classes: Sequence[str]
    about: dict[str, Any]
    hosts: frozenset[str] = frozenset()


class Service:
    """Answers requests.

    Attributes:
        stopping: whether the server is about to end; connections are then closed after their answer.
        metrics: of the requests so far.
    """

    def __init__(self, batcher: Batcher, served: Served, limits: Limits) -> None:
        self.batcher, self.served, self.limits = batcher, served, limits
        self.metrics = Metrics()
        self.stopping = False
        self._bytes = 0
        self._page = page(files("liftplus.serving").joinpath("answering.html").read_text(encoding="utf-8"))

    def app(self) -> ASGIApp:
        """The application."""
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/classes", self.classes),
            Route("/health", self.health),
            Route("/metrics", self.shown_metrics),
            Route("/", self.page),
        ]
        handlers: Any = {HTTPException: _http_error, Exception: _internal_error}
        application = Starlette(routes=routes, exception_handlers=handlers)
        application.router.redirect_slashes = False  # a redirect would name the address without a proxy's https
        return _Guard(application, self)

    async def predict(self, request: Request) -> Response:
        """The classes of the pictures in a request."""
        try:
            return await self._predicted(request)
        except Refused as refused:
            return answers.error(refused.status, str(refused))
        except ClientDisconnect:
            return answers.error(LEFT, "The client has left.")  # nobody reads it

    async def _predicted(self, request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        body = _Body(request)
        if self.metrics.waiting >= self.limits.requests:
            await body.discard(deadline)
            raise Refused(503, f"{counted(self.limits.requests, 'request')} wait already. Try again later.")
        self.metrics.waiting += 1
        try:
            await self._receive(body, deadline)
            async with asyncio.timeout_at(deadline):
                sent = await self._sent(body.taken(), request.headers)
                return self._answer(await self._guesses(sent, body))
        except TimeoutError:
            said = f"The answer was not ready within {self.limits.seconds:g} s."
            raise Refused(504, f"{said} Send fewer pictures, or try again later.") from None
        finally:
            self.metrics.waiting -= 1
            self._release(body)

    async def _receive(self, body: _Body, deadline: float) -> None:
        """Receive a request's body, and keep account of all bodies."""
        try:
            if body.announced > self.limits.body:
                raise self._too_large()
            async with asyncio.timeout_at(deadline):
                while body.more:
                    self._bytes += await body.receive()
                    if body.size > self.limits.body:
                        raise self._too_large()
                    if self._bytes > BODIES * self.limits.body:
                        raise Refused(503, "Other requests fill the memory for pictures. Try again later.")
        except TimeoutError:
            raise Refused(408, f"The request did not arrive within {self.limits.seconds:g} s.") from None
        except Refused:
            self._release(body)
            await body.discard(deadline)
            raise

    def _release(self, body: _Body) -> None:
        self._bytes -= body.size
        body.size = 0

    def _too_large(self) -> Refused:
        most = f"{self.limits.body:,} bytes"
        return Refused(413, f"The request has more than {most}. Send fewer pictures at a time, or smaller ones.")

    async def _sent(self, body: bytes, headers: Headers) -> list[Sent]:
        """The image files in a body."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "The body is compressed. Send it as it is, without Content-Encoding.")
        given = (body, headers.get("content-type", ""), self.limits.pictures)
        if len(body) <= SMALL:
            return reading.read(*given)
        return await asyncio.get_running_loop().run_in_executor(self.batcher.readers, reading.read, *given)

    async def _guesses(self, sent: Sequence[Sent], body: _Body) -> list[Guess]:
        """The answers for image files, in their order; what nobody waits for any more is not predicted."""
        futures = [self.batcher.predict(name, data) for name, data in sent]

        def drop(*_: object) -> None:
            for future in futures:
                future.cancel()

        left = asyncio.create_task(body.left())
        left.add_done_callback(drop)
        try:
            await asyncio.wait(futures)
        finally:
            left.cancel()
            drop()  # at once: the model goes on while the callback waits for its turn
        if any(future.cancelled() for future in futures):
            raise ClientDisconnect
        failures = [error for future in futures if (error := future.exception()) is not None]
        for error in failures:
            raise Refused(500, str(error)) if isinstance(error, UserError) else error
        return [future.result() for future in futures]

    def _answer(self, guesses: Sequence[Guess]) -> Response:
        """200 if any picture was read; 422 with the first reason if none was."""
        errors = [guess.error for guess in guesses if guess.error is not None]
        self.metrics.pictures["unreadable"] += len(errors)
        self.metrics.pictures["answered"] += len(guesses) - len(errors)
        pictures = {"pictures": [{"name": guess.path, **told(guess)} for guess in guesses]}
        if len(errors) < len(guesses):
            return answers.as_json(pictures)
        return answers.as_json({"error": errors[0], **pictures}, 422)

    async def classes(self, request: Request) -> Response:
        """The names of the classes, and how they are predicted."""
        return answers.as_json({"run": self.served.name, "classes": list(self.served.classes), **self.served.about})

    async def health(self, request: Request) -> Response:
        """200 while requests are welcome, else 503."""
        return answers.as_json({"status": "stopping"}, 503) if self.stopping else answers.as_json({"status": "ready"})

    async def shown_metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(self.metrics.text(self.batcher.batches), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """The page for people."""
        return Response(self._page, media_type="text/html", headers={"Content-Security-Policy": PAGE_RULES})


class _Body:
    """The body of a request: the parts that have arrived.

    Attributes:
        announced: bytes that the request's head has announced; 0 where it has not.
        size: bytes that have been kept.
        more: whether parts are still to come.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._chunks: list[bytes] = []
        self.announced = int(request.headers.get("content-length") or 0)  # that it is a number has been checked
        self.size, self.more, self._asked = 0, True, False

    async def _next(self) -> bytes:
        self._asked = True
        message = await self._request.receive()
        self.more = message.get("more_body", False)
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        return chunk

    async def receive(self) -> int:
        """Keep the next part; returns its bytes."""
        chunk = await self._next()
        self._chunks.append(chunk)
        self.size += len(chunk)
        return len(chunk)

    async def discard(self, deadline: float) -> None:
        """Receive what is still to come and keep nothing: most programs read no answer before they have sent all."""
        self._chunks.clear()
        if "expect" in self._request.headers and not self._asked:  # such a one waits for leave to send
            return
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout_at(deadline):
                while self.more:
                    await self._next()

    async def left(self) -> None:
        """Return once the client has closed the connection; called when nothing is still to come."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    def taken(self) -> bytes:
        """All parts as one, which are no longer held here."""
        whole = b"".join(self._chunks)
        self._chunks.clear()
        return whole


class _Guard:
    """Counts answers; refuses requests for other hosts, and those that a web page of another site has a browser send.

    The header Host tells a page whose name was made to point to this machine (DNS rebinding), and Sec-Fetch-Site any
    other page of another site.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self.service.stopping:
                    headers["Connection"] = "close"
                if scope["path"] == "/predict":
                    self.service.metrics.request(message["status"], time.perf_counter() - began)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        await (self.app if refusal is None else answers.error(403, refusal))(scope, receive, sending)

    def _refusal(self, headers: Headers) -> str | None:
        hosts = self.service.served.hosts
        if hosts and _name(headers.get("host", "")) not in hosts:
            given = headers.get("host", "")[:LONGEST_NAME]
            return (
                f"The header Host names {given!r}, which is not allowed. Start liftplus serve with --allow-host NAME "
                "for each name under which it is reached."
            )
        if headers.get("sec-fetch-site", "none") == "cross-site":
            return "Pages of other sites may not send requests."
        return None


def _name(host: str) -> str:
    """The name in a header Host, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return answers.error(404, f"There is no {request.url.path[:LONGEST_NAME]}. {PLACES}")
    if error.status_code == 405:
        return answers.error(405, f"{request.method} is not allowed here. {PLACES}", error.headers)
    return answers.error(error.status_code, f"{error.detail}.", error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return answers.error(500, "An internal error; the server has printed its traceback.")
