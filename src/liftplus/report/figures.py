"""The figures about one or several series of runs. A figure is None if its numbers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from liftplus.evaluation.differences import Answers, named
from liftplus.evaluation.metrics import FEW_UNDER, MANY_OVER, group_of
from liftplus.report.chart import GROUPS, INK, MUTED, Chart, LineStyle, canvas, dots, inner_legend, legend
from liftplus.report.judgement import Judgement
from liftplus.report.series import MEASURES, Series, Spread, calibrations, tte_effect
from liftplus.words import agreeing, counted

_POINTS = 1500  # more points would be an unreadable cloud and a slow page


def accuracy(series: Sequence[Series], judgement: Judgement) -> Chart | None:
    """Bars of accuracy, overall and by group, with the 95 % interval over seeds and test pictures as whiskers."""
    keys = ("overall", "many", "medium", "few")
    found = [(k, s, judgement.own(s)) for k, s in enumerate(series) if s.tested]
    if not found:
        return None
    figure, (axes,) = canvas()
    bars = [
        (s.label, LineStyle.of(k), [_bar(s.measure(key), answers.interval(key) if answers else None) for key in keys])
        for k, s, answers in found
    ]
    _bars(axes, keys, bars)
    counts = [{answers.pictures(key) for _, _, answers in found if answers} for key in keys]
    axes.set_xticks(range(len(keys)), [_with_count(key, sorted(n)) for key, n in zip(keys, counts, strict=True)])
    axes.set_ylabel("accuracy in percent")
    tops = [bar.high for _, _, row in bars for bar in row if bar]
    axes.set_ylim(0, 1.06 * max(tops, default=0) or 1)  # leaves room for the cap of the highest whisker
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    legend(figure, axes)
    rows = [
        [s.label, key, *_spread(s.measure(key)), *(_sureness(a, key) if a else (None, None, None))]
        for _, s, a in found
        for key in MEASURES
    ]
    reading = (
        f"Many: classes of over {MANY_OVER} training pictures; medium: {FEW_UNDER} to {MANY_OVER}; few: under "
        f"{FEW_UNDER}. A group is the mean of its classes. Whiskers: the 95 % interval over seeds and test pictures."
    )
    header = ("series", "measure", "mean", "sd", "seeds", "interval_low", "interval_high", "test_images")
    return Chart("accuracy", "Accuracy by group", reading, header, rows, figure)


def _sureness(answers: Answers, key: str) -> tuple[float | None, float | None, int]:
    """The interval's ends of an accuracy, and its number of test pictures."""
    low, high = answers.interval(key) or (None, None)
    return low, high, answers.pictures(key)


def _with_count(key: str, counts: Sequence[int]) -> str:
    """A group's name above its number of test pictures."""
    if not counts or not counts[-1]:
        return key
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{key}\n{shown} {agreeing(counts[-1], 'picture')}"


def _spread(spread: Spread | None) -> list[Any]:
    return [spread.mean, spread.sd, spread.n] if spread else [None, None, 0]


@dataclass(frozen=True)
class _Bar:
    """A bar's height and the ends of its whisker."""

    mean: float
    low: float
    high: float


def _bar(spread: Spread | None, interval: tuple[float, float] | None) -> _Bar | None:
    if spread is None:
        return None
    low, high = interval or (spread.mean, spread.mean)
    return _Bar(spread.mean, min(low, spread.mean), max(high, spread.mean))


def _bars(axes: Axes, keys: Sequence[str], series: Sequence[tuple[str, LineStyle, Sequence[_Bar | None]]]) -> None:
    """Draw groups of bars, one style per series. A missing value leaves a gap."""
    width = 0.8 / len(series)
    for place, (label, style, bars) in enumerate(series):
        at = [k + width * (place - (len(series) - 1) / 2) for k in range(len(keys))]
        held = [(x, bar) for x, bar in zip(at, bars, strict=True) if bar is not None]
        axes.bar([x for x, _ in held], [bar.mean for _, bar in held], 0.88 * width, label=label, **style.bar)
        wide = [(x, bar) for x, bar in held if bar.high > bar.low]
        if wide:
            reach = [[bar.mean - bar.low for _, bar in wide], [bar.high - bar.mean for _, bar in wide]]
            x, mean = [x for x, _ in wide], [bar.mean for _, bar in wide]
            axes.errorbar(x, mean, reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.set_xticks(range(len(keys)), [key.replace("_", " ") for key in keys])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def tail(series: Sequence[Series]) -> Chart | None:
    """Training pictures of each class by rank, coloured by group."""
    run = next((run for s in series for run in s.runs if run.train_counts), None)
    if run is None:
        return None
    names = [row.name for row in run.tested.classes] if run.tested else []
    order = sorted(range(len(run.train_counts)), key=lambda k: -run.train_counts[k])
    counts = np.array([run.train_counts[k] for k in order])
    figure, (axes,) = canvas()
    ranks = np.arange(1, len(counts) + 1)
    for group, colour in GROUPS.items():
        inside = np.array([group_of(n) == group for n in counts])
        if inside.any():
            classes = counted(int(inside.sum()), "class", "classes")
            label = f"{group}: {classes}, {counted(int(counts[inside].sum()), 'picture')}"
            edges = [ranks[inside][0] - 0.5, *(ranks[inside] + 0.5)]
            heights = [*counts[inside], counts[inside][-1]]
            axes.fill_between(edges, heights, step="post", color=colour, label=label, linewidth=0)
    axes.set_yscale("symlog", linthresh=1, linscale=0.3)
    axes.set_ylim(0, 30 * max(1, int(counts.max())))  # room for the names
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.set_xlabel("class by rank")
    axes.set_ylabel("training pictures")
    inner_legend(axes)
    rows = [
        [rank, names[k] if names else k, int(n), group_of(int(n))]
        for rank, (k, n) in enumerate(zip(order, counts, strict=True), 1)
    ]
    reading = "Training pictures of each class, the most frequent first, on a logarithmic scale."
    return Chart("long_tail", "The data's long tail", reading, ("rank", "class", "train_images", "group"), rows, figure)


def curves(series: Sequence[Series], key: str) -> Chart | None:
    """Loss or learning rate by epoch: the mean over seeds, with its standard deviation as a band."""
    found = [(k, s, _by_epoch(s, key)) for k, s in enumerate(series)]
    found = [entry for entry in found if entry[2]]
    if not found:
        return None
    figure, (axes,) = canvas()
    rows = []
    for place, one, spreads in found:
        style, x = LineStyle.of(place), list(spreads)
        mean = np.array([s.mean for s in spreads.values()])
        sd = np.array([s.sd or 0.0 for s in spreads.values()])
        axes.plot(x, mean, **style.line, label=one.label)
        if sd.any():
            axes.fill_between(x, mean - sd, mean + sd, color=style.colour, alpha=0.18, linewidth=0)
        rows += [[one.label, epoch, *_spread(s)] for epoch, s in spreads.items()]
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    title, label, reading = {
        "loss": (
            "Training loss",
            "mean loss of the epoch",
            "A curve that starts high and still falls steeply at the end converges slowly: check the classifier's "
            "initialisation. Values of different losses are not comparable.",
        ),
        "lr": ("Learning rate", "learning rate", "The learning rate of the last step of each epoch."),
    }[key]
    axes.set_ylabel(label)
    legend(figure, axes)
    return Chart(key, title, reading, ("series", "epoch", "mean", "sd", "seeds"), rows, figure)


def _by_epoch(series: Series, key: str) -> dict[int, Spread]:
    epochs = sorted({int(entry["epoch"]) for run in series.runs for entry in run.log})
    found = {}
    for epoch in epochs:
        values = [entry[key] for run in series.runs for entry in run.log if entry["epoch"] == epoch]
        if spread := Spread.of(values):
            found[epoch] = spread
    return found


def accuracy_by_count(series: Sequence[Series]) -> Chart | None:
    """Each class's accuracy against its training count, and the mean over classes of similar count."""
    found = [(k, s, _points(s)) for k, s in enumerate(series)]
    found = [entry for entry in found if len(entry[2])]
    if not found:
        return None
    figure, (axes,) = canvas()
    rows = []
    shown = sum(len(points) for _, _, points in found) <= _POINTS
    for place, one, points in found:
        style = LineStyle.of(place)
        if shown:
            dots(axes, points, style)
        middle = binned(points)
        axes.plot(middle[:, 0], middle[:, 1], **style.line, label=one.label)
        rows += [[one.label, *(float(v) for v in row)] for row in middle]
    count_axis(axes, [n for _, _, points in found for n in points[:, 0]])
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy in percent")
    legend(figure, axes)
    tests = [row.test_images for _, s, _ in found for t in s.tested[:1] for row in t.classes if row.test_images]
    reading = "Lines: mean over classes of similar count (bins of a factor of two)" + (
        "; points: single classes. " if shown else ". "
    )
    reading += f"Test pictures of a class: {_range(tests)}. "
    reading += "If a line drops to the left and another does not, the tail was damaged."
    header = ("series", "train_images_mean", "accuracy_mean", "classes")
    return Chart("accuracy_by_count", "Accuracy against training pictures", reading, header, rows, figure)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def count_axis(axes: Axes, counts: Sequence[float], *, fine: bool = True) -> None:
    """A logarithmic axis of training counts with the groups' borders; `fine` adds ticks between powers of ten."""
    low, high = float(min(counts, default=1)), float(max(counts, default=1))
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.3 if low < 1 else low / 1.25, max(high, 2) * 1.25)
    steps = (1, 2, 5) if fine and high <= 2000 else (1,)
    axes.set_xticks([0] * (low < 1) + [n * 10**k for k in range(7) for n in steps if low <= n * 10**k <= high])
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.set_xlabel("training pictures of the class")
    for border in (FEW_UNDER, MANY_OVER):
        if low < border < high:
            axes.axvline(border, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    edges = (low, FEW_UNDER, MANY_OVER, high)
    for name, left, right in zip(("few", "medium", "many"), edges, edges[1:], strict=False):
        if max(left, low) * 1.6 < min(right, high):
            middle = (max(left, low, 0.7) * min(right, high)) ** 0.5
            axes.text(
                middle,
                1.01,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=MUTED,
            )


def _points(series: Series) -> Any:
    """(training count, accuracy) of the classes that have one."""
    counts = next((t.classes for t in series.tested if t.classes), ())
    pairs = zip((row.train_images for row in counts), series.per_class(), strict=True) if counts else ()
    return np.array([(n, a) for n, a in pairs if a is not None], dtype=float).reshape(-1, 2)


def binned(points: Any) -> Any:
    """(mean count, mean value, classes) in bins of a factor of two in the count; a count of 0 has its own bin."""
    bins = np.floor(np.log2(np.maximum(points[:, 0], 0.5)))
    found = [points[bins == k] for k in np.unique(bins)]
    return np.array([(part[:, 0].mean(), part[:, 1].mean(), len(part)) for part in found])


def reliability(series: Sequence[Series]) -> Chart | None:
    """Reliability diagram: the share of right answers against the model's probability."""
    found = [(k, s, c) for k, s in enumerate(series) if (c := calibrations(s)) is not None]
    if not found:
        return None
    figure, (axes,) = canvas()
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    rows, totals = [], []
    for place, one, (curve, spread) in found:
        style = LineStyle.of(place)
        x, y = ([100 * b[k] for b in curve.bins] for k in (2, 3))
        label = f"{one.label}: ECE {spread.mean:.1f}"
        axes.plot(x, y, **style.line, label=label)
        totals.append(sum(n for _, n, _, _ in curve.bins))
        rows += [[one.label, *b] for b in curve.bins]
    axes.set_xlim(0, 102)
    axes.set_ylim(-2, 103)
    axes.set_xlabel("probability given to the best class, percent")
    axes.set_ylabel("right, percent")
    legend(figure, axes)
    reading = (
        "On the dashed line, probabilities are correct; below it the model is overconfident, above it underconfident. "
        f"ECE: expected calibration error, in points. Each line uses {_range(totals)} tested pictures, over all seeds."
    )
    header = ("series", "bin_from", "images", "probability_mean", "right_share")
    return Chart("reliability", "Reliability of the probabilities", reading, header, rows, figure)


def tte(series: Sequence[Series], judgement: Judgement) -> Chart | None:
    """Gain of five crops over one, with its 95 % interval as whiskers."""
    keys = ("overall", "many", "medium", "few")
    found = [(k, s, e) for k, s in enumerate(series) if (e := tte_effect(s))]
    if not found:
        return None
    figure, (axes,) = canvas()
    halves = {
        (s.label, key): gain.half
        for _, s, _ in found
        for key in MEASURES
        if (gain := judgement.between(named(s.label, True), named(s.label, False), key)) is not None
    }
    gains = []
    for k, s, e in found:
        row = []
        for key in keys:
            spread, half = e[key][2] if key in e else None, halves.get((s.label, key))
            row.append(_bar(spread, (spread.mean - half, spread.mean + half) if spread and half else None))
        gains.append((s.label, LineStyle.of(k), row))
    _bars(axes, keys, gains)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_ylabel("gain in points")
    legend(figure, axes)
    rows = [
        [s.label, key, *(part.mean for part in e[key]), e[key][2].sd, halves.get((s.label, key)), e[key][2].n]
        for _, s, e in found
        for key in e
    ]
    reading = (
        "Accuracy with five crops minus accuracy with one crop, by group. A gain around zero means that the crops add "
        "nothing. Whiskers: the 95 % interval over seeds and test pictures."
    )
    header = ("series", "measure", "one_crop", "five_crops", "gain", "gain_sd", "gain_half_interval", "seeds")
    return Chart("tte", "What five crops gain", reading, header, rows, figure)
