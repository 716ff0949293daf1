"""Compare what a file or another library answers with liftplus, before an export is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from liftplus.errors import UserError
from liftplus.evaluation.priors import RULED_OUT
from liftplus.machine.progress import Progress

TOLERANCE = 1e-4
"""Allowed difference of a logit from PyTorch's in fp32. It is multiplied by the logits' deviation if that exceeds 1."""
BATCH = 4
OTHERWISE = "Export to .onnx or .pt2, which hold any model"


def within(difference: float, deviation: float) -> bool:
    """Whether a difference of logits is within `TOLERANCE`, given their standard deviation; no number is not."""
    return difference <= TOLERANCE * max(1.0, deviation)


def deviation(logits: Tensor) -> float:
    """The standard deviation of logits [N, C], without those of classes that the prior rules out."""
    return float(logits[logits > RULED_OUT / 2].std(unbiased=False))


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite if it is not finite."""
    difference = float((found - expected).abs().max())
    return difference if math.isfinite(difference) else math.inf


def alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Share of pictures whose yes, no and whole numbers are the same in all outputs [n, ...] of those, 0 to 1."""
    pairs = zip(found, expected, strict=True)
    whole = [(one, other) for one, other in pairs if not other.is_floating_point()]
    same = [(one == other).reshape(len(other), -1).all(1) for one, other in whole]
    return float(torch.stack(same).all(0).float().mean()) if same else 1.0


def answers(model: Callable[[Tensor], Tensor], pictures: Tensor, progress: Progress, label: str) -> Tensor:
    """What a model gives for all pictures [n, ...], `BATCH` of them at a time."""
    return every_answer(lambda batch: (model(batch),), pictures, progress, label)[0]


def every_answer(
    model: Callable[[Tensor], tuple[Tensor, ...]], pictures: Tensor, progress: Progress, label: str
) -> list[Tensor]:
    """`answers` for a model of several outputs."""
    batches = pictures.split(BATCH)
    parts = []
    with progress.task(label, len(batches)) as advance:
        for batch in batches:
            parts.append(model(batch))
            advance()
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@contextmanager
def loading(library: str) -> Iterator[None]:
    """Tell why a library's own loader refuses what was written for it."""
    try:
        yield
    except Exception as error:  # of many kinds, by library and version
        raise UserError(
            f"{library} cannot load what was written ({' '.join(str(error).split())[:200]}), so nothing was kept. "
            f"{OTHERWISE}."
        ) from error
