"""The content of the page's tables and lists, as plain values for the template."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from liftplus import config
from liftplus.errors import UserError
from liftplus.evaluation.differences import Answers, caveat, named
from liftplus.evaluation.metrics import group_of
from liftplus.report import read
from liftplus.report.chart import swatch
from liftplus.report.judgement import Judgement
from liftplus.report.read import Run
from liftplus.report.series import MEASURES, Series, Spread, flat
from liftplus.training import recipe
from liftplus.words import counted

COST_HEADER = (
    "run",
    "tuned weights",
    "classifier weights",
    "share trained",
    "training time",
    "memory",
    "device",
    "precision",
)


DIFFERENCES = 40  # sentences on the page; the CSV has all differences


def entry(series: Sequence[Series], place: int) -> dict[str, Any]:
    """Label, colour and pattern of a series."""
    return {"label": series[place].label} | swatch(place)


def accuracy(series: Sequence[Series], judgement: Judgement) -> list[dict[str, Any]]:
    """Rows of the table of results, one for each series and number of crops.

    A cell has the mean, its deviation over seeds, its 95 % interval, its number of test pictures, and `best`: no other
    row beats it by more than noise. If no row is beaten at all, no cell is `best`.
    """
    rows = []
    for place, one in enumerate(series):
        for tte in (False, True):
            tests = one.tests(tte)
            if tests:
                spreads = [
                    Spread.of([read.number(test.metrics.get(key)) for test in tests.values()]) for key in MEASURES
                ]
                answers = judgement.answers(one.label, tte)
                cells = [_cell(spread, answers, key) for spread, key in zip(spreads, MEASURES, strict=True)]
                beaten = [judgement.beaten(named(one.label, tte), key) for key in MEASURES]
                if cells[0]["images"] is None:  # the predictions are missing
                    cells[0]["images"] = next(iter(tests.values())).metrics.get("images")
                about = {"crops": "five" if tte else "one", "seeds": len(tests)}
                rows.append(entry(series, place) | {"cells": cells, "beaten": beaten} | about)
    for k in range(len(MEASURES)):
        proven = any(row["beaten"][k] for row in rows)
        for row in rows:
            row["cells"][k]["best"] = proven and not row["beaten"][k] and row["cells"][k]["images"] is not None
    return rows


def levels(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Rows of the table of levels above the classes: by series, number of crops and level, the highest first.

    Cells are the level, its number of groups, and accuracies over the seeds: overall and as a mean over groups.
    """
    rows = []
    for place, one in enumerate(series):
        for tte in (False, True):
            tests = [read.table(test.metrics.get("levels")) for test in one.tests(tte).values()]
            for name in dict.fromkeys(name for test in tests for name in test):
                own = [read.table(test.get(name)) for test in tests]
                spreads = [Spread.of([read.number(o.get(key)) for o in own]) for key in ("overall", "mean_group")]
                groups = read.number(own[0].get("groups"))
                cells = [name, "–" if groups is None else f"{groups:,.0f}", *map(_over_seeds, spreads)]
                rows.append(entry(series, place) | {"crops": "five" if tte else "one", "cells": cells})
    return rows


def _over_seeds(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.mean:.1f}" + ("" if spread.sd is None else f" ± {spread.sd:.1f}")


def _cell(spread: Spread | None, answers: Answers | None, key: str) -> dict[str, Any]:
    interval = answers.interval(key) if answers and spread else None
    return {
        "mean": "–" if spread is None else f"{spread.mean:.1f}",
        "sd": "" if spread is None or spread.sd is None else f"{spread.sd:.1f}",
        "interval": f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else "",
        "images": answers.pictures(key) if answers and interval else None,
    }


def differences(judgement: Judgement) -> dict[str, Any]:
    """One sentence per difference, and what the intervals mean."""
    found = [one for one in judgement.differences if one.key in ("overall", "few")]
    return {
        "sentences": [one.sentence() for one in found[:DIFFERENCES]],
        "more": max(0, len(found) - DIFFERENCES),
        "caveat": caveat(min(one.seeds for one in found)) if found else "",
    }


def others(series: Sequence[Series]) -> list[list[str]]:
    """One row for each further test found inside the run folders."""
    rows = []
    for run in (run for one in series for run in one.runs):
        for tested in run.others:
            figures = [tested.metrics.get(key) for key in MEASURES]
            shown = ["–" if figure is None else f"{figure:.1f}" for figure in figures]
            images = str(tested.metrics.get("images", "–"))
            rows.append([str(tested.folder), *tested.what, images, "five" if tested.tte else "one", *shown])
    return rows


def promises(series: Sequence[Series]) -> tuple[list[list[str]], float | None]:
    """Of each calibrated run's last test: coverage and size of its sets by rule and group; and what they promise, in %.

    A run that was calibrated but not tested since has no row.
    """
    rows, promised = [], None
    for run in (run for one in series for run in one.runs):
        found = [t for t in run.others if read.table(read.table(t.metrics.get("calibration")).get("sets"))]
        if not found:
            continue
        last = max(found, key=lambda tested: (tested.folder / "metrics.json").stat().st_mtime)
        about = read.table(last.metrics["calibration"])
        promised = read.number(about.get("promised_coverage"))
        for by, own in read.table(about["sets"]).items():
            cells = [read.table(read.table(own).get(name)) for name in ("overall", "many", "medium", "few")]
            rows.append([str(last.folder), by, *map(_covered, cells)])
    return rows, promised


def _covered(cell: dict[str, Any]) -> str:
    """Coverage, size and number of pictures of a group, in a cell."""
    figures = [read.number(cell.get(key)) for key in ("coverage", "size", "pictures")]
    if any(figure is None for figure in figures):
        return "–"
    coverage, size, pictures = (figure or 0.0 for figure in figures)
    return f"{coverage:.1f} % with {size:.1f} ({pictures:,.0f})"


def groups(run: Run) -> tuple[list[list[str]], str]:
    """Numbers of classes and training pictures of each group, and a sentence on the imbalance."""
    counts, classes, pictures = run.train_counts, Counter[str](), Counter[str]()
    for n in counts:
        classes[group_of(n)] += 1
        pictures[group_of(n)] += n
    total = sum(counts)
    rows = [
        [name, f"{classes[name]:,}", f"{pictures[name]:,}", f"{100 * pictures[name] / max(total, 1):.1f} %"]
        for name in ("many", "medium", "few")
    ]
    least = min((n for n in counts if n), default=0)
    ratio = max(counts) / least if least else 0.0
    told = f", an imbalance ratio of {f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.2g}'}" if least else ""
    text = (
        f"{counted(len(counts), 'class', 'classes')} with {max(counts):,} to {min(counts):,} of "
        f"{counted(total, 'training picture')}{told}."
    )
    return rows, text


def class_table(series: Sequence[Series]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Columns and rows of the table of classes."""
    classes = next((t.classes for s in series for t in s.tested if t.classes), ())
    has_ids = any(row.id not in (row.name, str(k)) for k, row in enumerate(classes))
    columns: list[dict[str, Any]] = [
        {"key": "name", "title": "Class", "kind": "text"},
        {"key": "number", "title": "No.", "kind": "count"},
        *([{"key": "id", "title": "Id", "kind": "text"}] if has_ids else []),
        {"key": "group", "title": "Group", "kind": "group"},
        {"key": "train", "title": "Train", "kind": "count"},
        {"key": "test", "title": "Test", "kind": "count"},
    ]
    found = [(place, values) for place, one in enumerate(series) if (values := one.per_class())]
    for place, _ in found:
        columns.append({"key": f"s{place}", "title": series[place].label, "kind": "percent"} | swatch(place))
    focus = best(series)
    columns.append({"key": "taken", "title": f"Often taken for ({focus.label})", "kind": "text"})
    taken: dict[int, str] = {}
    for true, guess, _ in focus.confusion():
        if max(true, guess) < len(classes):
            taken.setdefault(true, classes[guess].name)
    rows = []
    for k, row in enumerate(classes):
        values = [None if v[k] is None else round(v[k] or 0.0, 2) for _, v in found]
        ids = [row.id] if has_ids else []
        rows.append([row.name, k, *ids, row.group, row.train_images, row.test_images, *values, taken.get(k)])
    return columns, rows


def best(series: Sequence[Series]) -> Series:
    """The series with the highest overall accuracy."""
    return max(series, key=lambda one: m.mean if (m := one.measure("overall")) else -1.0)


def script_json(value: Any) -> Markup:
    """JSON for a script element, escaped so that it cannot end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def cost(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Numbers of weights, time, memory and machine of each series."""
    rows = []
    for place, one in enumerate(series):
        about = one.runs[0].about
        weights, versions = read.table(about.get("parameters")), read.table(about.get("versions"))
        tuned, head = weights.get("tuned"), weights.get("head")
        all_ = sum(n for n in weights.values() if isinstance(n, int))
        moved = (tuned or 0) + (head or 0) if read.table(one.config.get("train")).get("epochs") else 0
        share = f"{100 * moved / all_:.2f} %" if all_ else "–"
        seconds = Spread.of([run.seconds for run in one.runs])
        peaks = [run.tested.metrics.get("peak_memory_bytes") for run in one.runs if run.tested]
        peak = max((p for p in peaks if isinstance(p, int)), default=None)
        cells = [
            "–" if tuned is None else f"{tuned:,}",
            "–" if head is None else f"{head:,}",
            share,
            _time(seconds),
            "–" if peak is None else f"{peak / 2**20:,.0f} MiB",
            str(versions.get("hardware") or versions.get("device") or "–"),
            str(versions.get("precision", "–")),
        ]
        rows.append(entry(series, place) | {"cells": cells})
    return rows


def _time(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.mean >= 5400:
        return f"{spread.mean / 3600:.1f} h"
    return f"{spread.mean:.0f} s" + (f" ± {spread.sd:.0f}" if spread.sd is not None else "")


def record(run: Run) -> dict[str, Any]:
    """Command, versions and settings of one run."""
    command = run.about.get("command")
    typed = command if isinstance(command, str) else None
    plain = typed is not None and typed.startswith(("liftplus train --data", "liftplus zeroshot", "liftplus train -d"))
    versions = run.about.get("versions")
    return {
        "folder": str(run.folder),
        "command": typed,
        "alone": None if plain else alone(run.config),
        "versions": list(versions.items()) if isinstance(versions, dict) else [],
        "config": [(key, _plain(value)) for key, value in flat(run.config)],
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _chooses(run: config.RunConfig, key: str) -> bool:
    """Whether recipe=auto chooses this setting of a run."""
    return f"{key}.".startswith(tuple(f"{one}." for one in run.automatic))


def alone(values: dict[str, Any]) -> str | None:
    """The command that makes a run with these settings; None if no command surely does.

    Settings that recipe=auto chose are left out, because it chooses the same ones again.
    """
    try:
        run = config.from_dict(config.saved(values))
        usual = recipe.usual(run.data.source)
        named = {"data": run.data.source, "backbone": run.backbone.name, "method": run.method, "recipe": usual}
        given = [] if run.backbone.weights is None else [f"backbone.weights={run.backbone.weights}"]
        base = config.resolve(**named, overrides=given)
        given += [f"tuner={'+'.join(run.tuner) or 'none'}"] if list(run.tuner) != list(base.tuner) else []
        given += [] if run.recipe == usual else [f"recipe={run.recipe}"]
        parts = [key for key in config.PARTS if key not in run.automatic]
        given += [f"{k}={getattr(run, k).name}" for k in parts if getattr(run, k).name != getattr(base, k).name]
        base = config.resolve(**named, overrides=given)
        before, after = config.flat(base), config.flat(run)
        chosen = tuple(f"{key}." for key in ("automatic", *run.automatic))
        given += [
            f"{key}={_plain(value)}"
            for key, value in after.items()
            if not f"{key}.".startswith(chosen) and (before.get(key) != value or _chooses(base, key))
        ]
        if recipe.as_begun(config.resolve(**named, overrides=given), run) != run:
            return None
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    words = [
        "liftplus",
        "train",
        "--data",
        str(run.data.source),
        "--backbone",
        run.backbone.name,
        "--method",
        run.method,
    ]
    return shlex.join(words + given)
