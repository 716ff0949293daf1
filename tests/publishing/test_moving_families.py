"""Full models out by family: thin random models, by the other library's own forward pass, and read back again."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig, Facts
from liftplus.backbones.normalise import Normalise
from liftplus.errors import UserError
from liftplus.evaluation.inference import crops
from liftplus.model.heads import Cosine, Head, Joint, LayerNorm, Linear
from liftplus.publishing import moving
from liftplus.training.checkpoint import Trained
from liftplus.tuners.lora import LoRA
from moved import NAMES, ONE_CROP, inputs, move, trained

transformers = pytest.importorskip("transformers")
to_transformers = import_module("liftplus.publishing.to_transformers")  # where transformers is installed
slim = pytest.importorskip("slim")
OWN = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "beit": "BeitForImageClassification",
}


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    slim.thin_libraries(monkeypatch)


def tuned(kind: str, folder: Path, head: Head, pooling: Any = None, **settings: Any) -> Trained:
    """LoRA on a random model of a family, read from transformers' form."""
    slim.saved(kind, folder, **settings)
    config = BackboneConfig(name=slim.NAMES[kind], weights=str(folder), pooling=pooling)
    return trained(catalogue.load(config), head, config=config)


def classifier(folder: Path) -> Any:
    return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", slim.KINDS)
@torch.no_grad()
def test_timm_gives_our_features(kind: str, tmp_path: Path) -> None:
    run = tuned(kind, tmp_path / "in", Linear())
    images = inputs(run.model.backbone)
    expected = run.model(images)
    written, _ = move(run, tmp_path / "out", "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    slim.assert_equal(features, run.model.backbone(images))
    slim.assert_equal(model(images), expected)
    assert bool(written.notes) == (kind in ("vit", "beit"))  # of another epsilon than timm's


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("kind", ["vit", "dinov2", slim.needs("dinov3"), "beit"])
@torch.no_grad()
def test_the_chosen_pooling_goes_along(kind: str, pooling: str, tmp_path: Path) -> None:
    run = tuned(kind, tmp_path / "in", Linear(), pooling=pooling)
    images = inputs(run.model.backbone)
    expected, features = run.model(images), run.model.backbone(images)
    move(run, tmp_path / "out", "transformers")  # the folder of --to timm
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    own = (pooling == "token") == (kind in ("vit", "dinov2"))
    asked = {"token": "token", "mean": "avg"}[pooling]
    assert config["global_pool"] == asked and config.get("model_args", {}).get("global_pool", asked) == asked
    assert ("global_pool" in config.get("model_args", {})) != own
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    slim.assert_equal(model(images), expected)
    slim.assert_equal(model.forward_head(model.forward_features(images), pre_logits=True), features)
    slim.assert_equal(classifier(tmp_path / "out")(pixel_values=images).logits, expected)
    if own and kind in OWN:
        move(run, tmp_path / "own", "transformers", without_timm=True)
        slim.assert_equal(classifier(tmp_path / "own")(pixel_values=images).logits, expected)
        return
    with pytest.raises(UserError, match=r"no class of its own that classifies as \S+ does( with backbone\.pooling=)"):
        moving.checked(run, "transformers", ONE_CROP, without_timm=True)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("kind", "settings", "factor", "acts"),
    [("vit", {}, 32, "9.8e-10"), ("beit", {}, 32, "9.8e-10"), ("vit", {"layer_norm_eps": 1e-5}, 0.1**0.5, "1e-05")],
)
@torch.no_grad()
def test_timms_epsilon_acts_as_ours(
    kind: str, settings: dict[str, Any], factor: float, acts: str, tmp_path: Path
) -> None:
    run = tuned(kind, tmp_path / "in", Linear(), **settings)
    own = run.model.backbone.image.state_dict()
    written, difference = move(run, tmp_path / "out", "timm")
    assert f"times {factor:g}, with which timm's epsilon acts as {acts} and outputs" in written.notes[0]
    assert difference.logits < 1e-5 * difference.deviation
    ratios = {
        k: v.norm() / own[k].norm() for k, v in load_file(tmp_path / "out" / "model.safetensors").items() if k in own
    }
    larger = {key for key, ratio in ratios.items() if (ratio - factor).abs() < 1e-4 * factor}
    assert {key for key, ratio in ratios.items() if (ratio - 1).abs() > 1e-4} == larger
    assert {"cls_token", "patch_embed.proj.weight"} < larger < set(own)


@torch.no_grad()
def test_another_activation_is_kept_in_timm(tmp_path: Path) -> None:
    run = tuned("vit", tmp_path / "in", Linear(), hidden_act="gelu_new", layer_norm_eps=1e-6)
    expected = run.model(inputs(run.model.backbone))
    move(run, tmp_path / "out", "timm")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_args"] == {"act_layer": "gelu_tanh"}
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    slim.assert_equal(model(inputs(run.model.backbone)), expected)


@pytest.mark.parametrize("without_timm", [False, True])
@pytest.mark.parametrize("kind", slim.KINDS)
@torch.no_grad()
def test_transformers_gives_our_features(kind: str, without_timm: bool, tmp_path: Path) -> None:
    run = tuned(kind, tmp_path / "in", Linear())
    backbone = run.model.backbone
    images = inputs(backbone)
    expected = run.model(images)
    if without_timm and kind not in OWN:
        with pytest.raises(UserError, match="has no class of its own that classifies as"):
            moving.checked(run, "transformers", ONE_CROP, without_timm=True)
        assert not (tmp_path / "out").exists()
        return
    written, _ = move(run, tmp_path / "out", "transformers", without_timm=without_timm)
    model = classifier(tmp_path / "out")
    assert type(model).__name__ == (OWN[kind] if without_timm else "TimmWrapperForImageClassification")
    slim.assert_equal(model(pixel_values=images).logits, expected)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id == {name: k for k, name in enumerate(NAMES)}
    assert any("timm must be installed" in note for note in written.notes) != without_timm
    if without_timm:  # and read back as a backbone of ours, without the classifier
        again = slim.load(tmp_path / "out", kind)
        slim.assert_equal(again(images), backbone(images))


def without_arguments(architecture: str) -> None:
    """As the configuration of transformers 4.48 to 4.52, which drops a timm model's own arguments."""


@pytest.mark.parametrize("has", [{}, {"TimmWrapperConfig": without_arguments}], ids=["4.44", "4.52"])
def test_an_older_transformers(has: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_transformers, "transformers", SimpleNamespace(__version__="4.44", **has))
    with pytest.raises(UserError, match=r"transformers 4\.44 cannot read the folder.*4\.53.*add --without-timm"):
        move(tuned("vit", tmp_path / "in", Linear()), tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_gated_mlps_of_dinov2(tmp_path: Path) -> None:
    slim.saved("dinov2", tmp_path / "in", use_swiglu_ffn=True)
    trunk = catalogue.load(BackboneConfig(name="timm/vit_giant_patch14_dinov2.lvd142m", weights=str(tmp_path / "in")))
    run = trained(trunk, Linear())
    expected = run.model(inputs(trunk))
    move(run, tmp_path / "out", "transformers", without_timm=True)
    model = classifier(tmp_path / "out")
    assert model.config.model_type == "dinov2" and model.config.use_swiglu_ffn
    slim.assert_equal(model(pixel_values=inputs(trunk)).logits, expected)


@pytest.mark.parametrize("without_timm", [False, pytest.param(True, id="own")])
@torch.no_grad()
def test_a_tower_with_more_than_the_architecture_is_refused(without_timm: bool, tmp_path: Path) -> None:
    """Norms of queries and keys, which neither timm's ViT nor transformers' has a place for, are not dropped."""
    trunk = catalogue.load(BackboneConfig(name="timm/vit_base_patch16_224.augreg_in21k", pretrained=False))
    trunk.image = timm.create_model("vit_base_patch16_224", num_classes=0, qk_norm=True).eval().requires_grad_(False)
    said = "no class of its own" if without_timm else r"tensors, such as 'blocks\.0\.attn\.k_norm"
    with pytest.raises(UserError, match=said):
        move(trained(trunk, Linear(), ""), tmp_path / "out", "transformers", without_timm=without_timm)


def rows(folder: Path, model: Any, images: Tensor) -> Tensor:
    """Logits as the page says, by the folder's own files."""
    about = json.loads((folder / "classifier.json").read_text())
    assert about["classes"] == list(NAMES)
    exec(about["before"], {"model": model, "torch": torch})
    features = model.encode_image(images)
    if about["normalised"]:
        features = F.normalize(features, dim=-1)
    table = load_file(folder / "classifier.safetensors")
    return features @ table["weight"].T + table["bias"]


@pytest.mark.parametrize("head", [Cosine(), Joint(), Linear()], ids=lambda head: head.name)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_open_clip_gives_our_logits_exactly(kind: str, head: Head, tmp_path: Path) -> None:
    gelu = {"hidden_act": "gelu", "layer_norm_eps": 1e-6} if kind == "siglip" else {}
    run = tuned(kind, tmp_path / "in", head, **gelu)
    backbone = run.model.backbone
    images, untouched = inputs(backbone), catalogue.load(run.config.backbone)
    expected = run.model(images)
    written, difference = move(run, tmp_path / "out", "open_clip", prior="uniform")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    model.eval()
    joint = model.encode_image(images, normalize=True)
    slim.assert_equal(joint, backbone.joint(backbone(images)))
    ids = torch.randint(1, slim.WORDS - 1, (4, slim.CONTEXT), generator=torch.Generator().manual_seed(2))
    slim.assert_equal(model.encode_text(ids, normalize=True), untouched.text_encoder("a test").joint(ids))
    assert difference.exact
    slim.assert_equal(rows(tmp_path / "out", model, images).log_softmax(1), expected.log_softmax(1))
    assert f"Resize(size={backbone.facts.image_size}" in str(transform)
    assert any("before the joint space" in note for note in written.notes) == (kind == "clip" and head.name != "joint")
    again = catalogue.load(
        BackboneConfig(name=slim.NAMES[kind], weights=str(tmp_path / "out" / "open_clip_model.safetensors"))
    )
    slim.assert_equal(again(images), backbone(images))


@pytest.mark.parametrize("margin", [0, 32])
def test_open_clip_squashes_too(margin: int, tmp_path: Path) -> None:
    """The same pixels where the run's cut has no margin, else a note."""
    run = tuned("siglip", tmp_path / "in", Cosine(), hidden_act="gelu", layer_norm_eps=1e-6)
    asked = {"resize": "square", "one_crop_expand": margin}
    written, _ = move(run, tmp_path / "out", "open_clip", **asked)
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    facts = run.model.backbone.facts
    cut = crops(ONE_CROP.model_copy(update=asked), facts)
    said = f"resizes both sides to {facts.image_size} px and liftplus to {facts.image_size + margin} px"
    assert any(said in note for note in written.notes) == bool(margin)
    for size in ((300, 41), (500, 400)):
        noise = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        one = Image.fromarray(noise.numpy())
        same = torch.allclose(transform(one), Normalise(facts)(cut(one).float())[0], atol=1e-5)
        assert same == (not margin)


def test_what_open_clip_cannot_hold_is_refused(tmp_path: Path) -> None:
    def refused(run: Trained) -> str:
        with pytest.raises(UserError) as told:
            moving.checked(run, "open_clip", ONE_CROP)
        assert not (tmp_path / "out").exists()
        return str(told.value)

    mini = BackboneConfig(name="mini_clip")
    assert "no dual encoder of open_clip's" in refused(trained(catalogue.load(mini), Cosine(), config=mini))
    assert "head=cosine" in refused(tuned("clip", tmp_path / "clip", LayerNorm()))
    assert "activation is gelu_pytorch_tanh in the run" in refused(tuned("siglip", tmp_path / "siglip", Cosine()))
    small = BackboneConfig(name=slim.NAMES["siglip"], weights=str(tmp_path / "siglip"), image_size=112)
    said = refused(trained(catalogue.load(small), Cosine(), config=small))
    assert "for 224 px alone, and the run has backbone.image_size=112" in said
    run = tuned("clip", tmp_path / "clip", Joint())
    texts = run.config.model_copy(update={"tuner": {"lora": LoRA(side="text")}})
    assert "tunes the text side" in refused(replace(run, config=texts))


def test_biases_that_tuners_add_are_refused_by_transformers_own_classes(tmp_path: Path) -> None:
    tower = timm.create_model("vit_base_patch16_224", num_classes=0, qkv_bias=False)
    run = trained(Backbone("no biases", tower, Facts(224, (0.5,) * 3, (0.5,) * 3, patch_size=16)), Linear(), "ssf")
    with pytest.raises(UserError, match=r"such as 'blocks\.0\.attn\.qkv\.bias'.*tuner=lora"):
        move(run, tmp_path / "out", "transformers", without_timm=True)
    assert not (tmp_path / "out").exists()
