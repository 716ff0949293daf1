"""The settings a run began with, and whether a command's settings differ from them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from liftplus.config import RunConfig, flat, from_dict, saved
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.training import checkpoint

CONFIG = "config.json"

# Settings that may differ when an interrupted run goes on: they change no result.
FREE = (
    "device",
    "compile",
    "track",
    "train.workers",
    "train.save_minutes",
    "data.root",
    "backbone.weights",
    "backbone.grad_checkpointing",
)


def unfinished(folder: Path, config: RunConfig | None = None) -> RunConfig | None:
    """The configuration of the unfinished run in this folder; None for a new or empty folder.

    Args:
        config: the settings of a new run, which the message about a finished one compares.

    Raises:
        UserError: the folder holds a finished run or something else.
    """
    begun = begun_with(folder)
    if begun is None:
        disk.refuse_existing(folder)
        return None
    if trained(folder):
        changed = [] if config is None else changes(begun, config)
        raise UserError(
            f"The folder {str(folder)!r} already exists and holds a finished run"
            + (f" with other settings: {_listed(changed)}" if changed else "")
            + f". Test that run again with `liftplus eval {folder}`, or choose another folder with --out."
        )
    return begun


def changes(begun: RunConfig, config: RunConfig) -> list[str]:
    """The settings that differ and change a result, each with its old and new value."""
    old, new = flat(begun), flat(config)
    # Where both runs leave a setting to the recipe, the new value is known only after the data are read.
    chosen = set(begun.automatic) & set(config.automatic)
    return [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*new, *old])
        if _home(old.get(key)) != _home(new.get(key))
        and key not in (*FREE, "automatic")
        and not any(key == one or key.startswith(f"{one}.") for one in chosen)
    ]


def _home(value: Any) -> Any:
    """A setting with `~` expanded: some run folders record the path with it, some without."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def refuse_changes(begun: RunConfig, config: RunConfig, folder: Path) -> None:
    """Refuse to continue a run with settings that differ in anything but `FREE`.

    Raises:
        UserError: a setting that changes the result differs.
    """
    if changed := changes(begun, config):
        raise UserError(
            f"{str(folder)!r} holds an unfinished run with other settings: "
            + _listed(changed)
            + ". Give the same settings, continue it unchanged with `liftplus train --resume FOLDER`, or give another "
            "--out."
        )


def _listed(changed: list[str]) -> str:
    more = [f"and {len(changed) - 4} more"] if len(changed) > 4 else []
    return "; ".join([*changed[:4], *more])


def trained(folder: Path) -> bool:
    """Whether the run in this folder has finished training."""
    return (folder / checkpoint.FILE).is_file() and not (folder / checkpoint.STATE).is_file()


def trained_only(folder: Path) -> bool:
    """Whether a run finished training but not its test, because a test picture could not be read."""
    return trained(folder) and not (folder / "metrics.json").is_file()


def fingerprints(folder: Path) -> dict[str, str]:
    """A fingerprint of each split's pictures, as the run recorded it; empty if it has no readable record."""
    with suppress(UserError):
        found: dict[str, str] = disk.read_json(folder / CONFIG, "data")["data"].get("fingerprints", {})
        return found
    return {}


def begun_with(folder: Path | None) -> RunConfig | None:
    """The settings of the run in a folder, finished or not; None if there is no run."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return from_dict(saved(disk.read_json(folder / CONFIG, "config")["config"]))
