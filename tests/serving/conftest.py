"""A run, a server of it in a process of its own, and a server in this process whose model is made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch

import liftplus
import processes
from liftplus.data.pictures import picture
from liftplus.runs.predicting import Guess
from liftplus.serving import server
from liftplus.serving.app import Limits, Served, Service
from liftplus.serving.batching import Batcher

from ..conftest import write_folder
from ..report.conftest import driver

__all__ = ["driver"]

QUICK: dict[str, Any] = {"epochs": 0, "workers": 0, "precision": "fp32", "device": "cpu", "cache": False}


@dataclass(frozen=True)
class Answered:
    """An answer of a server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Sends requests to a port, each over a connection of its own."""

    port: int

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answered:
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answered(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answered:
        return self.send("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def picture(self, data: bytes, kind: str = "image/jpeg") -> Answered:
        return self.send("POST", "/predict", data, {"Content-Type": kind})

    def images(self, images: Any) -> Answered:
        return self.send("POST", "/predict", json.dumps({"images": images}), {"Content-Type": "application/json"})

    def form(self, files: Sequence[tuple[str, bytes]], boundary: str = "edge") -> Answered:
        return self.send(
            "POST", "/predict", form(files, boundary), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )


def form(files: Sequence[tuple[str, bytes]], boundary: str = "edge") -> bytes:
    """A body of multipart/form-data."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n'.encode()
        + b"Content-Type: image/png\r\n\r\n"
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes; a test split of six."""
    return write_folder(tmp_path_factory.mktemp("served") / "photos", {"train": (3, 2, 2), "test": (2, 2, 2)})


@pytest.fixture(scope="session")
def run(photos: Path) -> Path:
    """A model without training."""
    liftplus.fit(photos, **QUICK).save(photos.parent / "run")
    return photos.parent / "run"


class Started:
    """`liftplus serve` in a process."""

    def __init__(self, run: Path, told: Path, *options: object) -> None:
        given = ("serve", run, "--port", 0, "--set", "precision=fp32", "--set", "device=cpu", *options)
        self.running = processes.liftplus(*given, "--json", told=told)
        try:
            processes.until(lambda: bool(self._said()), self.running)
        except AssertionError:
            self.running.process.kill()
            raise
        self.url = json.loads(self._said()[0])["url"]
        self.client = Client(int(self.url.rpartition(":")[2]))

    def _said(self) -> list[str]:
        return [line for line in self.running.told.splitlines() if line.startswith("{") and line.endswith("}")]

    def end(self) -> None:
        """End it, if it runs, as a system does."""
        if self.running.process.is_alive():
            self.running.send(15)
            if self.running.wait(30) is None:
                self.running.kill()
        assert self.running.process.exitcode in (0, -9), self.running.told
        assert "Traceback" not in self.running.told


Start = Callable[..., Started]


@pytest.fixture
def start(run: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts servers with given options; those that still run are ended behind the test."""
    made: list[Started] = []

    def begin(*options: object) -> Started:
        made.append(Started(run, tmp_path / f"told{len(made)}", *options))
        return made[-1]

    yield begin
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def started(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server with the limits that the tests of limits expect."""
    told = tmp_path_factory.mktemp("told") / "told"
    limits = ("--max-body", 1, "--max-pixels", 1, "--max-pictures", 8, "--max-seconds", 5)
    found = Started(run, told, *limits)
    yield found
    found.end()


@pytest.fixture
def client(started: Started) -> Client:
    return started.client


@dataclass
class MadeUp:
    """Predicts "ok" for every picture once it is let; `batches` has the size of each batch."""

    batch_size: int = 4
    let: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    fails: Callable[[str], Exception | None] = lambda _name: None

    def view(self, data: bytes, name: str, most: int | None = None) -> torch.Tensor:
        return picture(data, name, "exact", most).cut((0, 0, 1, 1), (1, 1), "bicubic")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        yield

    def predict(self, names: Sequence[str], views: Sequence[torch.Tensor]) -> list[Guess]:
        assert len(names) == len(views)
        assert self.let.wait(20)
        for name in names:
            if error := self.fails(name):
                raise error
        self.batches.append(len(names))
        return [Guess(name, ("ok",), (1.0,)) for name in names]


@dataclass
class Here:
    """A server in a thread of this process."""

    client: Client
    service: Service
    model: MadeUp
    asked: threading.Event
    thread: threading.Thread


@contextmanager
def here(model: MadeUp, limits: Limits | None = None) -> Iterator[Here]:
    """Serve until left."""
    listener = server.bound("127.0.0.1", 0)
    asked, ready = threading.Event(), threading.Event()
    limits = limits or Limits()
    with Batcher([model], 2, limits.pixels) as batcher:  # type: ignore[list-item]
        service = Service(batcher, Served("made up", ("ok",), {"top_k": 1, "crops": 1}), limits)
        given = (service, listener, asked.is_set, ready.set)
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=given)
        thread.start()
        assert ready.wait(10)
        try:
            yield Here(Client(port), service, model, asked, thread)
        finally:
            model.let.set()
            asked.set()
            thread.join(20)
            assert not thread.is_alive()
