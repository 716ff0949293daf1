"""Weights that were trained at another size than their tag's, as timm's and open_clip's own constructors take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liftplus.backbones import catalogue, from_open_clip
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.errors import UserError
from zoo import OLD_TIMM

from .test_open_clip import inputs, load, source, write

# One of each family, made small: what is built for a size, and the smallest other size that its patches allow.
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "test_vit.r160_in1k": (224, {}),
    "vit_small_patch14_dinov2.lvd142m": (56, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
    "vit_small_patch14_reg4_dinov2.lvd142m": (56, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
    "beit_base_patch16_224.in22k_ft_in22k": (64, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
    "eva02_tiny_patch14_224.mim_in22k": (56, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
    "vit_small_patch16_dinov3.lvd1689m": (64, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
    "swin_tiny_patch4_window7_224.ms_in1k": (448, {"depths": (2, 1), "embed_dim": 8, "num_heads": (1, 2)}),
    "vit_relpos_small_patch16_224.sw_in1k": (64, {"depth": 1, "embed_dim": 48, "num_heads": 2}),
}


def stirred(model: nn.Module) -> nn.Module:
    """Away from the zeros and ones of a fresh model."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous().clone() for name, value in model.state_dict().items()}


def small(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Have timm build the family with few and narrow blocks."""
    whole = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: whole(name, **given, **options))


def load_timm(name: str, path: Path, size: int | None) -> Backbone:
    return catalogue.load(BackboneConfig(name=f"timm/{name}", weights=str(path), image_size=size))


OLD = "timm before 1.0.31 takes a Swin without classifier for its authors' file, so the weights are refused"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_another_size_is_taken_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if OLD_TIMM and "swin" in name:
        pytest.skip(OLD)
    size, options = FAMILIES[name]
    small(monkeypatch, options)
    own = stirred(timm.create_model(name, num_classes=0, img_size=size))
    save_file(tensors(own), tmp_path / "own.safetensors")
    found = load_timm(name, tmp_path / "own.safetensors", size)
    assert found.facts.image_size == size
    learned, expected = found.image.state_dict(), own.state_dict()
    for key in expected.keys() & learned.keys():
        assert torch.equal(learned[key], expected[key]), key
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found(images), own(images), rtol=1e-4, atol=1e-4 * float(own(images).std()))


@pytest.mark.skipif(OLD_TIMM, reason=OLD)
def test_swin_keeps_its_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of the native size at twice the side, as timm's img_size does it: the windows stay at 7."""
    name = "swin_tiny_patch4_window7_224.ms_in1k"
    small(monkeypatch, FAMILIES[name][1])
    native = stirred(timm.create_model(name, num_classes=0))
    save_file(tensors(native), tmp_path / "own.safetensors")
    found: Any = load_timm(name, tmp_path / "own.safetensors", 448).image
    assert found.layers[0].blocks[0].window_size == (7, 7)
    twin = timm.create_model(name, num_classes=0, img_size=448).eval()
    twin.load_state_dict(native.state_dict(), strict=False)
    images = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(found(images), twin(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [112, 224, None])
def test_a_file_of_a_third_size_is_resampled_once(size: int | None, tmp_path: Path) -> None:
    """From its own grid to the one wanted, not by way of the native one."""
    own = stirred(timm.create_model("test_vit.r160_in1k", num_classes=0, img_size=320))
    save_file(tensors(own), tmp_path / "own.safetensors")
    found: Any = load_timm("test_vit.r160_in1k", tmp_path / "own.safetensors", size).image
    expected: Any = own
    expected.set_input_size(img_size=(size or 160, size or 160))
    assert torch.equal(found.pos_embed, expected.pos_embed)


def test_resampling_that_was_not_asked_for_is_told(tmp_path: Path) -> None:
    own = stirred(timm.create_model("test_vit.r160_in1k", num_classes=0, img_size=320))
    save_file(tensors(own), tmp_path / "own.safetensors")
    (note,) = load_timm("test_vit.r160_in1k", tmp_path / "own.safetensors", None).notes
    assert "pictures of 320 px" in note and "to 160 px" in note and "image_size=320" in note
    for size in (320, 160):
        assert load_timm("test_vit.r160_in1k", tmp_path / "own.safetensors", size).notes == ()


@pytest.mark.parametrize(("kind", "size"), [("siglip", 224), ("eva", 224), ("projected", 112), ("clip", 25)])
def test_open_clips_files_of_another_size(kind: str, size: int, tmp_path: Path) -> None:
    """SigLIP's and CLIP's towers: timm's inside open_clip, and open_clip's own."""
    vision = {} if kind != "clip" else {"image_size": size}
    model = source(kind, **vision)
    if kind != "clip":
        model.visual.set_input_size(size)
        model.visual.trunk.pos_embed.data.normal_(generator=torch.Generator().manual_seed(4))
    found: Any = load(kind, write(model.state_dict(), tmp_path / "x.safetensors"), size)
    if kind != "clip":
        assert torch.equal(found.image.pos_embed, model.visual.trunk.pos_embed)
    images, _ = inputs(size)
    expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(found.joint(found(images)), expected, rtol=1e-5, atol=1e-5 * float(expected.std()))


def test_open_clips_file_of_a_third_size(tmp_path: Path) -> None:
    model = source("siglip")
    model.visual.set_input_size(224)
    model.visual.trunk.pos_embed.data.normal_(generator=torch.Generator().manual_seed(4))
    path = write(model.state_dict(), tmp_path / "x.safetensors")
    found: Any = load("siglip", path, 112)
    model.visual.set_input_size(112)
    assert torch.equal(found.image.pos_embed, model.visual.trunk.pos_embed)


@pytest.mark.parametrize("name", ["convit_tiny.fb_in1k", "levit_128s.fb_dist_in1k"])
def test_a_size_that_timm_cannot_build_is_refused(name: str) -> None:
    """It was taken and the first batch ended in a traceback, or it was refused for another reason."""
    with torch.device("meta"), pytest.raises(UserError, match="native input size only"):
        catalogue.load(BackboneConfig(name=f"timm/{name}", image_size=448), weights=False)


def test_a_window_that_does_not_fit_is_named() -> None:
    name = "timm/swin_tiny_patch4_window7_224.ms_in1k"
    with torch.device("meta"), pytest.raises(UserError, match="image_size is 30"):
        catalogue.load(BackboneConfig(name=name, image_size=30), weights=False)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("vit_base_patch32_clip_224.openai", "timm/vit_base_patch32_clip_quickgelu_224.openai"),
        ("vit_large_patch14_clip_336.openai", "timm/vit_large_patch14_clip_quickgelu_336.openai"),
        ("vit_base_patch32_clip_quickgelu_224.openai", None),
        ("vit_base_patch32_clip_224.laion2b", None),
    ],
)
def test_weights_of_quickgelu_in_a_model_with_gelu(name: str, twin: str | None) -> None:
    with torch.device("meta"):
        notes = catalogue.load(BackboneConfig(name=f"timm/{name}"), weights=False).notes
    assert (twin in " ".join(notes)) if twin else notes == ()


def test_the_record_of_open_clip_needs_no_note() -> None:
    with torch.device("meta"):
        assert catalogue.load(BackboneConfig(name="open_clip/ViT-B-32/openai"), weights=False).notes == ()
    assert from_open_clip.describe("ViT-B-32", "openai")[1]["quick_gelu"]
