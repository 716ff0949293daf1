"""Choose the best of three learning rates on training pictures kept aside, by successive halving in two rounds.

Successive halving: Jamieson and Talwalkar 2016 (arXiv 1502.07943), here with every round trained from the start, since
the schedules of rate and crops end with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.splits import held_out
from liftplus.errors import DivergedError
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine.progress import Progress, Silent
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training import assembly, loop

FACTORS = (1.0, 1 / 3, 3.0)
"""Multiples of the recipe's rate; the first wins a tie."""
ROUNDS = len(FACTORS) + 2 * 2
"""Length of both rounds together, in multiples of the epochs of one rate in the first round."""
SHARE = 0.2
LEAST_PICTURES = 100
"""Fewest pictures kept aside; the result of fewer would be chance."""
LEAST, MOST = 2, 10
"""Epochs of a rate in the first round; the second has two rates and twice the epochs."""


def epochs(pictures: int, spare: float) -> int:
    """Epochs of each rate in the first round that fit into a time; 0 if the time or the pictures are too few.

    Args:
        spare: the time, in epochs of all training pictures.
    """
    first = min(MOST, int(spare / (1 - SHARE) / ROUNDS))
    return first if first >= LEAST and pictures * SHARE >= LEAST_PICTURES else 0


def best(
    config: RunConfig, dataset: DataSet, runtime: Runtime, first: int, progress: Progress | None = None
) -> tuple[float, str]:
    """The best rate, and a sentence on all three.

    Args:
        first: epochs of each rate in the first round.
    """
    parts = _parted(dataset, config.seed)
    rates = {factor: float(f"{config.train.lr * factor:.2g}") for factor in FACTORS}
    model = assembly.build(config, parts, runtime, progress)
    start = {name: value.clone() for name, value in model.learned_state().items()}
    found: dict[float, float] = {}
    with (progress or Silent()).task("Trying learning rates", first * ROUNDS) as advance:

        def tried(factor: float, count: int) -> float:
            model.load_learned(start)
            own = {"lr": rates[factor], "epochs": count, "minutes": None, "select": "last", "validate_every": 0}
            now = config.model_copy(update={"train": config.train.model_copy(update=own)})
            return _accuracy(model, now, parts, runtime, lambda entry: advance(lr=rates[factor], loss=entry["loss"]))

        for factor in FACTORS:
            found[factor] = tried(factor, first)
        finalists = sorted(FACTORS, key=lambda factor: -found[factor])[:2]
        for factor in finalists:
            found[factor] = tried(factor, 2 * first)
    # The order of FACTORS decides between equals.
    winner = max((factor for factor in FACTORS if factor in finalists), key=lambda factor: found[factor])
    each = ", ".join(f"{rates[factor]:g}: {found[factor]:.1f} %" for factor in sorted(FACTORS))
    count = len(parts.splits["val"])
    return rates[winner], (
        f"lr {rates[winner]:g} was best of three on {count:,} training pictures kept aside (mean over classes; {each})."
    )


def _parted(dataset: DataSet, seed: int) -> DataSet:
    """The data set with a fifth of its training pictures as the validation split."""
    whole = dataset.splits["train"]
    aside = set(held_out(whole.labels, SHARE, seed).tolist())

    def part(kept: bool) -> Split:
        return whole.taken(i for i in range(len(whole)) if (i in aside) == kept)

    return replace(dataset, splits={"train": part(False), "val": part(True)})


def _accuracy(
    model: Classifier,
    config: RunConfig,
    parts: DataSet,
    runtime: Runtime,
    log: Callable[[dict[str, Any]], None],
) -> float:
    """Mean accuracy over classes in percent on the pictures kept aside; 0 where training diverges."""
    plain = config.evaluation.model_copy(update={"tte": False})
    kept = parts.splits["val"]
    try:
        loop.fit(model, config, parts, runtime, log=log)
        reader = SplitReader(parts.store, kept, config.train.workers)
        found = predict(model, reader, plain, model.backbone.facts, runtime)
    except DivergedError:
        return 0.0
    return score(found, kept, tuple(parts.counts())).mean_class
