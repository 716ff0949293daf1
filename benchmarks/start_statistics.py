"""Memory and time of a start in closed form on made-up features, one pass and one solve.

    python benchmarks/start_statistics.py --pictures 1000000 --classes 8142 --dim 768

Features are drawn batch by batch, as a backbone would give them. Memory is the process's peak over what it had before.
Time is that of the statistics alone, then of choosing gamma and solving; drawing the features is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from liftplus.model.head_init import InitContext, Stream
from liftplus.model.heads import Cosine
from liftplus.model.picture_init import Ridge


def peak() -> int:
    """Bytes the process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(pictures: int, classes: int, dim: int, batch: int = 512) -> dict[str, Any]:
    """What a ridge start takes for so many pictures."""
    generator = torch.Generator().manual_seed(0)
    # Classes come as often as 1 / rank.
    often = 1 / torch.arange(1, classes + 1)
    drawn = torch.multinomial(often, max(0, pictures - classes), replacement=True, generator=generator)
    labels = torch.cat([torch.arange(classes), drawn])
    centres = torch.randn(classes, dim, generator=generator)
    waited = 0.0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal waited
        for part in labels.split(batch):
            clock = time.perf_counter()
            features = centres[part] + torch.randn(len(part), dim, generator=generator)
            waited += time.perf_counter() - clock
            yield features, part

    backbone: Any = SimpleNamespace(dim=dim)
    context = InitContext(
        backbone, [""] * classes, lambda shots: next(batches()), generator, stream=lambda shots: Stream(labels, batches)
    )
    before, clock = peak(), time.perf_counter()
    rows = Cosine().rows(context, Ridge())
    assert rows.isfinite().all()
    return {
        "pictures": pictures,
        "classes": classes,
        "dim": dim,
        "peak_bytes": peak() - before,
        "seconds": round(time.perf_counter() - clock - waited, 1),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--dim", type=int, default=768)
    given = parser.parse_args()
    print(json.dumps(measure(given.pictures, given.classes, given.dim)))


if __name__ == "__main__":
    main()
