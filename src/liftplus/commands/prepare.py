"""`liftplus prepare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands.options import AsJson, Data, DataOverrides, refuse_idle
from liftplus.errors import UserError
from liftplus.words import agreeing, counted


def prepare(
    data: Annotated[str, Data],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the copy; it must not exist yet.")],
    size: Annotated[
        int, typer.Option(min=16, help="Largest shorter side in pixels. Pictures are never enlarged.")
    ] = 256,
    quality: Annotated[int, typer.Option(min=50, max=100, help="JPEG quality. Lossless pictures stay lossless.")] = 95,
    as_json: AsJson = False,
    overrides: DataOverrides = None,
) -> None:
    """Write a resized copy of a data set as WebDataset shards, which loads faster. Train on it with --data FOLDER.

    Give the same command to continue an interrupted copy.
    """
    from liftplus import config, console
    from liftplus.data import shards, sources
    from liftplus.data.kept_facts import KeptFacts
    from liftplus.machine import parallel

    if parallel.job().size > 1:
        raise UserError("prepare runs in one process. Start it without torchrun.")
    if out.exists():
        raise UserError(f"{str(out)!r} already exists. Choose another folder with --out, or remove it first.")
    refuse_idle("prepare", overrides, "cache")
    settings = config.resolve(data=data, overrides=overrides or ())
    dataset = sources.load(settings.data, kept=KeptFacts.of(settings.cache))
    total = sum(map(len, dataset.splits.values()))
    try:
        shards.write(dataset, out, shards.CopyOptions(size, quality), console.Bars())
    except KeyboardInterrupt:
        if kept := shards.resumable(out):
            console.err.print(f"The copied part is kept in {kept}. Give the same command to continue.")
        raise
    used = sum(file.stat().st_size for file in out.iterdir())
    if as_json:
        print(json.dumps({"folder": str(out), "images": total, "bytes": used}))
        return
    console.out.print(
        f"{counted(total, 'picture')}, {used / 1e6:,.1f} MB, {agreeing(total, 'is', 'are')} in {out}; train with "
        f"--data {out}"
    )
