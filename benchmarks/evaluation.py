"""Evaluation with one crop and with five: liftplus against plain loops over the same resident crops.

    python benchmarks/evaluation.py --device cpu --out benchmarks/results/cpu-evaluation.json
    python benchmarks/evaluation.py --device cuda --batch 256 --classes 1000 --width 32

liftplus runs its own `evaluate.predict`; only its loader is stood in for by one that gives the first batch again and
again from the device's memory, so that no picture is decoded while the clock runs. Images a second count pictures, not
crops.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch

import contenders
import flops
import harness
from contenders import MODELS, Work
from harness import FP16, FP32, OURS
from liftplus.backbones.normalise import Normalise
from liftplus.config import EvaluationConfig
from liftplus.data.dataset import DataSet, Split, Store
from liftplus.data.loader import Batch, FixedView, Loader
from liftplus.evaluation import inference
from liftplus.evaluation.inference import SplitReader
from liftplus.machine import runtime


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, help="batches of one call; by default one, on a GPU eight")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--size", type=int)
    parser.add_argument("--crops", type=int, nargs="+", choices=(1, 5), default=(1, 5))
    return parser.parse_args(argv)


def first_batch(store: Store, split: Split, view: FixedView, size: int, device: torch.device) -> Batch:
    """The first pictures of a split on the device."""
    first = Split(split.keys[:size], split.labels[:size])
    batch = next(iter(Loader(store, first, view, batch_size=size, workers=0).epoch()))
    return batch.changed(lambda part: part.to(device))


def resident(device: torch.device) -> Callable[..., Any]:
    """A loader of batches that are on the device already."""
    kept: list[Batch] = []

    class Resident:
        def __init__(self, store: Store, split: Split, view: FixedView, batch_size: int, **_options: Any) -> None:
            if not kept:
                kept.extend([first_batch(store, split, view, batch_size, device)] * (len(split) // batch_size))

        def __len__(self) -> int:
            return len(kept)

        def epoch(self) -> Iterator[Batch]:
            return iter(kept)

    return Resident


def ours(work: Work, chosen: runtime.Runtime, data: DataSet, evaluation: EvaluationConfig) -> Callable[[], object]:
    model, loader = contenders.our_model(work, chosen, data), resident(chosen.device)
    reader = SplitReader(data.store, data.splits["test"], workers=0)

    def work_once() -> object:
        with mock.patch.object(inference, "Loader", loader):
            return inference.predict(model, reader, evaluation, model.backbone.facts, chosen)

    return work_once


def plain(
    work: Work, device: torch.device, data: DataSet, evaluation: EvaluationConfig, dtype: torch.dtype | None = None
) -> Callable[[], object]:
    """No gradients, mean logits over the crops, the best five classes: the loop that one writes first."""
    model = contenders.plain_classifier(work, device)
    normalise = Normalise(model.backbone.facts).to(device)
    view = FixedView(inference.crops(evaluation, model.backbone.facts))
    images = first_batch(data.store, data.splits["test"], view, work.batch, device).images
    batches = [images] * (len(data.splits["test"]) // work.batch)

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
    images = args.batch * (args.batches or (8 if gpu else 1))
    data, a_crop = contenders.dataset(args.classes, images), flops.of_forward(work)
    record = harness.about(args, chosen) | {"work": work.shown | {"images": images}}
    record |= {"peak": harness.peak(args, chosen), "rows": []}
    for crops in args.crops:
        evaluation = EvaluationConfig(tte=crops == 5, batch_size=args.batch)
        useful = float(images * crops * a_crop)
        runners = [
            harness.Contender(OURS, ours(work, chosen, data, evaluation), images, useful),
            harness.Contender(FP32, plain(work, device, data, evaluation), images, useful),
        ]
        if gpu:
            half = plain(work, device, data, evaluation, torch.float16)
            runners.append(harness.Contender(FP16, half, images, useful))
        with harness.Undisturbed() as machine:
            rows = harness.compare(
                runners,
                device,
                baseline=FP32,
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
