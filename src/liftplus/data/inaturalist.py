"""iNaturalist's own JSON annotations, as the 2018 competition published them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from liftplus.data import documents
from liftplus.data.dataset import Table, sorted_ids
from liftplus.data.lists import normal
from liftplus.errors import UserError


def read(paths: Mapping[str, Path], level: str | None = None, asked: Collection[str] = ("train",)) -> Table:
    """The table of one annotation file a split; category ids stay the class ids.

    Args:
        paths: split to file.
        level: a taxonomy level whose names become the classes instead; a `categories.json` beside the
            training file is asked where the annotations do not hold it.
        asked: splits that must have annotations; others are left out without them, as a competition's test file is.
    """
    documents = {split: _document(path) for split, path in paths.items()}
    bare = [split for split, document in documents.items() if split not in asked and not document.get("annotations")]
    notes = tuple(f"{paths[split].name} has no annotations, so it was left out." for split in bare)
    documents = {split: document for split, document in documents.items() if split not in bare}
    categories: dict[str, dict[str, Any]] = {}
    for split, document in documents.items():
        categories.update(_categories(document.get("categories", []), paths[split]))
    extra = paths["train"].with_name("categories.json")
    if os.path.isfile(extra):
        categories.update(_categories(_json(extra), extra))
    rows = {split: _rows(document, paths[split]) for split, document in documents.items()}
    used = {label for pairs in rows.values() for _, label in pairs}
    unknown = sorted_ids(used - set(categories))
    if unknown:
        raise UserError(f"{paths['train']} has annotations of category {unknown[0]!r}, which it does not describe.")
    if level is None:
        return Table(rows, sorted_ids(used), {label: _name(categories[label], label) for label in used}, notes)
    return dataclasses.replace(_at_level(rows, categories, level, paths["train"]), notes=notes)


def _at_level(
    rows: Mapping[str, list[tuple[str, str]]], categories: Mapping[str, dict[str, Any]], level: str, path: Path
) -> Table:
    key = level if any(level in entry for entry in categories.values()) else "name" if level == "species" else level
    group = {label: str(entry.get(key, "")).strip() for label, entry in categories.items()}
    used = {label for pairs in rows.values() for _, label in pairs}
    absent = sorted_ids(label for label in used if not group[label])
    if absent:
        raise UserError(
            f"{path} does not say the {level} of category {absent[0]!r}; put the published categories.json with "
            "the taxonomy beside it, or leave data.level out."
        )
    grouped = {split: [(name, group[label]) for name, label in pairs] for split, pairs in rows.items()}
    classes = sorted_ids({group[label] for label in used})
    return Table(grouped, classes, {name: name for name in classes})


def _rows(document: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    try:
        names = {image["id"]: str(image["file_name"]) for image in document["images"]}
        if len(names) < len(document["images"]):
            raise UserError(f"{path} has several images of one id; give each its own.")
        return [(normal(names[note["image_id"]]), str(note["category_id"])) for note in document["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not in iNaturalist's form: {type(error).__name__} at {error}; it needs images (id, file_name) "
            "and annotations (image_id, category_id) that refer to them."
        ) from error


def _categories(entries: Any, path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {str(entry["id"]): entry for entry in entries}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not in iNaturalist's form: every category needs an id.") from error


def _name(entry: dict[str, Any], label: str) -> str:
    return str(entry.get("name") or label)


def _document(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not in iNaturalist's form: it must hold images, annotations and categories.")
    return content


def _json(path: Path) -> Any:
    return documents.json_value(documents.text(path, "file"), path)
