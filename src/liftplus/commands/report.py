"""`liftplus report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands import completion
from liftplus.commands.options import AsJson
from liftplus.errors import UserError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            autocompletion=completion.runs,
            help="Run folders of one data set, or a folder with runs inside, such as compare's.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the report; default: RUN/report, or report/ beside several runs."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Compute the features for 'Why heavy fine-tuning hurts'.")
    ] = False,
    per_class: Annotated[
        int, typer.Option(min=2, help="Largest number of pictures per class and split for --features.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Write a page about one or several runs: accuracies, curves, classes, confusions, calibration, cost.

    A folder of `compare`, `sweep` or `reproduce` stands for the runs inside it. Runs that differ only in their seed are
    averaged.

    The report's folder holds report.html, which needs no network, and figures/ with each figure as PNG and its numbers
    as CSV. An earlier report there is replaced.
    """
    from liftplus import console
    from liftplus.machine import parallel
    from liftplus.report import write
    from liftplus.report.folders import beside

    if parallel.job().size > 1:
        raise UserError("report runs in one process. Start it without torchrun.")
    page = write(
        runs,
        out or beside(runs),
        with_features=features,
        per_class=per_class,
        progress=console.Bars(),
        say=lambda text: console.err.print(f"Note: {text}"),
    )
    if as_json:
        print(json.dumps({"page": str(page)}))
    else:
        console.out.print(f"Report: {page} (open it in a browser)")
