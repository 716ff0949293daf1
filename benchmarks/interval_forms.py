"""How often forms of the interval, and of the seeds' variance, find a difference where there is none.

    python benchmarks/interval_forms.py

A difference is normal. A part of its variance comes from test images and is known, a part is chance by image and seed
and is known too, and the rest comes from seeds and is estimated, together with chance, with few degrees of freedom.
Prints false findings at 5 %: first by the form of the interval, lowest and highest over all shares of the three parts;
then, with seeds alone, by which of six methods share a variance, where one of them scatters 1, 2, 4 or 7 times as much
as the others. docs/log.md has the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from liftplus.evaluation import noise, seed_variance
from liftplus.evaluation.noise import ImagePart
from liftplus.evaluation.seed_variance import Runs, seed_parts

Floats = NDArray[np.float64]
SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
CHANCES = (0, 0.25, 0.5, 0.8)  # of what seeds do not contribute
Form = Callable[[float, float, Floats, int], Floats]  # images, chance, what seeds seem to contribute, freedom


def satterthwaite(images: float, chance: float, seeds: Floats, freedom: int) -> Floats:
    """The older form, in which chance counted twice."""
    total = images + chance + seeds
    return stats.t.ppf(0.975, np.minimum(total**2 * freedom / seeds**2, 1e6)) * np.sqrt(total)


def behrens_fisher(images: float, chance: float, seeds: Floats, freedom: int) -> Floats:
    """Quantiles of a normal plus a scaled Student variable, interpolated over their shares."""
    rng, shares = np.random.default_rng(1), np.linspace(0, 1, 41)
    normal, student = rng.standard_normal(100_000), rng.standard_t(freedom, 100_000)
    table = [np.quantile(np.abs(np.sqrt(1 - u) * normal + np.sqrt(u) * student), 0.95) for u in shares]
    return np.interp(seeds / (images + seeds), shares, table) * np.sqrt(images + seeds)


def excess(images: float, chance: float, seeds: Floats, freedom: int) -> Floats:
    """Seeds count only where they scatter more than chance."""
    return weighted(images + chance, 0, np.maximum(seeds - chance, 0), freedom)


def weighted(images: float, chance: float, seeds: Floats, freedom: int) -> Floats:
    """The form of liftplus.evaluation.noise."""
    return (stats.norm.ppf(0.975) * images + stats.t.ppf(0.975, freedom) * seeds) / np.sqrt(images + seeds)


FORMS: dict[str, Form] = {
    "Satterthwaite": satterthwaite,
    "Behrens-Fisher": behrens_fisher,
    "excess": excess,
    "weighted": weighted,
}
# Levels of the F tests of liftplus.evaluation.seed_variance: OUTLIER, LARGER, SMALLER.
SHARING = {
    "each pair its own": (0, 1.1, 1.1),
    "all": (0, 0, 0),
    "all but outliers": (0.1, 0, 0),
    "as in liftplus": (seed_variance.OUTLIER, seed_variance.LARGER, seed_variance.SMALLER),
}


def by_form(freedom: int, trials: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for name, form in FORMS.items():
        found = []
        for share, part in product(SHARES, CHANCES):
            gap, chance = np.abs(rng.standard_normal(trials)), part * (1 - share)
            seeds = (share + chance) * rng.chisquare(freedom, trials) / freedom + 1e-12
            found.append(100 * np.mean(gap > form(1 - share - chance, chance, seeds, freedom)))
        yield f"{name}, {freedom} degrees of freedom: {min(found):.1f} to {max(found):.1f} %"


def by_sharing(seeds: int, trials: int) -> Iterator[str]:
    for name, levels in SHARING.items():
        seed_variance.OUTLIER, seed_variance.LARGER, seed_variance.SMALLER = levels
        found = []
        for times in (1, 2, 4, 7):
            rng, wrong, sd = np.random.default_rng(0), 0, np.array([times, 1, 1, 1, 1, 1])[:, None]
            for _ in range(trials):
                runs = [Runs(one, k) for k, one in enumerate(sd * rng.standard_normal((6, seeds)))]
                part = seed_parts(runs, [(0, 1), (2, 3), (4, 5)])[0]
                gap = float(runs[0].accuracies.mean() - runs[1].accuracies.mean())
                half = noise.estimate(gap, ImagePart(1e-9, 1e6, 0), part).half
                wrong += half is None or abs(gap) > half
            found.append(f"{100 * wrong / trials:.1f}")
        yield f"{name}, {seeds} seeds: {', '.join(found)} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, default=2000, help="of a cell of the second table; 20 times as many of the first"
    )
    args = parser.parse_args()
    for freedom in (1, 2, 4):
        for line in by_form(freedom, 20 * args.trials):
            print(line, flush=True)
    for seeds in (2, 3, 5):
        for line in by_sharing(seeds, args.trials):
            print(line, flush=True)


if __name__ == "__main__":
    main()
