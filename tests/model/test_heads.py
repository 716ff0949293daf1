"""Heads against closed forms, in fp32 whatever comes in, and their first rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from liftplus import registry
from liftplus.backbones import clip
from liftplus.backbones.base import Backbone, Facts
from liftplus.errors import UserError
from liftplus.model.heads import Head, HeadModule

DIM, CLASSES, BATCH = 12, 7, 5
NAMES = sorted(registry.discover("head"))
SHAPE = clip.Shape(
    image_size=10,
    patch=5,
    width=DIM,
    layers=1,
    heads=2,
    joint=11,
    text_width=6,
    text_layers=1,
    text_heads=2,
    context=5,
    vocabulary=13,
)


def clip_backbone() -> Backbone:
    torch.manual_seed(0)
    return clip.clip_backbone("tiny", SHAPE, None)


def built(name: str, backbone: Backbone) -> HeadModule:
    config = registry.get("head", name)()
    assert isinstance(config, Head)
    head = config.build(backbone, CLASSES)
    torch.manual_seed(1)
    head.weight.data.copy_(F.normalize(torch.randn_like(head.weight), dim=-1))
    return head


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def closed_form(name: str, head: HeadModule, f: Tensor) -> Tensor:
    w = head.weight.detach().double()
    if name == "linear":
        return f @ w.T
    if name == "cosine":
        return 25 * unit(f) @ unit(w).T
    if name == "l2norm":
        return f @ unit(w).T
    if name == "layernorm":
        centred = f - f.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() @ unit(w).T
    if name == "joint":
        return f @ w.T / 0.07
    raise AssertionError(f"write down the closed form of {name}")


@pytest.mark.parametrize("name", NAMES)
def test_closed_form(name: str) -> None:
    head = built(name, clip_backbone())
    features = torch.randn(BATCH, head.weight.shape[1])
    expected = closed_form(name, head, features.double())
    torch.testing.assert_close(head(features).detach().double(), expected, rtol=1e-5, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_fp32_under_mixed_precision(name: str) -> None:
    head = built(name, clip_backbone())
    features = torch.randn(BATCH, head.weight.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(features)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(features))
    assert head(features.bfloat16()).dtype == torch.float32


def test_joint_head_is_frozen_and_needs_text() -> None:
    backbone = clip_backbone()
    assert not built("joint", backbone).weight.requires_grad
    plain = VisionTransformer(img_size=10, patch_size=5, embed_dim=DIM, depth=1, num_heads=1, num_classes=0)
    half = (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="no text encoder"):
        built("joint", Backbone("plain", plain, Facts(10, half, half)))
