"""Make the missing runs of a plan. Everything that is missing is reported before any work, and processes share it."""

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
from liftplus.words import counted, duration

PAUSE = 2.0  # seconds between checks of runs that other processes are making
TIMES = "times.jsonl"
KEPT = 4  # data sets that stay loaded
Job = tuple[int, Experiment]


@dataclass
class Work:
    """Makes the runs of a plan.

    Attributes:
        session: opens a run with given settings on this machine.
        say: called with each line for the user.
    """

    plan: Plan
    session: Callable[[RunConfig], Session]
    say: Callable[[str], None]
    _data: dict[str, DataSet] = field(default_factory=dict)

    def check(self) -> None:
        """Check that nothing is missing, and download the weights.

        Raises:
            UserError: lists everything that is missing, and what to put where.
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
                "\n".join(["No run was started, because something is missing:", *(f"* {text}" for text in wrong)])
            )

    def _tell_of(self, dataset: DataSet) -> None:
        if "test" not in dataset.splits:
            raise UserError(f"{dataset.name!r} has no test split, so runs cannot be tested. Add a test split.")
        for text in dataset.notes:
            self.say(f"Note: {dataset.name}: {text}")

    def data(self, config: RunConfig) -> DataSet:
        """A data set. The last few stay loaded for the runs that follow."""
        key = config.data.model_dump_json()
        dataset = self._data.pop(key, None) or self.session(config).data()
        self._data = dict([*self._data.items(), (key, dataset)][-KEPT:])
        return dataset

    def do(self) -> list[str]:
        """Make every missing run and test. Returns a sentence on each run that failed because of its own settings."""
        self.plan.note()
        failed: list[str] = []
        jobs = self.plan.jobs()
        todo, first = [(f"[{number} of {len(jobs)}]", job) for number, job in enumerate(jobs, 1)], True
        while todo:
            waiting: list[Job] = []
            failed += [text for place, job in todo if (text := self._attempt(job, place, waiting)) is not None]
            if waiting and first:
                self.say(f"Another process is making {counted(len(waiting), 'run')}; waiting for it.")
            elif waiting:
                time.sleep(PAUSE)
            todo, first = [("[once more]", job) for job in waiting], False
        return failed

    def _attempt(self, job: Job, place: str, waiting: list[Job]) -> str | None:
        """Make one run and its test, or add it to `waiting` if another process is making it. Returns why it failed."""
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
        """Make a run and its test if needed; returns the folder of the test."""
        folder, config = self.plan.folder(experiment, seed), self.plan.config(experiment, seed)
        dataset = self.data(config)
        settings = as_begun(folder, config)
        try:
            reuse.run(self.session(settings), dataset, folder)
        except UserError:
            if (begun := as_begun(folder, config)) == settings:
                raise
            reuse.run(self.session(begun), dataset, folder)  # another process began it meanwhile, for another test
        return reuse.tested(self.session(config), dataset, folder)


def as_begun(folder: Path, config: RunConfig) -> RunConfig:
    """A run's settings with the test settings of the run in the folder, which another experiment may have begun."""
    begun = changes.begun_with(folder)
    return config if begun is None else config.model_copy(update={"evaluation": begun.evaluation})


def shown(figures: dict[str, float | None]) -> str:
    """The accuracies of a test in one line."""
    keys = ("overall", "many", "medium", "few")
    return ", ".join(f"{key} {value:.1f}" for key in keys if (value := figures[key]) is not None)


@dataclass(frozen=True)
class Outlook:
    """How much of a plan is done, and how long the rest takes.

    Attributes:
        tests: number of tests; `tested` of them are done.
        trainings: number of runs that they test; `trained` of them are finished.
        measured: seconds for missing tests with their trainings, as far as the same experiment was timed here or in the
            catalogue.
        estimated: seconds for missing trainings by an estimate.
        unknown: number of missing tests whose time is not known.
    """

    tests: int
    tested: int
    trainings: int
    trained: int
    measured: float
    estimated: float
    unknown: int

    def sentence(self) -> str:
        """The outlook in words."""
        text = f"Tests: {self.tests}, of which {self.tested} are finished. Trainings for them: {self.trainings}, of "
        text += f"which {self.trained} are finished."
        if self.measured:
            text += f" The rest takes about {duration(self.measured)}, going by earlier runs."
        if self.estimated:
            also = " another" if self.measured else ""
            text += f" Training takes{also} {duration(self.estimated)} by estimate (see `liftplus reproduce list`)."
        if self.unknown:
            text += f" The time of {counted(self.unknown, 'test')} is not known."
        return text


def outlook(plan: Plan) -> Outlook:
    """How much of a plan is done, and how long the rest takes for one process."""
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
        elif not first:  # only a test is missing, which takes little time
            continue
        elif (guess := needs.estimate(plan.outline(one), one.source)) is not None:
            estimated += guess
        else:
            unknown += 1
    done = len(jobs) - len(missing)
    return Outlook(len(jobs), done, len(trainings), len(trained), measured, estimated, unknown)


def timed(out: Path) -> dict[str, float]:
    """Median seconds of each experiment's tests here; they include a training if the test was the first to need it."""
    path = out / TIMES
    found: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):  # a crash may cut a line short
            entry = json.loads(line)
            found.setdefault(entry["experiment"], []).append(float(entry["seconds"]))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def finished_test(plan: Plan, experiment: Experiment, seed: int) -> Path | None:
    """The folder of a finished test; None if it is not finished."""
    folder = plan.folder(experiment, seed)
    if not (folder / reuse.PREDICTIONS).is_file() or not (folder / changes.CONFIG).is_file():
        return None
    inside = reuse.test_folder(folder, plan.config(experiment, seed).evaluation)
    return inside if (inside / reuse.PREDICTIONS).is_file() else None
