"""Evaluation with one crop and with five: liftplus against plain loops over the same resident crops.

    python benchmarks/evaluation.py --device cpu --out benchmarks/results/cpu-evaluation.json
    python benchmarks/evaluation.py --device cuda --batch 128 --images 2048 --classes 1000 --width 32

liftplus runs its own `evaluate.predict`; only its loader is stood in for by one that keeps the batches on the device,
so that no picture is decoded while the clock runs. Images a second count pictures, not crops.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import contenders
import flops
import harness
from contenders import MODELS, Work
from liftplus import evaluate, runtime
from liftplus.data.dataset import DataSet
from liftplus.data.loader import FixedView, Loader
from liftplus.data.transforms import Evaluation
from liftplus.evaluate import Normalise, Reading

BASELINE = "plain fp32 loop"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, help="pictures of one call; by default one batch, on a GPU sixteen")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--size", type=int)
    parser.add_argument("--crops", type=int, nargs="+", choices=(1, 5), default=(1, 5))
    return parser.parse_args(argv)


def resident(device: torch.device) -> Callable[..., Any]:
    """A loader that reads its pictures once and then gives them from the device's memory."""
    kept: list[Any] = []

    def moved(batch: Any) -> Any:
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
        return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items()})

    class Resident:
        def __init__(self, *args: Any, **options: Any) -> None:
            if not kept:
                kept.extend(moved(batch) for batch in Loader(*args, **options).epoch())

        def __len__(self) -> int:
            return len(kept)

        def epoch(self, *_where: int) -> Iterator[Any]:
            return iter(kept)

    return Resident


def ours(work: Work, chosen: runtime.Runtime, data: DataSet, evaluation: Evaluation) -> Callable[[], object]:
    model, loader = contenders.our_model(work, chosen, data), resident(chosen.device)
    reading = Reading(data.store, data.splits["test"], workers=0)

    def work_once() -> object:
        with mock.patch.object(evaluate, "Loader", loader):
            return evaluate.predict(model, reading, evaluation, model.backbone.facts, chosen)

    return work_once


def plain(
    work: Work, device: torch.device, data: DataSet, evaluation: Evaluation, dtype: torch.dtype | None = None
) -> Callable[[], object]:
    """No gradients, mean logits over the crops, the best five classes: the loop that one writes first."""
    model = contenders.plain_classifier(work, device)
    normalise = Normalise(model.backbone.facts).to(device)
    view = FixedView(evaluate.crops(evaluation, model.backbone.facts))
    loader = Loader(data.store, data.splits["test"], view, batch_size=work.batch, workers=0)
    batches = [batch.images.to(device) for batch in loader.epoch()]

    @torch.no_grad()
    def work_once() -> object:
        found = []
        for images in batches:
            with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
                logits = model(normalise(images.flatten(0, 1)))
            mean = logits.float().unflatten(0, images.shape[:2]).mean(1)
            found.append(mean.softmax(-1).topk(min(5, work.classes)).indices.cpu())
        return torch.cat(found)

    return work_once


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device, args.precision)
    device, gpu = chosen.device, chosen.device.type == "cuda"
    work = Work(args.model, args.batch, args.classes, args.width, args.size)
    images = args.images or args.batch * (16 if gpu else 1)
    data, a_crop = contenders.dataset(args.classes, images), flops.of_forward(work)
    record = harness.about(args, chosen) | {"work": work.shown | {"images": images}}
    record |= {"peak": harness.peak(args, chosen), "rows": []}
    for crops in args.crops:
        evaluation = Evaluation(tte=crops == 5, batch_size=args.batch)
        useful = float(images * crops * a_crop)
        runners = [
            harness.Contender("liftplus", ours(work, chosen, data, evaluation), images, useful),
            harness.Contender(BASELINE, plain(work, device, data, evaluation), images, useful),
        ]
        if gpu:
            half = plain(work, device, data, evaluation, torch.float16)
            runners.append(harness.Contender("plain fp16 autocast loop", half, images, useful))
        with harness.Undisturbed() as machine:
            rows = harness.compare(
                runners,
                device,
                baseline=BASELINE,
                peak=record["peak"]["used"],
                **harness.timing(args, device, calls=1),
            )
        record["cpu_share"] = min(machine.share, record.get("cpu_share", math.inf))
        record["rows"] += [{"crops": crops} | row for row in rows]
        harness.write(args.out, record)
    return record


def main() -> None:
    args = parse()
    record = measure(args)
    for crops in args.crops:
        print(f"{crops} crop{'s' if crops > 1 else ''}")
        harness.show([row for row in record["rows"] if row["crops"] == crops])


if __name__ == "__main__":
    main()
