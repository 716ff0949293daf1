"""The demo: a preset of `compare` with five methods, the bundled model and a drawn long-tailed data set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.studies.compare import Comparison, Entry, Row

METHODS = ("zeroshot", "closed_form", "full", "full+", "lift+")
DATA, BACKBONE = "openmoji_lt", "mini_clip"
OVERRIDES = ("epochs=3",)
"""Fewer than the default, so that a demo ends within minutes on two cores."""
FEW = (
    "Every method trains for 3 epochs, so that this ends in minutes. With the usual 5 all gain, full fine-tuning most, "
    "and with layer-wise learning rates (layer_decay=0.5) it is level with LIFT+: README.md and docs/evidence.md have "
    "that table, with three seeds."
)
FEATURES = 20  # pictures per class and split in the report's feature figures, which take half a minute
MARKER, ROWS = ".liftplus-demo", "results.json"
FIELDS = ("method", "tte", "seed", "overall", "many", "medium", "few", "seconds", "tuned_parameters")


def plan(seeds: int) -> Comparison:
    """The demo's comparison."""
    return Comparison(DATA, BACKBONE, tuple(Entry(method, method) for method in METHODS), seeds, OVERRIDES)


def lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The lines of results.json; accuracies in percent, `seconds` of training."""
    return [{key: getattr(row, key) for key in FIELDS} for row in rows]


def clear(out: Path) -> None:
    """Remove the runs and tables of an earlier demo.

    Raises:
        UserError: the folder holds something other than a demo.
    """
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} holds something other than a demo's results. Choose another folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for name in (ROWS, "compare.json", "compare.csv", "compare.md"):
        (out / name).unlink(missing_ok=True)
    for method in METHODS:
        for folder in out.glob(f"{method}-seed*"):
            shutil.rmtree(folder)


def write(out: Path, rows: Sequence[Row]) -> None:
    """Write results.json with the rows so far."""
    disk.write_json(out / ROWS, lines(rows))
