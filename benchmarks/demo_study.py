"""The demo's claim, with learning rates searched on validation and several seeds.

    python benchmarks/demo_study.py search --out benchmarks/results/demo_search.json
    python benchmarks/demo_study.py test --seeds 3 --out benchmarks/results/demo.json
    python benchmarks/demo_study.py figure --out docs/images/demo.png

`search` trains every method at several learning rates and measures the validation split only; the best go into
presets/data.toml by hand. `test` runs the demo's methods, both linear probes, and full fine-tuning with layer-wise
rates, those with LIFT+'s test with one crop and with five.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import disk, runtime
from liftplus.runs import opening
from liftplus.studies import compare, demo
from liftplus.training import assembly, loop

RATES = {
    "linear_probe": (0.3, 1.0, 3.0),
    "linear_probe+": (0.3, 1.0, 3.0),
    "full": (0.01, 0.03, 0.1),
    "full+": (0.01, 0.03, 0.1),
    "lift+": (0.05, 0.15, 0.4, 1.0),
}
LAYER_DECAY = compare.Entry("full+, layer decay", "full+", ("layer_decay=0.5", "lr=0.4"))
"""The strongest form of full fine-tuning; scripts/evidence_search.sh searches both settings."""
BEFORE = ("zeroshot", "closed_form", "linear_probe", "linear_probe+", "full", "full+")
ENTRIES = {name: compare.Entry(name, name) for name in BEFORE}
ENTRIES |= {LAYER_DECAY.label: LAYER_DECAY, "lift+": compare.Entry("lift+", "lift+")}
METHODS = tuple(ENTRIES)
SEARCH_SEED = 1000
GROUPS = ("overall", "many", "medium", "few")


def about() -> dict[str, Any]:
    return {"date": date.today().isoformat(), "versions": runtime.describe(runtime.choose())}


def search(out: Path) -> None:
    """Every method at every learning rate, one seed that `test` does not use, accuracies on validation.

    Rows that are there are kept.
    """
    chosen = runtime.choose()
    dataset = opening.Session(config.resolve(data=demo.DATA, backbone=demo.BACKBONE), chosen).data()
    rows: list[dict[str, Any]] = disk.read_json(out)["rows"] if out.exists() else []
    done = {(row["method"], row["lr"]) for row in rows}
    for method, rates in RATES.items():
        for lr in sorted({*rates} - {rate for name, rate in done if name == method}):
            given = [f"seed={SEARCH_SEED}", f"lr={lr}", "tte=false"]
            settings = config.resolve(data=demo.DATA, backbone=demo.BACKBONE, method=method, overrides=given)
            model = assembly.build(settings, dataset, chosen)
            fitted = loop.fit(model, settings, dataset, chosen)
            split = dataset.splits["val"]
            found = predict(model, SplitReader(dataset.store, split), settings.evaluation, model.backbone.facts, chosen)
            metrics = score(found, split, dataset.counts())
            rows.append({"method": method, "lr": lr, "seconds": round(fitted.seconds, 1)} | metrics.summary() | about())
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: ([*RATES].index(row["method"]), row["lr"]))
            disk.write_json(out, {"split": "val", "seed": SEARCH_SEED, "rows": rows})


def test(out: Path, seeds: int) -> None:
    """Rows as the demo's for several seeds, with mean and standard deviation over the seeds.

    Methods that have rows for all the seeds are left out.
    """
    chosen = runtime.choose()
    kept: list[dict[str, Any]] = disk.read_json(out)["rows"] if out.exists() else []

    def write(found: list[compare.Row]) -> None:
        rows = [*others, *(row | about() for row in demo.lines(found))]
        rows.sort(key=lambda row: (row["seed"], METHODS.index(row["method"]), row["tte"]))
        print(rows[-1], flush=True)
        disk.write_json(out, {"seeds": seeds, "summary": summary(rows), "rows": rows})

    for method in METHODS:
        if {row["seed"] for row in kept if row["method"] == method} >= set(range(seeds)):
            continue
        others = [row for row in kept if row["method"] != method]
        plan = compare.Comparison(demo.DATA, demo.BACKBONE, (ENTRIES[method],), seeds)
        with tempfile.TemporaryDirectory() as folder:
            made = compare.run(plan, Path(folder), lambda config: opening.Session(config, chosen), print, write)
            made.refuse_failures()
        kept = disk.read_json(out)["rows"]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for method, tte in sorted(
        {(row["method"], row["tte"]) for row in rows}, key=lambda one: (METHODS.index(one[0]), one[1])
    ):
        same = [row for row in rows if (row["method"], row["tte"]) == (method, tte)]
        entry: dict[str, Any] = {"method": method, "tte": tte, "runs": len(same)}
        for key in (*GROUPS, "seconds"):
            values = [row[key] for row in same]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            entry[key] = {"mean": round(statistics.mean(values), 2), "sd": round(spread, 2)}
        out.append(entry)
    return out


def figure(source: Path, out: Path) -> None:
    """Bars of accuracy by group of classes, one colour a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = [entry for entry in json.loads(source.read_text())["summary"] if "linear" not in entry["method"]]
    names = {"zeroshot": "zero-shot", "closed_form": "closed form", "full": "full", "lift+": "LIFT+"}
    names |= {"full+": "full, LIFT+'s start and crops", LAYER_DECAY.label: "the same, layer-wise rates"}
    colours = ("#9aa5b1", "#8f7fb8", "#e3b09a", "#d08770", "#a9542f", "#d9b44a", "#a67c1a", "#5e9c76", "#2f6b4a")
    plot, axes = plt.subplots(figsize=(8, 3.6), dpi=150)
    width = 0.8 / len(entries)
    for index, entry in enumerate(entries):
        label = names[entry["method"]] + (", five crops" if entry["tte"] else "")
        places = [group + (index - (len(entries) - 1) / 2) * width for group in range(len(GROUPS))]
        axes.bar(
            places,
            [entry[key]["mean"] for key in GROUPS],
            width * 0.92,
            label=label,
            color=colours[index],
            yerr=[entry[key]["sd"] for key in GROUPS],
            error_kw={"elinewidth": 0.8},
        )
    axes.set_xticks(range(len(GROUPS)), ["overall", "many-shot\n(> 100)", "medium-shot\n(20–100)", "few-shot\n(< 20)"])
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8, ncols=4, columnspacing=1.0, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    runs_each = max(entry["runs"] for entry in entries)
    axes.set_title(
        f"openmoji_lt with mini_clip, mean and standard deviation of {runs_each} seeds", fontsize=9, loc="left"
    )
    plot.tight_layout()
    plot.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "test", "figure"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/demo.json"), help="input of `figure`")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "search":
        search(args.out)
    elif args.what == "test":
        test(args.out, args.seeds)
    else:
        figure(args.results, args.out)


if __name__ == "__main__":
    main()
