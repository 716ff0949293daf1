"""train.minutes: how many epochs there is time for, before and during training."""

from __future__ import annotations

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet

PLANNED = 0.85
"""Share of the time that is planned for: steps may take longer than the few that were measured."""
UNDER_WAY = 0.95
"""Share of the time that may be used once whole epochs were measured."""


def testing(config: RunConfig, dataset: DataSet, a_picture: float) -> float:
    """Seconds of the test at the end, from the seconds of training per picture.

    A forward pass takes a third of a training step's time, on most hardware less.
    """
    crops = 5 if config.evaluation.tte else 1
    return a_picture / 3 * crops * len(dataset.splits.get("test", ()))


def epochs(config: RunConfig, dataset: DataSet, a_picture: float, spent: float, share: float) -> float:
    """Epochs that there is time for beside the test.

    Args:
        a_picture: seconds of training per picture.
        spent: seconds that are used up.
        share: part of `train.minutes` that may be used.
    """
    if config.train.minutes is None:
        raise ValueError("No time is given.")
    left = share * 60 * config.train.minutes - spent - testing(config, dataset, a_picture)
    return left / (a_picture * len(dataset.splits["train"]))
