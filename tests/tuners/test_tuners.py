"""Each tuner's own definition: its number of weights, its place beside others, its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus import registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.sites import Site
from liftplus.errors import UserError
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine
from zoo import JOINT, ZOO

# The trained weights of each tuner of width R by the sites of a backbone, whatever its family: see docs/method.md.
R, RATIO = 3, 0.1
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"width": R} for name in ("adaptformer", "adapter", "conv_adapter", "clip_adapter")},
    **{name: {"length": R} for name in ("vpt_deep", "vpt_shallow")},
    "lora": {"rank": R},
    "partial": {"blocks": 2},
    "aft": {"ratio": RATIO},
    "coop": {"places": (0, 1)},
}


def numel(sites: list[Site], ending: str = "") -> int:
    return sum(p.numel() for site in sites for name, p in site.entry.named_parameters() if name.endswith(ending))


def widths(sites: list[Site]) -> list[tuple[int, int]]:
    return [(site.width, site.out_width) for site in sites]


def linears(trunk: Backbone) -> list[Site]:
    return [site for kind in ("qkv", "proj", "fc1", "fc2") for site in trunk.sites(kind)]


def low_rank(trunk: Backbone) -> int:
    found = trunk.sites("q") + trunk.sites("v")
    found = found or [site for kind in ("fc1", "fc2", "conv1x1") for site in trunk.sites(kind)]
    return sum(R * (inside + outside) for inside, outside in widths(found))


def masked(trunk: Backbone) -> int:
    layers = [site.entry for site in linears(trunk) or trunk.sites("conv")]
    return sum(int(p.numel() * RATIO) for layer in layers for p in layer.parameters(recurse=False))


def projections(trunk: Backbone) -> int:
    text = trunk.text_encoder("the test").to_joint
    return sum(p.numel() for p in (trunk.to_joint, text) if p is not None)


FORMULAS: dict[str, Callable[[Backbone], int]] = {
    "adaptformer": lambda trunk: sum(2 * d + 2 * d * R + R + d + 1 for d, _ in widths(trunk.sites("mlp"))),
    "adapter": lambda trunk: sum(2 * d + 2 * d * R + R + d for d, _ in widths(trunk.sites("mlp"))),
    "conv_adapter": lambda trunk: sum(
        2 * c + c * R + R + 9 * R + R * out + out + 1 for c, out in widths(trunk.sites("map"))
    ),
    "lora": low_rank,
    "vpt_deep": lambda trunk: sum(R * d for d, _ in widths(trunk.sites("tokens"))),
    "vpt_shallow": lambda trunk: R * trunk.sites("tokens")[0].width,
    "ssf": lambda trunk: sum(2 * out for _, out in widths(linears(trunk) or trunk.sites("pool"))),
    "bitfit": lambda trunk: numel(trunk.sites("block"), "bias"),
    "norm": lambda trunk: numel(trunk.sites("norm")),
    "full": lambda trunk: numel(trunk.sites("block")),
    "partial": lambda trunk: numel(trunk.sites("block")[-2:]),
    "full_all": lambda trunk: sum(p.numel() for p in trunk.image.parameters()),
    "aft": masked,
    "clip_adapter": lambda trunk: 2 * (2 * JOINT + 2 * JOINT * R + R + JOINT),
    "projection": projections,
    "coop": lambda trunk: 2 * 10,
}


@pytest.mark.parametrize("backbone", sorted(ZOO))
@pytest.mark.parametrize("name", sorted(registry.discover("tuner")))
def test_number_of_weights(lab: Any, name: str, backbone: str) -> None:
    """The closed form, on every backbone that the tuner fits."""
    assert name in FORMULAS, f"write down the number of weights of {name}"
    part, trunk = lab.tuner(name, **OPTIONS.get(name, {})), lab.backbone_of(backbone)
    if not part.fits(trunk):
        return
    expected = FORMULAS[name](trunk)
    assert expected > 0
    assert lab.count(lab.attachable(name, backbone, OPTIONS.get(name, {}))) == expected


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
@pytest.mark.parametrize("backbone", ["clip_vit", "timm_vit", "eva", "maxvit"])
def test_combinations(lab: Any, names: tuple[str, ...], backbone: str) -> None:
    """Tuners compose, and the order in which the user names them changes no bit."""
    if not all(lab.tuner(name).fits(lab.backbone_of(backbone)) for name in names):
        return
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
    sizes = [(12, 12)] * 4 + [(12, 48), (48, 12)]
    assert lab.count(model) == 3 * sum(2 * (a + b) for a, b in sizes)
    assert torch.equal(model(lab.images(model)), lab.build("clip_vit", {})(lab.images(model)))


def test_prompts_leave_the_sequence_as_it_was(lab: Any) -> None:
    """Prompts stay until the next prompted block or the end, so that pooling over patches counts none of them."""
    model = lab.build("timm_vit", {"vpt_deep": lab.tuner("vpt_deep", length=4, layers=(1,))})
    lengths = []
    for block in model.backbone.image.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, _a, out: lengths.append(out.shape[1]))
    model(lab.images(model))
    assert lengths == [lengths[0], lengths[0] + 4, lengths[0]]


def test_shallow_prompts_on_some_text_layers(lab: Any) -> None:
    """The causal mask covers the prompts in every block between the first and the last chosen one."""
    model = lab.build("clip_vit", {"vpt_shallow": lab.tuner("vpt_shallow", side="text", layers=(0, 2))})
    assert model(lab.images(model)).isfinite().all()


def test_looking_changes_nothing(lab: Any) -> None:
    """Asking what fits, or being refused, leaves the towers and what they give as they were."""
    trunk = lab.backbone_of("clip_vit")
    text = trunk.text_encoder("the test")

    def hooks() -> list[list[object]]:
        return [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in trunk.modules()]

    before, features, hooked = [id(module) for module in trunk.modules()], text.encode(lab.texts), hooks()
    part = lab.tuner("lora", side="both")
    assert part.fits(trunk)
    with pytest.raises(UserError, match="head=joint"):
        Classifier(trunk, {"lora": part}, Cosine().build(trunk, lab.classes), lab.classes)
    assert [id(module) for module in trunk.modules()] == before
    assert hooks() == hooked
    assert torch.equal(text.encode(lab.texts), features)


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
