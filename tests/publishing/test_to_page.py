"""The folder of `export --page`: what is in it, and what is refused before any work."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import liftplus
import web_runtime
from liftplus.calibration.promised import Promised
from liftplus.config import EvaluationConfig
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation import levels
from liftplus.machine.progress import Silent
from liftplus.publishing import preprocessing, to_page
from liftplus.publishing.onnxruntime_web import Runtime

from ..conftest import Command
from .test_preprocessing import graph_in_place_of_pytorch, noisy, run, small

__all__ = ["small"]

onnx = pytest.importorskip("onnx")
RUNTIME = Runtime(b"script" * 100, b"\0binary" * 100)
NAMES = ["</script><script>window.evil = 1</script>", "<!-- files -->\n<!-- answering -->", "雪豹", "half \udc9f"]
ABOUT = {"run": "<b>run", "classes": NAMES, "top_k": 4, "crops": 1, "note": "", "most_pixels": 9}


def held(folder: Path) -> dict[str, bytes]:
    """What the folder's scripts put into the page, in their order there."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'<script src="([\w.-]+)" defer></script>', page)
    assert {path.name for path in folder.glob("*.js")} == set(names)
    found: dict[str, bytes] = {}
    for name in names:
        for line in (folder / name).read_text(encoding="ascii").splitlines():
            put = re.fullmatch(r'packed\.(\w+)\.push\("([\w+/=]+)"\);', line)
            assert put is not None
            found[put[1]] = found.get(put[1], b"") + base64.b64decode(put[2], validate=True)
    return {name: gzip.decompress(packed) for name, packed in found.items()}


def test_the_folder_holds_graph_and_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of any size, each of which is base64 by itself, and in several files."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(noisy(40, 50).tobytes())
    (tmp_path / "model.onnx.json").write_text("{}")
    monkeypatch.setattr(to_page, "PART", 1000)
    (tmp_path / "page").mkdir()
    to_page.write(tmp_path / "page", graph, RUNTIME, ABOUT)
    expected = {"script": RUNTIME.script, "binary": RUNTIME.binary, "model": graph.read_bytes()}
    assert held(tmp_path / "page") == expected
    assert {path.name for path in tmp_path.joinpath("page").iterdir()} == {
        *("index.html", "onnxruntime-web.js", "model-1.js")
    }
    monkeypatch.setattr(to_page, "PARTS_OF_A_FILE", 4)
    to_page.write(tmp_path / "page", graph, RUNTIME, ABOUT)
    assert held(tmp_path / "page") == expected and (tmp_path / "page" / "model-2.js").is_file()


def test_the_page_loads_nothing_from_elsewhere_and_holds_any_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "page").mkdir()
    to_page.write(tmp_path / "page", tmp_path / "model.onnx", RUNTIME, ABOUT)
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    (given,) = re.findall(r"^const about = (.*);$", page, re.MULTILINE)
    assert json.loads(given) == ABOUT and "<" not in given
    assert "//" not in re.sub(r"/\*.*?\*/", "", page, flags=re.DOTALL) and "<!-- " not in page
    assert "connect-src" not in page and "default-src 'none'" in page
    assert len(re.findall("<script", page)) == 4 and page.count('id="drop"') == 1


def test_a_graph_that_no_browser_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its weights stand in a file of their own."""
    monkeypatch.setattr(to_page, "LARGEST_GRAPH", 1000)
    (tmp_path / "model.onnx").write_bytes(bytes(500))
    (tmp_path / "model.onnx.data").write_bytes(bytes(501))
    with pytest.raises(UserError, match=r"1,001 bytes.*at most 1,000.*liftplus serve"):
        to_page.write(tmp_path, tmp_path / "model.onnx", RUNTIME, ABOUT)


def test_export_writes_what_was_compared(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noisy(40, 61)).save(tmp_path / "a.png")
    sample = preprocessing.Sample(FolderStore(""), [str(tmp_path / "a.png")], "exact")
    out = tmp_path / "new" / "page"
    given = (sample, Silent(), EvaluationConfig(top_k=2, tte=False), RUNTIME)
    parity, likeness = to_page.export(small, out, *given)
    assert parity.holds and likeness.images == 1
    assert {path.name for path in out.iterdir()} == {
        *("index.html", "onnxruntime-web.js", "model-1.js", "onnxruntime-LICENSE.txt"),
        "onnxruntime-ThirdPartyNotices.txt",
    }
    assert [path.name for path in out.parent.iterdir()] == ["page"]
    (tmp_path / "again.onnx").write_bytes(held(out)["model"])
    assert run(tmp_path / "again.onnx", noisy(20, 30)[None])[3].tolist()[0] in small.class_names
    (given_about,) = re.findall(r"^const about = (.*);$", (out / "index.html").read_text(), re.MULTILINE)
    assert json.loads(given_about)["top_k"] == 2 and json.loads(given_about)["classes"] == list(small.class_names)
    assert json.loads(given_about)["levels"] == []
    with pytest.raises(UserError, match="already exists"):
        to_page.export(small, out, *given)
    monkeypatch.setattr(to_page, "LARGEST_GRAPH", 10)
    with pytest.raises(UserError, match="at most 10"):
        to_page.export(small, tmp_path / "other" / "page", *given)
    assert not list((tmp_path / "other").iterdir())


def test_the_page_has_the_names_of_groups(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noisy(40, 61)).save(tmp_path / "a.png")
    sample = preprocessing.Sample(FolderStore(""), [str(tmp_path / "a.png")], "exact")
    above = levels.above({"parent": dict(zip(small.class_ids, ("<b>", "y", "y"), strict=True))}, small.class_ids)
    given = (sample, Silent(), EvaluationConfig(tte=False), RUNTIME, Promised(levels=above, sure=0.7))
    to_page.export(small, tmp_path / "page", *given)
    (found,) = re.findall(r"^const about = (.*);$", (tmp_path / "page" / "index.html").read_text(), re.MULTILINE)
    assert json.loads(found)["levels"] == [{"name": "parent", "groups": ["<b>", "y"]}]
    assert json.loads(found)["sure"] == 0.7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "x.tgz", "--out", "m.onnx"), "--runtime is for the page alone"),
        (("--page", "--out", "m.onnx"), "--page writes a folder"),
        (("--page", "--to", "timm", "--out", "p"), "--page and --to timm are two exports"),
        (("--page", "--format", "onnx", "--out", "p"), "--page and --format onnx are two exports"),
        (("--page", "--out", "full"), "already exists"),
    ],
)
def test_refusals_come_before_any_work(words: tuple[str, ...], said: str, command: Command, tmp_path: Path) -> None:
    """The run is missing too, which would be told later."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    ended = command("export", "run", *words)
    assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err


def test_the_command(photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the runtime from disk, and says how large the folder is and how near its answers are."""
    liftplus.fit(photos, epochs=0, precision="fp32", cache=False, workers=0).save("run")
    graph_in_place_of_pytorch(monkeypatch)
    monkeypatch.setattr(preprocessing, "crops", lambda *_: CentreCrop(16))
    archive = web_runtime.made_up(monkeypatch, tmp_path)
    given = ("export", "run", "--page", "--one-crop", "--set", "evaluation.top_k=1")
    ended = command(*given, "--runtime", "gone.tgz", "--out", "p")
    assert ended.code == 2 and "'gone.tgz' cannot be read as the package" in ended.err
    ended = command(*given, "--runtime", archive, "--out", "one")
    assert ended.code == 0, ended.err
    assert re.match(r"one has \d+\.\d MB\. Open one/index\.html", ended.out) and "from predict's in fp32" in ended.out
    ended = command(*given, "--runtime", archive, "--out", "two", "--json", "--check", photos / "test" / "blue sky")
    told = json.loads(ended.out)
    assert told["folder"] == "two" and told["images"] == 2 and told["logits"]["images"] == 2 + told["made"]
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "two").iterdir())
    assert '"run": "run"' in (tmp_path / "two" / "index.html").read_text(encoding="utf-8")
