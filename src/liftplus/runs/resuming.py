"""Go on with a run that diverged: from the last sound state, with a lower rate or more precision."""

from __future__ import annotations

from pathlib import Path

from liftplus.config import RunConfig, flat, from_dict, saved
from liftplus.machine import disk
from liftplus.runs import changes
from liftplus.training.saved_state import Keeper

MENDING = ("train.lr", "precision")
"""Settings that a run may be given anew when it is resumed by name."""


def mended(folder: Path, config: RunConfig) -> list[str]:
    """Write down the settings that an unfinished run goes on with; a sentence on each that is new.

    Raises:
        UserError: settings differ that would make it another run.
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
