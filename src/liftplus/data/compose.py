"""Draw cut-out pictures on varied backgrounds, in batches and from a seeded generator.

The same world serves the pre-training of the bundled model (other artists' pictures) and the demo
data set (a style that the pre-training never saw), so that both differ in drawing style alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def rasterise(svg: str, size: int) -> Tensor:
    """Render one SVG document to a uint8 RGBA tensor [4, size, size], centred and undistorted."""
    import resvg_py  # an extra: only who draws needs it

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, height=size, skip_system_fonts=True))
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
        picture.thumbnail((size, size), Image.Resampling.BICUBIC)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _backgrounds(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Plain colours, gradients, blotches and stripes: [n, 3, size, size] in 0..1."""
    out = torch.empty(n, 3, size, size)
    kinds = torch.randint(0, 5, (n,), generator=generator)
    for kind, cells in enumerate((1, 2, 3, 6, 12)):
        chosen = (kinds == kind).nonzero().flatten()
        if len(chosen) == 0:
            continue
        base = torch.rand(len(chosen), 3, 1, 1, generator=generator)
        contrast = _uniform(len(chosen), 0.1, 0.8, generator).view(-1, 1, 1, 1)
        grid = torch.rand(len(chosen), 3, cells, cells, generator=generator)
        grid = base + (grid - base) * contrast
        out[chosen] = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    angle = _uniform(n, 0, math.pi, generator).view(-1, 1, 1)
    frequency = _uniform(n, 2, 16, generator).view(-1, 1, 1)
    phase = _uniform(n, 0, 2 * math.pi, generator).view(-1, 1, 1)
    strength = (_uniform(n, -0.3, 0.3, generator).clamp_min(0)).view(-1, 1, 1, 1)
    axis = torch.linspace(-1, 1, size)
    wave = torch.sin(frequency * (axis * torch.cos(angle) + axis[:, None] * torch.sin(angle)) * 3 + phase)
    noise = torch.randn(n, 1, size, size, generator=generator) * _uniform(n, 0, 0.06, generator).view(-1, 1, 1, 1)
    return (out + strength * wave[:, None] + noise).clamp_(0, 1)


def _recolour(rgb: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Brightness, contrast, saturation and a small turn of the hue; `strength` 0 leaves colours alone."""
    n = len(rgb)
    spread = [
        _uniform(n, 1 - amount * strength, 1 + amount * strength, generator).view(-1, 1, 1, 1)
        for amount in (0.3, 0.3, 0.5)
    ]
    grey = rgb.mean(1, keepdim=True)
    rgb = grey + (rgb - grey) * spread[2]
    rgb = (rgb - 0.5) * spread[1] + 0.5
    turn = _uniform(n, -0.12, 0.12, generator).view(-1, 1, 1, 1) * strength
    rgb = rgb + turn * (rgb.roll(1, 1) - rgb.roll(-1, 1))
    return (rgb * spread[0]).clamp_(0, 1)


def _place(
    sprites: Tensor, size: int, scale: Tensor, centre: Tensor, generator: torch.Generator, max_degrees: float
) -> Tensor:
    """Scale, turn, mirror and move RGBA sprites [n, 4, s, s] on an empty canvas [n, 4, size, size]."""
    n = len(sprites)
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
    shift = -(rows @ centre[:, :, None])
    grid = F.affine_grid(torch.cat([rows, shift], 2), [n, 4, size, size], align_corners=False)
    source = sprites.float() / 255
    source = torch.cat([source[:, :3] * source[:, 3:], source[:, 3:]], 1)
    # Shrinking by more than two without a blur first would alias thin outlines.
    if sprites.shape[-1] >= 2 * size:
        source = F.avg_pool2d(source, sprites.shape[-1] // size)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def compose(
    sprites: Tensor,
    present: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.35, 1.0),
    max_degrees: float = 25.0,
    recolour: float = 1.0,
    restyle: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Tensor:
    """Composite pictures of one main object and up to K-1 smaller ones.

    Args:
        sprites: uint8 RGBA [n, K, 4, s, s]; object 0 is the main one and is drawn last, on top.
        present: bool [n, K]; which objects are drawn (the main one always is).
        size: side of the result in pixels.
        generator: source of every random choice.
        scale: smallest and largest side of the main object as a share of the picture.
        max_degrees: largest rotation to either side.
        recolour: strength of the colour changes, 0 for none.
        restyle: a further change of the placed objects, RGBA [n, 4, size, size] to the same, if any.

    Returns:
        uint8 RGB [n, 3, size, size].
    """
    n, count = sprites.shape[:2]
    canvas = _backgrounds(n, size, generator)
    for k in reversed(range(count)):
        rows = present[:, k].nonzero().flatten() if k > 0 else torch.arange(n)
        if len(rows) == 0:
            continue
        side = _uniform(len(rows), scale[0], scale[1], generator) * (1.0 if k == 0 else 0.55)
        # The main object stays inside the picture, the others may be cut off at its edge.
        reach = (1.05 - side).clamp_min(0.0) if k == 0 else torch.full_like(side, 0.85)
        centre = (torch.rand(len(rows), 2, generator=generator) * 2 - 1) * reach[:, None]
        layer = _place(sprites[rows, k], size, side, centre, generator, max_degrees)
        alpha = layer[:, 3:]
        colour = _recolour((layer[:, :3] / alpha.clamp_min(1e-4)).clamp_(0, 1), generator, recolour)
        if restyle is not None:
            colour, alpha = restyle(torch.cat([colour, alpha], 1), generator).split([3, 1], 1)
        canvas[rows] = torch.lerp(canvas[rows], colour, alpha)
    return (canvas * 255).round_().clamp_(0, 255).to(torch.uint8)
