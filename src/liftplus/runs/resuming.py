"""Resume a run that diverged, from its last saved state, with another learning rate or precision."""

from __future__ import annotations

from pathlib import Path

from liftplus.config import RunConfig, flat, from_dict, saved
from liftplus.machine import disk
from liftplus.runs import changes
from liftplus.training.saved_state import Keeper

MENDING = ("train.lr", "precision")
"""Settings that may change when a run is resumed with --resume."""


def mended(folder: Path, config: RunConfig) -> list[str]:
    """Record the settings that an unfinished run continues with, and return a note on each changed one.

    Raises:
        UserError: a setting differs that must not change during a run.
    """
    about = disk.read_json(folder / changes.CONFIG, "config")
    begun = from_dict(saved(about["config"]))
    old, new = flat(begun), flat(config)
    changed = {key: [old[key], new[key]] for key in MENDING if old[key] != new[key]}
    found = changes.changes(begun, config)
    if len(found) > len(changed):
        changes.refuse_changes(begun, config, folder)
    if not changed:
        return []
    with disk.locked(folder):
        at = Keeper(folder, {}, 1.0).position()
        past = [*about.get("changed", ()), {"epoch": at.epoch, "step": at.step, "settings": changed}]
        disk.write_json(folder / changes.CONFIG, about | {"config": config.to_dict(), "changed": past})
    return [f"{change}, after {at}." for change in found]
