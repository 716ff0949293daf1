"""Connections of a server: how many there may be, and how long the head of a request may take."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from liftplus.serving.answers import error
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.serving.app import Service


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's, closed where it is one too many or the head of its request does not arrive in time.

    Uvicorn itself limits only the time between an answer and the next byte.
    """

    def __init__(self, service: Service, **given: Any) -> None:
        super().__init__(**given)
        self._service, self._heard = service, False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self._service.limits.connections
        if len(self.connections) > most:
            self._refuse(503, f"{counted(most, 'connection')} are open already. Try again later.")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None and not self.transport.is_closing():
            self._await_head()

    def on_message_begin(self) -> None:
        self._heard = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._heard = False
        self._head_is_there()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "What was sent is no request of HTTP/1.1, or not a sound one.")

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self._service.limits.seconds, self._too_late)

    def _head_is_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _too_late(self) -> None:
        if self._heard:
            seconds = self._service.limits.seconds
            self._refuse(408, f"The head of the request did not arrive within {seconds:g} s.")
        else:  # an answer would be taken for that to the first request
            self.transport.close()

    def _refuse(self, status: int, said: str) -> None:
        self._service.metrics.refused(status)
        response = error(status, said, {"Connection": "close"})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.close()
