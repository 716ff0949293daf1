"""Match data with a trained run: pictures keep the run's splits, and labels are mapped to the run's classes."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from liftplus.data.dataset import DataSet, Split, listing
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.training.checkpoint import Trained
from liftplus.words import agreeing, counted

SPLITS = "splits.json"


def write_splits(folder: Path, dataset: DataSet) -> None:
    """Record each picture's split if liftplus drew the splits, so that they hold when the data grow."""
    (folder / SPLITS).unlink(missing_ok=True)  # an abandoned run may have left one
    if dataset.made:
        keys = {name: list(split.keys) for name, split in dataset.splits.items()}
        disk.write_json(folder / SPLITS, {"made": dataset.made, "splits": keys})


def keep_splits(run: Path, out: Path) -> None:
    """Copy the drawn splits of a run to the run that was made from it."""
    if (run / SPLITS).is_file():
        disk.write_json(out / SPLITS, disk.read_json(run / SPLITS))


def seen(keys: Sequence[str], folder: Path) -> str | None:
    """A warning if pictures of other data, by their keys, have the names of pictures that the run was trained on.

    Only runs whose splits liftplus drew record their pictures. The data of other runs have a test split of their own,
    so a test on a copy of them is sound.
    """
    if not (folder / SPLITS).is_file():
        return None
    kept = disk.read_json(folder / SPLITS, "splits")["splits"]
    trained = set(kept.get("train", ())) if isinstance(kept, dict) else set()
    same = sum(key in trained for key in keys)
    if not same:
        return None
    return (
        f"{counted(same, 'picture has', 'pictures have')} the same name as a training picture of the run. If the run's "
        "own data were moved, give data.source=PATH in place of --data. Then the pictures keep their splits."
    )


def same_data(data: str, source: str) -> bool:
    """Whether a path or name is the data that a run was trained on."""
    return data == source or (
        bool(source) and os.path.exists(source) and os.path.realpath(data) == os.path.realpath(source)
    )


def as_in_run(dataset: DataSet, folder: Path, needed: str) -> DataSet:
    """The run's own data. If liftplus drew its splits, each picture is in the split it had in the run.

    Pictures that were added after training are left out, because they belong to no split. Deleted pictures are not
    counted. Both cases add a note.

    Raises:
        UserError: the needed split has no picture left, or the record of splits is damaged.
    """
    path = folder / SPLITS
    if not path.is_file():
        return dataset
    kept = disk.read_json(path, "splits")["splits"]
    if not isinstance(kept, dict) or not all(isinstance(keys, list) for keys in kept.values()):
        raise UserError(f"{str(path)!r} is damaged. Restore it, or give the pictures to test with --data.")
    labels = {
        key: label for split in dataset.splits.values() for key, label in zip(split.keys, split.labels, strict=True)
    }
    splits = {name: [key for key in keys if key in labels] for name, keys in kept.items()}
    if kept.get(needed) and not splits[needed]:
        raise UserError(
            f"None of the {counted(len(kept[needed]), 'picture')} of the run's {needed} split, first "
            f"{kept[needed][0]!r}, is in {dataset.name!r} any more. Put them back, or test other pictures with --data."
        )
    return replace(
        dataset,
        splits={name: Split(keys, [labels[key] for key in keys]) for name, keys in splits.items() if keys},
        notes=(*(note for note in dataset.notes if "set aside" not in note), *_differences(labels, kept, splits)),
        made=(),
    )


def _differences(
    present: Mapping[str, int], kept: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]]
) -> list[str]:
    """Notes on added pictures and, by split, on missing ones."""
    notes = ["The splits are those of the run: each picture keeps its split."]
    if added := len(present.keys() - {key for keys in found.values() for key in keys}):
        notes.append(
            f"{counted(added, 'picture was', 'pictures were')} added after the run was trained and "
            f"{agreeing(added, 'is', 'are')} left out. To test new pictures, put them into a separate folder and give "
            "it with --data."
        )
    for name, keys in kept.items():
        if gone := len(keys) - len(found[name]):
            notes.append(
                f"{gone:,} of the {counted(len(keys), 'picture')} of the run's {name} split "
                f"{agreeing(gone, 'is', 'are')} gone or unreadable."
            )
    return notes


def id_of(label: Hashable, ids: Collection[str]) -> str:
    """The class id of a label. An id is a label as text. Labels that are equal share an id: 0 == 0.0 == False."""
    text = str(label)
    if text in ids or isinstance(label, str):
        return text
    return next((known for known in ids if (value := _number(known)) is not None and value == label), text)


def _number(class_id: str) -> float | None:
    """The number or boolean that a class id spells; None if it is neither."""
    if class_id in ("False", "True"):
        return class_id == "True"
    for read in (int, float):
        with suppress(ValueError):
            return read(class_id)
    return None


def one_form(name: str) -> str:
    """A key that is equal for names that differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def aligned(dataset: DataSet, split: str, trained: Trained) -> DataSet:
    """One split of the data with its labels mapped to the run's classes.

    A class matches if both id and name agree, else by name. If the data have no class names, it matches by id.

    Raises:
        UserError: the split does not exist, has a class the run does not know, or two of its classes match one.
    """
    if split not in dataset.splits:
        raise UserError(f"Data set {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    by_id = {unicodedata.normalize("NFC", class_id): k for k, class_id in enumerate(trained.class_ids)}
    in_memory = dataset.config is None
    names = [trained.former_names, trained.class_names]  # a present name wins over an equal former one
    by_name = {one_form(name): k for listed in names for k, name in enumerate(listed)}
    twins = {name for name, times in Counter(map(one_form, trained.class_names)).items() if times > 1}

    def place(class_id: str, name: str) -> int | None:
        number = _number(class_id) if in_memory and class_id not in by_id else None
        known = class_id if number is None else id_of(number, by_id)
        same, own = by_id.get(unicodedata.normalize("NFC", known)), one_form(name)
        borne = [one_form(listed[same]) for listed in names if listed] if same is not None else []
        if same is not None and (not dataset.named or own in borne):
            return same
        return None if own in twins else by_name.get(own)

    moved = [place(*pair) for pair in zip(dataset.class_ids, dataset.class_names, strict=True)]
    part = dataset.splits[split]
    used = sorted(set(part.labels))
    strange = [dataset.class_names[label] for label in used if moved[label] is None]
    if strange:
        raise UserError(
            f"Split {split!r} of {dataset.name!r} has classes that the run was not trained on: "
            f"{listing(strange)}. The run knows {counted(len(trained.class_names), 'class', 'classes')}"
            + (
                f": {listing(trained.class_names)}. Give labels that are among them."
                if in_memory
                else "; rename the folders, or map them with data.class_names=FILE."
            )
        )
    targets = Counter(moved[label] for label in used)
    if twice := [k for k, count in targets.items() if count > 1 and k is not None]:
        raise UserError(
            f"Two classes of {dataset.name!r} both match the run's {trained.class_names[twice[0]]!r}. Rename one."
        )
    labels = [k for label in part.labels if (k := moved[label]) is not None]
    return replace(
        dataset,
        class_names=trained.class_names,
        class_ids=trained.class_ids,
        splits={split: Split(part.keys, labels)},
        levels=trained.levels,
    )
