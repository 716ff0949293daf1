"""`liftplus classes add` and `liftplus classes rename`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands.options import AsJson, Run
from liftplus.errors import UserError

NewRun = Annotated[Path, typer.Option("--out", "-o", help="Folder for the changed run; it must not exist yet.")]
Weights = Annotated[str | None, typer.Option(help="A local file of the backbone's weights.")]


def add(
    run: Run,
    names: Annotated[list[str], typer.Argument(help="Names of the new classes.")],
    out: NewRun,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Add classes by name, without an image: their rows come from the text tower."""
    from liftplus import console, edit_classes

    edit_classes.add(run, names, out, weights)
    if as_json:
        print(json.dumps({"folder": str(out), "added": names}))
        return
    console.out.print(
        f"{out} knows {len(names)} more class{'es' if len(names) > 1 else ''}. Their rows are as before any training, "
        "those of the others have moved since, so test before use; the old results do not apply."
    )


def rename(
    run: Run,
    names: Annotated[list[str], typer.Argument(help="OLD=NEW for each class to rename.", metavar="OLD=NEW...")],
    out: NewRun,
    new_rows: Annotated[
        bool, typer.Option("--new-rows", help="Take the rows from the new names, discarding what was learned in them.")
    ] = False,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Give classes other names. What the model computes stays the same, but for --new-rows."""
    from liftplus import console, edit_classes

    pairs: dict[str, str] = {}
    for given in names:
        old, equals, new = given.partition("=")
        if not equals or old in pairs:
            raise UserError(f"{given!r} is not of the form OLD=NEW, with each OLD once.")
        pairs[old] = new
    edit_classes.rename(run, pairs, out, new_rows=new_rows, weights=weights)
    if as_json:
        print(json.dumps({"folder": str(out), "renamed": pairs}))
        return
    console.out.print(f"{out} is {run} with {len(pairs)} class names changed.")
