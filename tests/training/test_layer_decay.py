"""Layer-wise learning rates (train.layer_decay)."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm.models import group_parameters
from torch import nn

from liftplus import config
from liftplus.backbones.base import Backbone
from liftplus.config import RunConfig
from liftplus.data import sources
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.model.classifier import Classifier
from liftplus.training import assembly, layer_decay, loop
from liftplus.training.step import Step

from .. import zoo

CPU = runtime.choose("cpu", "fp32")
FAMILIES = ("timm_vit", "timm_mean_pool", "clip_vit", "eva", "dinov3", "beit", "swin", "swin_v2", "resnet")
FAMILIES += ("convnext", "efficientnet", "regnet", "open_clip_timm")


def classifier(backbone: Backbone, *overrides: str) -> tuple[Classifier, RunConfig]:
    settings = config.resolve(data="x", overrides=overrides)
    head = settings.head.build(backbone, 3)
    nn.init.ones_(head.weight)
    return Classifier.assemble(backbone, dict(settings.tuner), head, ["red", "green", "blue"]), settings


def layers(backbone: Backbone) -> dict[str, int]:
    found = layer_decay.layers_of(backbone)
    return {name: found[p] for name, p in backbone.image.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_those_of_timm_but_for_what_follows_the_blocks(name: str) -> None:
    backbone = zoo.backbone_of(name)
    theirs = group_parameters(backbone.image, backbone.image.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    ours, last = layers(backbone), backbone.depth + 1
    assert {ours[key] for key in ours} >= {0, 1, backbone.depth}
    for key, layer in ours.items():
        if layer == last:
            assert theirs[key] >= backbone.depth, key
        elif not (zoo.OLD_TIMM and key.startswith(("reg_token", "norm_pre"))):
            assert theirs[key] == layer, key


def test_layers_of_open_clips_own_tower() -> None:
    found = layers(zoo.backbone_of("open_clip_vit"))
    for key, layer in found.items():
        first, *rest = key.split(".")
        expected = 1 + int(rest[1]) if first == "transformer" else {"ln_post": 4}.get(first, 0)
        assert layer == expected, key
    assert {"class_embedding", "positional_embedding", "conv1.weight", "ln_post.weight"} <= found.keys()


def test_rates_of_the_bundled_model_in_closed_form(photos: Path) -> None:
    """Blocks 1 to 6 of 6, embeddings 0, final norm and classifier 7; the run's rate is 0.1 at each step's start."""
    run = config.resolve(
        data=str(photos), overrides=["tuner=full_all", "layer_decay=0.5", "lr=0.1", "head_init=random", "workers=0"]
    )
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    step = Step(model, run, dataset, CPU)
    step.set_rate(0.1)
    rates = {id(p): group["lr"] for group in step.optimiser.param_groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(names) and len(step.optimiser.param_groups) == 8
    for name, rate in names.items():
        parts = name.split(".")
        layer = 1 + int(parts[3]) if parts[2:3] == ["blocks"] else 7 if parts[0] == "head" or "norm" in parts else 0
        assert rate == pytest.approx(0.1 * 0.5 ** (7 - layer)), name
    assert names["backbone.image.cls_token"] == pytest.approx(0.1 / 128)
    assert names["backbone.image.norm.weight"] == names["head.weight"] == 0.1


@pytest.mark.parametrize(
    ("backbone", "overrides", "expected"),
    [
        ("clip_vit", ("tuner=lora+ssf",), {"0": 1, "1": 2, "2": 3}),
        ("clip_vit", ("tuner=adaptformer+aft+vpt_deep",), {"0": 1, "1": 2, "2": 3}),
        ("clip_vit", ("tuner=vpt_shallow", "tuner.vpt_shallow.layers=2"), {"1": 2}),
        ("resnet", ("tuner=conv_adapter+lora",), {"0": 1, "1": 2, "2": 3, "3": 4}),
        ("clip_vit", ("tuner=coop", "head=joint", "tuner.coop.places=[0]"), {"context": 0}),
        ("clip_vit", ("tuner=clip_adapter", "head=joint"), {"image": 4, "text": 4}),
        ("resnet", ("tuner=ssf",), {"3": 5}),  # which acts on the pooled feature
    ],
)
def test_a_light_module_has_the_rate_of_its_block(
    backbone: str, overrides: tuple[str, ...], expected: dict[str, int]
) -> None:
    model, _ = classifier(zoo.backbone_of(backbone), *overrides)
    top = max(4, model.backbone.depth + 1)
    found = layer_decay.multiples(model, 0.5)
    seen = set()
    for name, parameter in model.named_parameters():
        if name.startswith("tuners.") and parameter.requires_grad:
            own = name.split(".")[2].partition("_")[0]
            assert found.get(name, 1.0) == 0.5 ** (top - expected[own]), name
            seen.add(own)
    assert seen == expected.keys() and "head.weight" not in found


def test_both_towers_and_their_projections() -> None:
    model, _ = classifier(zoo.backbone_of("clip_vit"), "tuner=full+projection", "head=joint", "tuner.full.side=both")
    found = layer_decay.multiples(model, 0.5)
    assert model.backbone.text is not None
    assert found["backbone.text.tower.transformer.resblocks.0.ln_1.weight"] == 0.5**3
    assert found["backbone.image.blocks.2.norm1.weight"] == 0.5
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained - found.keys()} >= {"image_projection", "text_projection"}


def test_a_decay_multiplies_measured_rates_also_after_resuming(photos: Path) -> None:
    settings = config.resolve(data=str(photos), overrides=["layer_decay=0.5", "workers=0", "head_init=random"])
    dataset = sources.load(settings.data)
    model = assembly.build(settings, dataset, CPU)
    name = "tuners.adaptformer.1.up.weight"
    step = Step(model, settings, dataset, CPU, {name: 0.25})
    saved = step.state()
    other = Step(model, settings, dataset, CPU, {name: 0.75})
    for one, measured in ((step, 0.25), (other, 0.75)):
        assert [group["multiple"] for group in one.optimiser.param_groups if "of" in group] == [measured * 0.5**5]
    other.load_state(*saved)
    assert [group["multiple"] for group in other.optimiser.param_groups if "of" in group] == [0.25 * 0.5**5]


def losses(photos: Path, *overrides: str) -> tuple[float, ...]:
    run = config.resolve(
        data=str(photos), method="full", overrides=["epochs=1", "train.batch_size=8", "workers=0", *overrides]
    )
    dataset: DataSet = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    return (*loop.fit(model, run, dataset, CPU).losses, *(float(p.detach().double().sum()) for p in model.trainable()))


def test_one_is_as_without_and_less_is_not(photos: Path) -> None:
    plain = losses(photos)
    assert losses(photos, "layer_decay=1") == plain
    assert losses(photos, "layer_decay=0.7") != plain


@pytest.mark.parametrize("value", ["0", "-0.5", "1.01", "nan", "deep"])
def test_values_that_are_no_decay_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="layer_decay"):
        config.resolve(data="x", overrides=[f"train.layer_decay={value}"])


def test_no_block_to_act_on() -> None:
    def resolved(method: str, decay: float = 0.7) -> RunConfig:
        return config.resolve(data="x", method=method, overrides=[f"layer_decay={decay}"])

    for method in ("linear_probe", "linear_probe+"):
        with pytest.raises(UserError, match="the tuner is none, so no block is trained"):
            layer_decay.check(resolved(method))
        layer_decay.check(resolved(method, 1))
    for method in ("zeroshot", "full", "lift+"):
        layer_decay.check(resolved(method))
