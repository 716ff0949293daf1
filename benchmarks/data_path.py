"""Milliseconds a picture and core: Pillow's path against the fast one, interleaved in one run, and how pixels differ.

    python benchmarks/data_path.py --data ../shared/data/imagenet_sample_100.zip --out benchmarks/results/data_path.json

A view is what a loader worker does for one picture: read, decode, crop, resize. One thread. `usual` is Pillow's path as
the papers' code and most others have it, where the worker also makes float32 of the pixels and normalises them
(torchvision's ToTensor and Normalize); `exact` and `fast` leave that to the device. `stages` splits the fast path;
`difference` is the mean over a picture's pixels in steps of 255, over all pictures and of the worst one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import normalize

import harness
from liftplus.data.config import DataConfig
from liftplus.data.images import decode
from liftplus.data.loader import FixedView, TrainView
from liftplus.data.pictures import Decode, picture
from liftplus.data.sources import load
from liftplus.data.stores import ByteStore
from liftplus.data.transforms import MDA, CentreCrop, FiveCrops, LiftAugment
from liftplus.machine import disk, runtime

SIZE, EPOCHS = 224, 5
HALF = (0.5, 0.5, 0.5)
View = tuple[TrainView | FixedView, int]
"""A transform and the epoch in which it is used."""


def views() -> dict[str, View]:
    """MDA at three points of its schedule, LIFT's augmentation, one crop, and what five crops are cut from."""
    mda = TrainView(MDA(), SIZE, "bicubic", EPOCHS, seed=0)
    return {
        "mda_start": (mda, 0),
        "mda_middle": (mda, EPOCHS // 2),
        "mda_end": (mda, EPOCHS - 1),
        "lift": (TrainView(LiftAugment(), SIZE, "bicubic", EPOCHS, seed=0), 0),
        "centre_crop": (FixedView(CentreCrop(SIZE).picture), 0),
        "five_crops": (FixedView(FiveCrops(SIZE).picture), 0),
    }


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process, which others on the machine hardly change."""
    began = time.process_time()
    work()
    return time.process_time() - began


def passes(store: ByteStore, keys: list[str], view: View, how: Decode, usual: bool = False) -> None:
    """Every picture once."""
    transform, epoch = view
    for index, key in enumerate(keys):
        pixels = transform(picture(store.read(key), key, how), epoch, index)
        if usual:
            normalize(pixels.float().div(255), HALF, HALF, inplace=True)


def spread(times: list[float], count: int) -> dict[str, float]:
    """Median and range in milliseconds a picture."""
    shown = {"median": statistics.median(times), "least": min(times), "most": max(times)}
    return {key: round(1e3 * value / count, 3) for key, value in shown.items()}


def compare(store: ByteStore, keys: list[str], view: View, warm_up: int, repeats: int) -> dict[str, Any]:
    """All paths in turn, and how many times as long as the fast one the others take in each turn."""
    ways: dict[str, Decode] = {"usual": "exact", "exact": "exact", "fast": "fast"}
    work = {name: partial(passes, store, keys, view, how, name == "usual") for name, how in ways.items()}
    for one in [*work.values()] * warm_up:
        one()
    times: dict[str, list[float]] = {how: [] for how in work}
    for _ in range(repeats):
        for how, one in work.items():
            times[how].append(seconds(one))
    found = {f"ms_{name}": spread(one, len(keys)) for name, one in times.items()}
    for name in ("usual", "exact"):
        ratios = [slow / fast for slow, fast in zip(times[name], times["fast"], strict=True)]
        found[f"{name}_to_fast"] = {"median": round(statistics.median(ratios), 3), "least": round(min(ratios), 3)}
    return found | {"difference": difference(store, keys, view)}


def difference(store: ByteStore, keys: list[str], view: View) -> dict[str, float]:
    """Mean absolute difference of the pixels."""
    transform, epoch = view
    means, largest = [], 0.0
    for index, key in enumerate(keys):
        data = store.read(key)
        exact, fast = (transform(picture(data, key, how), epoch, index).int() for how in ("exact", "fast"))
        gap = (exact - fast).abs()
        means.append(float(gap.float().mean()))
        largest = max(largest, float(gap.max()))
    return {
        "mean": round(statistics.mean(means), 5),
        "worst_picture": round(max(means), 5),
        "largest_of_a_pixel": largest,
    }


def stages(store: ByteStore, keys: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Reading alone, decoding all of it (no resize), and both with the resize to 224; whole pictures."""
    held = [store.read(key) for key in keys]

    def whole(how: Decode, resize: bool) -> None:
        for data, key in zip(held, keys, strict=True):
            found = picture(data, key, how)
            found.cut((0, 0, *found.size), (SIZE, SIZE) if resize else found.size, "bicubic")

    work: dict[str, Callable[[], object]] = {
        "read": lambda: [store.read(key) for key in keys],
        "decode_exact": lambda: [decode(data, key) for data, key in zip(held, keys, strict=True)],
        "decode_fast": partial(whole, "fast", False),
        "decode_and_resize_exact": partial(whole, "exact", True),
        "decode_and_resize_fast": partial(whole, "fast", True),
    }
    return {name: spread([seconds(one) for _ in range(repeats + 1)][1:], len(keys)) for name, one in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pictures to read: any data that liftplus reads")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file; stdout if not given")
    parser.set_defaults(cpu_time=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(DataConfig(source=args.data), for_testing=True)
    assert isinstance(dataset.store, ByteStore)
    store, keys = dataset.store, list(dataset.splits["test"].keys)[: args.pictures]
    found = harness.about(args, runtime.choose("cpu", "fp32"))
    found["views"] = {name: compare(store, keys, view, args.warm_up, args.repeats) for name, view in views().items()}
    found["stages"] = stages(store, keys, args.repeats)
    if args.out is None:
        print(json.dumps(found, indent=2))
    else:
        disk.write_json(args.out, found)


if __name__ == "__main__":
    main()
