"""How liftplus's step time grows with batch, image size, number of classes and tuned width.

    python benchmarks/scaling.py --device cpu --model mini --batch 32 --out benchmarks/results/cpu-scaling.json
    python benchmarks/scaling.py --device cuda --batch 128 --classes 1000 --width 32

One quantity varies at a time around --batch, --size, --classes and --width. `expected` is the time by useful FLOPs
alone, from the first entry's time: more classes should cost their matrix products and nothing more.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import contenders
import flops
import harness
from contenders import MODELS, Work
from liftplus.machine import runtime


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="*")
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument("--class-counts", type=int, nargs="*", default=(100, 1000, 8142))
    parser.add_argument("--widths", type=int, nargs="*", default=(4, 32, 256))
    return parser.parse_args(argv)


def variants(args: argparse.Namespace) -> Iterator[tuple[str, int, Work]]:
    """(what varies, its value, the work), grouped by what varies."""
    base = Work(args.model, args.batch, args.classes, args.width, args.size)
    side = args.size or contenders.catalogue_size(args.model)
    batches = args.batches if args.batches is not None else [max(1, args.batch // 4), args.batch // 2, args.batch]
    sizes = args.sizes if args.sizes is not None else [side // 2 // 16 * 16, side]
    axes = {"classes": args.class_counts, "batch": batches, "width": args.widths, "size": sizes}
    for axis, values in axes.items():
        for value in dict.fromkeys(values):
            yield axis, value, replace(base, **{axis: value})


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device, args.precision)
    base = Work(args.model, args.batch, args.classes, args.width, args.size)
    record = harness.about(args, chosen) | {"work": base.shown, "rows": []}
    record |= {"peak": harness.peak(args, chosen)}
    groups: dict[str, list[tuple[int, Work]]] = {}
    for axis, value, work in variants(args):
        groups.setdefault(axis, []).append((value, work))
    for axis, members in groups.items():
        record["rows"] += axis_rows(axis, members, args, chosen, record["peak"]["used"])
        harness.write(args.out, record)
        gc.collect()
        if chosen.device.type == "cuda":
            torch.cuda.empty_cache()
    return record


def axis_rows(
    axis: str, members: list[tuple[int, Work]], args: argparse.Namespace, chosen: runtime.Runtime, peak: float
) -> list[dict[str, Any]]:
    """The steps of one axis, timed in turns; times and useful FLOPs as multiples of the first."""
    runners = [
        harness.Contender(
            f"{axis} {value}",
            contenders.ours(work, chosen, contenders.batch_of(work, chosen.device)),
            work.batch,
            float(work.batch * flops.of_step(work)),
        )
        for value, work in members
    ]
    rows = harness.compare(
        runners,
        chosen.device,
        baseline=runners[0].name,
        peak=peak,
        **harness.timing(args, chosen.device),
    )
    first = rows[0]
    for row, (value, _) in zip(rows, members, strict=True):
        row |= {"axis": axis, "value": value}
        row["time_as_multiple"] = harness.significant(1 / row.pop("times_baseline")["median"])
        row["expected"] = harness.significant(row["useful_flops"] / first["useful_flops"])
    return rows


def main() -> None:
    record = measure(parse())
    for row in record["rows"]:
        seconds, times, expected = row["seconds"]["median"], row["time_as_multiple"], row["expected"]
        print(f"{row['name']:16} {1000 * seconds:9.1f} ms  x {times:.3f} (by FLOPs {expected:.3f})")


if __name__ == "__main__":
    main()
