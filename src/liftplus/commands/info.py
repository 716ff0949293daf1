"""`liftplus info` and `liftplus data inspect`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from liftplus.commands import completion
from liftplus.commands.options import AsJson, Data, DataOverrides, Method, Overrides, refuse_idle
from liftplus.errors import UserError

STARTING = ("backbone.", "evaluation.batch_size", "train.workers", "device", "precision", "compile", "cache", "seed")
"""Settings that act on how good a classifier is before training."""


def info(
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", "-b", autocompletion=completion.backbones, help="Show this backbone's parameters."),
    ] = None,
    method: Method = "lift+",
    data: Annotated[
        str | None, typer.Option("--data", "-d", autocompletion=completion.data, help="Use the classes of these data.")
    ] = None,
    find: Annotated[
        str | None, typer.Option("--find", "-f", help="List all backbones whose name contains this, e.g. dinov3.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also predict the memory of training; takes some seconds.")
    ] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List methods, data sets, backbones and parts; or show a backbone's tuners and parameters, without its weights."""
    if find is not None:
        _backbones(find, as_json)
    elif backbone is None and data is None and not overrides and method == "lift+":
        _parts(as_json)
    else:
        from liftplus import describe

        describe.model(backbone or "mini_clip", method, data, overrides or [], as_json, memory)


def _parts(as_json: bool) -> None:
    """Print methods, data sets, backbones and every registered part, one line each."""
    from liftplus import console, names

    groups = names.parts()
    if as_json:
        print(json.dumps(groups, indent=2))
        return
    for kind, members in groups.items():
        console.table(kind.replace("_", " "), ("name", "what it is"), list(members.items()))


def _backbones(pattern: str, as_json: bool) -> None:
    """Print every backbone whose name contains the pattern."""
    from liftplus import console, names

    known = names.backbones()
    if known is None:
        from liftplus.backbones import catalogue

        known = catalogue.find("")
    found = [name for name in known if pattern.casefold() in name.casefold()]
    if not found:
        raise UserError(
            f"No backbone's name contains {pattern!r}. Try a family: vit, dinov3, siglip, convnext, resnet."
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name in found:
        console.out.print(name, highlight=False, markup=False)


def inspect(
    data: Annotated[str, Data],
    as_json: AsJson = False,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Open the files, or only count.")] = True,
    read: Annotated[
        str | None,
        typer.Option(
            help="whole files; headers alone; or a number: so many files drawn at random whole, of the others headers.",
            metavar="whole|headers|NUMBER",
            show_default="whole",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            autocompletion=completion.backbones,
            help="Also measure this backbone before training, and say whether light or full tuning is likely to win.",
        ),
    ] = None,
    overrides: DataOverrides = None,
) -> None:
    """Show counts, imbalance ratio, groups, duplicate or empty classes, and unreadable files.

    `liftplus data check` also looks for near doubles, wrong labels, classes that are one, and outliers.
    """
    from liftplus import describe_data

    whole = _whole(files, read)
    if backbone is None:
        refuse_idle("data inspect", overrides, "cache")
        describe_data.data(data, files, overrides or [], as_json, whole)
        return
    refuse_idle("data inspect --backbone", overrides, *STARTING)
    from liftplus.backbones import catalogue
    from liftplus.commands import options
    from liftplus.config import resolve

    session = options.session(resolve(data=data, backbone=backbone, method="closed_form", overrides=overrides or ()))
    catalogue.locate(session.config.backbone)  # missing weights are told before every file is read
    describe_data.data(data, files, overrides or [], as_json, whole, session)


def _whole(files: bool, read: str | None) -> int | None:
    """How many files are read whole; None: all."""
    if read is not None and not files:
        raise UserError(f"--no-files and --read {read} contradict each other. Give one of the two.")
    if read in (None, "whole"):
        return None
    if read == "headers":
        return 0
    if read.isascii() and read.isdecimal() and int(read[:12]) > 0:
        return int(read[:12])
    raise UserError(f"--read is {read!r}. Give whole, headers, or a number of files to read completely, such as 3000.")
