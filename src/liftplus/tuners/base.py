"""What every tuner shares: the side and the layers it acts on, the sites it needs, the default width."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from liftplus.backbones.base import Backbone
from liftplus.backbones.sites import Site, Tower
from liftplus.errors import UserError
from liftplus.registry import Component
from liftplus.words import counted

TEXT_WIDTH, TEXT_PROMPTS = 4, 2


def auto_width(num_classes: int, divisor: int, blocks: int) -> int:
    """2^floor(log2(C / (divisor x L))), at least 1: the papers' width for C classes and L blocks."""
    return int(max(1, 2 ** math.floor(math.log2(num_classes / (divisor * blocks)))))


def nest(layers: nn.ModuleDict, layer: int, name: str, module: nn.Module) -> None:
    """Put a module at layers[layer][name]."""
    if str(layer) not in layers:
        layers[str(layer)] = nn.ModuleDict()
    inner = layers[str(layer)]
    assert isinstance(inner, nn.ModuleDict) and name not in inner, "one module a place"
    inner[name] = module


class Tuner(Component):
    """A light module: extra weights attached at sites of a frozen tower, or a share of its own weights set free."""

    layers: Literal["all"] | int | tuple[int, ...] = "all"
    """Blocks to act on: all, the last k, or a list of block numbers from 0."""

    side: Literal["image", "text", "both"] = "image"
    """Tower to act on. Anything on the text side needs head=joint, and encodes the class names in every step."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Kinds of sites without which the tuner cannot work."""

    order: ClassVar[int] = 0
    """Tuners are attached in ascending order, whatever order the user names them in."""

    identity_at_start: ClassVar[bool] = True
    """Whether features are bit-equal to the bare tower's before training."""

    by_layer: ClassVar[bool] = True
    """Whether `layers` applies to this tuner."""

    in_joint_space: ClassVar[bool] = False
    """Whether it acts after the features, so that only head=joint sees it."""

    @model_validator(mode="after")
    def _layers_apply(self) -> Self:
        if self.layers != "all" and not self.by_layer:
            raise ValueError(f"{self.name} does not act block by block; leave out {self.name}.layers")
        return self

    @classmethod
    def upgraded(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a saved run; an option that was added later gets the value that was in force."""
        return options

    @abstractmethod
    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        """Place the tuner on a tower; its new weights are the returned module's parameters."""

    def place(self, backbone: Backbone, num_classes: int) -> nn.Module:
        """Attach to every tower that `side` asks for; one module, or one for each side."""
        towers = self.towers(backbone)
        placed: dict[str, nn.Module] = {tower.side: self.attach(tower, num_classes) for tower in towers}
        return nn.ModuleDict(placed) if len(placed) > 1 else next(iter(placed.values()))

    def towers(self, backbone: Backbone) -> list[Tower]:
        """The towers to act on; refuses a backbone without the text encoder that `side` asks for."""
        towers: list[Tower] = []
        if self.side != "text":
            towers.append(backbone)
        if self.side != "image":
            towers.append(backbone.text_encoder(f"tuner {self.name} on the text side"))
        return towers

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that lacks a tower or a site, before anything is changed."""
        for tower in self.towers(backbone):
            self.chosen_layers(tower.depth)
            for kind in self.kinds(tower):
                self.need(tower, kind)

    def fits(self, backbone: Backbone) -> bool:
        """Whether the backbone has what the tuner needs."""
        try:
            self.check(backbone)
        except UserError:
            return False
        return True

    def kinds(self, tower: Tower) -> Sequence[str]:
        """Kinds of sites that these settings act on; all must be there."""
        return self.needs

    @property
    def needs_joint_head(self) -> bool:
        """Whether only the logits of head=joint depend on it."""
        return self.in_joint_space or self.side != "image"

    def sites(self, tower: Tower, kind: str) -> list[Site]:
        """The tower's sites of one kind on the chosen layers; refuses a tower that has none."""
        self.need(tower, kind)
        chosen = self.chosen_layers(tower.depth)
        return [site for site in tower.sites(kind) if site.layer in chosen]

    def need(self, tower: Tower, kind: str) -> None:
        """Refuse a tower that has no site of this kind."""
        if kind not in tower.kinds():
            raise UserError(
                f"Tuner {self.name!r} needs the site {kind!r}, which {tower.label} does not have. "
                "`liftplus info` lists the tuners that fit a backbone."
            )

    def chosen_layers(self, depth: int) -> frozenset[int]:
        """Block numbers that `layers` stands for."""
        if self.layers == "all":
            return frozenset(range(depth))
        chosen = range(depth - self.layers, depth) if isinstance(self.layers, int) else self.layers
        if not chosen or min(chosen) < 0 or max(chosen) >= depth:
            raise UserError(
                f"{self.name}.layers is {self.layers}; {counted(depth, 'block')} can be chosen, 0 to {depth - 1}: "
                f'give "all", a number from 1 to {depth} for the last blocks, or a list.'
            )
        return frozenset(chosen)


class Sized(Tuner):
    """A tuner whose size follows from the number of classes C and of blocks L, unless it is given."""

    sizes: Literal["lift+", "lift", "depth"] = "lift+"
    """Rule for a size that is not given: lift+ counts the chosen blocks for L; lift is the first paper's rule, which
    counts all blocks; depth is LIFT+'s rule with all blocks. With all blocks chosen, lift+ and depth are the same."""

    @classmethod
    def upgraded(cls, options: dict[str, Any]) -> dict[str, Any]:
        every = options.get("layers", "all") == "all"
        return options if every or "sizes" in options else options | {"sizes": "depth"}

    def blocks(self, tower: Tower) -> int:
        """Number of blocks L that the rule counts."""
        return len(self.chosen_layers(tower.depth)) if self.sizes == "lift+" else tower.depth

    def auto_width(self, num_classes: int, divisor: int, tower: Tower) -> int:
        """The rule's width."""
        return auto_width(num_classes, divisor, self.blocks(tower))


class Bottlenecked(Sized):
    """A tuner that puts bottlenecks of one width beside the tower's MLPs."""

    needs = ("mlp",)

    width: int | None = Field(default=None, ge=1)
    """Bottleneck width r; by default 2^floor(log2(C / 2L)), on the text side 4; see `sizes`."""

    min_width: int = Field(default=1, ge=1)
    """Smallest default width."""

    def chosen_width(self, tower: Tower, num_classes: int) -> int:
        """The width that was given, else the default."""
        default = TEXT_WIDTH if tower.side == "text" else max(self.min_width, self.auto_width(num_classes, 2, tower))
        return self.width or default
