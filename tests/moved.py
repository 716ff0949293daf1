"""Tuned classifiers with weights far from their start, and their export to another library, for tests of moving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.normalise import Normalise
from liftplus.config import EvaluationConfig, resolve
from liftplus.machine.progress import Silent
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Head
from liftplus.publishing import moving
from liftplus.registry import get
from liftplus.training.checkpoint import Trained
from liftplus.tuners.base import Tuner

NAMES = ("ant", "bee", "red fox", "líška")
ONE_CROP = EvaluationConfig(tte=False)


def trained(trunk: Backbone, head: Head, tuner: str = "lora", config: BackboneConfig | None = None) -> Trained:
    """A classifier of four classes; `tuner` may name several, joined by +, or none."""
    torch.manual_seed(2)
    tuners: dict[str, Tuner] = {}
    for name in filter(None, tuner.split("+")):
        part = get("tuner", name)()
        assert isinstance(part, Tuner)
        tuners[name] = part
    model = Classifier.assemble(trunk, tuners, head.build(trunk, len(NAMES)), list(NAMES))
    nn.init.normal_(model.head.weight)
    for name, weight in model.partition()["tuned"].items():
        weight.data += (0.2 if name.startswith("tuners.") else 0.02) * torch.randn_like(weight)
    model.requires_grad_(False)
    settings = resolve().model_copy(update={"tuner": tuners, "head": head} | ({"backbone": config} if config else {}))
    return Trained(model, settings, NAMES, tuple("0123"), (4, 3, 2, 1))


def pictures(backbone: Backbone, count: int = 4) -> Tensor:
    """Noise on many colours, RGB 0 to 255: features of noise alone are all alike."""
    size, generator = backbone.facts.image_size, torch.Generator().manual_seed(1)
    colours = 255 * torch.rand(count, 3, 1, 1, generator=generator)
    return (colours + 60 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 255).round()


def inputs(backbone: Backbone) -> Tensor:
    """The same, normalised."""
    return Normalise(backbone.facts)(pictures(backbone))


def move(
    run: Trained, out: Path, library: Any, *, without_timm: bool = False, **evaluation: Any
) -> tuple[moving.Written, moving.Difference]:
    asked = ONE_CROP.model_copy(update=evaluation)
    checked = moving.checked(run, library, asked, without_timm)
    return moving.move(checked, out, pictures(run.model.backbone), Silent())
