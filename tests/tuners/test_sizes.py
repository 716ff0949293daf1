"""Sizes that follow from the number of classes and of blocks, by LIFT+'s rule and by LIFT's, and prompts that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from liftplus import config, registry
from liftplus.backbones.base import Backbone, Facts
from liftplus.tuners.base import Tuner

DEPTH, WIDTH = 12, 48


def vit(depth: int = DEPTH) -> Backbone:
    tower = VisionTransformer(img_size=16, patch_size=8, embed_dim=WIDTH, depth=depth, num_heads=2, num_classes=0)
    return Backbone("vit", tower, Facts(16, (0.5,) * 3, (0.5,) * 3, patch_size=8))


def size_of(name: str, classes: int, **options: Any) -> int:
    """Width, rank or number of prompts of a tuner's first module."""
    with torch.device("meta"):
        part = registry.get("tuner", name)(**options)
        assert isinstance(part, Tuner)
        shapes = {key: p.shape for key, p in part.place(vit(), classes).named_parameters()}
    return next(
        shape[1] if key.endswith("q.down") else shape[0]
        for key, shape in shapes.items()
        if key.endswith(("down.weight", "q.down", "prompt"))
    )


# name, classes, layers, LIFT+'s rule (chosen blocks), LIFT's (all blocks), LIFT+'s with all blocks
SIZES = [
    ("adaptformer", 1000, "all", 32, 32, 32),
    ("adaptformer", 1000, 4, 64, 32, 32),  # 2^floor(log2(1000 / 8)) = 64
    ("adapter", 1000, (0, 1, 2, 3), 64, 32, 32),
    ("lora", 1000, "all", 16, 32, 16),
    ("lora", 1000, 4, 32, 32, 16),
    ("lora", 8142, "all", 128, 256, 128),
    ("vpt_deep", 1000, "all", 64, 10, 64),
    ("vpt_deep", 1000, 4, 128, 10, 64),
    ("vpt_shallow", 365, "all", 16, 10, 16),
    ("adaptformer", 10, 1, 4, 1, 1),
    ("adaptformer", 2, "all", 1, 1, 1),
]


@pytest.mark.parametrize(("name", "classes", "layers", "lift_plus", "lift", "depth"), SIZES)
def test_sizes_by_each_rule(name: str, classes: int, layers: Any, lift_plus: int, lift: int, depth: int) -> None:
    found = [size_of(name, classes, layers=layers, **own) for own in ({}, {"sizes": "lift"}, {"sizes": "depth"})]
    assert found == [lift_plus, lift, depth]


def share(classes: int, **options: Any) -> float:
    part = registry.get("tuner", "aft")(**options)
    assert isinstance(part, Tuner)
    placed = part.place(vit(), classes)
    trained = sum(p.numel() for p in placed.parameters())
    blocks = len(part.chosen_layers(DEPTH))
    return trained / (blocks * WIDTH * (12 * WIDTH + 9))


def test_share_of_arbitrary_fine_tuning() -> None:
    """LIFT+: C / (L (12 D + 9)) over the chosen blocks. LIFT: C / (12 L D), in whole thousandths, at least one."""
    assert share(100) == pytest.approx(100 / (12 * (12 * WIDTH + 9)), rel=0.03)
    assert share(100, layers=3) == pytest.approx(100 / (3 * (12 * WIDTH + 9)), rel=0.03)
    assert share(100, layers=3, sizes="depth") == pytest.approx(100 / (12 * (12 * WIDTH + 9)), rel=0.03)
    assert share(100, sizes="lift") == pytest.approx(0.014, rel=0.03)  # 100 / (12 x 12 x 48) = 0.01447
    assert share(2, sizes="lift") == pytest.approx(0.001, rel=0.1)  # a bias of 48 has none


def tokens(layers: Any, depth: int = 4, **more: dict[str, Any]) -> list[int]:
    """Tokens that each block of a small ViT sees with deep prompts of length 3, and what leaves the last."""
    backbone = vit(depth)
    seen: list[int] = []
    options = {"vpt_deep": {"length": 3, "layers": layers}} | more
    for name, own in sorted(options.items(), key=lambda item: registry.get("tuner", item[0]).order):  # type: ignore[attr-defined]
        part = registry.get("tuner", name)(**own)
        assert isinstance(part, Tuner)
        part.place(backbone, 10)
    for block in backbone.image.blocks:  # type: ignore[union-attr]
        block.attn.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))  # type: ignore[union-attr]
    backbone.image.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))  # type: ignore[union-attr]
    assert backbone.image(torch.randn(2, 3, 16, 16)).isfinite().all()
    return seen


def test_deep_prompts_stay_until_others_replace_them() -> None:
    """5 tokens and 3 prompts; what follows the blocks sees 5 in any case."""
    assert tokens("all") == [8, 8, 8, 8, 5]
    assert tokens((0,)) == [8, 8, 8, 8, 5]
    assert tokens((1, 3)) == [5, 8, 8, 8, 5]
    assert tokens(1) == [5, 5, 5, 8, 5]
    assert tokens((0, 2), vpt_deep={"length": 3, "layers": (0, 2), "stay": False}) == [8, 5, 8, 5, 5]


@pytest.mark.parametrize("shallow", [(0,), (0, 1), (1, 2), (2, 3), (1, 3), (0, 3)])
@pytest.mark.parametrize("deep", [(0,), (1,), (2,), (0, 2), (3,)])
def test_prompts_of_two_tuners_leave_as_themselves(deep: tuple[int, ...], shallow: tuple[int, ...]) -> None:
    """However their spans cross: with both kinds marked, each block sees just those that are in."""
    backbone = vit(4)
    for name, length, layers in (("vpt_shallow", 2, shallow), ("vpt_deep", 3, deep)):
        part = registry.get("tuner", name)(length=length, layers=layers)
        assert isinstance(part, Tuner)
        for prompt in part.place(backbone, 10).parameters():
            prompt.data.fill_(1e3 * length)
    inside: list[tuple[int, int]] = []

    def count(block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        marks = args[0][0].mean(-1)
        inside.append((int((marks > 2.5e3).sum()), int(((marks > 1.5e3) & (marks < 2.5e3)).sum())))

    for block in backbone.image.blocks:  # type: ignore[union-attr]
        block.norm1.register_forward_pre_hook(count)  # type: ignore[union-attr]
    assert backbone.image(torch.randn(2, 3, 16, 16)).isfinite().all()
    wide = range(shallow[0], shallow[-1] + 1)
    assert inside == [(3 * (n >= deep[0]), 2 * (n in wide)) for n in range(4)]


def test_saved_runs_keep_the_sizes_and_starts_of_their_time() -> None:
    """A run saved before the options existed has none of them; what it had then is filled in."""
    now = config.resolve(overrides=["tuner=adaptformer+lora+vpt_deep+aft", "tuner.vpt_deep.layers=[0]"]).to_dict()
    assert config.saved(now) == now
    old = {"tuner": {name: dict(own) for name, own in now["tuner"].items()}}
    for own in old["tuner"].values():
        for key in ("sizes", "start", "stay"):
            own.pop(key, None)
    old["tuner"]["adaptformer"]["layers"] = 4
    then = config.from_dict(config.saved(now | old)).to_dict()["tuner"]
    assert {name: own["sizes"] for name, own in then.items()} == {
        "adaptformer": "depth",  # for which 4 of 12 blocks made no difference
        "lora": "lift+",
        "vpt_deep": "depth",
        "aft": "lift+",
    }
    assert then["lora"]["start"] == "peft"
    assert then["vpt_deep"]["stay"] is False
    assert config.from_dict(old | {"tuner": {"lora": {}}}).tuner["lora"].start == "lift"  # type: ignore[attr-defined]
