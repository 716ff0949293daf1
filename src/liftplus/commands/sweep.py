"""`liftplus sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, BackboneName, Data, Method
from liftplus.errors import UserError

if TYPE_CHECKING:
    from liftplus.config import RunConfig
    from liftplus.runs.opening import Session
    from liftplus.studies.sweep import Sweep

SHOWN = 15


def sweep(
    data: Annotated[str, Data],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep. The same command continues it.")],
    backbone: BackboneName = "mini_clip",
    method: Method = "lift+",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings to try, over all processes. Default: the whole grid, or 20.")
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            help="grid, random, tpe or auto. auto: grid if the space is finite and --trials is unset or equals its "
            "size; otherwise tpe."
        ),
    ] = "auto",
    metric: Annotated[
        str, typer.Option(help="Validation accuracy to maximise: mean_class, overall, many, medium or few.")
    ] = "mean_class",
    test_seeds: Annotated[
        int, typer.Option(min=0, help="At the end, train the best setting with this many seeds and test it.")
    ] = 0,
    storage: Annotated[
        str | None, typer.Option(help="Optuna database: sqlite:///FILE or a server. Default: a journal in --out.")
    ] = None,
    as_json: AsJson = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value, a list (width=4,8,16) or a range (lr=0.001..0.1:log, seed=0..2).",
            metavar="KEY=VALUES",
        ),
    ] = None,
) -> None:
    """Search settings on the validation split, or repeat seeds. Start it several times to share the work."""
    from liftplus import console
    from liftplus.machine import parallel, stopping
    from liftplus.runs import changes
    from liftplus.studies import search, space
    from liftplus.studies import sweep as sweeps
    from liftplus.training import saved_state

    for name, given, allowed in (("sampler", sampler, search.SAMPLERS), ("metric", metric, search.METRICS)):
        if given not in allowed:
            raise UserError(f"--{name} is {given!r}. Give one of {', '.join(allowed)}.")
    if parallel.job().size > 1:
        raise UserError(
            "sweep runs without torchrun. To share its trials between processes, start the same command several times."
        )
    varied = space.read(data, backbone, method, overrides or [], fixed=(*changes.FREE, "method"))
    asked = stopping.StopRequest()

    def session(config: RunConfig) -> Session:
        return options.session(config, asked)

    made = sweeps.Sweep(
        out, search.Search(varied, sampler, trials, metric, test_seeds), session, console.err.print, storage
    )
    try:
        made.run()
    except saved_state.Stopped as stopped:
        console.err.print(f"{stopped} Give the same command to continue.")
        raise SystemExit(128 + (asked.signal or 0)) from None
    _show(made, as_json)


def _show(made: Sweep, as_json: bool) -> None:
    import json

    from liftplus import console
    from liftplus.machine import disk
    from liftplus.studies import sweep as sweeps

    found = disk.read_json(made.folder / sweeps.RESULTS, "trials", "best")
    if as_json:
        print(json.dumps({"folder": str(made.folder)} | found))
        return
    keys, metric = list(made.plan.space.varied), made.plan.metric
    ranked = sorted(found["trials"], key=lambda one: -(one["metrics"].get(metric) or -1.0))
    columns = ["trial", *(key.rpartition(".")[2] for key in keys)]
    rows = [[one["number"], *(one["point"].get(key) for key in keys)] for one in ranked]
    title = f"{made.plan.space.method} on {made.plan.space.data}: accuracy in percent on the validation split"
    _table(title, columns, rows[:SHOWN], ranked[:SHOWN], metric)
    if len(ranked) > SHOWN:
        console.out.print(f"… and {len(ranked) - SHOWN} more in {made.folder / sweeps.TABLE}")
    if found["best"] is not None:
        best, spread = found["best"], ""
        if best["sd"] is not None:
            spread = f" ± {best['sd']:.1f} (standard deviation over {len(best['trials'])} seeds)"
        setting = " ".join(f"{key}={value}" for key, value in best["point"].items())
        console.out.print(f"Best: {setting or 'the one setting'} with {metric} {best['mean']:.1f}{spread}.")
    if found["test"]:
        seeds = [[one["number"]] for one in found["test"]]
        _table("That setting on the test split", ["seed"], seeds, found["test"], "overall")
    console.out.print(f"Every trial's run, {sweeps.RESULTS} and {sweeps.TABLE} are in {made.folder}")


def _table(title: str, columns: list[str], rows: list[list[Any]], trials: list[dict[str, Any]], metric: str) -> None:
    """Print a table of trials with their figures, without empty columns."""
    from liftplus import console

    figures = [one["metrics"] | {"failed": one["error"]} for one in trials]
    wanted = dict.fromkeys([metric, "overall", "many", "medium", "few", "seconds", "failed"])
    keys = [key for key in wanted if any(one.get(key) is not None for one in figures)]
    cells = [[*row, *(one.get(key) for key in keys)] for row, one in zip(rows, figures, strict=True)]
    console.table(title, [*columns, *(key.replace("_", " ") for key in keys)], cells)
