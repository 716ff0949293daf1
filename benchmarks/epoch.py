"""Whole epochs from JPEGs: images a second, and the share of time spent waiting for data.

    python benchmarks/epoch.py --device cuda --batch 128 --width 32 --out benchmarks/results/gpu-epoch.json
    python benchmarks/epoch.py --device cpu --model mini --batch 64 --images 512

Without --data a folder of 256-pixel JPEGs is made, of noise at all scales so that they are as large as photographs
(about 30 kB). Epoch 1 warms up, epoch 2 runs undisturbed, in epoch 3 the device is waited for before each batch is
asked for, so that whatever time then passes is waiting for data. The first batch of the epoch, when the loader's queue
is empty, counts apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import contenders
import harness
from contenders import MODELS, Work
from liftplus.data import sources
from liftplus.data.config import DataConfig
from liftplus.data.loader import Batch, Loader
from liftplus.machine import runtime
from liftplus.training import loop


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit_b16")
    parser.add_argument("--data", help="folder, archive or name; by default JPEGs made for the purpose")
    parser.add_argument("--images", type=int, default=12800, help="training images to make")
    parser.add_argument("--distinct", type=int, default=800, help="different ones among them; the rest are links")
    parser.add_argument("--classes", type=int, default=50, help="among which they are dealt out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keys", nargs="*", default=(), help="further key=value settings of the run")
    return parser.parse_args(argv)


def picture(generator: np.random.Generator, side: int = 256) -> Image.Image:
    """Noise at every scale, each octave half as strong as the one before: smooth areas, edges and grain."""
    total = np.zeros((side, side, 3), np.float32)
    for octave in range(2, 9):
        points = 2**octave
        layer = generator.normal(0, 70 / 1.7 ** (octave - 2), (points, points, 3)).clip(-127, 127) + 128
        grown = Image.fromarray(layer.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float32) - 128
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def make_jpegs(root: Path, images: int, distinct: int, classes: int) -> Path:
    """Class folders root/train/cNNN of JPEGs; all beyond `distinct` are links to earlier ones."""
    generator = np.random.default_rng(0)
    made: list[Path] = []
    for index in range(images):
        folder = root / "train" / f"c{index % classes:03}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{index}.jpg"
        if len(made) < distinct:
            picture(generator).save(path, quality=90)
            made.append(path)
        else:
            os.link(made[index % distinct], path)
    return root


def watched(device: torch.device) -> tuple[type[Loader], dict[int, dict[str, float]]]:
    """A loader that notes, epoch by epoch, its seconds, the waiting for the first batch and for all later ones."""
    notes: dict[int, dict[str, float]] = {}

    class Watched(Loader):
        def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
            note = notes[epoch] = {"first": 0.0, "later": 0.0, "seconds": 0.0, "steps": 0}
            harness.settle(device)
            start = time.perf_counter()
            batches = super().epoch(epoch, first)
            while True:
                if epoch == 2:
                    harness.settle(device)
                began = time.perf_counter()
                batch = next(batches, None)
                note["later" if note["steps"] else "first"] += time.perf_counter() - began
                if batch is None:
                    break
                note["steps"] += 1
                yield batch
            harness.settle(device)
            note["seconds"] = time.perf_counter() - start

    return Watched, notes


def epochs(args: argparse.Namespace, chosen: runtime.Runtime, source: str) -> dict[str, Any]:
    """Three epochs of `train.fit` on the source."""
    data = sources.load(DataConfig(source=source))
    extra = ["train.epochs=3", *([f"train.workers={args.workers}"] if args.workers is not None else []), *args.keys]
    work = Work(args.model, args.batch, data.num_classes, args.width, extra=tuple(extra))
    model = contenders.our_model(work, chosen, data)
    loader, notes = watched(chosen.device)
    with mock.patch.object(loop, "Loader", loader):
        loop.fit(model, work.settings(chosen), data, chosen)
    images, plain, waiting = len(data.splits["train"]), notes[1], notes[2]
    later = waiting["seconds"] - waiting["first"]
    return {
        "name": "epoch",
        "images": images,
        "steps": int(plain["steps"]),
        "images_per_second": harness.significant(images / plain["seconds"]),
        "seconds": harness.significant(plain["seconds"]),
        "waiting_share": harness.significant(waiting["later"] / later, 3),
        "first_batch_seconds": harness.significant(waiting["first"], 3),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    chosen = runtime.choose(args.device, args.precision)
    record = harness.about(args, chosen) | {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.data is None:
            source = make_jpegs(root / "jpegs", args.images, args.distinct, args.classes)
            sizes = [path.stat().st_size for path in sorted(source.rglob("*.jpg"))[:100]]
            record["bytes_a_jpeg"] = round(sum(sizes) / len(sizes))
        record["rows"].append(epochs(args, chosen, args.data or str(source)))
        harness.write(args.out, record)
    return record


def main() -> None:
    for row in measure(parse())["rows"]:
        print(row)


if __name__ == "__main__":
    main()
