"""The style of all figures, and their three forms: inline SVG in the page's colours, PNG and CSV."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from liftplus.machine import disk

INK, MUTED, GRID = "#1c2126", "#5f6973", "#dfe3e7"
# The first are Okabe & Ito's, darkened to be visible on white. All differ in lightness or hue to the colour-blind too.
SERIES = (
    *("#0072b2", "#d55e00", "#00835f", "#b5487f", "#882200"),
    *("#112299", "#6699bb", "#333333", "#5566ee", "#661166"),
)
MARKERS, DASHES, HATCHES = "osD^vPX*<>", ("-", "--", "-.", (0, (1, 1.2))), ("", "///", "...", "xxx")
GROUPS = {"many": "#33475b", "medium": "#7d93a7", "few": "#d0901a"}
VARIABLES = (
    {INK: "--ink", MUTED: "--muted", GRID: "--grid"}
    | {colour: f"--s{place}" for place, colour in enumerate(SERIES)}
    | {colour: f"--{name}" for name, colour in GROUPS.items()}
)
_LEGEND_LINE, _LEGEND_LINES = 0.2, 3  # height of a line in inches; the lines that a figure has room for
_STYLE: Any = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "liftplus",
}


@dataclass(frozen=True)
class LineStyle:
    """Colour, marker, dash and hatch of one series. 400 series have different lines, and 40 have different bars."""

    colour: str
    marker: str
    dash: Any
    hatch: str

    @classmethod
    def of(cls, place: int) -> LineStyle:
        """The style of the series at this index in the report."""
        turn, colour = divmod(place, len(SERIES))
        later, dash = divmod(turn, len(DASHES))
        return cls(SERIES[colour], MARKERS[(colour + later) % len(MARKERS)], DASHES[dash], HATCHES[dash])

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's arguments for a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash}

    @property
    def bar(self) -> dict[str, Any]:
        """Matplotlib's arguments for a bar."""
        return {"color": self.colour, "hatch": self.hatch, "edgecolor": GRID, "linewidth": 0}


@dataclass(frozen=True)
class Chart:
    """A figure and its numbers.

    Attributes:
        name: the name of its files, without a suffix.
        title: its heading.
        reading: how to read it and what to look for, one or two sentences.
        header, rows: its numbers as a table.
        figure: the Matplotlib figure.
    """

    name: str
    title: str
    reading: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    figure: Figure


def swatch(place: int) -> dict[str, int]:
    """The numbers of a series' colour and pattern in page.css."""
    turn, colour = divmod(place, len(SERIES))
    return {"colour": colour, "pattern": turn % len(HATCHES)}


def canvas(columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in the common style, with panels side by side."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(max(4.6, 2.3 * columns), 2.95), layout="constrained")
        FigureCanvasAgg(figure)
        found = figure.subplots(1, columns, sharey=True, squeeze=False)
    return figure, list(found[0])


def dots(axes: Axes, points: NDArray[np.float64], style: LineStyle) -> None:
    """Draw points [n, 2], one per class, faintly behind the line of their means."""
    axes.plot(
        points[:, 0], points[:, 1], style.marker, color=style.colour, alpha=0.28, markersize=3.2, markeredgewidth=0
    )


def legend(figure: Figure, axes: Axes) -> None:
    """The series' names below the axes, if there are any. Many names make the figure higher."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = max(1, min(len(labels), 4, int(60 // (max(map(len, labels)) + 7))))
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + _LEGEND_LINE * max(0, math.ceil(len(labels) / columns) - _LEGEND_LINES))
        with matplotlib.rc_context(_STYLE):
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def inner_legend(axes: Axes) -> None:
    """The names in the upper right corner, which must be empty."""
    with matplotlib.rc_context(_STYLE):
        axes.legend(loc="upper right")


def cell(value: Any) -> Any:
    """A value as it is written into a CSV file or table."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def save(chart: Chart, folder: Path) -> str:
    """Write the figure's PNG and CSV into a folder, and return its SVG for the page."""
    disk.write_csv(folder / f"{chart.name}.csv", chart.header, ([cell(v) for v in row] for row in chart.rows))
    picture, drawing = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name's letters that the font lacks
        chart.figure.savefig(picture, format="png", dpi=160, metadata={"Software": None})
        chart.figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    disk.write_bytes(folder / f"{chart.name}.png", picture.getvalue())
    return inline(drawing.getvalue(), chart.name, chart.title, chart.reading)


def inline(svg: str, name: str, title: str, description: str) -> str:
    """Adapt Matplotlib's SVG to the page: unique ids, the page's colours and font, text for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", svg)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">") + 1])
    opening = opening[:-1] + f' role="img" aria-labelledby="{name}-title {name}-desc">'
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return opening + words + svg[svg.index(">") + 1 :]
