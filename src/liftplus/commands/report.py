"""`liftplus report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from liftplus.errors import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one data set; seeds of one kind are averaged.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the report; RUN/report, or report/ beside several runs."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Compute the features for 'Why heavy fine-tuning hurts'.")
    ] = False,
    per_class: Annotated[int, typer.Option(min=2, help="Pictures a class and split for --features, at most.")] = 50,
) -> None:
    """Write a page about one or several runs: accuracies, curves, classes, confusions, calibration, cost.

    The folder holds report.html, which needs no network, and figures/ with each figure as PNG and its numbers as CSV.
    An earlier report there is replaced.
    """
    from liftplus import console, parallel
    from liftplus.report import write

    if parallel.job().size > 1:
        raise UserError("The report is written by one process. Start it without torchrun.")
    page = write(
        runs,
        out or _beside(runs),
        with_features=features,
        per_class=per_class,
        progress=console.Bars(),
        told=lambda text: console.err.print(f"Note: {text}"),
    )
    console.out.print(f"The report is {page}; open it in a browser.")


def _beside(runs: list[Path]) -> Path:
    if len(runs) == 1:
        return runs[0] / "report"
    return Path(os.path.commonpath([os.path.abspath(run.parent) for run in runs])) / "report"
