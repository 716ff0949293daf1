"""`liftplus serve` against `liftplus predict` on a folder, and what it makes of 10,000 requests with hostile ones.

    python benchmarks/serving.py rates --shared ../shared/data --out benchmarks/results/serving-rates.json
    python benchmarks/serving.py soak --shared ../shared/data --out benchmarks/results/serving-soak.json

`rates` has 16 clients, in one process that shares the cores with the server. Each has a connection that stays open, and
sends one photograph a request, then eight. `predict` reads the same photographs from their folder, in a process that
has loaded the model and has predicted 100 of them. Both take turns. For each turn the record has the CPU time of
`predict`, of the server and of the clients, and how much of the cores other processes took meanwhile.

`soak` sends requests from 16 clients, every tenth of which is damaged or hostile, and compares every other answer with
that of `predict`. Then it kills the server and starts it again, three times. Every start is timed from the command to
the first answer of /health.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image

import harness
import liftplus
from liftplus.machine import runtime

CLIENTS = 16
CASES: dict[str, tuple[str, list[str], int]] = {
    "mini_clip, one crop, 64 px": ("mini_clip", ["--one-crop"], 3600),
    "EfficientNet-Lite0, one crop, 224 px": ("efficientnet_lite0", ["--one-crop"], 1200),
}
"""Backbone, options and number of photographs of each measurement."""
TOGETHER = (1, 8)
"""Photographs of a request."""
PREDICT = """
import json, sys, time
from pathlib import Path
from liftplus.commands import options
from liftplus.runs import inputs, predicting
from liftplus.training import checkpoint

run = Path(sys.argv[1])
settings = options.run_settings(run, None, ["evaluation.tte=false"])
session = options.session(settings)
trained = checkpoint.load_model(run, session.runtime, settings.backbone)
for line in sys.stdin:
    rows = inputs.read([line.strip()])
    began = time.perf_counter()
    found = predicting.predict_files(session, trained, rows, skip_unreadable=False)
    print(json.dumps([time.perf_counter() - began, len(found)]), flush=True)
"""


@dataclass
class Ask:
    """A request.

    Attributes:
        kind: of hostile ones; empty for a photograph.
        data: all bytes of it.
        statuses: that may answer it; empty where the client hangs up before it has sent all.
        number: of the photograph.
        photographs: in it, where it is no hostile one.
    """

    kind: str
    data: bytes
    statuses: tuple[int, ...] = (200,)
    number: int = -1
    photographs: int = 1


@dataclass
class Told:
    """What came back.

    Attributes:
        statuses: how often each came, by kind.
        lost: requests without an answer.
        wrong: requests with another status, or with another answer than `expected`.
        seconds: from each photograph's request to its answer.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Client:
    """A connection that sends a request after the other, and connects again where the server closes it."""

    def __init__(self, port: int) -> None:
        self.port, self.ask, self.came, self.began = port, Ask("", b""), b"", 0.0
        self.socket: socket.socket | None = None

    def send(self, ask: Ask, selector: selectors.BaseSelector) -> None:
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(self.socket, selectors.EVENT_READ, self)
        self.ask, self.came, self.began = ask, b"", time.perf_counter()
        self.socket.sendall(ask.data)

    def close(self, selector: selectors.BaseSelector) -> None:
        if self.socket is not None:
            selector.unregister(self.socket)
            self.socket.close()
            self.socket = None

    def answer(self, selector: selectors.BaseSelector) -> tuple[int, bytes] | None:
        """Status and body, once they are there; status 0 where the connection ended before."""
        assert self.socket is not None
        try:
            part = self.socket.recv(1 << 16)
        except ConnectionError:
            part = b""
        self.came += part
        head, found, body = self.came.partition(b"\r\n\r\n")
        if not part and not found:
            self.close(selector)
            return 0, b""
        lower = head.lower()
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if part and (not found or len(body) < length):
            return None
        if not part or b"connection: close" in lower:
            self.close(selector)
        return int(head[9:12]), body


def exchange(
    port: int,
    asks: Iterator[Ask],
    check: Callable[[Ask, bytes], str | None] = lambda _ask, _body: None,
    every: Callable[[int], None] = lambda _number: None,
) -> Told:
    """Send all requests with `CLIENTS` clients.

    Args:
        check: says what is wrong with the answer to a photograph.
        every: called with the number of requests that have ended.
    """
    told, done = Told(), 0
    selector = selectors.DefaultSelector()
    clients = [Client(port) for _ in range(CLIENTS)]
    busy: set[Client] = set()

    def go_on(client: Client) -> None:
        nonlocal done
        for ask in asks:
            client.send(ask, selector)
            if ask.statuses:
                busy.add(client)
                return
            client.close(selector)
            done += 1
            every(done)

    for client in clients:
        go_on(client)
    while busy:
        for key, _ in selector.select(60) or (_ for _ in ()).throw(TimeoutError("no answer for 60 s")):
            client = key.data
            if client not in busy:  # an idle connection that the server closes
                client.close(selector)
                continue
            if (answer := client.answer(selector)) is None:
                continue
            busy.discard(client)
            done += 1
            status, body = answer
            _note(client, status, body, told, check)
            every(done)
            go_on(client)
    for client in clients:
        client.close(selector)
    return told


def _note(client: Client, status: int, body: bytes, told: Told, check: Callable[[Ask, bytes], str | None]) -> None:
    ask = client.ask
    told.statuses[ask.kind, status] += 1
    if not ask.kind:
        told.seconds.append(time.perf_counter() - client.began)
    if status == 0:
        told.lost += 1
    elif status not in ask.statuses:
        told.wrong.append(f"{ask.kind or 'photograph'}: {status} {body[:200]!r}")
    elif not ask.kind and (answered := body.count(b'"error": null')) != ask.photographs:
        told.wrong.append(f"{answered} of {ask.photographs} photographs are answered")
    elif not ask.kind and (said := check(ask, body)):
        told.wrong.append(said)


def request(body: bytes, kind: str, announced: int | None = None) -> bytes:
    """All bytes of a request."""
    length = len(body) if announced is None else announced
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def post(photographs: Sequence[bytes]) -> bytes:
    """All bytes of a request with JPEG files: as the body, or as a form if there are several."""
    if len(photographs) == 1:
        return request(photographs[0], "image/jpeg")
    head = b'--edge\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n'
    form = b"".join(head + photograph + b"\r\n" for photograph in photographs) + b"--edge--\r\n"
    return request(form, "multipart/form-data; boundary=edge")


def hostile(photograph: bytes) -> list[Ask]:
    """One request of each kind that is damaged or hostile."""

    def png(width: int, height: int, pixels: bytes) -> bytes:
        blocks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")
        coded = (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in blocks
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(coded)

    large = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(large, "PNG")
    half = photograph[: len(photograph) // 2]
    form = "multipart/form-data; boundary=edge"
    return [
        Ask("half a JPEG", request(half, "image/jpeg"), (422,)),
        Ask("noise", request(bytes(range(256)) * 50, "image/jpeg"), (422,)),
        Ask("empty", request(b"", "image/png"), (422,)),
        Ask("page", request(b"<script>alert(1)</script>", "image/png"), (422,)),
        Ask(
            "bomb: 60,000 x 60,000 claimed",
            request(png(60_000, 60_000, zlib.compress(bytes(999))), "image/png"),
            (422,),
        ),
        Ask("36 million pixels in 0.1 MB", request(large.getvalue(), "image/png"), (200,)),
        Ask("truncated PNG", request(large.getvalue()[:50_000], "image/png"), (422,)),
        Ask("wrong type", request(photograph, "text/html"), (415,)),
        Ask("40 MB", request(bytes(40_000_000), "image/jpeg"), (413,)),
        Ask("deep JSON", request(b"[" * 1_000_000, "application/json"), (400,)),
        Ask("no base64", request(b'{"images": [{"data": "?"}]}', "application/json"), (400,)),
        Ask("form without an end", request(b"--edge\r\n" + half, form), (400,)),
        Ask(
            "1,000 files",
            request(b'--edge\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n' * 1000, form),
            (413,),
        ),
        Ask("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", (400,)),
        Ask("another host", request(photograph, "image/jpeg").replace(b"localhost", b"evil.example", 1), (403,)),
        Ask("hangs up", request(half, "image/jpeg", len(photograph)), ()),
    ]


class Server:
    """`liftplus serve` in a process."""

    def __init__(self, run: Path, options: Sequence[str], port: int = 0) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "liftplus", "serve", str(run), "--port", str(port), "--json", *options]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until the process ends)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["url"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", self.port)) as opened:
            opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert opened.recv(100).startswith(b"HTTP/1.1 200")
        self.start_seconds = time.perf_counter() - began

    def resident(self) -> float:
        """MB in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    def end(self, number: int = signal.SIGTERM) -> int:
        """Exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def said(self) -> str:
        """What it printed on stderr."""
        self.errors.seek(0)
        return self.errors.read()


@contextmanager
def serving(run: Path, options: Sequence[str]) -> Iterator[Server]:
    server = Server(run, options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def photographs(shared: Path, folder: Path, most: int) -> list[Path]:
    """Files of real photographs, spread over all classes."""
    with zipfile.ZipFile(shared / "clothing17_160.zip") as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        chosen = names[:: max(1, len(names) // most)][:most]
        for number, name in enumerate(chosen):
            (folder / f"{number:05}.jpg").write_bytes(opened.read(name))
    return sorted(folder.iterdir())


def fitted(backbone: str, shared: Path, folder: Path) -> Path:
    """A run; how long an answer takes does not depend on what it has learned."""
    method = "zeroshot" if backbone == "mini_clip" else "linear_probe"
    settings: dict[str, Any] = {"epochs": 0, "device": "cpu", "workers": 0, "cache": False}
    liftplus.fit(shared / "clothing17_160.zip", backbone, method, **settings).save(folder)
    return folder


def of_rates(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, (backbone, options, most) in CASES.items():
        if args.only not in (None, backbone):
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "photos").mkdir()
            files = photographs(args.shared, folder / "photos", args.pictures or most)
            run = fitted(backbone, args.shared, folder / "run")
            command = [sys.executable, "-c", PREDICT, str(run)]
            predict = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            with serving(run, options) as server:
                bodies = [file.read_bytes() for file in files]
                few = folder / "few"
                few.mkdir()
                for file in files[:100]:
                    (few / file.name).hardlink_to(file)
                places = [few, folder / "photos"]
                for together in TOGETHER:
                    parts = [bodies[k : k + together] for k in range(0, len(bodies), together)]
                    asks = [Ask("", post(part), photographs=len(part)) for part in parts]
                    about = {"name": name, "photographs": len(files), "photographs_per_request": together}
                    yield about | turns(args, predict, server, asks, places)
            predict.communicate()


@dataclass
class Spent:
    """What is spent between entering and leaving (Linux).

    Attributes:
        pids: of processes; their children count once they have ended.
        wall: seconds.
        own: CPU seconds of each of the processes.
        others: share of all cores that other processes took.
    """

    pids: Sequence[int]
    wall: float = 0.0
    own: list[float] = field(default_factory=list)
    others: float = 0.0

    def __enter__(self) -> Spent:
        self._before = self._now()
        return self

    def __exit__(self, *_error: object) -> None:
        before, (wall, busy, own) = self._before, self._now()
        self.wall = wall - before[0]
        self.own = [now - then for now, then in zip(own, before[2], strict=True)]
        self.others = max(0.0, (busy - before[1] - sum(self.own)) / self.wall / (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float, list[float]]:
        """Seconds: by the clock, that all cores were busy, and of each process."""
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _waiting, *irq = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        own = [sum(map(int, fields[11:15])) / tick for fields in stats]
        return time.perf_counter(), (user + nice + system + sum(irq)) / tick, own


def turns(
    args: argparse.Namespace, predict: Any, server: Server, asks: list[Ask], places: list[Path]
) -> dict[str, Any]:
    """Pictures per second of both, turn by turn; the first turn, with few pictures, warms up.

    Args:
        places: folders of few and of all photographs.
    """
    found: dict[str, list[float]] = {}
    answered = Told()

    def note(group: str, who: str, value: float) -> None:
        found.setdefault(f"{group}/{who}", []).append(value)

    for turn in range(args.repeats + 1):
        some = asks if turn else asks[:100]
        with Spent([predict.pid]) as ours:
            predict.stdin.write(f"{places[min(turn, 1)]}\n")
            predict.stdin.flush()
            seconds, count = json.loads(predict.stdout.readline())
        with Spent([server.process.pid, os.getpid()]) as theirs:
            answered = exchange(server.port, iter(some))
        assert not answered.lost and not answered.wrong, answered.wrong[:3]
        assert count == len(list(places[min(turn, 1)].iterdir()))
        if turn == 0:
            continue
        note("pictures_per_second", "predict", count / seconds)
        note("pictures_per_second", "serve", count / theirs.wall)
        for who, cpu in zip(("predict", "server", "clients"), (*ours.own, *theirs.own), strict=True):
            note("cpu_milliseconds_per_picture", who, 1000 * cpu / count)
        for who, spent in (("predict", ours), ("serve", theirs)):
            note("other_processes_share_of_cores", who, spent.others)
        note("clients_share_of_cores", "serve", theirs.own[1] / theirs.wall / (os.cpu_count() or 1))
    rates = (found[f"pictures_per_second/{who}"] for who in ("serve", "predict"))
    waits = statistics.quantiles(answered.seconds, n=100)
    row: dict[str, Any] = {}
    for key, values in found.items():
        group, _, who = key.partition("/")
        row.setdefault(group, {})[who] = harness.spread(values)
    return row | {
        "serve_over_predict": harness.spread([ours / theirs for ours, theirs in zip(*rates, strict=True)]),
        "milliseconds": {"median": round(1000 * waits[49], 1), "99 %": round(1000 * waits[98], 1)},
    }


def of_soak(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        files = photographs(args.shared, folder / "photos", args.pictures or 500)
        run = fitted("mini_clip", args.shared, folder / "run")
        model = liftplus.load(run, device="cpu", workers=0, tte=False)
        chances = model.predict_proba([str(file) for file in files])
        bodies = [file.read_bytes() for file in files]

        def mixed() -> Iterator[Ask]:
            bad, good = cycle(hostile(bodies[0])), cycle(range(len(bodies)))
            for number in range(args.requests):
                if number % 10 == 9:
                    yield next(bad)
                else:
                    which = next(good)
                    yield Ask("", request(bodies[which], "image/jpeg"), (200,), which)

        def check(ask: Ask, body: bytes) -> str | None:
            best = json.loads(body)["pictures"][0]["top"][0]
            expected = float(chances[ask.number][model.class_names.index(best["class"])])
            # A batch of another size may round otherwise, in bf16 to about a hundredth.
            sound = abs(best["probability"] - expected) < 0.03 and expected > chances[ask.number].max() - 0.03
            return None if sound else f"photograph {ask.number}: {best} instead of {expected}"

        memory: list[float] = []
        with serving(run, ["--one-crop"]) as server:

            def every(number: int) -> None:
                if number % max(1, args.requests // 20) == 0:
                    memory.append(round(server.resident(), 1))
                    print(f"{number:6} requests, {memory[-1]:,.0f} MB", flush=True)

            began = time.perf_counter()
            told = exchange(server.port, mixed(), check, every)
            seconds = time.perf_counter() - began
            code = server.end()
            said = server.said()
        return {
            "requests": args.requests,
            "seconds": round(seconds, 1),
            "lost": told.lost,
            "wrong": told.wrong[:20],
            "statuses": {f"{kind or 'photograph'}: {status}": n for (kind, status), n in sorted(told.statuses.items())},
            "hung_up": sum(not ask.statuses for ask in mixed()),
            "tracebacks": said.count("Traceback"),
            "said": said[-1000:],
            "exit_code": code,
            "resident_mb": memory,
            "start_seconds": restarts(run),
        }


def restarts(run: Path, count: int = 3) -> dict[str, Any]:
    """Seconds of the first start, and of each start after a kill, on the same port."""
    server = Server(run, ["--one-crop"])
    first, again = server.start_seconds, list[float]()
    for _ in range(count):
        exchange(server.port, iter([Ask("", request(b"", "image/png"), (422,))]))
        server.end(signal.SIGKILL)
        server = Server(run, ["--one-crop"], server.port)
        again.append(round(server.start_seconds, 2))
    server.end()
    return {"first": round(first, 2), "after_a_kill": again}


def parse() -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("what", choices=("rates", "soak"))
    parser.add_argument("--shared", type=Path, required=True, help="where the zipped photographs are")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, help="photographs; by default as many as the measurement needs")
    parser.add_argument("--only", choices=("mini_clip", "efficientnet_lite0"), help="of `rates`: one of both models")
    parser.set_defaults(repeats=3)
    return parser.parse_args()


def main() -> None:
    args = parse()
    record = harness.about(args, runtime.choose("cpu"))
    record["versions"] |= {name: version(name) for name in ("starlette", "uvicorn", "httptools", "python-multipart")}
    record["clients"] = CLIENTS
    if args.what == "soak":
        record["soak"] = of_soak(args)
        print(json.dumps(record["soak"], indent=2))
        harness.write(args.out, record)
        return
    record["rows"] = []
    for row in of_rates(args):
        record["rows"].append(row)
        print(json.dumps(row, indent=2), flush=True)
        harness.write(args.out, record)


if __name__ == "__main__":
    main()
