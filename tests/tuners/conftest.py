"""Small backbones, and a laboratory of helpers that the tests of tuners share."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus import registry
from liftplus.errors import UserError
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine, Head, Joint
from liftplus.model.losses import LogitAdjusted
from liftplus.tuners.base import Tuner
from zoo import KINDS, ZOO, backbone_of

CLASSES, BATCH = 7, 3
TEXTS = [f"{name}." for name in ("red ant", "bee", "cat", "old dog", "elk", "fox", "gnu")]


def tuner(name: str, **options: Any) -> Tuner:
    part = registry.get("tuner", name)(**options)
    assert isinstance(part, Tuner)
    return part


def build(backbone: str, tuners: dict[str, Tuner], seed: int = 1) -> Classifier:
    trunk = backbone_of(backbone)
    joint = any(part.needs_joint_head for part in tuners.values())
    config: Head = Joint() if joint else Cosine()
    torch.manual_seed(seed)
    head = config.build(trunk, CLASSES)
    head.weight.data.copy_(F.normalize(torch.randn_like(head.weight), dim=-1))
    if joint:
        head.weight.data.copy_(trunk.text_encoder("the test").encode(TEXTS))
    return Classifier.assemble(trunk, tuners, head, TEXTS)


def images(model: Classifier) -> Tensor:
    size = model.backbone.facts.image_size
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(4))


def fit(model: Classifier, steps: int) -> None:
    loss = LogitAdjusted().build(torch.tensor([90, 40, 20, 9, 4, 2, 1]))
    optimiser = torch.optim.SGD(model.trainable(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(model(images(model)), torch.arange(BATCH)).backward()
        optimiser.step()


@cache
def _cases() -> list[Any]:
    """Every tuner on every backbone and side it fits; small places for context, as the class names are short."""
    cases = []
    trunks = {backbone: backbone_of(backbone) for backbone in ZOO}
    for name, part in registry.discover("tuner").items():
        for backbone, trunk in trunks.items():
            for side in ("image", "text", "both"):
                if "places" in part.model_fields and side != "text":
                    continue
                options = {"side": side} | ({"places": (0, -1)} if "places" in part.model_fields else {})
                if tuner(name, **options).fits(trunk):
                    default = backbone in KINDS if side == "image" else backbone == "clip_vit"
                    marks = () if default else pytest.mark.slow
                    cases.append(pytest.param(name, backbone, options, id=f"{name}-{backbone}-{side}", marks=marks))
    return cases


def _covering(cases: list[Any]) -> list[Any]:
    """Every tuner on the first backbone that it fits, and every backbone with the first tuner that fits it."""
    seen: set[str] = set()
    kept = []
    for case in cases:
        name, backbone, _ = case.values
        if not {name, backbone} <= seen:
            kept.append(case)
            seen |= {name, backbone}
    return kept


def attachable(name: str, backbone: str, options: dict[str, Any]) -> Classifier:
    """The tuned classifier, or a skip where these settings are refused with a reason (no projection, say)."""
    try:
        return build(backbone, {name: tuner(name, **options)})
    except UserError as error:
        pytest.skip(str(error))


def count(model: Classifier) -> int:
    return model.count()["tuned"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with these three arguments runs for every tuner, backbone and side that go together.

    By default on an image tower of each kind and on one text tower, the others among the slow tests; where it is
    `costly`, not every pair.
    """
    if {"name", "backbone", "options"} <= set(metafunc.fixturenames):
        costly = metafunc.definition.get_closest_marker("costly")
        metafunc.parametrize(("name", "backbone", "options"), _covering(_cases()) if costly else _cases())
    elif {"name", "unfit"} <= set(metafunc.fixturenames):
        trunks = {backbone: backbone_of(backbone) for backbone in ZOO}
        unfit = [
            (name, backbone)
            for name in registry.discover("tuner")
            for backbone, trunk in trunks.items()
            if not tuner(name).fits(trunk)
        ]
        metafunc.parametrize(("name", "unfit"), unfit)


@pytest.fixture
def lab() -> SimpleNamespace:
    """The helpers above."""
    return SimpleNamespace(
        build=build,
        images=images,
        fit=fit,
        tuner=tuner,
        count=count,
        attachable=attachable,
        backbone_of=backbone_of,
        cases=_cases,
        classes=CLASSES,
        batch=BATCH,
        texts=TEXTS,
        backbones=ZOO,
    )
