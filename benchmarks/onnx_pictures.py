"""The exported graph that takes decoded pictures against `predict`, on 1,000 real photographs, on CPU.

    python benchmarks/onnx_pictures.py --shared ../shared/data --cpu-time --out benchmarks/results/onnx-pictures.json

A run is made on 17 kinds of clothes and exported by `liftplus export --with-preprocessing`. The graph then answers
1,000 of the test photographs, and so does `predict` in three ways: as it is on this machine, in fp32, and in fp32 with
data.decode=exact. The first two of these are compared with each other too. The times are those of photographs of
another set, read and decoded too: as they are, and enlarged to 4000 x 3000. Both have one thread and one process, and
take turns. The runs are made side by side in processes of their own, so --cpu-time is of use.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

import harness
import liftplus
from liftplus.data.images import decode
from liftplus.machine import runtime

WAYS: dict[str, dict[str, Any]] = {
    "predict": {},
    "predict in fp32": {"precision": "fp32"},
    "predict in fp32, decode=exact": {"precision": "fp32", "decode": "exact"},
}
OWN = "no graph: predict and predict in fp32"
ONE: dict[str, Any] = {"workers": 0, "device": "cpu"}


@dataclass(frozen=True)
class Case:
    """A run that is exported.

    Attributes:
        crops: 1 or 5.
        kernel: of resizing.
        settings: how it is trained, beside the data.
    """

    backbone: str
    crops: int
    kernel: str
    method: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.backbone}, {self.crops} crop{'s' if self.crops > 1 else ''}, {self.kernel}"


CASES = [
    Case("mini_clip", 5, "bicubic", "lift+", {"epochs": 1}),
    Case("mini_clip", 1, "bilinear", "lift+", {"epochs": 1}),
    Case("efficientnet_lite0", 1, "bicubic", "linear_probe", {"epochs": 1, "backbone.image_size": 128}),
]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="where the zipped photographs are")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--whole", type=int, default=30, help="photographs that are timed as they are")
    parser.add_argument("--large", type=int, default=4, help="photographs enlarged to 4000 x 3000")
    parser.set_defaults(repeats=3, warm_up=1)
    return parser.parse_args(argv)


def photographs(archive: Path, part: str, folder: Path) -> list[str]:
    """The files of a part of a zip, written to a folder."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.startswith(f"{part}/") and not name.endswith("/")]
        opened.extractall(folder, names)
    return [str(folder / name) for name in sorted(names)]


def enlarged(files: Sequence[str], folder: Path) -> list[str]:
    """Copies of 12 million pixels."""
    folder.mkdir()
    made = []
    for number, file in enumerate(files):
        made.append(str(folder / f"{number}.jpg"))
        Image.open(file).convert("RGB").resize((4000, 3000)).save(made[-1], quality=90)
    return made


def exported(case: Case, shared: Path, check: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """A fitted run and the graph that the command wrote of it."""
    run, graph = folder / "run", folder / "model.onnx"
    settings = ONE | case.settings | {"tte": case.crops > 1, "backbone.interpolation": case.kernel}
    liftplus.fit(shared / "clothing17_160.zip", case.backbone, case.method, **settings).save(run)
    command = [sys.executable, "-m", "liftplus", "export", str(run), "--out", str(graph), "--with-preprocessing"]
    subprocess.run([*command, *(f"--check={file}" for file in check)], check=True)
    return run, graph


def answering(graph: Path) -> Callable[[str], NDArray[np.float32]]:
    """A function from a file to the graph's probabilities [C]; one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def answer(file: str) -> NDArray[np.float32]:
        pixels = np.asarray(decode(Path(file).read_bytes(), file))
        found: NDArray[np.float32] = session.run(["probabilities"], {"pictures": pixels[None]})[0][0]
        return found

    return answer


def answers(answer: Callable[[str], NDArray[np.float32]], files: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities [N, C], one picture at a time."""
    return np.stack([answer(file) for file in files])


def compared(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """How the probabilities [N, C] of the graph differ from those of `predict`."""
    apart = np.abs(found - expected).max(1)
    return {
        "pictures": len(found),
        "same_class": float((found.argmax(1) == expected.argmax(1)).mean()),
        "largest": harness.significant(float(apart.max())),
        "mean": harness.significant(float(apart.mean())),
    }


def measured(case: Case, args: argparse.Namespace, sets: dict[str, list[str]], folder: Path) -> list[dict[str, Any]]:
    """A row for each way of `predict`, and one of times for each set of large photographs."""
    folder.mkdir()
    files = sets["test"][: args.pictures]
    run, graph = exported(case, args.shared, files[:10], folder)
    answer = answering(graph)
    found = answers(answer, files)
    rows, answered = [], {}
    for way, settings in WAYS.items():
        model = liftplus.load(run, **ONE, **settings)
        precision = model.session.runtime.precision
        answered[way] = model.predict_proba(files)
        rows.append({"name": case.name, "way": way, "precision": precision} | compared(found, answered[way]))
        print(rows[-1], flush=True)
    own, exact, _ = answered.values()
    rows.append({"name": case.name, "way": OWN, "precision": rows[0]["precision"]} | compared(own, exact))
    model = liftplus.load(run, **ONE, precision="fp32")
    device = runtime.choose("cpu").device
    for name in ("as they are", "4000 x 3000"):
        large = sets[name]
        pair = [
            harness.Contender("graph", partial(answers, answer, large), len(large)),
            harness.Contender("predict", partial(model.predict, large), len(large)),
        ]
        taken = harness.interleaved(pair, device, **harness.timing(args, device))
        each = {key: harness.spread([second / len(large) for second in spent]) for key, spent in taken.items()}
        rows.append({"name": case.name, "times": name, "pictures": len(large), "seconds": each})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    args = parse()
    record = harness.about(args, runtime.choose("cpu", "fp32"))
    record["versions"]["onnxruntime"] = onnxruntime.__version__
    record["rows"] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = photographs(args.shared / "imagenet_sample_100.zip", "sample", folder / "whole")[: args.whole]
        sets = {
            "test": photographs(args.shared / "clothing17_160.zip", "test", folder / "test"),
            "as they are": whole,
            "4000 x 3000": enlarged(whole[: args.large], folder / "large"),
        }
        homes = [folder / str(number) for number in range(len(CASES))]
        with ProcessPoolExecutor(len(CASES), get_context("spawn")) as pool:
            for rows in pool.map(measured, CASES, repeat(args), repeat(sets), homes):
                record["rows"] += rows
                harness.write(args.out, record)


if __name__ == "__main__":
    main()
