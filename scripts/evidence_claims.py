"""Verdicts on claims from committed figures, by the rules that `liftplus reproduce status` has now.

A file of scripts/evidence.py holds each difference with its 95 % interval. Files that were collected before 2026-11-28
have intervals of an older form, in which methods never shared the seeds' variance. `renewed` gives those the present
form: the runs' accuracies by seed stand in the file, and the old interval tells what the test images contributed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from scipy import optimize, stats

from liftplus.evaluation import noise
from liftplus.evaluation.noise import Difference, ImagePart
from liftplus.evaluation.seed_variance import Runs, SeedPart, seed_parts
from liftplus.reproduce import catalogue, verdicts

Record = dict[str, Any]


def judged(record: Record, known: catalogue.Catalogue) -> dict[str, verdicts.Judged]:
    """The claims of one file by name. A claim that the catalogue no longer has is judged with the usual margins."""
    out = {}
    for name, line in record["claims"].items():
        margin = known.claims[name].margin if name in known.claims else {}
        claim = catalogue.Claim(
            claim=line["claim"],
            margin=margin,
            tests=tuple(
                catalogue.Contrast(**{key: test[key] for key in catalogue.Contrast.model_fields})
                for test in line["tests"]
            ),
            untestable=tuple(catalogue.Untestable(**gap) for gap in line["untestable"]),
        )
        tests = line["tests"] if _is_new(line["tests"]) else renewed(line["tests"], record)
        out[name] = verdicts.decide(name, claim, [(difference(test), test["why"]) for test in tests])
    return out


def _is_new(tests: Sequence[Record]) -> bool:
    return all("part" in test for test in tests if "points" in test)


def difference(test: Record) -> Difference | None:
    """A comparison's difference as it stands in a file; None where it was not made."""
    if "points" not in test:
        return None
    part = test.get("part")
    found: Record = {field.name: test.get(field.name) for field in fields(Difference)}
    found |= {"a": test["better"], "b": test["worse"], "key": test["metric"], "adjusted": test["p"]}
    return Difference(**found | {"part": None if part is None else ImagePart(**part)})


def renewed(tests: Sequence[Record], record: Record) -> list[Record]:
    """The comparisons of a claim of an older file with intervals of the present form.

    Chance by image and seed (C in noise.py) is not in such a file and counts as 0, which makes an interval too wide.
    """
    made = {one["name"]: one for one in record["experiments"]}
    out = list(tests)
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, test in enumerate(tests):
        if "points" in test:
            alike.setdefault((test["metric"], *test["better"].split("/")[:2]), []).append(place)
    for (metric, *_), places in alike.items():
        if metric not in noise.KEYS:  # of such a group a file has no accuracies by seed
            for place in places:
                test = tests[place]
                images, seed = _both_parts(test)
                out[place] = test | _again(test, images, SeedPart(seed, test["seeds"] - 1))
            continue
        names = list(dict.fromkeys(tests[place][which] for place in places for which in ("better", "worse")))
        runs = [_runs(made[name], metric) for name in names]
        pairs = [(names.index(tests[place]["better"]), names.index(tests[place]["worse"])) for place in places]
        for place, pair, seeds in zip(places, pairs, seed_parts(runs, pairs), strict=True):
            images = _images_part(tests[place], *(runs[k].accuracies for k in pair))
            out[place] = tests[place] | _again(tests[place], images, seeds)
    return out


def _runs(experiment: Record, metric: str) -> Runs:
    """An experiment's accuracies. Its command without what concerns testing alone says what was trained."""
    accuracies = np.array([row[metric] for row in experiment["seeds"]], dtype=np.float64)
    training = re.sub(r" (tte|expand|evaluation\.\w+)=\S+", "", experiment["command"])
    return Runs(accuracies, training, bool((accuracies == accuracies[0]).all()))


def _again(test: Record, images: float, seeds: SeedPart | None) -> Record:
    found = noise.estimate(test["points"], ImagePart(images, test["images"] - 1, 0.0), seeds)
    return {"half": found.half, "p": found.p}


def _images_part(test: Record, a: noise.Floats, b: noise.Floats) -> float:
    """The images' part of an older interval whose seeds' part is known.

    That interval was t(g) √(I + D) with D = s_d² / S and g of Welch and Satterthwaite, so I follows from its width.
    Where two values fit, as a small I raises g and narrows the interval, the p-value tells which.
    """
    seeds = float((a - b).var(ddof=1)) / len(a)

    def half(log: float) -> float:
        error, freedom = _older(math.exp(log), seeds, test)
        return error * float(stats.t.ppf(0.975, freedom))

    def miss(log: float) -> float:
        error, freedom = _older(math.exp(log), seeds, test)
        return abs(2 * float(stats.t.sf(abs(test["points"]) / error, freedom)) - test["p"])

    roots = _roots(lambda log: half(log) - test["half"], np.linspace(math.log(1e-4), math.log(1e3), 400))
    return math.exp(min(roots, key=miss))


def _older(images: float, seeds: float, test: Record) -> tuple[float, float]:
    """Standard error and degrees of freedom of the older form."""
    total = images + seeds
    squares = images**2 / (test["images"] - 1) + seeds**2 / (test["seeds"] - 1)
    return math.sqrt(total), total**2 / squares


def _both_parts(test: Record) -> tuple[float, float]:
    """The images' and the seeds' part of an older interval, from its width and its p-value."""

    def miss(freedom: float) -> float:
        error = test["half"] / float(stats.t.ppf(0.975, freedom))
        return 2 * float(stats.t.sf(abs(test["points"]) / error, freedom)) - test["p"]

    least = test["seeds"] - 1
    freedom = min(_roots(miss, np.geomspace(least, test["images"], 400)), default=least)
    total = (test["half"] / float(stats.t.ppf(0.975, freedom))) ** 2
    share = optimize.brentq(
        lambda share: share**2 / least + (1 - share) ** 2 / (test["images"] - 1) - 1 / max(freedom, least),
        least / (least + test["images"] - 1),
        1.0,
    )
    return (1 - share) * total, share * total


def _roots(function: Callable[[float], float], grid: noise.Floats) -> list[float]:
    """Where a function of one number is 0, between the points of a grid."""
    values = [function(float(x)) for x in grid]
    places = [k for k in range(len(grid) - 1) if values[k] * values[k + 1] <= 0]
    return [float(optimize.brentq(function, grid[k], grid[k + 1])) for k in places]
