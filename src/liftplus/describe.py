"""What `info` and `data inspect` tell: the parts there are, a model's parameters, a data set's shape."""

from __future__ import annotations

import json
import shlex
from typing import Any

from liftplus import config as configs
from liftplus import console, registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.data import inspection, sources
from liftplus.data.dataset import DataSet, listing
from liftplus.evaluation.metrics import FEW_UNDER, MANY_OVER
from liftplus.model.classifier import Classifier
from liftplus.training import memory
from liftplus.tuners.base import Tuner
from liftplus.words import counted

ROWS, FAULTS = 40, 5  # classes and faults that are shown of very many
CLASSES = 1000  # to plan for where neither num_classes nor data are given


def planned(config: configs.RunConfig, classes: int) -> tuple[Classifier, list[str]]:
    """The model with no weights behind it, to count parameters, and the tuners that its backbone could take."""
    return memory.unloaded(config, classes), fitting(catalogue.without_weights(config.backbone))


def fitting(backbone: Backbone) -> list[str]:
    """Names of the tuners whose sites the backbone has."""
    tuners = registry.discover("tuner")
    return [name for name, part in tuners.items() if issubclass(part, Tuner) and part().fits(backbone)]


def model(
    backbone: str, method: str, data: str | None, overrides: list[str], as_json: bool, with_memory: bool = False
) -> None:
    """Parameters by part, shapes and the resolved configuration."""
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
    """All settings as a shell takes them, a line for each section; those without a value are left out."""
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
    """The table of predicted memory; None for a model that cannot be run without contents."""
    try:
        return memory.table(config, classes)
    except RuntimeError:
        return None


def _show_memory(need: dict[str, Any] | None) -> None:
    if need is None:
        console.out.print("Memory: no prediction, as this model cannot be run without contents.")
        return

    def size(number: int) -> float:
        return (number + need["overhead"]) / 1e9

    where = "GPU" if need["device"] == "cuda" else "CPU"
    console.table(
        f"Memory of a training step on a {where} in {need['precision']}, by prediction",
        ("images at a time", "GB", "GB with grad_checkpointing=true"),
        [(row["images"], size(row["plain"]), size(row["grad_checkpointing"])) for row in need["training"]],
    )
    test, most = need["testing"], need.get("largest_here")
    console.out.print(f"Testing with evaluation.batch_size={test['images']}: {size(test['bytes']):.1f} GB.")
    if most is not None:
        console.out.print(
            f"At most {counted(most['plain'], 'image at a time fits', 'images at a time fit')} into this GPU's free "
            f"memory, {most['grad_checkpointing']:,} with grad_checkpointing=true."
        )


def data(source: str, files: bool, overrides: list[str], as_json: bool) -> None:
    """Counts, groups, doubtful classes and files of a data set."""
    config = configs.resolve(data=source, overrides=overrides)
    dataset = sources.load(config.data)
    found = inspect_with_bar(dataset, files)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    _show_data(found)


def inspect_with_bar(dataset: DataSet, files: bool) -> inspection.Inspection:
    """Inspect with a progress bar over the files."""
    total = sum(len(split) for split in dataset.splits.values()) if files else 0
    with console.Bars().task("Reading files", max(1, total)) as advance:
        return inspection.inspect(dataset, check_files=files, progress=lambda done, total: advance())


def _show_data(found: inspection.Inspection) -> None:
    images = ", ".join(f"{count:,} {split}" for split, count in found.totals.items())
    console.out.print(f"{found.name}: {len(found.class_names):,} classes, {images} images")
    if found.imbalance_ratio is not None:
        console.out.print(f"imbalance ratio: {console.figure(found.imbalance_ratio)}")
    bounds = {"many": f" (over {MANY_OVER} training images)", "few": f" (under {FEW_UNDER})"}
    groups = ", ".join(f"{name}{bounds.get(name, '')} {len(group):,}" for name, group in found.groups.items())
    console.out.print(f"classes by group: {groups}")
    _show_counts(found)
    names = found.class_names
    for what, classes in (("training", found.without_training), ("test", found.absent_from_test)):
        if classes:
            console.out.print(f"classes without {what} images: {listing([names[k] for k in classes])}")
    for side, spread in (("widths", found.widths), ("heights", found.heights)):
        if spread is not None:
            console.out.print(f"{side}: {spread[0]:,} to {spread[2]:,}, median {spread[1]:,}")
    if found.modes:
        modes = ", ".join(f"{mode} {count:,}" for mode, count in found.modes.items())
        console.out.print(f"colour modes: {modes}")
    _show_faults(found)
    for note in found.notes:
        console.out.print(f"Note: {note}")


def _show_counts(found: inspection.Inspection) -> None:
    """A table of class, train, val and test by count; of very many classes the largest and the smallest."""
    splits = list(found.counts)
    order = sorted(range(len(found.class_names)), key=lambda k: [-found.counts[split][k] for split in splits])
    rows = [(found.class_names[k], *(found.counts[split][k] for split in splits)) for k in order]
    if len(rows) > ROWS:
        left_out = f"… {len(rows) - ROWS:,} more; all with --json"
        rows = [*rows[: ROWS // 2], (left_out, *("" for _ in splits)), *rows[-ROWS // 2 :]]
    console.table("Images", ("class", *splits), rows)


def _show_faults(found: inspection.Inspection) -> None:
    """Doubles and files that cannot be read, the first of each kind."""
    if found.duplicates:
        console.out.print(
            f"equal files: {counted(len(found.duplicates), 'group')}, {len(found.leaks):,} across splits, "
            f"{len(found.conflicts):,} with different labels"
        )
    shown = {id(twin): twin for twin in (*found.conflicts, *found.leaks, *found.duplicates)}
    for twin in list(shown.values())[:FAULTS]:
        places = [f"{place.split} {found.class_names[place.label]!r} {place.key}" for place in twin.places]
        console.out.print(f"  {'; '.join(places[:4])}{' …' if len(places) > 4 else ''}")
    if found.unreadable:
        console.out.print(f"files that cannot be read: {len(found.unreadable):,}")
    for broken in found.unreadable[:FAULTS]:
        console.out.print(f"  {broken.reason}")
