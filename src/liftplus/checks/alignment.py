"""Whether two small pictures show the same: one is laid over the other, and what is the same there is measured.

The second may be a part of the first or the other way round, stretched on each axis, and lighter or darker. Place and
stretch are found by Gauss-Newton steps on the difference (Lucas and Kanade 1981), from small pictures to larger ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

FURTHEST = 0.35
"""How far the middle may move, and how much the scale may differ from 1; the picture reaches from -1 to 1."""
_STEP = 0.1  # that one iteration takes at most
_NO_STRUCTURE = 1e-3  # standard deviation, of values of 1, under which nothing can be laid over anything
_GRAY = (0.299, 0.587, 0.114)


class Match(NamedTuple):
    """What P pairs have in common once they are laid over each other.

    Attributes:
        place: scale and offset across, scale and offset down [P, 4]: where the second one's pixels lie in the first.
        likeness: correlation of the colours in the common part, -1 to 1 [P].
        detail: correlation of what remains of them without their blurred copy, -1 to 1 [P].
        overlap: share of the second that lies within the first, 0 to 1 [P].
    """

    place: Tensor
    likeness: Tensor
    detail: Tensor
    overlap: Tensor


def gray(pictures: Tensor, side: int) -> Tensor:
    """Small pictures uint8 [N, S, S, 3] as fp32 [N, side, side], mean 0 and standard deviation 1 (0 without any)."""
    mixed = pictures.float() @ torch.tensor(_GRAY)
    small = interpolate(mixed[:, None], (side, side), mode="area")[:, 0]
    centred = small - small.mean((1, 2), keepdim=True)
    spread = centred.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(spread > 255 * _NO_STRUCTURE, centred / spread.clamp(min=1e-6), 0.0)


def still(pairs: int) -> Tensor:
    """The place [P, 4] of pictures that lie over each other as they are."""
    return torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(pairs, 1)


def laid(first: Tensor, second: Tensor, place: Tensor, steps: int) -> Tensor:
    """A better place [P, 4] for gray pictures [P, n, n], after some steps from one near it."""
    side = first.shape[-1]
    line = _line(side)
    across, down = line.expand(side, side).flatten(), line[:, None].expand(side, side).flatten()
    for _ in range(steps):
        moved, within = _moved(first, place)
        slope_x, slope_y = (slope.flatten(1) for slope in _slopes(moved, place))
        flat, mask = moved.flatten(1), within.flatten(1)
        columns = (slope_x * across, slope_x, slope_y * down, slope_y, flat, torch.ones_like(flat))
        slopes = torch.stack(columns, 1) * mask[:, None]
        missing = (second.flatten(1) - flat) * mask
        square = slopes @ slopes.transpose(1, 2)
        ridge = 1e-3 * square.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        square = square + ridge[:, None, None] * torch.eye(6)
        change = torch.linalg.solve(square, (slopes @ missing[:, :, None]))[:, :4, 0]
        place = still(len(place)) + (place + change.clamp(-_STEP, _STEP) - still(len(place))).clamp(-FURTHEST, FURTHEST)
    return place


def likeness(first: Tensor, second: Tensor, place: Tensor) -> Tensor:
    """`Match.likeness` [P] of pictures fp32 [P, channels, n, n] at that place."""
    moved, within = _moved(first, place[:, None])
    return _correlation(moved, second, within)


def measured(first: Tensor, second: Tensor, place: Tensor) -> Match:
    """What pictures fp32 [P, channels, n, n] share at that place."""
    moved, within = _moved(first, place[:, None])
    likeness = _correlation(moved, second, within)
    detail = _correlation(_detail(moved), _detail(second), within)
    return Match(place, likeness, detail, within.mean((1, 2, 3)))


def _line(side: int) -> Tensor:
    """Middles of pixels between -1 and 1 [side]."""
    return (2 * torch.arange(side, dtype=torch.float32) + 1) / side - 1


def _moved(pictures: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [..., n, n] read at their places [..., 4], and which pixels lie within them, 1 or 0 [..., n, n]."""
    side = pictures.shape[-1]
    line = _line(side)
    x = place[..., 0, None] * line + place[..., 1, None]
    y = place[..., 2, None] * line + place[..., 3, None]
    moved = _weights(y, side) @ pictures @ _weights(x, side).transpose(-1, -2)
    within = (y.abs() <= 1).float()[..., :, None] * (x.abs() <= 1).float()[..., None, :]
    return moved, within


def _weights(at: Tensor, side: int) -> Tensor:
    """Linear interpolation at positions [..., n] as a matrix [..., n, side]; the edge goes on beyond the picture."""
    pixel = (((at + 1) * side - 1) / 2).clamp(0, side - 1)
    return (1 - (pixel[..., None] - torch.arange(side)).abs()).clamp(min=0)


def _slopes(moved: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """How fast the first picture's values change across and down, at the moved pixels [P, n, n]."""
    half = moved.shape[-1] / 4
    x = pad(moved[:, :, 2:] - moved[:, :, :-2], (1, 1)) * half / place[:, 0, None, None]
    y = pad(moved[:, 2:] - moved[:, :-2], (0, 0, 1, 1)) * half / place[:, 2, None, None]
    return x, y


def _detail(pictures: Tensor) -> Tensor:
    """What remains without the mean of 5 x 5 pixels; the edge goes on beyond the picture."""
    # As a product of matrices, since pooling of such small pictures takes PyTorch five times as long.
    mean = _mean_of_five(pictures.shape[-1])
    return pictures - mean @ pictures @ mean.T


def _mean_of_five(side: int) -> Tensor:
    """A matrix [side, side] that takes the mean of a pixel and two on each side of it."""
    near = (torch.arange(side)[:, None] + torch.arange(-2, 3)).clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, near, torch.full(near.shape, 0.2))


def _correlation(one: Tensor, other: Tensor, within: Tensor) -> Tensor:
    """Over all channels, each without its mean, where `within` is 1; 0 for pictures without structure [P]."""
    count = within.sum((2, 3), keepdim=True).clamp(min=1)
    a, b = ((x - (x * within).sum((2, 3), keepdim=True) / count) * within for x in (one, other))
    together, alone = (a * b).sum((1, 2, 3)), (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))).sqrt()
    return torch.where(alone > 1e-3, together / alone.clamp(min=1e-3), 0.0)
