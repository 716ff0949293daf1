"""Which of the suspects a clean table leaves out, and the table itself."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from liftplus.checks.check import Check, places_of
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.data.inspection import Place
from liftplus.data.stores import FileStore
from liftplus.errors import UserError
from liftplus.machine import disk

HEADER = ("path", "label", "class_name", "split")
_RANK = {"test": 0, "val": 1, "train": 2}


def left_out(check: Check) -> dict[int, str]:
    """Numbers of the pictures that a clean table does without, and why: unreadable, double, label or outlier.

    Of doubles one stays: that of the test split, else of the validation split, else the one whose label is likelier.
    By its label or as an outlier only a training picture is left out, and never more than half of a class's; the last
    training picture of a class stays.
    """
    out = dict.fromkeys(check.unreadable, "unreadable")
    left = Counter(p.label for k, p in enumerate(check.places) if p.split == "train" and k not in out)

    def drop(number: int, why: str) -> None:
        place = check.places[number]
        if number in out or (place.split == "train" and left[place.label] < 2):
            return
        out[number] = why
        left[place.label] -= place.split == "train"

    for group in check.groups():
        for number in group:
            if number != kept(check, group):
                drop(number, "double")
    quota = {label: count // 2 for label, count in left.items()}
    for numbers, why in ((check.suspicious(), "label"), (check.outliers(), "outlier")):
        for number in numbers:
            place = check.places[number]
            if place.split == "train" and number not in out and quota[place.label] > 0:
                quota[place.label] -= 1
                drop(number, why)
    return dict(sorted(out.items()))


def kept(check: Check, group: Sequence[int]) -> int:
    """The picture of a group of doubles that stays."""

    def order(number: int) -> tuple[int, float, int]:
        own = float(check.opinion.own[number])
        return _RANK[check.places[number].split], -own if own == own else 0.0, number

    return min(group, key=order)


def refuse_unwritable(dataset: DataSet, path: Path) -> None:
    """Refuse, before long work, data that a table with these paths would not give back, or a file that is there."""
    _refuse_target(dataset, path)
    how = "Leave --clean out; the CSV of findings names the pictures."
    if not isinstance(dataset.store, FileStore) or dataset.config is None:
        raise UserError(
            f"The pictures of {dataset.name!r} are no files with paths of their own, so --clean cannot list them. {how}"
        )
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "clean.csv"
        _write(trial, dataset, places_of(dataset))
        try:
            back = sources.load(dataset.config.model_validate({"source": str(trial), "root": dataset.store.path}))
        except UserError as error:
            raise UserError(f"A table of the paths in {dataset.name!r} cannot be read back: {error} {how}") from error
        if _rows(back) != _rows(dataset):
            raise UserError(f"A table of the paths in {dataset.name!r} would not give the same pictures back. {how}")


def refuse_inside(dataset: DataSet, path: Path) -> None:
    """Refuse to write into a folder of pictures."""
    if not isinstance(dataset.store, FileStore) or dataset.config is None:
        return
    folder = Path(dataset.store.path).resolve()
    if folder == Path(dataset.config.source).resolve() and folder.is_dir() and path.resolve().is_relative_to(folder):
        raise UserError(f"{str(path)!r} lies within the data, which are never touched. Choose another place.")


def _refuse_target(dataset: DataSet, path: Path) -> None:
    if path.suffix.lower() != ".csv":
        raise UserError(f"--clean is {str(path)!r}; give a file whose name ends in .csv.")
    if path.exists():
        raise UserError(f"{str(path)!r} exists already. Choose another file with --clean, or remove it first.")
    refuse_inside(dataset, path)
    disk.check_target(path, "--clean")


def write(check: Check, without: Container[int], path: Path) -> list[str]:
    """The table of the other pictures; returns the words that read it, behind `--data`."""
    disk.folder_of(path)
    _write(path, check.dataset, [place for number, place in enumerate(check.places) if number not in without])
    store = check.dataset.store
    return [str(path), f"data.root={store.path}"] if isinstance(store, FileStore) else [str(path)]


def _write(path: Path, dataset: DataSet, places: Sequence[Place]) -> None:
    ids, names = dataset.class_ids, dataset.class_names
    disk.write_csv(path, HEADER, ([p.key, ids[p.label], names[p.label], p.split] for p in places))


def _rows(dataset: DataSet) -> dict[str, list[tuple[str, str, str]]]:
    name: Callable[[int], tuple[str, str]] = lambda k: (dataset.class_ids[k], dataset.class_names[k])  # noqa: E731
    return {
        split: [(key, *name(label)) for key, label in zip(part.keys, part.labels, strict=True)]
        for split, part in dataset.splits.items()
        if len(part)
    }
