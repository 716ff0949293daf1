"""A server from its socket to its end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import math
import os
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING

from liftplus.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from liftplus.serving.app import Service

NEEDED = ("starlette", "uvicorn", "httptools", "python_multipart")
KEPT = 75
"""Seconds for which an idle connection stays open: longer than proxies keep theirs, which is 60 s as a rule."""
BACKLOG = 128
"""Connections that asyncio may accept in one go, before the limit on them counts."""
FILES = 100
"""Files that may be open beside connections."""
LAST = 0.3
"""Seconds at the end in which connections may still bring a request that was under way."""
SPARE = 5
"""Seconds for which the end may take longer than the time limit of a request."""


def required() -> None:
    """Check before any work that the packages are installed; raises UserError otherwise."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"Serving needs {', '.join(missing)}. Install: pip install 'liftplus[serve]'.")


def make_room(connections: int) -> None:
    """Let this process open so many connections beside its files; raises UserError where the system does not."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = connections + BACKLOG + FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        raise UserError(
            f"--max-connections {connections} takes {needed:,} open files, and the system allows {hard:,}. Give fewer "
            "connections, or raise the limit (ulimit -Hn)."
        ) from error


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which takes no connection yet.

    Raises:
        UserError: the address is not one of this machine, or is in use.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(
            f"--host {host!r} is no address of this machine. Give 127.0.0.1 for this machine alone, or 0.0.0.0 for all."
        ) from error
    made = socket.socket(family, kind, number)
    try:
        if os.name == "posix":  # else a server that starts again waits until connections of the last one are forgotten
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            said = f"Port {port} is in use. End what uses it, give another one with --port, or --port 0 for a free one."
        elif error.errno == errno.EACCES:
            said = f"Port {port} is not allowed to you. Give --port a number of 1024 or more."
        else:
            said = f"--host {host!r} cannot be used ({error.strerror}). Give an address of this machine."
        raise UserError(said) from error
    return made


def url(listener: socket.socket) -> str:
    """Where a bound socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://{host}:{port}" if ":" not in host else f"http://[{host}]:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def hosts(listener: socket.socket, given: str, allowed: Iterable[str]) -> frozenset[str]:
    """Names that a request may give in its header Host; empty for any.

    Args:
        given: the address as the user wrote it.
        allowed: further names; without any, a server that other machines reach is reached under any name.
    """
    names = {name.lower() for name in allowed}
    if not names and not is_loopback(listener):
        return frozenset()
    return frozenset({*names, given.lower(), "localhost", "127.0.0.1", "::1", listener.getsockname()[0]})


def run(service: Service, listener: socket.socket, asked: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Serve until asked to end; what has been accepted by then is answered.

    Args:
        asked: whether to end; it is called all the time.
        ready: called once requests are taken.
    """
    import uvicorn

    from liftplus.serving.connections import Connection

    config = uvicorn.Config(
        service.app(),
        http=partial(Connection, service),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEPT,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds + SPARE),
        backlog=BACKLOG,
    )
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(_serve(uvicorn.Server(config), service, listener, asked, ready))
        except BaseException as error:
            failed.append(error)

    # Uvicorn sets handlers of signals in the main thread only. Ours stay, and a second signal ends the process.
    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    for error in failed:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:  # two that started at the same time
            port = listener.getsockname()[1]
            raise UserError(
                f"Port {port} is in use. Give another one with --port, or --port 0 for a free one."
            ) from error
        raise error


async def _serve(
    server: uvicorn.Server,
    service: Service,
    listener: socket.socket,
    asked: Callable[[], bool],
    ready: Callable[[], None],
) -> None:
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    while not asked() and not task.done():
        await asyncio.sleep(0.05)
    # No new connections; those that are open get an answer to what they send, which also closes them.
    service.stopping = True
    for accepting in server.servers:
        accepting.close()
    end = monotonic() + LAST
    while monotonic() < end or service.metrics.waiting:
        await asyncio.sleep(0.02)
    server.should_exit = True
    await task
