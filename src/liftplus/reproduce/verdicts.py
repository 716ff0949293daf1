"""Verdicts on experiments: each figure against the expected one, each claim by its contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from liftplus.errors import UserError
from liftplus.evaluation import noise
from liftplus.evaluation.differences import Answers, read_tests
from liftplus.evaluation.noise import KEYS, Difference
from liftplus.machine import disk
from liftplus.reproduce import needs
from liftplus.reproduce.carry_out import finished_test
from liftplus.reproduce.catalogue import Claim, Contrast, Experiment
from liftplus.reproduce.plan import Plan, changed_settings
from liftplus.runs import changes, reuse
from liftplus.studies.compare import mean_and_sd
from liftplus.words import agreeing

NOT_RUN, NOT_CONTRADICTED = "not run", "not contradicted"
STATUS = "status.json"


@dataclass(frozen=True)
class Figure:
    """An accuracy of an experiment, in percent.

    Attributes:
        key: which accuracy.
        mean, sd: over seeds; the mean is None without a run, sd also with one seed.
        low, high: the expected range; None if nothing is expected.
        tolerance: points by which it may miss the expected range.
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
    """The present result of an experiment.

    Attributes:
        seeds: the tested seeds; `wanted` is their intended number.
        figures: one for each accuracy.
        differs: how the runs differ from the experiment: the user's settings, other data.
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
class Contrasted:
    """The result of a claim's contrast.

    Attributes:
        better, worse, metric, kind, about: as in `Contrast`.
        verdict: confirmed, not confirmed, not contradicted, contradicted or not run.
        difference: better minus worse; None if it could not be measured.
        why: why there is no difference.
        margin: points that a claim of "no worse" or "the same" allows; None for other claims.
    """

    better: str
    worse: str
    metric: str
    kind: str
    about: str
    verdict: str
    difference: Difference | None
    why: str = ""
    margin: float | None = None

    def sentence(self) -> str:
        """The result in words."""
        if self.difference is None:
            return f"{self.better} against {self.worse}, {self.metric}: {self.verdict}. {self.why}".rstrip()
        verdict = f"{self.verdict[:1].upper()}{self.verdict[1:]}"
        if self.margin is not None:
            verdict += f" with a margin of {self.margin:g} {agreeing(self.margin, 'point')}"
        return f"{self.difference.sentence()} {verdict}."


@dataclass(frozen=True)
class Judged:
    """A claim with its contrasts and a verdict on the whole."""

    name: str
    claim: str
    verdict: str
    tests: tuple[Contrasted, ...]
    untestable: tuple[dict[str, str], ...]


def result(plan: Plan, experiment: Experiment) -> Result:
    """The present result of an experiment in the plan's folder, over the seeds that are finished."""
    found = _finished(plan, experiment)
    metrics = [reuse.metrics(folder) for folder in found.values()]
    figures = []
    for key in KEYS:
        mean, sd = mean_and_sd([one[key] for one in metrics if one[key] is not None])
        low, high = experiment.expected.get(key, (None, None))
        within = experiment.tolerance[key]
        figures.append(Figure(key, mean, sd, low, high, within, _verdict(mean, low, high, within)))
    wanted = plan.seeds or experiment.seeds
    differs = _differs(plan, experiment, next(iter(found))) if found else ()
    return Result(experiment.name, tuple(found), wanted, tuple(figures), differs, tuple(map(str, found.values())))


def _finished(plan: Plan, experiment: Experiment) -> dict[int, Path]:
    """Folders of the finished tests, by seed."""
    return {seed: folder for seed in _seeds(plan, experiment) if (folder := finished_test(plan, experiment, seed))}


def _seeds(plan: Plan, experiment: Experiment) -> list[int]:
    """The seeds whose runs have been begun."""
    start = Path(f"{experiment.training}-seed")
    parent = (plan.out / start).parent
    ends = [path.name.removeprefix(start.name) for path in parent.iterdir()] if parent.is_dir() else []
    return sorted(int(end) for end in ends if end.isdecimal())


def _verdict(mean: float | None, low: float | None, high: float | None, within: float) -> str:
    if low is None or high is None:
        return ""
    if mean is None:
        return NOT_RUN
    rounded = round(mean, 1)  # published figures have one decimal place
    if round(rounded - low, 6) < -within:
        return "below"
    return "above" if round(rounded - high, 6) > within else "reached"


def _differs(plan: Plan, experiment: Experiment, seed: int) -> tuple[str, ...]:
    """How a run differs from the experiment: the user's settings, and other data."""
    about = disk.read_json(plan.folder(experiment, seed) / changes.CONFIG, "data")["data"]
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
    """Judge a claim by the runs in the plan's folder."""
    return decide(name, claim, _Found(plan, claim, experiments).all())


def decide(name: str, claim: Claim, found: Sequence[tuple[Difference | None, str]]) -> Judged:
    """Judge a claim by the differences of its contrasts.

    Holm's adjustment is applied to the contrasts of kind "better" in the same accuracy. It is not applied to "no worse"
    and "the same", because it would make these easier to pass.

    Args:
        found: for each contrast its difference, or None and why there is none.
    """
    adjusted = {k: one.p for k, (one, _) in enumerate(found) if one is not None}
    for key in dict.fromkeys(test.metric for test in claim.tests):
        places = [k for k in adjusted if claim.tests[k].metric == key and claim.tests[k].kind == "better"]
        adjusted |= dict(zip(places, noise.holm([adjusted[k] for k in places]), strict=True))
    tests = []
    for k, (test, (one, why)) in enumerate(zip(claim.tests, found, strict=True)):
        margin = None if test.kind == "better" else claim.margin_of(test.metric)
        if one is not None:
            one = replace(one, adjusted=adjusted[k])
        what = NOT_RUN if one is None else _follows(test.kind, one, margin)
        tests.append(Contrasted(test.better, test.worse, test.metric, test.kind, test.about, what, one, why, margin))
    return Judged(name, claim.claim, _whole(tests), tuple(tests), tuple(one.model_dump() for one in claim.untestable))


def _follows(kind: str, found: Difference, margin: float | None) -> str:
    """The verdict of one difference (better minus worse) on a claim of this kind."""
    if margin is None:
        if not found.exceeds:
            return "not confirmed"
        return "confirmed" if found.points > 0 else "contradicted"
    if (interval := found.interval()) is None:
        return NOT_CONTRADICTED
    low, high = interval
    if low > -margin and (kind == "no_worse" or high < margin):
        return "confirmed"
    return "contradicted" if high < 0 or (kind == "same" and low > 0) else NOT_CONTRADICTED


def _whole(tests: Sequence[Contrasted]) -> str:
    """The verdict on a claim is that of its worst contrast. So it is confirmed only if all contrasts are."""
    worst_first = ("contradicted", "not confirmed", NOT_RUN, NOT_CONTRADICTED, "confirmed")
    return min((test.verdict for test in tests), key=worst_first.index, default=NOT_RUN)


_Method = tuple[str, tuple[int, ...]]  # an experiment and the seeds that are compared


class _Found:
    """Computes the differences of a claim's contrasts. Those on the same images share an estimate of seed variance."""

    def __init__(self, plan: Plan, claim: Claim, experiments: dict[str, Experiment]) -> None:
        self._claim, self._experiments = claim, experiments
        names = dict.fromkeys(name for test in claim.tests for name in (test.better, test.worse))
        self._tests = {name: _finished(plan, experiments[name]) for name in names}
        self._read: dict[_Method, Answers] = {}

    def all(self) -> list[tuple[Difference | None, str]]:
        """For each contrast its difference with p not adjusted, or None and why there is none."""
        out: list[tuple[Difference | None, str]] = []
        alike: dict[Any, list[tuple[int, _Method, _Method]]] = {}
        for place, test in enumerate(self._claim.tests):
            a, b = self._methods(test)
            why = self._hindrance(test, a, b)
            out.append((None, why))
            if not why:
                first, tested = self._experiments[test.better], self._tested(a)
                key = (test.metric, first.data, first.backbone, tested.images, tested.train_counts)
                alike.setdefault(key, []).append((place, a, b))
        for (metric, *_), group in alike.items():
            for place, found in self._differences(metric, group):
                out[place] = (found, "")
        return out

    def _methods(self, test: Contrast) -> tuple[_Method, _Method]:
        """Both experiments, each with the seeds that both have."""
        seeds = tuple(sorted(self._tests[test.better].keys() & self._tests[test.worse].keys()))
        return (test.better, seeds), (test.worse, seeds)

    def _tested(self, method: _Method) -> Answers:
        name, seeds = method
        if method not in self._read:
            self._read[method] = read_tests([self._tests[name][seed] for seed in seeds])
        return self._read[method]

    def _hindrance(self, test: Contrast, a: _Method, b: _Method) -> str:
        """Why two experiments cannot be compared; empty if they can."""
        if not a[1]:
            lacking = [name for name in (test.better, test.worse) if not self._tests[name]]
            return f"Missing: {', '.join(lacking) or 'runs of both with the same seed'}."
        tested = self._tested(a)
        if tested.images != self._tested(b).images:
            return "They were tested on different images."
        if not noise.weights(test.metric, tested.labels, tested.train_counts)[0].any():
            return f"The data have no {test.metric} classes."
        return ""

    def _differences(
        self, metric: str, group: Sequence[tuple[int, _Method, _Method]]
    ) -> Iterator[tuple[int, Difference]]:
        """The differences of contrasts in one accuracy on the same images, with each contrast's index."""
        methods = list(dict.fromkeys(method for _, *both in group for method in both))
        tested = [self._tested(method) for method in methods]
        weight, strata = noise.weights(metric, tested[0].labels, tested[0].train_counts)
        pairs = [(methods.index(a), methods.index(b)) for _, a, b in group]
        training = [self._experiments[name].training for name, _ in methods]
        found = noise.compare_all([one.right for one in tested], pairs, weight, strata, training)
        images = int((weight > 0).sum())
        for (place, (a, seeds), (b, _)), one in zip(group, found, strict=True):
            yield place, Difference(a, b, metric, one.points, one.half, one.p, one.p, len(seeds), images, one.part)


@dataclass(frozen=True)
class Status:
    """All results and claims of a selection."""

    results: tuple[Result, ...]
    claims: tuple[Judged, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for status.json."""
        return asdict(self)


def status(plan: Plan, claims: dict[str, Claim], experiments: dict[str, Experiment]) -> Status:
    """The results of the plan's experiments, and the claims that involve at least one of them."""
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
    """Write status.json into the plan's folder."""
    if not plan.out.is_dir():
        raise UserError(
            f"There is no folder {str(plan.out)!r} with runs. Make runs with `liftplus reproduce run NAME`."
        )
    path = plan.out / STATUS
    with disk.locked(plan.out, disk.PATIENCE):
        disk.write_json(path, found.to_dict())
    return path
