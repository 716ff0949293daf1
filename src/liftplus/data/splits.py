"""Stratified, seeded splits for data that come without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from liftplus.words import agreeing

Rows = Sequence[tuple[str, str]]


def held_out(labels: Sequence[int], share: float, seed: int) -> NDArray[np.intp]:
    """Indices to hold out of a training split, sorted: `share` of the whole, spread like the classes.

    A class keeps at least one training image; quotas are rounded by largest remainder.
    """
    classes, members = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
    counts = np.bincount(members, minlength=len(classes))
    sizes = _quotas(counts, share)
    rng = np.random.RandomState(seed)  # its streams are the same in every NumPy version
    each = np.split(np.argsort(members, kind="stable"), np.cumsum(counts)[:-1])
    chosen = [rng.permutation(own)[:size] for own, size in zip(each, sizes, strict=True)] if len(classes) else []
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.intp)


def held_out_wholes(labels: Sequence[int], wholes: Sequence[str], share: float, seed: int) -> NDArray[np.intp]:
    """`held_out` for rows that must stay together, such as the boxes of an image; `share` is of such wholes.

    A whole counts for the rarest of its classes. A whole stays in training if a class would lose all of its rows.
    """
    counts = np.bincount(labels)
    members: dict[str, list[int]] = {}
    for index, whole in enumerate(wholes):
        members.setdefault(whole, []).append(index)
    groups = list(members.values())
    rarest = [min((labels[i] for i in group), key=lambda label: (counts[label], label)) for group in groups]
    away = dict.fromkeys(held_out(rarest, share, seed).tolist())
    left = counts - np.bincount([labels[i] for g in away for i in groups[g]], minlength=len(counts))
    for g in list(away):
        if any(left[labels[i]] == 0 for i in groups[g]):
            del away[g]
            np.add.at(left, [labels[i] for i in groups[g]], 1)
    return np.array(sorted(i for g in away for i in groups[g]), dtype=np.intp)


def complete(
    rows: Mapping[str, Rows],
    *,
    test_share: float,
    val_share: float,
    seed: int,
    whole: Callable[[str], str] | None = None,
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Add a test split where there is none and a val split where one is asked for.

    A val split without a test split becomes the test split. Returns the splits and a note for each decision.

    Args:
        whole: from a key to what must not be divided, such as the image that boxes are in.
    """
    done, notes = dict(rows), []
    if not done.get("test"):
        done.pop("test", None)
        if done.get("val"):
            done["test"] = done.pop("val")
            notes.append("There is no test split, so the validation split serves as the test split.")
        else:
            notes.append(_set_aside(done, "test", test_share, seed, whole))
    if not done.get("val"):
        done.pop("val", None)
        if val_share > 0:
            # With the same seed, the classes' shuffles would repeat those of the test split.
            notes.append(_set_aside(done, "val", val_share, seed + 1, whole))
    return done, tuple(notes)


def _quotas(counts: NDArray[np.intp], share: float) -> NDArray[np.intp]:
    exact = counts * share
    sizes: NDArray[np.intp] = np.minimum(np.floor(exact).astype(np.intp), counts - 1)
    room = counts - 1 - sizes
    wanted = min(round(share * int(counts.sum())) - int(sizes.sum()), int(room.sum()))
    order = np.argsort(-(exact - sizes), kind="stable")
    for k in order[room[order] > 0][: max(wanted, 0)]:
        sizes[k] += 1
    return sizes


def _set_aside(rows: dict[str, Rows], split: str, share: float, seed: int, whole: Callable[[str], str] | None) -> str:
    train = rows["train"]
    index = {label: i for i, label in enumerate(dict.fromkeys(label for _, label in train))}
    labels = [index[label] for _, label in train]
    if whole is None:
        held = held_out(labels, share, seed)
    else:
        held = held_out_wholes(labels, [whole(key) for key, _ in train], share, seed)
    if len(held) == 0:
        return f"No {split} split could be made: a share of {share:g} leaves no image over, as every class keeps one."
    away = set(held.tolist())
    rows[split] = [train[i] for i in held]
    rows["train"] = [row for i, row in enumerate(train) if i not in away]
    were = agreeing(len(held), "was", "were")
    what = "images" if whole is None else "boxes"
    return f"{len(held):,} of {len(train):,} training {what} {were} set aside as the {split} split (seed {seed})."
