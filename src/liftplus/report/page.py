"""Write a report: report.html, and figures/ with each figure as PNG and its numbers as CSV."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from liftplus import config
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.machine.progress import Progress, Silent
from liftplus.report import chart, content, feature_figures, features, figures, findings, folders, read, thumbnails
from liftplus.report.chart import Chart, LineStyle
from liftplus.report.features import Distances
from liftplus.report.folders import Given
from liftplus.report.judgement import Judgement, judge
from liftplus.report.series import MEASURES, Series, grouped
from liftplus.words import counted

PAGE, MARKER = "report.html", ".liftplus-report"
CHARTS = (
    *("accuracy", "accuracy_by_count", "long_tail", "loss", "lr", "reliability", "tte"),
    *("intra_class_distance", "distance_gap", "separation"),
)
SHOWN_SERIES = 8  # the largest number of series whose confused pairs are shown
SHOWN = 40  # rows of a figure's table on the page


@dataclass
class Draft:
    """A report that is being made.

    Attributes:
        series: the series of runs.
        judgement: their intervals and differences.
        out: the report's folder.
        datasets: loaded data sets by their settings; the one under "" is for all runs.
        charts: the charts so far, by name.
        problems: what could not be shown, one sentence each.
    """

    series: list[Series]
    judgement: Judgement
    out: Path
    datasets: dict[str, DataSet] = field(default_factory=dict)
    charts: dict[str, Chart] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, *made: Chart | None) -> None:
        """Add the charts that are not None."""
        self.charts |= {one.name: one for one in made if one is not None}

    def data(self, one: Series) -> DataSet:
        """The data that a series was trained on; raises UserError if they cannot be read any more."""
        wanted = config.from_dict(one.config).data
        key = "" if "" in self.datasets else wanted.model_dump_json()
        if key not in self.datasets:
            try:
                self.datasets[key] = sources.load(wanted.model_copy(update={"unreadable": "stop"}))
            except (OSError, ImportError) as error:
                raise UserError(f"The data cannot be read ({error}).") from error
        return self.datasets[key]

    @property
    def counts(self) -> tuple[int, ...]:
        """Training pictures of each class."""
        return next((run.train_counts for one in self.series for run in one.runs if run.train_counts), ())


def write(
    runs: Sequence[Given] | Given,
    out: Given,
    *,
    with_features: bool = False,
    per_class: int = 50,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    dataset: DataSet | None = None,
) -> Path:
    """Write a report about one or several runs of one data set, in place of an earlier one.

    Args:
        runs: one or several run folders, or folders with runs inside, as `compare`, `sweep` and `reproduce` write
            them. Runs that differ only in their seed form one series.
        out: the report's folder: new, empty, or that of an earlier report.
        with_features: compute features with the runs' models for "Why heavy fine-tuning hurts". This needs the data
            and the backbone's weights. The distances are kept in the folder.
        per_class: the largest number of pictures per class and split whose features are computed.
        say: called with a sentence for each thing that had to be left out.
        dataset: the runs' data, if already loaded.

    Returns:
        the page's path.

    Raises:
        UserError: a folder is not a run, runs have different classes, or `out` holds something else.
    """
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    if not given:
        raise UserError("Give at least one run folder.")
    out = Path(out).expanduser()
    refuse_foreign(out)
    paths, notes = folders.chosen(given)
    series = grouped([read.run(path) for path in paths])
    prepare(out)
    judgement = judge(series)
    problems = [text for one in series for run in one.runs for text in run.problems]
    draft = Draft(series, judgement, out, problems=[*notes, *problems, *judgement.problems])
    if dataset is not None:
        draft.datasets[""] = dataset
    draft.add(figures.accuracy(series, judgement), figures.accuracy_by_count(series), figures.tail(series))
    draft.add(figures.curves(series, "loss"), figures.curves(series, "lr"))
    draft.add(figures.reliability(series), figures.tte(series, judgement))
    watching = progress or Silent()
    distances = _features(draft, per_class, watching) if with_features else []
    values = _values(draft, distances, watching) | {"per_class": per_class, "with_features": with_features}
    values |= _feature_note(draft, distances, with_features)
    _tables(draft, values)
    for text in draft.problems:
        (say or (lambda _text: None))(text)
    page = out / PAGE
    disk.write_bytes(page, render(values | {"problems": draft.problems}).encode(errors="replace"))
    return page


def refuse_foreign(out: Path) -> None:
    """Raise UserError if the folder holds something other than a report."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} holds something other than a report. Choose another folder with --out.")


def prepare(out: Path) -> None:
    """Make the folder and delete an earlier report's figures."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    (out / PAGE).unlink(missing_ok=True)
    for suffix in ("png", "csv"):
        for old in (out / "figures").glob(f"*.{suffix}"):
            old.unlink()


def _features(draft: Draft, per_class: int, progress: Progress) -> list[Distances]:
    try:
        found, problems = features.measure(draft.series, draft.data(draft.series[0]), draft.out, per_class, progress)
    except UserError as error:
        draft.problems.append(f"Features could not be computed: {error}")
        return []
    draft.problems += problems
    places = {one.label: place for place, one in enumerate(draft.series)}
    still = [place for place, one in enumerate(draft.series) if not one.config.get("tuner")]
    styles = [LineStyle.of(still[0] if still else len(places)), *(LineStyle.of(places[d.label]) for d in found[1:])]
    draft.add(*feature_figures.charts(found, draft.counts, styles))
    return found


def _feature_note(draft: Draft, distances: Sequence[Distances], asked: bool) -> dict[str, Any]:
    note = command = None
    if not distances and not asked:
        paths = [str(run.folder) for one in draft.series for run in one.runs]
        command = shlex.join(["liftplus", "report", *paths, "--out", str(draft.out), "--features"])
        note = "To see whether that happened in these runs, compute their features with this command:"
    elif not distances:
        note = "Features could not be computed; the reason is at the top of this page."
    elif len(distances) == 1:
        note = "None of these runs tunes the backbone, so there is nothing to compare it with."
    return {"features_note": note, "features_command": command}


def _values(draft: Draft, distances: Sequence[Distances], progress: Progress) -> dict[str, Any]:
    """All values of the template except the figures."""
    series = draft.series
    first = series[0].runs[0]
    known = read.table(first.about.get("data"))
    found = findings.everything(series, draft.judgement, distances, draft.counts)
    heavy = [one for one in found if one.section == "features"]
    rows, sentence = content.groups(first) if first.train_counts else ([], "")
    seeds = [len(one.runs) for one in series]
    accuracy = content.accuracy(series, draft.judgement)
    promises, promised = content.promises(series)
    backbones = list(dict.fromkeys(str(read.table(one.config.get("backbone")).get("name", "?")) for one in series))
    return {
        "title": str(known.get("name") or (first.tested.what[0] if first.tested else "") or first.folder.name),
        "subtitle": f"{_runs(seeds)} · {', '.join(backbones[:3])}",
        "accuracy": accuracy,
        "proven": any(any(row["beaten"]) for row in accuracy),
        "split": " and ".join(dict.fromkeys(t.what[1] or "test" for one in series for t in one.tested)),
        "spread": max(seeds) > 1,
        "differences": content.differences(draft.judgement),
        "measures": [key.replace("_", " ") for key in MEASURES],
        "findings": [one for one in found if one not in heavy] + [one for one in heavy if one.sign == "bad"],
        "heavy": heavy,
        "levels": content.levels(series),
        "others": content.others(series),
        "groups": rows,
        "imbalance": sentence,
        "notes": [str(text) for text in known.get("notes") or ()][:5],
        "tte_commands": _tte_commands(series),
        "promises": promises,
        "promised": "–" if promised is None else f"{promised:g} %",
        "cost": content.cost(series),
        "cost_header": content.COST_HEADER,
        "runs": [content.record(run) for one in series for run in one.runs],
        "version": version("liftplus"),
    } | _confused(draft, progress)


def _runs(seeds: Sequence[int]) -> str:
    """The numbers of runs and seeds in words; `seeds` has the number of seeds of each series."""
    if len(seeds) == sum(seeds):
        return counted(len(seeds), "run")
    each = str(max(seeds)) if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"{sum(seeds)} runs, {each} seeds each"


def _tte_commands(series: Sequence[Series]) -> list[str]:
    """For each series tested with only one number of crops, the command that tests its first run with the other."""
    lines = []
    for one in series:
        if one.tested and not any(run.other_crops for run in one.runs):
            run = next(run for run in one.runs if run.tested)
            five = not (run.tested is not None and run.tested.tte)
            lines.append(shlex.join(["liftplus", "eval", str(run.folder), f"evaluation.tte={str(five).lower()}"]))
    return lines


def _confused(draft: Draft, progress: Progress) -> dict[str, Any]:
    """The confused pairs of each series, the best series first, with pictures if the data can still be read."""
    chosen = [one for one in draft.series if any(t.confusion and t.classes for t in one.tested)]
    if not chosen:
        return {"confused": [], "pictures_note": None, "confused_more": 0}
    note = None
    top, known = content.best(chosen), len(chosen)
    chosen = sorted(chosen, key=lambda one: one is not top)[:SHOWN_SERIES]
    entries = []
    with progress.task("Pictures of confused classes", len(chosen)) as advance:
        for one in chosen:
            dataset = None
            try:
                dataset = draft.data(one)
            except UserError as error:
                note = f"No pictures are shown, because the run's data cannot be read: {error}"
            found = thumbnails.pairs(one, dataset)
            entries.append(content.entry(draft.series, draft.series.index(one)) | {"pairs": found})
            advance()
    shown = any(p.wrong or p.example for e in entries for p in e["pairs"])
    if shown:
        note = None
    elif note is None and any(e["pairs"] for e in entries):
        note = "No pictures are shown, because none of the tested files can be read any more."
    return {"confused": entries, "pictures_note": note, "confused_more": known - len(entries)}


def _tables(draft: Draft, values: dict[str, Any]) -> None:
    """Write every figure and table into figures/, and add what the template needs of them to `values`."""
    folder, shown = draft.out / "figures", {}
    for name, one in draft.charts.items():
        rows = [[_short(cell) for cell in row] for row in one.rows[:SHOWN]]
        shown[name] = {
            "name": name,
            "title": one.title,
            "reading": one.reading,
            "header": one.header,
            "rows": rows,
            "more": max(0, len(one.rows) - SHOWN),
            "wide": one.figure.get_figwidth() > 6,
            "svg": Markup(chart.save(one, folder)),
        }
    if draft.judgement.differences:
        header = ("a", "b", "key", "points", "half", "p", "adjusted", "seeds", "images", "exceeds")
        lines = [[chart.cell(getattr(one, key)) for key in header] for one in draft.judgement.differences]
        disk.write_csv(folder / "differences.csv", header, lines)
    columns, rows = content.class_table(draft.series)
    values["has_ids"] = any(column["key"] == "id" for column in columns)
    if rows:
        disk.write_csv(folder / "classes.csv", [column["title"] for column in columns], rows)
    columns_of_pairs = ["series", "true", "predicted", "images", "seeds", "test_images", "share"]
    columns_of_pairs += ["true_train_images", "predicted_train_images"]
    pairs = [(e["label"], *p.row()) for e in values["confused"] for p in e["pairs"]]
    if values["confused"]:
        disk.write_csv(folder / "confused_pairs.csv", columns_of_pairs, pairs)
    disk.write_csv(folder / "cost.csv", content.COST_HEADER, ([e["label"], *e["cells"]] for e in values["cost"]))
    values["charts"] = {name: shown.get(name) for name in CHARTS}
    values["classes"] = content.script_json({"columns": columns, "rows": rows}) if rows else None
    values["sections"] = _sections(values)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def _sections(values: dict[str, Any]) -> list[tuple[str, str]]:
    charts = values["charts"]
    chances = charts["reliability"] or charts["tte"] or values["tte_commands"] or values["promises"]
    there = [
        ("accuracy", "Accuracy", charts["accuracy"]),
        ("data", "Data", charts["long_tail"] or charts["loss"]),
        ("classes", "Classes", values["classes"]),
        ("confused", "Confused", values["confused"]),
        ("calibration", "Probabilities", chances),
        ("features", "Heavy or light", True),
        ("cost", "Cost and record", True),
    ]
    return [(section, name) for section, name, held in there if held]


def render(values: dict[str, Any]) -> str:
    """The page as HTML. Values that are not marked as safe are escaped."""
    here = files("liftplus.report")
    parts = {name: Markup((here / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(values | parts)
