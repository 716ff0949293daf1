"""What `info` prints about a model: its parameters, shapes, memory and settings."""

from __future__ import annotations

import json
import shlex
from typing import Any

from liftplus import config as configs
from liftplus import console, registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.data import sources
from liftplus.model.classifier import Classifier
from liftplus.training import memory
from liftplus.tuners.base import Tuner
from liftplus.words import counted

CLASSES = 1000  # assumed if neither num_classes nor data are given


def planned(config: configs.RunConfig, classes: int) -> tuple[Classifier, list[str]]:
    """The model without its weights, to count parameters, and the names of the tuners that fit its backbone."""
    return memory.unloaded(config, classes), fitting(catalogue.without_weights(config.backbone))


def fitting(backbone: Backbone) -> list[str]:
    """Names of the tuners that fit a backbone: it has the sites they need."""
    tuners = registry.discover("tuner")
    return [name for name, part in tuners.items() if issubclass(part, Tuner) and part().fits(backbone)]


def model(
    backbone: str, method: str, data: str | None, overrides: list[str], as_json: bool, with_memory: bool = False
) -> None:
    """Print parameters by part, shapes and the resolved configuration."""
    config = configs.resolve(data=data, backbone=backbone, method=method, overrides=overrides)
    classes = config.data.num_classes or (sources.load(config.data).num_classes if data else CLASSES)
    built, fits = planned(config, classes)
    shapes = {name: list(p.shape) for part in ("tuned", "head") for name, p in built.partition()[part].items()}
    about = {
        "backbone": backbone,
        "method": method,
        "classes": classes,
        "parameters": built.count(),
        "image_size": built.backbone.facts.image_size,
        "feature_width": built.backbone.dim,
        "blocks": built.backbone.depth,
        "tuners_that_fit": fits,
        "shapes": shapes,
        "config": config.to_dict(),
    }
    if with_memory:
        about["memory"] = _memory(config, classes)
    if as_json:
        print(json.dumps(about, indent=2))
        return
    _show_model(about)


def _show_model(about: dict[str, Any]) -> None:
    counts = about["parameters"]
    console.out.print(
        f"{about['backbone']} at {about['image_size']} px: {counted(about['blocks'], 'block')}, features of width "
        f"{about['feature_width']}. Method {about['method']}, {about['classes']:,} classes.",
    )
    parts = [("frozen", counts["frozen"]), ("tuner", counts["tuned"]), ("head", counts["head"])]
    console.table("Parameters", ("part", "number"), parts)
    first: dict[str, list[tuple[str, list[int]]]] = {}
    for name, shape in about["shapes"].items():
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        first.setdefault(pattern, []).append((name, shape))
    console.table(
        "Trained tensors",
        ("name", "tensors", "shape"),
        [(pattern, len(found), " x ".join(map(str, found[0][1]))) for pattern, found in first.items()],
    )
    if "memory" in about:
        _show_memory(about["memory"])
    console.out.print(f"Tuners that fit: {', '.join(about['tuners_that_fit'])}")
    console.out.print("Settings; change any by adding key=value to the command:")
    for line in settings(configs.from_dict(configs.saved(about["config"]))):
        console.out.print(f"  {line}")


def settings(config: configs.RunConfig) -> list[str]:
    """All settings quoted for a shell, one line per section. Settings without a value are left out."""
    sections: dict[str, list[str]] = {}
    for key, value in configs.flat(config).items():
        section, _, own = key.partition(".")
        if section == "tuner":
            sections.setdefault("tuner", [f"tuner={'+'.join(config.tuner) or 'none'}"])
        if value in (None, "", [], {}) or key == "method":
            continue
        name = section if own == "name" and section in configs.PARTS else key
        text = value if isinstance(value, str) else json.dumps(value)
        sections.setdefault(section if own else "", []).append(shlex.quote(f"{name}={text}"))
    return [" ".join(pairs) for pairs in sections.values()]


def _memory(config: configs.RunConfig, classes: int) -> dict[str, Any] | None:
    """The table of predicted memory; None for a model that cannot run on tensors without data."""
    try:
        return memory.table(config, classes)
    except RuntimeError:
        return None


def _show_memory(need: dict[str, Any] | None) -> None:
    if need is None:
        console.out.print("Memory: no prediction, because this model cannot run on tensors without data.")
        return

    def size(number: int) -> float:
        return (number + need["overhead"]) / 1e9

    where = "GPU" if need["device"] == "cuda" else "CPU"
    console.table(
        f"Predicted memory of a training step on a {where} in {need['precision']}",
        ("images at a time", "GB", "GB with grad_checkpointing=true"),
        [(row["images"], size(row["plain"]), size(row["grad_checkpointing"])) for row in need["training"]],
    )
    test, most = need["testing"], need.get("largest_here")
    console.out.print(f"Testing with evaluation.batch_size={test['images']}: {size(test['bytes']):.1f} GB.")
    if most is not None:
        console.out.print(
            f"At most {counted(most['plain'], 'image at a time fits', 'images at a time fit')} into this GPU's free "
            f"memory; with grad_checkpointing=true, {most['grad_checkpointing']:,}."
        )
