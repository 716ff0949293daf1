"""docs/serve.md from top to bottom: every command and every block is run against a server."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from checked_pictures import drawn, jpeg
from doc_pages import blocks, lines, page, parse
from liftplus.commands.serve import serve

from ..serving.conftest import Started, photos, run

__all__ = ["photos", "run"]


@pytest.fixture
def started(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """A server beside the two pictures of the page."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / name).write_bytes(jpeg(drawn(number)))
    found = Started(run, tmp_path / "told")
    yield found
    found.end()


def test_every_request_of_the_page(started: Started) -> None:
    answers = []
    for line in lines("serve.md"):
        if line.startswith("curl "):
            here = line.replace("http://localhost:8000", started.url).replace("curl ", "curl -sSf ", 1)
            answers.append(subprocess.run(here, shell=True, capture_output=True, text=True, check=True).stdout)
    sent = [json.loads(answer)["pictures"] for answer in answers[:3]]
    assert [[one["name"] for one in found] for found in sent] == [["a.jpg"], ["a.jpg", "b.jpg"], ["picture 1"]]
    assert sent[0][0]["top"] == sent[2][0]["top"] and answers[3] == '{"status": "ready"}'
    (code,) = [content for language, content in blocks("serve.md") if language == "python"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code.replace("http://localhost:8000", started.url), "docs/serve.md", "exec"), {})
    told = said.getvalue().splitlines()
    assert [line.split()[0] for line in told] == ["a.jpg", "b.jpg"] and sent[0][0]["top"][0]["class"] in told[0]
    shown = set(re.findall(r"^\| `(liftplus_\w+)", page("serve.md"), re.MULTILINE))
    assert shown == {line.split()[2] for line in answers[-1].splitlines() if line.startswith("# TYPE")}
    (form,) = [json.loads(content) for language, content in blocks("serve.md") if language == "json"]
    (shape,) = form["pictures"]
    assert shape.keys() == sent[0][0].keys() and shape["top"][0].keys() == sent[0][0]["top"][0].keys()


def test_every_start_of_the_page_is_allowed() -> None:
    starts = [found for line in lines("serve.md") if (found := parse(line)) is not None]
    assert len(starts) >= 4 and {found.command for found in starts} == {"serve"}


def test_the_defaults_of_the_limits() -> None:
    told = dict(re.findall(r"^\| `--(max-\w+)` \| (\d+) \|", page("serve.md"), re.MULTILINE))
    names = serve.__code__.co_varnames[1 : serve.__code__.co_argcount]
    defaults = dict(zip(names, serve.__defaults__ or (), strict=True))
    assert told == {key.replace("_", "-"): f"{value:g}" for key, value in defaults.items() if key.startswith("max_")}
