"""Find the runs for a report: run folders, and folders that contain several runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from liftplus.errors import UserError
from liftplus.report.read import FILES
from liftplus.words import counted

DEPTH = 3  # how many levels below a folder to look for runs: reproduce has DATA/BACKBONE/METHOD-seedN
SWEEP = "sweep.json"
Given = str | os.PathLike[str]


def chosen(given: Sequence[Given]) -> tuple[list[Path], list[str]]:
    """Run folders in the order given, each once, and notes on what was left out.

    A folder that is not a run stands for the finished runs inside it. A file in a run folder stands for the run.

    Raises:
        UserError: a folder does not exist or holds no finished run.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for text in given:
        path = Path(text).expanduser()
        folder = path.parent if path.is_file() else path
        if not folder.is_dir():
            raise UserError(f"There is no run folder {str(folder)!r}. Give folders that `liftplus train` wrote.")
        for run in [folder] if is_run(folder) else _inside(folder, notes):
            found.setdefault(run.resolve(), run)
    return list(found.values()), notes


def is_run(folder: Path) -> bool:
    """Whether a folder holds any file of a run."""
    return any((folder / name).is_file() for name in FILES)


def beside(given: Sequence[Given]) -> Path:
    """The default folder of a report: inside the folder given, or beside several."""
    folders = [path.parent if path.is_file() else path for path in (Path(text).expanduser() for text in given)]
    if len(folders) == 1:
        return folders[0] / "report"
    return Path(os.path.commonpath([os.path.abspath(folder.parent) for folder in folders])) / "report"


def _inside(folder: Path, notes: list[str]) -> list[Path]:
    """The finished runs in a folder of several."""
    runs = list(_runs(folder, DEPTH))
    if not runs:
        raise UserError(
            f"{str(folder)!r} is not a run ({', '.join(FILES)} are all missing) and contains none. Give folders that "
            "`liftplus train` or `liftplus compare` wrote."
        )
    tested = [run for run in runs if (run / "metrics.json").is_file()]
    if not tested:
        raise UserError(
            f"{str(folder)!r} holds {counted(len(runs), 'run')}, but none has been tested. Give the command that began "
            "them again, or name one run."
        )
    if left := [run.name for run in runs if run not in tested]:
        notes.append(f"Left out because they have not been tested: {', '.join(left)} in {folder}.")
    if (folder / SWEEP).is_file():
        return _of_sweep(folder, tested, notes)
    return tested


def _of_sweep(folder: Path, tested: list[Path], notes: list[str]) -> list[Path]:
    """A sweep's test runs, or else its trials. The two were measured on different pictures, so they cannot be mixed."""
    final = [run for run in tested if run.name.startswith("test-seed")]
    if not final:
        notes.append(f"{folder} is a sweep: its trials were measured on the validation split.")
        return tested
    if len(final) < len(tested):
        notes.append(
            f"{folder} is a sweep: this report shows its runs on the test split. For its trials on the validation "
            f"split, give {folder}/trial-*."
        )
    return final


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders below a folder, by name. The inside of a run is not searched."""
    try:
        entries = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read ({error.strerror}).") from error
    for path in entries:
        if (path / "config.json").is_file() or (path / "metrics.json").is_file():
            yield path
        elif depth > 1:
            yield from _runs(path, depth - 1)
