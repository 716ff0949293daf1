"""Peak memory of a training step by batch size, with and without gradient checkpointing.

    python benchmarks/memory.py --device cuda --model vit_l14_336 --batches 8 16 32 64 --limit-gib 16
    python benchmarks/memory.py --device cpu --model vit_b16 --batches 1 2 4 --out benchmarks/results/cpu-memory.json

On a GPU the peak is what PyTorch's allocator handed out, weights included. On a CPU it is the weights' own bytes and
what the profiler saw allocated on top during one step. `predicted` is what `liftplus info` tells, where it can.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

import contenders
import harness
from contenders import MODELS, Work
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.training.step import Step


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--tuner", default="adaptformer", help="full for full fine-tuning")
    parser.add_argument("--width", type=int, default=4, help="of adaptformer")
    parser.add_argument("--size", type=int)
    parser.add_argument("--limit-gib", type=float, help="tell whether each batch fits into so many GiB")
    return parser.parse_args(argv)


def one(work: Work, chosen: runtime.Runtime) -> dict[str, Any]:
    """Bytes at the peak of a step after the first, which makes the optimiser's state."""
    data = contenders.dataset(work.classes)
    model = contenders.our_model(work, chosen, data)
    step = Step(model, work.settings(chosen), data, chosen)
    batch = contenders.batch_of(work, chosen.device)
    step(batch)
    peak = harness.peak_memory(lambda: step(batch), chosen.device)
    if chosen.device.type == "cpu":
        held = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
        states = [t for state in step.optimiser.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        peak += sum(held.values()) + sum(t.numel() * t.element_size() for t in states)
    return {"peak_bytes": peak}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device, args.precision)
    width = args.width if args.tuner == "adaptformer" else None
    work = Work(args.model, 1, args.classes, width, args.size, args.tuner)
    record = harness.about(args, chosen) | {"work": work.shown, "rows": []}
    for checkpointing in (False, True):
        for batch in args.batches:
            now = replace(work, batch=batch, checkpointing=checkpointing)
            row: dict[str, Any] = {"batch": batch, "checkpointing": checkpointing}
            try:
                row |= one(now, chosen)
            except (torch.OutOfMemoryError, UserError) as error:
                row["error"] = str(error).splitlines()[0][:200]
            row |= compared(row.get("peak_bytes"), predicted(now, chosen))
            if args.limit_gib and "peak_bytes" in row:
                row["fits"] = row["peak_bytes"] <= args.limit_gib * 2**30
            record["rows"].append(row)
            harness.write(args.out, record)
            gc.collect()
            if chosen.device.type == "cuda":
                torch._dynamo.reset()  # compiled steps would keep their models
                torch.cuda.empty_cache()
    return record


def predicted(work: Work, chosen: runtime.Runtime) -> int | None:
    """What liftplus foretells for this step; None where it does not."""
    if find_spec("liftplus.training.memory") is None:
        return None
    need = import_module("liftplus.training.memory").training(
        work.settings(chosen), work.classes, chosen.device.type, chosen.precision
    )
    return int(need.tensors(work.batch))


def compared(peak: int | None, foretold: int | None) -> dict[str, Any]:
    """The prediction and its error as a share of the peak."""
    if foretold is None:
        return {}
    return {"predicted": foretold} | ({} if peak is None else {"off_by": harness.significant(foretold / peak - 1, 3)})


def main() -> None:
    record = measure(parse())
    for row in record["rows"]:
        kind = "checkpointing" if row["checkpointing"] else "plain"
        told = row.get("error") or f"{row['peak_bytes'] / 2**30:.2f} GiB"
        foretold = f", predicted {row['predicted'] / 2**30:.2f} GiB ({row['off_by']:+.1%})" if "off_by" in row else ""
        print(f"batch {row['batch']:4} {kind:14} {told}{foretold}")


if __name__ == "__main__":
    main()
