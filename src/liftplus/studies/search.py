"""What a sweep tries, and the metric by which it chooses."""

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
"""Number of random trials before `tpe` uses the results of earlier ones (Optuna's own default)."""
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class Search:
    """What a sweep tries, and the metric by which it chooses.

    Attributes:
        space: the settings.
        sampler: grid, random, tpe or auto. auto is grid if the space is finite and `trials` is None or equals its
            size, otherwise tpe.
        trials: how many; None for the whole grid, or for 20 with the other samplers (fewer if the space is smaller).
        metric: the validation accuracy to maximise.
        test_seeds: how many runs of the best setting are tested on the test split at the end.
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
        """The sampler: grid, random or tpe."""
        if self.sampler != "auto":
            return self.sampler
        size = self.space.size()
        return "grid" if size is not None and self.trials in (None, size) else "tpe"

    def points(self) -> list[Point]:
        """One point per trial; an empty point is left to `tpe`.

        Raises:
            UserError: the number of trials does not fit the space, or a seed is varied without a grid.
        """
        size = self.space.size()
        if self.kind == "grid":
            grid = self.space.grid()
            if self.trials not in (None, len(grid)):
                raise UserError(
                    f"The grid has {counted(len(grid), 'point')}, but --trials is {self.trials}. Leave --trials out, "
                    "or use --sampler random or tpe."
                )
            return grid
        if SEED in self.space.varied:
            raise UserError(
                f"--sampler {self.kind} would choose the luckiest seed. Use a grid, where each setting counts by its "
                "mean over seeds: list every value. Or give one seed and --test-seeds."
            )
        count = self.trials or min(DEFAULT_TRIALS, size or DEFAULT_TRIALS)
        if size is not None and count > size:
            raise UserError(
                f"There {agreeing(size, 'is', 'are')} only {counted(size, 'setting')} to try, but --trials is {count}. "
                "Use --sampler grid."
            )
        settled = count if self.kind == "random" else min(count, STARTUP)
        return [*itertools.islice(self.space.draws(self.base.seed), settled), *({} for _ in range(count - settled))]

    def check(self, dataset: DataSet) -> None:
        """Check that the data fit the sweep, before anything is trained.

        Raises:
            UserError: nothing is varied, or a split or class group that the sweep needs is missing.
        """
        if not self.space.varied:
            raise UserError("Nothing is varied. Give a list or a range, such as lr=0.001..0.1:log or seed=0,1,2.")
        if "val" not in dataset.splits:
            raise UserError(
                f"{dataset.name!r} has no validation split. A sweep chooses by validation accuracy, never by the test "
                "split. Add val_share=0.2 to set part of the training images aside."
            )
        counts = dataset.counts()
        if self.metric in ("many", "medium", "few") and not any(
            group_of(counts[label]) == self.metric for label in dataset.splits["val"].labels
        ):
            raise UserError(
                f"--metric is {self.metric}, but no validation image is of such a class. Use --metric mean_class."
            )
        if self.test_seeds and "test" not in dataset.splits:
            raise UserError(f"{dataset.name!r} has no test split for --test-seeds. Leave --test-seeds out.")
