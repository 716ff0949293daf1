"""Weights in transformers' form: features equal to transformers' own, nothing dropped, and refusals that help."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liftplus.backbones import catalogue, from_transformers, weights
from liftplus.backbones.base import BackboneConfig
from liftplus.errors import UserError

transformers = pytest.importorskip("transformers")
slim = pytest.importorskip("slim")
pictures, theirs, assert_equal = slim.pictures, slim.theirs, slim.assert_equal


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    slim.thin_libraries(monkeypatch)


def words(kind: str) -> Tensor:
    ids = torch.randint(1, slim.WORDS - 1, (4, slim.CONTEXT), generator=torch.Generator().manual_seed(2))
    for row, end in enumerate((3, 5, 8, 12) if kind == "clip" else ()):
        ids[row, end], ids[row, end + 1 :] = slim.WORDS - 1, 0
    return ids


@pytest.mark.parametrize("kind", slim.KINDS)
@torch.no_grad()
def test_features_are_transformers_own(kind: str, tmp_path: Path) -> None:
    model = slim.saved(kind, tmp_path)
    backbone = slim.load(tmp_path, kind)
    images = pictures(backbone.facts.image_size)
    features = backbone(images)
    assert_equal(features, theirs(kind, model, images))
    if backbone.text is None:
        return
    ids = words(kind)
    text = model.text_model(input_ids=ids).pooler_output
    image = theirs(kind, model, images)
    if kind == "clip":
        text, image = model.text_projection(text), model.visual_projection(image)
    assert_equal(backbone.joint(features), F.normalize(image, dim=-1))
    assert_equal(backbone.text.joint(ids), F.normalize(text, dim=-1))
    assert backbone.text.logit_scale == pytest.approx(float(model.logit_scale))


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("clip", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, "open_clip/ViT-B-16-quickgelu/openai"),
    ("vit", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}, slim.NAMES["vit"]),
    ("dinov2", {"use_swiglu_ffn": True}, "timm/vit_giant_patch14_dinov2.lvd142m"),
    ("dinov3", {"use_gated_mlp": True, "hidden_act": "silu"}, "timm/vit_small_plus_patch16_dinov3_qkvb.lvd1689m"),
    ("clip", {"projection_dim": 512}, "timm/vit_base_patch16_clip_quickgelu_224.openai"),
    ("siglip", {}, "timm/vit_base_patch16_siglip_224.webli"),
]


@pytest.mark.parametrize(("kind", "settings", "name"), SETTINGS, ids=[f"{kind}-{name}" for kind, _, name in SETTINGS])
@torch.no_grad()
def test_settings_of_config_json_are_the_backbones(
    kind: str, settings: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """Epsilon, activation and gates; a dual encoder's file gives timm its image tower."""
    if not hasattr(transformers, slim.CLASSES.get(kind, "CLIPModel")):
        pytest.skip(f"this version of transformers has no {slim.CLASSES[kind]}")
    model = slim.saved(kind, tmp_path, **settings)
    backbone = catalogue.load(BackboneConfig(name=name, weights=str(tmp_path)))
    images = pictures(backbone.facts.image_size)
    assert_equal(backbone(images), theirs(kind, model, images))
    if name.startswith("timm/") and kind in ("clip", "siglip"):
        assert any("texts and projections are left out" in note for note in backbone.notes)


def numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full(value.shape, float(n + 1)) for n, (name, value) in enumerate(state.items())}


def values(state: dict[str, Tensor]) -> Counter[float]:
    found = Counter(value for tensor in state.values() for value in tensor.flatten().tolist())
    found.pop(0.0, None)  # biases of keys that transformers does not have
    return found


@pytest.mark.parametrize("kind", slim.KINDS)
@pytest.mark.parametrize("form", ["saved", "in memory"])
def test_every_tensor_is_used_once(kind: str, form: str, tmp_path: Path) -> None:
    """Each number of the file is in the translation as often as in the file, but for what is said to be left out."""
    model = slim.saved(kind, tmp_path)
    state = numbered(load_file(tmp_path / "model.safetensors") if form == "saved" else model.state_dict())
    unused = from_transformers.left_out(state)
    assert all(name.endswith("mask_token") or name.startswith(("pooler.dense", "classifier")) for name in unused)
    kept = {name: value for name, value in state.items() if name not in unused}
    found = from_transformers.translated(dict(state))
    assert values(found) == values(kept)


@pytest.mark.parametrize("kind", slim.KINDS)
def test_what_is_left_out_is_said(kind: str, tmp_path: Path) -> None:
    slim.saved(kind, tmp_path)
    unused = from_transformers.left_out(load_file(tmp_path / "model.safetensors"))
    notes = weights.remarks(tmp_path / "model.safetensors")
    assert len(notes) == (1 if unused else 0) and all(repr(name) in notes[0] for name in unused)


def test_a_bare_file_takes_the_backbones_own_settings(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path / "whole")
    bare = (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "own.safetensors")
    found = slim.load(bare, "vit")
    assert {module.eps for module in found.image.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    assert found.identity == hashlib.sha256(bare.read_bytes()).hexdigest()
    (note,) = [note for note in found.notes if "config.json" in note]
    assert "no config.json beside it" in note and "(1e-06)" in note and "(gelu)" in note
    bare.rename(tmp_path / "whole" / "model.safetensors")
    again = slim.load(tmp_path / "whole", "vit")
    assert {module.eps for module in again.image.modules() if isinstance(module, nn.LayerNorm)} == {1e-12}
    assert again.identity != found.identity  # so that a run refuses the file without its config.json
    assert any("epsilon of norms in the image tower is 1e-12 instead of 1e-06" in note for note in again.notes)


def test_what_changes_nothing_leaves_the_files_identity(tmp_path: Path) -> None:
    slim.saved("clip", tmp_path)
    found = slim.load(tmp_path, "clip")
    assert found.identity == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert found.notes == ()


def test_the_pictures_of_preprocessor_config(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, "resample": 2, "size": {"height": 224, "width": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = slim.load(tmp_path, "vit")
    assert (found.facts.mean, found.facts.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert found.facts.interpolation == "bilinear"
    assert any("mean of pictures is 0.1 0.2 0.3 instead of 0.5 0.5 0.5" in note for note in found.notes)
    assert any("squashes" in note and "evaluation.resize=square" in note for note in found.notes)
    assert slim.load(tmp_path, "vit", interpolation="bicubic").facts.interpolation == "bicubic"


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2"])
@torch.no_grad()
def test_another_size_is_said(kind: str, tmp_path: Path) -> None:
    """transformers resamples positions without antialiasing, so features are near, not equal: see moving-models.md."""
    model = slim.saved(kind, tmp_path)
    if not resamples(kind, model):
        pytest.skip("this version of transformers has one size for this model")
    for size, most in zip(slim.OTHER_SIZES.get(kind, (112, 336)), (2e-2, 1e-3), strict=True):
        found = slim.load(tmp_path, kind, image_size=size)
        assert any(f"px and are resampled to {size} px" in note for note in found.notes)
        own = theirs(kind, model, pictures(size), resampled=True)
        assert (found(pictures(size)) - own).abs().max() < most * own.std(0).mean()


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2"])
@torch.no_grad()
def test_plain_positions_are_transformers_own_at_another_size(kind: str, larger: bool, tmp_path: Path) -> None:
    model = slim.saved(kind, tmp_path)
    if not resamples(kind, model):
        pytest.skip("this version of transformers has one size for this model")
    size = slim.OTHER_SIZES.get(kind, (112, 336))[larger]
    found = slim.load(tmp_path, kind, image_size=size, positions="plain")
    assert not any("resampled" in note for note in found.notes)
    images = pictures(size)
    own = theirs(kind, model, images, resampled=True)
    assert_equal(found(images), own)
    smoothed = slim.load(tmp_path, kind, image_size=size)(images)
    assert (smoothed - own).abs().max() > 2e-5 * own.std(0).mean()


def resamples(kind: str, model: nn.Module) -> bool:
    tower = getattr(model, "beit", getattr(model, "vision_model", model))
    return "dino" in kind or "interpolate_pos_encoding" in signature(tower.forward).parameters


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("kind", [slim.needs("dinov3"), slim.needs("dinov2_with_registers"), slim.needs("beit")])
@torch.no_grad()
def test_rotary_relative_and_smoothed_positions_are_equal_at_every_size(
    kind: str, larger: bool, tmp_path: Path
) -> None:
    model = slim.saved(kind, tmp_path)
    if not resamples(kind, model):
        pytest.skip("this version of transformers has one size for this model")
    size = slim.OTHER_SIZES.get(kind, (112, 336))[larger]
    found = slim.load(tmp_path, kind, image_size=size)
    assert not any("resampled" in note for note in found.notes)
    own = theirs(kind, model, pictures(size), resampled=True)
    # the two libraries resample BEiT's biases in other steps, so more of the last digits differ
    assert (found(pictures(size)) - own).abs().max() < (3e-5 if kind == "beit" else 1e-5) * own.std(0).mean()


POOLED = [
    pytest.param(*param.values, marks=param.marks) for param in slim.KINDS if param.values[0] not in ("clip", "siglip")
]


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("kind", POOLED)
@torch.no_grad()
def test_pooling_can_be_chosen(kind: str, pooling: str, tmp_path: Path) -> None:
    """The class token or the mean over patches, with the norm where its weights were trained: BEiT's is after it."""
    model: Any = slim.saved(kind, tmp_path)
    backbone = slim.load(tmp_path, kind, pooling=pooling)
    images = pictures(backbone.facts.image_size)
    tower = getattr(model, "beit", model)
    tokens = tower(images).last_hidden_state
    registers = {"dinov3": 4, "dinov2_with_registers": 4}.get(kind, 0)
    own = tokens[:, 0] if pooling == "token" else tokens[:, 1 + registers :].mean(1)
    assert_equal(backbone(images), tower.pooler.layernorm(own) if kind == "beit" else own)
    assert not any("backbone.pooling" in note for note in backbone.notes)


@torch.no_grad()
def test_dinov3s_pooler_output_is_the_class_token(tmp_path: Path) -> None:
    if not hasattr(transformers, "DINOv3ViTModel"):
        pytest.skip("this version of transformers has no DINOv3")
    model = slim.saved("dinov3", tmp_path)
    found, images = slim.load(tmp_path, "dinov3", pooling="token"), pictures(224)
    assert_equal(found(images), model(images).pooler_output)
    plain = slim.load(tmp_path, "dinov3")
    assert any("class token, which backbone.pooling=token takes" in note for note in plain.notes)
    assert (plain(images) - found(images)).abs().max() > 1e-2 * found(images).std(0).mean()
    assert found.identity == plain.identity  # the weights are the same; facts tell kept features apart
    assert (found.facts.pooling, plain.facts.pooling) == ("token", None)


def test_dinov3_without_biases_is_told_by_their_values(tmp_path: Path) -> None:
    """timm's plain model has no biases of queries: zeros are left out, others are refused and never dropped."""
    if not hasattr(transformers, "DINOv3ViTModel"):
        pytest.skip("this version of transformers has no DINOv3")
    slim.saved("dinov3", tmp_path)
    path, plain = tmp_path / "model.safetensors", "timm/vit_base_patch16_dinov3.lvd1689m"
    assert "It fits backbone timm/vit_base_patch16_dinov3_qkvb.lvd1689m." in refusal(path, plain)
    state = load_file(path)
    zeros = {name: value * 0 for name, value in state.items() if name.endswith(("q_proj.bias", "v_proj.bias"))}
    save_file(state | zeros, path)
    catalogue.load(BackboneConfig(name=plain, weights=str(path)))
    catalogue.load(BackboneConfig(name=slim.NAMES["dinov3"], weights=str(path)))


def refusal(path: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        catalogue.load(BackboneConfig(name=name, weights=str(path)))
    said = str(error.value)
    assert "\n" not in said and len(said) < 900
    return said


def renamed(folder: Path, **tensors: Tensor) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


EPSILONS = (None, 0, -1e-6, float("inf"), float("nan"), "1e-6", True)


@pytest.mark.parametrize("values", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_pixels_are_those_of_the_processor(values: dict[str, Any], tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.5} | values
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    picture = torch.arange(3 * 224 * 224, dtype=torch.uint8).reshape(3, 224, 224)
    theirs = transformers.ViTImageProcessor(**(said | {"image_std": [0.5] * 3}), do_resize=False)
    expected = theirs(picture.permute(1, 2, 0).numpy(), input_data_format="channels_last", return_tensors="pt")
    facts = slim.load(tmp_path, "vit").facts
    mean, std = (torch.tensor(one)[:, None, None] for one in (facts.mean, facts.std))
    torch.testing.assert_close((picture / 255 - mean) / std, expected["pixel_values"][0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernel", [0, 1, "lanczos", [2]])
def test_a_kernel_that_liftplus_has_not_is_said(kernel: Any, tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": kernel}))
    (note,) = [note for note in slim.load(tmp_path, "vit").notes if "resample" in note and "kernel" in note]
    assert f"resample={kernel!r}" in note and "resized with bicubic" in note


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """They were cast, so that nearly all were 0."""
    model = slim.saved("vit", tmp_path)
    save_file({key: value.to(torch.int8) for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert "holds whole numbers (int8), as quantised weights do" in refusal(tmp_path, slim.NAMES["vit"])


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    config = slim.config_of(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_attention_heads": 4}, "the image tower has 4 heads; the named backbone has 2"),
        ({"hidden_act": "relu6"}, "names the activation 'relu6'; liftplus knows gelu"),
        ({"model_type": "swin"}, "model_type 'swin'. liftplus takes transformers' CLIP, SigLIP"),
        ({"model_type": "siglip2"}, "NaFlex"),
        *(({"layer_norm_eps": eps}, f"layer_norm_eps is {eps!r}; a number above 0") for eps in EPSILONS),
        ({"image_size": "large"}, "image_size is 'large'; a whole number above 0"),
        ({"patch_size": -16}, "patch_size is -16; a whole number above 0"),
        ({"hidden_size": 192.5}, "hidden_size is 192.5; a whole number above 0"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']; liftplus knows gelu"),
        ({"image_size": 384}, "config.json says image_size=384, but the tensors of"),
        ({"patch_size": 8}, "are of a model with patch_size=16"),
        ({"num_channels": 1}, "are of a model with num_channels=3"),
        ({"hidden_size": 96}, "config.json says hidden_size=96"),
        ({"num_hidden_layers": 6}, "config.json says num_hidden_layers=6"),
        ({"model_type": "clip", "vision_config": [1]}, "has a vision_config that is no table"),
        ({"model_type": "dinov2"}, "seems to be a ViT, but config.json beside it describes a DINOv2"),
    ]
    for values, said in cases:
        slim.changed(tmp_path, **config | values)
        assert said in refusal(tmp_path, slim.NAMES["vit"])
    processor = tmp_path / "preprocessor_config.json"
    slim.changed(tmp_path, **config)
    for values, said in (
        ({"image_std": [0, 1, 1], "resample": [2]}, "image_std is [0, 1, 1]; three numbers above 0"),
        ({"image_std": "x"}, "image_std is 'x'; three numbers above 0"),
        ({"image_mean": [0.5] * 4}, "image_mean is [0.5, 0.5, 0.5, 0.5]; three numbers are"),
        ({"image_mean": [float("nan")] * 3}, "image_mean is [nan, nan, nan]; three numbers are"),
        ({"rescale_factor": 0}, "rescale_factor is 0; a number above 0"),
    ):
        processor.write_text(json.dumps(values))
        assert said in refusal(tmp_path, slim.NAMES["vit"])
    (tmp_path / "config.json").write_text("{")
    assert "config.json' cannot be read as JSON" in refusal(tmp_path, slim.NAMES["vit"])


def test_rotary_positions_of_another_base_are_refused(tmp_path: Path) -> None:
    if not hasattr(transformers, "DINOv3ViTModel"):
        pytest.skip("this version of transformers has no DINOv3")
    slim.saved("dinov3", tmp_path)
    slim.changed(tmp_path, rope_theta=10000.0)
    assert "rope_theta is 10000" in refusal(tmp_path, slim.NAMES["dinov3"])


def test_sides_may_be_pairs(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    slim.changed(tmp_path, image_size=[224, 224], patch_size=[16, 16])
    assert slim.load(tmp_path, "vit").facts.image_size == 224


def test_buffers_of_older_versions_are_no_weights(tmp_path: Path) -> None:
    slim.saved("clip", tmp_path)
    renamed(tmp_path, **{"text_model.embeddings.position_ids": torch.arange(slim.CONTEXT)[None]})
    assert slim.load(tmp_path, "clip").notes == ()


@torch.no_grad()
def test_a_pickle_in_half_precision(tmp_path: Path) -> None:
    """pytorch_model.bin, with the names that transformers has in memory."""
    model = slim.saved("dinov2", tmp_path).half()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = slim.load(tmp_path, "dinov2", image_size=518)
    assert next(found.parameters()).dtype == torch.float32
    assert_equal(found(pictures(518)), theirs("dinov2", model.float(), pictures(518)))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_an_image_tower_saved_alone(kind: str, tmp_path: Path) -> None:
    """transformers 5 saves it without a name around; a dual encoder is refused with its real sizes."""
    sizes = slim.THIN | {"intermediate_size": 4 * slim.WIDTH, "image_size": 224, "patch_size": 16}
    config, made = {
        "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel),
        "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    }[kind]
    model = made(config(**sizes)).eval()
    model.save_pretrained(tmp_path)
    name = {"clip": "vit_base_patch16_clip_quickgelu_224.openai", "siglip": "vit_base_patch16_siglip_224.webli"}[kind]
    backbone = catalogue.load(BackboneConfig(name=f"timm/{name}", weights=str(tmp_path)))
    assert_equal(backbone(pictures(224)), model(pictures(224)).pooler_output)
    assert "with 2 blocks and patches of 16 px, without its text tower" in refusal(tmp_path, slim.NAMES[kind])


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    renamed(tmp_path, **{"embeddings.distillation_token": torch.zeros(1, 1, 48)})
    said = refusal(tmp_path, slim.NAMES["vit"])
    assert "seem to be a ViT, but with tensors that liftplus does not know, such as 'embeddings.distil" in said


def test_patches_of_any_number_are_refused(tmp_path: Path) -> None:
    slim.saved("siglip", tmp_path)
    renamed(tmp_path, **{"vision_model.embeddings.patch_embedding.weight": torch.zeros(48, 768)})
    assert "NaFlex" in refusal(tmp_path, slim.NAMES["siglip"])


def test_a_missing_projection_is_refused(tmp_path: Path) -> None:
    slim.saved("vit", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {
            k: v
            for k, v in state.items()
            if not k.endswith(("0.attention.attention.key.weight", "0.attention.k_proj.weight"))
        },
        tmp_path / "model.safetensors",
    )
    assert "lack the projection 'k'" in refusal(tmp_path, slim.NAMES["vit"])


@pytest.mark.parametrize("kind", slim.KINDS)
def test_a_wrong_backbone_learns_which_would_take_the_file(kind: str, tmp_path: Path) -> None:
    slim.saved(kind, tmp_path)
    wrong = "timm/test_convnext.r160_in1k"
    said = refusal(tmp_path, wrong)
    family = {"dinov2_with_registers": "dinov2"}.get(kind, kind)
    assert f"seems to be a {from_transformers.LABELS[family]} in the form of the library transformers" in said
    assert f"of width {slim.WIDTH} with 2 blocks" in said
    assert f"It fits backbone {slim.NAMES[kind].rpartition('/')[0] if kind == 'siglip' else slim.NAMES[kind]}" in said


def test_split_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "split over several files" in refusal(tmp_path, slim.NAMES["vit"])


@pytest.mark.parametrize("part", [0, 2])
def test_biases_in_metas_names_are_not_left_out(part: int, tmp_path: Path) -> None:
    """timm 1.0.31 drops those of queries and values before strict loading sees them (timm.models.eva)."""
    bias = torch.zeros(3 * 384)
    bias[part * 384] = 0.1
    save_file({"storage_tokens": torch.zeros(1, 4, 384), "blocks.0.attn.qkv.bias": bias}, tmp_path / "m.safetensors")
    config = BackboneConfig(name="timm/vit_small_patch16_dinov3.lvd1689m", weights=str(tmp_path / "m.safetensors"))
    with pytest.raises(UserError, match=r"has no place for\. .*'vit_small_patch16_dinov3_qkvb\.lvd1689m'"):
        catalogue.load(config)
