"""`liftplus reproduce list`, `run` and `status`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import completion, options
from liftplus.commands.options import AsJson
from liftplus.errors import Interrupted, UserError
from liftplus.words import agreeing, counted

if TYPE_CHECKING:
    from liftplus.reproduce.catalogue import Experiment
    from liftplus.reproduce.plan import Plan
    from liftplus.reproduce.verdicts import Figure, Result, Status

NAMES = "A group (small), a table (losses), an experiment, or the start of its name (imagenet_lt/clip_vit_b16)."
Names = Annotated[
    list[str] | None, typer.Argument(autocompletion=completion.experiments, help=f"{NAMES} Default: all.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of all runs; finished ones in it are reused.")]
DataRoot = Annotated[Path, typer.Option(help="Folder that contains a folder for each data set, such as imagenet_lt.")]
OUT, DATA = Path("runs/reproduce"), Path("data")
IN_FULL = 5  # up to this number of experiments, `list` shows everything


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            autocompletion=completion.experiments,
            help=f"{NAMES} Also key=value for all runs, e.g. data.root=DIR or epochs=1.",
            metavar="NAME... [KEY=VALUE]...",
        ),
    ],
    out: Out = OUT,
    data_root: DataRoot = DATA,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each experiment; default: the experiment's own number.")
    ] = None,
) -> None:
    """Make the missing runs of experiments. Processes that are given the same command share the work."""
    from liftplus import console
    from liftplus.machine import parallel
    from liftplus.reproduce import catalogue, verdicts
    from liftplus.reproduce.plan import Plan

    if parallel.job().size > 1:
        raise UserError(
            "reproduce runs each experiment in one process. Start it without torchrun. To share the work, start "
            "several processes with the same command."
        )
    names = [word for word in words if not re.match(r"[\w.]+=", word)]
    if not names:
        raise UserError("Give a name. `liftplus reproduce list` shows all names; `small` needs no download.")
    known = catalogue.load()
    plan = Plan(tuple(known.select(names)), out, data_root, seeds, tuple(word for word in words if word not in names))
    failed = _carry_out(plan)
    found = verdicts.status(plan, known.claims, known.experiments)
    path = verdicts.write(plan, found)
    _show(found, plan)
    console.out.print(f"Also in {path}.")
    if failed:
        raise UserError("\n".join([f"{counted(len(failed), 'run')} failed:", *failed]))


def _carry_out(plan: Plan) -> list[str]:
    """Make the runs. Returns a sentence on each run that failed."""
    from liftplus import console
    from liftplus.machine import stopping
    from liftplus.reproduce import carry_out
    from liftplus.training import saved_state

    asked = stopping.StopRequest()
    work = carry_out.Work(plan, lambda config: options.session(config, asked), console.err.print)
    work.check()
    console.err.print(carry_out.outlook(plan).sentence())
    try:
        return work.do()
    except saved_state.Stopped as stopped:
        console.err.print(f"{stopped} Give the same command to continue.")
        raise SystemExit(128 + (asked.signal or 0)) from None
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Interrupted) else 2
        raise Interrupted("Stopped. Give the same command to continue.", number) from stop


def status(
    names: Names = None,
    out: Out = OUT,
    as_json: AsJson = False,
) -> None:
    """Judge each expected figure and each claim by the finished runs. The result is also written to OUT/status.json."""
    from liftplus import console
    from liftplus.reproduce import catalogue, verdicts
    from liftplus.reproduce.plan import Plan, changed_settings

    known = catalogue.load()
    plan = Plan(tuple(known.select(names or [])), out, overrides=tuple(changed_settings(out) or ()))
    found = verdicts.status(plan, known.claims, known.experiments)
    path = verdicts.write(plan, found)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    _show(found, plan)
    console.out.print(f"Also in {path}.")


def listing(
    names: Names = None,
    data_root: DataRoot = DATA,
    as_json: AsJson = False,
) -> None:
    """List every experiment: its name, the command of a run, the expected figures, and what it needs."""
    from liftplus import console
    from liftplus.reproduce import catalogue
    from liftplus.reproduce.plan import Plan

    chosen = tuple(catalogue.load().select(names or []))
    plan = Plan(chosen, OUT, data_root)
    lines = [_line(plan, one) for one in chosen]
    if as_json:
        print(json.dumps(lines, ensure_ascii=False, indent=2))
        return
    if len(lines) <= IN_FULL:
        for line in lines:
            _show_in_full(line)
        return
    for title in dict.fromkeys((line["group"], line["table"], line["about"]) for line in lines):
        console.out.print("{}, {}: {}".format(*title), style="bold")
        for line in lines:
            if (line["group"], line["table"], line["about"]) == title:
                figures = f"; expected {_figures(line['expected'])}" if line["expected"] else ""
                console.out.print(
                    f"  {line['name']}: {counted(line['seeds'], 'run')}, {line['needs']['time']}{figures}"
                )
    console.out.print(
        f"{counted(len(lines), 'experiment')}. Give up to {IN_FULL} names to see commands, data, weights and memory; "
        "--json shows everything."
    )


def _line(plan: Plan, one: Experiment) -> dict[str, Any]:
    """Everything about an experiment."""
    from liftplus.names import full_backbone
    from liftplus.reproduce import needs
    from liftplus.words import duration

    run, need = plan.outline(one), needs.data(one.source)
    if one.seconds is not None:
        time = f"{duration(one.seconds)}, measured"
    elif (seconds := needs.estimate(run, one.source)) is not None:
        time = f"{duration(seconds)}, an estimate" if seconds else "no training"
    else:
        time = "not known"
    speed = needs.backbone(one.backbone)
    return {
        "name": one.name,
        "about": one.about,
        "group": one.group,
        "table": one.table,
        "command": plan.command(one),
        "expected": {key: list(dict.fromkeys(value)) for key, value in one.expected.items()},
        "source": one.origin if one.expected else "",
        "seeds": one.seeds,
        "needs": {
            "data": [
                f"{need.title}, below {plan.root(one) or 'no folder'}",
                *need.layout,
                f"where to get it: {need.get}",
            ]
            if need
            else [f"the file {plan.source(one)}"],
            "weights": full_backbone(one.backbone),
            "memory": needs.memory(run),
            "time": time,
            "time_basis": speed.basis if speed and "estimate" in time else "",
        },
    }


def _show_in_full(line: dict[str, Any]) -> None:
    from liftplus import console

    need = line["needs"]
    console.out.print(line["name"], style="bold")
    lines = {
        "what": line["about"],
        "a run": line["command"],
        "seeds": line["seeds"],
        "expected": f"{_figures(line['expected'])} ({line['source']})" if line["expected"] else "no figure is known",
        "data": "\n            ".join(need["data"]),
        "weights": need["weights"],
        "memory": need["memory"],
        "time": need["time"] + (f" ({need['time_basis']})" if need["time_basis"] else ""),
    }
    for key, value in lines.items():
        console.out.print(f"  {key + ':':<9} {value}")


def _figures(expected: dict[str, list[float]]) -> str:
    """Expected figures in one line: overall 78.3, many 81.2."""
    return ", ".join(f"{key} {' to '.join(f'{x:g}' for x in value)}" for key, value in expected.items()) or "–"


def _show(found: Status, plan: Plan) -> None:
    """Print results and claims."""
    from liftplus import console
    from liftplus.reproduce.plan import changed_settings

    shown = [one for one in found.results if one.seeds or any(figure.verdict for figure in one.figures)]
    console.out.print(
        "Accuracy in percent, mean ± standard deviation over seeds, with expected figures in brackets", style="bold"
    )
    for one in shown:
        console.out.print(_row(one))
    if rest := len(found.results) - len(shown):
        console.out.print(f"{rest} more {agreeing(rest, 'has', 'have')} neither runs nor expected figures.")
    if changed := changed_settings(plan.out):
        console.out.print(f"All runs here were made with {' '.join(changed)}, which is not part of the experiments.")
    for one in found.results:
        if other := [text for text in one.differs if text not in (changed or ())]:
            console.out.print(f"{one.name}: the data differ from the experiment's: {'; '.join(other)}.")
    for claim in found.claims:
        console.out.print(f"{claim.claim}: {claim.verdict}.", style="bold")
        for test in claim.tests:
            console.out.print(f"  {test.about + ': ' if test.about else ''}{test.sentence()}")
        for gap in claim.untestable:
            console.out.print(f"  Not testable: {gap['what']}: {gap['why']}")


def _row(one: Result) -> str:
    """An experiment in one line: seeds, accuracies, verdicts."""
    verdicts = {figure.key: figure.verdict for figure in one.figures if figure.verdict}
    told = ", ".join(f"{key} {verdict}" for key, verdict in verdicts.items())
    if len(set(verdicts.values())) == 1:
        told = next(iter(verdicts.values()))
    if told and one.differs:
        told += " (other settings or data)"
    cells = [text for key in ("overall", "many", "medium", "few") if (text := _cell(one.figure(key)))]
    return f"  {one.name}, {len(one.seeds)} of {counted(one.wanted, 'seed')}: {', '.join(cells) or 'no figures'}" + (
        f". {told[:1].upper()}{told[1:]}" if told else ""
    )


def _cell(figure: Figure) -> str:
    """One accuracy with its spread and the expected figure; empty if there is neither."""
    spread = "" if figure.sd is None else f" ± {figure.sd:.1f}"
    expected = "" if figure.low is None else f" [{figure.low:g}]"
    if figure.low != figure.high:
        expected = f" [{figure.low:g} to {figure.high:g}]"
    if figure.mean is None:
        return f"{figure.key} –{expected}" if expected else ""
    return f"{figure.key} {figure.mean:.1f}{spread}{expected}"
