"""`liftplus merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands import completion, options
from liftplus.commands.classes import NewRun, Weights
from liftplus.commands.options import AsJson
from liftplus.errors import UserError

Runs = Annotated[
    list[Path],
    typer.Argument(autocompletion=completion.runs, help="Folders of finished runs, or model files in them."),
]


def merge(
    runs: Runs,
    out: NewRun,
    start: Annotated[
        float, typer.Option(help="Share of the weights before training to mix in, from 0 to 1 (WiSE-FT).")
    ] = 0.0,
    shares: Annotated[str | None, typer.Option(help="Weight of each run, such as 2,1,1; default: all equal.")] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Test the merged run, as train does.")] = True,
    data: Annotated[
        str | None, typer.Option("--data", "-d", autocompletion=completion.data, help="The runs' data, if moved.")
    ] = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Merge runs: average their weights (model soup), or mix a run's weights with its start (WiSE-FT)."""
    from liftplus import console
    from liftplus.runs import merging

    moved = {"data.source": data, "backbone.weights": weights}
    given = [f"{key}={value}" for key, value in moved.items() if value is not None]
    settings = [options.run_settings(run, None, given) for run in runs]
    session = options.session(settings[0])
    parts = [merging.Part.read(run, own) for run, own in zip(runs, settings, strict=True)]
    for note in merging.merge(parts, out, session, _numbers(shares), start):
        console.err.print(f"Note: {note}")
    metrics = None
    if test:
        try:
            metrics = merging.tested(session, parts[0], out)
        except UserError as error:
            console.err.print(f"Note: {out} was not tested. {error}")
    if as_json:
        print(json.dumps({"folder": str(out)} | (metrics.summary() if metrics else {})))
        return
    if metrics:
        label = "five crops" if session.config.evaluation.tte else "one crop"
        console.accuracy_table(f"{out} on {session.config.data.source} (test)", [(label, metrics.summary())])
    console.out.print(f"Files are in {out}")


def _numbers(text: str | None) -> list[float]:
    """Parse numbers that are separated by commas."""
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--shares is {text!r}. Give one number per run, separated by commas: 2,1,1.") from None
