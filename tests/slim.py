"""Real architectures of timm and open_clip made thin, beside random models of transformers of the same sizes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from liftplus.backbones import catalogue, counterparts
from liftplus.backbones.base import Backbone, BackboneConfig

WIDTH, DEPTH, HEADS, WORDS, CONTEXT = 48, 2, 2, 99, 13
THIN = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
TEXT = THIN | {"intermediate_size": 4 * WIDTH, "vocab_size": WORDS, "max_position_embeddings": CONTEXT}


def thin_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm and open_clip build every architecture with two blocks of width 48, and as its authors made it otherwise."""
    create, describe = timm.create_model, open_clip.get_model_config

    def thin(name: str, **options: Any) -> nn.Module:
        sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
        made: nn.Module = create(name, **(options | (sizes if name.startswith(("vit_", "beit", "local-dir:")) else {})))
        return made

    def described(arch: str) -> Any:
        found = deepcopy(describe(arch))
        if found is None or not {"vision_cfg", "text_cfg"} <= found.keys():
            return found
        found["embed_dim"] = WIDTH
        found["text_cfg"] |= {"width": WIDTH, "heads": HEADS, "layers": DEPTH, "vocab_size": WORDS}
        found["text_cfg"]["context_length"] = CONTEXT
        if "timm_model_name" not in found["vision_cfg"]:
            found["vision_cfg"] |= {"width": WIDTH, "layers": DEPTH, "head_width": WIDTH // HEADS}
        return found

    monkeypatch.setattr(timm, "create_model", thin)
    monkeypatch.setattr("open_clip.timm_model.timm.create_model", thin)
    monkeypatch.setattr(open_clip, "get_model_config", described)
    monkeypatch.setattr(counterparts, "SIZES", {(WIDTH, DEPTH): "base"})
    monkeypatch.setattr(
        counterparts, "_DINOV3", {(WIDTH, DEPTH, gated): "small_plus" if gated else "base" for gated in (0, 1)}
    )


def saved(kind: str, folder: Path, **settings: Any) -> nn.Module:
    """A random model of transformers, saved by the library itself in the folder."""
    torch.manual_seed(7)
    model: Any = MODELS[kind](settings)
    for parameter in model.parameters():  # away from the zeros and ones of a fresh model
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def _tower(settings: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    return THIN | {"intermediate_size": 4 * WIDTH} | sizes | settings


def _clip(settings: dict[str, Any]) -> nn.Module:
    config = transformers.CLIPConfig(
        projection_dim=settings.pop("projection_dim", WIDTH),
        vision_config=_tower(settings, image_size=224, patch_size=16),
        text_config=TEXT | {"eos_token_id": WORDS - 1} | settings,
    )
    return transformers.CLIPModel(config)


def _siglip(settings: dict[str, Any]) -> nn.Module:
    vision = _tower(settings, image_size=224, patch_size=16)
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=TEXT | settings))


def _dinov2(settings: dict[str, Any]) -> nn.Module:
    return transformers.Dinov2Model(
        transformers.Dinov2Config(**THIN | {"image_size": 518, "patch_size": 14} | settings)
    )


def _dinov2_registers(settings: dict[str, Any]) -> nn.Module:
    sizes = THIN | {"image_size": 518, "patch_size": 14} | settings
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))


def _dinov3(settings: dict[str, Any]) -> nn.Module:
    sizes = _tower(settings, image_size=224, patch_size=16, num_register_tokens=4)
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes))


def _vit(settings: dict[str, Any]) -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**_tower(settings, image_size=224)))


def _beit(settings: dict[str, Any]) -> nn.Module:
    sizes = _tower(settings, image_size=224, use_relative_position_bias=True)
    return transformers.BeitForImageClassification(transformers.BeitConfig(**sizes))


MODELS = {
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2_registers,
    "dinov3": _dinov3,
    "vit": _vit,
    "beit": _beit,
}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


NAMES = {
    "clip": "open_clip/ViT-B-16-quickgelu/openai",
    "siglip": "open_clip/ViT-B-16-SigLIP/webli",
    "dinov2": "timm/vit_base_patch14_dinov2.lvd142m",
    "dinov2_with_registers": "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov3": "timm/vit_base_patch16_dinov3_qkvb.lvd1689m",
    "vit": "timm/vit_base_patch16_224.augreg_in21k",
    "beit": "timm/beit_base_patch16_224.in22k_ft_in22k",
}
CLASSES = {"dinov2_with_registers": "Dinov2WithRegistersModel", "dinov3": "DINOv3ViTModel"}


def needs(kind: str) -> Any:
    there = hasattr(transformers, CLASSES.get(kind, "CLIPModel"))
    reason = f"this version of transformers has no {CLASSES.get(kind)}"
    return pytest.param(kind, marks=pytest.mark.skipif(not there, reason=reason))


KINDS = [needs(kind) for kind in NAMES]
OTHER_SIZES = {"dinov2": (98, 714), "dinov2_with_registers": (98, 714)}
"""Sizes of pictures that are not the native one, a smaller and a larger one; of all other families (112, 336)."""


def load(path: Path, kind: str, **options: Any) -> Backbone:
    return catalogue.load(BackboneConfig(name=NAMES[kind], weights=str(path), **options))


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pictures(size: int) -> Tensor:
    """Noise on three colours: features of noise alone are all alike, and differ by little more than rounding."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, size, size, generator=generator) + 3 * torch.randn(3, 3, 1, 1, generator=generator)


def theirs(kind: str, model: Any, images: Tensor, *, resampled: bool = False) -> Tensor:
    """transformers' features of pictures, pooled as timm pools; at another size some must be told to resample."""
    model = getattr(model, "beit", getattr(model, "vision_model", model))
    told = resampled and kind in ("clip", "siglip", "vit", "beit")
    out = model(images, **({"interpolate_pos_encoding": True} if told else {}))
    if kind == "dinov3":
        return out.last_hidden_state[:, 5:].mean(1)
    return out.last_hidden_state[:, 0] if kind == "vit" else out.pooler_output


def assert_equal(ours: Tensor, own: Tensor) -> None:
    """Within 1e-5 of the spread over pictures or texts."""
    spread = own.std(0).mean()
    assert spread > 1e-3
    assert (ours - own).abs().max() < 1e-5 * spread
