"""Draw cut-out pictures on varied backgrounds, in batches and from a seeded generator.

The same world serves the pre-training of the bundled model (other artists' pictures) and the demo
data set (a style that the pre-training never saw), so that both differ in drawing style alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def rasterise(svg: str, size: int) -> Tensor:
    """Render one SVG document to a uint8 RGBA tensor [4, size, size], centred and undistorted."""
    import resvg_py  # an optional dependency, which only drawing needs

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, height=size, skip_system_fonts=True))
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
        picture.thumbnail((size, size), Image.Resampling.BICUBIC)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _within(rows: Tensor, piece: slice) -> slice:
    """The slice of ascending row numbers that lies within a piece of the rows."""
    low, high = torch.searchsorted(rows, torch.tensor([piece.start, piece.stop])).tolist()
    return slice(low, high)


class _Backgrounds:
    """The random choices of n backgrounds: plain colours, gradients, blotches and stripes."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.size = size
        kinds = torch.randint(0, 5, (n,), generator=generator)
        self.colours: list[tuple[Tensor, Tensor]] = []  # rows, and their coarse grids
        for kind, cells in enumerate((1, 2, 3, 6, 12)):
            chosen = (kinds == kind).nonzero().flatten()
            if len(chosen) == 0:
                continue
            base = torch.rand(len(chosen), 3, 1, 1, generator=generator)
            contrast = _uniform(len(chosen), 0.1, 0.8, generator).view(-1, 1, 1, 1)
            grid = torch.rand(len(chosen), 3, cells, cells, generator=generator)
            self.colours.append((chosen, base + (grid - base) * contrast))
        self.angle = _uniform(n, 0, math.pi, generator).view(-1, 1, 1)
        self.frequency = _uniform(n, 2, 16, generator).view(-1, 1, 1)
        self.phase = _uniform(n, 0, 2 * math.pi, generator).view(-1, 1, 1)
        self.strength = (_uniform(n, -0.3, 0.3, generator).clamp_min(0)).view(-1, 1, 1, 1)
        noise = torch.randn(n, 1, size, size, generator=generator)
        self.noise = noise.mul_(_uniform(n, 0, 0.06, generator).view(-1, 1, 1, 1))

    def draw(self, piece: slice) -> Tensor:
        """The backgrounds of one piece, [m, 3, size, size] in 0..1."""
        out = torch.empty(piece.stop - piece.start, 3, self.size, self.size)
        for rows, grid in self.colours:
            part = _within(rows, piece)
            if part.start < part.stop:
                # Colours as a batch: with three channels, PyTorch's rounding depends on the number of threads.
                flat, wide = grid[part].flatten(0, 1)[:, None], (self.size, self.size)
                grown = F.interpolate(flat, size=wide, mode="bilinear", align_corners=False)
                out[rows[part] - piece.start] = grown.unflatten(0, (-1, 3))[:, :, 0]
        axis, angle = torch.linspace(-1, 1, self.size), self.angle[piece]
        wave = axis * torch.cos(angle) + axis[:, None] * torch.sin(angle)
        wave = wave.mul_(self.frequency[piece]).mul_(3).add_(self.phase[piece]).sin_()
        out += self.strength[piece] * wave[:, None]
        out += self.noise[piece]
        return out.clamp_(0, 1)


@dataclass(frozen=True)
class _Layer:
    """The random choices of one object in each of m rows [m]: where it is, how it is turned, in which colours."""

    rows: Tensor
    affine: Tensor  # [m, 2, 3], from the canvas to the sprite
    saturation: Tensor
    contrast: Tensor
    brightness: Tensor
    turn: Tensor

    @classmethod
    def sample(
        cls,
        rows: Tensor,
        main: bool,
        scale: tuple[float, float],
        degrees: float,
        recolour: float,
        generator: torch.Generator,
    ) -> _Layer:
        """Draw them. The main object stays inside the picture, the others may be cut off at its edge."""
        n = len(rows)
        side = _uniform(n, scale[0], scale[1], generator) * (1.0 if main else 0.55)
        reach = (1.05 - side).clamp_min(0.0) if main else torch.full_like(side, 0.85)
        centre = (torch.rand(n, 2, generator=generator) * 2 - 1) * reach[:, None]
        affine = _affine(side, centre, generator, degrees)
        brightness, contrast, saturation = (
            _uniform(n, 1 - amount * recolour, 1 + amount * recolour, generator).view(-1, 1, 1, 1)
            for amount in (0.3, 0.3, 0.5)
        )
        turn = _uniform(n, -0.12, 0.12, generator).view(-1, 1, 1, 1) * recolour
        return cls(rows, affine, saturation, contrast, brightness, turn)

    def place(self, sprites: Tensor, size: int, part: slice) -> Tensor:
        """Scale, turn, mirror and move RGBA sprites [m, 4, s, s] on an empty canvas [m, 4, size, size]."""
        grid = F.affine_grid(self.affine[part], [len(sprites), 4, size, size], align_corners=False)
        source = sprites.float().div_(255)
        source[:, :3] *= source[:, 3:]
        # Shrinking by more than two without a blur first would alias thin outlines.
        if sprites.shape[-1] >= 2 * size:
            source = F.avg_pool2d(source, sprites.shape[-1] // size)
        return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def recolour(self, rgb: Tensor, part: slice) -> Tensor:
        """Saturation, contrast, a small turn of the hue, and brightness, in place."""
        grey = rgb.mean(1, keepdim=True)
        rgb.sub_(grey).mul_(self.saturation[part]).add_(grey)
        rgb.sub_(0.5).mul_(self.contrast[part]).add_(0.5)
        rgb += self.turn[part] * (rgb.roll(1, 1) - rgb.roll(-1, 1))
        return rgb.mul_(self.brightness[part]).clamp_(0, 1)


def _affine(scale: Tensor, centre: Tensor, generator: torch.Generator, max_degrees: float) -> Tensor:
    n = len(scale)
    angle = _uniform(n, -max_degrees, max_degrees, generator) * math.pi / 180
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < 0.5).float()
    stretch = torch.exp(_uniform(n, -0.12, 0.12, generator))
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack(
        [
            torch.stack([cos * mirror * stretch, sin * mirror * stretch], 1),
            torch.stack([-sin / stretch, cos / stretch], 1),
        ],
        1,
    )
    return torch.cat([rows, -(rows @ centre[:, :, None])], 2)


def _layers(
    present: Tensor, scale: tuple[float, float], degrees: float, recolour: float, generator: torch.Generator
) -> Iterator[tuple[int, _Layer]]:
    """(object, its choices) in the order they are drawn, the main one last."""
    n, count = present.shape
    for k in reversed(range(count)):
        rows = present[:, k].nonzero().flatten() if k > 0 else torch.arange(n)
        if len(rows) > 0:
            yield k, _Layer.sample(rows, k == 0, scale, degrees, recolour, generator)


class Composition:
    """The random choices of a batch of pictures, made at once; `draw` computes the pictures.

    Each picture shows one main object and up to K-1 smaller ones.

    Args:
        present: bool [n, K]; which objects are drawn (object 0 is the main one: always drawn, last, on top).
        size: side of the pictures in pixels.
        generator: source of every random choice.
        scale: smallest and largest side of the main object as a share of the picture.
        max_degrees: largest rotation to either side.
        recolour: strength of the colour changes, 0 for none.
        restyle: a further change of the placed objects, RGBA [m, 4, size, size] to the same, if any.
    """

    def __init__(
        self,
        present: Tensor,
        size: int,
        generator: torch.Generator,
        *,
        scale: tuple[float, float] = (0.35, 1.0),
        max_degrees: float = 25.0,
        recolour: float = 1.0,
        restyle: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.size, self.restyle = size, restyle
        self._backgrounds = _Backgrounds(len(present), size, generator)
        layers = _layers(present, scale, max_degrees, recolour, generator)
        # A restyle draws from the generator as well, between two layers.
        self._layers: Iterable[tuple[int, _Layer]] = list(layers) if restyle is None else layers

    def draw(self, sprites: Tensor, piece: slice | None = None) -> Tensor:
        """The pictures of the batch or a piece of it, uint8 RGB [m, 3, size, size], from its sprites [m, K, 4, s, s].

        Their pixels depend on neither the piece nor the number of threads. With a restyle, the piece is the batch and
        is drawn once.
        """
        piece = piece or slice(0, len(sprites))
        canvas = self._backgrounds.draw(piece)
        for k, layer in self._layers:
            part = _within(layer.rows, piece)
            rows = layer.rows[part] - piece.start
            if len(rows) == 0:
                continue
            placed = layer.place(sprites[rows, k], self.size, part)
            alpha = placed[:, 3:]
            colour = layer.recolour((placed[:, :3] / alpha.clamp_min(1e-4)).clamp_(0, 1), part)
            if self.restyle is not None:
                colour, alpha = self.restyle(torch.cat([colour, alpha], 1)).split([3, 1], 1)
            canvas[rows] = torch.lerp(canvas[rows], colour, alpha)
        return canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
