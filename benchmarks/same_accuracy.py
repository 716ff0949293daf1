"""Does the fast way end at the same accuracy? fp32, eager and Pillow against the defaults, seed by seed.

    python benchmarks/same_accuracy.py run --data openmoji_lt --out benchmarks/results/same_accuracy.jsonl
    python benchmarks/same_accuracy.py run --data ../shared/data/tinyimagenet200_lt100.zip --epochs 2 \\
        --train-images 8000 --test-images 2500 --out benchmarks/results/same_accuracy.jsonl
    python benchmarks/same_accuracy.py table --out benchmarks/results/same_accuracy.jsonl

LIFT+ on mini_clip with --seeds seeds an arm. `run` adds one line to the file after each run; given again, it makes only
the runs that are missing. Both arms see the same images, order and crops, so the difference is taken seed by seed. It
is within noise where its mean is below twice its standard error, or below the seeds' own standard deviation. --minutes
begins no run that would probably end later.

precision=auto is fp32 on a CPU without bf16 units. There the fast arm takes bf16 with the roundings of such units at
the speed of fp32 (rounded.py), unless --fast says otherwise; the rows say so.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import harness
from liftplus import config
from liftplus.data import sources
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import seeded
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import disk, runtime
from liftplus.training import assembly, loop
from rounded import RoundedProducts

ARMS = {
    "reference": ("precision=fp32", "data.decode=exact", "compile=off"),
    "fast": ("precision=auto", "data.decode=fast"),
}
GROUPS = ("overall", "many", "medium", "few")
SAME = ("data", "epochs", "train_images", "test_images", "backbone")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--backbone", default="mini_clip")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train-images", type=int, help="a random part of the training images, the tail's shape kept")
    parser.add_argument("--test-images", type=int, help="a random part of the test images")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--reference", nargs="*", help="key=value settings of the reference arm")
    parser.add_argument("--fast", nargs="*", help="key=value settings of the fast arm")
    return parser.parse_args(argv)


def part(split: Split, images: int | None, salt: int) -> Split:
    """A random part, the same in every run, in the split's order."""
    if images is None or images >= len(split):
        return split
    order = torch.randperm(len(split), generator=seeded(0, salt)).tolist()
    chosen = sorted(order[:images])
    # A class must not lose its last image.
    missing = set(split.labels) - {split.labels[i] for i in chosen}
    chosen = sorted([*chosen, *(next(i for i in order if split.labels[i] == label) for label in sorted(missing))])
    return Split([split.keys[i] for i in chosen], [split.labels[i] for i in chosen])


def smaller(data: DataSet, args: argparse.Namespace) -> DataSet:
    """The data set cut down as asked."""
    cut = {"train": part(data.splits["train"], args.train_images, 1)}
    cut["test"] = part(data.splits["test"], args.test_images, 2)
    return replace(data, splits=data.splits | cut)


@cache
def loaded(about: str) -> DataSet:
    """The data set of a `data` section: the same for all seeds."""
    return sources.load(DataConfig.model_validate_json(about))


def one(args: argparse.Namespace, arm: str, keys: Sequence[str], seed: int) -> dict[str, Any]:
    """Train and test once."""
    given = [f"seed={seed}", f"device={args.device}", *keys]
    given += [] if args.epochs is None else [f"train.epochs={args.epochs}"]
    settings = config.resolve(data=args.data, backbone=args.backbone, method="lift+", overrides=given)
    chosen = runtime.choose(settings.device, settings.precision, compiling=settings.compile)
    data = smaller(loaded(settings.data.model_dump_json()), args)
    split, rounds = data.splits["test"], emulates(chosen)
    with RoundedProducts() if rounds else nullcontext():  # type: ignore[no-untyped-call]
        model = assembly.build(settings, data, chosen)
        fitted = loop.fit(model, settings, data, chosen)
        found = predict(model, SplitReader(data.store, split), settings.evaluation, model.backbone.facts, chosen)
    metrics = score(found, split, data.counts())
    sizes = {"train_images": len(data.splits["train"]), "test_images": len(split)}
    return {
        "data": Path(args.data).name,
        "backbone": args.backbone,
        "arm": arm,
        "seed": seed,
        "epochs": settings.train.epochs,
        **sizes,
        "keys": list(keys),
        "tte": settings.evaluation.tte,
        "precision": chosen.precision + (" by rounding fp32 products" if rounds else ""),
        "seconds": round(fitted.seconds, 1),
        "losses": [harness.significant(loss, 6) for loss in fitted.losses],
        **{group: metrics.summary()[group] for group in GROUPS},
        "versions": runtime.describe(chosen),
    }


def run(args: argparse.Namespace) -> None:
    """All runs that the file does not hold yet, arms in turns, seed by seed."""
    began, longest = time.perf_counter(), 0.0
    arms = {"reference": args.reference, "fast": args.fast}
    defaults = {"reference": existing(ARMS["reference"]), "fast": fast_keys(args.device)}
    chosen = {arm: defaults[arm] if keys is None else keys for arm, keys in arms.items()}
    for keys in chosen.values():  # refuse a wrong key before long work starts
        config.resolve(data=args.data, backbone=args.backbone, overrides=keys)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.out.exists():
        disk.keep_lines(args.out, lambda row: "overall" in row)
    for seed in range(args.seeds):
        for arm, keys in chosen.items():
            if any(made(row, args, arm, keys, seed) for row in lines(args.out)):
                continue
            spent = time.perf_counter() - began
            if spent + longest > 60 * args.minutes:
                print(f"seed {seed}, {arm}: left out, no time is left", flush=True)
                continue
            start = time.perf_counter()
            row = one(args, arm, keys, seed)
            row["asked"] = {"train_images": args.train_images, "test_images": args.test_images, "epochs": args.epochs}
            longest = max(longest, time.perf_counter() - start)
            disk.append_json(args.out, row)
            print(f"{row['data']} seed {seed} {arm:9} {row['overall']:.2f} % in {row['seconds']:.0f} s", flush=True)


def existing(keys: Sequence[str]) -> list[str]:
    """Those settings that this version has: one without the key has only one way."""
    known = config.flat(config.RunConfig())
    return [key for key in keys if key.partition("=")[0] in known]


def emulates(chosen: runtime.Runtime) -> bool:
    """Whether bf16 has to be imitated here."""
    return chosen.device.type == "cpu" and chosen.precision == "bf16" and not harness.multiplies_bf16()


def fast_keys(device: str) -> list[str]:
    """The fast arm's settings, with bf16 also on a CPU that would not choose it."""
    keys, on_cpu = existing(ARMS["fast"]), runtime.choose(device).device.type == "cpu"
    return [key.replace("=auto", "=bf16") if on_cpu and key.startswith("precision") else key for key in keys]


def made(row: dict[str, Any], args: argparse.Namespace, arm: str, keys: Sequence[str], seed: int) -> bool:
    """Whether a line of the file is this run."""
    asked = {"train_images": args.train_images, "test_images": args.test_images, "epochs": args.epochs}
    wanted = {"data": Path(args.data).name, "arm": arm, "seed": seed, "keys": list(keys), "asked": asked}
    return all(row.get(key) == value for key, value in (wanted | {"backbone": args.backbone}).items())


def lines(path: Path) -> list[dict[str, Any]]:
    """The runs so far."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each data set and group of classes: both arms, the paired difference and the verdict."""
    out = []
    for where in dict.fromkeys(tuple(row[key] for key in SAME) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in SAME) == where]
        arms = {arm: {row["seed"]: row for row in same if row["arm"] == arm} for arm in ARMS}
        seeds = sorted(arms["reference"].keys() & arms["fast"].keys())
        if len(seeds) < 2:
            continue
        for group in GROUPS:
            pair = [[arms[arm][seed][group] for seed in seeds] for arm in ARMS]
            if None in (*pair[0], *pair[1]):
                continue
            out.append({"group": group, "seeds": len(seeds), **dict(zip(SAME, where, strict=True)), **judged(*pair)})
    return out


def judged(reference: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """Means, standard deviations, the paired difference with its standard error, and whether it is within noise."""
    differences = [b - a for a, b in zip(reference, fast, strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    noise = math.sqrt((statistics.variance(reference) + statistics.variance(fast)) / 2)
    return {
        "reference": {"mean": round(statistics.mean(reference), 2), "sd": round(statistics.stdev(reference), 2)},
        "fast": {"mean": round(statistics.mean(fast), 2), "sd": round(statistics.stdev(fast), 2)},
        "difference": round(mean, 2),
        "standard_error": round(error, 2),
        "verdict": "within noise" if abs(mean) <= max(2 * error, noise) else "differs",
    }


def main() -> None:
    args = parse()
    if args.what == "run":
        run(args)
    for row in summary(lines(args.out)):
        a, b = row["reference"], row["fast"]
        print(
            f"{row['data']:28} {row['group']:8} {a['mean']:6.2f} ± {a['sd']:.2f}  {b['mean']:6.2f} ± {b['sd']:.2f}  "
            f"{row['difference']:+.2f} ± {row['standard_error']:.2f}  {row['verdict']} ({row['seeds']} seeds)"
        )


if __name__ == "__main__":
    main()
