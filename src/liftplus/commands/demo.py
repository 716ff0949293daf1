"""`liftplus demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands.options import AsJson
from liftplus.errors import UserError


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; an earlier demo's is replaced.")
    ] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with different seeds.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Zero-shot, closed form, full fine-tuning and LIFT+ on the bundled model and drawn data.

    Full fine-tuning runs twice: as a baseline from random rows with the usual crops, and with LIFT+'s start and crops.
    """
    from liftplus import console
    from liftplus.commands import compare
    from liftplus.machine import disk, parallel
    from liftplus.studies import demo as preset

    if parallel.job().size > 1:
        raise UserError("The demo runs in one process. Start it without torchrun.")
    console.err.print(f"Note: {preset.FEW}", highlight=False)
    preset.clear(out)
    plan = preset.plan(seeds)
    made = compare.carry_out(plan, out, note=lambda rows: preset.write(out, rows))
    page = compare.report(plan, made, out, preset.FEATURES)
    if as_json:
        print(json.dumps({"folder": str(out), "page": str(page), "rows": disk.read_json(out / preset.ROWS)}))
    else:
        compare.show(plan, made, out, page)
        console.out.print(f"Rows: {out / preset.ROWS}")
    made.refuse_failures()
