"""Light against heavy tuning over imbalance and feature strength, on CPU: LIFT+ minus full+, all else equal.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/tuning_map.py search --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py test --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py start --shared ../shared/data
    python benchmarks/tuning_map.py table

Both methods have the same start, crops, loss and epochs, as recipe=auto chooses them; what is tuned differs, and the
rate. `search` tries rates for each backbone and method on the three sets of the middle imbalance, with a seed of its
own, and measures a fifth of the training pictures that is kept aside. One such part has 80 to 90 pictures, too few to
choose by; so the rate with the best mean over the three sets is used on all nine. Where it is at an end of what was
tried, the search goes on there. `test` trains with that rate and three seeds, and measures the test split once, with
one crop. The sets of an imbalance differ in their largest and smallest class, and have about the same number of
pictures. `start` measures the closed form on the data of experiments that docs/evidence.md has of the same contrast.

The first three append one line a run to benchmarks/results/tuning_map.jsonl and leave out those whose line is there;
processes that run side by side take a backbone each (--only ViT, --only Lite0).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.machine import runtime
from liftplus.runs.opening import Session
from liftplus.training import loop
from recipe_study import Pair, cut
from start_study import SHOWN, SIZES
from study import accuracies, fill, prepared, read, spread

ROWS = Path("benchmarks/results/tuning_map.jsonl")
SEEDS, SEARCH_SEED = (0, 1, 2), 1000
EVIDENCE = ROWS.parent / "evidence"
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


EMOJI = "120 emoji, {}, mini_clip{}"
OTHERS = {
    EMOJI.format(100, ""): ("openmoji_lt/mini_clip/ablation/4_mda", "openmoji_lt/mini_clip/one_crop/full+"),
    **{
        EMOJI.format(ratio, ""): tuple(f"openmoji_lt_ir{ratio}/mini_clip/tail/{one}" for one in ("light", "full+"))
        for ratio in (4, 200)
    },
    EMOJI.format(100, "_v1 at 32 px"): (
        "openmoji_lt_32px/mini_clip_v1/ablation/4_mda",
        "openmoji_lt_32px/mini_clip_v1/heavy/full_sai_mda",
    ),
    **{
        EMOJI.format(ratio, "_v1 at 32 px"): tuple(
            f"openmoji_lt_32px_ir{ratio}/mini_clip_v1/tail/{one}" for one in ("light", "full_sai_mda")
        )
        for ratio in (4, 20, 200)
    },
    "200 objects, 100, mini_clip_v1 at 32 px": tuple(
        f"tinyimagenet200_lt100_32px/mini_clip_v1/photographs/{one}" for one in ("light", "full_sai_mda")
    ),
    "10 animals and vehicles, 100, EfficientNet-Lite0 (norm)": tuple(
        f"cifar10_lt100_64px/efficientnet_lite0/cnn_cifar/{one}" for one in ("norm", "full")
    ),
}
"""Experiments with the same contrast: light and heavy, from the same start with the same crops, loss and one crop."""
TRAINING = ("lr=", "epochs=", "seed=", "tte=", "tuner=")
"""Settings of their commands that the closed form does not take."""

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


@dataclass(frozen=True)
class Point:
    """Light and heavy tuning of one backbone on one set.

    Attributes:
        counts: training pictures by class.
        start: accuracy before training (closed form where there is one), mean over classes of the test split, percent.
        light, heavy: the same after training, by seed.
    """

    name: str
    counts: tuple[int, ...]
    start: float
    light: tuple[float, ...]
    heavy: tuple[float, ...]

    @property
    def gains(self) -> list[float]:
        """Light minus heavy by seed, in points."""
        return [one - other for one, other in zip(self.light, self.heavy, strict=True)]


def measured(rows: list[dict[str, Any]]) -> Iterator[Point]:
    """Pairs of this study whose tests have been made with both methods."""
    for pair in PAIRS:
        by_seed = [
            {row["seed"]: row for row in rows if (row["stage"], row["pair"], row["method"]) == ("test", pair, method)}
            for method in METHODS
        ]
        if both := sorted(by_seed[0].keys() & by_seed[1].keys()):
            light, heavy = (tuple(found[seed]["after"]["mean_class"] for seed in both) for found in by_seed)
            first = by_seed[0][both[0]]
            yield Point(pair, tuple(first["counts"]), first["before"]["mean_class"], light, heavy)


def others(rows: list[dict[str, Any]]) -> Iterator[Point]:
    """The same contrast in the experiments behind docs/evidence.md, with what `start` measured of their data."""
    starts = {row["pair"]: row for row in rows if row["stage"] == "start"}
    for name, (light, heavy) in experiments().items():
        if name in starts:
            values = [[row["mean_class"] for row in one["seeds"]] for one in (light, heavy)]
            found = starts[name]
            yield Point(name, tuple(found["counts"]), found["before"]["mean_class"], *map(tuple, values))


def experiments() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Light and heavy experiments by the name of their pair."""
    made = {
        one["name"]: one
        for path in sorted(EVIDENCE.glob("*.json"))
        for one in json.loads(path.read_text()).get("experiments", ())
    }
    found = {name: (light, heavy) for name, (light, heavy) in OTHERS.items() if {light, heavy} <= made.keys()}
    return {name: (made[light], made[heavy]) for name, (light, heavy) in found.items()}


def start(given: argparse.Namespace) -> None:
    """The closed form on the data of every experiment whose line is not there yet."""

    def line(key: dict[str, Any]) -> dict[str, Any]:
        words = shlex.split(experiments()[key["pair"]][0]["command"])[2:]
        options = dict(itertools.pairwise(words))
        data = options["--data"].replace("data/", f"{given.shared}/")
        closed = [word for word in words if "=" in word and not word.startswith(TRAINING)]
        chosen = config.resolve(
            data=data, backbone=options["--backbone"], method="closed_form", overrides=[*closed, "tte=false"]
        )
        session = Session(chosen, runtime.choose(chosen.device, chosen.precision))
        dataset = session.data()
        session, model = session.start(dataset)
        before = accuracies(session, model, dataset, "test")
        return {"counts": sorted(dataset.counts(), reverse=True), "before": before}

    fill(given.rows, ({"stage": "start", "pair": name, "method": "closed_form"} for name in experiments()), line)


def table(points: Iterable[Point]) -> Iterator[str]:
    """Mean over classes on the test split in percent; mean and standard deviation over seeds that both methods have."""
    yield "| pair | pictures | most, least | seeds | start | light | heavy | light minus heavy |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for point in points:
        sizes = f"{sum(point.counts):,} | {max(point.counts)}, {min(point.counts)}"
        cells = [f"{point.start:.1f}", *map(spread, (point.light, point.heavy, point.gains))]
        yield f"| {point.name} | {sizes} | {len(point.light)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "test", "start", "table"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", default="", help="part of the name of a backbone")
    given = parser.parse_args()
    if given.stage == "table":
        rows = read(given.rows)
        print("\n".join(table([*measured(rows), *others(rows)])))
    elif given.stage == "start":
        start(given)
    else:
        run(given.stage, given)


if __name__ == "__main__":
    main()
