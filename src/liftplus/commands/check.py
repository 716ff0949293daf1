"""`liftplus data check`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, BackboneName, Data, DataOverrides
from liftplus.errors import UserError

_ACTING = ("backbone.", "evaluation.batch_size", "train.workers", "device", "precision", "compile", "cache")

CheckOut = typer.Option("--out", "-o", help="Folder of the page and the CSV; an earlier check there is replaced.")


def check(
    data: Annotated[str, Data],
    backbone: BackboneName = "mini_clip",
    out: Annotated[Path, CheckOut] = Path("data-check"),
    clean: Annotated[
        Path | None,
        typer.Option("--clean", help="Also write a new .csv file that lists the pictures without the suspects."),
    ] = None,
    as_json: AsJson = False,
    overrides: DataOverrides = None,
) -> None:
    """Find doubles, leaks between splits, wrong labels, classes that are one, and outliers; no picture is touched.

    The folder holds check.html, with the pictures side by side, and findings.csv, with all that was found.
    """
    from liftplus import config
    from liftplus.backbones import catalogue
    from liftplus.checks import cleaning, page
    from liftplus.checks.check import check as look
    from liftplus.machine import parallel

    if parallel.job().size > 1:
        raise UserError("Data are checked by one process. Start it without torchrun.")
    options.refuse_idle("data check", overrides, *_ACTING)
    session = options.session(config.resolve(data=data, backbone=backbone, overrides=overrides or ()))
    page.refuse_foreign(out)
    if clean is not None:
        cleaning.refuse_overlap(clean, out)
    catalogue.locate(session.config.backbone)  # missing weights are told before every file is read
    dataset = session.data()
    cleaning.refuse_inside(dataset, out)
    if clean is not None:
        cleaning.refuse_unwritable(dataset, clean)
    found = look(session, dataset)
    without = cleaning.left_out(found)
    written = page.write(found, without, out)
    reads = [] if clean is None else cleaning.write(found, without, clean)
    _tell(page.summary(found, without), written, reads, as_json)


def _tell(summary: dict[str, int | list[str]], written: Path, reads: list[str], as_json: bool) -> None:
    from liftplus import console
    from liftplus.checks.page import sentences

    if as_json:
        print(json.dumps(summary | {"page": str(written), "clean": reads}, ensure_ascii=False, indent=2))
        return
    for sentence in sentences(summary):
        console.out.print(sentence, markup=False)
    console.out.print(f"The page is {written}; open it in a browser. All findings are in findings.csv beside it.")
    if reads:
        command = shlex.join(["liftplus", "train", "--data", *reads])
        console.out.print(f"Train without the suspects: {command}", markup=False, soft_wrap=True)
