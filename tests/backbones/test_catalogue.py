"""The catalogue: every name stands for what it says, by the libraries' own records; gradient checkpointing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from timm.layers import GELU
from timm.layers import QuickGELU as TimmQuickGELU
from torch import Tensor, nn

from liftplus.backbones import catalogue, from_timm, mini_clip
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.clip import LeanQuickGELU
from liftplus.backbones.unfilled import Unfilled
from liftplus.errors import UserError
from zoo import ZOO, backbone_of

NAMES = sorted(catalogue.entries())
QUICK = [name for name in NAMES if name.startswith(("clip_vit", "metaclip", "dfn"))]
EXACT = [name for name in NAMES if name.startswith(("laion_vit", "datacomp"))]


@cache
def built(name: str) -> Backbone:
    """Shapes without weights."""
    return catalogue.without_weights(BackboneConfig(name=name))


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        built(name)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 1000
    return said


def published(name: str) -> Any:
    """The library's own record of a set of weights."""
    library, _, rest = catalogue.full_name(name).partition("/")
    return timm.get_pretrained_cfg(rest) if library == "timm" else open_clip.get_pretrained_cfg(*rest.split("/"))


@pytest.mark.parametrize("name", NAMES)
def test_every_short_name_stands_for_pinned_weights(name: str) -> None:
    entry = catalogue.entries()[name]
    full = catalogue.full_name(name)
    assert full == entry["weights"]
    assert entry["summary"] and not entry.keys() - {"weights", "summary", "defaults", "methods"}
    library, _, rest = full.partition("/")
    if library == "timm":
        assert rest in timm.list_pretrained()
    elif library == "open_clip":
        assert tuple(rest.split("/")) in open_clip.list_pretrained()
    else:
        assert name == full and full in mini_clip.WEIGHTS


def test_no_weights_have_two_short_names() -> None:
    full = [entry["weights"] for entry in catalogue.entries().values()]
    assert len(set(full)) == len(full)


@pytest.mark.parametrize("name", NAMES)
def test_every_short_name_can_be_tuned(name: str) -> None:
    backbone = built(name)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    assert backbone.name == name
    assert {"q", "v"} <= backbone.kinds() or "map" in backbone.kinds()
    assert backbone.depth > 3 and backbone.dim > 100
    assert (backbone.text is None) == catalogue.full_name(name).startswith("timm/")
    traits = catalogue.traits(name)
    assert (traits.reads_text, traits.kinds) == (backbone.text is not None, backbone.kinds())


@pytest.mark.parametrize("name", [name for name in NAMES if catalogue.full_name(name).startswith("timm/")])
def test_facts_are_timms(name: str) -> None:
    facts, record = built(name).facts, published(name)
    assert (facts.mean, facts.std, facts.interpolation) == (record.mean, record.std, record.interpolation)
    assert (3, facts.image_size, facts.image_size) == record.input_size


@pytest.mark.parametrize("name", [name for name in NAMES if catalogue.full_name(name).startswith("open_clip/")])
def test_facts_are_open_clips(name: str) -> None:
    facts, record = built(name).facts, published(name)
    assert (facts.mean, facts.std, facts.interpolation) == (record["mean"], record["std"], record["interpolation"])
    about = open_clip.get_model_config(catalogue.full_name(name).split("/")[1])
    assert facts.image_size == about["vision_cfg"]["image_size"]
    text = built(name).text
    assert text is not None
    assert text.joint_dim == about["embed_dim"]
    assert text.tower.context_length == about["text_cfg"]["context_length"]


@pytest.mark.parametrize(
    ("name", "patch"),
    [("clip_vit_l14", 14), ("siglip_vit_so400m", 14), ("dinov3_s16", 16), ("swin_t", None), ("clip_rn50", None)],
)
def test_patch_size(name: str, patch: int | None) -> None:
    assert built(name).facts.patch_size == patch


def activations(tower: nn.Module) -> set[type[nn.Module]]:
    return {type(m) for m in tower.modules() if isinstance(m, (nn.GELU, GELU, QuickGELU, TimmQuickGELU))}


@pytest.mark.parametrize("name", [*QUICK, *EXACT, "open_clip/ViT-B-16/openai", "open_clip/ViT-B-16-quickgelu/dfn2b"])
def test_the_activation_is_the_one_of_the_training(name: str) -> None:
    """OpenAI's, MetaCLIP's and DFN's weights need QuickGELU, whatever the architecture's name says; LAION's do not."""
    backbone = built(name)
    assert backbone.text is not None
    quick = name not in EXACT
    assert len(QUICK) == 7 and len(EXACT) == 6
    assert activations(backbone.image) == {LeanQuickGELU if quick else nn.GELU}
    assert activations(backbone.text.tower) == {QuickGELU if quick else nn.GELU}


def test_clip_resnets_text_towers_have_quick_gelu() -> None:
    for name in ("clip_rn50", "clip_rn50x64"):
        text = built(name).text
        assert text is not None and activations(text.tower) == {QuickGELU}


@pytest.mark.parametrize(
    ("pinned", "labels"),
    [
        ("vit_base_patch16_224.augreg_in21k", True),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", True),
        ("resnet50.a1_in1k", True),
        ("vit_base_patch16_clip_224.openai_ft_in12k_in1k", True),
        ("hiera_base_224.mae_in1k_ft_in1k", True),
        ("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", True),
        ("beit_base_patch16_224.in22k_ft_in22k", True),
        ("vit_base_patch16_224.mae", False),
        ("vit_base_patch16_224.dino", False),
        ("eva02_base_patch14_224.mim_in22k", False),
        ("vit_huge_patch14_gap_224.in1k_ijepa", False),
        ("convnextv2_base.fcmae", False),
        ("convnextv2_base.fcmae_ft_in1k", True),
        ("vit_base_patch14_dinov2.lvd142m", False),
        ("vit_base_patch16_dinov3.lvd1689m", False),
        ("vit_base_patch16_clip_224.openai", False),
    ],
)
def test_who_saw_imagenets_labels(pinned: str, labels: bool) -> None:
    assert from_timm.facts_of(from_timm.published_facts(pinned), 224, None).saw_imagenet is labels


def test_the_papers_in21k_weights_are_timms_defaults() -> None:
    """LIFT and LIFT+ load them by architecture alone: tuned on ImageNet-1k. The raw ones are called so."""
    table = catalogue.entries()
    assert table["vit_b16_in21k"]["weights"] == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert table["vit_b16_in21k_raw"]["weights"] == "timm/vit_base_patch16_224.augreg_in21k"
    assert table["vit_b16_in21k_384"]["weights"] == "timm/vit_base_patch16_384.augreg_in21k_ft_in1k"
    assert table["vit_l16_in21k"]["weights"] == "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"
    assert table["vit_l16_in21k_384"]["weights"] == "timm/vit_large_patch16_384.augreg_in21k_ft_in1k"
    for name in ("vit_b16_in21k", "vit_b16_in21k_raw", "resnet101", "resnet152"):
        tag = table[name]["weights"].removeprefix("timm/")
        assert from_timm.facts_of(from_timm.published_facts(tag), 224, None).saw_imagenet


def test_another_resize_kernel() -> None:
    for kernel in ("bilinear", "bicubic"):
        config = BackboneConfig.model_validate({"name": "mini_clip", "interpolation": kernel})
        assert catalogue.without_weights(config).facts.interpolation == kernel
    assert catalogue.without_weights(BackboneConfig(name="mini_clip")).facts.interpolation == "bicubic"


def test_dual_encoders_saw_no_labels() -> None:
    assert not any(built(name).facts.saw_imagenet for name in NAMES if built(name).text is not None)


@pytest.mark.parametrize(
    ("pattern", "among"),
    [
        ("DINOv3", {"dinov3_s16", "dinov3_convnext_t", "timm/vit_base_patch16_dinov3.lvd1689m"}),
        ("vit-b-16-siglip/", {"open_clip/ViT-B-16-SigLIP/webli"}),
        ("augreg_in21k", {"timm/vit_base_patch16_224.augreg_in21k"}),
    ],
)
def test_find(pattern: str, among: set[str]) -> None:
    found = catalogue.find(pattern)
    assert among <= set(found)
    assert all(pattern.casefold() in name.casefold() for name in found)
    assert len(set(found)) == len(found)


def test_find_lists_every_name_that_can_be_given() -> None:
    everything = catalogue.find("")
    assert set(NAMES) <= set(everything) and len(everything) > 1500
    assert catalogue.find("no such thing") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip_vit_b61", ["Did you mean 'clip_vit_b16'?", "timm/ARCH.TAG", "open_clip/ARCH/TAG", "liftplus info"]),
        ("mini_clip/x", ["Did you mean 'mini_clip'?"]),
        ("timm/vit_base_patch16_242.mae", ["Did you mean 'vit_base_patch16_224'", "info --find"]),
        ("timm/Resnet50.a1_in1k", ["Did you mean 'resnet50'"]),
        ("timm/resnet50", ["by their tag", "timm/resnet50.a1_in1k", "timm/resnet50.tv_in1k"]),
        ("timm/resnet50.a9_in1k", ["by their tag", "timm/resnet50.a1_in1k"]),
        ("timm/", ["Unknown timm model"]),
        ("open_clip/ViT-B-17/openai", ["Did you mean 'ViT-B-16'", "info --find"]),
        ("open_clip/ViT-B-16", ["Name the weights", "open_clip/ViT-B-16/laion2b_s34b_b88k"]),
        ("open_clip/ViT-B-16/", ["Name the weights", "open_clip/ViT-B-16/openai"]),
        ("open_clip/ViT-B-16/laion2b-s34b-b88k", ["no weights", "open_clip/ViT-B-16/laion2b_s34b_b88k"]),
        ("open_clip/hf-hub:owner/model", ["Unknown open_clip model"]),
        ("open_clip/local-dir:/tmp/x", ["Unknown open_clip model"]),
        ("open_clip/coca_base/x", ["no pretrained weights"]),
        ("open_clip/roberta-ViT-B-32/laion2b_s12b_b32k", ["a text tower of another library", "another CLIP"]),
        ("open_clip/coca_ViT-B-32/laion2b_s13b_b90k", ["a captioning decoder", "another CLIP"]),
        ("timm/vgg16.tv_in1k", ["is a VGG without residual blocks", "liftplus info"]),
    ],
)
def test_names_that_are_refused(name: str, words: list[str]) -> None:
    said = refusal(name)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize("key", ["image.norm.bias", "text.ln_final.weight", "image_projection", "logit_scale"])
@pytest.mark.parametrize("change", ["missing", "extra", "wrong shape"])
def test_mini_clip_takes_its_own_weights_only(tmp_path: Path, key: str, change: str) -> None:
    state = load_file(mini_clip.WEIGHTS["mini_clip"])
    if change == "extra":
        key += "s"
        state[key] = torch.zeros(3)
    else:
        value = state.pop(key)
        if change == "wrong shape":
            state[key] = torch.zeros(2, *value.shape)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="do not fit mini_clip") as error:
        catalogue.load(BackboneConfig(weights=str(tmp_path / "x.safetensors")))
    assert key.removeprefix("image.").removeprefix("text.") in str(error.value)


def gradient(backbone: Backbone) -> tuple[Tensor, Tensor, int]:
    """Features, the gradient to the images, and how many numbers the forward pass kept for it."""
    size = backbone.facts.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4)).requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone(images)
    features.square().sum().backward()
    assert images.grad is not None
    return features.detach(), images.grad, sum(size for place, size in kept.items() if place not in own)


CHECKPOINTED = ("mini_clip", *(f"timm/test_{arch}.r160_in1k" for arch in ("vit", "vit3", "convnext", "resnet")))


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_memory_alone(name: str) -> None:
    results = []
    for again in (False, True):
        torch.manual_seed(5)
        config = BackboneConfig(name=name, grad_checkpointing=again)
        results.append(gradient(catalogue.load(config, weights=name == "mini_clip")))
    (features, slope, memory), (again_features, again_slope, less) = results
    assert torch.equal(features, again_features)
    assert torch.equal(slope, again_slope)
    assert slope.any()
    assert less < 0.8 * memory  # little of a network of four blocks lies inside them


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_family_can_be_computed_again(name: str) -> None:
    plain, again = backbone_of(name), backbone_of(name)
    again.recompute()
    (features, slope, memory), (again_features, again_slope, less) = gradient(plain), gradient(again)
    assert torch.equal(features, again_features)
    assert torch.equal(slope, again_slope)
    assert less < memory


def test_text_towers_are_computed_again_too() -> None:
    slopes, saved = [], []
    for again in (False, True):
        backbone = backbone_of("clip_vit")
        text = backbone.text_encoder("the test")
        if again:
            backbone.recompute()
        text.tower.token_embedding.weight.requires_grad_()
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vectors = text.joint(text.tokens(["red ant", "bee"]))
        vectors[:, 0].sum().backward()
        slopes.append(text.tower.token_embedding.weight.grad)
        saved.append(sum(kept))
    assert torch.equal(*slopes)
    assert saved[1] < 0.5 * saved[0]


def test_without_gradients_nothing_is_computed_again() -> None:
    backbone = backbone_of("timm_vit")
    backbone.recompute()
    calls = []
    backbone.sites("fc1")[0].entry.register_forward_hook(lambda *_: calls.append(1))
    images = torch.zeros(1, 3, 15, 15)
    with torch.no_grad():
        backbone(images)
    assert len(calls) == 1
    backbone(images.requires_grad_()).sum().backward()
    assert len(calls) == 3  # forward, and once more in the backward pass


def test_hooks_run_in_a_block_that_is_computed_again() -> None:
    """What a tuner adds inside a block is part of the recomputation."""
    slopes = []
    for again in (False, True):
        backbone = backbone_of("timm_vit")
        if again:
            backbone.recompute()
        scale = torch.tensor(0.7, requires_grad=True)
        for site in backbone.sites("fc1"):
            site.exit.register_forward_hook(lambda _module, _args, out, scale=scale: out * scale)
        generator = torch.Generator().manual_seed(4)
        backbone(torch.randn(2, 3, 15, 15, generator=generator)).square().sum().backward()
        slopes.append(scale.grad)
    assert slopes[0] is not None and slopes[0] != 0
    assert torch.equal(*slopes)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_what_is_not_drawn_is_weights_alone(name: str) -> None:
    """Masks, tables of positions and running statistics are made as ever; only parameters wait for their file."""
    plain = ZOO[name]()
    with Unfilled():
        waiting = ZOO[name]()
    wanted, found = plain.state_dict(), waiting.state_dict()
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}
    towers = [(plain.image, waiting.image), *([(plain.text, waiting.text)] if plain.text is not None else [])]
    for one, two in towers:
        held = dict(two.named_buffers())
        assert all(torch.equal(buffer, held[key]) for key, buffer in one.named_buffers())


@pytest.mark.parametrize(("mean", "std", "bounds"), [(0.0, 0.02, (-2.0, 2.0)), (0.5, 10.0, (-1.0, 1.0))])
def test_draws_that_are_repeated_until_they_fit_end(mean: float, std: float, bounds: tuple[float, float]) -> None:
    """PyTorch draws truncated normals so, by rejection; the memory may hold anything before."""
    waiting = torch.full((64, 64), 99.0)
    with Unfilled():
        assert float(waiting.normal_(mean, std, generator=None).max()) == mean  # or the next line would never end
        nn.init.trunc_normal_(waiting.fill_(99.0), mean, std, *bounds)
    assert bounds[0] <= float(waiting.min()) <= float(waiting.max()) <= bounds[1]


def test_a_library_that_reads_values_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm does up to 1.0.29 for RegNets."""
    config, real, asked = BackboneConfig(name="mini_clip"), catalogue.load, []
    wanted = catalogue.without_weights(config)

    def load(config: BackboneConfig, *, weights: bool = True) -> Backbone:
        asked.append(torch.linspace(0, 1, 2)[0].item())  # fails on the meta device
        return real(config, weights=weights)

    monkeypatch.setattr(catalogue, "load", load)
    found = catalogue.without_weights(config)
    assert asked and all(tensor.is_meta for tensor in found.state_dict().values())
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in wanted.state_dict().items()}


def test_nothing_is_drawn_for_weights_that_follow() -> None:
    before = torch.get_rng_state()
    catalogue.load(BackboneConfig(name="mini_clip"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name",
    [
        "mini_clip",
        "timm/vit_tiny_patch16_224.augreg_in21k",
        pytest.param("open_clip/RN50/openai", marks=pytest.mark.slow),
    ],
)
def test_without_pretraining_weights_are_random(name: str) -> None:
    """The same whatever was drawn before, and nothing after it is drawn differently; no file is looked for."""
    config = BackboneConfig(name=name, pretrained=False, image_size=64)
    assert catalogue.locate(config, fetch=False) is None
    torch.manual_seed(5)
    first = catalogue.load(config)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    second = catalogue.load(config)
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert first.identity == second.identity
    assert len(first.identity) == 64
    with torch.no_grad():
        features = first(torch.randn(2, 3, 64, 64))
    assert features.isfinite().all()
    assert features.std() > 0


def test_random_weights_are_not_the_bundled_ones() -> None:
    drawn = catalogue.load(BackboneConfig(name="mini_clip", pretrained=False))
    assert drawn.identity != catalogue.load(BackboneConfig(name="mini_clip")).identity
    other = catalogue.load(BackboneConfig(name="mini_clip", pretrained=False, image_size=32))
    assert other.identity != drawn.identity  # of another shape, and so another draw
