"""The demo: four methods side by side on the bundled model and a drawn long-tailed data set."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from liftplus import config as configs
from liftplus import console, report, results, runs, runtime, train
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.runtime import Progress

METHODS = ("zeroshot", "linear_probe", "full", "lift+")
DATA, BACKBONE = "openmoji_lt", "mini_clip"
MARKER = ".liftplus-demo"
FEATURES = 20  # pictures of a class and split; the report takes half a minute with them


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
    _refuse_foreign(out)
    dataset = _session("zeroshot", 0, console.Bars()).data()
    _clear(out)
    counts = dataset.counts()
    console.err.print(
        f"{DATA}: {dataset.num_classes} classes, {sum(counts):,} training images, {max(counts)} to "
        f"{min(counts)} a class. {' '.join(dataset.notes)}"
    )
    rows: list[Row] = []
    for seed in range(seeds):
        for method in METHODS:
            console.err.print(f"{method} …")
            rows += compare(method, seed, dataset, out / f"{method}-seed{seed}", console.Bars())
            results.write_json(out / "results.json", [asdict(row) for row in rows])
    show(rows, out)
    folders = [out / f"{method}-seed{seed}" for seed in range(seeds) for method in METHODS]
    page = report.write(
        folders, out / "report", with_features=True, per_class=FEATURES, progress=console.Bars(), dataset=dataset
    )
    console.out.print(f"Report: {page}; open it in a browser.")


def _session(method: str, seed: int, bars: Progress) -> runs.Session:
    given = [f"seed={seed}", "evaluation.tte=false"]
    config = configs.resolve(data=DATA, backbone=BACKBONE, method=method, overrides=given)
    return runs.Session(config, runtime.choose(config.device, config.precision), bars)


def compare(method: str, seed: int, dataset: DataSet, folder: Path, bars: Progress) -> list[Row]:
    """One method with one seed, tested with one crop, and with five where the method says so."""
    session = _session(method, seed, bars)
    model = session.model(dataset)
    outcome = runs.train_run(session, dataset, model, results.new_folder(folder))
    found = {False: outcome.metrics}
    if configs.resolve(method=method).evaluation.tte:
        evaluation = session.config.evaluation.model_copy(update={"tte": True})
        five = replace(session, config=session.config.model_copy(update={"evaluation": evaluation}))
        inside = results.new_folder(folder / "tte")
        found[True] = runs.test(five, model, dataset, "test", dataset.counts(), inside, {})
    tuned, seconds = train.trained_parameters(model), round(outcome.seconds, 1)
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
    console.out.print(f"Rows: {out / 'results.json'}. Each run's model, metrics and predictions: {out}/METHOD-seedN/")


def _mean(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


def _refuse_foreign(out: Path) -> None:
    """Leave alone what is not an earlier demo's."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} holds something other than a demo's results. Choose another folder with --out.")


def _clear(out: Path) -> None:
    """Make room for a new demo: remove an earlier one's runs and rows, nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    (out / "results.json").unlink(missing_ok=True)
    for method in METHODS:
        for folder in out.glob(f"{method}-seed*"):
            shutil.rmtree(folder)
