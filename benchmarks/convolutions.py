"""Training steps and test passes of convolutional backbones in each precision and memory layout, side by side.

    python benchmarks/convolutions.py --device cpu --out benchmarks/results/cpu-convolutions.json

A step is liftplus's own with conv_adapter. Weights are random. Contenders take turns in one process; bf16 is left out
on a CPU that has no units for it. Results are written after every backbone.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from typing import Any

import torch

import contenders
import harness
from liftplus.machine import runtime
from liftplus.training import step as training_step

BACKBONES = (
    "efficientnet_lite0",
    "timm/mobilenetv3_large_100.ra_in1k",
    "timm/efficientnet_b0.ra_in1k",
    "timm/convnext_tiny.fb_in22k",
    "timm/regnety_016.tv2_in1k",
    "timm/resnet50.a1_in1k",
    "timm/resnext50_32x4d.a1h_in1k",
)
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
BASELINE = "fp32 channels-last"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args(argv)


def ways(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, str, runtime.Runtime]]:
    """Name, layout and runtime of each contender, the baseline first."""
    precisions = ["fp32", *(["bf16"] if device.type == "cuda" or harness.multiplies_bf16() else [])]
    for layout in args.layouts:
        for precision in precisions:
            yield f"{precision} {layout}", layout, runtime.choose(args.device, precision)


def contender(kind: str, name: str, layout: str, chosen: runtime.Runtime, work: contenders.Work) -> harness.Contender:
    batch = contenders.batch_of(work, chosen.device)
    data = contenders.dataset(work.classes)
    model = contenders.our_model(work, chosen, data)
    model.to(memory_format=LAYOUTS[layout])
    if kind == "step":
        step = training_step.Step(model, work.settings(chosen), data, chosen)
        return harness.Contender(name, lambda: step(batch), work.batch)
    model.eval()

    @torch.no_grad()
    def test() -> object:
        with chosen.autocast():
            return model(batch.images.float())

    return harness.Contender(name, test, work.batch)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = runtime.choose(args.device).device
    record = harness.about(args, runtime.choose(args.device)) | {"rows": []}
    for backbone in args.backbones:
        contenders.MODELS.setdefault(backbone, (backbone, None))
        work = contenders.Work(backbone, args.batch, 100, 4, args.size, "conv_adapter")
        for kind in ("step", "test"):
            runners = [contender(kind, *way, work) for way in ways(args, device)]
            rows = harness.compare(runners, device, baseline=BASELINE, **harness.timing(args, device))
            record["rows"] += [{"backbone": backbone, "kind": kind} | row for row in rows]
            harness.write(args.out, record)
            print(backbone, kind)
            harness.show(rows)
            del runners
            gc.collect()
    return record


if __name__ == "__main__":
    measure(parse())
