"""Merge runs: average their learned weights, optionally with their weights before training.

The mean of several runs' weights is a model soup (Wortsman et al. 2022, arXiv 2203.05482, section 2). The mean of tuned
weights and their start is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, section 3). With shares s_r that add up to 1
and a share S of the start, each weight becomes

    sum over runs r of s_r ((1 - S) tuned_r + S start_r).

Light modules are averaged weight by weight too. So two LoRA modules give the product of the mean factors, not the mean
product, and bottleneck units are averaged by position. Runs with the same seed share the random start of their light
modules; merging these is closest to what the papers did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.config import RunConfig, flat, from_dict, saved
from liftplus.errors import UserError
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk
from liftplus.machine.determinism import deterministic
from liftplus.machine.runtime import command_line
from liftplus.runs import calibration_file, changes, matching, testing
from liftplus.runs.changes import CONFIG, FREE
from liftplus.runs.opening import Session
from liftplus.training import assembly, checkpoint

TOLD = 4
"""A note lists at most this many settings."""


@dataclass(frozen=True)
class Part:
    """One of the runs to merge.

    Attributes:
        path: a run folder, or a model file.
        config: its settings, with the present paths of its data and of the backbone's weights.
        about: the description in its model file.
        shapes: type and shape of each learned tensor.
    """

    path: Path
    config: RunConfig
    about: dict[str, Any]
    shapes: dict[str, tuple[torch.dtype, torch.Size]]

    @classmethod
    def read(cls, path: Path, config: RunConfig) -> Part:
        """The run in a folder."""
        about, state = checkpoint.read_model(path)
        return cls(path, config, about, {name: (value.dtype, value.shape) for name, value in state.items()})

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path


def merge(
    parts: Sequence[Part], out: Path, session: Session, shares: Sequence[float] = (), start: float = 0.0
) -> list[str]:
    """Write the merged run into a new folder and return notes for the user.

    The merged run takes its settings from the first run. Each class's training count is the largest among the runs.

    Args:
        session: the first run's settings on this machine; a classifier is built only if `start` is above 0.
        shares: weight of each run, not negative; they are scaled to sum to 1. By default all are equal.
        start: share of the weights before training, from 0 to 1. No run keeps these, so they are rebuilt from the
            run's seed and training pictures.

    Raises:
        UserError: the runs cannot be merged, a share is out of range, or a start cannot be rebuilt.
    """
    disk.refuse_existing(out)
    counted = _shares(parts, shares, start)
    for part in parts[1:]:
        refuse_different(parts[0], part)
    sums: dict[str, Tensor] = {}
    for part, share in zip(parts, counted, strict=True):
        if start < 1:
            _add(sums, checkpoint.read_model(part.path)[1], share * (1 - start))
        if start > 0:
            _add(sums, start_of(part, session), share * start)
    state = {name: value.to(parts[0].shapes[name][0]) for name, value in sums.items()}
    _write(parts, out, state, {"merged": [str(part.path) for part in parts], "shares": counted, "start": start})
    return [*_notes(parts), *calibration_file.left_behind([part.path for part in parts], out)]


def _add(sums: dict[str, Tensor], state: Mapping[str, Tensor], share: float) -> None:
    """Add a share of learned weights to their weighted sums, in fp64."""
    for name, value in state.items():
        sums[name] = sums.get(name, 0) + share * value.double()


def _shares(parts: Sequence[Part], given: Sequence[float], start: float) -> list[float]:
    """Each run's share; they sum to 1."""
    if not 0 <= start <= 1:
        raise UserError(f"The share of the start is {start:g}; give a number from 0 (tuned) to 1 (as before training).")
    if len(parts) == 1 and not start:
        raise UserError("Only one run was given. Give more runs, or mix in its start with --start 0.5.")
    paths = [part.path.resolve() for part in parts]
    if twice := [part.path for part in parts if paths.count(part.path.resolve()) > 1]:
        raise UserError(f"The run {str(twice[0])!r} is given twice. Give it once, and set its weight with --shares.")
    if not given:
        return [1 / len(parts)] * len(parts)
    if len(given) != len(parts):
        raise UserError(f"{len(parts)} runs and {len(given)} shares were given. Give one share per run.")
    if not all(math.isfinite(share) and share >= 0 for share in given) or not math.fsum(given) > 0:
        shown = ",".join(f"{share:g}" for share in given)
        raise UserError(f"The shares are {shown}. Give numbers of at least 0, not all of them 0.")
    return [share / math.fsum(given) for share in given]


def refuse_different(one: Part, other: Part) -> None:
    """Refuse to merge runs that differ in architecture, classes, or the pictures of their test or validation split.

    Raises:
        UserError: names the first difference.
    """
    start = f"{str(one.path)!r} and {str(other.path)!r} cannot be merged: their"
    for what, (mine, theirs) in _compared(one, other).items():
        if mine != theirs:
            raise UserError(
                f"{start} {what} differ, {_shown(mine, theirs)}. Give runs with the same backbone, tuner, head and "
                "classes."
            )
    first, second = changes.fingerprints(one.folder), changes.fingerprints(other.folder)
    for split in ("test", "val"):
        if first and second and first.get(split) != second.get(split):
            raise UserError(
                f"{start} {split} splits have different pictures. One run may have been trained on the other's test "
                "pictures. Give runs with the same data and splits."
            )


def _compared(one: Part, other: Part) -> dict[str, tuple[Any, Any]]:
    """Pairs of values that must be equal, by their name in the message. The most telling ones come first."""

    def of(part: Part) -> dict[str, Any]:
        config = part.config
        tower = config.backbone.model_dump(exclude={"weights", "grad_checkpointing"})
        reads_text = part.about.get("class_prompts") is not None
        return {
            "backbones": tower.pop("name"),
            "settings of the backbone": tower,
            "backbone weights": part.about["backbone_identity"],
            "tuners": "+".join(config.tuner) or "none",
            "settings of the tuner": {name: tuner.model_dump() for name, tuner in config.tuner.items()},
            "heads": {"name": config.head.name} | config.head.model_dump(),
            "numbers of classes": len(part.about["class_names"]),
            "classes": part.about["class_names"],
            "ids of the classes": part.about["class_ids"],
            "prompts of the classes": part.about["class_prompts"] if reads_text else None,
            "shapes": {name: list(shape) for name, (_, shape) in part.shapes.items()},
        }

    mine, theirs = of(one), of(other)
    return {key: (mine[key], theirs[key]) for key in mine}


def _shown(mine: Any, theirs: Any) -> str:
    """The first difference between two values, as text."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        key = next(key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key))
        return f"{key}: {_shown(mine.get(key), theirs.get(key))}"
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        mine, theirs = next(pair for pair in zip(mine, theirs, strict=True) if pair[0] != pair[1])
    first, second = (f"{str(value)[:12]}…" if len(str(value)) == 64 else repr(value) for value in (mine, theirs))
    return f"{first} and {second}"


def start_of(part: Part, session: Session) -> dict[str, Tensor]:
    """Rebuild a run's learned weights as they were before its first step: backbone, light modules and head.

    Raises:
        UserError: the run was changed after training, has no record of its training pictures, or these have changed.
    """
    name = str(part.path)
    if part.about.get("edits"):
        raise UserError(
            f"{name!r} was changed or merged after training, so its start cannot be rebuilt. Give the runs that it was "
            "made from, with --start."
        )
    if (noted := changes.fingerprints(part.folder).get("train")) is None:
        raise UserError(
            f"{name!r} has no record of its training pictures ({CONFIG} is missing or damaged), so its start cannot "
            "be rebuilt. Give the folder that training wrote."
        )
    own = replace(session, config=part.config)
    try:
        dataset = matching.as_in_run(own.data(), part.folder, "train")
    except UserError as error:
        raise UserError(
            f"The start of {name!r} is rebuilt from its training pictures, but these cannot be read: {error} Give "
            "their path with --data."
        ) from error
    if dataset.fingerprint("train") != noted:
        raise UserError(
            f"The pictures at the data path of {name!r} are not the ones that it was trained on, so its start cannot "
            "be rebuilt. Put them back, or give their path with --data."
        )
    with deterministic(own.config.deterministic):
        model = assembly.build(own.config, dataset, session.runtime, session.progress, session.cache)
    catalogue.refuse_other_weights(
        model.backbone, part.about["backbone_identity"], f"The run in {name!r}", "liftplus merge RUNS weights=PATH"
    )
    return model.learned_state()


def _write(parts: Sequence[Part], out: Path, state: dict[str, Tensor], edit: dict[str, Any]) -> None:
    """Write the new run folder: the model, where it came from, and the drawn splits."""
    first = parts[0]
    disk.new_folder(out)
    counts = [max(of_class) for of_class in zip(*(part.about["train_counts"] for part in parts), strict=True)]
    # "weights" names one epoch of one run, which a merged run has not.
    own = {key: value for key, value in first.about.items() if key != "weights"}
    about = own | {
        "format": checkpoint.FORMAT,
        "train_counts": counts,
        "edits": [*first.about.get("edits", []), edit],
    }
    checkpoint.write_tensors(out / checkpoint.FILE, state, about)
    record: dict[str, Any] = {"data": {}}
    with suppress(UserError):
        record = disk.read_json(first.folder / CONFIG, "config", "data")
    of_training = ("notes", "signs", "start", "changed", "cache")
    record = {key: value for key, value in record.items() if key not in of_training}
    disk.write_json(
        out / CONFIG,
        record
        | {"command": command_line(), "config": about["config"], "edits": about["edits"]}
        | {"data": record["data"] | {"train_counts": counts}},
    )
    matching.keep_splits(first.folder, out)


def _notes(parts: Sequence[Part]) -> list[str]:
    """Notes on what the runs differ in: settings, and groups of the classes."""
    first, *others = [flat(from_dict(saved(part.about["config"]))) for part in parts]
    differing = [
        key
        for key in first
        if key not in (*FREE, "automatic") and any(other.get(key) != first[key] for other in others)
    ]
    notes: list[str] = []
    if differing:
        listed = ", ".join(differing[:TOLD]) + (f" and {len(differing) - TOLD} more" if len(differing) > TOLD else "")
        notes.append(
            f"The runs differ in {listed}. The merged run is loaded and tested with the settings of {parts[0].path}."
        )
    levels = [part.about.get("levels", {}) for part in parts]
    if any(other != levels[0] for other in levels):
        notes.append(f"The runs have other groups of classes above the classes. Those of {parts[0].path} are kept.")
    return notes


def tested(session: Session, part: Part, out: Path) -> Metrics:
    """Test the merged run on its test split and write the results into its folder."""
    dataset = session.data()
    trained = checkpoint.load_model(out, session.runtime, session.config.backbone)
    dataset = matching.aligned(matching.as_in_run(dataset, part.folder, "test"), "test", trained)
    metrics, _ = testing.test(
        session, trained.model, dataset, "test", trained.train_counts, out, testing.about_weights(None)
    )
    return metrics
