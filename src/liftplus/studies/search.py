"""What a sweep tries, and by which figure it chooses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.evaluation.metrics import group_of
from liftplus.studies.space import SEED, Point, Space
from liftplus.words import agreeing, counted

SAMPLERS = ("auto", "grid", "random", "tpe")
METRICS = ("mean_class", "overall", "many", "medium", "few")
STARTUP = 10
"""Trials of `tpe` that are drawn at random before it goes by what it has seen (Optuna's own default)."""
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class Search:
    """What a sweep tries, and by which figure it chooses.

    Attributes:
        space: the settings.
        sampler: grid, random or tpe; auto takes the grid where it has an end and no number of trials is given.
        trials: how many; None for all of a grid, or 20.
        metric: the validation accuracy that is maximised.
        test_seeds: runs of the best setting that are tested on the test split at the end.
    """

    space: Space
    sampler: str = "auto"
    trials: int | None = None
    metric: str = "mean_class"
    test_seeds: int = 0

    @property
    def base(self) -> RunConfig:
        """The run at the space's first point."""
        return self.space.config(self.space.first())

    @property
    def kind(self) -> str:
        """The sampler, decided."""
        if self.sampler != "auto":
            return self.sampler
        size = self.space.size()
        return "grid" if size is not None and self.trials in (None, size) else "tpe"

    def points(self) -> list[Point]:
        """For each trial the values that are settled before it begins; `tpe` finds the rest."""
        size = self.space.size()
        if self.kind == "grid":
            grid = self.space.grid()
            if self.trials not in (None, len(grid)):
                raise UserError(
                    f"The grid has {counted(len(grid), 'point')} and --trials is {self.trials}. Leave --trials out, or "
                    "take --sampler random or tpe."
                )
            return grid
        if SEED in self.space.varied:
            raise UserError(
                f"--sampler {self.kind} would choose the luckiest seed. List every value for a grid, which is judged "
                "by the mean over its seeds, or give one seed and --test-seeds."
            )
        count = self.trials or min(DEFAULT_TRIALS, size or DEFAULT_TRIALS)
        if size is not None and count > size:
            raise UserError(
                f"There {agreeing(size, 'is', 'are')} only {counted(size, 'setting')} to try, and --trials is {count}. "
                "Take --sampler grid."
            )
        settled = count if self.kind == "random" else min(count, STARTUP)
        return [*itertools.islice(self.space.draws(self.base.seed), settled), *({} for _ in range(count - settled))]

    def check(self, dataset: DataSet) -> None:
        """Refuse what cannot end well, before anything is trained."""
        if not self.space.varied:
            raise UserError("Nothing is varied. Give a list or a range, such as lr=0.001..0.1:log or seed=0,1,2.")
        if "val" not in dataset.splits:
            raise UserError(
                f"{dataset.name!r} has no validation split to choose by, and the test split is not for choosing. Add "
                "val_share=0.2 to set part of the training images aside."
            )
        counts = dataset.counts()
        if self.metric in ("many", "medium", "few") and not any(
            group_of(counts[label]) == self.metric for label in dataset.splits["val"].labels
        ):
            raise UserError(
                f"--metric is {self.metric}, but no validation image belongs to such a class. Take mean_class."
            )
        if self.test_seeds and "test" not in dataset.splits:
            raise UserError(f"{dataset.name!r} has no test split for --test-seeds. Leave that out.")
