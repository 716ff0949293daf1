"""Light against heavy tuning over imbalance and feature strength, on CPU: LIFT+ minus full+, all else equal.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/tuning_map.py search --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py test --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py table

Both methods have the same start, crops, loss and epochs, as recipe=auto chooses them; what is tuned differs, and the
rate. `search` tries rates for each backbone and method on the three sets of the middle imbalance, with a seed of its
own, and measures a fifth of the training pictures that is kept aside. One such part has 80 to 90 pictures, too few to
choose by; so the rate with the best mean over the three sets is used on all nine. Where it is at an end of what was
tried, the search goes on there. `test` trains with that rate and three seeds, and measures the test split once, with
one crop. The sets of an imbalance differ in their largest and smallest class, and have about the same number of
pictures.

The first two append one line a run to benchmarks/results/tuning_map.jsonl and leave out those whose line is there;
processes that run side by side take a backbone each (--only ViT, --only Lite0).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liftplus.training import loop
from recipe_study import Pair, cut
from start_study import SHOWN, SIZES
from study import accuracies, fill, prepared, read, spread

ROWS = Path("benchmarks/results/tuning_map.jsonl")
SEEDS, SEARCH_SEED = (0, 1, 2), 1000
METHODS = {"lift+": 3.0, "full+": 4.0}
"""Methods, and the ratio of two rates next to each other in the search."""
TRIED = {"lift+": (-1, 0, 1), "full+": (0, 1, 2, 3)}
"""Powers of that ratio which are tried first, times the rate of recipe=auto."""
FARTHEST = 2
"""Most powers by which the search goes on beyond these."""

CUTS = {10: (60, 6), 50: (100, 2), 200: (200, 1)}
"""Training pictures of the largest and the smallest class by imbalance, for 17 or 20 classes; twice that for ten."""
MIDDLE = 50
DATA = {
    "17 clothes": ("clothing17_160", 17, 40),
    "10 animals and vehicles": ("cifar10_lt100", 10, 100),
    "20 objects": ("tinyimagenet200_lt100", 20, 25),
}


def pairs() -> dict[str, Pair]:
    """Every set of pictures with every backbone, by name; the cheap backbones first."""
    out = {}
    for backbone, size in reversed(SIZES.items()):
        for imbalance, (most, least) in CUTS.items():
            for data, (source, classes, tests) in DATA.items():
                twice = 2 if classes == 10 else 1
                pair = Pair(source, backbone, size, classes, twice * most, twice * least, tests)
                out[f"{data}, {imbalance}, {SHOWN[backbone]}"] = pair
    return out


PAIRS = pairs()
SEARCHED = {
    backbone: [name for name, pair in PAIRS.items() if pair.backbone == backbone and f", {MIDDLE}, " in name]
    for backbone in SIZES
}
"""The sets on which a backbone's rates are searched."""


def searched(rows: list[dict[str, Any]], backbone: str, method: str) -> dict[int, float]:
    """Accuracy (mean over classes, kept aside) by power of the rate: the mean over the sets, where all are measured.

    A run that failed has 0.
    """
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if (row["stage"], row["method"]) == ("search", method) and row["pair"] in SEARCHED[backbone]:
            found.setdefault(row["power"], {})[row["pair"]] = row["after"]["mean_class"] if "after" in row else 0.0
    return {
        power: statistics.mean(values.values())
        for power, values in found.items()
        if len(values) == len(SEARCHED[backbone])
    }


def best_power(found: dict[int, float]) -> int:
    """The power with the best accuracy; of equal ones the lowest."""
    return max(found, key=lambda power: (found[power], -power))


def next_power(method: str, found: dict[int, float]) -> int | None:
    """The rate to try next; None where the best one has neighbours on both sides, or the search has gone far enough."""
    left = [power for power in TRIED[method] if power not in found]
    if left:
        return left[0]
    best = best_power(found)
    low, high = min(TRIED[method]) - FARTHEST, max(TRIED[method]) + FARTHEST
    for power in (best - 1, best + 1):
        if power not in found and low <= power <= high:
            return power
    return None


def planned(stage: str, rows: Path, only: str) -> Iterator[dict[str, Any]]:
    """The runs of a stage, as the rows so far ask for them."""
    backbones = [backbone for backbone in SEARCHED if only in SHOWN[backbone]]
    if stage == "search":
        for backbone, method in itertools.product(backbones, METHODS):
            while (power := next_power(method, searched(read(rows), backbone, method))) is not None:
                for pair in SEARCHED[backbone]:
                    yield {"stage": stage, "pair": pair, "method": method, "seed": SEARCH_SEED, "power": power}
        return
    for seed, (pair, about), method in itertools.product(SEEDS, PAIRS.items(), METHODS):
        found = searched(read(rows), about.backbone, method)
        if about.backbone in backbones and found and next_power(method, found) is None:
            yield {"stage": stage, "pair": pair, "method": method, "seed": seed, "power": best_power(found)}


def one(pair: Pair, data: str, key: dict[str, Any], vit: Path) -> dict[str, Any]:
    """One run: measured, trained and measured again."""
    settings = [f"method={key['method']}", f"seed={key['seed']}", "recipe=auto"]
    settings += ["val_share=0.2"] if key["stage"] == "search" else []
    session, dataset = prepared(pair, data, settings, vit)
    split = "val" if key["stage"] == "search" else "test"
    session, model = session.start(dataset)
    before = accuracies(session, model, dataset, split)
    lr = session.config.train.lr * METHODS[key["method"]] ** key["power"]
    train = session.config.train.model_copy(update={"lr": lr})
    chosen = session.config.model_copy(update={"train": train})
    line = {"lr": lr, "counts": sorted(dataset.counts(), reverse=True), "before": before}
    clock = time.perf_counter()
    try:
        fitted = loop.fit(model, chosen, dataset, session.runtime)
    except Exception as error:  # a rate at which the loss diverges is a result of the search
        return line | {"failed": str(error)[:200]}
    line |= {"seconds": round(time.perf_counter() - clock, 1), "losses": fitted.losses, "notes": fitted.notes}
    return line | {"after": accuracies(session, model, dataset, split)}


def run(stage: str, given: argparse.Namespace) -> None:
    """Every run of a stage whose line is not there yet."""
    with tempfile.TemporaryDirectory() as folder:

        def line(key: dict[str, Any]) -> dict[str, Any]:
            pair = PAIRS[key["pair"]]
            return one(pair, cut(pair, given.shared, Path(folder)), key, given.vit)

        fill(given.rows, planned(stage, given.rows, given.only), line)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean over classes on the test split in percent; mean and standard deviation over seeds that both methods have."""
    yield "| pair | seeds | start | LIFT+ | full+ | LIFT+ minus full+ | rates |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for pair in PAIRS:
        by_seed = [
            {row["seed"]: row for row in rows if (row["stage"], row["pair"], row["method"]) == ("test", pair, method)}
            for method in METHODS
        ]
        both = sorted(by_seed[0].keys() & by_seed[1].keys())
        if not both:
            continue
        start, light, heavy = (
            [found[seed].get(when, {}).get("mean_class", 0.0) for seed in both]
            for found, when in ((by_seed[0], "before"), (by_seed[0], "after"), (by_seed[1], "after"))
        )
        cells = [spread(values) for values in (start, light, heavy, [a - b for a, b in zip(light, heavy, strict=True)])]
        rates = ", ".join(f"{found[both[0]]['lr']:.2g}" for found in by_seed)
        yield f"| {pair} | {len(both)} | {' | '.join(cells)} | {rates} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "test", "table"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", default="", help="part of the name of a backbone")
    given = parser.parse_args()
    if given.stage == "table":
        print("\n".join(table(read(given.rows))))
    else:
        run(given.stage, given)


if __name__ == "__main__":
    main()
