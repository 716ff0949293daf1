"""One run as frozen configurations: presets first, then key=value, all mistakes reported at once."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from liftplus import registry
from liftplus.backbones.base import BackboneConfig
from liftplus.data.config import DataConfig
from liftplus.data.transforms import MDA, Augment, Evaluation
from liftplus.errors import UserError, unknown
from liftplus.head_init import HeadInit, Semantic
from liftplus.heads import Cosine, Head
from liftplus.losses import LogitAdjusted, Loss
from liftplus.registry import Component
from liftplus.tuners.base import Tuner


def _part(kind: str) -> Any:
    """Parse "focal" or {"name": "focal", "gamma": 1} into the registered component of that kind."""

    def parse(value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        options = {key: item for key, item in value.items() if key != "name"}
        return registry.get(kind, str(value.get("name")))(**options)

    return BeforeValidator(parse)


def _tuners(value: Any) -> Any:
    """Parse "none", "lora+ssf" or {"lora": {"rank": 4}} into components by name."""
    if isinstance(value, str):
        value = {name: {} for name in value.split("+") if name != "none"}
    if isinstance(value, dict):
        return {
            name: item if isinstance(item, Component) else registry.get("tuner", name)(**item)
            for name, item in value.items()
        }
    return value


class TrainConfig(BaseModel):
    """The training run: the `train.*` keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    epochs: int = Field(default=5, ge=0)
    """Passes over the training images."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate at the start."""
    batch_size: int = Field(default=128, ge=1)
    """Images an optimiser step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images a forward pass, where memory is short. Exact for losses that are a mean over images; the weighted ones
    (class_balanced, reweight) and lade take each piece for a batch."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay on all tuned and head weights."""
    schedule: Literal["epoch", "step"] = "epoch"
    """Cosine decay of the learning rate stepped by epoch (as in the papers) or by step."""
    workers: int | None = Field(default=None, ge=0)
    """Loader processes; by default by the number of cores."""


class RunConfig(BaseModel):
    """Everything that defines a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    method: str = "lift+"
    """The preset that the run started from."""
    seed: int = Field(default=0, ge=0, lt=2**32 - 1)
    """Seed of weights, order and crops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of matrix products; auto takes bf16 where the device computes in it."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    tuner: Annotated[dict[str, SerializeAsAny[Tuner]], BeforeValidator(_tuners)] = {}
    head: Annotated[SerializeAsAny[Head], _part("head")] = Cosine()
    head_init: Annotated[SerializeAsAny[HeadInit], _part("head_init")] = Semantic()
    augment: Annotated[SerializeAsAny[Augment], _part("augment")] = MDA()
    loss: Annotated[SerializeAsAny[Loss], _part("loss")] = LogitAdjusted()
    train: TrainConfig = TrainConfig()
    evaluation: Evaluation = Evaluation()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back; components carry their name."""
        out = self.model_dump(mode="json")
        for key in PARTS:
            out[key] = {"name": getattr(self, key).name} | out[key]
        return out


PARTS = ("head", "head_init", "augment", "loss")


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Validate plain values; every mistake is listed in one error."""
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    given = item.get("input")
    return f"{where} = {given!r} is not allowed: {item['msg'].lower()}."


def presets(kind: str) -> dict[str, dict[str, Any]]:
    """The table of presets of one kind: "methods", "backbones" or "data"."""
    return tomllib.loads((files("liftplus") / "presets" / f"{kind}.toml").read_text(encoding="utf-8"))


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a component given by name replaces the whole component."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def resolve(
    *, data: str | None = None, backbone: str | None = None, method: str = "lift+", overrides: Sequence[str] = ()
) -> RunConfig:
    """A run from names and key=value pairs.

    Args:
        data: a data set's name or path.
        backbone: a name from the catalogue.
        method: a name from presets/methods.toml.
        overrides: "section.key=value", or "key=value" where only one section has that key.
    """
    methods = presets("methods")
    if method not in methods:
        raise unknown("method", method, methods)
    rest = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "method":
            return resolve(
                data=data, backbone=backbone, method=value, overrides=[o for o in overrides if o != override]
            )
        if key == "backbone.name":
            backbone = value
        elif key == "data.source":
            data = value
        else:
            rest.append(override)
    values = RunConfig(method=method).to_dict()
    if data is not None:
        values["data"]["source"] = data
    if backbone is not None:
        values["backbone"]["name"] = backbone
    chosen = {key: value for key, value in methods[method].items() if key not in ("summary", "expected")}
    for change in (
        presets("backbones").get(values["backbone"]["name"], {}).get("defaults", {}),
        chosen,
        presets("data").get(data or "", {}).get(method, {}),
    ):
        values = _merge(values, change)
    return changed(from_dict(values).to_dict(), rest)


def changed(values: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A configuration as plain values with key=value pairs applied in order."""
    for override in overrides:
        values = _override(values, override)
    return from_dict(values)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "name" or prefix == "backbone.":
            yield prefix + key


def _full_key(values: dict[str, Any], key: str) -> str:
    """The dotted key that a user's short form stands for."""
    leaves = list(_leaves(values))
    if key in values or key in leaves:
        return key
    matches = [leaf for leaf in leaves if leaf.split(".")[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"The key {key!r} is ambiguous; write one of {', '.join(matches)}.")
    names = [*leaves, *(leaf.split(".")[-1] for leaf in leaves)]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"Unknown key {key!r}.{hint} Known keys: {', '.join(leaves)}.")


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form key=value, for example epochs=10.")
    full = _full_key(values, key.strip())
    value = text.strip() if _is_text(from_dict(values), full) else _value(text.strip())
    if full == "tuner" or full in PARTS:
        # A swapped part starts from its own defaults, which later keys may change.
        return from_dict(values | {full: str(value)}).to_dict()
    if isinstance(values.get(full), dict):
        raise UserError(f"{full!r} is a section; set one of its keys: {', '.join(_leaves({full: values[full]}))}.")
    change: Any = value
    for part in reversed(full.split(".")):
        change = {part: change}
    return _merge(values, change)


def _is_text(run: RunConfig, key: str) -> bool:
    """Whether a key's value is text, which must not be read as a number or an object."""
    *parents, leaf = key.split(".")
    owner: Any = run
    for parent in parents:
        owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
    field = type(owner).model_fields.get(leaf) if isinstance(owner, BaseModel) else None
    return field is not None and field.annotation in (str, str | None)


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None, "none": "none"}.get(text, text)
