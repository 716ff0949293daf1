"""The runs of a plan, made or found: everything missing is told before any work, and processes share the work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from liftplus import results, reuse, runs
from liftplus.config import RunConfig, from_dict
from liftplus.data.dataset import DataSet
from liftplus.errors import InUseError, RunFailedError, UserError
from liftplus.reproduce import needs
from liftplus.reproduce.catalogue import Experiment
from liftplus.reproduce.plan import Plan
from liftplus.runs import Session

PAUSE = 2.0  # seconds between looks at runs that other processes are making
KEPT = 4  # data sets that are kept open
Job = tuple[int, Experiment]


@dataclass
class Work:
    """A plan under way.

    Attributes:
        session: the settings of a run on this machine.
        told: gets a sentence for people.
        note: called when a figure more is there.
    """

    plan: Plan
    session: Callable[[RunConfig], Session]
    told: Callable[[str], None]
    note: Callable[[], None] = lambda: None
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
            self.told(f"Note: {dataset.name}: {text}")

    def data(self, config: RunConfig) -> DataSet:
        """A data set, read once for the runs that follow each other."""
        key = config.data.model_dump_json()
        dataset = self._data.pop(key, None) or self.session(config).data()
        self._data = dict([*self._data.items(), (key, dataset)][-KEPT:])
        return dataset

    def do(self) -> list[str]:
        """Make every run and test that is missing; sentences about runs that their own settings ended."""
        self.plan.note()
        waiting: list[Job] = []
        failed: list[str] = []
        jobs = self.plan.jobs()
        for number, job in enumerate(jobs, 1):
            if (text := self._attempt(job, f"[{number} of {len(jobs)}]", waiting)) is not None:
                failed.append(text)
        if waiting:
            self.told(f"{len(waiting)} are being made by another process; waiting for them.")
        while waiting:
            again, waiting = waiting, []
            for job in again:
                if (text := self._attempt(job, "[once more]", waiting)) is not None:
                    failed.append(text)
            if waiting:
                time.sleep(PAUSE)
        return failed

    def _attempt(self, job: Job, place: str, waiting: list[Job]) -> str | None:
        """One run and its test; put with the waiting if another process is at it. Why it failed, if it did."""
        seed, experiment = job
        name = f"{place} {experiment.name}, seed {seed}"
        start = time.monotonic()
        try:
            folder = self._one(experiment, seed)
        except InUseError:
            waiting.append(job)
            return None
        except RunFailedError as error:
            self.told(f"{name}: failed. {error}")
            return f"{experiment.name}, seed {seed}: {error}"
        figures = reuse.metrics(folder)
        spent = time.monotonic() - start
        self.told(f"{name}: {shown(figures)} ({spent:.0f} s)")
        self.note()
        return None

    def _one(self, experiment: Experiment, seed: int) -> Path:
        """The folder of a test, after whatever it took."""
        folder, config = self.plan.folder(experiment, seed), self.plan.config(experiment, seed)
        dataset = self.data(config)
        reuse.run(self.session(as_begun(folder, config)), dataset, folder)
        return reuse.tested(self.session(config), dataset, folder)


def as_begun(folder: Path, config: RunConfig) -> RunConfig:
    """The settings of a run, tested as the run in the folder is, which another experiment may have begun."""
    if not (folder / runs.CONFIG).is_file():
        return config
    begun = from_dict(results.read_json(folder / runs.CONFIG, "config")["config"])
    return config.model_copy(update={"evaluation": begun.evaluation})


def shown(figures: dict[str, float | None]) -> str:
    """The accuracies of a test in a line."""
    cells = [
        f"{key} {value:.1f}" for key in ("overall", "many", "medium", "few") if (value := figures[key]) is not None
    ]
    return ", ".join(cells)


@dataclass(frozen=True)
class Outlook:
    """What lies ahead.

    Attributes:
        tests: figures to be had, and `tested` of them there.
        trainings: runs behind them, `trained` of them finished.
        seconds: of training those that are missing, as far as that is known.
        unknown: trainings of which it is not.
        measured: whether the seconds are from runs measured in this folder or noted in the catalogue, alone.
    """

    tests: int
    tested: int
    trainings: int
    trained: int
    seconds: float
    unknown: int
    measured: bool

    def sentence(self) -> str:
        """For a person, before the work."""
        text = f"{self.tests} tests of {self.trainings} trainings; found finished: {self.tested} and {self.trained}."
        left = self.trainings - self.trained
        if not left:
            return text
        basis = "by runs like them" if self.measured else "an estimate, see `liftplus reproduce list`"
        if self.unknown < left:
            text += f" Training the others takes about {duration(self.seconds)} in all ({basis})."
        if self.unknown:
            text += f" How long {self.unknown} of them take is not known."
        return text


def outlook(plan: Plan) -> Outlook:
    """How much of a plan is done, and how long the rest takes."""
    jobs = plan.jobs()
    tests = [finished_test(plan, one, seed) for seed, one in jobs]
    trainings = {plan.folder(one, seed): (one, seed) for seed, one in jobs}
    missing = [pair for folder, pair in trainings.items() if not (folder / reuse.LAST).is_file()]
    each = [expected_seconds(plan, one) for one, _ in missing]
    known = [found for found in each if found is not None]
    return Outlook(
        len(jobs),
        sum(folder is not None for folder in tests),
        len(trainings),
        len(trainings) - len(missing),
        sum(seconds for seconds, _ in known),
        len(each) - len(known),
        all(measured for _, measured in known),
    )


def finished_test(plan: Plan, experiment: Experiment, seed: int) -> Path | None:
    """The folder of a test that has been made."""
    folder = plan.folder(experiment, seed)
    if not (folder / reuse.LAST).is_file() or not (folder / runs.CONFIG).is_file():
        return None
    inside = reuse.test_folder(folder, plan.config(experiment, seed).evaluation)
    return inside if (inside / reuse.LAST).is_file() else None


def expected_seconds(plan: Plan, experiment: Experiment) -> tuple[float, bool] | None:
    """Seconds of training one run, and whether they were measured; None if there is no telling."""
    found = [
        seconds
        for folder in plan.out.glob(f"{_literal(experiment.training)}-seed*")
        if (folder / reuse.LAST).is_file() and (seconds := reuse.metrics(folder).get("seconds")) is not None
    ]
    if found:
        return statistics.median(found), True
    if experiment.seconds is not None:
        return experiment.seconds, True
    seconds = needs.estimate(plan.config(experiment, 0), experiment.source)
    return None if seconds is None else (seconds, False)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def duration(seconds: float) -> str:
    """Roughly, for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
