"""Batches of pictures and captions for the training of `mini_clip`, from the drawings that `mini_clip_art` keeps.

A concept is drawn by many artists. Its pictures in a batch come from different ones where there are several, on
varied backgrounds and restyled at random; icons in one tone are inked and filled in random colours.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from liftplus.backbones import mini_clip
from liftplus.data.compose import Composition
from mini_clip_sets import HELD_OUT

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a small {}.",
    "a close-up photo of a {}.",
    "there is a {} here.",
    "a cartoon {}.",
    "the {}",
    "a {} on a coloured background.",
    "art of a {}.",
    "a rendering of a {}.",
    "an emoji of a {}.",
    "a blurry photo of a {}.",
    "a tilted {}.",
    "one {}",
)
COLOURED_SHARE = 0.7
"""How often a picture is taken from a coloured set where a concept has both kinds."""
# Flags are a seventh of all emoji and resemble each other; people and clock variants hardly less.
GROUP_WEIGHTS = {"flags": 0.15, "people & body": 0.35, "symbols": 0.5, "smileys & emotion": 0.6}
_INK = ((0.0, 0.35, 0.6), (0.75, 1.0, 0.12), (0.0, 1.0, 0.28))  # darkest, lightest, how often


@dataclass
class Concept:
    """One thing: its name, its emoji's words if it has one, and where its drawings are by artist."""

    name: str
    emoji: dict[str, Any] | None
    coloured: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    toned: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def artists(self) -> int:
        return len(self.coloured.keys() | self.toned.keys())

    @property
    def weight(self) -> float:
        """How often it is drawn: an emoji by its group, another by how many artists draw it."""
        if self.emoji is None:
            return min(self.artists, 10) ** 0.5
        return GROUP_WEIGHTS.get(self.emoji["group"], 1.0)

    def drawings(self) -> list[tuple[int, int]]:
        """Places of all its drawings."""
        return [place for kind in (self.coloured, self.toned) for places in kind.values() for place in places]

    def choose(self, views: int, rng: random.Random) -> list[tuple[int, int]]:
        """Places of `views` drawings, each by another artist where there are as many."""
        chosen: list[tuple[int, int]] = []
        used: set[str] = set()
        for _ in range(views):
            kinds = [self.coloured, self.toned] if rng.random() < COLOURED_SHARE else [self.toned, self.coloured]
            options = [(kind, artist) for kind in kinds for artist in kind if artist not in used]
            options = options or [(kind, artist) for kind in kinds for artist in kind]
            first = [option for option in options if option[0] is options[0][0]]
            kind, artist = rng.choice(first)
            used.add(artist)
            chosen.append(rng.choice(kind[artist]))
        return chosen


class Library:
    """All drawings on disk and the concepts that they show; an icon's concept needs two artists.

    Args:
        folder: where `mini_clip_art.draw` keeps them.
        table: emoji by name, with their keywords, group and subgroup.
        only: the sets to read; without it, all but those held out.
    """

    def __init__(self, folder: Path, table: dict[str, dict[str, Any]], only: tuple[str, ...] | None = None) -> None:
        self.pictures: list[NDArray[np.uint8]] = []
        found: dict[str, Concept] = {}
        for path in sorted(folder.glob("*.json")):
            if path.stem in HELD_OUT if only is None else path.stem not in only:
                continue
            about = json.loads(path.read_text(encoding="utf-8"))
            pictures: NDArray[np.uint8] = np.load(path.with_suffix(".npy"), mmap_mode="r")
            for row, name in enumerate(about["concepts"]):
                concept = found.setdefault(name, Concept(name, table.get(name)))
                kind = concept.coloured if pictures.shape[-1] == 4 else concept.toned
                kind[about["artist"]].append((len(self.pictures), row))
            self.pictures.append(pictures)
        enough = 2 if only is None else 1
        kept = (concept for concept in found.values() if concept.emoji is not None or concept.artists >= enough)
        self.concepts = sorted(kept, key=lambda concept: concept.name)

    @property
    def size(self) -> int:
        """Number of drawings."""
        return sum(len(concept.drawings()) for concept in self.concepts)

    def weights(self, emoji_share: float) -> Tensor:
        """How often each concept is drawn, all emoji together by a share."""
        emoji = torch.tensor([concept.emoji is not None for concept in self.concepts])
        weight = torch.tensor([concept.weight for concept in self.concepts], dtype=torch.float64)
        shares = {True: emoji_share, False: 1 - emoji_share}
        for kind, share in shares.items():
            rows = emoji == kind
            weight[rows] *= share / weight[rows].sum().clamp_min(1e-9)
        return weight

    def picture(self, place: tuple[int, int], rng: random.Random) -> NDArray[np.uint8]:
        """One drawing, RGBA [s, s, 4]; an icon in one tone in random colours."""
        drawn = self.pictures[place[0]][place[1]]
        return drawn if drawn.shape[-1] == 4 else inked(drawn, rng)


def inked(drawn: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """An icon [s, s, 2] in one random ink; what it encloses stays empty or is filled, in one colour or in several."""
    low, high, _ = rng.choices(_INK, [share for *_, share in _INK])[0]
    ink = np.array([rng.uniform(low, high) * 255 for _ in range(3)], dtype=np.float32)
    alpha, region = drawn[..., :1].astype(np.float32) / 255, drawn[..., 1]
    out = np.empty((*region.shape, 4), dtype=np.float32)
    way = rng.random()
    if way < 0.4 or not region.any():
        out[..., :3], out[..., 3:] = ink, alpha * 255
        return out.astype(np.uint8)
    colours = np.array([[rng.random() * 255 for _ in range(3)] for _ in range(int(region.max()) + 1)], dtype=np.float32)
    if way < 0.7:
        colours[:] = colours[0]
    filled = (region > 0).astype(np.float32)[..., None]
    whole = alpha + filled * (1 - alpha)
    mixed = ink * alpha + colours[region] * filled * (1 - alpha)
    out[..., :3], out[..., 3:] = mixed / np.maximum(whole, 1e-4), whole * 255
    return out.clip(0, 255).astype(np.uint8)


def caption(concept: Concept, rng: random.Random) -> str:
    """One description of a concept: mostly its name in a template, else keywords or its kind."""
    template = rng.choice(TEMPLATES)
    if concept.emoji is None:
        return template.format(concept.name)
    name, tags, draw_of = concept.emoji["name"], concept.emoji["tags"], rng.random()
    if draw_of < 0.78:
        return template.format(name)
    if draw_of < 0.88 and tags:
        return template.format(name) + " " + " ".join(rng.sample(tags, min(len(tags), 2)))
    if draw_of < 0.95 and tags:
        return template.format(rng.choice(tags))
    return template.format(name) + f" {concept.emoji['kind']}"


def _largest(art: Tensor) -> Tensor:
    """The largest value among each pixel and its eight neighbours; PyTorch's own pooling takes five times as long."""
    art = F.pad(art, (1, 1, 1, 1), mode="replicate")
    art = torch.maximum(torch.maximum(art[..., :-2], art[..., 1:-1]), art[..., 2:])
    return torch.maximum(torch.maximum(art[..., :-2, :], art[..., 1:-1, :]), art[..., 2:, :])


def restyle(art: Tensor, generator: torch.Generator) -> Tensor:
    """Change the style of placed objects [n, 4, s, s] at random: outline, inked edges, flat or faded colours."""

    def some(share: float) -> Tensor:
        return (torch.rand(len(art), generator=generator) < share).float().view(-1, 1, 1, 1)

    colour, alpha = art[:, :3], art[:, 3:]
    levels = torch.randint(2, 5, (len(art), 1, 1, 1), generator=generator)
    colour = torch.lerp(colour, (colour * levels).round() / levels, some(0.25))
    tone = torch.rand(len(art), 3, 1, 1, generator=generator) * 0.6 + 0.4
    colour = torch.lerp(colour, tone, some(0.15) * (0.5 + 0.5 * torch.rand(len(art), 1, 1, 1, generator=generator)))
    colour = torch.lerp(colour, colour.mean(1, keepdim=True).expand_as(colour), some(0.1))
    light = art[:, :3].mean(1, keepdim=True) * alpha
    edges = _largest(light) + _largest(-light)
    colour = colour * (1 - (edges * 2.5).clamp(0, 1) * some(0.35))
    ink = torch.rand(len(art), 1, 1, 1, generator=generator) * 0.25
    ink = torch.where(torch.rand(len(art), 1, 1, 1, generator=generator) < 0.15, 1 - ink, ink)
    wide = torch.lerp(alpha, _largest(alpha), some(0.4))
    return torch.cat([torch.lerp(ink.expand_as(colour), colour, alpha / wide.clamp_min(1e-4)), wide], 1)


@dataclass(frozen=True)
class Batch:
    """uint8 pictures [views x concepts, 3, s, s], all first views, then all second ones; token ids; concept numbers."""

    pictures: Tensor
    ids: Tensor
    concepts: Tensor


class Pairs:
    """Endless batches of pictures of a concept, where possible by several artists, and one caption.

    No concept comes twice in a batch, since it would be a false negative.

    Args:
        library: the drawings.
        count: pictures of a batch.
        views: pictures of each concept.
        size: side of the pictures in pixels.
        emoji_share: share of a batch's concepts that are emoji.
        seed: seed of every random choice.
    """

    def __init__(self, library: Library, count: int, views: int, size: int, emoji_share: float, seed: int) -> None:
        self.library, self.count, self.views, self.size = library, count, views, size
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.weights = library.weights(emoji_share)
        self.tokenizer = mini_clip.MiniTokenizer()

    def next(self) -> Batch:
        """The next batch."""
        per_view = self.count // self.views
        chosen = torch.multinomial(self.weights, per_view, generator=self.generator)
        others = torch.multinomial(self.weights, self.count, replacement=True, generator=self.generator).tolist()
        present = torch.rand(self.views, per_view, 2, generator=self.generator) < 0.25
        side = self.library.pictures[0].shape[1]
        sprites = np.zeros((self.views, per_view, 2, side, side, 4), dtype=np.uint8)
        texts = []
        for row, main in enumerate(chosen.tolist()):
            concept = self.library.concepts[main]
            text = caption(concept, self.rng)
            for view, place in enumerate(concept.choose(self.views, self.rng)):
                sprites[view, row, 0] = self.library.picture(place, self.rng)
                if present[view, row, 1]:
                    other = self.library.concepts[others[view * per_view + row]]
                    sprites[view, row, 1] = self.library.picture(other.choose(1, self.rng)[0], self.rng)
            if present[0, row, 1] and self.rng.random() < 0.5:
                other = self.library.concepts[others[row]]
                text = text.rstrip(".") + self.rng.choice((" and a {}", " with a {}", ", {}")).format(other.name)
            texts.append(text)
        styled = partial(restyle, generator=self.generator)
        world = Composition(present.flatten(0, 1), self.size, self.generator, scale=(0.45, 1.0), restyle=styled)
        pictures = world.draw(torch.from_numpy(sprites).flatten(0, 1).permute(0, 1, 4, 2, 3))
        # Long captions are rare: most batches are cut to 16 tokens, an eighth trains all positions.
        length = mini_clip.CONTEXT_LENGTH if self.rng.random() < 0.125 else 16
        return Batch(pictures, self.tokenizer(texts, length), chosen)
