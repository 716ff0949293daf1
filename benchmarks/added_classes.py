"""A class added from five pictures without training against the same class trained in with them, on CPU.

    python benchmarks/added_classes.py run --shared ../shared/data
    python benchmarks/added_classes.py write

Ten classes are left out in turn, with three seeds, of two of the sets of start_study.py. One run is trained without the
class, which is then added with `classes add`; the other is trained with five pictures of it. Both train for five epochs
and are measured on the whole test split with one crop: the new class, and the mean over the old ones. One line a class
and seed is appended; lines that are there are left out. `write` puts the table into docs/export.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import liftplus
import start_study
import study
from liftplus.data.dataset import DataSet, Split
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import runtime
from liftplus.runs import new_classes
from liftplus.runs.inputs import Inputs
from liftplus.training import checkpoint
from recipe_study import Pair, cut

ROWS = Path("benchmarks/results/added-classes.jsonl")
PAGE = Path("docs/export.md")
METHOD, CLASSES, SEEDS, PICTURES = "lift+", 10, (0, 1, 2), 5
PAIRS = {
    "20 objects, efficientnet_lite0, lift+": start_study.PAIRS["20 objects, EfficientNet-Lite0"],
    "17 clothes, mini_clip_v1, lift+": start_study.PAIRS["17 clothes, mini_clip_v1"],
}
HARMS = (0.5, 2.0)
"""Points that old classes may lose: the default of `classes add`, and about what training in costs them."""


def held_out(dataset: DataSet) -> list[int]:
    """Classes that have more than five training pictures, drawn once."""
    able = [k for k, count in enumerate(dataset.counts()) if count > PICTURES]
    return sorted(random.Random(0).sample(able, min(CLASSES, len(able))))


def parts(dataset: DataSet, new: int, seed: int) -> tuple[DataSet, DataSet, list[str]]:
    """The data without a class; with few pictures of it, as the last class; and the keys of those pictures."""
    order = [k for k in range(dataset.num_classes) if k != new] + [new]
    place = {old: now for now, old in enumerate(order)}
    train = dataset.splits["train"]
    own = [key for key, label in zip(train.keys, train.labels, strict=True) if label == new]
    few = random.Random(seed).sample(sorted(own), PICTURES)

    def split(name: str, keep: set[str] | None) -> Split:
        part = dataset.splits[name]
        pairs = [
            (key, place[label])
            for key, label in zip(part.keys, part.labels, strict=True)
            if label != new or keep is None or key in keep
        ]
        return Split([key for key, _ in pairs], [label for _, label in pairs])

    names = [tuple(values[k] for k in order) for values in (dataset.class_names, dataset.class_ids)]
    splits = {"train": split("train", set(few)), "test": split("test", None)}
    whole = replace(dataset, class_names=names[0], class_ids=names[1], splits=splits, config=None)
    fewer = {"train": split("train", set()), "test": split("test", set())}
    without = replace(dataset, class_names=names[0][:-1], class_ids=names[1][:-1], splits=fewer, config=None)
    return without, whole, few


def accuracies(
    trained: checkpoint.Trained, dataset: DataSet, place: runtime.Runtime, new: int | None
) -> dict[str, float | None]:
    """Of the new class, and the mean over the others, in percent."""
    split, plain = dataset.splits["test"], trained.config.evaluation.model_copy(update={"tte": False})
    found = predict(trained.model, SplitReader(dataset.store, split), plain, trained.model.backbone.facts, place)
    by_class = score(found, split, dataset.counts()).per_class
    old = [value for k, value in enumerate(by_class) if k != new and value is not None]
    return {"new": None if new is None else by_class[new], "old": statistics.mean(old)}


def one(pair: Pair, dataset: DataSet, new: int, seed: int) -> dict[str, Any]:
    """Both ways for one class and seed."""
    without, whole, few = parts(dataset, new, seed)
    last = whole.num_classes - 1
    named: dict[str, Any] = {"seed": seed, "epochs": 5, "workers": 0, "tte": False, "image_size": pair.image_size}
    with tempfile.TemporaryDirectory() as folder:
        joint = liftplus.fit(whole, pair.backbone, METHOD, **named)
        line = {"trained": accuracies(joint.trained, whole, joint.session.runtime, last)}
        run = Path(folder) / "run"
        begun = liftplus.fit(without, pair.backbone, METHOD, out=run, **named)
        line["before"] = accuracies(begun.trained, without, begun.session.runtime, None)
        for harm in HARMS:
            out = Path(folder) / f"harm{harm}"
            pictures = {whole.class_names[-1]: Inputs(whole.store, few)}
            new_classes.add(begun.session, begun.trained, run, pictures, out, lambda: without, harm=harm)
            place = begun.session.runtime
            line[f"added, {harm:g}"] = accuracies(checkpoint.load_model(out, place), whole, place, last)
    return line


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, pair in PAIRS.items():
            dataset = liftplus.load_data(cut(pair, args.shared, Path(folder)))
            number = {dataset.class_names[new]: new for new in held_out(dataset)}
            keys = [{"setting": name, "class": left_out, "seed": seed} for seed in SEEDS for left_out in number]

            def line(
                key: dict[str, Any], pair: Pair = pair, dataset: DataSet = dataset, number: dict[str, int] = number
            ) -> dict[str, Any]:
                return one(pair, dataset, number[key["class"]], key["seed"])

            study.fill(args.rows, keys, line)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean over classes and seeds; ± is the standard deviation over the seeds' means."""
    yield "| | class trained in | added, 0.5 | added, 2 | old classes before | trained in | added, 0.5 | added, 2 |"
    yield "|---|---|---|---|---|---|---|---|"
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting]
        new = [spread(mine, way, "new") for way in ("trained", "added, 0.5", "added, 2")]
        old = [spread(mine, way, "old") for way in ("before", "trained", "added, 0.5", "added, 2")]
        yield f"| {setting} | " + " | ".join([*new, *old]) + " |"


def spread(rows: list[dict[str, Any]], way: str, which: str) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return study.spread([statistics.mean(row[way][which] for row in rows if row["seed"] == seed) for seed in seeds])


def filled(page: str, rows: Path) -> str:
    """docs/export.md with the table anew."""
    return study.with_block(page, "added", "table", "\n".join(table(study.read(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    if args.what == "write":
        PAGE.write_text(filled(PAGE.read_text(), args.rows))
    else:
        run(args)


if __name__ == "__main__":
    main()
