"""Channels-last against contiguous weights, fp32 against bf16, for a convolutional backbone on this machine.

    python benchmarks/memory_layout.py --backbone efficientnet_lite0 --size 96

Prints JSON: images a second forward, and forward with backward to all weights; median and spread of the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from liftplus import runtime
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat, after one to warm up."""
    work()
    out = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        out.append(time.perf_counter() - began)
    return out


def rates(backbone: Backbone, images: torch.Tensor, precision: str, repeats: int) -> dict[str, Any]:
    """Images a second, forward and with backward."""

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            backbone(images)

    def training() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = backbone(images)
        features.float().sum().backward()

    found = {"forward": timed(forward, repeats)}
    backbone.image.requires_grad_(True)
    found["training"] = timed(training, repeats)
    backbone.image.requires_grad_(False)
    return {
        name: {
            "images_per_second": round(len(images) / statistics.median(seconds), 1),
            "spread": round(len(images) / min(seconds) - len(images) / max(seconds), 1),
        }
        for name, seconds in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    backbone = catalogue.load(BackboneConfig(name=args.backbone, image_size=args.size))
    images, rows = torch.randn(args.batch, 3, args.size, args.size), []
    for layout in (torch.contiguous_format, torch.channels_last):
        backbone.to(memory_format=layout)
        for precision in ("fp32", "bf16"):
            found = rates(backbone, images, precision, args.repeats)
            rows.append({"layout": str(layout).removeprefix("torch."), "precision": precision} | found)
    about = vars(args) | {"warm_up": 1}
    print(json.dumps(about | {"versions": runtime.describe(runtime.choose("cpu")), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
