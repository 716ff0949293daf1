"""The command line. Heavy imports wait inside the commands, so that help comes at once."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from liftplus.errors import UserError, told

if TYPE_CHECKING:
    from liftplus.config import RunConfig
    from liftplus.data.dataset import DataSet
    from liftplus.runs import Guess, Session
    from liftplus.runtime import StopRequest

app = typer.Typer(
    help="Fine-tune CLIP and other vision foundation models on long-tailed image data (LIFT, LIFT+).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Look at data before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Data = typer.Option("--data", "-d", help="Folder, .zip, .tar, .csv, .parquet, list file, or a known name.")
BackboneName = Annotated[str, typer.Option("--backbone", "-b", help="Pretrained model; `liftplus info` lists them.")]
Method = Annotated[str, typer.Option("--method", "-m", help="lift+, lift, linear_probe, full or zeroshot.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; it must not exist yet.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value for anything else, e.g. epochs=10 lr=0.01.", metavar="[KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]


@app.command()
def train(
    data: Annotated[str | None, Data] = None,
    backbone: BackboneName = "mini_clip",
    method: Method = "lift+",
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the unfinished run in this folder, as it began.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Fine-tune on a data set, test the result, and write a run folder. The same command again goes on."""
    from liftplus import config

    if resume is not None:
        _train(config.changed(_begun(resume), overrides or ()), resume, as_json)
    elif data is None:
        raise UserError("Give --data: a folder, archive, table, list or known name; or --resume FOLDER.")
    else:
        settings = config.resolve(data=data, backbone=backbone, method=method, overrides=overrides or ())
        _train(settings, out, as_json)


def _begun(folder: Path) -> dict[str, Any]:
    """The settings of the unfinished run in a folder, which the leader alone has to see."""
    from liftplus import parallel, runs

    def read() -> dict[str, Any]:
        begun = runs.unfinished(folder) if folder.is_dir() else None
        if begun is None:
            raise UserError(
                f"{str(folder)!r} holds no unfinished run. Give the folder of one, or --data for a new run."
            )
        return begun.to_dict()

    return parallel.job().from_leader(read)


@app.command()
def zeroshot(
    data: Annotated[str, Data],
    backbone: BackboneName = "mini_clip",
    out: Out = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Test the backbone as it is, from the class names alone."""
    from liftplus import config

    _train(config.resolve(data=data, backbone=backbone, method="zeroshot", overrides=overrides or ()), out, as_json)


def _train(config: RunConfig, out: Path | None, as_json: bool) -> None:
    from liftplus import checkpoint, console, parallel, results, runs, runtime

    folder = out or Path("runs") / _run_name(config)
    goes_on = parallel.job().from_leader(lambda: _goes_on(folder, config))
    asked = runtime.StopRequest(parallel.job())
    session = _session(config, asked)
    dataset = session.data()
    model = session.model(dataset)
    for note in runs.notes(config, dataset, model):
        console.err.print(f"Note: {note}")
    _describe_data(dataset)
    try:
        if session.runtime.job.leads and not goes_on:
            results.new_folder(folder)
        outcome = runs.train_run(session, dataset, model, folder)
    except checkpoint.Stopped as stopped:
        console.err.print(f"{stopped} Go on with: liftplus train --resume {folder}")
        session.runtime.job.meet()  # torchrun ends all when one has ended
        raise SystemExit(128 + (asked.signal or 0)) from None
    measured = outcome.metrics.summary() if outcome.metrics else {}
    if as_json:
        print(
            json.dumps({"folder": str(folder), "seconds": outcome.seconds, "parameters": outcome.parameters} | measured)
        )
        return
    counts = outcome.parameters
    if measured:
        title = f"{config.method} on {dataset.name} with {config.backbone.name}: accuracy in percent on the test split"
        console.accuracy_table(title, [("five crops" if config.evaluation.tte else "one crop", measured)])
    console.out.print(
        f"{counts['tuned']:,} tuned and {counts['head']:,} head parameters, {outcome.seconds:.0f} s of training. "
        f"Files are in {folder}"
    )


def _goes_on(folder: Path, config: RunConfig) -> bool:
    """Whether the folder holds an unfinished run of these settings; one of others is refused."""
    from liftplus import console, runs

    begun = runs.unfinished(folder)
    if begun is not None:
        runs.refuse_changes(begun, config, folder)
        console.err.print(f"Going on with the unfinished run in {folder}.")
    return begun is not None


def _session(config: RunConfig, asked: StopRequest | None = None) -> Session:
    """The run on this machine; of several processes the leader alone shows its progress."""
    from liftplus import console, parallel, runs, runtime

    job = parallel.job()
    place = runtime.choose(config.device, config.precision, job)
    return runs.Session(config, place, console.Bars() if job.leads else runtime.Silent(), asked)


def _run_name(config: RunConfig) -> str:
    words = Path(config.data.source).name.split(".")[0] or "data"
    return f"{words}-{config.backbone.name}-{config.method}-seed{config.seed}"


def _describe_data(dataset: DataSet) -> None:
    from liftplus import console

    counts = dataset.counts()
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    console.err.print(
        f"{dataset.name}: {dataset.num_classes} classes, {sizes} images, "
        f"{max(counts)} to {min(counts)} training images a class."
    )


@app.command("eval")
def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Other data than the run's.")] = None,
    split: Annotated[str, typer.Option(help="Split to test on: test, val or train.")] = "test",
    out: Out = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Test a finished run again: on its own data or other data, with other test options."""
    from liftplus import checkpoint, console, parallel, results, runs

    settings = _run_config(run, data, overrides)
    session = _session(settings)
    folder = parallel.job().from_leader(lambda: out or _free(run / "eval"))
    if session.runtime.job.leads:
        results.refuse_existing(folder)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    dataset, metrics = runs.evaluate_run(session, trained, split, folder, other_data=data is not None)
    for note in runs.notes(settings, dataset, trained.model):
        console.err.print(f"Note: {note}")
    if as_json:
        print(json.dumps({"folder": str(folder)} | metrics.summary()))
        return
    label = "five crops" if settings.evaluation.tte else "one crop"
    console.accuracy_table(f"{run} on {dataset.name} ({split})", [(label, metrics.summary())])
    console.out.print(f"Files are in {folder}")


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist, so that no result is overwritten."""
    number = 1
    while (chosen := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return chosen


CHANGEABLE = ("data", "evaluation", "backbone", "device", "precision", "train")


def _run_config(run: Path, data: str | None, overrides: list[str] | None) -> RunConfig:
    """A run's settings with what may change after training changed."""
    from liftplus import checkpoint, config

    values = checkpoint.read_about(run)["config"]
    before = config.from_dict(values).to_dict()
    if data is not None:
        values["data"] = {"source": data, "unreadable": values["data"]["unreadable"]}
    settings = config.changed(values, overrides or ())
    after = settings.to_dict()
    fixed = [key for key in after if key not in CHANGEABLE and after[key] != before[key]]
    if fixed:
        raise UserError(
            f"{fixed[0]} belongs to the trained run and cannot be changed any more. "
            "Allowed are data.*, evaluation.*, device, precision, train.workers and backbone.weights."
        )
    return settings


@app.command()
def predict(
    run: Run,
    inputs: Annotated[list[str], typer.Argument(help="Image files, folders or glob patterns.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help=".csv or .json; stdout as CSV if not given.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes for each image.")] = 5,
    unreadable: Annotated[str, typer.Option(help="stop or skip at a broken image.")] = "stop",
    tte: Annotated[
        bool | None, typer.Option("--tte/--one-crop", help="Five crops or one; as in training if not given.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value, e.g. device=cpu or weights=PATH; repeatable.")
    ] = None,
) -> None:
    """Classify image files with a finished run."""
    from liftplus import checkpoint, parallel, runs

    if unreadable not in ("stop", "skip"):
        raise UserError(f"--unreadable is {unreadable!r}; allowed are stop and skip.")
    _check_target(out)
    files = runs.image_files(inputs)
    crops = [] if tte is None else [f"evaluation.tte={str(tte).lower()}"]
    settings = _run_config(run, None, [f"evaluation.top_k={top_k}", *crops, *(change or [])])
    session = _session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    guesses = runs.predict_files(session, trained, files, skip_unreadable=unreadable == "skip")
    if parallel.job().leads:
        _write_guesses(guesses, out)


def _check_target(out: Path | None) -> None:
    """Refuse a file that could not be written before the work is done."""
    if out is None:
        return
    if out.suffix not in (".csv", ".json"):
        raise UserError(f"--out is {str(out)!r}; its name must end in .csv or .json.")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise UserError(f"--out is {str(out)!r}; {str(out.parent)!r} must be a folder that can be written to.")


def _write_guesses(guesses: list[Guess], out: Path | None) -> None:
    from liftplus import console, results

    if out is not None and out.suffix == ".json":
        results.write_json(
            out,
            [
                {
                    "path": g.path,
                    "error": g.error,
                    "top": [
                        {"class": name, "probability": round(p, 6)}
                        for name, p in zip(g.classes, g.probabilities, strict=True)
                    ],
                }
                for g in guesses
            ],
        )
    else:
        count = max((len(g.classes) for g in guesses), default=0)
        header = ["path", *(f"{what}_{k + 1}" for k in range(count) for what in ("class", "probability")), "error"]
        rows = [
            [
                g.path,
                *(cell for name, p in zip(g.classes, g.probabilities, strict=True) for cell in (name, f"{p:.6f}")),
                *[""] * (2 * (count - len(g.classes))),
                g.error or "",
            ]
            for g in guesses
        ]
        if out is None:
            csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        else:
            results.write_csv(out, header, rows)
    if out is not None:
        console.out.print(f"{len(guesses)} predictions are in {out}")


@app.command()
def info(
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Show this backbone's parameters.")] = None,
    method: Method = "lift+",
    data: Annotated[str | None, typer.Option("--data", "-d", help="Take the classes from here.")] = None,
    find: Annotated[
        str | None, typer.Option("--find", "-f", help="List all names of backbones that contain this, e.g. dinov3.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List what there is, or show a backbone's tuners and count parameters, without loading weights."""
    from liftplus import describe

    if find is not None:
        describe.backbones(find, as_json)
    elif backbone is None and data is None and not overrides:
        describe.parts(as_json)
    else:
        describe.model(backbone or "mini_clip", method, data, overrides or [], as_json)


@data_app.command("inspect")
def inspect(
    data: Annotated[str, Data],
    as_json: AsJson = False,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Also read and decode every file.")] = True,
    overrides: Overrides = None,
) -> None:
    """Counts, imbalance ratio, groups, duplicate or empty classes, unreadable files."""
    from liftplus import describe

    describe.data(data, files, overrides or [], as_json)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; an earlier demo's is replaced.")
    ] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with different seeds.")] = 1,
) -> None:
    """Zero-shot, linear probe, full fine-tuning and LIFT+ on the bundled model and a drawn long-tailed data set."""
    from liftplus import demo as script
    from liftplus import parallel

    if parallel.job().size > 1:
        raise UserError("The demo runs in one process. Start it without torchrun.")
    script.run(out, seeds)


def main() -> None:
    """Entry point: what a user can put right ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _main_of_several()
    try:
        app()
    except (UserError, OSError, KeyboardInterrupt) as error:
        sentence, code = told(error)
        print(sentence, file=sys.stderr)
        raise SystemExit(code) from None


def _main_of_several() -> NoReturn:
    """`main` in one of torchrun's processes: the leader speaks; where one fails, it does, and all end at once."""
    from liftplus import console, parallel

    job = parallel.ALONE
    # torchrun ends all processes when one has ended: one that is failing itself is left the time to say why.
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(2) and None)
    try:
        job = parallel.job()
        if not job.leads:
            console.silence()
        app()
    except SystemExit:
        job.leave()
        raise
    except BaseException as error:
        sentence, code = told(error)
        if job.speaks():
            print(sentence, file=sys.__stderr__, flush=True)
        os._exit(code)  # an ordinary exit would wait for PyTorch's threads, and they for other processes
    raise SystemExit


if __name__ == "__main__":
    main()
