"""Tiny random backbones, one of each family, for every test that needs a backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from packaging.version import Version
from timm.layers import LayerNorm
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.maxxvit import MaxxVit, MaxxVitCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus.backbones import clip, from_open_clip
from liftplus.backbones.base import Backbone, BackboneConfig, Facts

OLD_TIMM = Version(timm.__version__) < Version("1.0.31")
SIZE, PATCH, JOINT = 15, 5, 11
HALF = (0.5, 0.5, 0.5)
TEXT = {"context_length": 12, "vocab_size": 41, "width": 10, "heads": 2, "layers": 3}


class Letters:
    """A tokenizer of one token a letter: start 1, end 40, padding 0."""

    def __init__(self, context: int = 12) -> None:
        self.context = context

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [1, *(2 + ord(letter) % 37 for letter in text), 40]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def _clip(name: str, **shape: Any) -> Backbone:
    text = {"text_width": 10, "text_heads": 2, "context": 12, "vocabulary": 41}
    return clip.clip_backbone(name, clip.Shape(heads=2, joint=JOINT, **shape, **text), None, tokenizer=Letters())


def clip_vit() -> Backbone:
    return _clip("clip_vit", image_size=SIZE, patch=PATCH, width=12, layers=3, text_layers=3)


def clip_resnet() -> Backbone:
    return _clip("clip_resnet", image_size=32, patch=None, width=2, layers=(1, 1, 1, 1), text_layers=4)


def _plain(name: str, tower: nn.Module, size: int = SIZE, patch: int | None = PATCH) -> Backbone:
    return Backbone(name, tower, Facts(size, HALF, HALF, patch_size=patch))


VIT: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 14, "depth": 3, "num_heads": 2}


def timm_vit() -> Backbone:
    """With registers, layer scale and q/k norm, as DINOv2's and DeiT-III's."""
    norm = partial(LayerNorm, eps=1e-6)
    options: dict[str, Any] = {"reg_tokens": 2, "init_values": 0.3, "qk_norm": True, "norm_layer": norm}
    return _plain("timm_vit", VisionTransformer(**VIT, num_classes=0, **options))


def timm_mean_pool() -> Backbone:
    """Without a class token: features are the mean over patches."""
    return _plain("timm_mean_pool", VisionTransformer(**VIT, num_classes=0, class_token=False, global_pool="avg"))


def siglip() -> Backbone:
    """Attention pooling, as SigLIP's image tower."""
    return _plain("siglip", VisionTransformer(**VIT, num_classes=0, class_token=False, global_pool="map"))


def eva() -> Backbone:
    """EVA-02's rotary positions, SwiGLU, separate q, k and v."""
    rotary: dict[str, Any] = {"use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}
    return _plain("eva", Eva(**VIT | {"embed_dim": 16}, num_classes=0, **rotary))


def dinov3() -> Backbone:
    """DINOv3's rotary positions, registers and layer scale."""
    options: dict[str, Any] = {"rope_type": "dinov3", "num_reg_tokens": 2, "use_abs_pos_emb": False, "init_values": 0.3}
    return _plain("dinov3", Eva(**VIT | {"embed_dim": 16}, num_classes=0, use_rot_pos_emb=True, **options))


def beit() -> Backbone:
    """Biases of their own for q and v, relative positions, layer scale."""
    return _plain("beit", Beit(**VIT, num_classes=0, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.3))


WINDOWS: dict[str, Any] = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "num_classes": 0}


def swin() -> Backbone:
    return _plain("swin", SwinTransformer(**WINDOWS, depths=(2, 1), num_heads=(2, 2)), 16, None)


def swin_v2() -> Backbone:
    """Norms behind attention and MLP."""
    return _plain("swin_v2", SwinTransformerV2(**WINDOWS, depths=(2, 1), num_heads=(2, 2)), 16, None)


def _timm(name: str, arch: str, size: int = 32, **options: Any) -> Backbone:
    return _plain(name, timm.create_model(arch, num_classes=0, **options), size, None)


def resnet() -> Backbone:
    return _timm("resnet", "test_resnet")


def convnext() -> Backbone:
    return _timm("convnext", "test_convnext")


def efficientnet() -> Backbone:
    return _timm("efficientnet", "test_efficientnet")


def regnet() -> Backbone:
    return _timm("regnet", "regnety_002", w0=16, wa=16.0, wm=2.0, depth=6, group_size=8, stem_width=8)


def maxvit() -> Backbone:
    """A hybrid of convolutions and attention in windows."""
    cfg = MaxxVitCfg((32, 64, 96, 128), (1, 1, 1, 1), ("M",) * 4, (16, 32))
    return _plain("maxvit", MaxxVit(cfg, 64, num_classes=0), 64, None)


def _open_clip(name: str, vision: dict[str, Any], size: int, **text: Any) -> Backbone:
    about = {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": TEXT | text}
    facts = Facts(size, HALF, HALF)
    return from_open_clip.assemble(BackboneConfig(name=name), about, None, facts, Letters())


def open_clip_vit() -> Backbone:
    """open_clip's own transformer in CLIPA's form: mean pooling before the last norm, none before the blocks."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": 14, "head_width": 7, "layers": 3}
    own = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    return _open_clip("open_clip_vit", vision | own, SIZE, pool_type="last", no_causal_mask=True)


def open_clip_timm() -> Backbone:
    """A timm tower inside open_clip's wrapper, projected by its own classifier."""
    vision = {"image_size": 160, "timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": None}
    return _open_clip("open_clip_timm", vision, 160, layers=5)


ZOO: dict[str, Callable[[], Backbone]] = {
    make.__name__: make
    for make in (
        clip_vit,
        clip_resnet,
        timm_vit,
        timm_mean_pool,
        siglip,
        eva,
        dinov3,
        beit,
        swin,
        swin_v2,
        resnet,
        convnext,
        efficientnet,
        regnet,
        maxvit,
        open_clip_vit,
        open_clip_timm,
    )
}


KINDS = ("clip_vit", "clip_resnet", "timm_vit", "siglip", "eva", "swin", "resnet", "convnext")
"""One of each kind: two towers or one, tokens or pixels, q, k and v together or apart, pooled by token or attention."""


def backbone_of(name: str) -> Backbone:
    """A member of the zoo with the same random weights each time, away from zero biases and unit norms."""
    torch.manual_seed(0)
    backbone = ZOO[name]()
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return backbone
