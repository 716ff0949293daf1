"""LoRA to peft and back, against peft itself on timm's own models."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import moved
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.normalise import Normalise
from liftplus.config import EvaluationConfig, resolve
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import crops
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine, Head, HeadModule, Joint, L2Norm, LayerNorm, Linear
from liftplus.publishing import lora_exchange
from liftplus.training.checkpoint import Trained
from liftplus.tuners.base import Tuner
from liftplus.tuners.lora import LoRA
from liftplus.tuners.ssf import SSF
from zoo import backbone_of

from ..conftest import picture

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


def written(run: Trained, folder: Path, **evaluation: Any) -> lora_exchange.Adapter:
    return lora_exchange.write_folder(run, folder, EvaluationConfig(tte=False, **evaluation))


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
    number = written(run, tmp_path / "peft").linears
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
    written(run, tmp_path / "peft")
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
        (lambda: trained("open_clip_vit"), "hidden inside another module"),
        (lambda: trained("beit"), "hidden inside another module"),
        (lambda: trained("timm_vit", other={"ssf": SSF()}), "tunes lora\\+ssf"),
        (lambda: trained("clip_vit", side="both"), "text side"),
    ],
)
def test_what_peft_cannot_hold_is_refused(run: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        written(run(), tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def reloaded(folder: Path) -> Any:
    """The adapter as peft itself reads it back onto the base model."""
    base = copy.deepcopy(backbone_of("timm_vit").image)
    return peft.PeftModel.from_pretrained(base, folder).eval()


PATTERNS: dict[str, dict[str, Any]] = {
    "a regular expression": {"alpha_pattern": {r"blocks\.0\.attn\.qkv": 32}},
    "any block": {"alpha_pattern": {r"blocks\.\d+\.attn\.qkv": 32}},
    "the first that fits": {"alpha_pattern": {r"blocks\.[01]\..*": 32, "qkv": 3, r"blocks\.2\..*": 50}},
    "no part of a name": {"alpha_pattern": {"kv": 32, "tn.qkv": 40}},
    "a dot is any letter": {"alpha_pattern": {"attn.qkv": 32}},
    "a choice": {"alpha_pattern": {"blocks.0.attn.qkv|blocks.1.mlp.fc2": 32}},
    "anchored": {"alpha_pattern": {"^blocks.1.mlp.fc2": 32}},
    "rank and alpha": {"rank_pattern": {r"blocks\.1\..*": 2}, "alpha_pattern": {r"blocks\.(0|1)\..*": 9}},
    "rank and root": {"rank_pattern": {r".*\.fc2": 2}, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "not zero at the start": {"init_lora_weights": False},
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "blocks"},
}


@pytest.mark.parametrize("kind", PATTERNS)
@torch.no_grad()
def test_pefts_own_reload_is_the_measure(kind: str, tmp_path: Path) -> None:
    if "layers_pattern" in PATTERNS[kind] and tuple(map(int, peft.__version__.split(".")[:2])) < (0, 21):
        pytest.skip("peft before 0.21 finds no layers at the top of a model")
    made_by_peft(tmp_path, r=4, lora_alpha=8, target_modules=["qkv", "fc2"], **PATTERNS[kind])
    theirs = reloaded(tmp_path / "theirs")
    run = trained("timm_vit", targets=("q", "k", "v", "fc2"), rank=4, stir=False)
    lora_exchange.read_folder(run.model, tmp_path / "theirs")
    images = pictures(run)
    expected = theirs(images)
    torch.testing.assert_close(run.model.backbone(images), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@torch.no_grad()
def test_starts_that_change_the_base_are_refused_and_the_way_out_works(start: str, tmp_path: Path) -> None:
    """Saved by peft as a difference from the adapter's own start, it is plain LoRA of twice the rank."""
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["qkv"], "init_lora_weights": start}
    model = peft.get_peft_model(copy.deepcopy(backbone_of("timm_vit").image), peft.LoraConfig(**options)).eval()
    model.peft_config["default"].init_lora_weights = True  # as peft's documentation saves the start
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "theirs")
    run = trained("timm_vit", targets=("q", "k", "v"), rank=4, stir=False)
    with pytest.raises(UserError, match=rf"init_lora_weights='{start}'.*path_initial_model_for_weight_conversion"):
        lora_exchange.read_folder(run.model, tmp_path / "theirs")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    lora_exchange.read_folder(run.model, tmp_path / "plain")
    images = pictures(run)
    expected = model(images)
    torch.testing.assert_close(run.model.backbone(images), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"bias": "all"}, "bias=all"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save=\['norm'\]"),
        ({"lora_bias": True}, "lora_bias=True"),
    ],
)
def test_the_reason_is_the_setting(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    made_by_peft(tmp_path, r=4, target_modules=["qkv"], **options)
    with pytest.raises(UserError, match=said):
        lora_exchange.read_folder(trained("timm_vit").model, tmp_path / "theirs")


@pytest.mark.parametrize("start", ["corda", "lora_ga", "loftq"])
def test_other_starts_that_change_the_base(start: str, tmp_path: Path) -> None:
    made_by_peft(tmp_path, r=4, target_modules=["qkv"])
    file = tmp_path / "theirs" / lora_exchange.CONFIG
    file.write_text(file.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{start}"'))
    with pytest.raises(UserError, match=start):
        lora_exchange.read_folder(trained("timm_vit").model, tmp_path / "theirs")


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    made_by_peft(tmp_path, r=4, target_modules=["qkv"])
    file = tmp_path / "theirs" / lora_exchange.CONFIG
    file.write_text(file.read_text().replace('"alpha_pattern": {}', '"alpha_pattern": {"blocks.(0": 3}'))
    with pytest.raises(UserError, match="not a regular expression"):
        lora_exchange.read_folder(trained("timm_vit", targets=("q", "k", "v"), rank=4).model, tmp_path / "theirs")


@pytest.mark.parametrize(("kind", "merges_exactly"), [("OFTConfig", False), ("LoHaConfig", True)])
def test_another_kind_of_adapter_is_told_how_to_merge(kind: str, merges_exactly: bool, tmp_path: Path) -> None:
    model = peft.get_peft_model(backbone_of("timm_vit").image, getattr(peft, kind)(target_modules=["qkv"]))
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=f"peft_type={kind[:-6].upper()}.*merge_and_unload instead") as told:
        lora_exchange.read_folder(trained("timm_vit").model, tmp_path / "theirs")
    assert ("merged OFT is not what was trained" in str(told.value)) is not merges_exactly


# The classifier beside the adapter

ALL = (Path(__file__).resolve().parents[2] / "docs" / "moving-models.md").read_text(encoding="utf-8")
(LINES,) = (block for block in re.findall(r"^```python\n(.*?)^```", ALL, re.MULTILINE | re.DOTALL) if "peft" in block)


def by_the_docs(tower: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the lines in the docs give for picture.jpg by timm and peft alone; the base has the weights of the tower."""
    create = timm.create_model

    def create_model(*given: Any, pretrained: bool, **options: Any) -> nn.Module:
        assert not pretrained
        made = create(*given, **options)
        made.load_state_dict(tower.state_dict())
        return made

    monkeypatch.chdir(folder)
    monkeypatch.setattr(timm, "create_model", create_model)
    there: dict[str, Any] = {}
    exec(compile(LINES, "docs/moving-models.md", "exec"), there)
    monkeypatch.setattr(timm, "create_model", create)
    return cast(torch.Tensor, there["logits"][0])


def of_the_picture(run: Trained, folder: Path, **evaluation: Any) -> torch.Tensor:
    """liftplus's logits for one crop of it."""
    facts = run.model.backbone.facts
    asked = EvaluationConfig(tte=False, **evaluation)
    cut = crops(asked, facts)(Image.open(folder / "picture.jpg"))
    run.model.shift = priors.shift(run.config, run.class_names, run.train_counts, asked.prior)
    return cast(torch.Tensor, run.model(Normalise(facts)(cut.float()))[0])


def noisy(folder: Path) -> None:
    picture((200, 90, 30), 3, (133, 91)).save(folder / "picture.jpg", quality=95)


HEADS: list[Head] = [Cosine(scale=9), Linear(), L2Norm(), LayerNorm(), Joint()]


@pytest.mark.parametrize("evaluation", [{}, {"prior": "uniform", "resize": "square", "one_crop_expand": 3}], ids=len)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: str(head.name))
@torch.no_grad()
def test_timm_and_peft_alone_give_our_logits(
    head: Head, evaluation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(tmp_path)
    trunk = backbone_of("clip_vit")
    if head.name == "joint":
        trunk.image_bias = torch.randn(11)
    run = moved.trained(trunk, head)
    if head.name == "linear":
        nn.init.normal_(cast(torch.Tensor, run.model.head.bias))
    told = written(run, tmp_path / "adapter", **evaluation)
    expected = of_the_picture(run, tmp_path, **evaluation)
    found = by_the_docs(backbone_of("clip_vit").image, tmp_path, monkeypatch)
    assert (found - expected).abs().max() < 1e-5 * expected.std()
    about = json.loads((tmp_path / "adapter" / "classifier.json").read_text())
    assert about["head"] == head.name and about["classes"] == list(moved.NAMES) and not about["pretrained"]
    assert len(told.notes) == 1 and "belongs to the weights of 'mini_clip'" in told.notes[0]


@torch.no_grad()
def test_epsilon_and_weights_that_are_not_timms_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    slim = pytest.importorskip("slim")
    slim.thin_libraries(monkeypatch)
    slim.saved("vit", tmp_path / "vit")
    noisy(tmp_path)
    config = BackboneConfig(name=slim.NAMES["vit"], weights=str(tmp_path / "vit"), pooling="mean")
    run = moved.trained(catalogue.load(config), Cosine(), config=config)
    stream = dict(run.model.backbone.image.named_parameters())
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        stream[name].data *= 1e-3  # so that an epsilon of 1e-6 is much
    told = written(run, tmp_path / "adapter")
    assert len(told.notes) == 2 and repr(str(tmp_path / "vit")) in told.notes[0]
    assert told.notes[1].endswith("isinstance(part, torch.nn.LayerNorm) and setattr(part, 'eps', 1e-12)")
    assert "vit_base_patch16_224 first" in told.notes[0]
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "vit")
    about = json.loads((tmp_path / "adapter" / "classifier.json").read_text())
    assert (about["layer_norm_eps"], about["global_pool"], about["weights"]) == (1e-12, "avg", str(tmp_path / "vit"))
    assert about["weights_sha256"] == run.model.backbone.identity
    expected = of_the_picture(run, tmp_path)
    tower = copy.deepcopy(run.model.backbone.image)
    assert (by_the_docs(tower, tmp_path, monkeypatch) - expected).abs().max() < 1e-5 * expected.std()
    file = tmp_path / "adapter" / "classifier.json"
    file.write_text(json.dumps(about | {"layer_norm_eps": None}))
    assert (by_the_docs(tower, tmp_path, monkeypatch) - expected).abs().max() > 1e-3 * expected.std()


def test_weights_that_timm_loads_itself_are_named_with_their_tag(tmp_path: Path) -> None:
    pytest.importorskip("slim")
    config = BackboneConfig(name="timm/test_vit3.r160_in1k", image_size=96)
    run = moved.trained(catalogue.load(config.model_copy(update={"pretrained": False})), Linear(), config=config)
    assert written(run, tmp_path / "adapter").notes == ()
    about = json.loads((tmp_path / "adapter" / "classifier.json").read_text())
    assert about["pretrained"] and about["architecture"] == "test_vit3.r160_in1k"
    assert about["model_args"] == {"img_size": 96} and about["pretrained_cfg"]["input_size"] == [3, 96, 96]
    drawn = config.model_copy(update={"pretrained": False})
    again = replace(run, config=run.config.model_copy(update={"backbone": drawn}))
    assert "random weights of 'timm/test_vit3.r160_in1k'" in written(again, tmp_path / "drawn").notes[0]


def test_a_tower_that_timm_does_not_have_is_told(tmp_path: Path) -> None:
    (note,) = written(trained("timm_vit"), tmp_path / "adapter").notes
    assert "timm has no model with these tensors" in note
    assert json.loads((tmp_path / "adapter" / "classifier.json").read_text())["architecture"] is None


def test_a_head_that_compares_no_rows_is_refused(tmp_path: Path) -> None:
    class Squared(HeadModule):
        def logits(self, features: torch.Tensor) -> torch.Tensor:
            return features.square() @ self.weight.T

    run = trained("timm_vit")
    run.model.head = Squared(14, 3)
    with pytest.raises(UserError, match=r"Squared.*head=cosine"):
        written(run, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
