"""Push and pull against a hub of our own on the loopback: the real client, the hub's addresses and file layout."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import HfApi

from liftplus.errors import UserError
from liftplus.publishing import hub

from ..conftest import Command

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = ("epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32")


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: {name: {path: bytes}}."""

    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        return

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            name = json.loads(body)
            full = f"{name.get('organization') or 'me'}/{name['name']}"
            self.repositories.setdefault(full, {})
            self.answer({"url": f"https://huggingface.co/{full}", "name": full, "id": full})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": modes})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            self.answer(
                {
                    "commitOid": COMMIT,
                    "commitUrl": f"https://huggingface.co/{found[1]}/commit/{COMMIT}",
                    "success": True,
                }
            )
        else:
            self.missing("Unknown")

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            files = self.repositories.get(found[1])
            if files is None:
                return self.missing("RepoNotFound")
            if found[2] not in (None, "main", COMMIT):
                return self.missing("RevisionNotFound")
            listed = [{"rfilename": name} for name in files]
            return self.answer({"id": found[1], "sha": COMMIT, "private": True, "tags": [], "siblings": listed})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.repositories[found[1]].items()
            ]
            return self.answer(entries)
        if found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            data = self.repositories[found[1]].get(found[2])
            if data is None:
                return self.missing("EntryNotFound")
            return self.answer(data, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        return self.missing("Unknown")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HfApi, dict[str, dict[str, bytes]]]]:
    handler = type("OwnHub", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_test"), handler.repositories
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(photos: Path, command: Command, tmp_path: Path) -> Path:
    ended = command("train", "--data", photos, "--out", "run", *QUICK)
    assert ended.code == 0, ended.err
    (tmp_path / "run" / "stray.txt").write_text("private")
    return tmp_path / "run"


@pytest.mark.slow
def test_pushed_and_pulled_gives_the_same(
    run: Path, api: tuple[HfApi, dict[str, dict[str, bytes]]], photos: Path, command: Command, tmp_path: Path
) -> None:
    client, repositories = api
    address, files = hub.push(run, "me/birds", private=True, revision=None, licence="mit", api=client)
    assert COMMIT in address
    assert set(repositories["me/birds"]) == set(files) == {*hub.FILES, hub.CARD}
    everything = b"".join(repositories["me/birds"].values())
    assert str(tmp_path).encode() not in everything and b"stray" not in everything

    assert hub.pull("me/birds", tmp_path / "new", revision="main", api=client) == COMMIT
    assert {item.name for item in (tmp_path / "new").iterdir()} == {*hub.FILES, hub.CARD}
    assert not list(tmp_path.glob(".pull-*"))
    for folder in ("run", "new"):
        assert command("predict", folder, photos / "test", "--out", f"{folder}.csv", "--set", "workers=0").code == 0
    assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()
    ended = command("eval", "new", "--data", photos, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == json.loads((run / "metrics.json").read_text())["overall"]

    with pytest.raises(UserError, match="already exists"):
        hub.pull("me/birds", tmp_path / "new", revision=None, api=client)
    with pytest.raises(UserError, match="no such revision"):
        hub.pull("me/birds", tmp_path / "third", revision="v9", api=client)
    with pytest.raises(UserError, match="no repository 'me/cats'"):
        hub.pull("me/cats", tmp_path / "third", revision=None, api=client)
    data = bytearray(repositories["me/birds"]["model.safetensors"])
    data[-5] ^= 1
    repositories["me/birds"]["model.safetensors"] = bytes(data)
    with pytest.raises(UserError, match="damaged"):
        hub.pull("me/birds", tmp_path / "third", revision=None, api=client)
    assert not (tmp_path / "third").exists()


def test_the_card(run: Path, tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    hub.stage(run, tmp_path / "staged", "me/birds", "apache-2.0")
    card = (tmp_path / "staged" / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    header, text = card.split("---\n")[1:3]
    about = yaml.safe_load(header)
    assert about["license"] == "apache-2.0" and about["library_name"] == "liftplus"
    values = {item["name"]: item["value"] for item in about["model-index"][0]["results"][0]["metrics"]}
    assert values["overall"] == round(metrics["overall"], 2) and values["few"] == round(metrics["few"], 2)
    assert f"| {metrics['overall']:.1f} |" in text and "liftplus pull me/birds" in text
    assert "19 training images of 3 classes, 12 to 2 per class (0 many, 0 medium, 3 few)" in text
    assert "red square" in text and str(tmp_path) not in card


def test_paths_are_taken_out() -> None:
    given = {"data": {"source": "/home/me/x.zip"}, "backbone": {"weights": "w.pt"}, "l": ["C:\\a\\b.csv", "~/c", "a/b"]}
    expected = {"data": {"source": "x.zip"}, "backbone": {"weights": None}, "l": ["b.csv", "c", "a/b"]}
    assert hub.without_paths(given) == expected


def test_without_a_network_one_sentence(run: Path, tmp_path: Path) -> None:
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token="hf_test")
    with pytest.raises(UserError, match="cannot be reached"):
        hub.push(run, "me/birds", private=True, revision=None, licence=None, api=nowhere)
    with pytest.raises(UserError, match="cannot be reached"):
        hub.pull("me/birds", tmp_path / "new", revision=None, api=nowhere)
    with pytest.raises(UserError, match="OWNER/NAME"):
        hub.pull("me/bi rds", tmp_path / "new", revision=None, api=nowhere)
    assert not (tmp_path / "new").exists()
