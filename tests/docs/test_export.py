"""docs/export.md and docs/moving-models.md from top to bottom: every block is run, where its runs exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import web_runtime
from liftplus.publishing import hub, onnxruntime_web

from ..conftest import Command, table_with_parents, write_folder

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS, MOVING = (
    re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for name in ("export.md", "moving-models.md")
)
QUICK = ("epochs=1", "train.batch_size=8", "workers=0", "device=cpu", "precision=fp32")


@pytest.mark.slow
def test_every_block(photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    (photos / "train" / "red_square").rename(photos / "train" / "fox")
    (photos / "test" / "red_square").rename(photos / "test" / "fox")
    others = write_folder(tmp_path / "others", {"before": (9, 8, 6), "val": (9, 8, 6)})
    (others / "val").rename(photos / "val")  # its pictures are none of the training split's
    (photos / "val" / "red_square").rename(photos / "val" / "fox")
    ended = command("train", "--data", photos, "--out", "runs/photos", "tuner=adaptformer", *QUICK)
    assert ended.code == 0, ended.err
    table = table_with_parents(write_folder(tmp_path / "animals", {"train": (2, 2, 2), "test": (1, 1, 1)}))
    ended = command("zeroshot", "--data", table, "--out", "runs/animals", "device=cpu", "precision=fp32", "workers=0")
    assert ended.code == 0, ended.err
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    image = Image.open(photos / "test" / "fox" / "0.png")
    image.save(tmp_path / "picture.jpg", quality=95)
    image.save(tmp_path / "pictures" / "0.png")
    ended = command("predict", "runs/photos", "picture.jpg", "--out", "one.json", "--top-k", "1")
    assert ended.code == 0, ended.err
    (best,) = json.loads((tmp_path / "one.json").read_text())[0]["top"]  # before the page calibrates the run
    (tmp_path / "counts.json").write_text('{"fox": 120, "blue sky": 3, "green hill": 5}')
    web_runtime.made_up(monkeypatch, tmp_path)  # tests/publishing/test_browser.py runs the real one
    monkeypatch.setattr(onnxruntime_web, "_archive", lambda _tell: tmp_path / onnxruntime_web.ARCHIVE)
    hubs: dict[str, Path] = {}

    def push(run: Path, repo_id: str, **_options: Any) -> tuple[str, list[str]]:
        (tmp_path / "hub").mkdir()
        hubs[repo_id] = tmp_path / "hub"
        return "somewhere", hub.stage(run, hubs[repo_id], repo_id, _options["licence"])

    def pull(repo_id: str, out: Path, **_options: Any) -> str:
        hubs[repo_id].rename(out)
        return "a commit"

    monkeypatch.setattr(hub, "push", push)  # tests/publishing/test_hub.py runs the real ones
    monkeypatch.setattr(hub, "pull", pull)
    seen = []
    for language, block in BLOCKS:
        if language == "python":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block, "docs/export.md", "exec"), {})
            seen.append(said.getvalue())
            continue
        assert language == "sh"
        for line in block.splitlines():
            words = shlex.split(line)
            assert words.pop(0) == "liftplus"
            ended = command(*words)
            assert ended.code == 0, (line, ended.err)
    outputs = json.loads((tmp_path / "promises.onnx.json").read_text())["outputs"]
    assert {"in_set", "unknown_score", "unknown"} <= outputs.keys()
    for folder in ("photos-page", "offline-page"):
        assert (tmp_path / folder / "index.html").is_file()
    # Of graphs that take crops or pictures, and of those with promises or levels.
    crops, pictures, promises, answered = seen
    assert "no level is sure" in answered or "parent" in answered or "leaf" in answered
    assert promises.startswith("[") and promises.split()[-1] in ("True", "False")
    for told in (crops, pictures):  # of the run's own five crops, which predict takes as well
        name, _, chance = told.strip().rpartition(" ")
        # The same pixels, or nearly; fp32 arithmetic differs in its order.
        assert name == best["class"] and float(chance) == pytest.approx(best["probability"], abs=1e-3)


@pytest.mark.slow
def test_every_block_on_moving(photos: Path, command: Command, tmp_path: Path) -> None:
    """But those of models that are not here; test_moving_families.py and test_lora_exchange.py run thin ones."""
    pytest.importorskip("transformers")
    from PIL import Image

    ended = command("train", "--data", photos, "--out", "runs/lora", "tuner=lora", *QUICK)
    assert ended.code == 0, ended.err
    shutil.copytree(tmp_path / "runs" / "lora", tmp_path / "runs" / "siglip")
    shutil.copytree(photos / "test", tmp_path / "new_pictures")
    Image.open(photos / "test" / "red_square" / "0.png").save(tmp_path / "picture.jpg", quality=95)
    seen = []
    for language, block in MOVING:
        if language == "python" and ("open_clip" in block or "peft" in block):
            continue
        if language == "python":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block, "docs/moving-models.md", "exec"), {})
            seen.append(said.getvalue().strip())
        for line in block.splitlines() if language == "sh" else ():
            if line.startswith("liftplus") and "open_clip" not in line and " hf/" not in line:
                ended = command(*shlex.split(line)[1:])
                assert ended.code == 0, (line, ended.err)
    ended = command("predict", "runs/lora", "picture.jpg", "--one-crop", "--out", "one.json", "--top-k", "1")
    (best,) = json.loads((tmp_path / "one.json").read_text())[0]["top"]
    assert seen == [best["class"]] * 2
