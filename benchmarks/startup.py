"""Seconds of a fresh process: import, `--help`, and `liftplus train` stage by stage to the end of its first step.

    python benchmarks/startup.py --device cpu --repeats 5 --out benchmarks/results/cpu-startup.json

`--without` names packages that the training process is told are not installed: those of the development environment
that a user need not have, and that timm and open_clip import where they find them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import harness
from liftplus.machine import runtime

STAGES = ("torch and timm", "imports", "data", "model", "first step")
CHILD = """
import gc, json, os, sys, time
began = float(sys.argv[1])
taken = {}
for absent in filter(None, sys.argv[2].split(",")):
    sys.modules[absent] = None
from liftplus import cli
gc.set_threshold(cli.GARBAGE_THRESHOLD)
def note(name):
    taken[name] = time.time() - began
import torch, timm
note("torch and timm")  # what any command line that trains timm's models waits for
from liftplus.runs import execution, opening
from liftplus.training import step
note("imports")
def after(owner, attribute, name):
    plain = getattr(owner, attribute)
    def wrapped(*args, **options):
        result = plain(*args, **options)
        note(name)
        if name == "first step":
            print(json.dumps(taken), flush=True)
            os._exit(0)
        return result
    setattr(owner, attribute, wrapped)
after(opening.Session, "data", "data")
after(opening.Session, "start", "model")
after(step.Step, "__call__", "first step")
sys.argv = ["liftplus", *sys.argv[3:]]
cli.main()
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--backbone", default="mini_clip")
    parser.add_argument("--without", nargs="*", default=("transformers", "wandb"))
    return parser.parse_args(argv)


def run(code: Sequence[str]) -> str:
    """What a fresh Python prints."""
    ended = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(code)[-200:]} failed: {ended.stderr[-2000:]}")
    return ended.stdout


def first_step(args: argparse.Namespace, device: str) -> dict[str, float]:
    """Seconds from the start of the process to the end of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        keys = ["train.epochs=1", f"device={device}"]
        given = ["train", "--data", args.data, "--backbone", args.backbone, "--out", f"{folder}/run", *keys]
        out = run(["-c", CHILD, str(time.time()), ",".join(args.without), *given])
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device)
    record = harness.about(args, chosen) | {"rows": []}
    taken: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        for name, code in (("import liftplus", ["-c", "import liftplus"]), ("--help", ["-m", "liftplus", "--help"])):
            began = time.perf_counter()
            run(code)
            taken.setdefault(name, []).append(time.perf_counter() - began)
        for stage, seconds in first_step(args, str(chosen.device)).items():
            taken.setdefault(stage, []).append(seconds)
        record["rows"] = [{"name": name, "seconds": harness.spread(values)} for name, values in taken.items()]
        harness.write(args.out, record)
    return record


def main() -> None:
    for row in measure(parse())["rows"]:
        print(f"{row['name']:16} {row['seconds']['median']:6.2f} s")


if __name__ == "__main__":
    main()
