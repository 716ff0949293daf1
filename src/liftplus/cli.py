"""The command line and its commands. Heavy imports are inside the commands, so that --help is fast."""

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
    calibrate,
    check,
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
    serve,
    sweep,
    train,
)
from liftplus.commands.examples import epilog
from liftplus.errors import UserError, explained
from liftplus.machine.paths import expanded_word

GARBAGE_THRESHOLD = 50_000
"""Number of new objects before Python collects garbage. Imports create many objects that are never freed."""
LOUDNESS = ("-q", "--quiet", "-v", "--verbose")
CODES = (
    "Exit codes: 0 done; 1 internal error, with a traceback; 2 user error, with a message; 130 or 143 stopped by "
    "Ctrl-C or SIGTERM, with finished work saved."
)


class _Ended(Exception):  # noqa: N818 (it carries what ended the command)
    """Carries an exception past click, which would print its own message for it."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept -q and -v anywhere, and expand `~` where the shell did not."""
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
        bool, typer.Option("--quiet", "-q", help="Print only results and errors. Allowed anywhere.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print machine, settings and tracebacks. Allowed anywhere.")
    ] = False,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command."""
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
reproduce_app = _group("reproduce", TRAIN, "Reproduce the experiments of the papers and of liftplus.")
classes_app = _group("classes", USE, "Add or rename classes of a finished run.")

# Help shows the panels in this order, which is that of a user's work.
for panel, name, command in (
    (LOOK, "demo", demo.demo),
    (LOOK, "info", info.info),
    (LOOK, "data inspect", info.inspect),
    (LOOK, "data check", check.check),
    (LOOK, "prepare", prepare.prepare),
    (TRAIN, "train", train.train),
    (TRAIN, "zeroshot", train.zeroshot),
    (TRAIN, "compare", compare.compare),
    (TRAIN, "sweep", sweep.sweep),
    (TRAIN, "reproduce list", reproduce.listing),
    (TRAIN, "reproduce run", reproduce.run),
    (TRAIN, "reproduce status", reproduce.status),
    (USE, "eval", evaluate.evaluate),
    (USE, "calibrate", calibrate.calibrate),
    (USE, "predict", predict.predict),
    (USE, "serve", serve.serve),
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
    """Entry point. A user error ends with a message and exit code 2."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal cannot encode must not end a run
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _main_of_several()
    try:
        _run()
    except (UserError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended, as `head` does
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
    """`main` in one of torchrun's processes. Only the leader prints, or the process that fails, before all end."""
    from liftplus import console
    from liftplus.machine import parallel

    job = parallel.ALONE
    # torchrun ends all processes when one has ended. The delay lets a process that fails itself print its error.
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
        os._exit(code)  # a normal exit would wait for PyTorch's threads, which wait for other processes
    raise SystemExit


if __name__ == "__main__":
    main()
