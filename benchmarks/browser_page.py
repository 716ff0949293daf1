"""The folder of `liftplus export --page` in headless Chromium against `predict`: size, times, probabilities.

    python benchmarks/browser_page.py --shared ../shared/data --out benchmarks/results/browser-page.json

A run is made on 17 kinds of clothes and exported by the command. The page is opened from disk in a new profile, some
times; the time to the first answer is from the start of the navigation to the answer for one photograph, which is given
as soon as the page is loaded. Then it answers photographs one by one, and so does `predict` in fp32 with
data.decode=exact. CPU seconds are those of all of Chromium's processes, so they say more on a machine that is in use
(Linux).
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import harness
import liftplus
from liftplus.machine import runtime
from liftplus.publishing import onnxruntime_web
from onnx_pictures import photographs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import browser

EXACT: dict[str, Any] = {"precision": "fp32", "decode": "exact", "workers": 0, "device": "cpu"}
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "mini_clip, 1 crop": ("mini_clip", False, {}),
    "mini_clip, 5 crops": ("mini_clip", True, {}),
    "EfficientNet-Lite0, 1 crop, 224 px": ("efficientnet_lite0", False, {"backbone.image_size": 224}),
}
"""Backbone, whether five crops are taken, and further settings."""
ASK = """
const [data, done] = arguments;
const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
const began = performance.now();
answer(new File([bytes], "picture")).then((found) => done([found.top, performance.now() - began, performance.now()]));
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="where the zipped photographs are")
    parser.add_argument("--pictures", type=int, default=100)
    parser.set_defaults(repeats=3, warm_up=0)
    return parser.parse_args(argv)


def chromium_version() -> str:
    """As Chromium itself says it, such as 120.0.6099.224."""
    return subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def cpu_seconds(above: int) -> float:
    """Of all processes that a process has started, and of those that they have (Linux)."""
    tick, parents, spent = os.sysconf("SC_CLK_TCK"), {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15])) / tick
    family = {above}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(pid, 0.0) for pid in family)


def exported(backbone: str, five: bool, settings: dict[str, Any], shared: Path, folder: Path) -> tuple[Path, Path]:
    """A run and its page."""
    run, page = folder / "run", folder / "page"
    own = {"epochs": 0, "cache": False, "tte": five, **EXACT, **settings}
    liftplus.fit(shared / "clothing17_160.zip", backbone, "linear_probe", **own).save(run)
    command = [sys.executable, "-m", "liftplus", "export", str(run), "--page", "--out", str(page)]
    subprocess.run(command, check=True)
    return run, page


def sizes(page: Path) -> dict[str, int]:
    """Bytes of the folder by what they are."""
    kinds = {"model": "model-*.js", "runtime": "onnxruntime-web.js", "licences": "*.txt", "page": "*.html"}
    found = {kind: sum(path.stat().st_size for path in page.glob(form)) for kind, form in kinds.items()}
    return found | {"all": sum(path.stat().st_size for path in page.iterdir())}


def answered(page: Path, files: Sequence[str], profile: Path) -> dict[str, Any]:
    """What the page answers in a new profile: entries of each file, and seconds."""
    texts = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
    with browser.chromium(profile) as driver:
        driver.set_script_timeout(600)
        before = cpu_seconds(driver.service.process.pid)
        driver.get((page / "index.html").as_uri())
        found = [driver.execute_async_script(ASK, texts[0])]
        first = {"wall": found[0][2] / 1000, "cpu": cpu_seconds(driver.service.process.pid) - before}
        before = cpu_seconds(driver.service.process.pid)
        found += [driver.execute_async_script(ASK, text) for text in texts[1:]]
        spent = cpu_seconds(driver.service.process.pid) - before
    further = [milliseconds / 1000 for _, milliseconds, _ in found[1:]]
    each = {"wall": statistics.median(further), "cpu": spent / len(further)} if further else {}
    return {"tops": [top for top, _, _ in found], "first": first, "each": each}


def measured(name: str, args: argparse.Namespace, files: Sequence[str], folder: Path) -> dict[str, Any]:
    """A row of the table."""
    backbone, five, settings = CASES[name]
    folder.mkdir()
    run, page = exported(backbone, five, settings, args.shared, folder)
    turns = [answered(page, files[:1], folder / f"profile{turn}") for turn in range(args.repeats)]
    whole = answered(page, files, folder / "profile")
    found = liftplus.load(run, **EXACT).predict(list(files), tte=five, top_k=17)
    gaps = []
    for top, names, chances in zip(whole["tops"], found.names, found.probabilities, strict=True):
        own = dict(zip(names, chances, strict=True))
        gaps.append(max(abs(entry["probability"] - float(own[entry["class"]])) for entry in top))
    same = [top[0]["class"] == names[0] for top, names in zip(whole["tops"], found.names, strict=True)]
    firsts = [turn["first"] for turn in turns]
    return {
        "name": name,
        "bytes": sizes(page),
        "first_answer": {clock: harness.spread([first[clock] for first in firsts]) for clock in ("wall", "cpu")},
        "each": {clock: harness.significant(second) for clock, second in whole["each"].items()},
        "pictures": len(files),
        "same_class": float(np.mean(same)),
        "largest": harness.significant(max(gaps)),
    }


def main() -> None:
    args = parse()
    record = harness.about(args, runtime.choose("cpu", "fp32"))
    record["versions"] |= {"onnxruntime-web": onnxruntime_web.VERSION, "chromium": chromium_version()}
    record["rows"] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = photographs(args.shared / "imagenet_sample_100.zip", "sample", folder / "photos")[: args.pictures]
        for number, case in enumerate(CASES):
            record["rows"].append(measured(case, args, files, folder / str(number)))
            print(record["rows"][-1], flush=True)
            harness.write(args.out, record)


if __name__ == "__main__":
    main()
