"""`liftplus demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from liftplus.errors import UserError


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; an earlier demo's is replaced.")
    ] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with different seeds.")] = 1,
) -> None:
    """Zero-shot, linear probe, full fine-tuning and LIFT+ on the bundled model and a drawn long-tailed data set."""
    from liftplus import console, parallel
    from liftplus import demo as preset
    from liftplus.commands import compare

    if parallel.job().size > 1:
        raise UserError("The demo runs in one process. Start it without torchrun.")
    preset.clear(out)
    plan = preset.plan(seeds)
    rows = compare.carry_out(plan, out, note=lambda rows: preset.write(out, rows))
    compare.show(plan, rows, out, compare.report(plan, out, preset.FEATURES))
    console.out.print(f"Rows: {out / preset.ROWS}")
