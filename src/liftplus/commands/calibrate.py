"""`liftplus calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import completion, options
from liftplus.commands.options import AsJson, Changes, FiveCrops, Run
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.runs.calibration_file import Saved


def calibrate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", autocompletion=completion.data, help="Labelled pictures, if not the run's own."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to calibrate on; default: val, or with --data all pictures or its test.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Use this share of the split alone, e.g. 0.5; eval measures on the rest.")
    ] = None,
    five_crops: FiveCrops = None,
    as_json: AsJson = False,
    overrides: Changes = None,
) -> None:
    """Make a run's probabilities, sets of classes and signs of unknown pictures keep what they promise.

    The calibration is kept in the run's folder, for the prior and the crops that are given here. An earlier one is
    replaced. Then predict takes --sets and --unknown, and eval measures what was promised.
    """
    from liftplus import console
    from liftplus.evaluation import priors
    from liftplus.runs import calibrating, calibration_file, matching
    from liftplus.training import checkpoint

    if share is not None and not 0 < share < 1:
        raise UserError(f"--share is {share:g}. Give a number between 0 and 1, such as 0.5.")
    settings = options.run_settings(run, data, [*options.crops(five_crops, overrides), *(overrides or ())])
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    other = data is not None and not matching.same_data(data, trained.config.data.source)
    wanted = calibrating.Wanted(split, share, other)
    saved, notes = calibrating.calibrate(session, trained, wanted)
    prior = priors.note(settings, settings.evaluation.prior)
    notes += [*session.cache.notes, *([prior] if prior else [])]
    written = calibration_file.write(trained.folder, saved)
    if as_json:
        print(json.dumps(_entries(saved, notes, written, trained.class_names), indent=2, ensure_ascii=False))
        return
    for note in notes:
        console.err.print(f"Note: {note}", highlight=False)
    _show(saved, run)
    console.out.print(f"The calibration is in {written}")


def _entries(saved: Saved, notes: list[str], written: Path, names: tuple[str, ...]) -> dict[str, Any]:
    found = saved.calibration
    kept = ("data", "split", "share", "pictures", "crops", "prior", "measured")
    return {
        "file": str(written),
        "temperature": found.temperature,
        "unknown_by": found.score,
        "auroc_on_hidden_classes": {name: round(100 * value, 2) for name, value in found.judged.items()},
        **{key: saved.about[key] for key in kept},
        "pictures_by_class": dict(zip(names, found.known.counts.tolist(), strict=True)),
        "notes": notes,
    }


def _show(saved: Saved, run: Path) -> None:
    """Tables of what was measured on halves of the pictures."""
    from liftplus import console

    found, measured = saved.calibration, saved.about["measured"]
    before, after = measured["calibration_error"]
    nats = measured["cross_entropy"]
    console.out.print(
        f"{run}: temperature {found.temperature:.3g}, on {counted(saved.about['pictures'], 'picture')} of "
        f"{saved.about['data']} ({saved.about['split']}), prior {saved.about['prior']}. What follows was measured on "
        "each half of them with a calibration on the other half."
    )
    console.out.print(
        f"Expected calibration error {before:.1f} % before, {after:.1f} % after; cross-entropy {nats[0]:.3f} before, "
        f"{nats[1]:.3f} after."
    )
    console.promise_table(measured, f"Sets that promise {measured['promised_coverage']:g} %")
    if found.judged:
        ranked = sorted(found.judged.items(), key=lambda one: -one[1])
        told = ", ".join(f"{name} {100 * value:.1f}" for name, value in ranked)
        console.out.print(f"Unknown pictures are told by {found.score}. AUROC on hidden classes, in percent: {told}.")
    else:
        console.out.print(f"Unknown pictures are told by {found.score}; no scores could be compared.")
