"""How large the activations are that the branches of the default tuner join, backbone by backbone.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/stream_sizes.py --backbone mini_clip efficientnet_lite0 dinov2_s14 --size dinov2_s14=98 \\
        --weights dinov2_s14=vits14.safetensors --precision fp32 \\
        --out benchmarks/results/stream-sizes.json

    python benchmarks/stream_sizes.py --random --backbone timm/test_resnet.r160_in1k --out random.json

A row is a backbone: the mean square of the activation at each branch, from the input on. It is the number by which
`train.scale_rates` multiplies a branch's rate where it is below 1, measured before the first step on as many training
pictures as a run would take. The tuner is AdaptFormer, or what stands in for it where a backbone has no transformer
blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
from liftplus import config
from liftplus.machine import runtime
from liftplus.runs import opening
from liftplus.training.safeguard import Probe

KEYS = {"weights": "backbone.weights", "size": "backbone.image_size"}  # settings that an option gives


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["mini_clip"])
    parser.add_argument("--weights", nargs="*", default=(), metavar="BACKBONE=FILE", help="of backbones that need one")
    parser.add_argument("--size", nargs="*", default=(), metavar="BACKBONE=N", help="pixels, if not the backbone's own")
    parser.add_argument("--random", action="store_true", help="first weights as the library draws them, no file")
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, help="where the JSON goes; stdout if not given")
    args = parser.parse_args(argv)
    for option in KEYS:
        for item in getattr(args, option):
            if item.partition("=")[0] not in args.backbone or not item.partition("=")[2]:
                parser.error(f"--{option} {item}: give BACKBONE=VALUE, and BACKBONE after --backbone too")
    return args


def measure(backbone: str, data: str, chosen: runtime.Runtime, given: Sequence[str] = ()) -> dict[str, Any]:
    """The row of a backbone; `given` are further settings."""
    # The classifier does not matter here, so it starts at random, without a pass over the pictures.
    overrides = ["head_init=random", "workers=0", "cache=false", *given]
    session = opening.Session(config.resolve(data=data, backbone=backbone, overrides=overrides), chosen)
    dataset = session.data()
    session, model = session.start(dataset)
    probe = Probe(model, session.config, dataset, chosen)
    squares = probe.mean_squares()
    return {
        "name": backbone,
        "pixels": model.backbone.facts.image_size,
        "pictures": len(probe.labels),
        "tuner": list(dict(session.config.tuner)),
        "mean_squares": {name: harness.significant(value) for name, value in squares.items()},
        "least": harness.significant(min(squares.values())),
        "median": harness.significant(statistics.median(squares.values())),
        "most": harness.significant(max(squares.values())),
    }


def main() -> None:
    args = parse()
    chosen = runtime.choose(args.device, args.precision)
    own = {option: dict(item.split("=", 1) for item in getattr(args, option)) for option in KEYS}
    record = harness.about(args, chosen) | {"rows": []}
    for backbone in args.backbone:
        given = ["pretrained=false"] if args.random else []
        given += [f"{key}={own[option][backbone]}" for option, key in KEYS.items() if backbone in own[option]]
        record["rows"].append(measure(backbone, args.data, chosen, given))
    if args.out is None:
        print(json.dumps(record, indent=2))
    harness.write(args.out, record)


if __name__ == "__main__":
    main()
