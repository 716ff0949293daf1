"""`liftplus train` and `liftplus zeroshot`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, BackboneName, Data, Method, Out, Overrides
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.config import RunConfig
    from liftplus.data.dataset import DataSet


def train(
    context: typer.Context,
    data: Annotated[str | None, Data] = None,
    backbone: BackboneName = "mini_clip",
    method: Method = "lift+",
    out: Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the unfinished run in this folder. Only lr and precision may change."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time limit of the whole run. A measurement chooses the number of epochs."),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Fine-tune on a data set, test the result, and write a run folder. Give the same command again to continue."""
    from liftplus import config, console
    from liftplus.machine import parallel
    from liftplus.runs import resuming
    from liftplus.training import recipe

    if resume is not None:
        begun = _begun(resume)
        settings = config.changed(begun.to_dict(), overrides or ())
        _refuse_others(context, resume, begun)
        for note in parallel.job().from_leader(lambda: resuming.mended(resume, settings)):
            console.err.print(f"Note: {note}")
        _train(settings, resume, as_json)
    elif data is None:
        raise UserError("Give --data (a folder, archive, table, list or known name) or --resume FOLDER.")
    else:
        given = [*(overrides or ()), *([] if minutes is None else [f"train.minutes={minutes}"])]
        settings = config.resolve(
            data=data, backbone=backbone, method=method, overrides=given, recipe=recipe.usual(data)
        )
        for note in _replaced(context, settings):
            console.err.print(f"Note: {note}", highlight=False)
        named = _is_given(context, "backbone") or any(
            config.full_key(word.partition("=")[0]) == "backbone.name" for word in given
        )
        if settings.recipe == "auto" and not named:
            console.err.print(f"Note: {_other_backbones()}", highlight=False)
        _train(settings, out, as_json)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _replaced(context: typer.Context, settings: RunConfig) -> list[str]:
    """A note on each option that a key=value overrides."""
    taken = {"data": settings.data.source, "backbone": settings.backbone.name, "method": settings.method}
    return [
        f"--{name} is {context.params[name]!r}, but key=value says {value!r}, which is used."
        for name, value in taken.items()
        if _is_given(context, name) and context.params[name] != value
    ]


def _other_backbones() -> str:
    """A note on the default backbone's limits and on other backbones."""
    from liftplus.backbones import catalogue

    here = catalogue.present()
    listed = f"On this machine: {', '.join(here)}." if here else "No other weights are on this machine."
    return (
        "No --backbone was given, so mini_clip is used. It was trained on drawings only and is weak on photographs. "
        f"{listed} --backbone clip_vit_b16 downloads its weights at the first use."
    )


def _refuse_others(context: typer.Context, folder: Path, begun: RunConfig) -> None:
    """Refuse options that differ from those of the run in the folder."""
    from liftplus.runs import matching

    same: dict[str, tuple[Any, Callable[[Any], bool]]] = {
        "data": (begun.data.source, lambda given: matching.same_data(given, begun.data.source)),
        "backbone": (begun.backbone.name, lambda given: given == begun.backbone.name),
        "method": (begun.method, lambda given: given == begun.method),
        "out": (str(folder), lambda given: given.resolve() == folder.resolve()),
        "minutes": (begun.train.minutes, lambda given: given == begun.train.minutes),
    }
    for name, (had, agrees) in same.items():
        given = context.params[name]
        if _is_given(context, name) and not agrees(given):
            raise UserError(
                f"--{name} {given} contradicts --resume: the run in {str(folder)!r} has {had!r}. Leave --{name} out to "
                "continue that run, or leave --resume out for a new run."
            )


def _begun(folder: Path) -> RunConfig:
    """The settings of the unfinished run in a folder. Only the leader needs to see the folder."""
    from liftplus.machine import parallel
    from liftplus.runs import changes

    def read() -> RunConfig:
        if changes.trained(folder):
            raise UserError(
                f"The run in {str(folder)!r} is finished, so it cannot be continued. Test it again with `liftplus eval "
                f"{folder}`, or train a longer run with --data, epochs=N and another --out."
            )
        begun = changes.unfinished(folder) if (folder / changes.CONFIG).is_file() else None
        if begun is None:
            raise UserError(
                f"{str(folder)!r} holds no unfinished run. Give the folder of an unfinished run, or --data for a new "
                "run."
            )
        return begun

    return parallel.job().from_leader(read)


def zeroshot(
    data: Annotated[str, Data],
    backbone: BackboneName = "mini_clip",
    out: Out = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Test the backbone without training, with a classifier made from the class names."""
    from liftplus import config

    _train(config.resolve(data=data, backbone=backbone, method="zeroshot", overrides=overrides or ()), out, as_json)


def _train(config: RunConfig, out: Path | None, as_json: bool) -> None:
    from liftplus import console
    from liftplus.machine import disk, parallel, stopping
    from liftplus.runs import execution, opening
    from liftplus.training import saved_state

    folder = out or Path("runs") / _run_name(config)
    goes_on = parallel.job().from_leader(lambda: _goes_on(folder, config))
    asked = stopping.StopRequest(parallel.job())
    session = options.session(config, asked)
    dataset = session.data()
    session, model, notes = opening.begin(session, dataset, folder)
    config = session.config
    for note in notes:
        console.err.print(f"Note: {note}")
    _describe_data(dataset)
    try:
        if session.runtime.job.leads and not goes_on:
            disk.new_folder(folder)
        outcome = execution.train_run(session, dataset, model, folder)
    except saved_state.Stopped as stopped:
        console.err.print(f"{stopped} Continue with: liftplus train --resume {folder}")
        session.runtime.job.meet()  # torchrun kills all processes as soon as one exits
        raise SystemExit(128 + (asked.signal or 0)) from None
    for note in (*session.cache.notes, *outcome.notes):
        console.err.print(f"Note: {note}", highlight=False)
    measured = outcome.metrics.summary() if outcome.metrics else {}
    chosen = outcome.chosen
    if as_json:
        print(
            json.dumps(
                {"folder": str(folder), "seconds": outcome.seconds, "parameters": outcome.parameters}
                | {"weights": dataclasses.asdict(chosen), "signs": outcome.signs}
                | measured
            )
        )
        return
    counts = outcome.parameters
    if measured:
        title = (
            f"{config.method} on {dataset.name} with {config.backbone.name}: accuracy in percent on the test split"
            f"; {chosen}"
        )
        console.accuracy_table(title, [("five crops" if config.evaluation.tte else "one crop", measured)])
    console.out.print(
        f"{counts['tuned']:,} tuned and {counts['head']:,} head parameters, {outcome.seconds:.0f} s of training. "
        f"Files are in {folder}"
    )
    for sign in outcome.signs:
        console.err.print(f"Note: {sign}", highlight=False)


def _goes_on(folder: Path, config: RunConfig) -> bool:
    """Whether the folder holds an unfinished run with these settings. Raises UserError if its settings differ."""
    from liftplus import console
    from liftplus.runs import changes

    begun = changes.unfinished(folder, config)
    if begun is not None:
        changes.refuse_changes(begun, config, folder)
        console.err.print(f"Continuing the unfinished run in {folder}.")
    return begun is not None


def _run_name(config: RunConfig) -> str:
    words = Path(config.data.source).name.split(".")[0] or "data"
    return f"{words}-{config.backbone.name}-{config.method}-seed{config.seed}"


def _describe_data(dataset: DataSet) -> None:
    from liftplus import console

    counts = dataset.counts()
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    span = f"{max(counts):,} to " if max(counts) > min(counts) else ""
    console.err.print(
        f"{dataset.name}: {dataset.num_classes} classes, {sizes} images, "
        f"{span}{counted(min(counts), 'training image')} per class."
    )
