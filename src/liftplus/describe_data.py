"""What `data inspect` prints about a data set: counts, groups, doubtful classes and files. It needs no PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from liftplus import console
from liftplus.data import inspection, sources
from liftplus.data.config import DataConfig, of_words
from liftplus.data.dataset import DataSet, listing
from liftplus.data.images import UnreadableImage
from liftplus.data.kept_facts import KeptFacts
from liftplus.errors import UserError
from liftplus.evaluation.metrics import FEW_UNDER, MANY_OVER
from liftplus.words import agreeing, counted

if TYPE_CHECKING:
    from liftplus.runs.opening import Session

ROWS, FAULTS = 40, 5  # the largest numbers of classes and faults that are shown


def data(
    source: str,
    files: bool,
    overrides: list[str],
    as_json: bool,
    whole: int | None = None,
    session: Session | None = None,
) -> None:
    """Print counts, groups, doubtful classes and files of a data set; see `inspection.inspect`.

    Args:
        session: of a run on these data, to say what light and full tuning are likely to give; None not to.
    """
    config, cache = _config(source, overrides) if session is None else (session.config.data, session.config.cache)
    dataset = sources.load(config, kept=KeptFacts.of(cache))
    if session is not None:
        from liftplus.runs import opening  # here, as PyTorch is imported with it

        opening.refuse_unmeasured(dataset)
    kept = KeptFacts.of(cache)
    found = inspect_with_bar(dataset, files, whole, kept)
    if kept.found:
        console.err.print(
            f"{counted(kept.found, 'picture has', 'pictures have')} not changed since the last inspection and "
            f"{agreeing(kept.found, 'was', 'were')} not read again. cache=false reads all."
        )
    for note in kept.notes:
        console.err.print(f"Note: {note}")
    if not as_json:
        _show_data(found)
    try:
        start = None if session is None else _start(session, dataset, found.imbalance_ratio or 1.0)
    except (UserError, OSError):
        if as_json:  # what was found is not lost
            print(json.dumps(found.to_dict() | {"start": None}, ensure_ascii=False, indent=2))
        raise
    if as_json:
        about = {} if start is None else {"start": start}
        print(json.dumps(found.to_dict() | about, ensure_ascii=False, indent=2))
    elif start is not None:
        console.out.print(
            f"before training: {start['backbone']} with a classifier from the training pictures (closed_form) has an "
            f"accuracy of {start['mean_class']:.1f} % in the mean over classes, on "
            f"{counted(start['pictures'], start['split'] + ' picture')}. {start['advice']}",
            highlight=False,
        )


def _start(session: Session, dataset: DataSet, imbalance: float) -> dict[str, Any]:
    """How good the classifier of a run is before training, and what measured pairs say of such data."""
    from liftplus.evaluation import tuning_map
    from liftplus.runs import opening

    try:
        found = opening.before_training(session, dataset)
    except UnreadableImage as error:
        raise UserError(f"{error} Give unreadable=skip to leave out such files.") from error
    assert found.mean_class is not None and found.weights is not None
    before = tuning_map.Before(found.mean_class, imbalance, found.weights)
    return {
        "backbone": session.config.backbone.name,
        "split": found.split,
        "pictures": found.pictures,
        "accuracy": found.held_out,
        "mean_class": found.mean_class,
        "weights": found.weights,
        "light_minus_full": asdict(tuning_map.expected(before, tuning_map.pairs())),
        "advice": tuning_map.advice(before, found.pictures),
    }


def _config(source: str, overrides: list[str]) -> tuple[DataConfig, bool]:
    """The data configuration that `train` would use, and whether findings are kept.

    Other settings are resolved only if `overrides` name any.
    """
    if (found := of_words(source, overrides)) is not None:
        return found, True
    from liftplus import config as configs  # imported here because it imports PyTorch

    run = configs.resolve(data=source, overrides=overrides)
    return run.data, run.cache


def inspect_with_bar(dataset: DataSet, files: bool, whole: int | None, kept: KeptFacts) -> inspection.Inspection:
    """Inspect with a progress bar over the files."""
    total = sum(len(split) for split in dataset.splits.values()) if files else 0
    with console.Bars().task("Reading files", max(1, total)) as advance:
        return inspection.inspect(dataset, files, lambda done, total: advance(), whole, kept)


def _show_data(found: inspection.Inspection) -> None:
    images = ", ".join(f"{count:,} {split}" for split, count in found.totals.items())
    console.out.print(f"{found.name}: {len(found.class_names):,} classes, {images} images")
    if found.imbalance_ratio is not None:
        console.out.print(f"imbalance ratio: {console.figure(found.imbalance_ratio)}")
    bounds = {"many": f" (over {MANY_OVER} training images)", "few": f" (under {FEW_UNDER})"}
    groups = ", ".join(f"{name}{bounds.get(name, '')} {len(group):,}" for name, group in found.groups.items())
    console.out.print(f"classes by group: {groups}")
    for level, above in found.levels.items():
        console.out.print(f"level {level}: {counted(len(above), 'group')} of classes", markup=False)
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
    """Print a table of images by class and split; of very many classes only the largest and the smallest."""
    splits = list(found.counts)
    order = sorted(range(len(found.class_names)), key=lambda k: [-found.counts[split][k] for split in splits])
    rows = [(found.class_names[k], *(found.counts[split][k] for split in splits)) for k in order]
    if len(rows) > ROWS:
        left_out = f"… {len(rows) - ROWS:,} more (--json shows all)"
        rows = [*rows[: ROWS // 2], (left_out, *("" for _ in splits)), *rows[-ROWS // 2 :]]
    console.table("Images", ("class", *splits), rows)


def _show_faults(found: inspection.Inspection) -> None:
    """Print duplicates and unreadable files, the first few of each kind."""
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
