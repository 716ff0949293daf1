"""A sweep: many runs of one method over ranges of settings and seeds, shared by any number of processes.

Settings are compared on the validation split. No test picture is read before the last trial has ended.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftplus.config import RunConfig, flat, from_dict, saved
from liftplus.data.dataset import DataSet
from liftplus.errors import InUseError, UserError
from liftplus.machine import disk
from liftplus.runs import changes, reuse
from liftplus.runs.opening import Session
from liftplus.studies import storage, trials
from liftplus.studies.search import METRICS, STARTUP, Search
from liftplus.studies.space import SEED, Choices, Point, Range
from liftplus.studies.trials import Scored, Trials
from liftplus.words import duration

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

ABOUT, RESULTS, TABLE = "sweep.json", "results.json", "trials.csv"


@dataclass(frozen=True)
class Done:
    """The present state of one trial or test run.

    Attributes:
        number: the number in its folder's name.
        state: complete, failed, running or waiting.
        point: its values.
        metrics: accuracies in percent, training seconds and more; empty without a result.
        folder: the name of its folder inside the sweep's.
        error: why it failed, else None.
    """

    number: int
    state: str
    point: Point
    metrics: dict[str, Any]
    folder: str
    error: str | None = None


@dataclass(frozen=True)
class Setting:
    """One setting, with the trials that differ only in their seed.

    Attributes:
        trials: their numbers.
        mean, sd: of the metric over the trials, in percent; sd is None for one trial.
    """

    point: Point
    trials: tuple[int, ...]
    mean: float
    sd: float | None


@dataclass
class Sweep:
    """A sweep in its folder.

    Args:
        folder: holds the runs and tables; all processes share it.
        plan: what to try.
        session: opens a run with given settings on this machine.
        say: called with each line for the user.
        storage: Optuna's database as an SQLAlchemy URL; by default its journal in the folder.
        tested: the test runs, filled by `run`.
    """

    folder: Path
    plan: Search
    session: Callable[[RunConfig], Session]
    say: Callable[[str], None]
    storage: str | None = None
    tested: list[Done] = field(default_factory=list)

    def run(self) -> None:
        """Do all remaining trials and test runs, and wait for those that other processes are doing.

        Raises:
            UserError: the data do not fit, the folder holds another sweep, or the storage failed.
        """
        dataset = self.session(self.plan.base).data()
        self.plan.check(dataset)
        points = self.plan.points()
        for note in dataset.notes:
            self.say(f"Note: {note}")
        with storage.reached():
            self._all(dataset, points)

    def _all(self, dataset: DataSet, points: Sequence[Point]) -> None:
        study = self._study("")
        # No trial can use a test split that it does not have.
        seen = replace(dataset, splits={name: part for name, part in dataset.splits.items() if name != "test"})
        varied = self.plan.space.varied
        native = [
            {k: given.number(v) if isinstance(given := varied[k], Range) else v for k, v in point.items()}
            for point in points
        ]
        queue = Trials(study, self.folder, native, {k: _range(given) for k, given in varied.items()}, self.say)
        self._refuse_mixed(queue, seen)
        self._sample(queue)
        queue.work(lambda values, number: self._trial(values, number, seen, queue))
        self._write(queue)
        if self.plan.test_seeds:
            self._test(dataset, queue)

    def _refuse_mixed(self, queue: Trials, dataset: DataSet) -> None:
        """Refuse to go on beside trials of other pictures or other backbone weights."""
        for number, trial in queue.settled().items():
            folder = self.folder / f"trial-{number:03d}"
            if (folder / changes.CONFIG).is_file():
                reuse.finished(folder, self.plan.space.config(self._text(trial.params)), dataset)

    def trials(self, queue: Trials) -> list[Done]:
        """The present state of every trial, by number."""
        settled, busy = queue.settled(), queue.at_work()
        return [
            self._done(number, settled[number], "trial-{:03d}")
            if number in settled
            else Done(number, "running" if number in busy else "waiting", self._text(point), {}, f"trial-{number:03d}")
            for number, point in enumerate(queue.points)
        ]

    def _study(self, suffix: str) -> Study:
        """Optuna's study, made by the first process. Raises UserError if the folder holds another sweep."""
        own = {disk.LOCK, ABOUT, f"{ABOUT}.tmp"}  # another process may just have written these
        foreign = self.folder.exists() and (not self.folder.is_dir() or {p.name for p in self.folder.iterdir()} - own)
        if foreign and not (self.folder / ABOUT).is_file():
            disk.refuse_existing(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with disk.locked(self.folder, disk.PATIENCE):
                about = self._about()
                # Optuna fails if two processes create the same tables at once.
                opened = storage.opened(self.storage, self.folder)
                import optuna

                name = f"{self.folder.name or 'sweep'}-{about['id']}{suffix}"
                study = optuna.create_study(storage=opened, study_name=name, direction="maximize", load_if_exists=True)
                storage.drain(study)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Cannot write to {str(self.folder)!r} ({reason}). Choose another --out.") from error
        return study

    def _sample(self, queue: Trials) -> None:
        """Set the study's sampler for values that are not settled before."""
        if self.plan.kind != "tpe":
            return
        import optuna

        # A single process is reproducible; several with the same seed would all draw the same values.
        seed = None if queue.at_work() else self.plan.base.seed
        queue.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed
        )

    def _about(self) -> dict[str, Any]:
        """The description of the folder's sweep. The first process writes it; the others compare theirs with it."""
        plan = self.plan
        varied = {k: list(v.values) if isinstance(v, Choices) else asdict(v) for k, v in plan.space.varied.items()}
        fixed = {k: v for k, v in flat(plan.base).items() if k not in changes.FREE and k not in varied}
        mine = {"varied": varied, "sampler": plan.kind, "metric": plan.metric, "settings": fixed}
        path = self.folder / ABOUT
        if path.is_file():
            found = disk.read_json(path, "id", *mine)
            changed = [key for key in ("varied", "sampler", "metric") if found[key] != mine[key]]
            before = _in_force(found["settings"])
            changed += [key for key in fixed if before.get(key) != fixed[key] and "varied" not in changed]
            if changed:
                raise UserError(
                    f"{str(self.folder)!r} holds another sweep, which differs in: {', '.join(changed[:4])}. Give the "
                    "same command to continue it, or another --out."
                )
            return dict(found)
        about = {"id": secrets.token_hex(4)} | mine
        disk.write_json(path, about)
        return about

    def _text(self, values: dict[str, Any]) -> Point:
        """The point for values from Optuna."""
        return {key: given.text(values[key]) for key, given in self.plan.space.varied.items() if key in values}

    def _trial(self, values: dict[str, Any], number: int, dataset: DataSet, queue: Trials) -> Scored:
        """Train one setting and measure it on the validation split."""
        point = self._text(values)
        figures = self._run(point, self.folder / f"trial-{number:03d}", dataset, "val", f"trial {number}")
        value = float(figures[self.plan.metric])
        self._progress(queue, number, value)
        return value, {"metrics": figures}

    def _run(self, point: Point, folder: Path, dataset: DataSet, split: str, name: str) -> dict[str, Any]:
        self.say(f"{name}: {', '.join(f'{key}={_short(value)}' for key, value in point.items())} …")
        session = self.session(self.plan.space.config(point))
        while True:
            try:
                return reuse.run(session, dataset, folder, split)
            except InUseError:  # another process still runs it, without holding the trial's lock
                time.sleep(trials.POLL)

    def _progress(self, queue: Trials, number: int, value: float) -> None:
        """Print a trial's result and the time left, and rewrite the tables."""
        others = [one for one in self._write(queue) if one.number != number]
        done = [one for one in others if one.state in ("complete", "failed")]
        scored = {one.number: float(one.metrics[self.plan.metric]) for one in done if one.metrics} | {number: value}
        best = max(scored, key=lambda k: (scored[k], -k))
        spent = [trial.user_attrs[trials.TOOK] for trial in queue.settled().values() if trials.TOOK in trial.user_attrs]
        left = len(queue.points) - len(done) - 1
        workers = 1 + sum(one.state == "running" for one in others)
        text = f"trial {number}: {self.plan.metric} {value:.1f} on validation, best {scored[best]:.1f} (trial {best}), "
        text += f"{len(done) + 1} of {len(queue.points)} done"
        if left and spent:
            text += f", about {duration(left * statistics.mean(spent) / workers)} left"
        self.say(text)

    def settings(self, trials: Sequence[Done]) -> list[Setting]:
        """The settings whose trials are all complete, best mean first; a tie goes to the earlier one."""
        groups: dict[tuple[tuple[str, str], ...], list[Done]] = {}
        for one in trials:
            groups.setdefault(tuple((k, v) for k, v in one.point.items() if k != SEED), []).append(one)
        found = []
        for key, members in groups.items():
            if any(one.state != "complete" for one in members):
                continue
            values = [float(one.metrics[self.plan.metric]) for one in members]
            sd = statistics.stdev(values) if len(values) > 1 else None
            found.append(Setting(dict(key), tuple(one.number for one in members), statistics.mean(values), sd))
        return sorted(found, key=lambda setting: -setting.mean)

    def _test(self, dataset: DataSet, queue: Trials) -> None:
        """Train the best setting with several seeds and test it. A sweep's folder tests one setting only."""
        best = self._best(queue)
        study = self._study("-test")
        chosen = study.user_attrs.get("setting")
        if chosen not in (None, best.point):
            raise UserError(
                f"This sweep already tested {chosen}, but its best setting is now {best.point}. Testing another "
                "setting would choose by the test split. Start a new sweep with another --out."
            )
        study.set_user_attr("setting", best.point)
        start = 0 if SEED in self.plan.space.varied else self.plan.base.seed

        def objective(_values: dict[str, Any], number: int) -> Scored:
            point = best.point | {SEED: str(start + number)}
            figures = self._run(point, self.folder / f"test-seed{start + number}", dataset, "test", "test")
            return float(figures["overall"]), {"metrics": figures}

        seeds = Trials(study, self.folder, [{} for _ in range(self.plan.test_seeds)], {}, self.say)
        seeds.work(objective)
        self.tested = [self._done(start + n, trial, "test-seed{}") for n, trial in sorted(seeds.settled().items())]
        self._write(queue)

    def _best(self, queue: Trials) -> Setting:
        every = self.trials(queue)
        if ranked := self.settings(every):
            return ranked[0]
        reason = next((one.error for one in every if one.error), "none has ended")
        raise UserError(f"No setting has succeeded with all its seeds, so none can be tested. First failure: {reason}")

    def _done(self, number: int, trial: FrozenTrial, folder: str) -> Done:
        error, metrics = trial.user_attrs.get(trials.ERROR), trial.user_attrs.get("metrics", {})
        state = "failed" if error else "complete"
        return Done(number, state, self._text(trial.params), metrics, folder.format(number), error)

    def _write(self, queue: Trials) -> list[Done]:
        """Write results.json and trials.csv from the present state."""
        every = self.trials(queue)
        ranked = self.settings(every)
        about = disk.read_json(self.folder / ABOUT, "id")
        with disk.locked(self.folder, disk.PATIENCE):
            path = self.folder / RESULTS
            before = disk.read_json(path, "test")["test"] if path.is_file() else []
            disk.write_json(
                path,
                {key: about[key] for key in ("metric", "sampler", "varied", "settings")}
                | {
                    "split": "val",
                    "best": asdict(ranked[0]) if ranked else None,
                    "trials": [asdict(one) for one in every],
                    "test": [asdict(one) for one in self.tested] or before,
                },
            )
            rows = [
                {**one.metrics, **one.point, "trial": one.number, "state": one.state, "error": one.error or ""}
                for one in every
            ]
            header = ("trial", "state", *self.plan.space.varied, *METRICS, "seconds", "error")
            disk.write_csv(self.folder / TABLE, header, ([row.get(key, "") for key in header] for row in rows))
        return every


def _in_force(settings: dict[str, Any]) -> dict[str, Any]:
    """A sweep's recorded settings. Settings that its version of liftplus did not have yet get the value it used."""
    tuners: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, rest = key.partition(".")
        name, _, option = rest.partition(".")
        if section == "tuner" and option:
            tuners.setdefault(name, {})[option] = value
    return flat(from_dict(saved({"tuner": tuners}))) | settings


def _range(given: Choices | Range) -> BaseDistribution:
    """Optuna's distribution for a key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(given, Choices):
        return CategoricalDistribution(given.values)
    if given.whole:
        return IntDistribution(round(given.low), round(given.high), log=given.log)
    return FloatDistribution(given.low, given.high, log=given.log)


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}" if "." in value or "e" in value else value
    except ValueError:
        return value
