"""Names of presets, data sets, parts and backbones. It imports nothing heavy, so that listing them is fast."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from liftplus.errors import UserError, unknown

DATA_SETS = {
    "openmoji_lt": "120 classes of OpenMoji drawings, 200 to 2 per class; drawn on the fly, needs the extra 'demo'",
    "cifar10_lt": "CIFAR-10 cut to an imbalance ratio; root=FOLDER with the Python files",
    "cifar100_lt": "CIFAR-100 cut to an imbalance ratio; root=FOLDER with the Python files",
    "imagenet_lt": "ImageNet-LT by its lists, 1,000 classes; root=FOLDER with lists and pictures",
    "places_lt": "Places-LT by its lists, 365 classes; root=FOLDER with lists and pictures",
    "inat2018": "iNaturalist 2018 by its lists or JSON, 8,142 classes; root=FOLDER",
}
PRETRAINED = "pretrained.json"  # the libraries' lists of weights; scripts/list_pretrained.py makes it


def presets(kind: str) -> dict[str, dict[str, Any]]:
    """A copy of the table of presets of one kind: "methods", "backbones", "data" or "prompts"."""
    return deepcopy(_parsed(kind))


@cache
def _parsed(kind: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("liftplus") / "presets" / f"{kind}.toml").read_text(encoding="utf-8"))


def full_backbone(name: str) -> str:
    """The full name of a backbone: timm/ARCH.TAG or open_clip/ARCH/TAG; bundled ones and hf/OWNER/NAME stay.

    Raises:
        UserError: the name is unknown.
    """
    table = presets("backbones")
    if name.startswith(("timm/", "open_clip/", "hf/")):
        return name
    if name not in table:
        meant = _meant(name)
        raise UserError(
            f"Unknown backbone {name!r}: {meant}"
            if meant
            else f"{unknown('backbone', name, table)} Full names also work: timm/ARCH.TAG, open_clip/ARCH/TAG or "
            "hf/OWNER/NAME. `liftplus info` lists all."
        )
    full: str = table[name]["weights"]
    return full


def _meant(name: str) -> str | None:
    """What to write for a path, or for another library's name of weights; None for any other word."""
    place = Path(name).expanduser()
    if place.exists() or place.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx"):
        return (
            "it is a file or folder. Name the architecture as the backbone, such as dinov2_b14, and give the weights "
            f"as backbone.weights={name}."
        )
    hub = re.fullmatch(r"(?:hf-hub:|hf_hub:|https://huggingface\.co/)?([\w.-]+)/([\w.-]+)", name)
    if hub and hub[1] == "timm":
        return f"write timm/{hub[2]}."
    if hub and "-" in hub[2]:  # as repositories of transformers are named; no short name has a hyphen
        return f"write hf/{hub[1]}/{hub[2]} for a model of transformers, or the name in timm or open_clip."
    if re.fullmatch(r"[a-z]\w*\.[a-z]\w*", name):
        return f"write timm/{name} for a model of timm."
    return None


def parts() -> dict[str, dict[str, str]]:
    """Methods, backbones, data sets, prompts and all registered parts, by kind and name, with one line about each."""
    from liftplus import registry

    groups = {
        "method": {name: entry["summary"] for name, entry in presets("methods").items()},
        "backbone": {name: entry["summary"] for name, entry in presets("backbones").items()},
        "data": dict(DATA_SETS),
        "prompts": {name: entry["summary"] for name, entry in presets("prompts").items()},
    }
    return groups | {kind: registered(kind) for kind in registry.HOMES}


def registered(kind: str) -> dict[str, str]:
    """The first docstring line of each part of a kind, by name.

    This package's parts are read from its source files, because importing them would import PyTorch.
    """
    from liftplus import registry

    if os.environ.get(registry.VARIABLE) or entry_points(group=registry.GROUP):
        return {name: _first_line(part.__doc__) for name, part in registry.discover(kind).items()}
    found = {}
    for path in (path for module in registry.HOMES[kind] for path in _sources(module)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (name := _name(node, kind)) is not None:
                found[name] = _first_line(ast.get_docstring(node))
    return dict(sorted(found.items()))


def _sources(module: str) -> Iterator[Path]:
    """The source files of a module or package."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    inside = spec.submodule_search_locations
    yield from sorted(Path(inside[0]).glob("*.py")) if inside else [Path(spec.origin)]


def _name(node: ast.ClassDef, kind: str) -> str | None:
    """The name under which a class registers as a part of this kind; None if it does not."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "register":
            given = [argument.value for argument in decorator.args if isinstance(argument, ast.Constant)]
            if len(given) == 2 and given[0] == kind:
                return str(given[1])
    return None


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def backbones() -> list[str] | None:
    """All names of backbones, short and full, from kept lists.

    None if the installed libraries have other versions than the lists; then the libraries must be asked.
    """
    kept = json.loads((files("liftplus") / "presets" / PRETRAINED).read_text(encoding="utf-8"))
    if any(_installed(library) != entry["version"] for library, entry in kept.items()):
        return None
    return [*presets("backbones"), *(name for entry in kept.values() for name in entry["names"])]


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
