"""What the figures say, in sentences computed from the numbers, with the signs of a run that went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from liftplus.report.features import Distances
from liftplus.report.read import table
from liftplus.report.series import Series, Spread, calibrations, tte_effect

POINTS = 2.0  # a difference below so many points is not spoken of as a loss or a gain where there is one seed
NO_GAIN = 0.2
WIDE_GAP = 0.05  # cosine distance


@dataclass(frozen=True)
class Finding:
    """One thing that the report shows.

    Attributes:
        sign: "good", "bad" (a failure sign) or "plain".
        title, text: what was found.
        section: id of the section that shows it.
    """

    sign: str
    title: str
    text: str
    section: str


def everything(series: Sequence[Series], distances: Sequence[Distances], counts: Sequence[int]) -> list[Finding]:
    """All findings, in the order of the page."""
    found = [*_best(series), *_tail(series), *_convergence(series), *_tte(series), *_sureness(series)]
    return found + heaviness(distances, counts)


def value(spread: Spread | None) -> str:
    """A mean, with its deviation over several seeds."""
    if spread is None:
        return "no value"
    return f"{spread.mean:.1f}" + (f" ± {spread.sd:.1f}" if spread.sd is not None else "")


def clear(a: Spread, b: Spread) -> bool:
    """Whether two means differ by more than twice the standard error of their difference, and by `POINTS` at least
    where either has one seed.
    """
    if a.sd is None or b.sd is None:
        return abs(a.mean - b.mean) >= POINTS
    return abs(a.mean - b.mean) > max(0.1, 2 * math.sqrt(a.sd**2 / a.n + b.sd**2 / b.n))


def _best(series: Sequence[Series]) -> list[Finding]:
    ranked = [(spread, s) for s in series if (spread := s.measure("overall"))]
    ranked.sort(key=lambda pair: -pair[0].mean)
    if not ranked:
        return []
    best, one = ranked[0]
    groups = ", ".join(f"{value(one.measure(key))} on {key}" for key in ("many", "medium", "few") if one.measure(key))
    text = f"{one.label} reaches {value(best)} % overall ({groups} classes)."
    if len(ranked) > 1:
        second, other = ranked[1]
        if clear(best, second):
            text += f" That is {best.mean - second.mean:.1f} points over {other.label}, the second."
        else:
            text += f" {other.label} ({value(second)}) is too close behind for these runs to tell the two apart."
    if best.n == 1:
        text += " One seed only: differences of a point or two, most of all on few, may be chance."
    return [Finding("good", "Accuracy", text, "accuracy")]


def _tail(series: Sequence[Series]) -> list[Finding]:
    """Series that win frequent classes at the price of rare ones, against untrained or lighter ones."""
    found = []
    for one in series:
        few, many = one.measure("few"), one.measure("many")
        if few is None or many is None or not _trained(one):
            continue
        lighter = [
            (other, f, m)
            for other in series
            if _weights(other) < _weights(one)
            if (f := other.measure("few")) and (m := other.measure("many"))
        ]
        hurt = [
            (other, f, m)
            for other, f, m in lighter
            if f.mean > few.mean and clear(f, few) and m.mean < many.mean + POINTS
        ]
        if hurt:
            other, f, m = max(hurt, key=lambda item: item[1].mean)
            text = (
                f"{one.label} has {value(few)} % on few classes where {other.label}, which trains fewer weights, has "
                f"{value(f)} %; on many classes it is {value(many)} against {value(m)}. That is the sign of too heavy "
                "fine-tuning. Tune fewer weights (a smaller tuner, a lower rate, fewer epochs)."
            )
            found.append(Finding("bad", "Tail poor", text, "accuracy"))
        elif not lighter and many.mean - few.mean > 30:
            text = (
                f"{one.label}: few classes are {many.mean - few.mean:.0f} points behind many classes. Whether that is "
                "too heavy fine-tuning shows beside a closed_form or linear_probe run: give it to this report too."
            )
            found.append(Finding("bad", "Tail behind", text, "accuracy"))
    return found


def _trained(one: Series) -> bool:
    return bool(one.runs[0].log)


def _weights(one: Series) -> float:
    """Weights of the backbone that a series moves or adds beside its classifier."""
    tuned = table(one.runs[0].about.get("parameters")).get("tuned")
    return float(tuned) if isinstance(tuned, int) else math.inf


def _convergence(series: Sequence[Series]) -> list[Finding]:
    """Series whose first epoch is far behind: the classifier's start."""
    losses = {s.label: [entry["loss"] for entry in s.runs[0].log] for s in series if len(s.runs[0].log) > 1}
    found = []
    for one in (s for s in series if s.label in losses):
        mine, kind = losses[one.label], _part(one, "loss")
        peers = [
            (losses[s.label], s) for s in series if s.label in losses and s is not one and _part(s, "loss") == kind
        ]
        faster = min(peers, key=lambda pair: pair[0][0], default=None)
        start = f"its classifier starts from {_part(one, 'head_init')}"
        if faster and mine[0] > 1.5 * faster[0][0] and mine[0] - faster[0][0] > 0.2:
            reached = next((k for k, loss in enumerate(mine, 1) if loss <= faster[0][0]), None)
            when = f"reaches that in epoch {reached}" if reached else f"never reaches that in {len(mine)} epochs"
            text = (
                f"{one.label} has a loss of {mine[0]:.2f} in its first epoch, {faster[1].label} {faster[0][0]:.2f}; it "
                f"{when}. Look at the initialisation: {start}; head_init=semantic or class_mean starts closer."
            )
            found.append(Finding("bad", "Slow convergence", text, "training"))
        elif len(mine) > 1 and mine[-2] - mine[-1] > 0.1 * mine[0]:
            text = (
                f"{one.label} still lost {mine[-2] - mine[-1]:.2f} of its loss in the last epoch (now {mine[-1]:.2f}): "
                f"more epochs, a higher rate or a better start may help; {start}."
            )
            found.append(Finding("bad", "Not finished", text, "training"))
    return found


def _part(one: Series, key: str) -> str:
    return str(table(one.config.get(key)).get("name", "?"))


def _tte(series: Sequence[Series]) -> list[Finding]:
    found = []
    for one in series:
        gain = tte_effect(one).get("overall", (None, None, None))[2]
        if gain is None:
            continue
        patch = one.runs[0].about.get("patch_size")
        five = next(t for run in one.runs for t in (run.tested, run.other_crops) if t and t.tte)
        patch = patch if isinstance(patch, int) and patch > 0 else None
        coincide = patch is not None and five.expand is not None and five.expand % patch == 0
        shown = f"{one.label}: five crops change overall accuracy by {gain.mean:+.1f} points"
        grids = f" expand={five.expand} is a multiple of the patch size {patch}, so the crops' patch grids coincide."
        if gain.mean < NO_GAIN:
            text = f"{shown}, so the five-fold cost of testing buys nothing here.{grids if coincide else ''}"
            cure = f" Try expand={(five.expand or 0) + patch // 2}." if patch and coincide else ""
            found.append(Finding("bad", "No gain from five crops", text + cure, "tte"))
        else:
            found.append(Finding("good", "Five crops", f"{shown}.{grids if coincide else ''}", "tte"))
    return found


def _sureness(series: Sequence[Series]) -> list[Finding]:
    parts = []
    for one in series:
        found = calibrations(one)
        if found is not None:
            curve, spread = found
            off = curve.confidence - curve.accuracy
            word = "too sure" if off > 1 else "too modest" if off < -1 else "neither too sure nor too modest"
            parts.append(f"{one.label} {value(spread)} ({word} on average)")
    if not parts:
        return []
    return [
        Finding("plain", "Probabilities", f"Expected calibration error in points: {'; '.join(parts)}.", "calibration")
    ]


def heaviness(distances: Sequence[Distances], counts: Sequence[int]) -> list[Finding]:
    """What distances within classes say of each tuned model, beside the bare backbone."""
    if not distances:
        return []
    bare, found = distances[0], []
    for one in distances[1:]:
        few, base = one.gap(counts, "few"), bare.gap(counts, "few")
        if few is None or base is None:
            continue
        many = one.gap(counts, "many")
        text = (
            f"On few classes, test pictures of a class lie {few:.2f} farther apart than its training pictures under "
            f"{one.label}; under the {bare.label} {base:.2f}."
        )
        if many is not None:
            text += f" On many classes the gap is {many:.2f}."
        grown = few - base
        if grown > WIDE_GAP and grown > (
            max(many - (bare.gap(counts, "many") or 0.0), 0.0) if many is not None else 0.0
        ):
            text += " Train and test have come apart most where there are few pictures: too heavy for the tail."
            found.append(Finding("bad", "Features come apart", text, "features"))
        elif grown > WIDE_GAP:
            text += " Train and test have come apart, on frequent classes no less than on rare ones."
            found.append(Finding("plain", "Features come apart", text, "features"))
        else:
            text += " Train and test still agree on rare classes."
            found.append(Finding("good", "Features agree", text, "features"))
    if not found:
        text = "No class of the few has two training and two test pictures, so their distances cannot be compared."
        found.append(Finding("plain", "No pairs on few classes", text, "features"))
    return found
