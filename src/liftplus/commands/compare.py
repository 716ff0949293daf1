"""`liftplus compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, BackboneName, Data, Overrides
from liftplus.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from liftplus.studies.compare import Comparison, Made, Row


def compare(
    data: Annotated[str, Data],
    backbone: BackboneName = "mini_clip",
    methods: Annotated[
        str,
        typer.Option("--methods", "-m", help="Separated by commas, each with its own settings: lift+,full:lr=0.003."),
    ] = "zeroshot,closed_form,linear_probe,linear_probe+,full,full+,lift+",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with seeds 0, 1, …")] = 3,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the runs and tables; finished runs in it are reused.")
    ] = Path("runs/compare"),
    features: Annotated[
        int, typer.Option(min=0, help="Pictures per class for the report's feature figures; 0 for none.")
    ] = 0,
    gla: Annotated[
        bool, typer.Option("--gla", help="Test each method also with debiased zero-shot logits added, as eval --gla.")
    ] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Train and test methods with the same seeds, and say which differences are more than noise."""
    from liftplus.studies import compare as script

    plan = script.Comparison(data, backbone, tuple(script.entries(methods)), seeds, tuple(overrides or ()), gla)
    made = carry_out(plan, out)
    page = report(plan, made, out, features)
    if as_json:
        print(json.dumps({"folder": str(out)} | json.loads((out / "compare.json").read_text(encoding="utf-8"))))
    else:
        show(plan, made, out, page)
    made.refuse_failures()


def carry_out(plan: Comparison, out: Path, note: Callable[[list[Row]], None] = lambda rows: None) -> Made:
    """Make the runs and write the tables; `note` is called with all rows so far after each run."""
    from liftplus import console
    from liftplus.evaluation.differences import judged
    from liftplus.machine import parallel, stopping
    from liftplus.studies import compare as script
    from liftplus.training import saved_state

    if parallel.job().size > 1:
        raise UserError("Methods are compared in one process. Start it without torchrun.")
    asked = stopping.StopRequest()
    try:
        made = script.run(plan, out, lambda config: options.session(config, asked), console.err.print, note)
    except saved_state.Stopped as stopped:
        console.err.print(f"{stopped} Give the same command to continue.")
        raise SystemExit(128 + (asked.signal or 0)) from None
    methods = script.contenders(made.rows)
    script.write(out, plan, made, methods, judged(methods))
    return made


def report(plan: Comparison, made: Made, out: Path, features: int) -> Path:
    """Write one page about all runs. `features` is the number of pictures per class and split in feature figures."""
    from liftplus import console
    from liftplus.report import write

    done = {(row.method, row.seed) for row in made.rows}
    folders = [
        out / one.folder(seed) for one in plan.entries for seed in range(plan.seeds) if (one.label, seed) in done
    ]
    return write(
        folders, out / "report", with_features=features > 0, per_class=max(features, 2), progress=console.Bars()
    )


def show(plan: Comparison, made: Made, out: Path, page: Path) -> None:
    """Print the table and the main findings."""
    from liftplus import console
    from liftplus.evaluation.differences import caveat, counted, headlines, judged
    from liftplus.studies import compare as script

    methods = script.contenders(made.rows)
    title = f"{plan.data} with {plan.backbone}: accuracy in percent on {counted(methods[0].answers)}"
    console.table(title, *script.table(made.rows))
    for sentence in headlines(methods, judged(methods)):
        console.out.print(sentence)
    console.out.print(caveat(plan.seeds))
    console.out.print(f"All comparisons: {out / 'compare.md'}. Each run's files: {out}/METHOD-seedN/")
    console.out.print(f"Report: {page} (open it in a browser)")
