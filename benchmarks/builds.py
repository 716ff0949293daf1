"""Training steps and tests of this build, of another one and of the plain fp32 loop, each in a process of its own.

    python benchmarks/builds.py --base ../other-checkout --device cpu --out benchmarks/results/cpu-builds.json

The processes take turns, and those that wait are idle. So what a build sets for its whole process counts for itself
alone. `--base` is a checkout with its own `src` and `benchmarks`; `--only` leaves contenders out. For CNNs give
--model timm/ARCH --tuner conv_adapter; then there is no plain loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import contenders
import harness
from liftplus.machine import runtime

ROOT = Path(__file__).resolve().parents[1]
BASE, COMPILED = "other build", f"{harness.OURS}, compile=on"
CHILD = """
import json, os, resource, sys, time
given = json.loads(sys.argv[1])
sys.path[:0] = [given["tree"] + "/benchmarks", given["tree"] + "/src"]
import torch
import contenders, evaluation
from liftplus import config
runtime = contenders.runtime
if given["threads"]:
    torch.set_num_threads(given["threads"])
contenders.MODELS.setdefault(given["model"], (given["model"], None))
plain = given["name"] == given["plain"]
device = torch.device(given["device"])
chosen = None if plain else runtime.choose(
    given["device"], given["precision"], compiling="on" if given["name"].endswith("compile=on") else "auto"
)
work = contenders.Work(given["model"], given["batch"], given["classes"], given["width"], given["size"], given["tuner"])
if given["what"] == "step":
    batch = contenders.batch_of(work, device)
    once = contenders.plain(work, batch) if plain else contenders.ours(work, chosen, batch)
else:
    data = contenders.dataset(work.classes, work.batch)
    settings = config.resolve(overrides=["tte=true", f"evaluation.batch_size={work.batch}"]).evaluation
    if plain:
        once = evaluation.plain(work, device, data, settings)
    else:
        once = evaluation.ours(work, chosen, data, settings)
for line in sys.stdin:
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    now = {"seconds": seconds, "faults": usage.ru_minflt - faults, "peak_bytes": usage.ru_maxrss * 1024}
    print("TURN", json.dumps(now | {"precision": "fp32" if plain else chosen.precision}), flush=True)
"""


class Runner:
    """A contender in its own process, which does its work once for each line that it is sent."""

    def __init__(self, name: str, tree: Path, args: argparse.Namespace, what: str) -> None:
        keys = ("model", "batch", "classes", "width", "size", "tuner", "device", "precision", "threads")
        given = {key: getattr(args, key) for key in keys} | {"what": what, "name": name, "tree": str(tree)}
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, "-c", CHILD, json.dumps(given | {"plain": harness.FP32})]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )
        self.turns: list[dict[str, Any]] = []
        self.started = 0.0

    def turn(self) -> None:
        """Do the work once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("TURN "):
                self.turns.append(json.loads(line.removeprefix("TURN ")))
                return
        raise RuntimeError(f"a contender ended with code {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace, what: str) -> list[dict[str, Any]]:
    """Rows of the contenders; ratios are taken turn by turn."""
    trees = {harness.OURS: ROOT, COMPILED: ROOT, BASE: args.base, harness.FP32: ROOT}
    wanted = [name for name in trees if name in args.only and trees[name] is not None]
    runners = {name: Runner(name, Path(trees[name]).resolve(), args, what) for name in wanted}
    try:
        for runner in runners.values():
            began = time.perf_counter()
            for _ in range(args.warm_up):
                runner.turn()
            runner.started = time.perf_counter() - began
            runner.turns.clear()
        began = time.perf_counter()
        for _ in range(args.repeats):
            for runner in runners.values():
                runner.turn()
            if time.perf_counter() - began > args.seconds:
                break
    finally:
        for runner in runners.values():
            runner.close()
    taken = {name: [turn["seconds"] for turn in runner.turns] for name, runner in runners.items()}
    rows = []
    for name, runner in runners.items():
        row: dict[str, Any] = {"what": what, "name": name, "turns": len(taken[name])}
        row["seconds_of_start_and_warm_up"] = harness.significant(runner.started)
        row |= {"precision": runner.turns[-1]["precision"], "seconds": harness.spread(taken[name])}
        row["images_per_second"] = harness.significant(args.batch / row["seconds"]["median"])
        row["page_faults"] = statistics.median(turn["faults"] for turn in runner.turns)
        row["peak_bytes"] = runner.turns[-1]["peak_bytes"]
        row["times"] = {other: harness.ratio(taken[other], taken[name]) for other in taken if other != name}
        rows.append(row)
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--base", type=Path, help="checkout of the other build")
    parser.add_argument("--what", nargs="+", choices=("step", "test"), default=["step", "test"])
    parser.add_argument("--only", nargs="+", default=[harness.OURS, BASE, harness.FP32])
    parser.add_argument("--model", default="vit_b16", help=f"{', '.join(contenders.MODELS)} or a backbone's name")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=4, help="the light module's bottleneck")
    parser.add_argument("--size", type=int)
    parser.add_argument("--tuner", default="adaptformer")
    parser.add_argument("--threads", type=int)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    chosen = runtime.choose(args.device, args.precision)
    args.device = str(chosen.device)
    record = harness.about(args, chosen) | {"rows": []}
    for what in args.what:
        record["rows"] += measure(args, what)
        harness.write(args.out, record)
    for row in record["rows"]:
        times = ", ".join(f"{ratio['median']:.3g} times {other}" for other, ratio in row["times"].items())
        print(f"{row['what']:5} {row['name']:16} {row['images_per_second']:>8.4g} images/s  {times}", flush=True)


if __name__ == "__main__":
    main()
