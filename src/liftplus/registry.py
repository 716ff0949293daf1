"""Parts by name: every tuner, head, initialisation, loss, sampler and augmentation registers itself here.

Parts come from this package, from packages that announce modules in the entry-point group `liftplus.parts`, and from
the modules and files that the environment variable LIFTPLUS_PARTS names, separated by commas (docs/add-a-tuner.md).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from liftplus.errors import UserError, unknown

# Where the members of each kind live: a module, or a folder whose modules are all imported.
HOMES = {
    "tuner": ("liftplus.tuners",),
    "head": ("liftplus.model.heads",),
    "head_init": ("liftplus.model.head_init", "liftplus.model.picture_init"),
    "loss": ("liftplus.model.losses",),
    "sampler": ("liftplus.data.samplers",),
    "augment": ("liftplus.data.transforms",),
}
GROUP = "liftplus.parts"
VARIABLE = "LIFTPLUS_PARTS"


class Component(BaseModel):
    """A part that is its own configuration: frozen fields, no work in the constructor."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""


_T = TypeVar("_T", bound=type[Component])
_PARTS: dict[str, dict[str, type[Component]]] = {kind: {} for kind in HOMES}


def register(kind: str, name: str) -> Callable[[_T], _T]:
    """Class decorator: make a component known as `name` among the parts of this kind."""
    if kind not in _PARTS:
        raise unknown("kind of part", kind, _PARTS)

    def add(part: _T) -> _T:
        known = _PARTS[kind].get(name, part)
        if _home(known) != _home(part):  # the same home twice is a module that was imported again
            raise UserError(
                f"Two parts are registered as {kind} {name!r}: {_home(known)} and {_home(part)}. "
                "Give one of them another name."
            )
        part.name, part.kind = name, kind
        _PARTS[kind][name] = part
        return part

    return add


def discover(kind: str) -> dict[str, type[Component]]:
    """All parts of a kind, by name."""
    for name in HOMES[kind]:
        home = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
            importlib.import_module(f"{home.__name__}.{module.name}")
    _load_announced(os.environ.get(VARIABLE, ""))
    return dict(sorted(_PARTS[kind].items()))


def get(kind: str, name: str) -> type[Component]:
    """The part of that name, or an error with the nearest name."""
    parts = discover(kind)
    if name not in parts:
        nearest = unknown(kind.replace("_", " "), name, parts)
        raise UserError(f"{nearest} A file of your own is loaded by {VARIABLE}=FILE.py.")
    return parts[name]


def _home(part: type[Component]) -> str:
    return f"{part.__module__}.{part.__qualname__}"


@cache
def _load_announced(named: str) -> None:
    """Import the modules that other packages announce and those that `named` lists; once, unless one fails."""
    loads: list[tuple[str, Callable[[], Any]]] = [
        (f"The entry point {point.name} = {point.value} of {GROUP}", point.load) for point in entry_points(group=GROUP)
    ]
    given = [name.strip() for name in named.split(",") if name.strip()]
    loads += [(f"{name!r}, which {VARIABLE} names,", partial(_load, name)) for name in given]
    for what, load in loads:
        try:
            load()
        except Exception as error:  # somebody else's code can raise anything
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{what} cannot be loaded: {reason}") from error


def _load(given: str) -> None:
    """Import a module by its name, or a .py file as the module of its name."""
    if not given.endswith(".py"):
        try:
            importlib.import_module(given)
        except ModuleNotFoundError as error:
            if error.name != given:
                raise
            raise UserError(f"{error}. A file is named by its path, which ends in .py.") from error
        return
    path = Path(given).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}. Give its path from here, or the whole path.")
    # Through sys.path, which loader workers inherit however they are started: they have to find the file too.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    found = getattr(importlib.import_module(path.stem), "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise UserError(f"Python takes another module for {path.stem!r}: {found}. Give the file another name.")
