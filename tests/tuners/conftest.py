"""Small backbones, and a laboratory of helpers that the tests of tuners share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from liftplus import registry
from liftplus.backbones import catalogue, clip
from liftplus.backbones.base import Backbone, Facts
from liftplus.errors import UserError
from liftplus.heads import Cosine, Head, Joint
from liftplus.losses import LogitAdjusted
from liftplus.model import Classifier
from liftplus.tuners.base import Tuner

CLASSES, BATCH, SIZE = 7, 3, 15
HALF = (0.5, 0.5, 0.5)
TEXTS = [f"{name}." for name in ("red ant", "bee", "cat", "old dog", "elk", "fox", "gnu")]


class Letters:
    """A tokenizer of one token a letter: start 1, end 40, padding 0."""

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), 12, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [1, *(2 + ord(letter) % 37 for letter in text), 40]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def clip_vit() -> Backbone:
    shape = clip.Shape(
        image_size=SIZE,
        patch=5,
        width=12,
        layers=3,
        heads=2,
        joint=11,
        text_width=10,
        text_layers=3,
        text_heads=2,
        context=12,
        vocabulary=41,
    )
    return catalogue.clip_backbone("clip_vit", shape, None, tokenizer=Letters())


def clip_resnet() -> Backbone:
    shape = clip.Shape(
        image_size=32,
        patch=None,
        width=2,
        layers=(1, 1, 1, 1),
        heads=2,
        joint=11,
        text_width=10,
        text_layers=4,
        text_heads=2,
        context=12,
        vocabulary=41,
    )
    return catalogue.clip_backbone("clip_resnet", shape, None, tokenizer=Letters())


def timm_vit() -> Backbone:
    """With registers, layer scale and q/k norm."""
    tower = VisionTransformer(
        img_size=SIZE,
        patch_size=5,
        embed_dim=14,
        depth=3,
        num_heads=2,
        num_classes=0,
        reg_tokens=2,
        init_values=0.3,
        qk_norm=True,
        norm_layer=partial(LayerNorm, eps=1e-6),
    )
    return Backbone("timm_vit", tower, Facts(SIZE, HALF, HALF, patch_size=5))


def timm_mean_pool() -> Backbone:
    """Without a class token: features are the mean over patches."""
    tower = VisionTransformer(
        img_size=SIZE,
        patch_size=5,
        embed_dim=14,
        depth=3,
        num_heads=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
    )
    return Backbone("timm_mean_pool", tower, Facts(SIZE, HALF, HALF, patch_size=5))


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "clip_vit": clip_vit,
    "clip_resnet": clip_resnet,
    "timm_vit": timm_vit,
    "timm_mean_pool": timm_mean_pool,
}


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    for parameter in backbone.parameters():  # away from zero biases and unit norms
        parameter.data += 0.1 * torch.randn_like(parameter)
    return backbone


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
    trunks = {backbone: backbone_of(backbone) for backbone in BACKBONES}
    for name, part in registry.discover("tuner").items():
        for backbone, trunk in trunks.items():
            for side in ("image", "text", "both"):
                if "places" in part.model_fields and side != "text":
                    continue
                options = {"side": side} | ({"places": (0, -1)} if "places" in part.model_fields else {})
                if tuner(name, **options).fits(trunk):
                    cases.append(pytest.param(name, backbone, options, id=f"{name}-{backbone}-{side}"))
    return cases


def attachable(name: str, backbone: str, options: dict[str, Any]) -> Classifier:
    """The tuned classifier, or a skip where these settings are refused with a reason (no projection, say)."""
    try:
        return build(backbone, {name: tuner(name, **options)})
    except UserError as error:
        pytest.skip(str(error))


def count(model: Classifier) -> int:
    return model.count()["tuned"]


def pytest_configure() -> None:
    # The models are tiny: threads cost more than they give.
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with these three arguments runs for every tuner, backbone and side that go together."""
    if {"name", "backbone", "options"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("name", "backbone", "options"), _cases())


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
        backbones=BACKBONES,
    )
