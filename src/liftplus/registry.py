"""The registry of parts: every tuner, head, initialisation, loss, sampler and augmentation registers here by name.

Parts come from three places (docs/add-a-tuner.md): this package; packages with modules in the entry-point group
`liftplus.parts`; and the modules and files in the environment variable LIFTPLUS_PARTS, separated by commas.
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

# The modules that define the parts of each kind. If a module is a package, all its modules are imported.
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
    """A part, which is also its own configuration: its fields are frozen, and its constructor does no work."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""


_T = TypeVar("_T", bound=type[Component])
_PARTS: dict[str, dict[str, type[Component]]] = {kind: {} for kind in HOMES}


def register(kind: str, name: str) -> Callable[[_T], _T]:
    """Class decorator that registers a component as `name` among the parts of this kind.

    Raises:
        UserError: there is no such kind, or another part has this name.
    """
    if kind not in _PARTS:
        raise unknown("kind of part", kind, _PARTS)

    def add(part: _T) -> _T:
        known = _PARTS[kind].get(name, part)
        if _home(known) != _home(part):  # a module may be imported twice
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
    """The part with this name.

    Raises:
        UserError: there is none; the message names the most similar one.
    """
    parts = discover(kind)
    if name not in parts:
        nearest = unknown(kind.replace("_", " "), name, parts)
        raise UserError(f"{nearest} To load a part from your own file, set {VARIABLE}=FILE.py.")
    return parts[name]


def _home(part: type[Component]) -> str:
    return f"{part.__module__}.{part.__qualname__}"


@cache
def _load_announced(named: str) -> None:
    """Import the entry points of other packages and the modules in `named`, once. A failed import is tried again."""
    loads: list[tuple[str, Callable[[], Any]]] = [
        (f"The entry point {point.name} = {point.value} of {GROUP}", point.load) for point in entry_points(group=GROUP)
    ]
    given = [name.strip() for name in named.split(",") if name.strip()]
    loads += [(f"{name!r}, which {VARIABLE} names,", partial(_load, name)) for name in given]
    for what, load in loads:
        try:
            load()
        except Exception as error:  # foreign code can raise anything
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{what} cannot be loaded: {reason}") from error


def _load(given: str) -> None:
    """Import a module by its name, or a .py file by its path."""
    if not given.endswith(".py"):
        try:
            importlib.import_module(given)
        except ModuleNotFoundError as error:
            if error.name != given:
                raise
            raise UserError(f"{error}. To load a file, give its path, which ends in .py.") from error
        return
    path = Path(given).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}. Give its path relative to this folder, or its absolute path.")
    # Loader workers must find the file too, and they inherit sys.path however they are started.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    found = getattr(importlib.import_module(path.stem), "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise UserError(f"Python finds another module named {path.stem!r}: {found}. Rename the file.")
