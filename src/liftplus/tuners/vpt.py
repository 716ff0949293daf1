"""Visual prompt tuning (Jia et al. 2022): learned tokens beside those of the input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Site, Tower, expect_tokens
from liftplus.registry import register
from liftplus.tuners.base import TEXT_PROMPTS, Sized

LIFT_PROMPTS = 10


class Prompt(nn.Module):
    """p tokens [p, width] that enter before one block and leave after another; N(0, 0.02^2) at the start.

    Attributes:
        prefix: tokens that stay in front of them when they enter.
        span: the blocks before and after which they enter and leave.
        front: tokens in front of them when they leave; prompts that entered later may be among these.
    """

    def __init__(self, width: int, length: int, prefix: int, span: tuple[int, int]) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(length, width).normal_(0.0, 0.02))
        self.prefix, self.span, self.front = prefix, span, prefix

    def meet(self, others: Sequence[Prompt]) -> None:
        """Count the prompts of another tuner that enter while these are in and are still there when they leave."""
        for other in others:
            before, after = (self, other) if self.span[0] < other.span[0] else (other, self)
            if after.span[0] <= before.span[1] < after.span[1]:
                before.front += len(after.prompt)

    def insert(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before a block: [class and registers; prompts; rest]."""
        x = args[0]
        prompt = self.prompt.to(x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat([x[:, : self.prefix], prompt, x[:, self.prefix :]], dim=1)
        return (x, *args[1:]), self.widen(kwargs, x.shape[1])

    def widen(self, kwargs: dict[str, Any], length: int) -> dict[str, Any]:
        """The block's keywords with a causal mask [length, length] that covers the prompts, where there is a mask."""
        mask = kwargs.get("attn_mask")
        if mask is None:
            return kwargs
        return kwargs | {"attn_mask": mask.new_full((length, length), float("-inf")).triu(1)}

    def mask(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook before a further block while the prompts are in: only its mask has to change."""
        return args, self.widen(kwargs, args[0].shape[1])

    def remove(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Hook after a block: the tokens without the prompts, so that whatever follows sees the shape it knows."""
        return torch.cat([output[:, : self.front], output[:, self.front + len(self.prompt) :]], dim=1)


class _Prompts(Sized):
    needs = ("tokens",)
    identity_at_start = False

    length: int | None = Field(default=None, ge=1)
    """Number of prompts p; by default 2^floor(log2(C / L)), on the text side 2; with sizes=lift 10."""

    def _length(self, tower: Tower, num_classes: int) -> int:
        if self.length is not None or tower.side == "text":
            return self.length or TEXT_PROMPTS
        return LIFT_PROMPTS if self.sizes == "lift" else self.auto_width(num_classes, 1, tower)

    def _span(self, sites: list[Site], length: int, tower: Tower) -> Prompt:
        """Prompts that enter at the first of these neighbouring blocks and leave after the last."""
        branch = Prompt(sites[0].width, length, sites[0].prefix, (sites[0].layer, sites[-1].layer))
        branch.meet(_inside(tower))
        sites[0].entry.register_forward_pre_hook(branch.insert, with_kwargs=True)
        for site in sites:
            expect_tokens(site.entry, length)
        for site in sites[1:]:
            site.entry.register_forward_pre_hook(branch.mask, with_kwargs=True)
        sites[-1].exit.register_forward_hook(branch.remove)
        return branch


def _inside(tower: Tower) -> list[Prompt]:
    """The prompts that the tower already has."""
    hooks = [hook for site in tower.sites("tokens") for hook in site.exit._forward_hooks.values()]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, Prompt)]


@register("tuner", "vpt_deep")
class VPTDeep(_Prompts):
    """Each chosen block gets prompts of its own in place of those before (Jia et al. 2022, "deep")."""

    order = 10  # after vpt_shallow: what enters last, just behind the prefix, is what leaves first

    stay: bool = True
    """Whether prompts stay in the sequence until the next chosen block replaces them, as in LIFT+, or leave after
    their own block. Where all blocks are chosen it is the same."""

    @classmethod
    def upgraded(cls, options: dict[str, Any]) -> dict[str, Any]:
        return ({} if options.get("layers", "all") == "all" else {"stay": False}) | super().upgraded(options)

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        length, layers = self._length(tower, num_classes), nn.ModuleDict()
        chosen = [site.layer for site in self.sites(tower, "tokens")]
        for first, following in pairwise([*chosen, tower.depth]):
            last = following - 1 if self.stay else first
            span = [site for site in tower.sites("tokens") if first <= site.layer <= last]
            layers[str(first)] = self._span(span, length, tower)
        return layers


@register("tuner", "vpt_shallow")
class VPTShallow(_Prompts):
    """Prompts enter at the first chosen block and stay to the last one (Jia et al. 2022, "shallow")."""

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        chosen = [site.layer for site in self.sites(tower, "tokens")]
        sites = [site for site in tower.sites("tokens") if chosen[0] <= site.layer <= chosen[-1]]
        return nn.ModuleDict({str(sites[0].layer): self._span(sites, self._length(tower, num_classes), tower)})
