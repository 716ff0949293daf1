"""`liftplus eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from liftplus.commands import completion, options
from liftplus.commands.options import AsJson, Changes, FiveCrops, Out, Run
from liftplus.words import agreeing, counted


def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option("--data", "-d", autocompletion=completion.data, help="Test on other data.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to test on: test, val or train.")] = "test",
    five_crops: FiveCrops = None,
    gla: Annotated[
        bool, typer.Option("--gla", help="Add zero-shot logits; priors are removed from both. Takes twice the time.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
    overrides: Changes = None,
) -> None:
    """Test a finished run again, on its own or other data, or with other test options."""
    from liftplus import console
    from liftplus.evaluation import priors
    from liftplus.machine import disk, parallel
    from liftplus.runs import matching, opening, testing
    from liftplus.training import checkpoint

    settings = options.run_settings(run, data, [*options.crops(five_crops, overrides), *(overrides or ())])
    session = options.session(settings)
    folder = parallel.job().from_leader(lambda: out or _free((run.parent if run.is_file() else run) / "eval"))
    if session.runtime.job.leads:
        disk.refuse_existing(folder)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    other = data is not None and not matching.same_data(data, trained.config.data.source)
    dataset, metrics, promised = testing.evaluate_run(session, trained, split, folder, other_data=other, gla=gla)
    unsure = priors.note(settings, "uniform") if gla and settings.evaluation.prior == "as_trained" else None
    notes = [*opening.notes(settings, dataset, trained.model, trains=False), *session.cache.notes]
    for note in [*notes, *([unsure] if unsure else [])]:
        console.err.print(f"Note: {note}")
    if as_json:
        kept = {} if promised is None else {"calibration": promised}
        print(json.dumps({"folder": str(folder)} | metrics.summary() | kept))
        return
    label = ("five crops" if settings.evaluation.tte else "one crop") + (", GLA" if gla else "")
    weights = f"; {trained.chosen}" if trained.chosen else ""
    console.accuracy_table(f"{run} on {dataset.name} ({split}){weights}", [(label, metrics.summary())])
    if promised is not None:
        _show_promises(promised)
    console.out.print(f"Files are in {folder}")


def _show_promises(promised: dict[str, Any]) -> None:
    """What the run's calibration keeps of its promises."""
    from liftplus import console

    whys = {"calibrated on": promised["left_out"], "trained on": promised["left_out_of_training"]}
    told = " and ".join(f"{counted(n, 'picture')} that the run was {why}" for why, n in whys.items() if n)
    without = f"{told} {agreeing(sum(whys.values()), 'is', 'are')} left out"
    if "sets" not in promised:
        console.out.print(f"No promise was measured: {without}, and there are no others.")
        return
    title = f"Sets that promise {promised['promised_coverage']:g} %" + (f"; {without}" if told else "")
    console.promise_table(promised, title)


def _free(folder: Path) -> Path:
    """The folder, or if it exists the first free one of folder-2, folder-3, …, so that no result is overwritten."""
    number = 1
    while (chosen := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return chosen
