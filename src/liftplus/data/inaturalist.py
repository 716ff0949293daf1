"""iNaturalist's own JSON annotations, as the 2018 competition published them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from liftplus.data import documents, hierarchy
from liftplus.data.dataset import Levels, Table, listing, sorted_ids
from liftplus.data.lists import normal
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

LEVELS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
"""Taxonomy levels, the highest first."""
SAID = ("name", "supercategory", *LEVELS)
"""What is read of a category, beside its id and its frequency; each is one value."""

Rows = Callable[[dict[str, Any], Path], list[tuple[str, str]]]
"""A function from an annotation file to its (key, category id) pairs."""


def read(
    paths: Mapping[str, Path],
    level: str | None = None,
    asked: Collection[str] = ("train",),
    rows_of: Rows | None = None,
) -> Table:
    """The table of one annotation file a split; category ids stay the class ids.

    Args:
        paths: split to file.
        level: a taxonomy level whose names become the classes instead. A `categories.json` beside the training file
            is read as well; its entries replace those of the annotations.
        asked: splits that must have annotations; any other split without them is left out (a competition's test file).
        rows_of: makes the rows; by default a row is a picture and its category.

    Raises:
        UserError: a file has another form, a category is not described, or it has no name at `level`.
    """
    documents = {split: _document(path) for split, path in paths.items()}
    bare = [split for split, document in documents.items() if split not in asked and not document.get("annotations")]
    notes = tuple(f"{paths[split].name} has no annotations, so it was left out." for split in bare)
    documents = {split: document for split, document in documents.items() if split not in bare}
    rows = {split: (rows_of or _rows)(document, paths[split]) for split, document in documents.items()}
    used = {label for pairs in rows.values() for _, label in pairs}
    extra = paths["train"].with_name("categories.json")
    published = _categories(_json(extra), extra) if os.path.isfile(extra) else {}
    described = {paths[split]: _categories(one.get("categories", []), paths[split]) for split, one in documents.items()}
    categories = _joined(described, used - set(published)) | published
    unknown = sorted_ids(used - set(categories))
    if unknown:
        raise UserError(f"{paths['train']} has annotations of category {unknown[0]!r}, but no such category; add it.")
    notes += (*_without_class(documents, paths), *_without_pictures(documents, used))
    if level is None:
        names = {label: _name(categories[label], label) for label in used}
        levels = _levels(categories, LEVELS[:-1], used)
        return Table(rows, sorted_ids(used), names, notes, _frequency(categories, used), levels)
    table = _at_level(rows, categories, level, paths["train"])
    return replace(table, notes=(*notes, *table.notes))


def _joined(files: Mapping[Path, Mapping[str, dict[str, Any]]], used: Collection[str]) -> dict[str, dict[str, Any]]:
    """The categories of several files as one: what one file leaves out of a category, another may say.

    Raises:
        UserError: two files say different things of a category that is used.
    """
    whole: dict[str, dict[str, Any]] = {}
    source: dict[tuple[str, str], Path] = {}
    for path, categories in files.items():
        for label, entry in categories.items():
            own = whole.setdefault(label, {})
            for key, value in entry.items():
                if not _text(own.get(key)):
                    own[key], source[label, key] = value, path
                elif key in SAID and label in used and _text(value) and not _agree(own[key], value):
                    raise UserError(
                        f"{source[label, key]} gives category {label} ({_name(own, label)!r}) the {key} {own[key]!r}, "
                        f"and {path} gives it {value!r}. Correct one of the files."
                    )
    return whole


def _without_class(documents: Mapping[str, dict[str, Any]], paths: Mapping[str, Path]) -> tuple[str, ...]:
    """A note for each file that has pictures without annotations."""
    notes: tuple[str, ...] = ()
    for split, document in documents.items():
        named = {note["image_id"] for note in document["annotations"]}
        bare = [str(image.get("file_name", image["id"])) for image in document["images"] if image["id"] not in named]
        if bare:
            notes += (
                f"{counted(len(bare), 'picture')} of {paths[split].name} {agreeing(len(bare), 'has', 'have')} no "
                f"annotation: {listing(bare, 3)}.",
            )
    return notes


def _without_pictures(documents: Mapping[str, dict[str, Any]], used: set[str]) -> tuple[str, ...]:
    """A note on categories that are described beside the pictures and have none."""
    described = {
        str(entry["id"]): _name(entry, str(entry["id"]))
        for document in documents.values()
        for entry in document.get("categories", [])
    }
    idle = [described[label] for label in sorted_ids(described.keys() - used)]
    if not idle:
        return ()
    has, classes = agreeing(len(idle), "has", "have"), agreeing(len(idle), "is no class", "are no classes")
    return (f"{len(idle):,} of {len(described):,} categories {has} no annotation and {classes}: {listing(idle)}.",)


FREQUENCY = {"f": "frequent", "c": "common", "r": "rare"}
"""LVIS's groups of classes: over 100 training images, 11 to 100, and at most 10 (Gupta et al. 2019)."""


def _frequency(categories: Mapping[str, dict[str, Any]], used: set[str]) -> dict[str, str]:
    """The group of each class; empty unless the file gives one for every class."""
    groups = {label: FREQUENCY.get(str(categories[label].get("frequency")), "") for label in used}
    return groups if all(groups.values()) else {}


def _levels(categories: Mapping[str, dict[str, Any]], above: tuple[str, ...], used: set[str]) -> Levels:
    """The levels that the categories say something of, without those that no category has."""
    said = [level for level in above if any(_text(categories[label].get(level)) for label in used)]
    found: dict[str, Mapping[str, str]] = {}
    for level in said or ["supercategory"]:
        group = {label: _text(entry.get(level)) for label, entry in categories.items()}
        if level in LEVELS:
            group, _ = _distinguished(group, categories, level, used)
        found[level] = {label: group[label] for label in used if group[label]}
    return {level: groups for level, groups in found.items() if groups}


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
    class_of, notes = _distinguished(group, categories, level, used)
    grouped = {split: [(name, class_of[label]) for name, label in pairs] for split, pairs in rows.items()}
    classes = sorted_ids({class_of[label] for label in used})
    levels = {
        above: {class_of[label]: name for label, name in groups.items()}
        for above, groups in _levels(categories, LEVELS[: LEVELS.index(level)], used).items()
        if above in LEVELS
    }
    return Table(grouped, classes, {name: name for name in classes}, notes, levels=levels)


def _distinguished(
    group: Mapping[str, str], categories: Mapping[str, dict[str, Any]], level: str, used: set[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The class of each category; equal names under different parents get the parent in brackets."""
    above = LEVELS[: LEVELS.index(level)]
    parents: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for label, name in group.items():
        path = tuple(_text(categories[label].get(key)) for key in above)
        parents.setdefault(name, {}).setdefault(path, []).append(label)
    classes = dict(group)
    renamed: list[str] = []
    for name, paths in parents.items():
        if len(paths) == 1 or not name:
            continue
        # The nearest level at which all of them differ; the whole path where there is none.
        nearest = next(
            (k for k in range(len(above) - 1, -1, -1) if len({path[k] for path in paths}) == len(paths)), None
        )
        for path, labels in paths.items():
            own = path[nearest] if nearest is not None else ", ".join(filter(None, path))
            for label in labels:
                classes[label] = f"{name} ({own or 'unknown'})"
                if label in used and classes[label] not in renamed:
                    renamed.append(classes[label])
    if not renamed:
        return classes, ()
    return classes, (f"Names with several parents at level {level} got the parent added: {listing(renamed)}.",)


def _text(value: Any) -> str:
    """A value as text; "" where it is missing."""
    return "" if value is None else str(value).strip()


def _rows(document: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    try:
        names = {image["id"]: str(image["file_name"]) for image in document["images"]}
        if len(names) < len(document["images"]):
            raise UserError(f"{path} has several images of one id; give each its own.")
        return [(normal(names[note["image_id"]]), str(note["category_id"])) for note in document["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not in iNaturalist's form: {type(error).__name__} at {error}; it needs images (id, file_name) "
            "and annotations (image_id, category_id) that refer to them. Other forms are a list of rows with path and "
            "label, and a map of path to label."
        ) from error


def _categories(entries: Any, path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    try:
        for entry in entries:
            label = str(entry["id"])
            for key in SAID:
                value = entry.get(key)
                if isinstance(value, list | dict):
                    raise UserError(
                        f"{path} gives category {label} the {key} {str(value)[:60]}. A category has one {key} here. "
                        "Give it as text."
                    )
                if label in found and not _agree(found[label].get(key), value):
                    raise UserError(
                        f"{path} describes category {label} twice: its {key} is {found[label].get(key)!r} and "
                        f"{value!r}. Keep one of the entries."
                    )
            found[label] = entry
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not in iNaturalist's form: every category needs an id.") from error
    return found


def _agree(one: Any, other: Any) -> bool:
    """Whether two values say the same, but for how it is written."""
    return hierarchy.form(_text(one)) == hierarchy.form(_text(other))


def _name(entry: dict[str, Any], label: str) -> str:
    return str(entry.get("name") or label)


def _document(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not in iNaturalist's form: it must hold images, annotations and categories.")
    return content


def _json(path: Path) -> Any:
    return documents.json_value(documents.text(path, "file"), path)
