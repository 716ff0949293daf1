"""The runs of a plan, made or found: everything missing is told before any work, and processes share the work."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import InUseError, RunFailedError, UserError
from liftplus.machine import disk
from liftplus.reproduce import needs
from liftplus.reproduce.catalogue import Experiment
from liftplus.reproduce.plan import Plan
from liftplus.runs import changes, reuse
from liftplus.runs.opening import Session
from liftplus.words import agreeing, duration

PAUSE = 2.0  # seconds between looks at runs that other processes are making
TIMES = "times.jsonl"
KEPT = 4  # data sets that are kept open
Job = tuple[int, Experiment]


@dataclass
class Work:
    """A plan under way.

    Attributes:
        session: the settings of a run on this machine.
        say: gets a sentence for people.
    """

    plan: Plan
    session: Callable[[RunConfig], Session]
    say: Callable[[str], None]
    _data: dict[str, DataSet] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot end well, all of it at once, and fetch the weights.

        Raises:
            UserError: what is missing, and what to put where.
        """
        self.plan.check()
        configs = [(one.source, self.plan.config(one, 0)) for one in self.plan.experiments]
        wrong = needs.missing(configs)
        if not wrong:
            for _, config in {config.data.model_dump_json(): (0, config) for _, config in configs}.values():
                try:
                    self._tell_of(self.data(config))
                except UserError as error:
                    wrong.append(str(error))
        if wrong:
            raise UserError(
                "\n".join(["Nothing was begun, as something is missing:", *(f"* {text}" for text in wrong)])
            )

    def _tell_of(self, dataset: DataSet) -> None:
        if "test" not in dataset.splits:
            raise UserError(f"{dataset.name!r} has no test split, so nothing could be measured.")
        for text in dataset.notes:
            self.say(f"Note: {dataset.name}: {text}")

    def data(self, config: RunConfig) -> DataSet:
        """A data set, read once for the runs that follow each other."""
        key = config.data.model_dump_json()
        dataset = self._data.pop(key, None) or self.session(config).data()
        self._data = dict([*self._data.items(), (key, dataset)][-KEPT:])
        return dataset

    def do(self) -> list[str]:
        """Make every run and test that is missing; sentences about runs that their own settings ended."""
        self.plan.note()
        failed: list[str] = []
        jobs = self.plan.jobs()
        todo, first = [(f"[{number} of {len(jobs)}]", job) for number, job in enumerate(jobs, 1)], True
        while todo:
            waiting: list[Job] = []
            failed += [text for place, job in todo if (text := self._attempt(job, place, waiting)) is not None]
            if waiting and first:
                self.say(f"{len(waiting)} are being made by another process; waiting for them.")
            elif waiting:
                time.sleep(PAUSE)
            todo, first = [("[once more]", job) for job in waiting], False
        return failed

    def _attempt(self, job: Job, place: str, waiting: list[Job]) -> str | None:
        """One run and its test; put with the waiting if another process is at it. Why it failed, if it did."""
        seed, experiment = job
        name = f"{place} {experiment.name}, seed {seed}"
        start, there = time.monotonic(), finished_test(self.plan, experiment, seed) is not None
        try:
            folder = self._one(experiment, seed)
        except InUseError:
            waiting.append(job)
            return None
        except RunFailedError as error:
            self.say(f"{name}: failed. {error}")
            return f"{experiment.name}, seed {seed}: {error}"
        spent = time.monotonic() - start
        if not there:
            about = {"experiment": experiment.name, "seed": seed, "seconds": round(spent, 1)}
            disk.append_json(self.plan.out / TIMES, about)
        took = "found finished" if there else f"{spent:.0f} s"
        self.say(f"{name}: {shown(reuse.metrics(folder))} ({took})")
        return None

    def _one(self, experiment: Experiment, seed: int) -> Path:
        """The folder of a test, after whatever it took."""
        folder, config = self.plan.folder(experiment, seed), self.plan.config(experiment, seed)
        dataset = self.data(config)
        settings = as_begun(folder, config)
        try:
            reuse.run(self.session(settings), dataset, folder)
        except UserError:
            if (begun := as_begun(folder, config)) == settings:
                raise
            reuse.run(self.session(begun), dataset, folder)  # another process has begun it since, for another test
        return reuse.tested(self.session(config), dataset, folder)


def as_begun(folder: Path, config: RunConfig) -> RunConfig:
    """The settings of a run, tested as the run in the folder is, which another experiment may have begun."""
    begun = changes.begun_with(folder)
    return config if begun is None else config.model_copy(update={"evaluation": begun.evaluation})


def shown(figures: dict[str, float | None]) -> str:
    """The accuracies of a test in a line."""
    keys = ("overall", "many", "medium", "few")
    return ", ".join(f"{key} {value:.1f}" for key in keys if (value := figures[key]) is not None)


@dataclass(frozen=True)
class Outlook:
    """What lies ahead.

    Attributes:
        tests: figures to be had, and `tested` of them there.
        trainings: runs behind them, `trained` of them finished.
        measured: seconds for tests, trainings included, whose like has been timed here or is timed in the catalogue.
        estimated: seconds for trainings by an estimate.
        unknown: missing trainings, and tests without training, that there is no telling of.
    """

    tests: int
    tested: int
    trainings: int
    trained: int
    measured: float
    estimated: float
    unknown: int

    def sentence(self) -> str:
        """For a person, before the work."""
        text = f"Tests: {self.tests}, {self.tested} of them found finished. Trainings behind them: {self.trainings}, "
        text += f"{self.trained} found finished."
        if self.measured:
            text += f" By what such runs took, the rest takes about {duration(self.measured)}."
        if self.estimated:
            also = " further" if self.measured else ""
            text += f" By an estimate (see `liftplus reproduce list`), training takes{also} {duration(self.estimated)}."
        if self.unknown:
            text += f" How long {self.unknown} {agreeing(self.unknown, 'takes', 'of them take')} is not known."
        return text


def outlook(plan: Plan) -> Outlook:
    """How much of a plan is done, and how long the rest takes; two processes halve that."""
    jobs, times = plan.jobs(), timed(plan.out)
    missing = [(seed, one) for seed, one in jobs if finished_test(plan, one, seed) is None]
    trainings = {plan.folder(one, seed) for seed, one in jobs}
    trained = {folder for folder in trainings if (folder / reuse.PREDICTIONS).is_file()}
    measured = estimated = 0.0
    unknown, begun = 0, set(trained)
    for seed, one in missing:
        first = plan.folder(one, seed) not in begun
        begun.add(plan.folder(one, seed))
        if (known := times.get(one.name) or one.seconds) is not None:
            measured += known
        elif not first:  # a test alone, which takes little beside a training
            continue
        elif (guess := needs.estimate(plan.outline(one), one.source)) is not None:
            estimated += guess
        else:
            unknown += 1
    done = len(jobs) - len(missing)
    return Outlook(len(jobs), done, len(trainings), len(trained), measured, estimated, unknown)


def timed(out: Path) -> dict[str, float]:
    """Median seconds that each experiment took here, its training included where it was the first to need it."""
    path = out / TIMES
    found: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # a line cut short by a crash
            entry = json.loads(line)
            found.setdefault(entry["experiment"], []).append(float(entry["seconds"]))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def finished_test(plan: Plan, experiment: Experiment, seed: int) -> Path | None:
    """The folder of a test that has been made."""
    folder = plan.folder(experiment, seed)
    if not (folder / reuse.PREDICTIONS).is_file() or not (folder / changes.CONFIG).is_file():
        return None
    inside = reuse.test_folder(folder, plan.config(experiment, seed).evaluation)
    return inside if (inside / reuse.PREDICTIONS).is_file() else None
