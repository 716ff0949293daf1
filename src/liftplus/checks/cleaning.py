"""Which of the suspects a clean table leaves out, and the table itself."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
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

    A double is left out if one that it is a double of stays: that of the test split, else of the validation split, else
    the one whose label is likelier. A near double stays if it is a mirror image with another label: arrows and hands
    differ by that alone. As near doubles, by its labels and as outliers a class loses at most half of its pictures in a
    split, and by the last two only training pictures. The last picture of a class in a split always stays.
    """
    places = check.places
    out = dict.fromkeys(check.unreadable, "unreadable")
    left = Counter((p.split, p.label) for k, p in enumerate(places) if k not in out)

    def drop(number: int, why: str, quota: Counter[tuple[str, int]] | None = None) -> None:
        own = places[number].split, places[number].label
        if number in out or left[own] < 2 or (quota is not None and not quota[own]):
            return
        out[number] = why
        left[own] -= 1
        if quota is not None:
            quota[own] -= 1

    quota = Counter({own: (count + 1) // 2 for own, count in left.items()})
    first, near = _doubles(check)
    stays: dict[int, list[int]] = defaultdict(list)
    for number in sorted({*first, *near}, key=lambda number: _order(check, number)):
        own = first.get(number, number)
        if stays[own]:
            drop(number, "double")
        elif any(_same(places, number, one, mirrored) for other, mirrored in near[own] for one in stays[other]):
            drop(number, "double", quota)
        if number not in out:
            stays[own].append(number)
    quota = Counter({own: count // 2 for own, count in left.items()})
    for numbers, why in ((check.suspicious(), "label"), (check.outliers(), "outlier")):
        for number in numbers:
            if places[number].split == "train":
                drop(number, why, quota)
    return dict(sorted(out.items()))


def _doubles(check: Check) -> tuple[dict[int, int], dict[int, list[tuple[int, bool]]]]:
    """The first of each picture's equal ones; for such first ones, their near doubles and whether each is mirrored."""
    first: dict[int, int] = {}
    near: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for one, other, exact, mirrored, _ in check.doubles:
        if exact:
            first |= {one: one, other: one}
        else:
            near[one].append((other, mirrored))
            near[other].append((one, mirrored))
    return first, near


def _same(places: Sequence[Place], one: int, other: int, mirrored: bool) -> bool:
    """Whether two near doubles show the same: mirror images with different labels do not."""
    return not mirrored or places[one].label == places[other].label


def _order(check: Check, number: int) -> tuple[int, float, int]:
    """Of two doubles the one that comes first stays."""
    own = float(check.opinion.own[number])
    return _RANK[check.places[number].split], -own if own == own else 0.0, number


def refuse_overlap(path: Path, out: Path) -> None:
    """Refuse a table that would lie in the folder of findings, or in whose place that folder would."""
    table, folder = path.resolve(), out.resolve()
    if table.is_relative_to(folder) or folder.is_relative_to(table):
        raise UserError(
            f"--clean {str(path)!r} lies in the folder of --out, {str(out)!r}. Give one of them another place."
        )


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
