"""Backbones by name: short names for much-used weights, and every timm and open_clip model under its own.

Each library takes seconds to import, so it is imported only for one of its own backbones.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from liftplus.backbones import mini_clip
from liftplus.backbones import weights as weight_files
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.unfilled import Unfilled
from liftplus.errors import UserError
from liftplus.machine.determinism import own_stream
from liftplus.names import full_backbone as full_name
from liftplus.names import presets


@cache
def entries() -> dict[str, dict[str, Any]]:
    """The short names, each with the full name behind it and a line about it."""
    return presets("backbones")


def find(pattern: str) -> list[str]:
    """All names, short and full, that contain the pattern; case does not matter."""
    import open_clip
    import timm

    names = [*entries(), *(f"timm/{name}" for name in timm.list_pretrained())]
    names += [f"open_clip/{arch}/{tag}" for arch, tag in open_clip.list_pretrained()]
    return [name for name in names if pattern.casefold() in name.casefold()]


def present() -> list[str]:
    """Short names of the backbones whose weights are on this machine, beside the bundled ones; no hub is asked."""

    def is_here(name: str) -> bool:
        try:
            return locate(BackboneConfig(name=name), fetch=False) is not None
        except UserError:
            return False

    return [name for name in entries() if name not in mini_clip.WEIGHTS and is_here(name)]


@dataclass(frozen=True)
class Traits:
    """What a backbone offers, known without its weights."""

    reads_text: bool
    kinds: frozenset[str]  # of the image tower's sites


@cache
def traits(name: str, weights: str | None = None) -> Traits:
    """Whether a backbone has a text tower, and the kinds of sites of its image tower.

    For hf/OWNER/NAME, the config.json beside the given weights may decide what the name stands for.
    """
    backbone = without_weights(BackboneConfig(name=name, weights=weights if name.startswith("hf/") else None))
    return Traits(backbone.text is not None, backbone.kinds())


def without_weights(config: BackboneConfig) -> Backbone:
    """A backbone on the meta device: shapes and sites, and no values."""
    try:
        with torch.device("meta"), Unfilled():
            return load(config, weights=False)
    except RuntimeError:  # older timm calculates widths and rates with tensors, and reads them
        with Unfilled():
            return load(config, weights=False).to("meta")


def locate(config: BackboneConfig, *, fetch: bool = True) -> Path | None:
    """A backbone's weight file on this machine, without reading it; None for random weights.

    Raises:
        UserError: it is not here, and the hub does not give it; without `fetch`, the hub is not asked.
    """
    if not config.pretrained:
        return None
    config = _in_library(config, fetch=fetch)
    library, _, rest = full_name(config.name).partition("/")
    if library in mini_clip.WEIGHTS:
        return weight_files.existing(mini_clip.weight_file(config))
    if library == "timm":
        from liftplus.backbones import from_timm

        return from_timm.locate(config, rest, fetch=fetch)
    from liftplus.backbones import from_open_clip

    arch, _, tag = rest.partition("/")
    return from_open_clip.locate(config, arch, tag, fetch=fetch)


def identity(config: BackboneConfig) -> str | None:
    """What runs record of a backbone's weights, `Backbone.identity`; None where they are not on this machine."""
    try:
        path = locate(config, fetch=False)
    except UserError:
        return None
    return _identity(config, 0 if path is None else path.stat().st_mtime_ns)


@cache
def _identity(config: BackboneConfig, _changed: int) -> str:
    return load(config).identity


def refuse_other_weights(backbone: Backbone, identity: str, run: str, give: str) -> None:
    """Refuse a backbone whose weights are not those that a run was trained on.

    Args:
        identity: of the run's weights.
        run: how the message begins, such as "The run in 'runs/a'".
        give: how the user gives the path of the right file.
    """
    if backbone.identity != identity:
        raise UserError(
            f"{run} was trained on other weights of {backbone.name!r} (SHA-256 {identity[:12]}…, here "
            f"{backbone.identity[:12]}…). Put the original file in place, or give its path: {give}."
            f"{mini_clip.place_of(identity)}"
        )


def load(config: BackboneConfig, *, weights: bool = True) -> Backbone:
    """Build a backbone with its weights, or with random ones.

    The random weights of pretrained=false are the same in every process and for every seed of a run, so a run stores
    only what it learned, as with any other backbone.
    """
    if weights and not config.pretrained:
        backbone = load(config, weights=False)
        # Other versions of torch or of the library may draw other weights; a trained run must not load onto those.
        backbone.identity = weight_files.identity_of_tensors(backbone.state_dict())
        return backbone
    if weights and (config.pooling is not None or config.positions == "plain"):
        without_weights(config)  # refuses what cannot be before any weights are fetched
    given = _in_library(config, weight=weights)
    with own_stream(0), Unfilled() if weights else nullcontext():
        try:
            backbone = _built(given, weights=weights)
        except weight_files.UnfitError as error:
            path = locate(given, fetch=False) if weights else None
            raise UserError(f"{error} {_described(path)}" if path else str(error)) from error
    _refuse_converted(backbone, config.name)
    if config.pooling is not None:
        from liftplus.backbones import from_timm

        from_timm.pool(backbone, config.pooling, config.name)
    if config.positions == "plain":
        from liftplus.backbones import positions

        positions.check(backbone, config.name)
    if weights:
        _read_beside(backbone, given)
    if given is not config:
        from liftplus.backbones import from_hub

        backbone.name, backbone.label = config.name, f"backbone {config.name!r}"
        backbone.facts = replace(backbone.facts, saw_imagenet=from_hub.saw_imagenet(config))
    if config.interpolation is not None:
        backbone.facts = replace(backbone.facts, interpolation=config.interpolation)
    if config.grad_checkpointing:
        backbone.recompute()
    return backbone


def _described(path: Path) -> str:
    """What a file that fits no backbone seems to be."""
    from liftplus.backbones import counterparts, forms, transformers_config

    table = weight_files.outline(path)
    if forms.part_of_several(path):
        return forms.of_parts(path.parent)
    try:
        transformers_config.read(path.parent)
        seems = transformers_config.named_by_timm(path.parent) or counterparts.described(table)
    except UserError as error:  # of a family that is not read
        seems = str(error)
    return weight_files.described(list(table), seems)


def _in_library(config: BackboneConfig, *, weight: bool = True, fetch: bool = True) -> BackboneConfig:
    """The configuration of the backbone that equals a model of transformers; any other configuration as it is."""
    if not config.name.startswith("hf/"):
        return config
    from liftplus.backbones import from_hub

    return from_hub.same(config, weight=weight, fetch=fetch)


def _read_beside(backbone: Backbone, config: BackboneConfig) -> None:
    """Add notes on a weight file, and apply the configuration beside a file in transformers' form."""
    path = locate(config, fetch=False)
    if path is None:
        return
    kind = None if full_name(config.name) in mini_clip.WEIGHTS else weight_files.family_of(path)
    if kind is not None or config.weights is not None:
        backbone.notes += weight_files.remarks(path)
    if kind is not None:
        from liftplus.backbones import transformers_config

        transformers_config.settle(backbone, kind, path, config.positions)


def _refuse_converted(backbone: Backbone, name: str) -> None:
    """Refuse a tower of timm, by itself or within open_clip's model, that the environment made another class.

    The conversion of timm 1.0.31 leaves the class token out of a Perception Encoder's attention pool.
    """
    if type(backbone.image).__name__ == "NaFlexVit" and "naflex" not in full_name(name).lower():
        raise UserError(
            f"TIMM_USE_NAFLEX or TIMM_USE_NAFLEXVIT is set in the environment, so timm builds {name!r} as a NaFlexVit, "
            "which can have other features. Unset it and start again."
        )


def _built(config: BackboneConfig, *, weights: bool) -> Backbone:
    """Build a backbone with the module for its library."""
    library, _, rest = full_name(config.name).partition("/")
    if library in mini_clip.WEIGHTS:
        return mini_clip.backbone(config, weights=weights)
    if library == "timm":
        from liftplus.backbones import from_timm

        return from_timm.backbone(config, rest, weights=weights)
    from liftplus.backbones import from_open_clip

    arch, _, tag = rest.partition("/")
    return from_open_clip.backbone(config, arch, tag, weights=weights)
