"""PatchDropout (Liu et al. 2023, arXiv 2208.07220, section 3): training steps see a random part of each picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.data.loader import seeded
from liftplus.errors import UserError


class PatchDropout:
    """Drops patch tokens before a tower's first block, while it is `on`; class and register tokens stay.

    Patches have their position embedding by then, and prompts come in later. The draw is uniform and without
    replacement, anew for each picture and epoch. At keep < 1 it is made under the autocast that training runs in, since
    it counts the patches by a forward pass of one picture.

    Args:
        keep: share of the patch tokens that stay, in (0, 1]; at least one stays.

    Raises:
        UserError: at keep < 1, where the image tower is no plain sequence of tokens.
    """

    def __init__(self, backbone: Backbone, keep: float) -> None:
        self.keep, self.prefix, self.count = keep, 0, 0
        self.staying: Tensor | None = None
        if keep == 1:
            return
        check(backbone, keep)
        site = backbone.sites("tokens")[0]
        self.prefix = site.prefix
        self.patches = _length(backbone, site.entry) - self.prefix
        self.count = max(1, round(keep * self.patches))
        site.entry.register_forward_pre_hook(self._leave_out, prepend=True)

    def draw(self, seeds: Tensor, rows: int, device: torch.device) -> Tensor | None:
        """Places of the patches that stay [rows, staying], ascending, by the pictures' seeds [B]; None for all.

        Rows beyond B serve a compiled model, which fills a short batch up to the usual size.
        """
        if self.keep == 1:
            return None
        seeds = F.pad(seeds, (0, rows - len(seeds)))
        drawn = [torch.randperm(self.patches, generator=seeded(seed)) for seed in seeds.tolist()]
        places = torch.stack([order[: self.count].sort().values for order in drawn])
        return places.to(device, non_blocking=True)

    @contextmanager
    def on(self, staying: Tensor | None) -> Iterator[None]:
        """Within this, a forward pass sees the patches at these places alone [rows, staying]; None: all of them."""
        self.staying = staying
        try:
            yield
        finally:
            self.staying = None

    def _leave_out(self, _block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.staying is None:
            return args
        tokens, *rest = args
        places = self.staying[: len(tokens), :, None].expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, : self.prefix], tokens[:, self.prefix :].gather(1, places)], 1), *rest


def check(backbone: Backbone, keep: float) -> None:
    """Refuse to leave patches out of a tower that needs all of them."""
    if keep == 1:
        return
    sites = backbone.sites("tokens")
    if not sites:
        why = "its image tower is no transformer with one sequence of tokens, or adds a bias for pairs of positions"
    elif sites[0].layer:
        why = "its first block takes no sequence of tokens"
    elif any(_turns(site.entry) for site in sites):
        why = "its blocks turn queries and keys by position (rotary embedding)"
    else:
        return
    raise UserError(
        f"train.keep={keep:g} leaves out patches, which {backbone.name!r} cannot do without: {why}. "
        "Use train.keep=1, or a plain ViT such as clip_vit_b16."
    )


def _turns(block: nn.Module) -> bool:
    return isinstance(getattr(getattr(block, "attn", None), "num_prefix_tokens", None), int)


def _length(backbone: Backbone, first: nn.Module) -> int:
    """Tokens that enter the first block."""
    seen: list[int] = []
    # Before the hooks of prompts, which come in at the same place.
    hook = first.register_forward_pre_hook(lambda _block, args: seen.append(args[0].shape[1]), prepend=True)
    size, device = backbone.facts.image_size, next(backbone.image.parameters()).device
    with torch.no_grad():
        backbone(torch.zeros(1, 3, size, size, device=device))
    hook.remove()
    return seen[0]
