"""The figures of "Why heavy fine-tuning hurts"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from liftplus.report.chart import GROUPS, INK, MUTED, Chart, LineStyle, canvas, dots, legend
from liftplus.report.features import BARE, BINS, FARTHEST, Distances
from liftplus.report.figures import binned, count_axis

_POINTS = 1500


def charts(found: Sequence[Distances], counts: Sequence[int], styles: Sequence[LineStyle]) -> list[Chart]:
    """The figures: distances within classes, their gap and histograms, similarity by class, separation of classes."""
    made = [_within(found, counts), _gap(found, counts, styles), _histograms(found), _likeness(found)]
    return [chart for chart in made if chart is not None] + [_separation(found, styles)]


def _pairs(values: Sequence[float | None], counts: Sequence[int]) -> np.ndarray:
    pairs = [(n, v) for n, v in zip(counts, values, strict=True) if v is not None]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _within(found: Sequence[Distances], counts: Sequence[int]) -> Chart | None:
    if not any(len(_pairs(d.train, counts)) for d in found):
        return None
    figure, panels = canvas(len(found))
    rows = []
    for axes, one in zip(panels, found, strict=True):
        for split, values, style in (("train", one.train, LineStyle.of(0)), ("test", one.test, LineStyle.of(1))):
            points = _pairs(values, counts)
            if not len(points):
                continue
            middle = binned(points)
            if len(points) <= _POINTS:
                dots(axes, points, style)
            axes.plot(middle[:, 0], middle[:, 1], color=style.colour, marker=style.marker, label=split)
        rows += [[one.label, n, a, b] for n, a, b in zip(counts, one.train, one.test, strict=True)]
        count_axis(axes, [n for values in (one.train, one.test) for n in _pairs(values, counts)[:, 0]], fine=False)
        _frame(axes, one.label, "training pictures")
    panels[0].set_ylabel("distance within the class")
    legend(figure, panels[0])
    reading = (
        "Mean cosine distance between two pictures of one class. If training pictures of rare classes are much closer "
        "together than test pictures, the model has memorised them."
    )
    header = ("model", "train_images", "train_distance", "test_distance")
    return Chart("intra_class_distance", "Distances within classes", reading, header, rows, figure)


def _frame(axes: Axes, label: str, along: str) -> None:
    """Label a model's panel and its horizontal axis, and start the vertical axis at 0."""
    axes.set_xlabel(along)
    axes.set_title(_broken(label), fontsize=9.5, color=INK, pad=16)
    axes.set_ylim(bottom=0)


def _broken(label: str) -> str:
    return label.replace(" (", "\n(", 1) if len(label) > 22 else label


def _short(one: Distances) -> str:
    return BARE if one.label.startswith(BARE) else one.label


def _gap(found: Sequence[Distances], counts: Sequence[int], styles: Sequence[LineStyle]) -> Chart | None:
    figure, (axes,) = canvas()
    rows = []
    for one, style in zip(found, styles, strict=True):
        points = _pairs(one.gaps(), counts)
        if len(points):
            middle = binned(points)
            axes.plot(middle[:, 0], middle[:, 1], **style.line, label=_short(one))
            rows += [[one.label, *(float(v) for v in row)] for row in middle]
    if not rows:
        return None
    axes.axhline(0, color=MUTED, linewidth=0.8)
    count_axis(axes, [n for one in found for n in _pairs(one.gaps(), counts)[:, 0]])
    axes.set_ylabel("test minus train distance")
    legend(figure, axes)
    reading = (
        "How much farther apart test pictures of a class are than its training pictures. If a line rises to the left, "
        "train and test no longer agree on rare classes: the fine-tuning was too heavy for them."
    )
    header = ("model", "train_images_mean", "gap_mean", "classes")
    return Chart("distance_gap", "Gap between test and train", reading, header, rows, figure)


def _separation(found: Sequence[Distances], styles: Sequence[LineStyle]) -> Chart:
    figure, (axes,) = canvas()
    for place, (one, style) in enumerate(zip(found, styles, strict=True)):
        for offset, value, solid in ((-0.2, one.between, 1.0), (0.2, one.within, 0.4)):
            if value is not None:
                axes.barh(place + offset, value, 0.36, alpha=solid, **style.bar)
                word = "between" if solid == 1.0 else "within"
                axes.annotate(f" {word} {value:.2f}", (value, place + offset), va="center", fontsize=8.5, color=MUTED)
    axes.set_yticks(range(len(found)), [_broken(one.label) for one in found])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.4 * max([v for one in found for v in (one.between, one.within) if v is not None], default=1))
    axes.set_xlabel("mean cosine distance of test features")
    rows = [[one.label, one.between, one.within] for one in found]
    reading = (
        "Distance between the mean directions of two classes (full colour) and between two pictures of one class "
        "(pale). If the first is much larger than the second, classes are easy to tell apart."
    )
    return Chart("separation", "Separation of classes", reading, ("model", "between", "within"), rows, figure)


def _histograms(found: Sequence[Distances]) -> Chart | None:
    """Histograms of train and test for the most frequent and the rarest group that have pairs."""
    groups = [g for g in GROUPS if any(f"{split} {g}" in one.pairs for one in found for split in ("train", "test"))]
    if not groups:
        return None
    figure, panels = canvas(len(found))
    middles = (np.arange(BINS) + 0.5) * FARTHEST / BINS
    rows = []
    for axes, one in zip(panels, found, strict=True):
        for group in dict.fromkeys((groups[0], groups[-1])):
            for split, dash in (("train", "-"), ("test", ":")):
                shares = one.pairs.get(f"{split} {group}")
                if shares is not None:
                    axes.plot(middles, shares, color=GROUPS[group], linestyle=dash, label=f"{group}, {split}")
                    rows += [[one.label, group, split, float(x), y] for x, y in zip(middles, shares, strict=True)]
        _frame(axes, one.label, "distance of a pair")
    panels[0].set_ylabel("share of pairs")
    legend(figure, panels[0])
    reading = (
        "Cosine distances between two pictures of one class, in frequent and in rare classes. If train and test agree "
        "for frequent classes but differ for rare ones, fine-tuning was too heavy for the rare ones."
    )
    header = ("model", "group", "split", "distance", "share")
    return Chart("distance_histograms", "Distances of head and tail", reading, header, rows, figure)


def _likeness(found: Sequence[Distances]) -> Chart | None:
    held = [one for one in found if len(one.shown) > 1]
    if not held:
        return None
    figure, panels = canvas(len(held))
    low = min(value for one in held for row in one.likeness for value in row)
    rows = []
    for axes, one in zip(panels, held, strict=True):
        image = axes.imshow(np.array(one.likeness), cmap="cividis", vmin=low, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("class in test")
        axes.set_title(_broken(one.label), fontsize=9.5, color=INK, pad=16)
        for place, row in zip(one.shown, one.likeness, strict=True):
            rows += [[one.label, place, other, value] for other, value in zip(one.shown, row, strict=True)]
    panels[0].set_ylabel("class in training")
    figure.colorbar(image, ax=panels, label="cosine", shrink=0.8)
    reading = (
        "Cosine similarity of the classes' mean directions, training against test, from frequent classes (top, left) "
        "to rare ones. A bright diagonal is good. If it fades to the lower right, rare classes are lost."
    )
    header = ("model", "train_class", "test_class", "cosine")
    return Chart("class_likeness", "Similarity by class", reading, header, rows, figure)
