"""Where every tuner starts: the published distribution of each new weight, and what the first steps make of it.

Sources: LIFT (arXiv 2309.10019), LIFT+ (arXiv 2504.13282) and their published code. A start that differs in scale
changes no forward pass of given weights, so the reference figures cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus import registry
from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.sites import Site
from liftplus.tuners.base import Tuner
from liftplus.tuners.bottleneck import Bottleneck
from liftplus.tuners.conv_adapter import ConvBottleneck
from liftplus.tuners.coop import Context
from liftplus.tuners.lora import LowRank
from liftplus.tuners.ssf import ScaleShift
from liftplus.tuners.vpt import Prompt

WIDTH, OUT, R = 768, 512, 16
# Tuners without weights of their own: they start from the backbone's, which test_contract compares bit by bit.
OWN_WEIGHTS = {"full", "full_all", "partial", "bitfit", "norm", "projection", "aft"}

# Each new weight: its shape, and how it is drawn. (uniform, bound), (normal, mean, std) or (value,).
Start = tuple[tuple[int, ...], tuple[Any, ...]]
KAIMING = ("uniform", 1 / math.sqrt(WIDTH))
BOTTLENECK: dict[str, Start] = {
    "norm.weight": ((WIDTH,), (1.0,)),
    "norm.bias": ((WIDTH,), (0.0,)),
    "down.weight": ((R, WIDTH), KAIMING),
    "down.bias": ((R,), (0.0,)),
    "up.weight": ((WIDTH, R), (0.0,)),
    "up.bias": ((WIDTH,), (0.0,)),
}
SCALED = BOTTLENECK | {"scale": ((), (1.0,))}
PROMPT: dict[str, Start] = {"prompt": ((R, WIDTH), ("normal", 0.0, 0.02))}


def site(width: int = WIDTH, out: int = OUT) -> Site:
    layer = nn.Linear(width, out)
    return Site("q", 0, layer, layer, width, out)


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], dict[str, Start]]] = {
    "adaptformer": (lambda: Bottleneck(WIDTH, R, scaled=True), SCALED),
    "adapter": (lambda: Bottleneck(WIDTH, R), BOTTLENECK),
    "clip_adapter": (lambda: Bottleneck(WIDTH, R), BOTTLENECK),
    "lora": (
        lambda: LowRank(site(), R, 1.0, "lift"),
        {"down": ((WIDTH, R), ("uniform", 1 / math.sqrt(R))), "up": ((R, OUT), (0.0,))},
    ),
    "vpt_deep": (lambda: Prompt(WIDTH, R, 1, (0, 0)), PROMPT),
    "vpt_shallow": (lambda: Prompt(WIDTH, R, 1, (0, 0)), PROMPT),
    "coop": (lambda: Context(WIDTH, tuple(range(R))), {"context": ((R, WIDTH), ("normal", 0.0, 0.02))}),
    "ssf": (
        lambda: ScaleShift(8 * WIDTH),
        {"scale": ((8 * WIDTH,), ("normal", 1.0, 0.02)), "shift": ((8 * WIDTH,), ("normal", 0.0, 0.02))},
    ),
    "conv_adapter": (  # ours: no published start
        lambda: ConvBottleneck(WIDTH, OUT, R),
        {
            "norm.weight": ((WIDTH,), (1.0,)),
            "norm.bias": ((WIDTH,), (0.0,)),
            "down.weight": ((R, WIDTH, 1, 1), KAIMING),
            "down.bias": ((R,), (0.0,)),
            "up.weight": ((OUT, R, 1, 1), (0.0,)),
            "up.bias": ((OUT,), (0.0,)),
            "scale": ((), (1.0,)),
            "mix.weight": ((R, 1, 3, 3), ("identity",)),
        },
    ),
}


def test_every_tuner_is_looked_at() -> None:
    assert PUBLISHED.keys() | OWN_WEIGHTS == registry.discover("tuner").keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_each_weight_is_drawn_as_published(name: str) -> None:
    make, expected = PUBLISHED[name]
    torch.manual_seed(0)
    drawn = dict(make().named_parameters())
    assert {key: tuple(value.shape) for key, value in drawn.items()} == {key: one[0] for key, one in expected.items()}
    for key, (_, law) in expected.items():
        looks_like(drawn[key].detach(), law)


def looks_like(values: Tensor, law: tuple[Any, ...]) -> None:
    if law[0] == "uniform":
        assert values.abs().max() <= law[1] and values.abs().max() > 0.99 * law[1]
        assert values.std() == pytest.approx(law[1] / math.sqrt(3), rel=0.03)
    elif law[0] == "normal":
        assert values.mean() == pytest.approx(law[1], abs=4 * law[2] / math.sqrt(values.numel()))
        assert values.std() == pytest.approx(law[2], rel=0.03)
        assert values.sub(law[1]).abs().max() > 3 * law[2]  # no uniform of that spread reaches so far
    elif law[0] == "identity":
        assert torch.equal(values.flatten(1), torch.eye(9)[4].expand(len(values), 9))
    else:
        assert values.eq(law[0]).all()


def first_step(module: nn.Module, x: Tensor, pull: Tensor, lr: float) -> Tensor:
    """What one step of gradient descent on <output, pull> changes in the output."""
    before = module(x)
    (before * pull).sum().backward()
    with torch.no_grad():
        for weight in module.parameters():
            weight -= lr * weight.grad
        return (module(x) - before).detach()


# The change is -lr x factor x pull: factors from the published forms, in expectation over the start.
# LoRA: scale^2 |W_d^T x|^2 = (1/r^2) (1/3r) r |x|^2. Bottleneck: |ReLU(h)|^2 + 1, h of variance 1/3, half of it cut.
FIRST_STEP: dict[str, Callable[[Tensor], Tensor | float]] = {
    "lora": lambda x: x.square().sum() / (3 * R**2),
    "adaptformer": lambda _x: R / 6 + 1,
    "adapter": lambda _x: R / 6 + 1,
    "clip_adapter": lambda _x: R / 6 + 1,
    "ssf": lambda x: x.square() + 1,
}


@pytest.mark.parametrize("name", sorted(FIRST_STEP))
def test_first_step_moves_as_far_as_published(name: str) -> None:
    make, lr = PUBLISHED[name][0], 1e-4
    factors = []
    for seed in range(40):
        torch.manual_seed(seed)
        module = make()
        x = torch.randn(1, 8 * WIDTH if name == "ssf" else WIDTH)
        pull = torch.randn_like(module(x))
        factor = -first_step(module, x, pull, lr) / (lr * pull * FIRST_STEP[name](x))
        factors.append(float(factor.median()))
    assert sum(factors) / len(factors) == pytest.approx(1, rel=0.05)


def test_loras_other_start_is_pefts() -> None:
    torch.manual_seed(0)
    looks_like(LowRank(site(), R, 1.0, "peft").down.detach(), ("uniform", 1 / math.sqrt(WIDTH)))


class PublishedLoRA(nn.Module):
    """The published form, said once more: q += x A B / r, v likewise, A uniform between -1/sqrt(r) and 1/sqrt(r)."""

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        self.qkv, self.rank, width = qkv, rank, qkv.in_features
        self.q, self.v = (nn.Parameter((2 * torch.rand(width, rank) - 1) / rank**0.5) for _ in "qv")
        self.q_up, self.v_up = (nn.Parameter(torch.zeros(rank, width)) for _ in "qv")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.cat([q + x @ self.q @ self.q_up / self.rank, k, v + x @ self.v @ self.v_up / self.rank], dim=-1)


def small_vit() -> VisionTransformer:
    torch.manual_seed(7)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=96, depth=2, num_heads=2, num_classes=0)


def movement(tower: nn.Module, trained: list[nn.Parameter]) -> float:
    """How far, in percent, features move in 60 steps at the papers' rate: cosine head at 25, momentum and decay."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    labels = torch.arange(16) % 5
    head = nn.Parameter(torch.randn(5, 96, generator=generator))
    optimiser = torch.optim.SGD([*trained, head], lr=0.02, momentum=0.9, weight_decay=5e-4)
    start = tower(images).detach()
    for _ in range(60):
        optimiser.zero_grad()
        logits = 25 * F.normalize(tower(images), dim=-1) @ F.normalize(head, dim=-1).T
        F.cross_entropy(logits, labels).backward()
        optimiser.step()
    with torch.no_grad():
        return float(100 * (tower(images) - start).norm() / start.norm())


def test_lora_moves_features_as_far_as_published() -> None:
    rank, ours, published = 8, [], []
    for seed in range(2):
        tower = small_vit().requires_grad_(False)
        backbone = Backbone("small", tower, Facts(16, (0.5,) * 3, (0.5,) * 3, patch_size=8))
        torch.manual_seed(seed)
        part = registry.get("tuner", "lora")(rank=rank)
        assert isinstance(part, Tuner)
        ours.append(movement(tower, list(part.place(backbone, 10).parameters())))
        tower = small_vit().requires_grad_(False)
        torch.manual_seed(seed + 100)
        for block in tower.blocks:
            block.attn.qkv = PublishedLoRA(block.attn.qkv, rank)  # type: ignore[union-attr, arg-type, assignment]
        published.append(movement(tower, [p for p in tower.parameters() if p.requires_grad]))
    assert min(published) > 5
    assert sum(ours) == pytest.approx(sum(published), rel=0.05), (ours, published)
