"""`liftplus push` and `liftplus pull`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from liftplus.commands.options import AsJson, Run

Repository = Annotated[str, typer.Argument(help="OWNER/NAME on the hub.", metavar="REPO_ID")]


def push(
    run: Run,
    repo_id: Repository,
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of a new repository.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Licence of the learned weights, e.g. mit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a finished run to the Hugging Face hub, with a generated model card."""
    from liftplus import console
    from liftplus.publishing import hub

    address, files = hub.push(run, repo_id, private=private, revision=revision, licence=licence)
    if as_json:
        print(json.dumps({"address": address, "files": list(files)}))
    else:
        console.out.print(f"{', '.join(files)} are at {address}")


def pull(
    repo_id: Repository,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run; it must not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a run from the Hugging Face hub, for eval, predict and export."""
    from liftplus import console
    from liftplus.publishing import hub

    commit = hub.pull(repo_id, out, revision=revision)
    if as_json:
        print(json.dumps({"folder": str(out), "commit": commit}))
    else:
        console.out.print(f"{out} holds {repo_id} at commit {commit}")
