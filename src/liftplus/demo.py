"""The demo: four methods side by side on the bundled model and a drawn long-tailed data set."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from liftplus import config as configs
from liftplus import console, results, runs, runtime, train
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.runtime import Progress, Runtime

METHODS = ("zeroshot", "linear_probe", "full", "lift+")
DATA, BACKBONE = "openmoji_lt", "mini_clip"


@dataclass(frozen=True)
class Row:
    """One line of results.json; accuracies in percent, `seconds` of training."""

    method: str
    tte: bool
    seed: int
    overall: float
    many: float | None
    medium: float | None
    few: float | None
    seconds: float
    tuned_parameters: int


def run(out: Path, seeds: int) -> None:
    """Run all methods with each seed, print the table, and write results.json."""
    _clear(out)
    chosen, bars = runtime.choose(), console.Bars()
    dataset = runs.load_data(configs.resolve(data=DATA, backbone=BACKBONE))
    counts = dataset.counts()
    console.err.print(
        f"{DATA}: {dataset.num_classes} classes, {sum(counts):,} training images, {max(counts)} to "
        f"{min(counts)} a class. {' '.join(dataset.notes)}",
        highlight=False,
    )
    rows: list[Row] = []
    for seed in range(seeds):
        for method in METHODS:
            console.err.print(f"{method} …", highlight=False)
            rows += compare(method, seed, dataset, chosen, out / f"{method}-seed{seed}", bars)
            results.write_json(out / "results.json", [asdict(row) for row in rows])
    show(rows, out)


def compare(method: str, seed: int, dataset: DataSet, chosen: Runtime, folder: Path, bars: Progress) -> list[Row]:
    """One method with one seed, tested with one crop, and with five where the method says so."""
    config = configs.resolve(data=DATA, backbone=BACKBONE, method=method, overrides=[f"seed={seed}", "tte=false"])
    model = train.build(config, dataset, chosen, bars)
    outcome = runs.train_run(config, dataset, model, chosen, results.new_folder(folder), bars)
    found = {False: outcome.metrics}
    if configs.resolve(method=method).evaluation.tte:
        five = config.evaluation.model_copy(update={"tte": True})
        inside = results.new_folder(folder / "tte")
        found[True] = runs.test(model, five, dataset, "test", dataset.counts(), chosen, inside, {}, bars)
    tuned, seconds = train.tuned_parameters(model), round(outcome.seconds, 1)
    return [Row(method, tte, seed, m.overall, m.many, m.medium, m.few, seconds, tuned) for tte, m in found.items() if m]


def show(rows: list[Row], out: Path) -> None:
    """The rows as a table, the mean over seeds where there are several."""
    lines = []
    for method, tte in dict.fromkeys((row.method, row.tte) for row in rows):
        same = [row for row in rows if (row.method, row.tte) == (method, tte)]
        figures = [
            _mean([getattr(row, key) for row in same]) for key in ("overall", "many", "medium", "few", "seconds")
        ]
        lines.append((method + (", five crops" if tte else ""), *figures, same[0].tuned_parameters))
    columns = ("method", "overall", "many", "medium", "few", "seconds", "tuned parameters")
    console.table(f"{DATA} with {BACKBONE}: accuracy in percent", columns, lines)
    console.out.print(
        f"Rows: {out / 'results.json'}. Each run's model, metrics and predictions: {out}/METHOD-seedN/", highlight=False
    )


def _mean(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


def _clear(out: Path) -> None:
    """Make room for a new demo; a folder that is not an earlier demo's is left alone."""
    if out.is_dir() and (out / "results.json").is_file():
        shutil.rmtree(out)
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{str(out)!r} holds something other than a demo's results. Choose another folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
