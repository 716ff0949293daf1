"""Full models out to timm: its own loader and forward pass give what liftplus gives, or nothing is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import liftplus
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.model.heads import Cosine, Head, HeadModule, Joint, L2Norm, LayerNorm, Linear
from liftplus.publishing import moving, to_timm
from moved import NAMES, ONE_CROP, inputs, move, trained
from slim import assert_equal
from zoo import backbone_of

from ..conftest import Command


def mini_clip() -> Any:
    return catalogue.load(BackboneConfig(name="mini_clip"))


def loaded(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("tuner", ["lora+ssf", "", "full", "bitfit+norm", "aft"])
@torch.no_grad()
def test_timm_gives_our_logits(tuner: str, tmp_path: Path) -> None:
    run = trained(mini_clip(), Linear(), tuner)
    images = inputs(run.model.backbone)
    expected, bare = run.model(images), mini_clip()(images)
    written, difference = move(run, tmp_path / "out", "timm")
    assert difference.exact and difference.agree == 1 and difference.logits < 1e-5 * difference.deviation
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    model = loaded(tmp_path / "out")
    assert_equal(model(images), expected)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert_equal(features, run.model.backbone(images))
    assert not tuner or not torch.allclose(features, bare, rtol=1e-2)
    assert model.pretrained_cfg["label_names"] == list(NAMES) and model.num_classes == len(NAMES)
    assert written.how == 'timm.create_model("local-dir:{folder}", pretrained=True)'


@pytest.mark.parametrize("head", [Cosine(), LayerNorm(), Joint(), L2Norm(), Linear()], ids=lambda head: head.name)
@torch.no_grad()
def test_heads_that_divide_keep_the_order_of_classes(head: Head, tmp_path: Path) -> None:
    run = trained(mini_clip(), head)
    images = inputs(run.model.backbone)
    expected = run.model(images)
    _, difference = move(run, tmp_path / "out", "timm")
    found = loaded(tmp_path / "out")(images)
    assert difference.exact == (head.name in ("l2norm", "linear")) and difference.agree == 1
    assert len(difference.notes("timm")) == (0 if difference.exact else 1)
    apart = float((found.softmax(1) - expected.softmax(1)).abs().max())
    assert difference.probabilities == pytest.approx(apart, abs=1e-6)
    if difference.exact:
        assert_equal(found, expected)
        return
    ratio = expected / found  # one positive number a picture, 1 on average
    assert (ratio > 0).all() and ratio.std(1).max() < 1e-4 and ratio[:, 0].mean() == pytest.approx(1, abs=1e-3)
    assert ratio[:, 0].std() > 1e-4  # so the probabilities do differ


@pytest.mark.parametrize("head", [Linear(), L2Norm()], ids=lambda head: head.name)
@torch.no_grad()
def test_a_prior_is_in_the_biases(head: Head, tmp_path: Path) -> None:
    run = trained(mini_clip(), head)
    plain = run.model(inputs(run.model.backbone))
    move(run, tmp_path / "out", "timm", prior="training")
    counts = torch.tensor([4.0, 3, 2, 1])
    assert_equal(loaded(tmp_path / "out")(inputs(run.model.backbone)), plain + (counts / 10).log())


@torch.no_grad()
def test_clips_image_tower_has_a_name_in_timm(tmp_path: Path) -> None:
    run = trained(backbone_of("clip_vit"), Linear(), "lora")
    expected = run.model(inputs(run.model.backbone))
    move(run, tmp_path / "out", "timm")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["architecture"] == "vit_base_patch16_clip_quickgelu_224" and about["model_args"]["patch_size"] == 5
    assert_equal(loaded(tmp_path / "out")(inputs(run.model.backbone)), expected)
    tower = catalogue.without_weights(BackboneConfig(name="clip_vit_l14"))
    assert to_timm.architecture_of(tower)[0] == "vit_large_patch14_clip_quickgelu_224"


@pytest.mark.parametrize("name", ["resnet", "convnext", "efficientnet", "siglip_timm"])
@torch.no_grad()
def test_other_towers_of_timm(name: str, tmp_path: Path) -> None:
    if name == "siglip_timm":
        config = BackboneConfig(name="timm/test_vit3.r160_in1k", pretrained=False, image_size=96)  # pools by attention
        trunk = catalogue.load(config)
    else:
        trunk = backbone_of(name)
    run = trained(trunk, Linear(), "full")
    images = inputs(trunk)
    expected = run.model(images)
    move(run, tmp_path / "out", "timm")
    model = loaded(tmp_path / "out")
    assert_equal(model(images), expected)
    assert model.pretrained_cfg["input_size"][-1] == trunk.facts.image_size


@pytest.mark.parametrize("margin", [None, 0, 24])
@pytest.mark.parametrize(("width", "height"), [(91, 133), (64, 65), (300, 41), (17, 23)])
def test_timms_pictures_are_ours(width: int, height: int, margin: int | None, exported: Path) -> None:
    """The same pixels as one crop by Pillow, at any size of picture."""
    about = json.loads((exported / "config.json").read_text())
    cut = CentreCrop(64, "bicubic", margin)
    about["pretrained_cfg"]["crop_pct"] = to_timm.share(cut.size, cut.short)
    data = timm.data.resolve_data_config(pretrained_cfg=about["pretrained_cfg"])
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    ours = (cut(picture)[0] / 255 - 0.5) / 0.5
    assert torch.allclose(timm.data.create_transform(**data)(picture), ours, atol=1e-6)


@pytest.mark.parametrize("margin", [None, 0, 24])
def test_timms_squashed_pictures_are_ours(margin: int | None, tmp_path: Path) -> None:
    """By the folder's own files: the same pixels, or within a step where Pillow 13 resizes the height first."""
    move(trained(mini_clip(), Linear()), tmp_path / "out", "timm", resize="square", one_crop_expand=margin)
    about = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert about["crop_mode"] == "squash"
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=about))
    for width, height in ((133, 91), (64, 65), (300, 41), (17, 23), (91, 133), (41, 300)):
        noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        picture, tall = Image.fromarray(noise.numpy()), height > max(90, width)
        if tall:  # in noise a step between the two passes becomes several
            picture = picture.resize((9, 12)).resize((width, height))
        ours = CentreCrop(64, "bicubic", margin, "square")(picture)[0]
        found = 255 * (transform(picture) / 2 + 0.5)
        assert (found - ours).abs().max() < (1.01 if tall else 1e-3), (width, height)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    move(trained(mini_clip(), Linear()), out, "timm")
    return out


def test_every_share_gives_its_side() -> None:
    import math

    for size in range(32, 600, 7):
        for margin in range(100):
            assert math.floor(size / to_timm.share(size, size + margin)) == size + margin


def refused_early(run: Any, library: Any, *, without_timm: bool = False, **evaluation: Any) -> str:
    """What is said before any picture is read."""
    with pytest.raises(UserError) as told:
        moving.checked(run, library, ONE_CROP.model_copy(update=evaluation), without_timm)
    return str(told.value)


def refused(run: Any, out: Path, library: str, **evaluation: Any) -> str:
    with pytest.raises(UserError) as told:
        move(run, out, library, **evaluation)
    assert not out.exists() and not list(out.parent.glob(".export-*"))
    return str(told.value)


def test_what_cannot_be_folded_in_is_refused() -> None:
    for tuner in ("adaptformer", "vpt_shallow", "lora+adapter"):
        said = refused_early(trained(mini_clip(), Linear(), tuner), "timm")
        assert f"no place for {tuner.removeprefix('lora+')}: " in said
        assert ".onnx or .pt2" in said and "tuner=lora" in said


@pytest.mark.parametrize("head", [Cosine(), Joint(), LayerNorm()], ids=lambda head: head.name)
def test_a_prior_on_a_head_that_divides_is_refused(head: Head) -> None:
    said = refused_early(trained(mini_clip(), head), "timm", prior="training")
    assert "Leave --prior out" in said and "head=linear" in said


def test_a_head_of_another_kind_is_refused() -> None:
    class Squared(HeadModule):
        def logits(self, features: Tensor) -> Tensor:
            return features.square() @ self.weight.T

    run = trained(mini_clip(), Linear())
    run.model.head = Squared(192, len(NAMES))
    torch.nn.init.normal_(run.model.head.weight)
    assert "the logits of head=Squared are none" in refused_early(run, "timm")


def test_towers_that_timm_does_not_have_are_refused(tmp_path: Path) -> None:
    for name in ("clip_resnet", "open_clip_vit"):
        said = refused_early(trained(backbone_of(name), Linear(), ""), "timm")
        assert f"no model like the image tower of {name!r}" in said and "--to open_clip" in said
    assert "tensors, such as" in refused(trained(backbone_of("timm_vit"), Linear(), ""), tmp_path / "out", "timm")


def test_what_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = to_timm.loaded

    def off(folder: Path) -> Any:
        model = honest(folder)
        return lambda pictures: model(pictures) + torch.tensor([0, 0.01, 0, 0])

    monkeypatch.setattr(to_timm, "loaded", off)
    said = refused(trained(mini_clip(), Linear()), tmp_path / "out", "timm")
    assert "differ by up to 1.0e-02" in said and "nothing was kept" in said


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    move(trained(mini_clip(), Linear()), tmp_path / "out", "timm")
    before = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(UserError, match="already exists"):
        move(trained(mini_clip(), Linear()), tmp_path / "out", "timm")
    assert (tmp_path / "out" / "config.json").read_bytes() == before


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> Any:
        raise ImportError

    monkeypatch.setattr(moving, "import_module", missing)
    with pytest.raises(UserError, match="pip install transformers"):
        moving.required("transformers")
    with pytest.raises(UserError, match="--to is 'keras'; it can be timm, open_clip, transformers"):
        moving.required("keras")


def test_the_command(photos: Path, command: Command, tmp_path: Path) -> None:
    settings = {"epochs": 0, "precision": "fp32", "cache": False, "workers": 0, "tuner": "lora"}
    liftplus.fit(photos, **settings).save("run")  # type: ignore[arg-type]
    for words, said in (
        (("--to", "keras", "--set", "precision=bf16"), "--to is 'keras'"),
        (("--to", "timm", "--set", "precision=bf16", "--out", "run"), "'run' already exists"),
        (("--to", "timm", "--prior", "uniform", "--check", "gone"), "Leave --prior out"),
        (("--to", "open_clip", "--check", "gone"), "no dual encoder"),
        (("--to", "timm", "--format", "pt2"), "Give one of the two"),
        (("--to", "timm", "--five-crops"), "timm takes one crop"),
        (("--to", "timm", "--set", "tte=true"), "Leave tte=true out"),
        (("--to", "timm", "--without-timm"), "--without-timm is for --to transformers alone"),
        (("--to", "timm", "--out", "m.onnx"), "--to timm writes a folder, and --out is 'm.onnx'"),
    ):
        ended = command("export", "run", "--out", "m", *words)
        assert ended.code == 2 and said in ended.err and not [*tmp_path.glob("m*")]
        assert ended.err.startswith("Error") and "Note" not in ended.err, words
    ended = command("export", "run", "--out", "m", "--to", "timm", "--check", photos / "test")
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    assert 'm is for timm: timm.create_model("local-dir:m", pretrained=True)' in told
    assert "6 pictures" in told and "100.0% have the same top class" in told and "probabilities differ by" in told
    assert "predict computes in" not in ended.err
    quoted = 'm "2"'
    words = ("--to", "timm", "--check", photos / "test", "--json", "--set", "precision=bf16")
    ended = command("export", "run", "--out", quoted, *words)
    assert "predict computes in bf16 on this machine" in " ".join(ended.err.split())
    about = json.loads(ended.out)
    assert about["images"] == 6 and about["agree"] == 1 and not about["exact"] and about["folder"] == quoted
    assert eval(about["load"], {"timm": timm}).num_classes == 3
    assert any("probabilities differ by" in note for note in about["notes"])
    assert loaded(tmp_path / "m").pretrained_cfg["label_names"] == ["blue sky", "green hill", "red square"]
