"""Lists of "path label" lines, as ImageNet-LT, Places-LT and others publish their splits."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from liftplus.data import documents, split_names
from liftplus.data.dataset import SPLIT_OF, Table
from liftplus.errors import UserError

_WORDS = "|".join(sorted(SPLIT_OF, key=len, reverse=True))
_DIGITS = 18  # what 64 bits hold
_NAME = re.compile(rf"(?P<start>|.*[_.-])(?P<split>{_WORDS})(?P<end>\d*)\.(?P<suffix>txt|json)", re.IGNORECASE)


def read(paths: Mapping[str, Path]) -> Table:
    """The table of one list a split; a note names any list beside the training list that has no labels."""
    beside = [path for split, path in _beside(paths["train"]).items() if split not in paths and not is_list(path)]
    notes = tuple(f"{path.name} is no list of paths and labels, so it was left out." for path in beside)
    return Table({split: read_list(path) for split, path in paths.items()}, notes=notes)


def read_list(path: Path) -> list[tuple[str, str]]:
    """(path, label) of every line; the label is the last field, so paths may hold spaces."""
    lines = re.split(r"\r\n|\r|\n", documents.text(path, "list"))
    rows = [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f'{path} is empty; write one "path label" line an image.')
    return rows


def normal(path: str) -> str:
    """A listed path as stores know it: no "./" at the start."""
    if "/." in path or "//" in path or path.startswith(".") or path.endswith("/") or not path:
        return posixpath.normpath(path)
    return path  # most paths are normal


def find(folder: Path) -> dict[str, dict[str, Path]]:
    """Lists in a folder by the start of their names: {"ImageNet_LT_": {"train": path, ...}}; "" for train.txt."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.txt")) if os.path.isdir(folder) else ():
        match = _NAME.fullmatch(path.name)
        if match and is_list(path):
            found.setdefault(match["start"], {})[SPLIT_OF[match["split"].lower()]] = path
    return {start: paths for start, paths in found.items() if "train" in paths}


def siblings(path: Path) -> dict[str, Path]:
    """A training file with the files of other splits beside it, by name: train2018.json and val2018.json.

    Beside train_mini.json it is val_mini.json or else val.json. Lists without labels are left out.
    """
    others = _beside(path)
    return {split: other for split, other in others.items() if other == path or _is_labelled(other)}


def _is_labelled(path: Path) -> bool:
    return path.suffix.lower() != ".txt" or is_list(path)  # the reader of annotations reports what they lack


def _beside(path: Path) -> dict[str, Path]:
    paths = {"train": path}
    own = split_names.read(path.stem)
    if own is None or own.split != "train" or not os.path.isdir(path.parent):
        return paths
    named = [
        (other, name)
        for other in sorted(path.parent.iterdir())
        if other.suffix.lower() == path.suffix.lower() and (name := split_names.read(other.stem)) and other.is_file()
    ]
    for rest in (own.rest, own.unsized):
        for other, name in named:
            if name.split != "train" and name.rest == rest:
                paths.setdefault(name.split, other)
    return paths


def is_list(path: Path) -> bool:
    """Whether the first line has a label: a train.txt may be something else, and test lists may have no labels."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            first = next((line for line in lines if line.strip()), "")
    except OSError:  # a folder of that name, for example
        return False
    return re.fullmatch(r"\S.*\s+\d+", first.strip(), re.ASCII) is not None


def _row(line: str, path: Path, number: int) -> tuple[str, str]:
    fields = line.strip().rsplit(None, 1)
    digits = fields[-1].removeprefix("-") if fields[-1].startswith("-") else fields[-1].removeprefix("+")
    if len(fields) < 2 or not (digits.isascii() and digits.isdecimal()):
        raise UserError(
            f'{path}, line {number} has no label: {line.strip()!r}; write "path label", the label a whole number.'
        )
    if len(fields[1]) > _DIGITS or int(fields[1]) < 0:
        raise UserError(
            f"{path}, line {number} has the label {fields[1][:40]}; labels are whole numbers from 0 up, of at most "
            f"{_DIGITS} characters."
        )
    return normal(fields[0]), sys.intern(str(int(fields[1])))  # one string per class in memory, not one per picture
