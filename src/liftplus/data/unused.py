"""Refuse `data.*` keys that have no effect on the source."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from liftplus.data.config import DataConfig
from liftplus.errors import UserError


def refuse(config: DataConfig, *, made: Sequence[str], benchmarks: Container[str], listed: Sequence[str]) -> None:
    """Refuse a key that would be silently ignored.

    Args:
        made: sources whose splits are made here.
        benchmarks: sources with lists of their own.
        listed: endings of files that name pictures.
    """
    if config.source == "openmoji_lt":
        given_keys = config.model_fields_set - {"source", "imbalance_ratio", "unreadable", "num_classes", "decode"}
        idle = [key for key in sorted(given_keys) if getattr(config, key) != type(config).model_fields[key].default]
        if idle:
            raise UserError(
                f"data.{idle[0]} has no effect on openmoji_lt, whose classes and splits are fixed; leave it out."
            )
    if config.imbalance_ratio is not None and config.source not in made:
        raise UserError(
            f"data.imbalance_ratio={config.imbalance_ratio:g} was given with data.source={config.source!r}, but only "
            f"{', '.join(made)} can be cut to a ratio; leave it out."
        )
    given = [config.train_list, config.val_list, config.test_list]
    no_lists = config.source in made or (config.train_list is None and Path(config.source).suffix.lower() not in listed)
    if any(path is not None for path in given) and no_lists and config.source not in benchmarks:
        raise UserError(
            f"Lists were given with data.source={config.source!r}, which is not read by lists; leave them out, or "
            "set data.train_list too and let data.source name the folder or archive that the paths start from."
        )
    named = [str(path).lower() for path in (config.source, *given)]
    annotated = config.source == "inat2018" or any(name.endswith(".json") for name in named)
    if config.level is not None and not annotated:
        raise no_levels(config)
    if config.boxes and not annotated:
        raise UserError(
            f"data.boxes=true was given with data.source={config.source!r}, but only COCO's and LVIS's annotations "
            "(.json) have boxes; give such a file, or leave it out."
        )
    for key in ("box_margin", "box_least"):
        if not config.boxes and getattr(config, key) != DataConfig.model_fields[key].default:
            raise UserError(
                f"data.{key} was given without data.boxes=true, so there are no boxes; add data.boxes=true."
            )


def no_levels(config: DataConfig) -> UserError:
    """The error for a taxonomy level that the data do not have."""
    return UserError(
        f"data.level={config.level!r} was given with data.source={config.source!r}, but only iNaturalist's "
        "annotations (.json) have taxonomy levels; leave it out."
    )
