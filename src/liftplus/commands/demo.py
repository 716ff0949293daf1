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
    from liftplus import demo as script
    from liftplus import parallel

    if parallel.job().size > 1:
        raise UserError("The demo runs in one process. Start it without torchrun.")
    script.run(out, seeds)
