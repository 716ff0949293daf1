"""Tuners against full fine-tuning on real photographs with ImageNet weights, on CPU: clothing17, EfficientNet-Lite0.

    python benchmarks/clothing_study.py search --data clothing17_160.zip --rows benchmarks/results/clothing.jsonl
    python benchmarks/clothing_study.py test --data clothing17_160.zip --rows benchmarks/results/clothing.jsonl
    python benchmarks/clothing_study.py table --rows benchmarks/results/clothing.jsonl

`search` trains every method at several learning rates with a seed that `test` does not use and measures validation
only. `test` trains each at its best rate with three seeds and measures the test split once, with one crop and with
five. Both append one line a run, leave out runs whose line is there, and may run side by side (--part 0/2, 1/2).
All methods share start (class means), head (cosine), loss (logit-adjusted), crops (MDA) and epochs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import runtime
from liftplus.runs import opening
from liftplus.training import loop
from study import GROUPS, Part, add_part, fill, read, spread

SHARED = ["image_size=96", "precision=fp32", "val_share=0.2", "head_init=class_mean", "workers=0", "tte=false"]
SEARCH_SEED, SEEDS = 1000, (0, 1, 2)

# Settings of each method and the learning rates to try; the first two train nothing.
METHODS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "class means, no training": (["tuner=none", "epochs=0"], (0.0,)),
    "logistic regression, no training": (["tuner=none", "epochs=0", "head_init=linear_probe"], (0.0,)),
    "head only": (["tuner=none"], (0.1, 0.3, 1.0)),
    "ssf": (["tuner=ssf"], (0.03, 0.1, 0.3)),
    "norm": (["tuner=norm"], (0.01, 0.03, 0.1)),
    "lora": (["tuner=lora", "tuner.lora.rank=4"], (0.01, 0.03, 0.1)),
    "conv_adapter": (["tuner=conv_adapter"], (0.01, 0.03, 0.1)),
    "full": (["tuner=full"], (0.003, 0.01, 0.03)),
}


def settings(data: str, method: str, lr: float, seed: int) -> config.RunConfig:
    """One run's configuration."""
    given = [*SHARED, *METHODS[method][0], f"seed={seed}", *([f"lr={lr}"] if lr else [])]
    return config.resolve(data=data, backbone="efficientnet_lite0", overrides=given)


def planned(stage: str, rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """The runs of a stage: method, learning rate, seed."""
    for method, (_, rates) in METHODS.items():
        if stage == "search":
            yield from ((method, lr, SEARCH_SEED) for lr in rates)
        else:
            yield from ((method, best_rate(method, rows), seed) for seed in SEEDS)


def best_rate(method: str, rows: list[dict[str, Any]]) -> float:
    """The learning rate with the best mean class accuracy on validation."""
    found = [row for row in rows if row["stage"] == "search" and row["method"] == method]
    if len(found) < len(METHODS[method][1]):
        raise SystemExit(f"The search of {method!r} is not finished.")
    return float(max(found, key=lambda row: row["one_crop"]["mean_class"])["lr"])


def run(stage: str, data: str, rows: Path, part: Part) -> None:
    """Every run of a stage whose line is not there yet."""
    keys = [
        {"stage": stage, "method": method, "lr": lr, "seed": seed} for method, lr, seed in planned(stage, read(rows))
    ]
    fill(rows, keys, partial(one, data=data), part)


def one(key: dict[str, Any], data: str) -> dict[str, Any]:
    """One run: trained, then measured on its stage's split."""
    chosen = settings(data, key["method"], key["lr"], key["seed"])
    session = opening.Session(chosen, runtime.choose(chosen.device, chosen.precision))
    dataset = session.data()
    model = session.start(dataset)[1]
    seconds = loop.fit(model, chosen, dataset, session.runtime).seconds if chosen.train.epochs else 0.0
    searching = key["stage"] == "search"
    split = dataset.splits["val" if searching else "test"]
    line = {"seconds": round(seconds, 1), "parameters": model.count()}
    for name, tte in (("one_crop", False),) if searching else (("one_crop", False), ("five_crops", True)):
        evaluation = chosen.evaluation.model_copy(update={"tte": tte})
        found = predict(model, SplitReader(dataset.store, split), evaluation, model.backbone.facts, session.runtime)
        line[name] = score(found, split, dataset.counts()).summary()
    return line


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of each method's test accuracies."""
    head = ["method", "tuned", "lr", *GROUPS, "overall, five crops", "training, s"]
    lines = [head, ["---"] * len(head)]
    for method in METHODS:
        same = [row for row in rows if row["stage"] == "test" and row["method"] == method]
        if not same:
            continue
        cells = [method, f"{same[0]['parameters']['tuned']:,}", f"{same[0]['lr']:g}"]
        cells += [spread([row["one_crop"][group] for row in same]) for group in GROUPS]
        cells += [spread([row["five_crops"]["overall"] for row in same])]
        lines.append([*cells, f"{statistics.mean(row['seconds'] for row in same):.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "test", "table"))
    parser.add_argument("--data", help="clothing17_160.zip")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, one a run")
    add_part(parser)
    args = parser.parse_args()
    if args.what == "table":
        print(table(read(args.rows)))
        return
    run(args.what, args.data, args.rows, args.part)


if __name__ == "__main__":
    main()
