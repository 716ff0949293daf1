"""What came of experiments: each figure against the expected one, each claim against its comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liftplus import compare, noise, results, reuse, runs
from liftplus.errors import UserError
from liftplus.noise import KEYS, Difference
from liftplus.reproduce import needs
from liftplus.reproduce.carry_out import finished_test
from liftplus.reproduce.catalogue import Claim, Comparison, Experiment
from liftplus.reproduce.plan import Plan, changed_settings

NOT_RUN = "not run"
STATUS = "status.json"


@dataclass(frozen=True)
class Figure:
    """An accuracy of an experiment, in percent.

    Attributes:
        key: which.
        mean, sd: over seeds; None where there is no value, or one seed only.
        low, high: the expected figure's; None where none is known.
        tolerance: points by which it may be missed.
        verdict: reached, above, below, not run, or "" without an expected figure.
    """

    key: str
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    tolerance: float
    verdict: str


@dataclass(frozen=True)
class Result:
    """An experiment as it stands.

    Attributes:
        seeds: those that have been tested, of `wanted` many.
        figures: overall and the groups.
        differs: in what the runs differ from the experiment: settings of the user's, other data.
        folders: of the tests.
    """

    name: str
    seeds: tuple[int, ...]
    wanted: int
    figures: tuple[Figure, ...]
    differs: tuple[str, ...]
    folders: tuple[str, ...]

    def figure(self, key: str) -> Figure:
        """The accuracy of that name."""
        return next(one for one in self.figures if one.key == key)


@dataclass(frozen=True)
class Tested:
    """A comparison of a claim: the difference that was found, None where it could not be, and what follows."""

    better: str
    worse: str
    metric: str
    kind: str
    about: str
    verdict: str
    difference: Difference | None
    why: str = ""

    def sentence(self) -> str:
        """What was found."""
        if self.difference is None:
            return f"{self.better} against {self.worse}, {self.metric}: {self.verdict}. {self.why}".rstrip()
        return f"{self.difference.sentence()} {self.verdict[:1].upper()}{self.verdict[1:]}."


@dataclass(frozen=True)
class Judged:
    """A claim with its comparisons and a verdict on the whole."""

    name: str
    claim: str
    verdict: str
    tests: tuple[Tested, ...]
    untestable: tuple[dict[str, str], ...]


def result(plan: Plan, experiment: Experiment) -> Result:
    """The experiment as it stands in the plan's folder, with as many seeds as there are."""
    found = {seed: folder for seed in _seeds(plan, experiment) if (folder := finished_test(plan, experiment, seed))}
    metrics = [reuse.metrics(folder) for folder in found.values()]
    figures = []
    for key in KEYS:
        values = [one[key] for one in metrics if one[key] is not None]
        mean = statistics.mean(values) if values else None
        low, high = experiment.expected.get(key, (None, None))
        within = experiment.tolerance[key]
        figures.append(
            Figure(
                key,
                mean,
                statistics.stdev(values) if len(values) > 1 else None,
                low,
                high,
                within,
                _verdict(mean, low, high, within),
            )
        )
    wanted = plan.seeds or experiment.seeds
    differs = _differs(plan, experiment, next(iter(found))) if found else ()
    return Result(experiment.name, tuple(found), wanted, tuple(figures), differs, tuple(map(str, found.values())))


def _seeds(plan: Plan, experiment: Experiment) -> list[int]:
    """Seeds that a run was begun with."""
    start = Path(f"{experiment.training}-seed")
    parent = (plan.out / start).parent
    ends = [path.name.removeprefix(start.name) for path in parent.iterdir()] if parent.is_dir() else []
    return sorted(int(end) for end in ends if end.isdecimal())


def _verdict(mean: float | None, low: float | None, high: float | None, within: float) -> str:
    if low is None or high is None:
        return ""
    if mean is None:
        return NOT_RUN
    rounded = round(mean, 1)  # published figures have one place
    if round(rounded - low, 6) < -within:
        return "below"
    return "above" if round(rounded - high, 6) > within else "reached"


def _differs(plan: Plan, experiment: Experiment, seed: int) -> tuple[str, ...]:
    """In what a run departs from the experiment."""
    about = results.read_json(plan.folder(experiment, seed) / runs.CONFIG, "data")["data"]
    need = needs.data(experiment.source)
    images = about.get("images", {})
    facts = (
        ("classes", len(about["train_counts"]), need.classes if need and not _regrouped(experiment) else None),
        ("training images", images.get("train"), need.train if need else None),
        ("test images", images.get("test"), need.test if need else None),
    )
    other = [f"{have:,} {what} in place of {want:,}" for what, have, want in facts if want is not None and have != want]
    return (*(changed_settings(plan.out) or ()), *other)


def _regrouped(experiment: Experiment) -> bool:
    return any("level=" in setting for setting in experiment.data_settings)


def judge(plan: Plan, name: str, claim: Claim, experiments: dict[str, Experiment]) -> Judged:
    """The claim against the runs in the plan's folder; p-values are adjusted for its comparisons of one accuracy."""
    found = [_compared(plan, test, experiments) for test in claim.tests]
    adjusted: dict[int, float | None] = {}
    for key in dict.fromkeys(test.metric for test in claim.tests):
        places = [k for k, (one, _) in enumerate(found) if one is not None and one.key == key]
        ps = noise.holm([one.p for k in places if (one := found[k][0]) is not None])
        adjusted |= dict(zip(places, ps, strict=True))
    tests = []
    for k, (test, (one, why)) in enumerate(zip(claim.tests, found, strict=True)):
        if one is not None:
            one = Difference(**asdict(one) | {"adjusted": adjusted[k]})
        what = NOT_RUN if one is None else _follows(test.kind, one)
        tests.append(Tested(test.better, test.worse, test.metric, test.kind, test.about, what, one, why))
    return Judged(name, claim.claim, _whole(tests), tuple(tests), tuple(one.model_dump() for one in claim.untestable))


def _follows(kind: str, found: Difference) -> str:
    """What a difference, better minus worse, says of a claim."""
    if kind == "same":
        return "contradicted" if found.exceeds else "confirmed"
    if found.exceeds and found.points < 0:
        return "contradicted"
    return "confirmed" if kind == "no_worse" or found.exceeds else "not confirmed"


def _whole(tests: Sequence[Tested]) -> str:
    """The verdict on a claim: as bad as its worst comparison; confirmed only if every one has been made."""
    kinds = {test.verdict for test in tests}
    for verdict in ("contradicted", "not confirmed", NOT_RUN):
        if verdict in kinds:
            return verdict
    return "confirmed" if tests else NOT_RUN


def _compared(plan: Plan, test: Comparison, experiments: dict[str, Experiment]) -> tuple[Difference | None, str]:
    """The difference of two experiments over the seeds that both have, its p not adjusted; or why there is none."""
    pair = [experiments[test.better], experiments[test.worse]]
    found = [{seed: at for seed in _seeds(plan, one) if (at := finished_test(plan, one, seed))} for one in pair]
    seeds = sorted(found[0].keys() & found[1].keys())
    if not seeds:
        lacking = [one.name for one, have in zip(pair, found, strict=True) if not have]
        return None, f"Missing: {', '.join(lacking) or 'runs of both with the same seed'}."
    a, b = (compare.read_tests([have[seed] for seed in seeds]) for have in found)
    if a.images != b.images:
        return None, "They were tested on different images."
    weight, strata = noise.weights(test.metric, a.labels, a.train_counts)
    if not weight.any():
        return None, f"The data have no {test.metric} classes."
    points, half, p = noise.compare(a.right, b.right, weight, strata)
    images = int((weight > 0).sum())
    return Difference(test.better, test.worse, test.metric, points, half, p, p, len(seeds), images), ""


@dataclass(frozen=True)
class Status:
    """All results and claims of a selection."""

    results: tuple[Result, ...]
    claims: tuple[Judged, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for status.json."""
        return asdict(self)


def status(plan: Plan, claims: dict[str, Claim], experiments: dict[str, Experiment]) -> Status:
    """How the plan's experiments stand, and the claims that rest on one of them at least."""
    names = {one.name for one in plan.experiments}
    touched = {
        name: claim
        for name, claim in claims.items()
        if not claim.tests or any({test.better, test.worse} & names for test in claim.tests)
    }
    return Status(
        tuple(result(plan, one) for one in plan.experiments),
        tuple(judge(plan, name, claim, experiments) for name, claim in touched.items()),
    )


def write(plan: Plan, found: Status) -> Path:
    """status.json in the plan's folder."""
    if not plan.out.is_dir():
        raise UserError(f"There is no folder {str(plan.out)!r} with runs. `liftplus reproduce run NAME` makes some.")
    path = plan.out / STATUS
    with results.locked(plan.out, results.PATIENCE):
        results.write_json(path, found.to_dict())
    return path
