"""Seconds of a fresh process: import, `--help`, and `liftplus train` stage by stage to the end of its first step.

    python benchmarks/startup.py --device cpu --repeats 5 --out startup.json

With `--base FOLDER`, the `src` of another checkout, both builds start in turn instead: `liftplus train` to the end of
its first step, and `liftplus predict RUN one.png` to its answer, on a run that the other build made. Beside the seconds
that pass, which other work on the machine stretches, it counts those of the CPU.

    git worktree add ../base COMMIT
    python benchmarks/startup.py --base ../base/src --device cpu --repeats 10 --out startup-base.json

`--without` names packages that the training process is told are not installed: those of the development environment
that a user need not have, and that timm and open_clip import where they find them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import harness
import liftplus
from liftplus.machine import runtime

STAGES = ("torch", "imports", "data", "model", "first step")
ABSENT = """
import sys
for absent in filter(None, sys.argv.pop(1).split(",")):
    sys.modules[absent] = None
"""
CHILD = f"""{ABSENT}
import gc, json, os, time
began = float(sys.argv.pop(1))
taken = {{}}
from liftplus import cli
gc.set_threshold(cli.GARBAGE_THRESHOLD)
def note(name):
    taken[name] = time.time() - began
import torch
note("torch")  # what any command line that trains waits for
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
sys.argv[0] = "liftplus"
cli.main()
"""
TO_FIRST_STEP = f"""{ABSENT}
import os
from importlib import import_module
from importlib.util import find_spec
from liftplus import cli
Step = import_module("liftplus.training.step" if find_spec("liftplus.training") else "liftplus.train").Step
plain = Step.__call__
def once(*args):
    plain(*args)
    os._exit(0)
Step.__call__ = once
sys.argv[0] = "liftplus"
cli.main()
"""
WHOLE = f"""{ABSENT}
from liftplus import cli
sys.argv[0] = "liftplus"
cli.main()
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--backbone", default="mini_clip")
    parser.add_argument("--without", nargs="*", default=("transformers", "wandb"))
    parser.add_argument("--base", type=Path, help="the `src` folder of another build, to compare this one with")
    return parser.parse_args(argv)


def run(code: Sequence[str], source: Path | None = None) -> str:
    """What a fresh Python prints, with liftplus from another folder where one is given."""
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    ended = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(code)[-200:]} failed: {ended.stderr[-2000:]}")
    return ended.stdout


def training(args: argparse.Namespace, device: str, folder: str, epochs: int = 1) -> list[str]:
    """The words of `liftplus train`."""
    given = ["train", "--data", args.data, "--backbone", args.backbone, "--out", folder]
    return [*given, f"train.epochs={epochs}", f"device={device}"]


def first_step(args: argparse.Namespace, device: str) -> dict[str, float]:
    """Seconds from the start of the process to the end of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        given = training(args, device, f"{folder}/run")
        out = run(["-c", CHILD, ",".join(args.without), str(time.time()), *given])
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


def cpu_seconds() -> float:
    """Seconds of the CPU that ended child processes took, those of the system included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both builds in turn: each command's wall and CPU seconds, and this build's share of the other's."""
    chosen = runtime.choose(args.device)
    device, absent = str(chosen.device), ",".join(args.without)
    builds = {"base": args.base.resolve(), "this": Path(liftplus.__file__).resolve().parents[1]}
    record = harness.about(args, chosen) | {"rows": []}
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        picture, finished = f"{folder}/one.png", f"{folder}/finished"
        Image.linear_gradient("L").convert("RGB").save(picture)
        run(["-c", WHOLE, absent, *training(args, device, finished, epochs=0)], builds["base"])
        answers = set()
        for number in range(args.repeats):
            for build, source in builds.items():
                for name, code, words in (
                    ("train", TO_FIRST_STEP, training(args, device, f"{folder}/{build}{number}")),
                    ("predict", WHOLE, ["predict", finished, picture, "--json", "--set", f"device={device}"]),
                ):
                    wall, cpu = time.perf_counter(), cpu_seconds()
                    out = run(["-c", code, absent, *words], source)
                    seconds = time.perf_counter() - wall, cpu_seconds() - cpu
                    taken.setdefault((name, build), []).append(seconds)
                    answers |= {out} if name == "predict" else set()
            record["rows"] = rows(taken)
            record["same_answers"] = len(answers) == 1
            harness.write(args.out, record)
    return record


def rows(taken: dict[tuple[str, str], list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """A row for each command and clock: both builds' seconds, and the ratio of their medians."""
    found = []
    for name in dict.fromkeys(name for name, _ in taken):
        for place, clock in enumerate(("wall", "cpu")):
            base, this = ([pair[place] for pair in taken[name, build]] for build in ("base", "this"))
            ratio = statistics.median(this) / statistics.median(base)
            seconds = {"base": harness.spread(base), "this": harness.spread(this)}
            found.append({"name": name, "clock": clock, "ratio": round(ratio, 3), "starts": len(this)} | seconds)
    return found


def main() -> None:
    args = parse()
    if args.base is None:
        for row in measure(args)["rows"]:
            print(f"{row['name']:16} {row['seconds']['median']:6.2f} s")
        return
    for row in compare(args)["rows"]:
        medians = f"{row['this']['median']:6.2f} s, {row['base']['median']:6.2f} s in the other build"
        print(f"{row['name']:8} {row['clock']:5} {medians}: {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
