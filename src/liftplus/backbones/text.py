"""Text towers: open_clip's `TextTransformer` of any kind, or the bundled one, read out around their projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from liftplus.backbones.mini_towers import TextTower
from liftplus.backbones.sites import Site, Tower, residual_blocks, sites_of, split_packed_attention
from liftplus.errors import UserError

CHUNK = 256
AnyTextTower: TypeAlias = Any
"""open_clip's `TextTransformer`, or the bundled model's `TextTower`."""
# A class's prompt, or its several ones.
ClassTexts = Sequence[str] | Sequence[Sequence[str]]


def text_features(tower: AnyTextTower, ids: Tensor) -> Tensor:
    """Pooled features after the final LayerNorm and before the projection: [n, tokens] -> [n, width].

    Where `trims` holds, columns that are padding in every row may be left out: they change nothing.
    """
    x = tower.token_embedding(ids)
    if tower.cls_emb is not None:
        x = torch.cat([x, tower.cls_emb.to(x.dtype).expand(len(x), 1, -1)], dim=1)
    length = x.shape[1]
    x = x + tower.positional_embedding[:length].to(x.dtype)
    x = tower.transformer(x, attn_mask=_mask(tower, ids, length))
    if tower.cls_emb is not None:
        return tower.ln_final(x[:, -1])
    return tower.ln_final(x)[torch.arange(len(x), device=x.device), _read_at(tower, ids)]


def _read_at(tower: AnyTextTower, ids: Tensor) -> Tensor | int:
    """The token [n] whose vector is a text's feature; `argmax` is the end-of-text token, whose id is the largest."""
    if tower.pool_type == "argmax":
        return ids.argmax(dim=-1)
    if tower.pool_type == "eos":
        return (ids == tower.eos_id).int().argmax(dim=-1)
    return 0 if tower.pool_type == "first" else -1


def masks_padding(tower: AnyTextTower) -> bool:
    """Whether every text has an attention mask of its own, which hides its padding."""
    return bool(tower.use_pad_mask) or tower.cls_emb is not None


def trims(tower: AnyTextTower) -> bool:
    """Whether what follows the end of a text changes nothing: causal attention, read at the end-of-text token."""
    return tower.attn_mask is not None and tower.pool_type == "argmax" and not masks_padding(tower)


def _mask(tower: AnyTextTower, ids: Tensor, length: int) -> Tensor | None:
    """The mask that is added to the attention's logits: [length, length], [n x heads, length, length], or None."""
    causal: Tensor | None = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
    if not masks_padding(tower):
        return causal
    seen = ids != tower.pad_id
    if tower.cls_emb is not None:
        own = seen.new_ones(len(ids), 1)
        # CoCa's weights were trained with the class token, which stands last, masked as if it stood first.
        seen = torch.cat([seen, own] if tower.correct_cls_mask else [own, seen], dim=1)
    hidden = torch.zeros_like(seen, dtype=tower.positional_embedding.dtype).masked_fill_(~seen, float("-inf"))
    padding = hidden[:, None].expand(-1, length, -1).repeat_interleave(tower.heads, 0)
    return padding if causal is None else causal + padding


def nested(texts: ClassTexts) -> list[list[str]]:
    """One list of prompts a class, where a class may have been given by a single prompt."""
    return [[own] if isinstance(own, str) else list(own) for own in texts]


def centred(features: Tensor) -> Tensor:
    """Class features [C, joint] less their mean over the classes, of unit length again."""
    return F.normalize(features - features.mean(0), dim=-1)


def _pieces(counts: Sequence[int], chunk: int) -> Iterator[tuple[slice, slice]]:
    """Successive classes of at most `chunk` prompts together (or one class): slices of classes and of prompts."""
    first = row = taken = 0
    for k, count in enumerate(counts):
        if taken and taken + count > chunk:
            yield slice(first, k), slice(row, row + taken)
            first, row, taken = k, row + taken, 0
        taken += count
    if taken:
        yield slice(first, len(counts)), slice(row, row + taken)


class TextEncoder(Tower):
    """A text tower with its tokenizer and the projection to the joint space.

    Attributes:
        tower: the text transformer, its packed attention split (see `sites.SplitAttention`).
        tokenizer: texts to ids [n, context].
        logit_scale: logarithm of the scale of cosines between image and text.
        chunk: most prompts that are encoded at a time.
        texts: the class prompts that `forward` encodes, a list for each class; set by `read`.
        ids: their token ids [P, tokens], class by class.
        counts: number of prompts of each class [C]; None where each has one.
        centre: whether `forward` centres the class features.
    """

    side, label = "text", "the text encoder"
    ids: Tensor | None
    counts: Tensor | None

    def __init__(self, tower: AnyTextTower, tokenizer: Any, logit_scale: float, chunk: int = CHUNK) -> None:
        super().__init__()
        _check(tower)
        split_packed_attention(tower)
        self.tower = tower
        self.tokenizer = tokenizer
        self.logit_scale = logit_scale
        self.chunk = chunk
        self.texts: list[list[str]] = []
        self.centre = False
        self.register_buffer("ids", None, persistent=False)
        self.register_buffer("counts", None, persistent=False)

    @property
    def projection(self) -> Tensor:
        """P_text, [width, joint]; the identity where the tower has none."""
        projection = self.tower.text_projection
        if projection is None:
            return torch.eye(self.dim, device=self.tower.positional_embedding.device)
        return projection.weight.T if isinstance(projection, nn.Linear) else projection

    @property
    def joint_dim(self) -> int:
        """Width of the joint space."""
        return int(self.projection.shape[1])

    @property
    def dim(self) -> int:
        return int(self.tower.width)

    @property
    def trunk(self) -> nn.Module:
        return self.tower

    @property
    def to_joint(self) -> nn.Parameter | None:
        """The weight of the projection: P_text [width, joint], or a linear's [joint, width]."""
        projection = self.tower.text_projection
        return getattr(projection, "weight", projection)

    def all_sites(self) -> list[Site]:
        joint, last = self.joint_dim, self.depth - 1
        embedding = self.tower.token_embedding
        # A mask for each text's own length leaves no room for further tokens.
        sites = sites_of(residual_blocks(self.tower), None if masks_padding(self.tower) else 1)
        sites.append(Site("embedding", 0, embedding, embedding, 1, self.dim))
        sites.append(Site("joint", last, self.joint_end, self.joint_end, joint, joint))
        return sites

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, tokens], cut after the longest text's end where what follows changes nothing."""
        ids: Tensor = self.tokenizer(list(texts))
        if trims(self.tower):
            ids = ids[:, : int(ids.argmax(-1).max()) + 1]
        return ids.to(self.tower.positional_embedding.device)

    def read(self, texts: ClassTexts, *, centre: bool = False) -> None:
        """Set the class prompts that `forward` encodes, one or several a class, and whether it centres them."""
        self.texts, self.centre = nested(texts), centre
        self.ids = self.tokens([text for own in self.texts for text in own])
        self.counts = self._counts(self.texts)

    def joint(self, ids: Tensor) -> Tensor:
        """Ids [n, tokens] to unit vectors in the joint space, fp32 [n, joint]; tuners act, gradients flow."""
        features = text_features(self.tower, ids)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.joint_end(self._project(features.float())), dim=-1)

    def forward(self) -> Tensor:
        """Unit vectors of the classes, fp32 [C, joint], from their prompts.

        Where gradients flow through more than `chunk` prompts, activations are computed again in the backward pass:
        memory holds those of one chunk, however many classes there are.
        """
        assert self.ids is not None, "the class prompts were never read"
        pieces = list(_pieces([len(own) for own in self.texts], self.chunk))
        encode: Callable[[Tensor, Tensor | None], Tensor] = self._classes
        if torch.is_grad_enabled() and len(pieces) > 1:
            # Nothing in a text tower draws random numbers: there is no state to restore.
            encode = partial(checkpoint, self._classes, use_reentrant=False, preserve_rng_state=False)
        parts = [
            encode(self.ids[rows], None if self.counts is None else self.counts[classes]) for classes, rows in pieces
        ]
        features = torch.cat(parts)
        return centred(features) if self.centre else features

    @torch.no_grad()
    def encode(self, texts: ClassTexts) -> Tensor:
        """Unit vectors in the joint space of texts or of classes with several prompts, fp32 [n, joint]."""
        classes = nested(texts)
        parts = []
        for piece, _ in _pieces([len(own) for own in classes], self.chunk):
            ids = self.tokens([text for own in classes[piece] for text in own])
            parts.append(self._classes(ids, self._counts(classes[piece])))
        return torch.cat(parts)

    def _counts(self, classes: list[list[str]]) -> Tensor | None:
        counts = [len(own) for own in classes]
        if all(count == 1 for count in counts):
            return None
        return torch.tensor(counts, device=self.tower.positional_embedding.device)

    def _classes(self, ids: Tensor, counts: Tensor | None) -> Tensor:
        """Ids of successive classes' prompts [P, tokens] to the classes' unit vectors: the mean over each one's."""
        prompts = self.joint(ids)
        if counts is None:
            return prompts
        owners = torch.repeat_interleave(counts, output_size=len(ids))
        sums = prompts.new_zeros(len(counts), prompts.shape[1]).index_add(0, owners, prompts)
        return F.normalize(sums, dim=-1)  # the mean points where the sum does

    def _project(self, features: Tensor) -> Tensor:
        projection = self.tower.text_projection
        if projection is None:
            return features
        if isinstance(projection, nn.Linear):
            bias = None if projection.bias is None else projection.bias.float()
            return F.linear(features, projection.weight.float(), bias)
        return features @ projection.float()


def _check(tower: object) -> None:
    """Refuse a text tower that cannot be read out."""
    if isinstance(tower, TextTower):
        return
    from open_clip.transformer import TextTransformer  # imported already, where the tower is open_clip's

    if not isinstance(tower, TextTransformer):
        raise UserError(
            f"The text tower is a {type(tower).__name__}; liftplus reads open_clip's TextTransformer. "
            "Choose a model whose text tower is one, or a backbone without text."
        )
    if tower.pool_type not in ("argmax", "eos", "first", "last") and tower.cls_emb is None:
        raise UserError(
            f"The text tower pools by {tower.pool_type!r}; liftplus knows argmax, eos, first and last. "
            "Choose a model that gives one feature a text."
        )
