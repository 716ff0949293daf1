"""A configuration from the presets of data, backbone and method, and what the user writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from liftplus.backbones import catalogue
from liftplus.config.overrides import changed, full_key, merged, part_by_name
from liftplus.config.schema import PARTS, RunConfig, flat, from_dict
from liftplus.errors import UserError, unknown
from liftplus.names import presets

AUTOMATIC = (
    *("train.epochs", "train.batch_size", "train.lr", "train.schedule", "train.scale_rates", "train.go_back"),
    *("tuner.adaptformer.min_width", "tuner.adapter.min_width", "head_init"),
)
"""Settings that recipe=auto chooses where they are not given; `training/recipe.py` says how."""


def resolve(
    *,
    data: str | None = None,
    backbone: str | None = None,
    method: str = "lift+",
    overrides: Sequence[str] = (),
    recipe: str = "paper",
) -> RunConfig:
    """A run from names and key=value pairs.

    Args:
        data: a data set's name or path.
        backbone: a name from the catalogue.
        method: a name from presets/methods.toml.
        overrides: "section.key=value", or "key=value" where only one section has that key.
        recipe: auto or paper, where the overrides do not say it.
    """
    weights: str | None = None
    rest = []
    for override in overrides:
        key, equals, value = override.partition("=")
        match full_key(key) if equals else None:
            case "method":
                method = value.strip()
            case "backbone.name":
                backbone = value.strip()
            case "backbone.weights":
                weights = value.strip()
            case "data.source":
                data = value.strip()
            case "recipe":
                recipe = value.strip()
            case "automatic":
                raise UserError(
                    "automatic is not set by hand: give recipe=auto or recipe=paper, and values of your own."
                )
            case _:
                rest.append(override)
    automatic = AUTOMATIC if recipe == "auto" else ()
    values = _of_presets(data, backbone, weights, method) | {"recipe": recipe, "automatic": automatic}
    run = changed(from_dict(values).to_dict(), rest)
    known = {*flat(run), *PARTS} if run.train.epochs else set()
    if _settings(method).get("head_init") != "semantic" or run.head.name == "joint":
        known.discard("head_init")
    if run.train.minutes is not None and (recipe != "auto" or "train.epochs" not in run.automatic):
        raise UserError("train.minutes chooses the epochs: leave epochs out, and give recipe=auto.")
    return run.model_copy(update={"automatic": tuple(key for key in run.automatic if key in known)})


def published(run: RunConfig) -> RunConfig:
    """The settings of a run's data, backbone and method as their presets have them."""
    return from_dict(_of_presets(run.data.source, run.backbone.name, run.backbone.weights, run.method))


def _of_presets(data: str | None, backbone: str | None, weights: str | None, method: str) -> dict[str, Any]:
    """Settings from the presets of a method, data and backbone, with `stand_ins` in place.

    The weights are given, as they can decide which parts a backbone has a place for.
    """
    chosen = _settings(method)
    values = RunConfig(method=method).to_dict()
    if data is not None:
        values["data"]["source"] = data
    if backbone is not None:
        values["backbone"]["name"] = backbone
    values["backbone"]["weights"] = weights
    tower = presets("backbones").get(values["backbone"]["name"], {})
    for change in (
        tower.get("defaults", {}),
        chosen,
        tower.get("methods", {}).get(method, {}),
        presets("data").get(data or "", {}).get(method, {}),
    ):
        values = merged(values, change)
    values = from_dict(values).to_dict()
    return values | {kind: part_by_name(method, kind, name) for kind, name in stand_ins(values).items()}


def stand_ins(values: dict[str, Any]) -> dict[str, str]:
    """Parts that take the place of those a method asks for, where the backbone has nothing they could act on.

    Without a text tower the classifier starts from class means; where no block has an MLP beside its residual stream,
    AdaptFormer's place is taken by its convolutional counterpart, or by LoRA.
    """
    traits, out = catalogue.traits(values["backbone"]["name"], values["backbone"]["weights"]), {}
    pictured = {"semantic": "class_mean", "mix": "ridge"}
    if not traits.reads_text and values["head_init"]["name"] in pictured:
        out["head_init"] = pictured[values["head_init"]["name"]]
    if list(values["tuner"]) == ["adaptformer"] and "mlp" not in traits.kinds:
        out["tuner"] = "conv_adapter" if "map" in traits.kinds else "lora"
    return out


def replaced(run: RunConfig) -> list[str]:
    """A sentence for each part of the run's method that another one stands in for."""
    asked = from_dict(merged(run.to_dict(), _settings(run.method))).to_dict()
    have = {"head_init": run.head_init.name, "tuner": "+".join(run.tuner)}
    return [
        f"Method {run.method} asks for a {key} that {run.backbone.name!r} has no place for; {key}={part} stands in."
        for key, part in stand_ins(asked).items()
        if have[key] == part
    ]


def _settings(method: str) -> dict[str, Any]:
    """What a method changes in the defaults."""
    methods = presets("methods")
    if method not in methods:
        raise unknown("method", method, methods)
    return {key: value for key, value in methods[method].items() if key not in ("summary", "expected", "options")}
