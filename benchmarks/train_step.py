"""One training step: liftplus, plain loops, timm with peft's LoRA, and full fine-tuning, side by side.

    python benchmarks/train_step.py --device cpu --out benchmarks/results/cpu-train_step.json
    python benchmarks/train_step.py --device cuda --batch 128 --classes 1000 --width 32

Each does the same work on one resident uint8 batch: normalise, forward, logit-adjusted loss, backward, SGD. Weights are
random, which changes no time. bf16 on a CPU without bf16 units is many times slower than fp32 and left out unless asked
for with --emulated. `times_baseline` compares with the plain fp32 loop, turn by turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

import contenders
import flops
import harness
from contenders import MODELS, Step, Work
from harness import FP16, FP32, GRAPHS, HALF, OURS, PEFT
from liftplus.machine import runtime


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=4, help="AdaptFormer's bottleneck r")
    parser.add_argument("--size", type=int)
    parser.add_argument("--emulated", action="store_true", help="bf16 also on a CPU that has no such units")
    parser.add_argument("--only", nargs="+", help="leave the other contenders out")
    return parser.parse_args(argv)


def ways(work: Work, chosen: runtime.Runtime, *, emulated: bool = False) -> dict[str, Callable[[], Step]]:
    """Every contender by name; each is built when it is called."""
    batch = contenders.batch_of(work, chosen.device)
    gpu = chosen.device.type == "cuda"
    half = torch.bfloat16
    out: dict[str, Callable[[], Step]] = {
        OURS: lambda: contenders.ours(work, chosen, batch),
        HALF: lambda: contenders.ours(replace(work, extra=("train.keep=0.5",)), chosen, batch),
        FP32: lambda: contenders.plain(work, batch),
    }
    if gpu:
        out[GRAPHS] = lambda: contenders.ours(work, replace(chosen, graphs=True), batch)
        out[FP16] = lambda: contenders.plain(work, batch, torch.float16)
        out["the same, attention not fused"] = lambda: contenders.plain(work, batch, torch.float16, fused=False)
    peft = find_spec("peft") is not None
    if peft and (gpu or emulated or harness.multiplies_bf16()):
        out[f"{PEFT}, bf16 autocast"] = lambda: contenders.peft_lora(work, batch, half)
    if peft and not gpu:
        out[f"{PEFT}, fp32"] = lambda: contenders.peft_lora(work, batch, None)
    name = "bf16 autocast" if gpu else "fp32"
    out[f"full fine-tuning, {name}"] = lambda: contenders.full(work, batch, half if gpu else None)
    return out


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device, args.precision)
    work = Work(args.model, args.batch, args.classes, args.width, args.size)
    record = harness.about(args, chosen) | {"work": work.shown, "peak": harness.peak(args, chosen)}
    chosen_ways = {
        name: make
        for name, make in ways(work, chosen, emulated=args.emulated).items()
        if not args.only or name in args.only
    }
    useful = args.batch * flops.of_step(work)
    runners = [
        # Useful FLOPs are those of the light step; for the others the number would mean something else.
        harness.Contender(name, make(), args.batch, useful if name in (OURS, GRAPHS, FP32) else None)
        for name, make in chosen_ways.items()
    ]
    with harness.Undisturbed() as machine:
        rows = harness.compare(
            runners,
            chosen.device,
            baseline=FP32,
            peak=record["peak"]["used"],
            **harness.timing(args, chosen.device),
        )
    return record | {"rows": rows, "cpu_share": machine.share}


def main() -> None:
    args = parse()
    record = measure(args)
    harness.write(args.out, record)
    harness.show(record["rows"])


if __name__ == "__main__":
    main()
