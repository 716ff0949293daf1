"""What a run was begun with, and whether a command asks for the same."""

from __future__ import annotations

import os
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


def unfinished(folder: Path) -> RunConfig | None:
    """The configuration of a run that was begun in this folder and can go on; None for a new folder.

    A finished run, or a folder that holds something else, is refused.
    """
    begun = begun_with(folder)
    if begun is None or ((folder / checkpoint.FILE).is_file() and not (folder / checkpoint.STATE).is_file()):
        disk.refuse_existing(folder)
        return None
    return begun


def changes(begun: RunConfig, config: RunConfig) -> list[str]:
    """The settings that differ and change a result, each with its old and new value."""
    old, new = flat(begun), flat(config)
    # What the recipe chooses was chosen from the same data, and is not known yet before they are read.
    chosen = set(begun.automatic) & set(config.automatic)
    return [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*new, *old])
        if _home(old.get(key)) != _home(new.get(key))
        and key not in (*FREE, "automatic")
        and not any(key == one or key.startswith(f"{one}.") for one in chosen)
    ]


def _home(value: Any) -> Any:
    """A setting with `~` filled in: it may stand in the record of a run or not."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def refuse_changes(begun: RunConfig, config: RunConfig, folder: Path) -> None:
    """Refuse to go on with other settings than a run began with, but for those that change no result."""
    if changed := changes(begun, config):
        raise UserError(
            f"{str(folder)!r} holds an unfinished run with other settings: "
            + "; ".join(changed[:4])
            + ". Give the same ones, `liftplus train --resume FOLDER` to go on as it began, or another --out."
        )


def trained_only(folder: Path) -> bool:
    """Whether a run ended between training and its test, at a picture that cannot be read."""
    done, under_way = (folder / checkpoint.FILE).is_file(), (folder / checkpoint.STATE).is_file()
    return done and not under_way and not (folder / "metrics.json").is_file()


def begun_with(folder: Path | None) -> RunConfig | None:
    """The settings of the run in a folder, finished or not; None where there is none."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return from_dict(saved(disk.read_json(folder / CONFIG, "config")["config"]))
