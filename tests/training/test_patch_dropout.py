"""Training steps that see a random part of each picture (train.keep)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from liftplus import config, registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.errors import UserError
from liftplus.training.patch_dropout import PatchDropout


def tower() -> Backbone:
    return catalogue.load(BackboneConfig(name="mini_clip"))


def entering(block: nn.Module, seen: list[Tensor]) -> Callable[[], None]:
    """Note what enters a block from now on."""
    return block.register_forward_pre_hook(lambda _block, args: seen.append(args[0])).remove


def test_what_stays_is_untouched_and_class_tokens_come_first() -> None:
    backbone = tower()
    (first, *_) = backbone.sites("tokens")
    images = torch.rand(3, 3, 64, 64)
    seen: list[Tensor] = []
    with torch.no_grad():
        entering(first.entry, seen)
        backbone(images)
        patches = PatchDropout(backbone, 0.3)
        seen.clear()
        places = patches.draw(torch.tensor([5, 6, 5]), 3, images.device)
        whole = backbone(images)
        with patches.on(places):
            part = backbone(images)
        again = backbone(images)
    full, fewer, _ = seen
    count = full.shape[1] - first.prefix
    assert places is not None and places.shape == (3, round(0.3 * count))
    assert torch.equal(places[0], places[2]) and not torch.equal(places[0], places[1])
    assert (places.diff() > 0).all() and places.min() >= 0 and places.max() < count
    assert torch.equal(fewer[:, : first.prefix], full[:, : first.prefix])
    for row in range(3):
        assert torch.equal(fewer[row, first.prefix :], full[row, first.prefix :][places[row]])
    assert torch.equal(whole, again) and not torch.allclose(whole, part)


def test_each_patch_stays_equally_often() -> None:
    patches = PatchDropout(tower(), 0.5)
    places = patches.draw(torch.arange(4000), 4000, torch.device("cpu"))
    assert places is not None
    share = torch.bincount(places.flatten(), minlength=patches.patches) / 4000
    assert share.sub(patches.count / patches.patches).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_prompts_do_not_count_as_patches_and_stay() -> None:
    """They enter the first block at the same place; its length was once taken with them."""
    backbone = tower()
    count = PatchDropout(backbone, 0.5).patches
    registry.get("tuner", "vpt_deep")(length=5).attach(backbone, 10)
    patches, seen = PatchDropout(backbone, 0.5), []
    (first, *_) = backbone.sites("tokens")
    entering(first.entry, seen)
    with torch.no_grad(), patches.on(patches.draw(torch.arange(2), 2, torch.device("cpu"))):
        backbone(torch.rand(2, 3, 64, 64))
    assert patches.patches == count
    assert seen[0].shape[1] == first.prefix + 5 + count // 2


def test_a_short_batch_of_a_compiled_model_is_filled_up() -> None:
    backbone, cpu = tower(), torch.device("cpu")
    patches, images = PatchDropout(backbone, 0.5), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        with patches.on(patches.draw(torch.tensor([3, 4]), 2, cpu)):
            alone = backbone(images)
        with patches.on(patches.draw(torch.tensor([3, 4]), 5, cpu)):
            short, filled = backbone(images), backbone(torch.cat([images, torch.zeros(3, 3, 64, 64)]))
    assert torch.equal(alone, short)
    assert torch.allclose(filled[:2], alone, atol=1e-5)


def test_one_patch_stays_at_least_and_all_without_the_option() -> None:
    backbone = tower()
    assert PatchDropout(backbone, 1e-9).count == 1
    hooks = len(backbone.sites("tokens")[0].entry._forward_pre_hooks)
    assert PatchDropout(backbone, 1.0).draw(torch.arange(2), 2, torch.device("cpu")) is None
    assert len(backbone.sites("tokens")[0].entry._forward_pre_hooks) == hooks


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm/resnet18.a1_in1k", "no transformer with one sequence"),
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", "no transformer with one sequence"),
        ("timm/beit_base_patch16_224.in22k_ft_in22k_in1k", "bias for pairs of positions"),
        ("timm/eva02_tiny_patch14_224.mim_in22k", "rotary embedding"),
    ],
)
def test_towers_that_need_every_patch_refuse(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        PatchDropout(catalogue.without_weights(BackboneConfig(name=name)), 0.5)


@pytest.mark.parametrize("keep", ["0", "1.5", "nan", "half"])
def test_shares_outside_the_range_are_refused(keep: str) -> None:
    with pytest.raises(UserError, match="keep"):
        config.resolve(data="x", overrides=[f"train.keep={keep}"])
