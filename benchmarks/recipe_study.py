"""recipe=auto against recipe=paper and against a search, on pairs of real data and backbones that differ, on CPU.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/recipe_study.py test --shared ../shared/data --vit vits14.safetensors
    python benchmarks/recipe_study.py search --shared ../shared/data --vit vits14.safetensors
    python benchmarks/recipe_study.py best --shared ../shared/data --vit vits14.safetensors
    python benchmarks/recipe_study.py epochs --shared ../shared/data --vit vits14.safetensors
    python benchmarks/recipe_study.py table
    python benchmarks/recipe_study.py longer
    python benchmarks/recipe_study.py left-out
    python benchmarks/recipe_study.py write

`test` trains both recipes with three seeds and measures the test split once, with one crop. `search` trains the
settings of `GRID` (and of `NAMES_ALONE`) with a seed of its own, and measures a fifth of the training pictures that is
kept aside. `best` tests each pair's best setting of that search as `test` does. `epochs` tests more epochs of
recipe=auto on few pictures; `longer` shows them beside the five of `test`. `left-out` chooses the factor of the
published rate at batch 16 on all pairs but one, by the search, and says what it loses on that one. `write` puts all
tables into docs/recipe.md.

The first four append one line a run to benchmarks/results/recipe.jsonl and leave out runs whose line is there, so that
they go on where they were stopped; several may run side by side (--part 0/2, 1/2). The pairs are subsets of the data in
--shared, drawn by a fixed seed, and the drawn emoji that come with liftplus.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from liftplus import config
from liftplus.training import loop, recipe
from study import Part, accuracies, add_part, fill, prepared, read, spread, with_block

ROWS = Path("benchmarks/results/recipe.jsonl")
PAGE = Path("docs/recipe.md")
SEEDS, SEARCH_SEED = (0, 1, 2), 1000


@dataclass(frozen=True)
class Pair:
    """A data set cut to size and a backbone.

    Attributes:
        source: the archive in --shared; None for the drawn emoji.
        classes, most, least: classes, and training pictures of the first and the last; None: all as they are.
        tests: most test pictures a class.
        spare: most pictures a class for validation, of those that are not used for training.
    """

    source: str | None
    backbone: str
    image_size: int
    classes: int | None = None
    most: int = 0
    least: int = 0
    tests: int = 60
    spare: int = 0


PAIRS = {
    "5 clothes, ViT-S/14": Pair("clothing17_160", "dinov2_s14", 70, 5, 100, 15),
    "17 clothes, ViT-S/14": Pair("clothing17_160", "dinov2_s14", 70, 17, 200, 10),
    "20 objects, ViT-S/14": Pair("tinyimagenet200_lt100", "dinov2_s14", 98, 20, 60, 6, 25),
    "17 clothes, mini_clip_v1": Pair("clothing17_160", "mini_clip_v1", 64, 17, 200, 10),
    "17 clothes, EfficientNet-Lite0": Pair("clothing17_160", "efficientnet_lite0", 64, 17, 200, 10),
    "10 animals and vehicles, EfficientNet-Lite0": Pair("cifar10_lt100", "efficientnet_lite0", 64, 10, 400, 8, 150),
    "120 emoji, mini_clip_v1": Pair(None, "mini_clip_v1", 32),
    "100 objects, mini_clip_v1": Pair("tinyimagenet200_lt100", "mini_clip_v1", 32, 100, 200, 4, 25),
    "81 objects, ViT-S/14": Pair("tinyimagenet200_lt100", "dinov2_s14", 70, 81, 70, 13, 25),
    "81 objects, mini_clip_v1": Pair("tinyimagenet200_lt100", "mini_clip_v1", 64, 81, 70, 13, 25),
    "10 animals and vehicles, mini_clip_v1": Pair("cifar10_lt100", "mini_clip_v1", 32, None, tests=200),
}

STEP = "train.schedule=step"
SCALED = [STEP, "train.scale_rates=true"]


def _plain(batch: int, lr: float) -> list[str]:
    return [f"train.batch_size={batch}", f"lr={lr}", STEP]


GRID: dict[str, list[str]] = {
    **{f"plain, batch {b}, lr {lr}": _plain(b, lr) for b, lr in ((128, 0.1), (16, 0.002), (16, 0.01), (16, 0.05))},
    **{
        f"scaled, batch {b}, lr {lr}": [*_plain(b, lr), "train.scale_rates=true"]
        for b, lr in ((8, 0.01), (8, 0.03), (16, 0.005), (16, 0.01), (16, 0.02), (16, 0.05), (32, 0.02), (32, 0.05))
    },
}
"""The search: each from the start that recipe=auto takes."""
NAMES_ALONE = {
    f"class names alone, batch 16, lr {lr}": ["head_init=semantic", *_plain(16, lr)] for lr in (0.02, 0.05, 0.1)
}
"""Where there is a text tower: the papers' start."""
RECIPES = {"recipe=paper": ["recipe=paper"], "recipe=auto": ["recipe=auto", "epochs=5"]}
"""Both with the published number of epochs."""
LONGER = {
    "5 clothes, ViT-S/14": (10, 20, 30),
    "17 clothes, ViT-S/14": (10, 20),
    "20 objects, ViT-S/14": (10, 20, 30),
    "17 clothes, mini_clip_v1": (10, 20),
    "17 clothes, EfficientNet-Lite0": (10, 20),
    "10 animals and vehicles, EfficientNet-Lite0": (10, 20),
}
"""Pairs with 240 to 1,125 training pictures, and the epochs that are tried on them; recipe=auto takes 30 for two."""
NAMED = "recipe=auto, {} epochs"


def cut(pair: Pair, shared: Path, folder: Path) -> str:
    """The pair's data as an archive in `folder`; what `--data` takes."""
    if pair.source is None:
        return "openmoji_lt"
    archive = shared / f"{pair.source}.zip"
    if pair.classes is None and not pair.tests:
        return str(archive)
    path = folder / f"{pair.source}-{pair.classes}-{pair.most}-{pair.least}-{pair.tests}-{pair.spare}.zip"
    if not path.is_file():
        with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(path, "w") as out:
            for name, split in sorted(_chosen(pair, whole)):
                out.writestr(f"{split}/{name.split('/', 1)[1]}", whole.read(name))
    return str(path)


def _chosen(pair: Pair, whole: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Pictures to keep, and their split: the largest classes, their numbers falling evenly on a logarithmic scale."""
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in whole.namelist():
        parts = name.split("/")
        if len(parts) == 3 and parts[2]:
            files[parts[0]][parts[1]].append(name)
    held_out = files["test"] or files["val"]
    rng = random.Random(0)
    largest = sorted(files["train"], key=lambda name: (-len(files["train"][name]), name))[: pair.classes]
    for rank, name in enumerate(largest):
        have = sorted(files["train"][name])
        wanted = len(have)
        if pair.classes is not None:
            wanted = round(pair.most * (pair.least / pair.most) ** (rank / (pair.classes - 1)))
        used = rng.sample(have, min(wanted, len(have)))
        tests = sorted(held_out[name])
        kept = {"train": used, "test": rng.sample(tests, min(pair.tests, len(tests)))}
        left = sorted(set(have) - set(used))
        kept["val"] = random.Random(name).sample(left, min(pair.spare, len(left)))
        for split, files_of in kept.items():
            yield from ((file, split) for file in files_of)


def grid(pair: str) -> dict[str, list[str]]:
    """What is tried on a pair."""
    return GRID | NAMES_ALONE if PAIRS[pair].backbone == "mini_clip_v1" else GRID


def planned(stage: str, found: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[str], int]]:
    """The runs of a stage: pair, name, settings, seed; every pair's first seed first."""
    for seed in (SEARCH_SEED,) if stage == "search" else SEEDS:
        for pair in PAIRS:
            for name, given in contenders(stage, pair, found).items():
                yield pair, name, given, seed


def contenders(stage: str, pair: str, found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What a stage trains on a pair: settings by name."""
    match stage:
        case "search":
            return grid(pair)
        case "best":
            winner = best_of(pair, found)
            return {} if winner is None else {winner: grid(pair)[winner]}
        case "epochs":
            return {NAMED.format(epochs): ["recipe=auto", f"epochs={epochs}"] for epochs in LONGER.get(pair, ())}
        case _:
            return RECIPES


def best_of(pair: str, found: list[dict[str, Any]]) -> str | None:
    """The setting of the grid that was best in the mean over classes; None before all were tried."""
    mine = [row for row in found if (row["stage"], row["pair"]) == ("search", pair) and row["settings"] in grid(pair)]
    if len(mine) < len(grid(pair)):
        return None
    return str(max((row for row in mine if "end" in row), key=lambda row: row["end"]["mean_class"])["settings"])


def one(pair: Pair, data: str, stage: str, given: list[str], seed: int, vit: Path) -> dict[str, Any]:
    """One run: trained and measured."""
    settings = [f"seed={seed}", *given]
    if stage == "search" and data != "openmoji_lt":
        settings.append("val_share=0.2")
    if not any(item.startswith(("recipe", "head_init")) for item in given):
        settings.append(f"head_init={'mix' if pair.backbone == 'mini_clip_v1' else 'auto'}")
    session, dataset = prepared(pair, data, settings, vit)
    clock = time.perf_counter()
    session, model = session.start(dataset)
    began = time.perf_counter()
    split = "val" if stage == "search" else "test"
    start = accuracies(session, model, dataset, split)
    trained = time.perf_counter()
    try:
        fitted = loop.fit(model, session.config, dataset, session.runtime)
    except Exception as error:
        return {"failed": str(error)[:200]}
    return {
        "pictures": len(dataset.splits["train"]),
        "classes": dataset.num_classes,
        "counts": [max(dataset.counts()), min(dataset.counts())],
        "chosen": {
            "batch_size": session.config.train.batch_size,
            "lr": session.config.train.lr,
            "head_init": session.config.head_init.name,
        },
        "start": start,
        "end": accuracies(session, model, dataset, split),
        "losses": fitted.losses,
        "notes": fitted.notes,
        "start_seconds": round(began - clock, 1),
        "train_seconds": round(time.perf_counter() - trained, 1),
    }


def run(stage: str, shared: Path, vit: Path, rows: Path, part: Part, only: str) -> None:
    """Every run of a stage whose line is not there yet."""
    plan = {(pair, name, seed): given for pair, name, given, seed in planned(stage, read(rows))}
    keys = (
        {"stage": stage, "pair": pair, "settings": name, "seed": seed}
        for pair, name, seed in plan
        if only in f"{pair} | {name}"
    )
    with tempfile.TemporaryDirectory() as folder:

        def line(key: dict[str, Any]) -> dict[str, Any]:
            pair, seed = PAIRS[key["pair"]], key["seed"]
            given = plan[key["pair"], key["settings"], seed]
            return one(pair, cut(pair, shared, Path(folder)), stage, given, seed, vit)

        fill(rows, keys, line, part)


def table(rows: Path) -> Iterator[str]:
    """Mean-class accuracy on the test split; mean and standard deviation where there are several seeds."""
    found = [row for row in read(rows) if row["stage"] in ("test", "best") and "end" in row]
    head = (
        "| pair | pictures | most, least | seeds | start | paper | auto | best of the search | few: paper, auto, best "
    )
    yield head + "| batch, lr of auto | time |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for pair in PAIRS:
        mine = {name: [row for row in found if (row["pair"], row["settings"]) == (pair, name)] for name in RECIPES}
        if not all(mine.values()):
            continue
        paper, auto = mine.values()
        best = [row for row in found if (row["stage"], row["pair"]) == ("best", pair)]
        first = auto[0]
        few = ", ".join(_spread(one, "few") for one in (paper, auto, best) if one)
        yield (
            f"| {pair} | {first['pictures']:,} | {first['counts'][0]}, {first['counts'][1]} "
            f"| {min(len(paper), len(auto))} | {_spread(auto, at='start')} | {_spread(paper)} | {_spread(auto)} "
            f"| {_spread(best) if best else '–'} "
            f"| {few} | {first['chosen']['batch_size']}, {first['chosen']['lr']:.2g} | {_slower(paper, auto)} |"
        )


def _slower(paper: list[dict[str, Any]], auto: list[dict[str, Any]]) -> str:
    """Training time of recipe=auto over that of recipe=paper, with the last seed that both trained on one day."""
    both = {row["seed"]: row for row in paper if row["train_seconds"]}
    same = [row for row in auto if row["train_seconds"] and both.get(row["seed"], {}).get("date") == row["date"]]
    if not same:
        return "–"
    last = max(same, key=lambda row: row["seed"])
    return f"{last['train_seconds'] / both[last['seed']]['train_seconds']:.2f}"


def longer(rows: Path) -> Iterator[str]:
    """Mean-class accuracy and that of few-shot classes by epochs, over the seeds that all of them have."""
    found = [row for row in read(rows) if row["stage"] in ("test", "epochs") and "end" in row]
    names = {5: "recipe=auto"} | {epochs: NAMED.format(epochs) for epochs in sorted(set().union(*LONGER.values()))}
    heads = " | ".join(f"{epochs} epochs" for epochs in names)
    yield f"| pair | pictures | steps in 5 epochs | seeds | {heads} | few-shot classes |"
    yield "|---" * (len(names) + 5) + "|"
    for pair in LONGER:
        by_seed = [
            {row["seed"]: row for row in found if (row["pair"], row["settings"]) == (pair, name)}
            for name in names.values()
        ]
        if seeds := sorted(set.intersection(*map(set, by_seed[:-1]))):
            mine = [[one[seed] for seed in seeds if seed in one] for one in by_seed]
            first = mine[0][0]
            steps = 5 * math.ceil(first["pictures"] / first["chosen"]["batch_size"])
            few = ", ".join(_spread(one, "few") for one in mine)
            cells = " | ".join(_spread(one) for one in mine)
            yield f"| {pair} | {first['pictures']:,} | {steps} | {len(seeds)} | {cells} | {few} |"


FACTORS = tuple(0.25 * 2 ** (k / 2) for k in range(8))
"""Of the published rate at batch 16, to choose from."""


def left_out(rows: Path) -> Iterator[str]:
    """What the rule's factor loses on a pair when the other pairs choose it, in points on pictures kept aside.

    Loss is against the best rate of the search at batch 16 with measured rates; between two rates that were tried,
    accuracy is interpolated on their logarithm.
    """
    curves, published = {}, {}
    for pair, about in PAIRS.items():
        scaled = [
            row
            for row in read(rows)
            if (row["stage"], row["pair"]) == ("search", pair)
            and row["settings"].startswith("scaled, batch 16,")
            and "end" in row
        ]
        if len(scaled) == len([name for name in GRID if name.startswith("scaled, batch 16,")]):
            curves[pair] = {row["chosen"]["lr"]: row["end"]["mean_class"] for row in scaled}
            published[pair] = config.resolve(data=about.source or "openmoji_lt", backbone=about.backbone).train.lr
    tried = sorted({lr for curve in curves.values() for lr in curve})
    yield (
        "| pair | "
        + " | ".join(f"{lr:g}" for lr in tried)
        + " | factor by the others | loss there | loss by the rule |"
    )
    yield "|---" * (len(tried) + 4) + "|"
    for pair in curves:
        lost = {
            factor: [_lost(curves[name], factor * published[name]) for name in curves if name != pair]
            for factor in FACTORS
        }
        chosen = min(FACTORS, key=lambda factor: sum(lost[factor]))
        here = [_lost(curves[pair], factor * published[pair]) for factor in (chosen, recipe.factor(16))]
        accuracies = " | ".join(f"{curves[pair][lr]:.1f}" for lr in tried)
        yield f"| {pair} | {accuracies} | {chosen:.2g} | {here[0]:.1f} | {here[1]:.1f} |"


def _lost(curve: dict[float, float], rate: float) -> float:
    """Points below the curve's best at a rate; outside of what was tried, as at the nearest."""
    tried = sorted(curve)
    value = float(numpy.interp(math.log(rate), [math.log(lr) for lr in tried], [curve[lr] for lr in tried]))
    return max(curve.values()) - value


def _spread(rows: list[dict[str, Any]], group: str = "mean_class", at: str = "end") -> str:
    return spread([row[at][group] for row in rows])


TABLES = {"table": table, "longer": longer, "left-out": left_out}


def filled(page: str, rows: Path) -> str:
    """docs/recipe.md with its tables anew."""
    for name, lines in TABLES.items():
        page = with_block(page, "recipe", name, "\n".join(lines(rows)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("test", "search", "best", "epochs", *TABLES, "write"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    add_part(parser)
    parser.add_argument("--only", default="", help="part of 'PAIR | SETTINGS' that a run must have")
    given = parser.parse_args()
    if given.stage in TABLES:
        print("\n".join(TABLES[given.stage](given.rows)))
        return
    if given.stage == "write":
        PAGE.write_text(filled(PAGE.read_text(), given.rows))
        return
    run(given.stage, given.shared, given.vit, given.rows, given.part, given.only)


if __name__ == "__main__":
    main()
