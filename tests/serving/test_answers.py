"""A server answers what `predict` answers for the same files, in each form of request."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import liftplus
from checked_pictures import drawn, jpeg

from .conftest import QUICK, Client, Start, Started


@pytest.fixture(scope="module")
def files(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNGs of the run's data, and JPEGs of several sizes."""
    folder = tmp_path_factory.mktemp("files")
    for number, size in enumerate(((90, 70), (300, 200), (64, 500))):
        (folder / f"{number}.jpg").write_bytes(jpeg(drawn(number, size)))
    return [*sorted((photos / "test").rglob("*.png"))[:4], *sorted(folder.iterdir())]


def same(answer: Any, model: liftplus.Model, files: list[Path]) -> None:
    expected = model.predict(files, top_k=3)
    assert [one["error"] for one in answer["pictures"]] == [None] * len(files)
    assert [one["name"] for one in answer["pictures"]] == [file.name for file in files]
    for one, names, chances in zip(answer["pictures"], expected.names, expected.probabilities, strict=True):
        assert [top["class"] for top in one["top"]] == list(names)
        assert [top["probability"] for top in one["top"]] == pytest.approx(chances.tolist(), abs=2e-5)


def test_every_form_gives_what_predict_gives(run: Path, files: list[Path], client: Client) -> None:
    model = liftplus.load(run, **QUICK)
    same(client.form([(file.name, file.read_bytes()) for file in files]).json, model, files)
    coded = [{"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()} for file in files]
    coded[0]["data"] = "data:image/png;base64," + coded[0]["data"]
    coded[1]["data"] = "\n".join(coded[1]["data"][k : k + 76] for k in range(0, len(coded[1]["data"]), 76))
    same(client.images(coded).json, model, files)
    for file in files:
        answer = client.picture(file.read_bytes())
        assert answer.status == 200 and answer.json["pictures"][0]["name"] == "picture 1"
        same({"pictures": [{**answer.json["pictures"][0], "name": file.name}]}, model, [file])


def test_options_of_predict(run: Path, start: Start, files: list[Path], tmp_path: Path) -> None:
    """One crop instead of five, another prior, other decoding: all as for predict. And it is open to other machines."""
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({"red square": 100, "green hill": 1, "blue sky": 1}))
    started = start("--one-crop", "--prior", counts, "--top-k", 2, "--set", "decode=exact", "--host", "0.0.0.0")
    settings = {"evaluation.prior": str(counts), "tte": False, "data.decode": "exact"}
    model = liftplus.load(run, **QUICK, **settings)
    answer = started.client.form([(file.name, file.read_bytes()) for file in files]).json
    assert {len(one["top"]) for one in answer["pictures"]} == {2}
    expected = model.predict(files, top_k=2)
    for one, names, chances in zip(answer["pictures"], expected.names, expected.probabilities, strict=True):
        assert [top["class"] for top in one["top"]] == list(names)
        assert [top["probability"] for top in one["top"]] == pytest.approx(chances.tolist(), abs=2e-5)
    plain = liftplus.load(run, **QUICK).predict(files, top_k=2)
    assert abs(plain.probabilities - expected.probabilities).max() > 0.01, "the options change nothing here"
    about = started.client.get("/classes").json
    assert about["crops"] == 1 and about["top_k"] == 2 and str(tmp_path) not in json.dumps(about)
    assert "Warning: whoever reaches 0.0.0.0 can use this server" in started.running.told
    assert started.client.get("/health", Host="any.example").status == 200
    started.running.send(2)  # Ctrl-C
    assert started.running.wait(30) == 0, started.running.told


def test_classes_health_and_metrics(run: Path, files: list[Path], client: Client) -> None:
    about = client.get("/classes").json
    assert about["classes"] == list(liftplus.load(run, **QUICK).class_names) and about["run"] == "run"
    assert (client.get("/health").status, client.get("/health").json) == (200, {"status": "ready"})
    before = counts(client)
    client.form([("a.jpg", files[-1].read_bytes()), ("b.jpg", b"")])
    client.picture(b"no picture")
    after = counts(client)
    gained = {key: after[key] - before.get(key, 0) for key in after}
    assert gained['requests_total{status="200"}'] == 1 and gained['requests_total{status="422"}'] == 1
    assert gained['pictures_total{result="answered"}'] == 1 and gained['pictures_total{result="unreadable"}'] == 2
    assert gained["batches_total"] == 1 and gained["request_seconds_count"] == 2
    assert gained['request_seconds_bucket{le="+Inf"}'] == 2 and after["waiting_requests"] == 0


def counts(client: Client) -> dict[str, float]:
    """The metrics, checked to be in Prometheus' text format."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found, described = {}, set()
    for line in answer.body.decode().splitlines():
        if line.startswith("# "):
            described.add(line.split()[2])
            continue
        name, value = line.rsplit(" ", 1)
        assert any(name.startswith(one) for one in described)
        found[name.removeprefix("liftplus_")] = float(value)
    return found


def test_curl_sends_files(files: list[Path], started: Started) -> None:
    """As the documentation has it; curl waits for leave to send bodies of over 1 MiB."""
    command = ["curl", "-sS", "-F", f"picture=@{files[4]}", "-F", f"picture=@{files[5]}", f"{started.url}/predict"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [one["name"] for one in json.loads(told)["pictures"]] == [files[4].name, files[5].name]
