"""CoOp (Zhou et al. 2022): learned context vectors in place of the prompt's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.backbones.text import TextEncoder
from liftplus.errors import UserError
from liftplus.registry import register
from liftplus.tuners.base import Tuner


class Context(nn.Module):
    """Vectors [n, width] that stand in for the words at `places` of every prompt.

    The end-of-text token has the id `eos`; None: the largest id of a text.
    """

    def __init__(self, width: int, places: tuple[int, ...], eos: int | None = None) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.empty(len(places), width).normal_(0.0, 0.02))
        self.places, self.eos = places, eos

    def end(self, ids: Tensor) -> Tensor:
        """Position of the end-of-text token, [B, T] -> [B, 1]."""
        marks = ids if self.eos is None else (ids == self.eos).int()
        return marks.argmax(-1, keepdim=True)

    def columns(self, ids: Tensor) -> Tensor:
        """Token positions [B, n]: places count from after the start token, or, negative, back from the end token."""
        places = torch.tensor(self.places, device=ids.device)
        return torch.where(places >= 0, places + 1, places + self.end(ids))

    def replace(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook after the token embedding: ids [B, T], vectors [B, T, width]."""
        columns = self.columns(args[0])[..., None].expand(-1, -1, output.shape[-1])
        return output.scatter(1, columns, self.context.to(output.dtype).expand(len(output), -1, -1))


@register("tuner", "coop")
class CoOp(Tuner):
    """Context vectors shared by all classes (Zhou et al. 2022), in place of words of the prompt template.

    The template decides where the class name stands: "a photo of a {}." with places 0 to 3 has it at the end,
    "{} in a photo" with -3 to -1 at the front, "a {} in photo" with 0, -2, -1 in the middle.
    """

    needs = ("embedding",)
    by_layer = False
    identity_at_start = False

    side: Literal["image", "text", "both"] = "text"
    """Always the text side."""

    places: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=1)
    """Tokens of the prompt (mostly words) that are learned, counted from 0 at its start or from -1 at its end."""

    start: Literal["random", "words"] = "random"
    """First vectors: N(0, 0.02^2), or the template's own words."""

    def kinds(self, tower: Tower) -> Sequence[str]:
        if isinstance(tower, TextEncoder) and tower.tower.pool_type not in ("argmax", "eos"):
            raise UserError(
                f"Tuner {self.name!r} needs a text encoder that reads texts at their end-of-text token; this one pools "
                f"by {tower.tower.pool_type!r}, so the end of a prompt's words is not known. Choose another tuner."
            )
        return self.needs

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        (site,) = self.sites(tower, "embedding")
        eos = None
        if isinstance(tower, TextEncoder) and tower.tower.pool_type == "eos":
            eos = int(tower.tower.eos_id)
        branch = Context(site.out_width, tuple(dict.fromkeys(self.places)), eos)
        if isinstance(tower, TextEncoder) and tower.ids is not None:
            self._look(branch, tower, tower.ids)
        site.exit.register_forward_hook(branch.replace)
        return branch

    @torch.no_grad()
    def _look(self, branch: Context, tower: TextEncoder, ids: Tensor) -> None:
        """Compare the places with all class prompts [P, tokens]; start from their words where asked to."""
        columns = branch.columns(ids)
        inside = (columns >= 1) & (columns < branch.end(ids))
        words = ids.gather(1, columns.clamp(0, ids.shape[1] - 1))
        if not inside.all():
            raise UserError(
                f"coop.places is {self.places}, which lies outside the shortest class prompt. "
                "Use fewer places, or a longer prompt template."
            )
        if self.start == "words":
            if not (words == words[:1]).all():
                raise UserError(
                    f"coop.start=words needs the same words at the places {self.places} of every class "
                    "prompt, but the class names stand there, or the templates of the prompt set differ. "
                    "Change coop.places to the template's words, or take a set of one template."
                )
            branch.context.copy_(tower.tower.token_embedding(words[0]))
