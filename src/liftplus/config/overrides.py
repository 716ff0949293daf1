"""Apply the user's key=value words to a configuration: complete short keys, read values, change settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from liftplus import registry
from liftplus.config.schema import PARTS, RunConfig, from_dict
from liftplus.data.config import plain_value
from liftplus.errors import UserError
from liftplus.names import presets


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a component given by name replaces the whole component."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def changed(values: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A configuration as plain values with key=value pairs applied in order; what is given is no longer automatic."""
    for override in overrides:
        values = _override(values, override)
    run = from_dict(values)
    given = {_full_key(run, values, override.partition("=")[0].strip()) for override in overrides}
    given |= {key.partition(".")[0] for key in given if key.partition(".")[0] in PARTS}
    return run.model_copy(update={"automatic": tuple(key for key in run.automatic if key not in given)})


CHANGEABLE = (
    *("data", "evaluation", "backbone.weights", "backbone.grad_checkpointing", "train.workers"),
    *("device", "precision", "deterministic", "compile", "track", "cache"),
)
"""Keys and sections that a trained run does not depend on."""


def after_training(values: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A trained run's configuration, from plain values, with key=value words applied.

    Raises:
        UserError: a word changes what the training has fixed.
    """
    before = from_dict(values).to_dict()  # with the settings that the run's version did not know
    settings = changed(before, overrides)
    after = settings.to_dict()
    fixed = [key for key in _differing(before, after) if key not in CHANGEABLE]
    if fixed:
        raise UserError(
            f"{fixed[0]} belongs to the trained run and cannot be changed any more. Allowed are data.*, evaluation.*, "
            "device, precision, deterministic, compile, track, cache, train.workers, backbone.weights and "
            "backbone.grad_checkpointing."
        )
    return settings


def _differing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Names of parts and sections that differ; dotted keys for a section of which only some keys may change."""
    split = {key.partition(".")[0] for key in CHANGEABLE if "." in key}
    for key in after:
        if key == "automatic":  # what the recipe chose is fixed all the same
            continue
        if key in split:
            yield from (f"{key}.{leaf}" for leaf, value in after[key].items() if value != before[key][leaf])
        elif after[key] != before[key]:
            yield key


def _leaves(run: RunConfig, values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys that hold a value; `values` are the run's, below `prefix`."""
    for key, value in values.items():
        if isinstance(value, dict) and not _is_table(run, prefix + key):
            yield from _leaves(run, value, f"{prefix}{key}.")
        elif (key != "name" or prefix == "backbone.") and prefix + key != "automatic":
            yield prefix + key


def _full_key(run: RunConfig, values: dict[str, Any], key: str) -> str:
    """The dotted key that a user's short form stands for."""
    leaves = list(_leaves(run, values))
    if key in values or key in leaves:
        return key
    matches = [leaf for leaf in leaves if leaf.split(".")[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"The key {key!r} is ambiguous; write one of {', '.join(matches)}.")
    names = [*leaves, *(leaf.split(".")[-1] for leaf in leaves)]
    if not (near := difflib.get_close_matches(key, names, n=1, cutoff=0.5)):
        raise UserError(f"Unknown key {key!r}. Known keys: {', '.join(leaves)}.")
    section = next(leaf for leaf in leaves if near[0] in (leaf, leaf.split(".")[-1])).rpartition(".")[0]
    alike = [leaf for leaf in leaves if leaf.rpartition(".")[0] == section]
    raise UserError(f"Unknown key {key!r}. Did you mean {near[0]!r}? Keys of the same section: {', '.join(alike)}.")


def full_key(key: str) -> str:
    """The dotted key of a short one that every run knows; any other key unchanged."""
    key, run = key.strip(), RunConfig()
    try:
        return _full_key(run, run.to_dict(), key)
    except UserError:
        return key


def locate(run: RunConfig, key: str) -> tuple[str, bool]:
    """The dotted key that a user's short form stands for, and whether its value is text, which is not parsed."""
    full = _full_key(run, run.to_dict(), key)
    return full, _is_text(run, full)


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form key=value, for example epochs=10.")
    run = from_dict(values)
    full = _full_key(run, values, key.strip())
    value = text.strip() if _is_text(run, full) else plain_value(text.strip())
    if full == "tuner" or full in PARTS:
        # A swapped part starts from its own defaults, which later keys may change.
        return from_dict(values | {full: part_by_name(values["method"], full, str(value))}).to_dict()
    if isinstance(values.get(full), dict):
        keys = ", ".join(_leaves(run, values[full], f"{full}."))
        raise UserError(f"{full!r} is a section; set one of its keys: {keys}.")
    return placed(values, full.split("."), value)


def placed(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """`values` with the entry at this path replaced, also where it is a table."""
    key, *rest = path
    return values | {key: placed(values[key], rest, value) if rest else value}


def _field(run: RunConfig, key: str) -> FieldInfo | None:
    """The field that a dotted key names, None where it names an entry of a dict."""
    *parents, leaf = key.split(".")
    owner: Any = run
    for parent in parents:
        owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
    return type(owner).model_fields.get(leaf) if isinstance(owner, BaseModel) else None


def _is_text(run: RunConfig, key: str) -> bool:
    """Whether a key's value is text, which must not be read as a number or an object."""
    field = _field(run, key)
    return field is not None and field.annotation in (str, str | None)


def _is_table(run: RunConfig, key: str) -> bool:
    """Whether a key's value is a dict of numbers, which is set as a whole."""
    field = _field(run, key)
    annotation = field.annotation if field else None
    dicts = [choice for choice in (annotation, *get_args(annotation)) if get_origin(choice) is dict]
    items = [get_args(choice)[1] for choice in dicts]
    return any(item is float or get_args(item)[:1] == (float,) for item in items)


def part_by_name(method: str, kind: str, name: str) -> dict[str, Any]:
    """A part, or tuners joined by +, with the options that a method gives to any part of the kind that has them."""
    own = presets("methods").get(method, {}).get("options", {}).get(kind, {})
    names = [one for one in name.split("+") if one != "none"] if kind == "tuner" else [name]
    given = {
        one: {key: value for key, value in own.items() if key in registry.get(kind, one).model_fields} for one in names
    }
    return given if kind == "tuner" else {"name": name} | given[name]
