"""Accuracy of `mini_clip` in training on styles that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from liftplus.backbones import mini_clip
from liftplus.data import openmoji
from liftplus.data.compose import Composition
from mini_clip_pairs import Library
from mini_clip_sets import HELD_OUT


class Encoder(Protocol):
    """What gives unit vectors for pictures and texts."""

    def encode_image(self, images: Tensor) -> Tensor: ...

    def encode_text(self, ids: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Watch:
    """Zero-shot accuracy in percent on the drawings of one style.

    Args:
        style: its name.
        names: the classes.
        art: uint8 RGBA [classes, 4, s, s].
        per_class: pictures of each class.
    """

    style: str
    names: list[str]
    art: Tensor
    per_class: int

    def ranks(self, model: Encoder, device: str) -> list[int]:
        """For each picture, how many classes' names are nearer to it than its own."""
        generator, names = torch.Generator().manual_seed(77), self.names
        labels = torch.arange(len(names)).repeat_interleave(self.per_class)
        ids = mini_clip.MiniTokenizer()([f"a photo of a {name}." for name in names])
        found: list[int] = []
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            classes = model.encode_text(ids.to(device)).float()
            for rows in labels.split(250):
                second = torch.randint(len(names), (len(rows),), generator=generator)
                present = torch.rand(len(rows), 2, generator=generator) < 0.3
                world = Composition(present, mini_clip.IMAGE_SIZE, generator, scale=(0.5, 1.0))
                images = world.draw(torch.stack([self.art[rows], self.art[second]], 1))
                shown = model.encode_image(images.to(device)).float()
                with torch.autocast(device, enabled=False):  # two names near to each other would tie in half precision
                    near = shown @ classes.T
                own = near.gather(1, rows[:, None].to(device))
                found += (near > own).sum(1).tolist()
        return found

    def accuracy(self, ranks: list[int], ways: int | None = None) -> float:
        """Accuracy among all classes, or the expected one among `ways`, the others drawn at random."""
        others, wrong = len(self.names) - 1, (ways or len(self.names)) - 1
        right = [comb(others - rank, wrong) / comb(others, wrong) for rank in ranks]
        return 100 * sum(right) / len(right)


def watches(folder: Path, words: dict[str, dict[str, Any]]) -> list[Watch]:
    """The held-out styles, things alone, and OpenMoji's test classes."""
    found = []
    for style in HELD_OUT:
        library = Library(folder, words, only=(style,))
        things = [concept for concept in library.concepts if concept.weight >= 1]
        places = [concept.drawings()[0] for concept in things]
        art = torch.stack([torch.from_numpy(library.pictures[at][row].copy()) for at, row in places])
        found.append(Watch(style, [thing.name for thing in things], art.permute(0, 3, 1, 2), 4))
    return [*found, Watch("OpenMoji", *openmoji.sprites(128, openmoji.CLASSES), per_class=10)]
