"""Options that several commands share, and helpers for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from liftplus.commands import completion
from liftplus.errors import UserError

if TYPE_CHECKING:
    from liftplus.calibration.sets import By
    from liftplus.config import RunConfig
    from liftplus.machine.stopping import StopRequest
    from liftplus.runs.guesses import Asked, Promises
    from liftplus.runs.opening import Session
    from liftplus.training.checkpoint import Trained

Data = typer.Option(
    "--data",
    "-d",
    autocompletion=completion.data,
    help="Folder, .zip, .tar, .csv, .parquet, list file, or a known name.",
)
BackboneName = Annotated[
    str,
    typer.Option(
        "--backbone", "-b", autocompletion=completion.backbones, help="Pretrained model; `liftplus info` lists them."
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        autocompletion=completion.methods,
        help="lift+, lift, linear_probe, linear_probe+, full, full+, closed_form or zeroshot.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder: new, or one that this command began.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Any other setting as key=value, e.g. epochs=10 lr=0.01.", metavar="KEY=VALUE"),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        help="A setting that may change after training, e.g. device=cpu data.root=PATH.", metavar="KEY=VALUE"
    ),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings of the data as key=value, e.g. val_share=0.1 decode=exact.", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Run = Annotated[
    Path, typer.Argument(autocompletion=completion.runs, help="Folder of a finished run, or a model file in it.")
]

FiveCrops = Annotated[
    bool | None,
    typer.Option(
        "--five-crops/--one-crop",
        "--tte/",
        help="Average five crops of each picture, or use one; default: the run's setting.",
    ),
]

TopK = Annotated[int, typer.Option(min=1, help="Number of best classes for each image.")]
Prior = Annotated[str | None, typer.Option(help="Class prior in use: training, uniform, or a JSON file of counts.")]
Coverage = Annotated[
    float | None,
    typer.Option("--sets", help="Add sets of classes that hold the right one this often, e.g. 0.9; see calibrate."),
]
SetsBy = Annotated[
    str, typer.Option(help="group: the promise holds for many, medium and few alone; all: overall; class: long tails.")
]
ClassShare = Annotated[float, typer.Option(help="With --sets-by class: weight of a class's own quantile, from 0 to 1.")]
Alarms = Annotated[
    float | None,
    typer.Option("--unknown", help="Tell pictures of no known class, with this rate of false alarms, e.g. 0.05."),
]
AtLevel = Annotated[
    str | None,
    typer.Option("--level", help="Add the group at a level above the classes: its name, or auto for the deepest sure."),
]
Sure = Annotated[
    float | None, typer.Option(help="With --level: the least probability of an answer; default with auto: 0.9.")
]

BY_SET = "--set weights=PATH"
"""How weights that have moved are given where a command takes settings by --set."""


def crops(five: bool | None, overrides: list[str] | None) -> list[str]:
    """The setting for --five-crops or --one-crop; empty if neither was given.

    Raises:
        UserError: key=value sets the opposite.
    """
    if five is None:
        return []
    meant = str(five).lower()
    for item in overrides or ():
        key, _, value = item.partition("=")
        if key in ("tte", "evaluation.tte") and value.strip().lower() != meant:
            option = "--five-crops" if five else "--one-crop"
            raise UserError(f"{option} and {item} contradict each other. Give one of the two.")
    return [f"evaluation.tte={meant}"]


def refuse_idle(command: str, overrides: list[str] | None, *acting: str) -> None:
    """Refuse key=value words that would change nothing.

    Args:
        command: its name, for the message.
        acting: keys, and sections that end in a dot, that the command reads beside `data.`.
    """
    from liftplus.data.config import DataConfig

    words = {word.partition("=")[0].strip(): word for word in overrides or () if "=" in word}
    others = {key: word for key, word in words.items() if key.removeprefix("data.") not in DataConfig.model_fields}
    if not others:
        return
    from liftplus.config import RunConfig, locate  # here, as PyTorch is imported with it

    sections = tuple(key for key in acting if key.endswith("."))
    for key, word in others.items():
        full, _ = locate(RunConfig(), key)
        if not f"{full}.".startswith(("data.", *sections)) and full not in acting:
            known = ", ".join(f"{key}*" if key.endswith(".") else key for key in ("data.", *acting))
            raise UserError(f"{full} does not act on `liftplus {command}`, which reads {known}. Leave {word} out.")


def session(config: RunConfig, asked: StopRequest | None = None) -> Session:
    """Open a run on this machine. In a multi-process job only the leader shows progress."""
    from liftplus import console
    from liftplus.config import flat
    from liftplus.machine import parallel, progress, runtime
    from liftplus.runs import opening

    job = parallel.job()
    place = runtime.choose(config.device, config.precision, job, config.compile)
    if job.leads:
        facts = " ".join(f"{name}={value}" for name, value in runtime.describe(place).items())
        console.detail.print(f"Machine: {facts}")
        console.detail.print(f"Settings: {' '.join(f'{key}={value}' for key, value in flat(config).items())}")
    return opening.Session(config, place, console.Bars() if job.leads else progress.Silent(), asked)


def run_settings(run: Path, data: str | None, overrides: list[str] | None) -> RunConfig:
    """A run's settings, with the changes that are allowed after training.

    Raises:
        UserError: the folder holds no model, or a setting must not change.
    """
    from liftplus import config
    from liftplus.runs import matching
    from liftplus.training import checkpoint

    values = config.from_dict(config.saved(checkpoint.read_about(run)["config"])).to_dict()
    if data is not None and not matching.same_data(data, values["data"]["source"]):
        kept = ["unreadable", "decode"]
        if data.lower().endswith(".json"):  # whether a picture is a box or an image is fixed by the run
            kept += ["boxes", "box_margin", "box_least"]
        defaults = config.RunConfig().to_dict()["data"]
        values["data"] = defaults | {key: values["data"][key] for key in kept} | {"source": data}
    return config.after_training(values, overrides or ())


def to_predict(
    run: Path, top_k: int, five_crops: bool | None, prior: str | None, change: list[str] | None, *given: str
) -> RunConfig:
    """A run's settings for predictions, with those of the command line; `given` may be changed by them."""
    expected = [] if prior is None else [f"evaluation.prior={prior}"]
    own = [f"evaluation.top_k={top_k}", *crops(five_crops, change), *expected]
    return run_settings(run, None, [*given, *own, *(change or [])])


def promises(coverage: float | None, sets_by: str, class_share: float, alarms: float | None) -> Promises:
    """What --sets and --unknown ask. Raises UserError for values that are not allowed."""
    from liftplus.runs.guesses import Promises

    if coverage is None and (sets_by != "group" or class_share != 0.5):
        raise UserError("--sets-by and --class-share are about sets of classes, and --sets was not given. Add it.")
    return Promises(coverage, cast("By", sets_by), class_share, alarms)


def asked(session: Session, trained: Trained, promises: Promises, level: str | None, sure: float | None) -> Asked:
    """What to tell of pictures beside the best classes, by the run's calibration; notes on it are printed.

    Raises:
        UserError: the run is not calibrated for that, or has no such level.
    """
    from liftplus import console
    from liftplus.runs import calibration_file, guesses

    answered = guesses.LevelAsked.of(trained, level, sure)
    saved, note = calibration_file.fitting(session, trained, required=promises.any)
    calibration = None if saved is None else saved.calibration
    notes = [] if calibration is None else promises.notes(calibration, trained.class_names)
    for said in [*([note] if note else []), *notes]:
        console.err.print(f"Note: {said}", highlight=False)
    return guesses.Asked(calibration, promises, answered)
