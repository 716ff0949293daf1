"""Shell completion. It runs at every press of TAB, so it imports nothing heavy."""

from __future__ import annotations

import glob
import os
import tomllib
from collections.abc import Iterable
from importlib.resources import files

from liftplus.names import DATA_SETS, presets

MODEL = "model.safetensors"


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def backbones(incomplete: str) -> list[str]:
    """Short names of backbones."""
    return _starting(incomplete, presets("backbones"))


def methods(incomplete: str) -> list[str]:
    """Names of methods."""
    return _starting(incomplete, presets("methods"))


def data(incomplete: str) -> list[str]:
    """Known data sets, and files and folders."""
    return [*_starting(incomplete, DATA_SETS), *_paths(incomplete)]


def experiments(incomplete: str) -> list[str]:
    """Groups and tables of experiments, and DATA/BACKBONE, with which experiments' names begin."""
    names: dict[str, None] = {}
    for path in sorted((files("liftplus") / "reproduce" / "catalogue").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml") and path.name != "claims.toml":
            names[path.name.removesuffix(".toml")] = None
            for title, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
                labels = [data if isinstance(data, str) else data["name"] for data in table["data"]]
                names |= dict.fromkeys([title, *(f"{data}/{tower}" for data in labels for tower in table["backbones"])])
    return _starting(incomplete, names)


def runs(incomplete: str) -> list[str]:
    """Folders of finished runs, up to three levels deep; if there are none, all files and folders."""
    start, _, _ = incomplete.rpartition(os.sep)
    inside = glob.escape(start) + os.sep if start else ""
    depths = ("*", os.path.join("*", "*"), os.path.join("*", "*", "*"))
    found = [path for depth in depths for path in glob.glob(os.path.join(inside + depth, MODEL))]
    return _starting(incomplete, sorted(os.path.dirname(path) for path in found)) or _paths(incomplete)


def _paths(incomplete: str) -> list[str]:
    """Files and folders that start with the text; folders end in a slash."""
    found = sorted(glob.glob(glob.escape(incomplete) + "*"))
    return [path + os.sep if os.path.isdir(path) else path for path in found]
