"""Numbered pieces of work that several processes share through Optuna's storage, each done once.

Optuna's queue hands a waiting trial to one process, and its heartbeat finds the trials of processes that died. What it
leaves to its users is to start exactly so many trials, and to start the dead ones again: so each trial here bears the
number of a ticket, a ticket without a live trial gets a new one, and a trial that came into being twice is dropped.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from liftplus.errors import RunFailedError, UserError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

BEAT, GRACE = 15, 60
"""Seconds between a process's signs of life, and without one until its trial is given to another."""
POLL = 2.0
"""Seconds between two looks at whether others have finished."""
TICKET, BEGUN, ERROR = "ticket", "begun", "error"
SQLITE_PATIENCE = 120  # seconds that a process waits while others write

Point = dict[str, Any]
Objective = Callable[["Trial", int], tuple[float | None, dict[str, Any]]]
"""From Optuna's trial and the ticket's number to a value, and what to note beside it."""


class _Unneeded(Exception):  # noqa: N818 (the trial is dropped; nothing went wrong)
    pass


def storage(url: str) -> RDBStorage:
    """Optuna's database, with signs of life; one that cannot be opened is refused."""
    with _quiet():
        try:
            import optuna
            from sqlalchemy import event
            from sqlalchemy.exc import ArgumentError, SQLAlchemyError
        except ImportError as error:
            raise UserError("A sweep needs Optuna. Install it with: pip install 'liftplus[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sqlite = url.startswith("sqlite")
        engine = {"connect_args": {"timeout": SQLITE_PATIENCE, "isolation_level": None}} if sqlite else {}
        try:
            made = optuna.storages.RDBStorage(url, engine, heartbeat_interval=BEAT, grace_period=GRACE)
        except ImportError as error:
            raise UserError(f"--storage {_shown(url)} needs a driver: {str(error).splitlines()[0]}") from error
        except (ArgumentError, ValueError) as error:
            raise UserError(
                f"--storage {_shown(url)} is no database's address. Write sqlite:///FILE, "
                "postgresql+psycopg://USER@HOST/NAME or mysql+pymysql://USER@HOST/NAME."
            ) from error
        except (SQLAlchemyError, RuntimeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"--storage {_shown(url)} cannot be opened ({reason}).") from error
        if sqlite:
            # SQLite knows no row locks, and Python's driver begins a transaction at the first write, after what was
            # read to decide on it: two processes took the same waiting trial (optuna issue 4002).
            event.listen(made.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        made.record_heartbeat = partial(_beat, made.record_heartbeat)  # type: ignore[method-assign]
        return made


def _beat(record: Callable[[int], None], trial: int) -> None:
    """A sign of life. From Optuna's thread one may fail: the next makes up for it, where an error would be the end."""
    try:
        record(trial)
    except Exception:  # whatever the database's driver raises
        if threading.current_thread() is threading.main_thread():
            raise


@contextmanager
def reached() -> Iterator[None]:
    """A storage that fails under way, or is gone, in a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]  # Optuna may fall over its own handling of a storage's error
        while behind := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(behind)
        blamed = [one for one in chain if type(one).__module__.partition(".")[0] in ("sqlalchemy", "optuna")]
        if not blamed:
            raise
        reason = str(blamed[-1].__cause__ or blamed[-1]).splitlines()[0]
        raise UserError(
            f"The storage failed ({reason}). Finished trials are kept; when it works again, the same command goes on."
        ) from error


def _shown(url: str) -> str:
    """An address without the password in it."""
    head, at, tail = url.rpartition("@")
    return repr(f"{head.rpartition(':')[0]}:…@{tail}" if at and head.count(":") > 1 else url)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls its heartbeat experimental; the versions that liftplus allows have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ticket(trial: FrozenTrial) -> int | None:
    """The number of a trial's ticket; None for one that a race left over."""
    number: int | None = trial.user_attrs.get(TICKET)
    return number


class Tickets:
    """Tickets 0 to N-1 in an Optuna study.

    Args:
        study: shared by all processes.
        points: for each ticket the values that its trial takes; those it lacks are left to the study's sampler.
        told: told in a sentence what a process waits for.
    """

    def __init__(self, study: Study, points: Sequence[Point], told: Callable[[str], None]) -> None:
        self.study, self.points, self.told = study, points, told

    def trials(self) -> dict[int, FrozenTrial]:
        """The trial that stands for each ticket: the finished one, else the live one, else the last that failed."""
        import optuna

        state = optuna.trial.TrialState
        rank = {state.FAIL: 0, state.WAITING: 1, state.RUNNING: 2, state.COMPLETE: 3}
        found: dict[int, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            number = ticket(trial)
            if number is None or number >= len(self.points) or trial.state not in rank:
                continue
            before = found.get(number)
            if before is None or _settled(trial) or (not _settled(before) and rank[trial.state] >= rank[before.state]):
                found[number] = trial
        return found

    def work(self, objective: Objective) -> None:
        """Do tickets until all are done, by this process or others.

        `RunFailedError` out of the objective is noted on the ticket, which then counts as done; whatever else it raises
        ends the work, and the ticket waits for the next process.
        """
        import optuna

        state, waiting = optuna.trial.TrialState, False
        while True:
            self._refill()
            now = list(self.trials().values())
            if any(trial.state == state.WAITING for trial in now):
                waiting = False
                self._do_one(objective)
            elif running := sum(trial.state == state.RUNNING for trial in now):
                if not waiting:
                    self.told(f"Waiting for {running} that other processes have begun …")
                waiting = True
                time.sleep(POLL)
            elif all(map(_settled, now)):
                return

    def _refill(self) -> None:
        """A waiting trial for each ticket that has no live one."""
        import optuna

        with _quiet():
            optuna.storages.fail_stale_trials(self.study)
        state, now = optuna.trial.TrialState, datetime.now()
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            # Killed between taking the trial and the first sign of life, which Optuna does not notice.
            began = trial.datetime_start or now
            if BEGUN not in trial.user_attrs and now - began > timedelta(seconds=GRACE):
                self._fail(trial.number)
        have = self.trials()
        for number, point in enumerate(self.points):
            last = have.get(number)
            if last is None or (last.state == state.FAIL and not _settled(last)):
                values = point if last is None or not last.params else last.params
                self.study.enqueue_trial(values, user_attrs={TICKET: number})

    def _fail(self, number: int) -> None:
        import optuna

        self.study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _do_one(self, objective: Objective) -> None:
        import optuna

        over: list[int] = []

        def one(trial: Trial) -> float:
            number = trial.user_attrs.get(TICKET)
            if number is None or self._is_taken(number, trial.number):
                raise _Unneeded
            # Optuna's own first sign comes from a thread: killed before it, a trial would count as alive for ever.
            self.study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            trial.set_user_attr(BEGUN, True)
            try:
                value, about = objective(trial, number)
            except RunFailedError as error:
                value, about = None, {ERROR: error.what}
            over.append(trial.number)
            for key, item in about.items():
                trial.set_user_attr(key, item)
            if value is None:
                raise _Unneeded
            return value

        try:
            with _quiet():
                self.study.optimize(one, n_trials=1, catch=(_Unneeded,))
        except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError):
            # Nothing can be told of a trial that others held for dead, after a computer slept, say. They do it again.
            if not over or self.study.get_trials()[over[0]].state != optuna.trial.TrialState.FAIL:
                raise

    def _is_taken(self, number: int, mine: int) -> bool:
        """Whether another trial has this ticket: one that began before, or is done."""
        import optuna

        dead = optuna.trial.TrialState.FAIL
        return any(
            _settled(trial) or (trial.number < mine and trial.state != dead)
            for trial in self.study.get_trials(deepcopy=False)
            if ticket(trial) == number and trial.number != mine
        )


def _settled(trial: FrozenTrial) -> bool:
    """Whether a ticket needs no more work after this trial."""
    return trial.state.name == "COMPLETE" or (trial.state.name == "FAIL" and ERROR in trial.user_attrs)
