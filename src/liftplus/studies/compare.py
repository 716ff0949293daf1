"""Compare several methods on the same data with the same seeds, and say which differences are more than noise."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from liftplus import config as configs
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import DivergedError, UserError
from liftplus.evaluation.differences import Contender, caveat, counted, named, read_tests
from liftplus.evaluation.noise import KEYS, Difference
from liftplus.machine import disk
from liftplus.runs import debiasing, reuse
from liftplus.runs.opening import Session
from liftplus.studies.space import split
from liftplus.training import recipe

COSTS = ("seconds", "tuned_parameters", "peak_memory_bytes")


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        label: the method as the user wrote it.
        method: the name of a preset.
        overrides: this method's own key=value pairs.
    """

    label: str
    method: str
    overrides: tuple[str, ...] = ()

    def folder(self, seed: int) -> str:
        """The name of a run's folder: METHOD-seedN."""
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.label)}-seed{seed}"


def entries(text: str) -> list[Entry]:
    """Parse --methods, such as "lift+,full:lr=0.003,lift+:tuner=lora:epochs=10".

    Raises:
        UserError: a name is empty, or two methods would use the same folder.
    """
    found: list[Entry] = []
    for part in split(text, ","):
        name, *settings = re.split(r":(?=[\w.]+=)", part)
        if not name:
            raise UserError(
                f"--methods {text!r} has an empty name. Separate methods by commas, and give a method's own settings "
                "after colons: lift+,full:lr=0.003."
            )
        if "=" in name:
            before = f"{found[-1].label}:{part}" if found else f"lift+:{part}"
            raise UserError(
                f"--methods {text!r} has the setting {part!r} where a method should be. Put all settings of a method "
                f"after colons: {before}. Settings for all methods go to the end of the command."
            )
        found.append(Entry(part, name, tuple(settings)))
    folders = [entry.folder(0).casefold() for entry in found]
    if twice := [entry.label for entry, name in zip(found, folders, strict=True) if folders.count(name) > 1]:
        raise UserError(
            f"--methods names {twice[0]!r} twice, or another method that would use the same folder. Remove one of them."
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """What to compare: methods, data, backbone, settings for all methods, and the seeds 0 to `seeds` - 1.

    With `gla` every method is also tested with debiased zero-shot logits (`evaluation.gla`), but for the zero-shot one.
    """

    data: str
    backbone: str
    entries: tuple[Entry, ...]
    seeds: int = 3
    overrides: tuple[str, ...] = ()
    gla: bool = False

    def config(self, entry: Entry, seed: int) -> RunConfig:
        """The settings of one run. A method that trains nothing keeps `epochs=0` even if `overrides` set epochs."""
        run = self._resolved(entry, seed)
        return run if configs.published(run).train.epochs else self._resolved(entry, seed, "train.epochs=0")

    def _resolved(self, entry: Entry, seed: int, *still: str) -> RunConfig:
        given = [*self.overrides, *still, *entry.overrides, f"seed={seed}"]
        usual = recipe.usual(self.data)
        return configs.resolve(
            data=self.data, backbone=self.backbone, method=entry.method, overrides=given, recipe=usual
        )

    def check(self) -> None:
        """Check that the runs can be compared.

        Raises:
            UserError: a seed or method is among the settings, the methods differ in their data settings, or GLA is
                asked for and a backbone reads no text.
        """
        for given in (*self.overrides, *(o for entry in self.entries for o in entry.overrides)):
            if given.partition("=")[0].strip() in ("seed", "method"):
                raise UserError(f"{given!r} cannot be set here. Use --seeds and --methods instead.")
        made = {entry.label: self.config(entry, 0) for entry in self.entries}
        first = next(iter(made.values()))
        for config in made.values() if self.gla else ():
            debiasing.refuse_without_text(config.backbone)
        for label, config in made.items():
            if config.data != first.data:
                raise UserError(
                    f"{label!r} has its own data settings. Give them for all methods, outside of --methods."
                )


@dataclass(frozen=True)
class Row:
    """One tested run: accuracies in percent, training time in seconds, peak memory of the device (or process)."""

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
        """The method's name in tables, marked if five crops were averaged."""
        return named(self.method, self.tte)


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error."""

    method: str
    seed: int
    error: str

    def sentence(self) -> str:
        """Which run failed, and why."""
        return f"{self.method} with seed {self.seed} failed: {self.error}"


@dataclass(frozen=True)
class Made:
    """The result of a comparison: rows of the finished runs, and the runs that failed."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()

    def refuse_failures(self) -> None:
        """Raise UserError if any run failed."""
        if self.failures:
            lines = [f"* {one.sentence()}" for one in self.failures]
            runs = "One run" if len(lines) == 1 else f"{len(lines)} runs"
            raise UserError("\n".join([f"{runs} failed. The same command tries again.", *lines]))


def run(
    plan: Comparison,
    out: Path,
    session: Callable[[RunConfig], Session],
    say: Callable[[str], None],
    note: Callable[[list[Row]], None] = lambda rows: None,
) -> Made:
    """Make the missing runs of a comparison in folders below `out`, and return the rows of all runs.

    A finished run with the same settings and data is reused; an unfinished one continues. A method that averages five
    crops is also tested with one crop, for comparison with methods that use one. If a run fails, the others continue.

    Args:
        session: opens a run with given settings on this machine.
        say: called with each line for the user.
        note: called with all rows so far after each run.

    Raises:
        UserError: the runs cannot be compared, a folder holds another run, or all runs failed.
    """
    plan.check()
    dataset = session(plan.config(plan.entries[0], 0)).data()
    if "test" not in dataset.splits:
        raise UserError(f"{dataset.name!r} has no test split, so methods cannot be compared. Add a test split.")
    for text in dataset.notes:
        say(f"Note: {text}")
    jobs = [(seed, entry) for seed in range(plan.seeds) for entry in plan.entries]
    have = [reuse.finished(out / entry.folder(seed), plan.config(entry, seed), dataset) for seed, entry in jobs]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failures: list[Failure] = []
    for number, ((seed, entry), made) in enumerate(zip(jobs, have, strict=True), 1):
        say(f"{entry.label} with seed {seed} ({number} of {len(jobs)}){': found finished' if made else ' …'}")
        try:
            opened, folder = session(plan.config(entry, seed)), out / entry.folder(seed)
            own = _rows(entry.label, seed, opened, dataset, folder)
            rows += own
            if plan.gla and entry.method != "zeroshot":
                rows += [_with_gla(row, opened, dataset, folder) for row in own]
        except UserError as error:
            failures.append(Failure(entry.label, seed, _reason(error, entry)))
            say(f"{failures[-1].sentence()}{' The other runs continue.' if number < len(jobs) else ''}")
            continue
        note(rows)
    found = Made(tuple(rows), tuple(failures))
    if not rows:
        found.refuse_failures()
    return found


def _reason(error: UserError, entry: Entry) -> str:
    """Why a run failed. A diverged run cannot resume at another rate here, since its folder name holds its settings."""
    if isinstance(error, DivergedError):
        return f"{error.what} Give the method a lower rate in --methods: {entry.method}:lr=RATE."
    return str(error)


def _rows(label: str, seed: int, session: Session, dataset: DataSet, folder: Path) -> list[Row]:
    """The rows of one run: with one crop, and also with five if the method uses them. Makes the run if needed."""
    found = reuse.run(session, dataset, folder)
    five = session.config.evaluation.tte
    single = reuse.tested(_with_crops(session, five=False), dataset, folder) if five else folder
    one = reuse.metrics(single) if five else found
    row = Row(
        method=label,
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


def _with_gla(row: Row, session: Session, dataset: DataSet, run: Path) -> Row:
    """The row of a run's test with debiased zero-shot logits. Makes the test if needed."""
    folder = reuse.tested(_with_crops(session, five=row.tte), dataset, run, gla=True)
    found = reuse.metrics(folder)
    return replace(row, method=f"{row.method} + GLA", folder=str(folder), **{key: found[key] for key in KEYS})


def _with_crops(session: Session, *, five: bool) -> Session:
    evaluation = session.config.evaluation.model_copy(update={"tte": five})
    return replace(session, config=session.config.model_copy(update={"evaluation": evaluation}))


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each method and number of crops; None where there is no value."""
    out = []
    for method, tte in dict.fromkeys((row.method, row.tte) for row in rows):
        same = [row for row in rows if (row.method, row.tte) == (method, tte)]
        line: dict[str, Any] = {"method": method, "tte": tte, "runs": len(same)}
        for key in (*KEYS, *COSTS):
            mean, sd = mean_and_sd([value for row in same if (value := getattr(row, key)) is not None])
            line[key] = {"mean": mean, "sd": sd}
        out.append(line)
    return out


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean (None without values) and standard deviation (None for fewer than two values)."""
    return statistics.mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def contenders(rows: Sequence[Row]) -> list[Contender]:
    """Each method and number of crops, with its runs' right and wrong answers, read from their predictions."""
    same: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        same.setdefault((row.method, row.tte), []).append(row)
    return [
        Contender(method, tte, read_tests([Path(row.folder) for row in found], [row.seed for row in found]))
        for (method, tte), found in same.items()
    ]


def write(out: Path, plan: Comparison, made: Made, methods: Sequence[Contender], found: Sequence[Difference]) -> None:
    """Write compare.json, compare.csv (the table) and compare.md."""
    lines, answers = summary(made.rows), methods[0].answers
    about = {"data": plan.data, "backbone": plan.backbone, "overrides": plan.overrides, "seeds": plan.seeds}
    disk.write_json(
        out / "compare.json",
        about
        | {
            "test_images": {key: answers.pictures(key) for key in KEYS},
            "summary": lines,
            "differences": [asdict(one) | {"exceeds_noise": one.exceeds} for one in found],
            "rows": [asdict(row) for row in made.rows],
            "failed": [asdict(one) for one in made.failures],
        },
    )
    figures = [(key, what) for key in (*KEYS, *COSTS) for what in ("mean", "sd")]
    values = [["" if line[key][what] is None else line[key][what] for key, what in figures] for line in lines]
    disk.write_csv(
        out / "compare.csv",
        ["method", "crops", "runs", *(f"{key}_{what}" for key, what in figures)],
        ([line["method"], 5 if line["tte"] else 1, line["runs"], *v] for line, v in zip(lines, values, strict=True)),
    )
    columns, cells = table(made.rows)
    text = [f"# {plan.data} with {plan.backbone}", ""]
    text += [f"Accuracy in percent on {counted(answers)}. Mean ± standard deviation over seeds.", ""]
    text += [_line(columns), _line(["---"] * len(columns)), *map(_line, cells), ""]
    text += [*(f"* {one.sentence()}" for one in found), "", caveat(plan.seeds), ""]
    text += [f"* {one.sentence()}" for one in made.failures] + [""] * bool(made.failures)
    disk.write_bytes(out / "compare.md", "\n".join(text).encode(errors="backslashreplace"))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the table to print. Groups without classes are left out."""
    lines = summary(rows)
    uneven = len({line["runs"] for line in lines}) > 1  # a run failed
    shown = [key for key in KEYS if any(line[key]["mean"] is not None for line in lines)]
    groups = [key.replace("_", " ") for key in shown]
    columns = ["method", *["seeds"] * uneven, *groups, "seconds", "trained weights", "memory GiB"]
    cells = []
    for line in lines:
        memory = line["peak_memory_bytes"]["mean"]
        cells.append(
            [
                named(line["method"], line["tte"]),
                *[str(line["runs"])] * uneven,
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
