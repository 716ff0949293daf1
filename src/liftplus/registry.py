"""Parts by name: every tuner, loss, head, initialisation and augmentation registers itself here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from liftplus.errors import unknown

# Where the members of each kind live: a module, or a folder whose modules are all imported.
HOMES = {
    "tuner": "liftplus.tuners",
    "head": "liftplus.heads",
    "head_init": "liftplus.head_init",
    "loss": "liftplus.losses",
    "augment": "liftplus.data.transforms",
}


class Component(BaseModel):
    """A part that is its own configuration: frozen fields, no work in the constructor."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""


_T = TypeVar("_T", bound=type[Component])
_PARTS: dict[str, dict[str, type[Component]]] = {kind: {} for kind in HOMES}


def register(kind: str, name: str) -> Callable[[_T], _T]:
    """Class decorator: make a component known as `name` among the parts of this kind."""

    def add(part: _T) -> _T:
        part.name, part.kind = name, kind
        _PARTS[kind][name] = part
        return part

    return add


def discover(kind: str) -> dict[str, type[Component]]:
    """All parts of a kind, by name."""
    home = importlib.import_module(HOMES[kind])
    for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
        importlib.import_module(f"{home.__name__}.{module.name}")
    return dict(sorted(_PARTS[kind].items()))


def get(kind: str, name: str) -> type[Component]:
    """The part of that name, or an error with the nearest name."""
    parts = discover(kind)
    if name not in parts:
        raise unknown(kind.replace("_", " "), name, parts)
    return parts[name]
