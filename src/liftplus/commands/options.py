"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.errors import UserError

if TYPE_CHECKING:
    from liftplus.config import RunConfig
    from liftplus.runs import Session
    from liftplus.runtime import StopRequest

Data = typer.Option("--data", "-d", help="Folder, .zip, .tar, .csv, .parquet, list file, or a known name.")
BackboneName = Annotated[str, typer.Option("--backbone", "-b", help="Pretrained model; `liftplus info` lists them.")]
Method = Annotated[str, typer.Option("--method", "-m", help="lift+, lift, linear_probe, full or zeroshot.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; it must not exist yet.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value for anything else, e.g. epochs=10 lr=0.01.", metavar="[KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run, or a model file in it.")]


def session(config: RunConfig, asked: StopRequest | None = None) -> Session:
    """The run on this machine; of several processes the leader alone shows its progress."""
    from liftplus import console, parallel, runs, runtime

    job = parallel.job()
    place = runtime.choose(config.device, config.precision, job, config.compile)
    return runs.Session(config, place, console.Bars() if job.leads else runtime.Silent(), asked)


CHANGEABLE = ("data", "evaluation", "backbone", "device", "precision", "deterministic", "compile", "train", "cache")


def same_data(data: str, values: dict[str, Any]) -> bool:
    """Whether --data names the very data that a run was trained on."""
    source = values["data"]["source"]
    return data == source or (
        bool(source) and os.path.exists(source) and os.path.realpath(data) == os.path.realpath(source)
    )


def run_settings(run: Path, data: str | None, overrides: list[str] | None) -> RunConfig:
    """A run's settings with what may change after training changed."""
    from liftplus import checkpoint, config

    values = checkpoint.read_about(run)["config"]
    before = config.from_dict(values).to_dict()
    if data is not None and not same_data(data, values):
        values["data"] = {
            "source": data,
            "unreadable": before["data"]["unreadable"],
            "decode": before["data"]["decode"],
        }
    settings = config.changed(values, overrides or ())
    after = settings.to_dict()
    fixed = [key for key in after if key not in CHANGEABLE and after[key] != before[key]]
    if fixed:
        raise UserError(
            f"{fixed[0]} belongs to the trained run and cannot be changed any more. "
            "Allowed are data.*, evaluation.*, device, precision, cache, train.workers and backbone.weights."
        )
    return settings
