"""The command line: which commands there are. Heavy imports wait inside them, so that help comes at once."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

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
    merge,
    predict,
    prepare,
    report,
    reproduce,
    sweep,
    train,
)
from liftplus.commands.examples import epilog
from liftplus.errors import UserError, explained
from liftplus.machine.paths import expanded_word

GARBAGE_THRESHOLD = 50_000
"""New objects until Python looks for garbage: imports make very many that stay."""
LOUDNESS = ("-q", "--quiet", "-v", "--verbose")
CODES = (
    "Exit codes: 0 done; 2 something to put right, told in a sentence; 1 a mistake in liftplus, told with a traceback; "
    "130 or 143 stopped by Ctrl-C or SIGTERM, with what was done saved."
)


class _Ended(Exception):  # noqa: N818 (it carries what ended the command)
    """What click would answer in words of its own."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """-q and -v count wherever they stand, and `~` is filled in where the shell did not."""
        args = [expanded_word(word) for word in args]
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in LOUDNESS]
        kept = [word for word in args[:end] if word not in LOUDNESS]
        return super().parse_args(ctx, [*moved, *kept, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt, BrokenPipeError) as error:
            raise _Ended(error) from error


app = typer.Typer(
    cls=_Commands,
    help="Fine-tune CLIP and other vision foundation models on long-tailed image data (LIFT, LIFT+).",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"liftplus {version('liftplus')}")
        raise typer.Exit


@app.callback()
def everywhere(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors. May stand anywhere.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more: machine, settings, tracebacks. May stand anywhere.")
    ] = False,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What every command heeds."""
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other. Give one of them.")
    if quiet or verbose:
        from liftplus import console

        console.speak(quiet=quiet, verbose=verbose)


def _group(name: str, panel: str, about: str) -> typer.Typer:
    group = typer.Typer(help=about, no_args_is_help=True)
    app.add_typer(group, name=name, rich_help_panel=panel)
    return group


LOOK, TRAIN, USE, SHARE = "Look", "Train", "Use a run", "Share a run"
data_app = _group("data", LOOK, "Look at data before training.")
reproduce_app = _group("reproduce", TRAIN, "Make the papers' experiments, and our own, again.")
classes_app = _group("classes", USE, "Add or rename classes of a finished run.")

# In the order of the work; help shows the panels in the order in which they come here.
for panel, name, command in (
    (LOOK, "demo", demo.demo),
    (LOOK, "info", info.info),
    (LOOK, "data inspect", info.inspect),
    (LOOK, "prepare", prepare.prepare),
    (TRAIN, "train", train.train),
    (TRAIN, "zeroshot", train.zeroshot),
    (TRAIN, "compare", compare.compare),
    (TRAIN, "sweep", sweep.sweep),
    (TRAIN, "reproduce list", reproduce.listing),
    (TRAIN, "reproduce run", reproduce.run),
    (TRAIN, "reproduce status", reproduce.status),
    (USE, "eval", evaluate.evaluate),
    (USE, "predict", predict.predict),
    (USE, "report", report.report),
    (USE, "merge", merge.merge),
    (USE, "classes add", classes.add),
    (USE, "classes rename", classes.rename),
    (SHARE, "export", export.export),
    (SHARE, "push", hub.push),
    (SHARE, "pull", hub.pull),
):
    group, _, own = name.rpartition(" ")
    place = {"": app, "data": data_app, "reproduce": reproduce_app, "classes": classes_app}[group]
    place.command(own, epilog=epilog(name), rich_help_panel=None if group else panel)(command)


def main() -> None:
    """Entry point: what a user can put right ends in one sentence and exit code 2."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _main_of_several()
    try:
        _run()
    except (UserError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):  # who read the output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        sentence, code = explained(error, in_full=_wants_all())
        print(sentence, file=sys.stderr)
        raise SystemExit(code) from None


def _wants_all() -> bool:
    return any(word in sys.argv[1:] for word in ("-v", "--verbose"))


def _run() -> None:
    try:
        app()
    except _Ended as ended:
        raise ended.cause from None


def _main_of_several() -> NoReturn:
    """`main` in one of torchrun's processes: the leader speaks; where one fails, it does, and all end at once."""
    from liftplus import console
    from liftplus.machine import parallel

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
        sentence, code = explained(error, in_full=_wants_all())
        if job.speaks():
            print(sentence, file=sys.__stderr__, flush=True)
        os._exit(code)  # an ordinary exit would wait for PyTorch's threads, and they for other processes
    raise SystemExit


if __name__ == "__main__":
    main()
