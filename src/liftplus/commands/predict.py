"""`liftplus predict`."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import options
from liftplus.commands.options import (
    Alarms,
    AsJson,
    AtLevel,
    ClassShare,
    Coverage,
    FiveCrops,
    Prior,
    Run,
    SetsBy,
    Sure,
    TopK,
)
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.runs.guesses import Guess


def predict(
    run: Run,
    pictures: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, glob patterns, archives (.zip, .tar), lists of paths (.txt), or - for stdin."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="FILE.csv or FILE.json; default: CSV on stdout.")
    ] = None,
    top_k: TopK = 5,
    unreadable: Annotated[str, typer.Option(help="stop: end at a broken image. skip: go on without it.")] = "stop",
    five_crops: FiveCrops = None,
    prior: Prior = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value, e.g. device=cpu or weights=PATH; repeatable.")
    ] = None,
    coverage: Coverage = None,
    sets_by: SetsBy = "group",
    class_share: ClassShare = 0.5,
    alarms: Alarms = None,
    level: AtLevel = None,
    sure: Sure = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures with a finished run. The result has one row per picture, in the order given."""
    from liftplus import console
    from liftplus.data.images import UnreadableImage
    from liftplus.machine import parallel
    from liftplus.runs import inputs, predicting
    from liftplus.training import checkpoint

    if unreadable not in ("stop", "skip"):
        raise UserError(f"--unreadable is {unreadable!r}. Give stop or skip.")
    promises = options.promises(coverage, sets_by, class_share, alarms)
    _check_target(out)
    for word in pictures:
        if re.match(r"[a-z_][a-z0-9_.]*=", word) and not os.path.exists(word):
            raise UserError(f"{word!r} names no image. For a setting write --set {word}.")
    rows = parallel.job().from_leader(lambda: inputs.read(pictures, _stdin))
    skips = unreadable == "skip"
    rows = rows if skips else rows.complete()
    for note in rows.notes:
        console.err.print(f"Note: {note}", highlight=False)
    settings = options.to_predict(run, top_k, five_crops, prior, change)
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone, options.BY_SET)
    asked = options.asked(session, trained, promises, level, sure)
    try:
        found = predicting.predict_files(session, trained, rows, skip_unreadable=skips, asked=asked)
    except UnreadableImage as error:
        raise UserError(f"{error} Give --unreadable skip to leave out such files.") from error
    if parallel.job().leads:
        _write_guesses(found, out, as_json)


def _stdin() -> bytes:
    """All bytes of stdin."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    data = b"" if stream is None else stream.read()
    return data.encode() if isinstance(data, str) else data


def _check_target(out: Path | None) -> None:
    """Check before the work that the file can be written; raises UserError otherwise."""
    from liftplus.machine import disk

    if out is None:
        return
    if out.suffix not in (".csv", ".json"):
        raise UserError(f"--out is {str(out)!r}, but its name must end in .csv or .json.")
    disk.check_target(out)


def _write_guesses(guesses: list[Guess], out: Path | None, as_json: bool) -> None:
    from liftplus import console
    from liftplus.machine import disk

    broken = [os.path.basename(guess.path) for guess in guesses if guess.error]
    named = ", ".join(broken[:3]) + (f" and {len(broken) - 3:,} more" if len(broken) > 3 else "")
    told = counted(len(guesses) - len(broken), "prediction") + (
        f" and {len(broken):,} unreadable ({named})" if broken else ""
    )
    if out is None and broken:
        console.err.print(f"{told}.", highlight=False)
    if out is None and as_json:
        print(json.dumps(_entries(guesses), indent=2, ensure_ascii=False))
    elif out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_table(guesses))
    else:
        disk.folder_of(out)
        if out.suffix == ".json":
            disk.write_json(out, _entries(guesses))
        else:
            header, *rows = _table(guesses)
            disk.write_csv(out, header, rows)
        if as_json:
            print(json.dumps({"file": str(out), "images": len(guesses), "unreadable": len(broken)}))
        else:
            console.out.print(f"{told} are in {out}", highlight=False)


def _entries(guesses: list[Guess]) -> list[dict[str, Any]]:
    from liftplus.runs.guesses import told

    return [{"path": guess.path, **told(guess)} for guess in guesses]


def _table(guesses: list[Guess]) -> list[list[str]]:
    """A header and one row per image."""
    count = max((len(g.classes) for g in guesses), default=0)
    sets, unknown = any(g.members is not None for g in guesses), any(g.unknown is not None for g in guesses)
    levels = any(g.level is not None for g in guesses)
    header = ["path", *(f"{what}_{k + 1}" for k in range(count) for what in ("class", "probability"))]
    header += [*(["set", "set_size"] if sets else []), *(["unknown", "unknown_score"] if unknown else [])]
    header += [*(["level", "group", "group_probability"] if levels else []), "error"]
    return [
        header,
        *([*_cells(g, count, sets=sets, unknown=unknown, levels=levels), g.error or ""] for g in guesses),
    ]


def _cells(g: Guess, count: int, *, sets: bool, unknown: bool, levels: bool) -> list[str]:
    """The cells of one image but for its error. A set is a JSON list, as names may hold any separator."""
    cells = [g.path, *(cell for name, p in zip(g.classes, g.probabilities, strict=True) for cell in (name, f"{p:.6f}"))]
    cells += [""] * (2 * (count - len(g.classes)))
    if sets:
        known = g.members is not None
        cells += [json.dumps(g.members, ensure_ascii=False), str(len(g.members or ()))] if known else ["", ""]
    if unknown:
        told = g.unknown is not None
        cells += [str(g.unknown).lower(), f"{g.unknown_score:.6f}"] if told else ["", ""]
    if levels:
        cells += [g.level or "", *(("", "") if g.group is None else (g.group[0], f"{g.group[1]:.6f}"))]
    return cells
