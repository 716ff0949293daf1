"""How far a model is from its copy in another library.

`python scripts/moving_models.py` prints the rows of the table in docs/moving-models.md, by thin random models.
`python scripts/moving_models.py RUN PICTURES` exports a run for transformers, with and without timm, and compares the
top class of transformers' pipeline on both folders with that of `predict --one-crop` on all pictures of a folder.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import moved  # noqa: E402
import slim  # noqa: E402
from liftplus.backbones import catalogue  # noqa: E402
from liftplus.backbones.base import BackboneConfig  # noqa: E402
from liftplus.errors import UserError  # noqa: E402
from liftplus.model.heads import Cosine, Linear  # noqa: E402

EXACT = {"siglip": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}}
"""Settings of transformers' form that open_clip's model can hold."""
RESAMPLED = ("clip", "siglip", "vit", "dinov2")
"""Families whose positions transformers resamples without antialiasing."""


@torch.no_grad()
def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """From, to, and the largest difference in units of the spread over pictures, or why there is none."""
    for kind in slim.NAMES:
        if not hasattr(transformers, slim.CLASSES.get(kind, "CLIPModel")):
            continue
        model = slim.saved(kind, folder / kind)
        backbone = slim.load(folder / kind, kind)
        images = slim.pictures(backbone.facts.image_size)
        own = slim.theirs(kind, model, images)
        yield f"transformers, {kind}", "liftplus", _apart(backbone(images), own)
        if kind == "dinov3":
            pooled = slim.load(folder / kind, kind, pooling="token")
            yield "transformers, dinov3", "liftplus, pooling=token", _apart(pooled(images), model(images).pooler_output)
        for size in slim.OTHER_SIZES.get(kind, (112, 336)):
            images = slim.pictures(size)
            own = slim.theirs(kind, model, images, resampled=True)
            for positions in ("antialias", "plain") if kind in RESAMPLED else ("antialias",):
                resized = slim.load(folder / kind, kind, image_size=size, positions=positions)
                to = "liftplus" if positions == "antialias" else "liftplus, positions=plain"
                yield f"transformers, {kind} at {size} px", to, _apart(resized(images), own)
        for library in ("timm", "transformers", "transformers --without-timm", "open_clip"):
            if library != "open_clip" or kind in ("clip", "siglip"):
                yield f"liftplus, {kind}", library, _moved(kind, library, folder / f"{kind}-{library}")


def _apart(ours: torch.Tensor, own: torch.Tensor) -> str:
    return f"{(ours - own).abs().max() / own.std(0).mean():.0e}"


def _moved(kind: str, library: str, folder: Path) -> str:
    slim.saved(kind, folder / "in", **(EXACT.get(kind, {}) if library == "open_clip" else {}))
    config = BackboneConfig(name=slim.NAMES[kind], weights=str(folder / "in"))
    run = moved.trained(catalogue.load(config), Cosine() if library == "open_clip" else Linear(), config=config)
    try:
        _, found = moved.move(run, folder / "out", library.split()[0], without_timm="--without-timm" in library)
    except UserError as error:
        return str(error)
    return f"{found.logits / found.deviation:.0e}"


def compare(run: Path, pictures: Path) -> Iterator[str]:
    """The share of pictures with the same top class in either precision, and how far probabilities are apart."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "liftplus"]
        told = {}
        for name, settings in (("as predict chooses", ()), ("fp32", ("--set", "precision=fp32"))):
            table = f"{folder}/{name}.csv"
            words = ["--one-crop", "--out", table, "--top-k", "1", *settings]
            subprocess.run([*ours, "predict", run, pictures, *words], check=True)
            with Path(table).open(encoding="utf-8") as stream:
                told[name] = list(csv.DictReader(stream))
        for option in ((), ("--without-timm",)):
            place = f"{folder}/out{''.join(option)}"
            words = ["--out", place, "--to", "transformers", *option, "--check", str(pictures)]
            subprocess.run([*ours, "export", run, *words], check=True)
            classify = transformers.pipeline("image-classification", place)
            theirs: dict[str, Any] = {row["path"]: classify(row["path"], top_k=1)[0] for row in told["fp32"]}
            for precision, predicted in told.items():
                same, apart = 0, 0.0
                for row in predicted:
                    best = theirs[row["path"]]
                    same += best["label"] == row["class_1"]
                    apart = max(apart, abs(best["score"] - float(row["probability_1"])))
                share = f"{same} of {len(predicted)} pictures have the same top class ({same / len(predicted):.1%})"
                named = " ".join(["--to transformers", *option])
                yield f"{named}, precision {precision}: {share}; its probability is at most {apart:.4f} apart"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        for line in compare(Path(sys.argv[1]), Path(sys.argv[2])):
            print(line)
        raise SystemExit
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    slim.thin_libraries(patch)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder)):
            print(f"| {' | '.join(row)} |")
