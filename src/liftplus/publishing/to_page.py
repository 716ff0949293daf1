"""Export of a run as a folder with a page that answers in the browser: from a server of files, or opened from disk.

Browsers let a page that is opened from disk load scripts, but neither modules nor data. So the graph and its runtime
are classic scripts that hold them as text.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from liftplus.calibration.promised import Promised
from liftplus.config import EvaluationConfig
from liftplus.errors import UserError
from liftplus.machine.disk import refuse_existing, room_beside
from liftplus.machine.progress import Progress
from liftplus.publishing import preprocessing
from liftplus.publishing.export import Parity
from liftplus.publishing.onnxruntime_web import Runtime, licences
from liftplus.publishing.page import page
from liftplus.publishing.preprocessing import Likeness, Sample
from liftplus.training.checkpoint import Trained

PAGE = "index.html"
MOST_PIXELS = 50_000_000
"""The most pixels of a picture, as `liftplus serve` has it by default."""
LARGEST_GRAPH = 1 << 29
"""Bytes of a graph: WebAssembly has 4 GiB of memory, where a graph stands twice while it is read."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src blob: data:; base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do: it loads the folder's scripts and sends nothing."""
PART = 3 << 20
PARTS_OF_A_FILE = 16
"""Browsers limit the length of one text, and some hosts that of a file: 16 parts of 4 MiB in base64."""


def export(
    trained: Trained,
    out: Path,
    sample: Sample,
    progress: Progress,
    evaluation: EvaluationConfig,
    runtime: Runtime,
    promised: Promised | None = None,
) -> tuple[Parity, Likeness]:
    """Write the folder; what fails a comparison is not kept.

    Args:
        trained: on the CPU in fp32; its model is merged in place.
        out: a new folder.
        sample: what to compare on.
        evaluation: how pictures are cut, the prior, and how many classes are shown.
        runtime: what runs the graph in the browser.
        promised: what the page tells beside the best classes; None for probabilities without a temperature.

    Raises:
        UserError: as `preprocessing.export`, or the graph is too large for a browser.
    """
    out = out.absolute()
    refuse_existing(out)
    legal = licences()
    with room_beside(out) as above:
        graph = above / "model.onnx"
        compared = preprocessing.export(trained, graph, sample, progress, evaluation, promised)
        about = {
            "run": (trained.folder or out).absolute().name,
            "classes": list(trained.class_names),
            "top_k": min(evaluation.top_k, len(trained.class_names)),
            "crops": 5 if evaluation.tte else 1,
            **(promised or Promised()).levels_asked,
            "note": "Pictures do not leave this browser.",
            "most_pixels": MOST_PIXELS,
        }
        folder = above / "page"
        folder.mkdir()
        write(folder, graph, runtime, about)
        for name, text in legal.items():
            (folder / f"onnxruntime-{Path(name).stem}.txt").write_bytes(text)
        if out.exists():
            out.rmdir()  # it is empty; some systems do not rename onto a folder
        folder.rename(out)
    return compared


def write(folder: Path, graph: Path, runtime: Runtime, about: dict[str, Any]) -> None:
    """Write the page and its scripts into a folder.

    Args:
        graph: ONNX from pictures to probabilities, in one file.
        about: what `GET /classes` of `liftplus serve` answers, with `note`, `most_pixels`, and `levels` if asked for.

    Raises:
        UserError: the graph is too large for a browser.
    """
    size = sum(piece.stat().st_size for piece in graph.parent.glob(f"{graph.name}*") if piece.suffix != ".json")
    if size > LARGEST_GRAPH:
        raise UserError(
            f"The graph has {size:,} bytes, and a browser can run at most {LARGEST_GRAPH:,}. Use liftplus serve, or "
            "train with a smaller backbone."
        )
    model = list(_parts("model", graph.read_bytes()))
    scripts = {"onnxruntime-web.js": [*_parts("script", runtime.script), *_parts("binary", runtime.binary)]}
    for number, start in enumerate(range(0, len(model), PARTS_OF_A_FILE), start=1):
        scripts[f"model-{number}.js"] = model[start : start + PARTS_OF_A_FILE]
    for name, parts in scripts.items():
        (folder / name).write_text("".join(parts), encoding="ascii")
    text = files("liftplus.publishing").joinpath("answering.html").read_text(encoding="utf-8")
    # ASCII holds any name, also half of a surrogate pair.
    given = json.dumps(about).replace("<", "\\u003c")
    tags = "".join(f'<script src="{name}" defer></script>\n' for name in scripts)
    answering = text.replace("<!-- about -->", given, 1).replace("<!-- files -->\n", tags, 1)
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    (folder / PAGE).write_text(page(answering, head), encoding="utf-8")


def _parts(name: str, data: bytes) -> Iterator[str]:
    """Statements that put data into `packed` of the page, in parts; compressed, as WebAssembly shrinks to a quarter."""
    packed = gzip.compress(data, mtime=0)
    for start in range(0, len(packed), PART):
        yield f'packed.{name}.push("{base64.b64encode(packed[start : start + PART]).decode()}");\n'
