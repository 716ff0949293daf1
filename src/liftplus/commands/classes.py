"""`liftplus classes add` and `liftplus classes rename`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, Run
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.data.dataset import DataSet
    from liftplus.runs.inputs import Inputs
    from liftplus.runs.new_classes import Added

ADDED = "NAME [PICTURES/]..."

NewRun = Annotated[Path, typer.Option("--out", "-o", help="Folder for the changed run; it must not exist yet.")]
Weights = Annotated[str | None, typer.Option(help="A local file of the backbone's weights.")]


def add(
    run: Run,
    given: Annotated[
        list[str],
        typer.Argument(help="A new class's name, then its pictures if it has any. Repeatable.", metavar=ADDED),
    ],
    out: NewRun,
    weights: Weights = None,
    text: Annotated[
        bool | None,
        typer.Option("--text/--no-text", help="Use class names beside pictures. Default: if the backbone reads text."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The run's training pictures, if they were moved.")
    ] = None,
    harm: Annotated[
        float,
        typer.Option(
            help="Points of accuracy that older classes may lose per new class. More helps the new class.",
            min=0,
            max=100,
        ),
    ] = 0.5,
    parent: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS=GROUP: the group of a new class at a level above the classes. Repeatable.",
            metavar="CLASS=GROUP",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add classes without training, from a name or from a few pictures each (folders or files after the name)."""
    from liftplus import console
    from liftplus.runs import edit_classes

    pictures, parents = _by_name(given), _pairs(parent or [], "CLASS=GROUP")
    names = list(pictures)
    if not any(pictures.values()):
        if text is False:
            raise UserError("A class without pictures needs its name, but --no-text was given. Leave --no-text out.")
        _tell(edit_classes.add(run, names, out, weights, parents))
        if as_json:
            print(json.dumps({"folder": str(out), "added": names}))
            return
        console.out.print(
            f"{out} knows {_told(names)}. Their rows are untrained, while those of the other classes were trained. "
            "Test the run before use; the old results do not apply."
        )
        return
    added, notes = _from_pictures(run, pictures, out, weights, text, data, harm, parents)
    _tell(notes)
    if as_json:
        found = [dataclasses.asdict(one) for one in added]
        print(json.dumps({"folder": str(out), "added": names, "classes": found}))
        return
    for one in added:
        own = "" if one.own is None else f" Leave-one-out accuracy on them: {one.own:.0f} %."
        equal = f" {counted(one.equal, 'equal picture')} left out." if one.equal else ""
        console.out.print(
            f"{one.name}: {counted(one.pictures, 'picture')}"
            f"{' and its name' if one.text else ''}.{equal}{own} Older classes lose an estimated {one.harm:.1f} points "
            "on unseen pictures."
        )
    console.out.print(f"{out} knows {_told(names)}. The old results do not apply.")


def _told(names: list[str]) -> str:
    """The added classes by name. This shows if a misspelt path has become a class."""
    return f"{counted(len(names), 'more class', 'more classes')}: {', '.join(map(repr, names))}"


def _by_name(given: list[str]) -> dict[str, Inputs | None]:
    """Pictures by class name; None for a name alone. Paths belong to the name before them."""
    from liftplus.runs import inputs

    paths: dict[str, list[str]] = {}
    slashed = [_is_path(word) for word in given]
    for k, word in enumerate(given):
        if slashed[k] and not paths:
            raise UserError(f"{word!r} is a path without a class name before it. Give NAME, then its pictures.")
        if slashed[k]:
            list(paths.values())[-1].append(word)
        elif word in paths:
            raise UserError(f"The class {word!r} is given twice. Give it once, before all of its pictures.")
        elif k and os.path.exists(word) and not any(slashed[k + 1 : k + 2]):
            raise UserError(
                f"{word!r} could be a class name, but it is also a {'folder' if os.path.isdir(word) else 'file'} here. "
                f"For its pictures write {os.path.join('.', word)!r}. For a class of that name, give it first."
            )
        else:
            paths[word] = []
    return {name: inputs.read(own).complete() if own else None for name, own in paths.items()}


def _is_path(word: str) -> bool:
    """Whether a word names pictures: it contains a slash and the path exists."""
    if "/" not in word and os.sep not in word:
        return False
    if os.path.exists(word):
        return True
    if word.startswith((".", "/", "~")) or word.endswith("/") or os.path.isdir(word.split("/")[0]):
        raise UserError(f"There is no {word!r}. Give a folder of pictures or an image file after the class's name.")
    return False


def _from_pictures(
    run: Path,
    pictures: dict[str, Inputs | None],
    out: Path,
    weights: str | None,
    text: bool | None,
    data: str | None,
    harm: float,
    parents: dict[str, str],
) -> tuple[list[Added], list[str]]:
    from liftplus.machine import disk
    from liftplus.runs import matching, new_classes
    from liftplus.training import checkpoint

    disk.refuse_existing(out)
    settings = options.run_settings(run, data, [] if weights is None else [f"backbone.weights={weights}"])
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone, "--weights PATH")

    def own_data() -> DataSet:
        try:
            found = session.data()
        except UserError as error:
            raise UserError(
                f"The run has no statistics of its features, and its training pictures cannot be read: {error} Give "
                "their path with --data."
            ) from error
        return matching.aligned(matching.as_in_run(found, trained.folder, "train"), "train", trained)

    return new_classes.add(
        session, trained, run, pictures, out, own_data, text=text, weights=weights, harm=harm, parents=parents
    )


def _pairs(given: list[str], form: str) -> dict[str, str]:
    """What stands before and behind the first = of each word."""
    pairs: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or key in pairs:
            what = form.partition("=")[0]
            raise UserError(f"{word!r} is not {form}, or {what} is given twice. Write {form} once for each class.")
        pairs[key] = value
    return pairs


def _tell(notes: list[str]) -> None:
    from liftplus import console

    for note in notes:
        console.err.print(f"Note: {note}", highlight=False)


def rename(
    run: Run,
    names: Annotated[list[str], typer.Argument(help="OLD=NEW for each class to rename.", metavar="OLD=NEW...")],
    out: NewRun,
    new_rows: Annotated[
        bool, typer.Option("--new-rows", help="Make new rows from the new names; the learned rows are lost.")
    ] = False,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Rename classes. The model's outputs stay the same, except with --new-rows."""
    from liftplus import console
    from liftplus.runs import edit_classes

    pairs = _pairs(names, "OLD=NEW")
    _tell(edit_classes.rename(run, pairs, out, new_rows=new_rows, weights=weights))
    if as_json:
        print(json.dumps({"folder": str(out), "renamed": pairs}))
        return
    console.out.print(f"{out} is {run} with {counted(len(pairs), 'class name')} changed.")
