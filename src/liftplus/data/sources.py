"""From `data.*` keys to a data set: choose the reader of a source, and check what every source must satisfy."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from liftplus.data import (
    boxes,
    cifar,
    class_names,
    documents,
    endings,
    hierarchy,
    inaturalist,
    lists,
    naming,
    rows,
    shards,
    splits,
    tables,
    tree,
    unused,
)
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split, Store, Table, listing, sorted_ids
from liftplus.data.inspection import unreadable
from liftplus.data.kept_facts import KeptFacts
from liftplus.data.located import respelled
from liftplus.data.stores import FileStore, FolderStore, is_tar, open_store
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

_LISTS = {
    "imagenet_lt": (
        "ImageNet_LT_",
        "ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt, and ImageNet's train/ and val/ folders",
    ),
    "places_lt": (
        "Places_LT_",
        "Places_LT_train.txt, Places_LT_val.txt and Places_LT_test.txt, and the image folders that they name",
    ),
    "inat2018": (
        "iNaturalist18_",
        "train2018.json and val2018.json (or iNaturalist18_train.txt and iNaturalist18_val.txt), and train_val2018/",
    ),
}
_ORDER = ("train", "val", "test")
_CIFAR = {"cifar10_lt": 10, "cifar100_lt": 100}

KNOWN: tuple[str, ...] = ("openmoji_lt", *_CIFAR, *_LISTS)
"""Names that `data.source` may have instead of a path."""

_LISTED = (".txt", ".json", *tables.ENDINGS)
_KINDS = "a folder, .zip, .tar, .csv, .json, .jsonl, .parquet or .txt list"


def load(
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
    *,
    for_testing: bool = False,
    kept: KeptFacts | None = None,
) -> DataSet:
    """The data set that the configuration names, checked, with a test split wherever one can be made.

    `progress` is called with (done, total) while files are decoded to leave out the broken ones; `kept` holds earlier
    findings about them. With `for_testing` nothing is split and no training split is needed; without a test split, val
    or else all images serve as one.

    Raises:
        UserError: it does not exist, is incomplete or contradicts itself.
    """
    unused.refuse(config, made=("openmoji_lt", *_CIFAR), benchmarks=_LISTS, listed=_LISTED)
    dataset = dataclasses.replace(_read(config, for_testing), config=config)
    dataset.store.decode = config.decode
    return without_unreadable(dataset, progress, kept) if config.unreadable == "skip" else dataset


def _read(config: DataConfig, for_testing: bool) -> DataSet:
    if config.source == "openmoji_lt":
        # Imported here because its art is an optional dependency.
        return cast(DataSet, import_module("liftplus.data.openmoji").load(config))
    if config.source in _CIFAR:
        return _from_cifar(config)
    table: Table
    store: Store
    table, store = _from_lists(config) if _uses_lists(config) else _from_path(config)
    return assemble(config.source or str(config.train_list), table, store, config, for_testing)


def assemble(name: str, table: Table, store: Store, config: DataConfig, for_testing: bool = False) -> DataSet:
    """Turn class ids into indices, make missing splits and refuse what cannot be trained on.

    Args:
        name: what the user called the data.
        table: rows of at least the training split.
        store: decodes the rows' keys.
        config: class names and how to split.
        for_testing: take the data as it is; see `load`.
    """
    if for_testing and not any(table.rows.values()):
        raise UserError(f"{name} has no images; there is nothing to test on.")
    if not for_testing and not table.rows.get("train"):
        held = " and ".join(split for split, part in table.rows.items() if part)
        only = f", only {held} images" if held else ""
        raise UserError(f"{name} has no training images{only}; give a train split, or images without a split.")
    table = rows.settled(table, store, name)
    if for_testing:
        table = _as_test(table)
    chosen = naming.of(table, config)
    names = chosen.names
    if len(names) < 2 and not for_testing:
        raise UserError(f"{name} has only one class ({next(iter(names))!r}); at least two are needed.")
    naming.refuse_unknown(table, set(names), name)
    parts = dict(table.rows)
    split_notes: tuple[str, ...] = ()
    if not for_testing:
        whole = boxes.file_of if isinstance(store, boxes.BoxStore) else None
        parts, split_notes = splits.complete(
            table.rows, test_share=config.test_share, val_share=config.val_share, seed=config.split_seed, whole=whole
        )
    index = {label: i for i, label in enumerate(names)}
    made: dict[str, Split] = {
        split: Split([key for key, _ in parts[split]], [index[label] for _, label in parts[split]])
        for split in sorted(parts, key=_ORDER.index)
    }
    named = config.class_names is not None or not all(map(class_names.is_code, names.values()))
    levels, said = hierarchy.settled(table.levels, names)
    notes = (*table.notes, *chosen.notes, *said, *naming.id_notes(tuple(names), named), *split_notes)
    given = {split for split, part in table.rows.items() if part}
    if "val" in given:
        given.add("test")  # val serves as test where there is none
    drawn = () if for_testing else tuple(split for split in made if split not in given)
    dataset = DataSet(name, tuple(names.values()), tuple(names), made, store, notes, named, drawn)
    dataset = dataclasses.replace(dataset, frequency=table.frequency, levels=levels)
    return dataset if for_testing else dataclasses.replace(dataset, notes=notes + naming.untrained(dataset))


def _as_test(table: Table) -> Table:
    """The same rows with a test split: its own, else val, else every image; classes of any split count."""
    parts = dict(table.rows)
    if not parts.get("test"):
        every = (row for part in table.rows.values() for row in part)
        parts["test"] = parts.get("val") or list(dict.fromkeys(every))
    return dataclasses.replace(table, rows=parts, class_ids=table.class_ids or sorted_ids(table.ids()))


def without_unreadable(
    dataset: DataSet, progress: Callable[[int, int], None] | None = None, kept: KeptFacts | None = None
) -> DataSet:
    """The data set without the pictures that cannot be decoded; reads all whose facts are not kept."""
    broken = unreadable(dataset, progress, kept)
    if not broken:
        return dataset
    parts = {}
    for name, split in dataset.splits.items():
        parts[name] = split.taken(place for place, key in enumerate(split.keys) if key not in broken)
    needed = "train" if len(dataset.splits.get("train", ())) else "test"  # the latter where data are only tested
    parts = {name: split for name, split in parts.items() if len(split) > 0}
    if needed not in parts:
        what = "training" if needed == "train" else "test"
        raise UserError(f"{dataset.name} has no {what} images that can be read; {next(iter(broken.values()))}")
    left_out = dataclasses.replace(dataset, splits=parts)
    what = counted(len(broken), "image that cannot be read was", "images that cannot be read were")
    note = f"{what} left out: {listing(list(broken), 3)}."
    outdated = naming.untrained(dataset)
    kept_notes = tuple(text for text in dataset.notes if text not in outdated)
    return dataclasses.replace(left_out, notes=(*kept_notes, note, *naming.untrained(left_out)))


def _uses_lists(config: DataConfig) -> bool:
    return config.train_list is not None or config.source in _LISTS


def _from_cifar(config: DataConfig) -> DataSet:
    if config.root is None:
        raise UserError(f"{config.source} needs data.root, the folder that holds CIFAR's unpacked files.")
    ratio = 100.0 if config.imbalance_ratio is None else config.imbalance_ratio
    table, store = cifar.read(documents.place(config.root), _CIFAR[config.source], ratio)
    return assemble(config.source, table, store, config)


def _from_lists(config: DataConfig) -> tuple[Table, Store]:
    """The table and the store of lists that were given one by one, or of a benchmark's lists."""
    paths = _given_lists(config)
    if config.source in _LISTS:
        paths = paths if "train" in paths else _benchmark(config) | paths
        root = config.root
    else:
        root = config.root or config.source or None
    return _listed(_existing_lists(paths), root, config)


def _given_lists(config: DataConfig) -> dict[str, Path]:
    given = {"train": config.train_list, "val": config.val_list, "test": config.test_list}
    return {split: documents.place(path) for split, path in given.items() if path is not None}


def _existing_lists(paths: dict[str, Path]) -> dict[str, Path]:
    for path in paths.values():
        if not os.path.isfile(path):
            raise UserError(f"The list {path} does not exist; check data.train_list, val_list and test_list.")
    return paths


def _benchmark(config: DataConfig) -> dict[str, Path]:
    start, wanted = _LISTS[config.source]
    if config.root is None:
        raise UserError(f"{config.source} needs data.root, a folder with {wanted}.")
    root = documents.place(config.root)
    annotations = root / "train2018.json"
    if config.source == "inat2018" and os.path.isfile(annotations):
        return lists.siblings(annotations)
    paths = lists.find(root).get(start)
    if paths is None or not paths.keys() & {"val", "test"}:
        raise UserError(f"{config.source} is not complete at {root}; data.root must be a folder with {wanted}.")
    return paths


def _from_path(config: DataConfig) -> tuple[Table, Store]:
    path = _existing(config.source)
    suffix = path.suffix.lower()
    if shards.is_prepared(path):
        return shards.read(path)
    if path.is_dir():
        found = lists.find(path)
        if len(found) > 1:
            raise UserError(
                f"{path} holds the lists of several data sets ({listing(list(found))}); set data.train_list."
            )
        if found:
            return _listed(next(iter(found.values())), config.root or str(path), config)
        if (table := tables.described(path)) is not None:
            return _checked(table, FolderStore(path), path), FolderStore(path)
    if path.is_dir() or suffix == ".zip" or is_tar(path):
        store = open_store(path)
        try:
            return tree.read(store, worded=config.class_names is not None), store
        except UserError:
            if (inside := tables.without_pictures(store)) is not None:
                return inside
            raise
    if suffix in _LISTED:
        paths = lists.siblings(path) if suffix in (".txt", ".json") else {"train": path}
        return _listed(_existing_lists(paths | _given_lists(config)), config.root, config)
    raise UserError(f"{path} has the ending {suffix!r}; data.source must be {_KINDS}, or one of {', '.join(KNOWN)}.")


def _existing(source: str) -> Path:
    if not source:
        raise UserError(f"No data were given; set data.source to {_KINDS}, or to one of {', '.join(KNOWN)}.")
    path = documents.place(source)
    if os.path.exists(path):
        return path
    near = difflib.get_close_matches(source.lower(), KNOWN, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"The path {source} does not exist, and it is no known data set.{hint} "
        f"Known: {', '.join(KNOWN)}; or give {_KINDS}."
    )


def _listed(paths: Mapping[str, Path], root: str | None, config: DataConfig) -> tuple[Table, Store]:
    """Lists, annotations and manifests: files that name pictures which lie elsewhere."""
    train = paths["train"]
    kinds = {path.suffix.lower() for path in paths.values()}
    if config.level is not None and kinds != {".json"}:
        raise unused.no_levels(config)
    inside: Store | None = None
    if all(map(tables.is_one, paths.values())):
        if config.level is not None:
            raise unused.no_levels(config)
        table, inside = tables.read(paths, alone=len(paths) == 1)
    elif kinds == {".json"}:
        asked = ["train", *_given_lists(config)]
        if config.boxes:
            return _boxes(paths, asked, root, config)
        table = inaturalist.read(paths, config.level, asked)
    elif kinds & {*tables.ENDINGS, ".json"}:
        raise UserError(f"The lists have different forms ({', '.join(sorted(kinds))}); give all of them in one.")
    else:
        table = lists.read(paths)
    table = _with_note(table, paths)
    if inside is not None:
        return table, inside
    store = open_store(root) if root is not None else FolderStore(train.parent)
    return _checked(table, store, train), store


def _with_note(table: Table, paths: Mapping[str, Path]) -> Table:
    """The table, with a note on which file is which split if there are several."""
    read = {split: path for split, path in paths.items() if table.rows.get(split)}
    if len(read) < 2:
        return table
    files = ", ".join(f"{split} from {path.name}" for split, path in read.items())
    return dataclasses.replace(table, notes=(*table.notes, f"Splits were read as {files}."))


def _boxes(
    paths: Mapping[str, Path], asked: Sequence[str], root: str | None, config: DataConfig
) -> tuple[Table, Store]:
    """Every box of annotation files as a picture."""
    base = open_store(root) if root is not None else FolderStore(paths["train"].parent)
    reader = boxes.Reader(boxes.BoxOptions(config.box_margin, config.box_least), base)
    table = _with_note(inaturalist.read(paths, config.level, asked, reader.rows), paths)
    if not table.rows.get("train"):
        raise UserError(f"{paths['train']} has no box that could be taken. {' '.join(reader.notes)}".rstrip())
    _refuse_missing(boxes.images_of(table), base, paths["train"])
    notes = (*table.notes, *reader.notes, *boxes.shared(table.rows))
    return dataclasses.replace(table, notes=notes), boxes.BoxStore(base, reader.sizes)


def _checked(table: Table, store: FileStore, origin: Path) -> Table:
    """The table with paths and endings as the store has them; refuses pictures that do not exist."""
    if missing := _missing(table, store):
        table = respelled(table, store, missing, origin)
        if missing := _missing(table, store):
            table = endings.completed(table, store, missing, origin.name)
            _refuse_missing(table, store, origin)
    return table


def _missing(table: Table, store: FileStore) -> list[str]:
    return store.missing(key for rows in table.rows.values() for key, _ in rows)


def _refuse_missing(table: Table, store: FileStore, origin: Path) -> None:
    if missing := _missing(table, store):
        total = sum(map(len, table.rows.values()))
        near = endings.near(store, missing[0])
        way_out = (
            f"{store.where(near)} does, so write its ending."
            if near is not None
            else "set data.root to the folder or archive that the paths start from."
        )
        raise UserError(
            f"{len(missing):,} of the {counted(total, 'image')} that {origin.name} names "
            f"{agreeing(len(missing), 'does', 'do')} not exist, first {store.where(missing[0])}; {way_out}"
        )
