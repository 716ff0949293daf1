"""Everything of issue 4's speed targets in one command, with a verdict a line.

    python benchmarks/all.py --device cuda --at-once --out benchmarks/results/gpu.json
    python benchmarks/all.py --device cpu --out benchmarks/results/cpu.json           about ten minutes on two cores
    python benchmarks/all.py --device cpu --small --out /tmp/small.json               the same with tiny models

Each stage is a process of its own, so that one that fails takes nothing along; results are written after every stage. A
stage that would begin after --minutes is left out and named. With --at-once, for a GPU of 64 GB or more, memory is
measured first while the timed stages do their compiling side by side; they are timed one by one after that, from the
compiler's cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import FP16, FP32, GRAPHS, OURS, PEFT
from liftplus.machine import runtime

HERE = Path(__file__).resolve().parent
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """One line of the targets.

    Attributes:
        line: the target in words.
        needed: the number to reach.
        measured: reads it from the results of all stages.
        at_most: whether smaller is better.
        aim: the number to hope for.
    """

    line: str
    needed: float
    measured: Callable[[Found], float]
    at_most: bool = False
    aim: float | None = None

    def judge(self, found: Found) -> dict[str, Any]:
        """The row of the verdict table."""
        row: dict[str, Any] = {"line": self.line, "needed": self.needed, "aim": self.aim, "at_most": self.at_most}
        try:
            value = self.measured(found)
        except (KeyError, StopIteration, TypeError):
            return row | {"measured": None, "verdict": "not measured"}
        good = value <= self.needed if self.at_most else value >= self.needed
        return row | {"measured": harness.significant(value), "verdict": "holds" if good else "falls short"}


def stages(gpu: bool, small: bool) -> dict[str, list[str]]:
    """Command lines by stage, the most important first."""
    if small:
        quick = ["--repeats", "2", "--warm-up", "1", "--calls", "1", "--model", "mini"]
        tiny = [*quick, "--classes", "10", "--width", "2"]
        out = {
            "step": ["train_step.py", *tiny, "--batch", "2"],
            "evaluation": ["evaluation.py", *tiny, "--batch", "2", "--batches", "2"],
            "memory": ["memory.py", *tiny, "--batches", "2", "--limit-gib", "6"],
            "step_large": ["train_step.py", *tiny, "--batch", "2", "--only", OURS],
            "step_small": ["train_step.py", *tiny, "--batch", "1", "--only", OURS],
            "memory_large": ["memory.py", *tiny, "--batches", "2", "--limit-gib", "16"],
            "scaling": ["scaling.py", *tiny, "--batch", "2", "--sizes", "32", "--class-counts", "10", "--widths", "2"],
        }
        epoch = ["--images", "40", "--distinct", "8", "--batch", "8", "--width", "2", "--workers", "1"]
        return out | {"epoch": ["epoch.py", "--model", "mini", *epoch]}
    if gpu:
        base, warm = ["--classes", "1000", "--width", "32"], ["--repeats", "5", "--warm-up", "5"]
        loops = [OURS, GRAPHS, FP32, FP16]
        few = ["--class-counts", "1000", "8142", "--batches", "32", "128", "--widths", "4", "32", "--sizes"]
        return {
            "step": ["train_step.py", *base, "--batch", "128", "--calls", "5", *warm],
            "evaluation": ["evaluation.py", *base, "--batch", "256", *warm, "--warm-up", "1", "--seconds", "35"],
            "memory": ["memory.py", *base, "--batches", "128"],
            "step_large": ["train_step.py", *base, "--model", "vit_l14", "--batch", "64", "--only", OURS, *warm],
            "step_small": ["train_step.py", *base, "--batch", "16", "--calls", "10", *warm, "--only", *loops],
            "epoch": ["epoch.py", *base, "--batch", "128", "--distinct", "200"],
            "memory_large": ["memory.py", *base, "--model", "vit_l14_336", "--batches", "32", "--limit-gib", "16"],
            "scaling": ["scaling.py", *base, "--batch", "128", "--repeats", "3", "--calls", "5", *few],
        }
    return {
        "step": ["train_step.py", "--repeats", "4", "--warm-up", "1", "--seconds", "170"],
        "evaluation": ["evaluation.py", "--batch", "4", "--repeats", "3", "--warm-up", "1"],
        "startup": ["startup.py", "--repeats", "3"],
        "epoch": [
            "epoch.py",
            "--model",
            "mini",
            "--batch",
            "64",
            "--images",
            "640",
            "--distinct",
            "320",
            "--width",
            "4",
        ],
        "memory": ["memory.py", "--batches", "1", "2", "4"],
        "scaling": ["scaling.py", "--model", "mini", "--batch", "32", "--repeats", "5"],
    }


def row(found: Found, stage: str, name: str, **also: Any) -> dict[str, Any]:
    """A stage's row by name and other values."""
    rows = found[stage]["rows"]
    return next(r for r in rows if r["name"].startswith(name) and all(r[k] == v for k, v in also.items()))


def speed(found: Found, stage: str, name: str, **also: Any) -> float:
    return float(row(found, stage, name, **also)["images_per_second"])


def times(found: Found, stage: str, name: str, other: str, **also: Any) -> float:
    """How many times faster one contender is than another, by their medians."""
    return speed(found, stage, name, **also) / speed(found, stage, other, **also)


def gigabytes(found: Found, stage: str, batch: int | None = None, checkpointing: bool | None = None) -> float:
    """The smallest peak among a memory stage's rows of this kind."""
    rows = [r for r in found[stage]["rows"] if "peak_bytes" in r and batch in (None, r["batch"])]
    peaks = [r["peak_bytes"] for r in rows if checkpointing in (None, r["checkpointing"])]
    if not peaks:
        raise KeyError(stage)
    return float(min(peaks) / 1e9)


GPU_LINES = [
    Verdict("training, ViT-B/16 224, C 1,000, r 32: images/s", 4000, lambda f: speed(f, "step", OURS), aim=6000),
    Verdict("evaluation with one crop: images/s", 9000, lambda f: speed(f, "evaluation", OURS, crops=1), aim=12000),
    Verdict("memory at batch 128: GB", 6, lambda f: gigabytes(f, "memory", checkpointing=False), at_most=True),
    Verdict("times a plain eager fp16-autocast loop", 4, lambda f: times(f, "step", OURS, FP16)),
    Verdict("training, ViT-L/14 224: images/s", 1000, lambda f: speed(f, "step_large", OURS)),
    Verdict(
        "share of the step waiting for data", 0.05, lambda f: row(f, "epoch", "epoch")["waiting_share"], at_most=True
    ),
    Verdict("ViT-L/14 336, batch 32: GB", 16, lambda f: gigabytes(f, "memory_large"), at_most=True),
]

CPU_LINES = [
    Verdict("training: times the plain fp32 loop", 3, lambda f: times(f, "step", OURS, FP32)),
    Verdict("training: times timm + peft LoRA", 1, lambda f: times(f, "step", OURS, PEFT), aim=1.3),
    Verdict(
        "evaluation with five crops: times the fp32 loop",
        3,
        lambda f: times(f, "evaluation", OURS, FP32, crops=5),
    ),
    Verdict("import liftplus: seconds", 1, lambda f: row(f, "startup", "import")["seconds"]["median"], at_most=True),
    Verdict("liftplus --help: seconds", 1, lambda f: row(f, "startup", "--help")["seconds"]["median"], at_most=True),
    Verdict(
        "train on openmoji_lt to its first step: seconds",
        6,
        lambda f: row(f, "startup", "first step")["seconds"]["median"],
        at_most=True,
    ),
]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="tiny models: whether everything runs, no speed")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no stage after so long")
    parser.add_argument("--only", nargs="+", help="these stages alone")
    parser.add_argument("--at-once", action="store_true", help="measure memory and compile side by side first")
    return parser.parse_args(argv)


def run(stage: str, command: list[str], device: str, seconds: float) -> dict[str, Any]:
    """One stage in a process of its own: its JSON, or why there is none."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{stage}.json"
        given = [sys.executable, str(HERE / command[0]), *command[1:], "--device", device, "--out", str(out)]
        try:
            ended = subprocess.run(given, capture_output=True, text=True, check=False, timeout=seconds)
            failed = None if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["?"])[-1]
        except subprocess.TimeoutExpired:
            failed = f"cut off after {seconds:.0f} s"
        took = round(time.perf_counter() - began, 1)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"rows": []}
    return found | {"took": took} | ({"failed": failed} if failed else {})


UNTIMED = ("memory", "memory_large")
COMPILED_ONCE = ("step", "evaluation", "step_large", "step_small")
"""Stages that compile what no other one has compiled; scaling, which compiles most, would keep the others waiting."""


def side_by_side(chosen: dict[str, list[str]], device: str, seconds: float) -> Found:
    """What the untimed stages found, while the others fill the compiler's cache."""
    shortest = ["--repeats", "1", "--warm-up", "0", "--calls", "1"]
    work = {stage: command for stage, command in chosen.items() if stage in UNTIMED}
    for stage in COMPILED_ONCE:
        if stage in chosen:
            only = ["--only", OURS, GRAPHS] if stage == "step" else []  # all of its loops would fill 80 GB
            work[stage] = [*chosen[stage], *shortest, *only]
    with ThreadPoolExecutor(len(work) or 1) as pool:
        ended = {stage: pool.submit(run, stage, command, device, seconds) for stage, command in work.items()}
    return {stage: one.result() for stage, one in ended.items() if stage in UNTIMED}


def main() -> None:
    args = parse()
    chosen = runtime.choose(args.device)
    gpu, began = chosen.device.type == "cuda", time.perf_counter()
    lines = GPU_LINES if gpu or args.small else CPU_LINES
    record = harness.about(args, chosen) | {"stages": {}, "verdicts": []}
    if importlib.util.find_spec("peft") is None:
        record["left_out"] = f"{PEFT}: peft is not installed"
    left = stages(gpu, args.small)
    left = {stage: command for stage, command in left.items() if not args.only or stage in args.only}

    def seconds_left() -> float:
        return 60 * args.minutes - (time.perf_counter() - began)

    def note(found: Found) -> None:
        record["stages"] |= found
        record["verdicts"] = [line.judge(record["stages"]) for line in lines]
        for line in record["verdicts"] if args.small else ():
            line["verdict"] = "no verdict" if line["measured"] is not None else "not measured"
        record["seconds"] = round(time.perf_counter() - began, 1)
        harness.write(args.out, record)

    if args.at_once:
        print("memory, and compiling for the other stages", flush=True)
        note(side_by_side(left, str(chosen.device), seconds_left()))
    for stage, command in left.items():
        if stage in record["stages"]:
            continue
        if seconds_left() < 10:
            note({stage: {"rows": [], "failed": "no time was left"}})
            continue
        print(f"{stage}: {' '.join(command)}", flush=True)
        note({stage: run(stage, command, str(chosen.device), seconds_left())})
    show(record)


def show(record: dict[str, Any]) -> None:
    """The verdict table, and what failed."""
    for line in record["verdicts"]:
        sign, aim = "<=" if line["at_most"] else ">=", f" (aim {line['aim']:g})" if line["aim"] else ""
        measured = "–" if line["measured"] is None else f"{line['measured']:g}"
        print(f"{line['verdict']:13} {measured:>10} {sign} {line['needed']:g}{aim}  {line['line']}")
    for stage, found in record["stages"].items():
        if "failed" in found:
            print(f"{stage} failed: {found['failed']}")


if __name__ == "__main__":
    main()
