"""Write a smaller copy of a data set that loads fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands.options import AsJson, Data, Overrides
from liftplus.errors import UserError
from liftplus.words import agreeing, counted


def prepare(
    data: Annotated[str, Data],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the copy; it must not exist yet.")],
    size: Annotated[
        int, typer.Option(min=16, help="Longest that the shorter side may be; pictures are never enlarged.")
    ] = 256,
    quality: Annotated[int, typer.Option(min=50, max=100, help="JPEG quality; what is lossless stays so.")] = 95,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Write a resized copy of a data set as WebDataset shards; give its folder as --data to train on it.

    The same command goes on with a copy that was interrupted.
    """
    from liftplus import config, console
    from liftplus.data import shards, sources
    from liftplus.machine import parallel

    if parallel.job().size > 1:
        raise UserError("A copy is made by one process. Start it without torchrun.")
    if out.exists():
        raise UserError(f"{str(out)!r} exists already. Choose another place with --out, or remove it first.")
    dataset = sources.load(config.resolve(data=data, overrides=overrides or ()).data)
    total = sum(map(len, dataset.splits.values()))
    try:
        shards.write(dataset, out, shards.Recipe(size, quality), console.Bars())
    except KeyboardInterrupt:
        if kept := shards.resumable(out):
            console.err.print(f"What is copied is kept in {kept}; the same command goes on from there.")
        raise
    used = sum(file.stat().st_size for file in out.iterdir())
    if as_json:
        print(json.dumps({"folder": str(out), "images": total, "bytes": used}))
        return
    console.out.print(
        f"{counted(total, 'picture')}, {used / 1e6:,.1f} MB, {agreeing(total, 'is', 'are')} in {out}; train with "
        f"--data {out}"
    )
