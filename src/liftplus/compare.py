"""Several methods on the same data with the same seeds: run or found, tabled, and told apart from noise."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liftplus import config as configs
from liftplus import noise, results, reuse
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.noise import KEYS, Difference
from liftplus.runs import Session
from liftplus.space import split

COSTS = ("seconds", "tuned_parameters", "peak_memory_bytes")


@dataclass(frozen=True)
class Entry:
    """A method with settings of its own.

    Attributes:
        label: as the user wrote it.
        method: a preset's name.
        overrides: key=value pairs.
    """

    label: str
    method: str
    overrides: tuple[str, ...] = ()

    def folder(self, seed: int) -> str:
        """The name of a run's folder: METHOD-seedN."""
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.label)}-seed{seed}"


def entries(text: str) -> list[Entry]:
    """Methods from "lift+,full:lr=0.003,lift+:tuner=lora:epochs=10"."""
    found = []
    for part in split(text, ","):
        name, *settings = re.split(r":(?=[\w.]+=)", part)
        if not name:
            raise UserError(
                f"--methods {text!r} has an empty name. Write methods between commas, each with settings of its own "
                "after colons: lift+,full:lr=0.003."
            )
        found.append(Entry(part, name, tuple(settings)))
    folders = [entry.folder(0).casefold() for entry in found]
    if twice := [entry.label for entry, name in zip(found, folders, strict=True) if folders.count(name) > 1]:
        raise UserError(f"--methods names {twice[0]!r} twice, or another that its folder cannot be told from.")
    return found


@dataclass(frozen=True)
class Plan:
    """What is compared on what; seeds 0 to N-1."""

    data: str
    backbone: str
    entries: tuple[Entry, ...]
    seeds: int = 3
    overrides: tuple[str, ...] = ()

    def config(self, entry: Entry, seed: int) -> RunConfig:
        """The settings of one run; a method that trains nothing heeds no number of epochs given for all."""
        preset = configs.resolve(data=self.data, backbone=self.backbone, method=entry.method)
        still = () if preset.train.epochs else ("train.epochs=0",)
        given = [*self.overrides, *still, *entry.overrides, f"seed={seed}"]
        return configs.resolve(data=self.data, backbone=self.backbone, method=entry.method, overrides=given)

    def check(self) -> None:
        """Refuse settings that would make the runs incomparable."""
        for given in (*self.overrides, *(o for entry in self.entries for o in entry.overrides)):
            if given.partition("=")[0].strip() in ("seed", "method"):
                raise UserError(f"{given!r} cannot be set here; --seeds and --methods say it.")
        made = {entry.label: self.config(entry, 0) for entry in self.entries}
        first = next(iter(made.values()))
        for label, config in made.items():
            if config.data != first.data:
                raise UserError(f"{label!r} has data settings of its own; give them for all, outside of --methods.")


@dataclass(frozen=True)
class Row:
    """One tested run; accuracies in percent, `seconds` of training, memory of the device (or process) at its peak."""

    method: str
    tte: bool
    seed: int
    overall: float
    mean_class: float
    many: float | None
    medium: float | None
    few: float | None
    seconds: float
    tuned_parameters: int
    peak_memory_bytes: int | None
    folder: str

    @property
    def name(self) -> str:
        """The method, and five crops where they were averaged."""
        return named(self.method, self.tte)


def named(method: str, tte: bool) -> str:
    """How a table calls a method tested with one crop, or with five."""
    return f"{method} (five crops)" if tte else method


def run(
    plan: Plan,
    out: Path,
    session: Callable[[RunConfig], Session],
    told: Callable[[str], None],
    note: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Make the runs that are missing below `out`, and read all of them; `note` gets the rows as they come.

    A finished run of the same settings and data is taken as it is, an unfinished one goes on. A method that averages
    five crops is tested with one as well, so that it can be compared with methods that do not.
    """
    plan.check()
    dataset = session(plan.config(plan.entries[0], 0)).data()
    if "test" not in dataset.splits:
        raise UserError(f"{dataset.name!r} has no test split, so nothing could be compared.")
    for text in dataset.notes:
        told(f"Note: {text}")
    jobs = [(seed, entry) for seed in range(plan.seeds) for entry in plan.entries]
    have = [reuse.finished(out / entry.folder(seed), plan.config(entry, seed), dataset) for seed, entry in jobs]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for number, ((seed, entry), made) in enumerate(zip(jobs, have, strict=True), 1):
        told(f"{entry.label} with seed {seed} ({number} of {len(jobs)}){': found finished' if made else ' …'}")
        rows += _rows(entry, seed, session(plan.config(entry, seed)), dataset, out / entry.folder(seed))
        note(rows)
    return rows


def _rows(entry: Entry, seed: int, session: Session, dataset: DataSet, folder: Path) -> list[Row]:
    """One run, made or found, tested with one crop, and with five where the method says so."""
    found = reuse.run(session, dataset, folder)
    five = session.config.evaluation.tte
    single = reuse.one_crop(session, dataset, folder) if five else folder
    one = reuse.metrics(single) if five else found
    row = Row(
        method=entry.label,
        tte=False,
        seed=seed,
        **{key: one[key] for key in KEYS},
        seconds=round(found.get("seconds", 0.0), 1),
        tuned_parameters=found.get("trained_parameters", 0),
        peak_memory_bytes=found.get("peak_memory_bytes"),
        folder=str(single),
    )
    if not five:
        return [row]
    return [row, replace(row, tte=True, folder=str(folder), **{key: found[key] for key in KEYS})]


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each method and number of crops mean and standard deviation over seeds; None where there is no value."""
    out = []
    for method, tte in dict.fromkeys((row.method, row.tte) for row in rows):
        same = [row for row in rows if (row.method, row.tte) == (method, tte)]
        line: dict[str, Any] = {"method": method, "tte": tte, "runs": len(same)}
        for key in (*KEYS, *COSTS):
            values = [value for row in same if (value := getattr(row, key)) is not None]
            line[key] = {
                "mean": statistics.mean(values) if values else None,
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
        out.append(line)
    return out


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Every two methods with the same number of crops, and five crops against one; read from their predictions."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    tested = {name: read_tests([Path(row.folder) for row in same]) for name, same in by_name.items()}
    first = next(iter(tested.values()))
    families = list(_families({name: same[0] for name, same in by_name.items()}))
    pairs = [pair for family in families for pair in family]
    found: list[Difference] = []
    for key in KEYS:
        weight, strata = noise.weights(key, first.labels, first.train_counts)
        if not weight.any():
            continue
        compared = []
        for family in families:
            names = list(dict.fromkeys(name for pair in family for name in pair))
            places = [(names.index(a), names.index(b)) for a, b in family]
            training = [by_name[name][0].method for name in names]
            compared += noise.compare_all([tested[name].right for name in names], places, weight, strata, training)
        adjusted = noise.holm([one.p for one in compared])
        for (a, b), one, corrected in zip(pairs, compared, adjusted, strict=True):
            seeds = min(len(tested[a].right), len(tested[b].right))
            images = int((weight > 0).sum())
            found.append(Difference(a, b, key, one.points, one.half, one.p, corrected, seeds, images, one.part))
    return found


def _families(first: dict[str, Row]) -> Iterator[list[tuple[str, str]]]:
    """Pairs by name that share the seeds' variance: of one crop, of five crops, and five crops against one."""
    pairs = list(combinations(first, 2))
    for tte in (False, True):
        yield [(a, b) for a, b in pairs if first[a].tte == first[b].tte == tte]
    yield [(a, b) for a, b in pairs if first[a].method == first[b].method]


@dataclass(frozen=True)
class Tested:
    """Which images S runs of a method got right, [S, N], in the order of the test split, and the images' classes [N].

    Attributes:
        images: the images' names and true classes, which two methods must share to be compared.
        train_counts: of each class.
    """

    right: NDArray[np.float64]
    labels: NDArray[np.int64]
    images: tuple[tuple[str, str], ...]
    train_counts: tuple[int, ...]


def read_tests(folders: Sequence[Path]) -> Tested:
    """Runs that differ by seed, from the folders of their tests."""
    classes = _table(folders[0] / "per_class.csv", "name", "train_images")
    index = {line["name"]: k for k, line in enumerate(classes)}
    shown = [_table(folder / "predictions.csv", "path", "true", "correct") for folder in folders]
    labels = np.array([index[line["true"]] for line in shown[0]], dtype=np.int64)
    right = np.array([[float(line["correct"]) for line in lines] for lines in shown])
    images = tuple((line["path"], line["true"]) for line in shown[0])
    return Tested(right, labels, images, tuple(int(line["train_images"]) for line in classes))


def _table(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        if not lines or not set(columns) <= lines[0].keys():
            raise ValueError("columns are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}). Remove its run's folder to make it anew.") from error
    return lines


def headlines(rows: Sequence[Row], found: Sequence[Difference]) -> list[str]:
    """The sentences to read first: the best method against each other one, overall and on rare classes."""
    lines = summary(rows)
    out = []
    for key in ("overall", "few"):
        for tte in (False, True):
            scored = [line for line in lines if line["tte"] == tte and line[key]["mean"] is not None]
            if not scored:
                continue
            best = max(scored, key=lambda line: line[key]["mean"])
            name = named(best["method"], tte)
            out += [one.sentence() for one in found if one.key == key and name in (one.a, one.b)]
    return list(dict.fromkeys(out))


def caveat(seeds: int) -> str:
    """What the intervals are, and what they do not show."""
    if seeds == 1:
        return (
            "One seed proves nothing: other seeds give other accuracies, and how much they differ is not known. ± of a "
            "difference is a 95 % interval over test images alone. Give --seeds 3 to see which differences are more "
            "than noise."
        )
    return (
        f'± of a difference is a 95 % interval over {seeds} seeds and the test images together. "More than noise" '
        "holds for all comparisons of one accuracy at once: at most one set of comparisons in twenty has a false one "
        "(Holm, 5 %)."
    )


def write(out: Path, plan: Plan, rows: Sequence[Row], found: Sequence[Difference]) -> None:
    """compare.json, compare.csv (the table) and compare.md."""
    lines = summary(rows)
    about = {"data": plan.data, "backbone": plan.backbone, "overrides": plan.overrides, "seeds": plan.seeds}
    results.write_json(
        out / "compare.json",
        about
        | {
            "summary": lines,
            "differences": [asdict(one) | {"exceeds_noise": one.exceeds} for one in found],
            "rows": [asdict(row) for row in rows],
        },
    )
    header = ["method", "crops", "runs", *(f"{key}_{what}" for key in (*KEYS, *COSTS) for what in ("mean", "sd"))]
    results.write_csv(
        out / "compare.csv",
        header,
        (
            [
                line["method"],
                5 if line["tte"] else 1,
                line["runs"],
                *(
                    "" if line[key][what] is None else line[key][what]
                    for key in (*KEYS, *COSTS)
                    for what in ("mean", "sd")
                ),
            ]
            for line in lines
        ),
    )
    columns, cells = table(rows)
    text = [f"# {plan.data} with {plan.backbone}", "", "Accuracy in percent, mean ± standard deviation over seeds.", ""]
    text += [_line(columns), _line(["---"] * len(columns)), *map(_line, cells), ""]
    text += [*(f"* {one.sentence()}" for one in found), "", caveat(plan.seeds), ""]
    results.write_bytes(out / "compare.md", "\n".join(text).encode(errors="backslashreplace"))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the table for people; without the groups that the data lacks."""
    lines = summary(rows)
    shown = [key for key in KEYS if any(line[key]["mean"] is not None for line in lines)]
    columns = ["method", *(key.replace("_", " ") for key in shown), "seconds", "trained weights", "memory GiB"]
    cells = []
    for line in lines:
        memory = line["peak_memory_bytes"]["mean"]
        cells.append(
            [
                named(line["method"], line["tte"]),
                *(_spread(line[key]) for key in shown),
                f"{line['seconds']['mean']:.1f}",
                f"{line['tuned_parameters']['mean']:,.0f}",
                "–" if memory is None else f"{memory / 2**30:.1f}",
            ]
        )
    return columns, cells


def _spread(value: dict[str, float | None]) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.1f}" + ("" if value["sd"] is None else f" ± {value['sd']:.1f}")
