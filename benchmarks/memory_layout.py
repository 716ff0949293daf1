"""Channels-last against contiguous weights, fp32 against bf16, for a convolutional backbone on this machine.

    python benchmarks/memory_layout.py --backbone efficientnet_lite0 --size 96 --out layouts.json

Forward, and forward with backward to all weights, in turns. bf16 is left out on a CPU that has no units for it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch

import harness
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.machine import runtime

BASELINE = "contiguous fp32"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    return parser.parse_args(argv)


def forward(backbone: Backbone, images: torch.Tensor, chosen: runtime.Runtime) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> object:
        with chosen.autocast():
            return backbone(images)

    return work


def training(backbone: Backbone, images: torch.Tensor, chosen: runtime.Runtime) -> Callable[[], object]:
    backbone.image.requires_grad_(True)

    def work() -> None:
        with chosen.autocast():
            features = backbone(images)
        features.float().sum().backward()

    return work


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = runtime.choose(args.device).device
    backbone = catalogue.load(BackboneConfig(name=args.backbone, image_size=args.size)).to(device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    precisions = ["fp32", *(["bf16"] if device.type == "cuda" or harness.multiplies_bf16() else [])]
    record = harness.about(args, runtime.choose(args.device)) | {"rows": []}
    for kind, make in (("forward", forward), ("training", training)):
        runners = [
            harness.Contender(
                f"{name} {precision}",
                make(copy.deepcopy(backbone).to(memory_format=layout), images, runtime.Runtime(device, precision)),
                args.batch,
            )
            for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last))
            for precision in precisions
        ]
        rows = harness.compare(runners, device, baseline=BASELINE, **harness.timing(args, device))
        record["rows"] += [{"kind": kind} | row for row in rows]
        harness.write(args.out, record)
    return record


def main() -> None:
    record = measure(parse())
    for kind in ("forward", "training"):
        print(kind)
        harness.show([row for row in record["rows"] if row["kind"] == kind])


if __name__ == "__main__":
    main()
