"""How a server starts, and that it ends without losing what it has accepted."""

from __future__ import annotations

import signal
import socket
import threading
import time
from http.client import HTTPException
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from checked_pictures import drawn, jpeg
from liftplus.errors import UserError
from liftplus.serving import server

from ..conftest import Command
from .conftest import Client, MadeUp, Start, here
from .test_refusals import until

SOUND = jpeg(drawn(1))


def test_requests_that_wait_are_answered_at_the_end() -> None:
    model = MadeUp(batch_size=2)
    statuses: list[int] = []
    with here(model) as made:
        threads = [
            threading.Thread(target=lambda: statuses.append(made.client.picture(SOUND).status)) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        until(lambda: made.service.metrics.waiting == 12)
        made.asked.set()
        until(lambda: made.service.stopping)
        with pytest.raises(ConnectionError):
            until(lambda: made.client.get("/health").status == 0, 2.0)
        model.let.set()
        for thread in threads:
            thread.join(20)
        made.thread.join(20)
        assert statuses == [200] * 12 and not made.thread.is_alive()


def test_an_open_connection_gets_an_answer_that_closes_it() -> None:
    model = MadeUp()
    model.let.set()
    with here(model) as made:
        connection = made.client.connection()
        connection.request("GET", "/health")
        connection.getresponse().read()
        made.asked.set()
        until(lambda: made.service.stopping)
        connection.request("POST", "/predict", SOUND, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        answer.read()


class Asking(threading.Thread):
    """Sends a picture again and again over one connection, until the server closes it."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client, self.statuses, self.lost = client, list[int](), 0

    def run(self) -> None:
        connection = self.client.connection()
        while True:
            try:
                connection.request("POST", "/predict", SOUND, {"Content-Type": "image/jpeg"})
            except OSError:  # the server takes no connections any more
                return
            try:
                answer = connection.getresponse()
                answer.read()
            except (HTTPException, OSError):
                self.lost += 1
                return
            self.statuses.append(answer.status)


def test_a_signal_under_load_loses_nothing(start: Start) -> None:
    started = start("--one-crop")
    asking = [Asking(started.client) for _ in range(8)]
    for one in asking:
        one.start()
    until(lambda: all(len(one.statuses) > 2 for one in asking), 30)
    began = time.monotonic()
    started.running.send(signal.SIGTERM)
    assert started.running.wait(30) == 0, started.running.told
    assert time.monotonic() - began < 10
    for one in asking:
        one.join(30)
    assert sum(one.lost for one in asking) == 0 and {status for one in asking for status in one.statuses} == {200}
    answered = sum(len(one.statuses) for one in asking)
    assert f"Ended after {answered:,} requests." in started.running.told and "Traceback" not in started.running.told


@pytest.mark.slow
def test_a_killed_server_starts_again_on_its_port(start: Start) -> None:
    first = start()
    connection = first.client.connection()
    connection.request("GET", "/health")
    connection.getresponse().read()
    first.running.kill()
    again = start("--port", first.client.port)
    assert again.client.port == first.client.port and again.client.picture(SOUND).status == 200


def test_a_port_in_use_is_said_before_the_model_is_loaded(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = command("serve", "no-such-run", "--port", port)
        assert ended.code == 2 and f"Port {port} is in use" in ended.err and "--port 0" in ended.err


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 300, "ü" * 70])
def test_an_address_of_another_machine_is_refused(host: str, command: Command) -> None:
    ended = command("serve", "no-such-run", "--host", host, "--port", 0)
    assert ended.code == 2 and ended.err.startswith("Error: --host"), ended.err


def test_a_folder_without_a_model_is_refused(command: Command, tmp_path: Path) -> None:
    ended = command("serve", tmp_path, "--port", 0)
    assert ended.code == 2 and "holds no trained model" in ended.err


def test_without_the_extra_one_sentence_tells_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("uvicorn", "python_multipart") else find(name, *rest)

    monkeypatch.setattr(server, "find_spec", without)
    ended = command("serve", "no-such-run")
    expected = "Error: Serving needs uvicorn, python_multipart. Install: pip install 'liftplus[serve]'."
    assert (ended.code, ended.err.strip()) == (2, expected)


def test_hosts_and_addresses() -> None:
    with server.bound("localhost", 0) as listener:
        assert server.is_loopback(listener) and server.url(listener).startswith("http://")
        assert {"localhost", "127.0.0.1", "::1", "my.name"} == server.hosts(listener, "localhost", ["My.Name"])
    with server.bound("0.0.0.0", 0) as listener:
        assert not server.is_loopback(listener) and "127.0.0.1" in server.url(listener)
        assert server.hosts(listener, "0.0.0.0", []) == frozenset()
        assert {"a.example", "localhost"} <= server.hosts(listener, "0.0.0.0", ["a.example"])
    with pytest.raises(UserError, match="no address"):
        server.bound("not an address", 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-body", "inf"), "--max-body is inf"),
        (("--max-seconds", "inf"), "--max-seconds is inf"),
        (("--allow-host", "https://a.example/"), "Give the name alone"),
        (("--allow-host", "a.example:443"), "Give the name alone"),
    ],
)
def test_options_out_of_range(options: tuple[str, str], said: str, run: Path, command: Command) -> None:
    ended = command("serve", run, "--port", 0, *options)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err


def test_one_request_to_end_may_come_twice(start: Start) -> None:
    """`timeout` and the like send SIGTERM to the process and to its group."""
    started = start()
    assert started.client.get("/predict/").status == 404
    started.running.send(15)
    started.running.send(15)
    assert started.running.wait(30) == 0, started.running.told
