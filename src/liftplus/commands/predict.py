"""`liftplus predict`."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import Run
from liftplus.errors import UserError

if TYPE_CHECKING:
    from liftplus.predicting import Guess


def predict(
    run: Run,
    inputs: Annotated[list[str], typer.Argument(help="Image files, folders or glob patterns.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help=".csv or .json; stdout as CSV if not given.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes for each image.")] = 5,
    unreadable: Annotated[str, typer.Option(help="stop or skip at a broken image.")] = "stop",
    tte: Annotated[
        bool | None, typer.Option("--tte/--one-crop", help="Five crops or one; as in training if not given.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="How often classes come: training, uniform, or a JSON file of counts.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value, e.g. device=cpu or weights=PATH; repeatable.")
    ] = None,
) -> None:
    """Classify image files with a finished run."""
    from liftplus import checkpoint, parallel, predicting

    if unreadable not in ("stop", "skip"):
        raise UserError(f"--unreadable is {unreadable!r}; allowed are stop and skip.")
    _check_target(out)
    files = predicting.image_files(inputs)
    crops = [] if tte is None else [f"evaluation.tte={str(tte).lower()}"]
    expected = [] if prior is None else [f"evaluation.prior={prior}"]
    settings = options.run_settings(run, None, [f"evaluation.top_k={top_k}", *crops, *expected, *(change or [])])
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    guesses = predicting.predict_files(session, trained, files, skip_unreadable=unreadable == "skip")
    if parallel.job().leads:
        _write_guesses(guesses, out)


def _check_target(out: Path | None) -> None:
    """Refuse a file that could not be written before the work is done."""
    if out is None:
        return
    if out.suffix not in (".csv", ".json"):
        raise UserError(f"--out is {str(out)!r}; its name must end in .csv or .json.")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise UserError(f"--out is {str(out)!r}; {str(out.parent)!r} must be a folder that can be written to.")


def _write_guesses(guesses: list[Guess], out: Path | None) -> None:
    from liftplus import console, results

    if out is not None and out.suffix == ".json":
        results.write_json(
            out,
            [
                {
                    "path": g.path,
                    "error": g.error,
                    "top": [
                        {"class": name, "probability": round(p, 6)}
                        for name, p in zip(g.classes, g.probabilities, strict=True)
                    ],
                }
                for g in guesses
            ],
        )
    else:
        count = max((len(g.classes) for g in guesses), default=0)
        header = ["path", *(f"{what}_{k + 1}" for k in range(count) for what in ("class", "probability")), "error"]
        rows = [
            [
                g.path,
                *(cell for name, p in zip(g.classes, g.probabilities, strict=True) for cell in (name, f"{p:.6f}")),
                *[""] * (2 * (count - len(g.classes))),
                g.error or "",
            ]
            for g in guesses
        ]
        if out is None:
            csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        else:
            results.write_csv(out, header, rows)
    if out is not None:
        console.out.print(f"{len(guesses)} predictions are in {out}")
