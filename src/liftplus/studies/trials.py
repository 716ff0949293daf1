"""Numbered trials that processes share. Each is done once: a file lock marks a running trial, Optuna keeps results.

The operating system releases a lock when its process dies, so the trial of a dead process is free again at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftplus.errors import InUseError, RunFailedError
from liftplus.machine import disk
from liftplus.words import counted

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

POLL = 2.0
"""Seconds between checks whether other processes have finished."""
NUMBER, ERROR, TOOK = "ticket", "error", "took"  # studies of earlier versions use the name "ticket"

Point = dict[str, Any]
Scored = tuple[float, dict[str, Any]]
"""A trial's score, and attributes to store with it."""
Objective = Callable[[Point, int], Scored]
"""Maps a trial's values and number to its result."""


class Trials:
    """Trials 0 to N-1 of an Optuna study.

    Args:
        study: shared by all processes.
        folder: shared by all processes; holds a lock file for each trial.
        points: each trial's values; an empty point is chosen by the study's sampler.
        ranges: Optuna's distribution of each value, by name.
        say: called with a line when the process waits.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        points: Sequence[Point],
        ranges: Mapping[str, BaseDistribution],
        say: Callable[[str], None],
    ) -> None:
        self.study, self.folder, self.points, self.ranges, self.say = study, folder, points, dict(ranges), say

    def settled(self) -> dict[int, FrozenTrial]:
        """Trials that need no more work, by number: complete, or failed with an error of the run itself."""
        found = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs[NUMBER]: trial for trial in found if NUMBER in trial.user_attrs and _settled(trial)}

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Hold a trial's lock; yields False if another process holds it."""
        name = f".{self.study.study_name.rpartition('-')[2]}-{number:03d}.lock"
        with ExitStack() as held:
            mine = True
            try:
                held.enter_context(disk.locked(self.folder, name=name))
            except InUseError:
                mine = False
            yield mine

    def at_work(self) -> list[int]:
        """Numbers of the trials that other processes are doing."""
        busy = []
        for number in self._left():
            with self.claimed(number) as mine:
                busy += [] if mine else [number]
        return busy

    def work(self, objective: Objective) -> None:
        """Do trials until all are done, by this process or others.

        If the objective raises `RunFailedError`, the trial is recorded as failed and counts as done. Any other
        exception ends the work, and the trial stays free for the next process.
        """
        waiting = False
        while left := self._left():
            if any(self._done(number, objective) for number in left):
                waiting = False
                continue
            if not waiting:
                self.say(f"Waiting for {counted(len(left), 'trial')} of other processes …")
            waiting = True
            time.sleep(POLL)

    def _left(self) -> list[int]:
        """Numbers of the trials that still need work."""
        settled = self.settled()
        return [number for number in range(len(self.points)) if number not in settled]

    def _done(self, number: int, objective: Objective) -> bool:
        """Do one trial; False if another process is doing it."""
        with self.claimed(number) as mine:
            if mine and number not in self.settled():
                self._do(number, objective)
            return mine

    def _do(self, number: int, objective: Objective) -> None:
        from optuna.trial import TrialState, create_trial

        asked = self._asked(number)
        values = self.points[number] if asked is None else asked.params
        state, result, clock = TrialState.COMPLETE, None, time.monotonic()
        try:
            result, about = objective(values, number)
        except RunFailedError as error:
            state, about = TrialState.FAIL, {ERROR: error.what}
        about = about | {NUMBER: number, TOOK: time.monotonic() - clock}
        ranges = {name: self.ranges[name] for name in values}
        # A trial from `ask` only reserves its values. The result becomes a new trial, and the reservation is closed.
        self.study.add_trial(
            create_trial(state=state, value=result, params=values, distributions=ranges, user_attrs=about)
        )
        if asked is not None:
            self.study.tell(asked.number, state=TrialState.FAIL, skip_if_finished=True)

    def _asked(self, number: int) -> FrozenTrial | Trial | None:
        """The sampler's values for a trial, also those chosen before a process died; None if its values are given."""
        found = self.study.get_trials(deepcopy=False)
        mine = [trial for trial in found if trial.user_attrs.get(NUMBER) == number and trial.params]
        begun = next((trial for trial in mine if not trial.state.is_finished()), None)
        if begun is not None or self.points[number] or not self.ranges:
            return begun
        trial = self.study.ask(self.ranges)
        trial.set_user_attr(NUMBER, number)
        return trial


def _settled(trial: FrozenTrial) -> bool:
    return trial.state.name == "COMPLETE" or (trial.state.name == "FAIL" and ERROR in trial.user_attrs)
