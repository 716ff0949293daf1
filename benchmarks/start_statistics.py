"""Memory and time of a start in closed form on made-up features, beside the forward passes that real ones take.

    python benchmarks/start_statistics.py --pictures 1000000 --classes 8142 --out benchmarks/results/cpu-start.json

Features are drawn batch by batch, as a backbone would give them. Memory is the process's peak over what it had before.
Time is that of the statistics, of choosing gamma and of the solve; drawing the features is not counted. Then forward
passes of ViT-B/16 on random pictures are timed as in a test, and their time is carried over to all pictures.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import contenders
import harness
from liftplus.machine import runtime
from liftplus.model.head_init import InitContext, Stream
from liftplus.model.heads import Cosine
from liftplus.model.picture_init import Ridge


def peak() -> int:
    """Bytes the process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(pictures: int, classes: int, dim: int, batch: int = 512) -> dict[str, Any]:
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
    return {"peak_bytes": peak() - before, "seconds": harness.significant(time.perf_counter() - clock - waited)}


def forward(args: argparse.Namespace, chosen: runtime.Runtime) -> dict[str, Any]:
    """Forward passes of ViT-B/16 without weights' files, one crop."""
    work = contenders.Work("vit_b16", args.batch, args.classes)
    model = contenders.our_model(work, chosen, contenders.dataset(work.classes)).eval()
    images = contenders.batch_of(work, chosen.device).images.float() / 255

    @torch.inference_mode()
    def once() -> Tensor:
        with chosen.autocast():
            return model.backbone(images)

    timing = harness.timing(args, chosen.device)
    seconds = harness.interleaved([harness.Contender("forward", once, args.batch)], chosen.device, **timing)["forward"]
    return {"batch": args.batch, "seconds": harness.spread(seconds)}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--batch", type=int, default=64, help="pictures of a forward pass")
    args = parser.parse_args()
    chosen = runtime.choose(args.device, args.precision)
    record = harness.about(args, chosen) | {"start": start(args.pictures, args.classes, args.dim)}
    record["forward"] = forward(args, chosen)
    passes = args.pictures / args.batch * record["forward"]["seconds"]["median"]
    record["forward"]["seconds_of_all"] = harness.significant(passes)
    record["share"] = harness.significant(record["start"]["seconds"] / passes)
    harness.write(args.out, record)
    print(record["start"], record["forward"], f"share {record['share']:.2%}")


if __name__ == "__main__":
    main()
