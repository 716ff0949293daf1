"""The report's findings: sentences computed from the numbers, with signs of a run that went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from liftplus.evaluation import tuning_map
from liftplus.evaluation.differences import named
from liftplus.report.features import Distances
from liftplus.report.judgement import Judgement
from liftplus.report.read import number, table
from liftplus.report.series import Series, Spread, calibrations
from liftplus.words import counted

POINTS = 2.0  # a lighter run may be this many points better on many classes and still show that a heavy one hurt few
NO_GAIN = 0.2
WIDE_GAP = 0.05  # cosine distance


@dataclass(frozen=True)
class Finding:
    """One finding of the report.

    Attributes:
        sign: "good", "bad" (a sign of a failure) or "plain".
        title, text: what was found.
        section: id of the section that shows it.
    """

    sign: str
    title: str
    text: str
    section: str


def everything(
    series: Sequence[Series], judgement: Judgement, distances: Sequence[Distances], counts: Sequence[int]
) -> list[Finding]:
    """All findings, in the order of the page."""
    found = [*_best(series, judgement), *_tail(series, judgement), *_convergence(series)]
    found += [*_tte(series, judgement), *_sureness(series, judgement), *_weight(series)]
    return found + heaviness(distances, counts)


def value(spread: Spread | None) -> str:
    """A mean, with its deviation over several seeds."""
    if spread is None:
        return "no value"
    return f"{spread.mean:.1f}" + (f" ± {spread.sd:.1f}" if spread.sd is not None else "")


def pictures(number: int) -> str:
    """A number of test pictures in words."""
    return counted(number, "test picture")


def _best(series: Sequence[Series], judgement: Judgement) -> list[Finding]:
    """The best accuracy with its interval, and whether it beats the second by more than noise."""
    ranked = [(spread, s) for s in series if (spread := s.measure("overall"))]
    ranked.sort(key=lambda pair: -pair[0].mean)
    if not ranked:
        return []
    best, one = ranked[0]
    answers = judgement.own(one)
    text = f"{one.label} reaches {value(best)} % overall"
    if answers is not None and (interval := answers.interval("overall")):
        text += f" on {pictures(answers.pictures('overall'))}, with a 95 % interval from {interval[0]:.1f} to "
        text += f"{interval[1]:.1f} %"
        groups = [
            f"{value(one.measure(key))} on the {answers.pictures(key):,} of {key} classes"
            for key in ("many", "medium", "few")
            if one.measure(key)
        ]
        text += f" ({', '.join(groups)})"
    elif isinstance(images := one.tested[0].metrics.get("images"), int):
        text += f" on {pictures(images)}"
    rivals = [found for _, other in ranked[1:] if (found := judgement.rival(one, other, "overall")) is not None]
    if rivals:
        text += f". {rivals[0].sentence()}"
    elif len(ranked) > 1:
        text += f". {ranked[1][1].label} ({value(ranked[1][0])} %) cannot be compared: it was tested on other pictures,"
        text += " or its predictions are missing."
    else:
        text += "."
    if best.n == 1:
        text += " One seed only: another seed can give another result."
    proven = bool(rivals) and all(found.exceeds and found.points > 0 for found in rivals)
    return [Finding("good" if proven else "plain", "Accuracy", text, "accuracy")]


def _tail(series: Sequence[Series], judgement: Judgement) -> list[Finding]:
    """Series that are worse on few classes than a lighter series, and not (or hardly) worse on many classes."""
    found = []
    for one in series:
        few, many = one.measure("few"), one.measure("many")
        if few is None or many is None or not _trained(one):
            continue
        lighter = [
            (other, difference, m)
            for other in series
            if _weights(other) < _weights(one)
            if (difference := judgement.rival(other, one, "few")) and (m := other.measure("many"))
        ]
        hurt = [(other, d, m) for other, d, m in lighter if d.points > 0 and m.mean < many.mean + POINTS]
        proven = [entry for entry in hurt if entry[1].exceeds]
        if proven:
            other, difference, m = max(proven, key=lambda entry: entry[1].points)
            text = (
                f"{difference.sentence()} {other.label} trains fewer weights. On many classes {one.label} has "
                f"{value(many)} % against {value(m)} %. This is a sign of too heavy fine-tuning. Use a smaller tuner, "
                "a lower rate or fewer epochs."
            )
            found.append(Finding("bad", "Tail poor", text, "accuracy"))
        elif not lighter and (behind := _behind(one, judgement)):
            found.append(Finding("bad", "Tail behind", behind, "accuracy"))
    return found


def _behind(one: Series, judgement: Judgement) -> str | None:
    """A sentence if few classes are far behind many classes and their intervals do not overlap; else None."""
    answers = judgement.own(one)
    if answers is None or (many := answers.interval("many")) is None or (few := answers.interval("few")) is None:
        return None
    gap = (answers.accuracy("many") or 0.0) - (answers.accuracy("few") or 0.0)
    if gap <= 30 or few[1] >= many[0]:
        return None
    return (
        f"{one.label}: few classes ({pictures(answers.pictures('few'))}) are {gap:.0f} points behind many classes "
        f"({pictures(answers.pictures('many'))}). To see whether the fine-tuning was too heavy, add a closed_form or "
        "linear_probe run to this report."
    )


def _trained(one: Series) -> bool:
    return bool(one.runs[0].log)


def _weights(one: Series) -> float:
    """Number of trained weights of a series without the classifier's."""
    tuned = table(one.runs[0].about.get("parameters")).get("tuned")
    return float(tuned) if isinstance(tuned, int) else math.inf


def _convergence(series: Sequence[Series]) -> list[Finding]:
    """Series whose loss starts far above another's, or still falls fast at the end."""
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
            when = (
                f"reaches that in epoch {reached}"
                if reached
                else f"never reaches that in {counted(len(mine), 'epoch')}"
            )
            text = (
                f"In the first epoch {one.label} has a loss of {mine[0]:.2f}, {faster[1].label} {faster[0][0]:.2f}; it "
                f"{when}. Check the initialisation: {start}. head_init=semantic or class_mean starts closer."
            )
            found.append(Finding("bad", "Slow convergence", text, "training"))
        elif len(mine) > 1 and mine[-2] - mine[-1] > 0.1 * mine[0]:
            text = (
                f"The loss of {one.label} still fell by {mine[-2] - mine[-1]:.2f} in the last epoch, to "
                f"{mine[-1]:.2f}. More epochs, a higher rate or a better start may help; {start}."
            )
            found.append(Finding("bad", "Not finished", text, "training"))
    return found


def _part(one: Series, key: str) -> str:
    return str(table(one.config.get(key)).get("name", "?"))


def _tte(series: Sequence[Series], judgement: Judgement) -> list[Finding]:
    found = []
    for one in series:
        gain = judgement.between(named(one.label, True), named(one.label, False), "overall")
        if gain is None:
            continue
        patch, five = one.runs[0].about.get("patch_size"), next(iter(one.tests(True).values()))
        patch = patch if isinstance(patch, int) and patch > 0 else None
        coincide = patch is not None and five.expand is not None and five.expand % patch == 0
        spread = "" if gain.half is None else f" ± {gain.half:.1f}"
        verdict = "more than noise" if gain.exceeds else "within noise"
        text = f"{one.label}: five crops change overall accuracy by {gain.points:+.1f}{spread} points on "
        text += f"{pictures(gain.images)}: {verdict}."
        if coincide:
            text += (
                f" expand={five.expand} is a multiple of the patch size {patch}, so the crops' patch grids coincide."
            )
        if gain.points >= NO_GAIN:
            found.append(Finding("good" if gain.exceeds else "plain", "Five crops", text, "tte"))
            continue
        text += " Five crops take five times as long to test."
        cure = f" Try expand={(five.expand or 0) + patch // 2}." if patch and coincide else ""
        found.append(Finding("bad", "No gain from five crops", text + cure, "tte"))
    return found


def _sureness(series: Sequence[Series], judgement: Judgement) -> list[Finding]:
    parts = []
    for one in series:
        found, answers = calibrations(one), judgement.own(one)
        interval = answers.interval("overall") if answers else None
        if found is None or answers is None or interval is None:
            continue
        curve, spread = found
        word = "neither overconfident nor underconfident by more than noise"
        if curve.confidence > max(interval[1], curve.accuracy + 1):
            word = "overconfident on average"
        elif curve.confidence < min(interval[0], curve.accuracy - 1):
            word = "underconfident on average"
        parts.append(f"{one.label} {value(spread)} on {pictures(answers.pictures('overall'))} ({word})")
    if not parts:
        return []
    return [
        Finding("plain", "Probabilities", f"Expected calibration error in points: {'; '.join(parts)}.", "calibration")
    ]


def _weight(series: Sequence[Series]) -> list[Finding]:
    """Whether light or full tuning is likely to win, where the report has one trained series alone to tell it by."""
    trained = [one for one in series if _trained(one)]
    if len(trained) != 1 or _part(trained[0], "head_init") not in tuning_map.STARTS:
        return []
    start = table(trained[0].runs[0].about.get("start"))
    accuracy, images, weights = number(start.get("mean_class")), start.get("pictures"), start.get("weights")
    if accuracy is None or not 0 <= accuracy <= 100:
        return []
    if not isinstance(images, int) or images < 1 or not isinstance(weights, int) or weights < 1:
        return []
    counts = [count for count in trained[0].runs[0].train_counts if count]
    if not counts:
        return []
    text = (
        f"Before training it had {accuracy:.1f} % in the mean over classes on "
        f"{counted(images, str(start.get('split')) + ' picture')}. "
        f"{tuning_map.advice(tuning_map.Before(accuracy, max(counts) / min(counts), weights), images)}"
    )
    return [Finding("plain", "Light or full tuning", text, "accuracy")]


def heaviness(distances: Sequence[Distances], counts: Sequence[int]) -> list[Finding]:
    """Whether each tuned model's features of rare classes come apart, compared with the bare backbone."""
    if not distances:
        return []
    bare, found = distances[0], []
    for one in distances[1:]:
        few, base = one.gap(counts, "few"), bare.gap(counts, "few")
        if few is None or base is None:
            continue
        many = one.gap(counts, "many")
        text = (
            f"With {one.label}, test pictures of a few class are {few:.2f} farther apart than its training pictures; "
            f"with the {bare.label}, {base:.2f}."
        )
        if many is not None:
            text += f" On many classes the gap is {many:.2f}."
        grown = few - base
        if grown > WIDE_GAP and grown > (
            max(many - (bare.gap(counts, "many") or 0.0), 0.0) if many is not None else 0.0
        ):
            text += " Train and test have come apart most on few classes: the tuning was too heavy for the tail."
            found.append(Finding("bad", "Features come apart", text, "features"))
        elif grown > WIDE_GAP:
            text += " Train and test have come apart on frequent classes as much as on rare ones."
            found.append(Finding("plain", "Features come apart", text, "features"))
        else:
            text += " Train and test still agree on rare classes."
            found.append(Finding("good", "Features agree", text, "features"))
    if not found:
        text = "No few class has two training and two test pictures, so distances cannot be compared."
        found.append(Finding("plain", "No pairs on few classes", text, "features"))
    return found
