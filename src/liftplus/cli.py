"""The command line: which commands there are. Heavy imports wait inside them, so that help comes at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from liftplus.commands import (
    classes,
    compare,
    demo,
    evaluate,
    export,
    hub,
    info,
    predict,
    prepare,
    report,
    sweep,
    train,
)
from liftplus.errors import UserError, told


class _Ended(Exception):  # noqa: N818 (it carries what ended the command)
    """What click would answer in words of its own."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt) as error:
            raise _Ended(error) from error


app = typer.Typer(
    cls=_Commands,
    help="Fine-tune CLIP and other vision foundation models on long-tailed image data (LIFT, LIFT+).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Look at data before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")
classes_app = typer.Typer(help="Add or rename classes of a finished run.", no_args_is_help=True)
app.add_typer(classes_app, name="classes")

app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("zeroshot")(train.zeroshot)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("info")(info.info)
data_app.command("inspect")(info.inspect)
app.command("report")(report.report)
app.command("demo")(demo.demo)
app.command("export")(export.export)
app.command("push")(hub.push)
app.command("pull")(hub.pull)
classes_app.command("add")(classes.add)
classes_app.command("rename")(classes.rename)
app.command("prepare")(prepare.prepare)


def main() -> None:
    """Entry point: what a user can put right ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _main_of_several()
    try:
        _run()
    except (UserError, OSError, KeyboardInterrupt) as error:
        sentence, code = told(error)
        print(sentence, file=sys.stderr)
        raise SystemExit(code) from None


def _run() -> None:
    try:
        app()
    except _Ended as ended:
        raise ended.cause from None


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
        _run()
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
