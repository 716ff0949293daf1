"""Each tuner's own definition: its number of weights, its place beside others, its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus import registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.errors import UserError
from liftplus.heads import Cosine
from liftplus.model import Classifier

# Added weights per site of width D, in terms of r (the width or length given): see METHOD's table.
D, R, L, HIDDEN = 12, 3, 3, 48
FORMULAS: dict[str, tuple[dict[str, Any], int]] = {
    "adaptformer": ({"width": R}, L * (2 * D + 2 * D * R + R + D + 1)),
    "adapter": ({"width": R}, L * (2 * D + 2 * D * R + R + D)),
    "lora": ({"rank": R}, L * 2 * 2 * D * R),
    "vpt_deep": ({"length": R}, L * R * D),
    "vpt_shallow": ({"length": R}, R * D),
    "ssf": ({}, L * 2 * (3 * D + D + HIDDEN + D)),
    "bitfit": ({}, L * (3 * D + D + HIDDEN + D + 2 * D)),
    "norm": ({}, L * 4 * D),
    "full": ({}, L * (12 * D * D + 13 * D)),
    "partial": ({"blocks": 2}, 2 * (12 * D * D + 13 * D)),
    "full_all": ({}, L * (12 * D * D + 13 * D) + D + 10 * D + 75 * D + 4 * D),
    "aft": (
        {"ratio": 0.1},
        L * sum(int(n / 10) for n in (3 * D * D, 3 * D, D * D, D, D * HIDDEN, HIDDEN, HIDDEN * D, D)),
    ),
    "clip_adapter": ({"width": R}, 2 * (2 * 11 + 2 * 11 * R + R + 11)),
    "projection": ({}, D * 11 + 10 * 11),
    "coop": ({"places": (0, 1)}, 2 * 10),
}


@pytest.mark.parametrize("name", sorted(registry.discover("tuner")))
def test_number_of_weights(lab: Any, name: str) -> None:
    assert name in FORMULAS, f"write down the number of weights of {name}"
    options, expected = FORMULAS[name]
    assert lab.count(lab.build("clip_vit", {name: lab.tuner(name, **options)})) == expected


@pytest.mark.parametrize(("classes", "weights"), [(1000, 617_868), (365, 175_212), (100, 101_436), (8142, 4_749_324)])
def test_adaptformer_on_the_papers_backbone(lab: Any, classes: int, weights: int) -> None:
    with torch.device("meta"):
        backbone = catalogue.load(BackboneConfig(name="clip_vit_b16"), weights=False)
        head = Cosine().build(backbone, classes)
        model = Classifier(backbone, {"adaptformer": lab.tuner("adaptformer")}, head, classes)
    assert model.count()["tuned"] == weights
    assert model.count()["head"] == classes * 768


COMBINATIONS = [
    ("lora", "ssf"),
    ("adapter", "adaptformer"),
    ("adaptformer", "lora", "vpt_deep"),
    ("aft", "lora", "norm"),
    ("bitfit", "ssf", "vpt_shallow"),
    ("full", "adapter"),
    ("partial", "lora"),
    ("vpt_deep", "vpt_shallow"),
]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("backbone", ["clip_vit", "timm_vit"])
def test_combinations(lab: Any, names: tuple[str, ...], backbone: str) -> None:
    """Tuners compose, and the order in which the user names them changes no bit."""
    model = lab.build(backbone, {name: lab.tuner(name) for name in names})
    twin = lab.build(backbone, {name: lab.tuner(name) for name in reversed(names)})
    assert model.partition()["tuned"].keys() == twin.partition()["tuned"].keys()
    assert torch.equal(model(lab.images(model)), twin(lab.images(twin)))
    lab.fit(model, 2)
    twin.load_learned(model.learned_state())
    assert torch.equal(model(lab.images(model)), twin(lab.images(twin)))
    assert all(p.grad is not None for p in model.trainable())


def test_lora_lies_before_ssf(lab: Any) -> None:
    """SSF scales what LoRA added: y = scale * (W x + delta) + shift."""
    model = lab.build("clip_vit", {"ssf": lab.tuner("ssf"), "lora": lab.tuner("lora", targets=("q", "k", "v"))})
    lab.fit(model, 2)
    qkv = model.backbone.image.blocks[0].attn.qkv  # type: ignore[index, union-attr]
    low, ssf = model.tuners["lora"]["0"], model.tuners["ssf"]["0"]["qkv"]  # type: ignore[index]
    x = torch.randn(2, 5, 12)
    delta = torch.cat([low[target](x) for target in "qkv"], dim=-1)
    plain = F.linear(x, qkv.weight, qkv.bias)
    torch.testing.assert_close(qkv(x), (plain + delta) * ssf.scale + ssf.shift)


def test_adapter_reads_the_mlp_without_adaptformer(lab: Any) -> None:
    """out = m + adapter(m) + adaptformer(x'), whatever order they are named in."""
    model = lab.build("clip_vit", {"adaptformer": lab.tuner("adaptformer"), "adapter": lab.tuner("adapter")})
    lab.fit(model, 2)
    block = model.backbone.image.blocks[1]  # type: ignore[index, union-attr]
    adapter, parallel = model.tuners["adapter"]["1"], model.tuners["adaptformer"]["1"]  # type: ignore[index]
    seen: dict[str, Tensor] = {}
    block.mlp.register_forward_hook(lambda _m, _a, out: seen.__setitem__("mlp", out))
    block.norm2.register_forward_pre_hook(lambda _m, args: seen.__setitem__("residual", args[0]))
    out = block(torch.randn(2, 5, 12))
    m, residual = seen["mlp"], seen["residual"]
    torch.testing.assert_close(out, residual + m + adapter(m) + parallel(residual))


def test_every_lora_target(lab: Any) -> None:
    model = lab.build("clip_vit", {"lora": lab.tuner("lora", targets=("q", "k", "v", "out", "fc1", "fc2"), rank=2)})
    sizes = [(D, D)] * 4 + [(D, HIDDEN), (HIDDEN, D)]
    assert lab.count(model) == L * sum(2 * (a + b) for a, b in sizes)
    assert torch.equal(model(lab.images(model)), lab.build("clip_vit", {})(lab.images(model)))


def test_prompts_leave_the_sequence_as_it_was(lab: Any) -> None:
    """Blocks hand on as many tokens as they were given, so that pooling over patches counts no prompt."""
    model = lab.build("timm_vit", {"vpt_deep": lab.tuner("vpt_deep", length=4, layers=(1,))})
    lengths = []
    for block in model.backbone.image.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, _a, out: lengths.append(out.shape[1]))
    model(lab.images(model))
    assert len(set(lengths)) == 1


def test_shallow_prompts_on_some_text_layers(lab: Any) -> None:
    """The causal mask covers the prompts in every block between the first and the last chosen one."""
    model = lab.build("clip_vit", {"vpt_shallow": lab.tuner("vpt_shallow", side="text", layers=(0, 2))})
    assert model(lab.images(model)).isfinite().all()


def test_looking_changes_nothing(lab: Any) -> None:
    """Asking what fits, or being refused, leaves the text tower's packed attention in place."""
    trunk = lab.backbone_of("clip_vit")
    part = lab.tuner("lora", side="text")
    assert part.fits(trunk)
    with pytest.raises(UserError, match="head=joint"):
        Classifier(trunk, {"lora": part}, Cosine().build(trunk, lab.classes), lab.classes)
    kinds = {type(module) for module in trunk.text_encoder("the test").modules()}
    assert torch.nn.MultiheadAttention in kinds


def test_text_side_needs_the_joint_head(lab: Any) -> None:
    trunk = lab.backbone_of("clip_vit")
    for part in (lab.tuner("lora", side="text"), lab.tuner("coop"), lab.tuner("clip_adapter", side="image")):
        with pytest.raises(UserError, match="head=joint"):
            Classifier(trunk, {part.name: part}, Cosine().build(trunk, lab.classes), lab.classes)


def test_coop_starts_from_words_and_refuses_class_names(lab: Any) -> None:
    model = lab.build("clip_vit", {"coop": lab.tuner("coop", places=(-1,), start="words")})
    assert model.backbone.text is not None
    table = model.backbone.text.tower.token_embedding.weight
    assert torch.equal(model.tuners["coop"].context[0], table[2 + ord(".") % 37])  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match="class names stand there"):
        lab.build("clip_vit", {"coop": lab.tuner("coop", places=(0,), start="words")})
    with pytest.raises(UserError, match="shortest class prompt"):
        lab.build("clip_vit", {"coop": lab.tuner("coop", places=(0, 1, 2, 3, 4, 5))})


def test_masks_of_aft_follow_the_seed(lab: Any) -> None:
    def masks(seed: int) -> dict[str, Tensor]:
        model = lab.build("clip_vit", {"aft": lab.tuner("aft", ratio=0.25, seed=seed)})
        return {key: value for key, value in model.named_buffers() if key.endswith("_mask")}

    first = masks(0)
    assert all(int(mask.sum()) == int(mask.numel() * 0.25) for mask in first.values())
    assert all(torch.equal(mask, masks(0)[key]) for key, mask in first.items())
    assert not all(torch.equal(mask, masks(1)[key]) for key, mask in first.items())
