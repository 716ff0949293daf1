"""LoRA to peft and back, against peft itself on timm's own models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from liftplus import lora_exchange
from liftplus.checkpoint import Trained
from liftplus.config import resolve
from liftplus.errors import UserError
from liftplus.heads import Cosine
from liftplus.model import Classifier
from liftplus.tuners.base import Tuner
from liftplus.tuners.lora import LoRA
from liftplus.tuners.ssf import SSF
from zoo import backbone_of

peft = pytest.importorskip("peft")
PARTS = [("q", "v"), ("q", "k", "v", "out"), ("out", "fc1", "fc2"), ("v", "fc2")]


def trained(backbone: str, stir: bool = True, other: dict[str, Tuner] | None = None, **options: Any) -> Trained:
    trunk = backbone_of(backbone)
    tuners: dict[str, Tuner] = {"lora": LoRA(**options)} | (other or {})
    model = Classifier.assemble(trunk, tuners, Cosine().build(trunk, 3), ["ant", "bee", "cat"])
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if name.startswith("tuners.") and stir:
            weight.data.normal_(0, 0.2)
    nn.init.normal_(model.head.weight)
    config = resolve().model_copy(update={"tuner": tuners})
    return Trained(model, config, ("ant", "bee", "cat"), ("0", "1", "2"), (3, 2, 1))


def pictures(run: Trained) -> torch.Tensor:
    size = run.model.backbone.facts.image_size
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize(
    ("backbone", "targets"),
    [*(("timm_vit", part) for part in PARTS), ("clip_vit", ("q", "v")), ("eva", ("q", "v", "fc1")), ("resnet", None)],
)
@torch.no_grad()
def test_peft_gives_our_features(backbone: str, targets: Any, tmp_path: Path) -> None:
    run = trained(backbone, targets=targets, rank=2, scale=3.0)
    number = lora_exchange.write_folder(run, tmp_path / "peft")
    bare = backbone_of(backbone).image
    other = peft.PeftModel.from_pretrained(bare, tmp_path / "peft")
    assert sum(hasattr(module, "lora_A") for module in other.modules()) == number > 0
    images = pictures(run)
    expected = run.model.backbone(images)
    assert not torch.allclose(expected, backbone_of(backbone).image(images), rtol=1e-2)
    torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@torch.no_grad()
def test_and_back_again(tmp_path: Path) -> None:
    run = trained("timm_vit", targets=("q", "v", "fc2"), rank=3, scale=2.0)
    lora_exchange.write_folder(run, tmp_path / "peft")
    twin = trained("timm_vit", targets=("q", "v", "fc2"), rank=5, stir=False)
    assert lora_exchange.read_folder(twin.model, tmp_path / "peft") == 6
    images = pictures(run)
    torch.testing.assert_close(twin.model.backbone(images), run.model.backbone(images), rtol=1e-5, atol=1e-5)


def made_by_peft(tmp_path: Path, **options: Any) -> Any:
    model = peft.get_peft_model(copy.deepcopy(backbone_of("timm_vit").image), peft.LoraConfig(**options))
    torch.manual_seed(6)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "theirs")
    return model.eval()


@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_an_adapter_of_peft(rslora: bool, tmp_path: Path) -> None:
    """Ranks and alphas of its own for some linears; q, k and v are one linear to peft."""
    options = {"r": 4, "lora_alpha": 6, "rank_pattern": {"fc2": 2}, "alpha_pattern": {"fc2": 5}, "use_rslora": rslora}
    theirs = made_by_peft(tmp_path, target_modules=["qkv", "fc2"], **options)
    run = trained("timm_vit", targets=("q", "k", "v", "fc2"), rank=4, stir=False)
    assert lora_exchange.read_folder(run.model, tmp_path / "theirs") == 6
    images = pictures(run)
    expected = theirs(images)
    torch.testing.assert_close(run.model.backbone(images), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("q", "k", "v"), "rank": 3}, "tuner.lora.rank=4"),
        ({"targets": ("q", "v"), "rank": 4}, 'targets=\\["q","k","v"\\]'),
        ({"targets": ("fc1",), "rank": 4}, "tuner.lora.targets"),
    ],
)
def test_what_does_not_fit_is_refused_whole(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    made_by_peft(tmp_path, r=4, target_modules=["qkv"])
    run = trained("timm_vit", **options)
    before = run.model.learned_state()
    with pytest.raises(UserError, match=said):
        lora_exchange.read_folder(run.model, tmp_path / "theirs")
    assert all(torch.equal(value, before[name]) for name, value in run.model.learned_state().items())


def test_dora_is_refused(tmp_path: Path) -> None:
    made_by_peft(tmp_path, r=4, target_modules=["fc2"], use_dora=True)
    with pytest.raises(UserError, match="use_dora"):
        lora_exchange.read_folder(trained("timm_vit").model, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: trained("open_clip_vit"), "hides inside one module"),
        (lambda: trained("beit"), "hides inside one module"),
        (lambda: trained("timm_vit", other={"ssf": SSF()}), "tunes lora\\+ssf"),
        (lambda: trained("clip_vit", side="both"), "text side"),
    ],
)
def test_what_peft_cannot_hold_is_refused(run: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        lora_exchange.write_folder(run(), tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
