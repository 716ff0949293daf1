"""open_clip's weight files for every kind of image tower, against open_clip's own model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.model import CustomTextCLIP, resize_pos_embed
from safetensors.torch import save_file
from torch import Tensor, nn

from liftplus.backbones import catalogue, clip, from_open_clip, weights
from liftplus.backbones.base import Backbone, BackboneConfig, Facts
from liftplus.errors import UserError

JOINT, SIZE, PATCH, TIMM_SIZE = 11, 15, 5, 160
CONTEXT, VOCABULARY = 13, 41
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 10, "heads": 2, "layers": 2}
OWN = {"image_size": SIZE, "patch_size": PATCH, "width": 14, "head_width": 7, "layers": 3}


def timm_tower(name: str, **options: Any) -> dict[str, Any]:
    return {"image_size": TIMM_SIZE, "timm_model_name": name} | options


# The image tower, what the text tower has of its own, the width of the joint space.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "clip": (OWN, {}, JOINT),
    "clipa": (
        OWN | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"pool_type": "last", "no_causal_mask": True},
        JOINT,
    ),
    "siglip": (
        timm_tower("test_vit3", timm_pool="map", timm_proj="none"),
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
        96,
    ),
    "mean_pool": (timm_tower("test_vit2", timm_pool="avg", timm_proj="none"), {}, 64),
    "eva": (timm_tower("test_vit", timm_pool="token", timm_proj=None), {}, JOINT),
    "mobileclip": (timm_tower("test_efficientnet", timm_pool="avg", timm_proj=None), {"no_causal_mask": True}, JOINT),
    "convnext": (timm_tower("test_convnext", timm_pool="", timm_proj="linear", timm_drop=0.1), {}, JOINT),
    "projected": (timm_tower("test_vit", timm_pool="token", timm_proj="linear", timm_proj_bias=True), {}, JOINT),
    "convnext_mlp": (timm_tower("test_convnext", timm_pool="", timm_proj="mlp"), {}, JOINT),
}


class Letters:
    """A tokenizer of one token a letter: start 1, end 40, padding 0."""

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [1, *(2 + ord(letter) % 37 for letter in text), 40]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def about(kind: str) -> dict[str, Any]:
    """As open_clip's configuration files say it."""
    vision, text, joint = KINDS[kind]
    return {"embed_dim": joint, "vision_cfg": vision, "text_cfg": TEXT | text, "init_logit_bias": -10}


def native(kind: str) -> int:
    return int(KINDS[kind][0]["image_size"])


def source(kind: str, *, quick_gelu: bool = False, **vision: Any) -> CustomTextCLIP:
    """open_clip's own random model, away from the zeros and ones of a fresh one."""
    torch.manual_seed(7)
    record = about(kind)
    model = CustomTextCLIP(**record | {"vision_cfg": record["vision_cfg"] | vision}, quick_gelu=quick_gelu)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval().requires_grad_(False)


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def load(kind: str, path: Path, size: int | None = None, **options: Any) -> Backbone:
    facts = Facts(size or native(kind), clip.MEAN, clip.STD)
    config = BackboneConfig(name="tiny", image_size=size)
    return from_open_clip.assemble(config, about(kind), path, facts, Letters(), **options)


def inputs(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, size, size, generator=generator), Letters()(["red ant", "bee", "an old dog"])


def check(backbone: Backbone, model: CustomTextCLIP, size: int) -> None:
    """Unit vectors of both towers as open_clip's encoders give them."""
    images, ids = inputs(size)
    features = backbone(images)
    assert features.shape == (3, backbone.dim)
    text = backbone.text_encoder("the test")
    pairs = [
        (backbone.joint(features), model.encode_image(images, normalize=True)),
        (text.joint(ids), model.encode_text(ids, normalize=True)),
        (text.encode(["red ant", "bee", "an old dog"]), model.encode_text(ids, normalize=True)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))
    assert text.logit_scale == pytest.approx(float(model.logit_scale))
    assert text.logit_scale != pytest.approx(2.6592, abs=1e-4)  # the file's, not a fresh model's


def refusal(act: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as error:
        act()
    said = str(error.value)
    for word in words:
        assert word in said
    assert "\n" not in said
    assert len(said) < 700


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clips(tmp_path: Path, kind: str, file: str) -> None:
    model = source(kind)
    check(load(kind, write(model.state_dict(), tmp_path / file)), model, native(kind))


@pytest.mark.parametrize("kind", [kind for kind, (_, text, _) in KINDS.items() if "proj_bias" not in text])
def test_a_file_without_the_text_prefix(tmp_path: Path, kind: str) -> None:
    """As open_clip's plain CLIP writes it, inside a training checkpoint."""
    model = source(kind)
    state = {f"module.{name.removeprefix('text.')}": value for name, value in model.state_dict().items()}
    path = write({"epoch": torch.tensor(3), "state_dict": state}, tmp_path / "epoch_3.pt")  # type: ignore[dict-item]
    check(load(kind, path), model, native(kind))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_logit_scale_in_a_vector(tmp_path: Path, kind: str) -> None:
    model = source(kind)
    state = model.state_dict() | {"logit_scale": model.logit_scale[None]}
    check(load(kind, write(state, tmp_path / "x.safetensors")), model, native(kind))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    model = source("eva").half()
    backbone = load("eva", write(model.state_dict(), tmp_path / "x.bin"))
    check(backbone, model.float(), TIMM_SIZE)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["clip", "clipa"])
def test_quick_gelu_reaches_both_towers(tmp_path: Path, kind: str) -> None:
    model = source(kind, quick_gelu=True)
    path = write(model.state_dict(), tmp_path / "x.safetensors")
    check(load(kind, path, quick_gelu=True), model, SIZE)
    images, ids = inputs(SIZE)
    other = load(kind, path)
    for ours, theirs in (
        (other.joint(other(images)), model.encode_image(images, normalize=True)),
        (other.text_encoder("the test").joint(ids), model.encode_text(ids, normalize=True)),
    ):
        assert not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("clip", 25), ("clipa", 25), ("siglip", 112), ("eva", 192), ("mobileclip", 131), ("convnext_mlp", 127)],
)
def test_another_image_size(tmp_path: Path, kind: str, size: int) -> None:
    """Position embeddings are resampled as open_clip and timm do it; convolutions take any size."""
    model = source(kind)
    state = dict(model.state_dict())
    backbone = load(kind, write(state, tmp_path / "x.safetensors"), size)
    if "timm_model_name" in KINDS[kind][0]:
        model.visual.set_input_size(size)
    else:
        model = source(kind, image_size=size)
        resize_pos_embed(state, model)
        model.load_state_dict(state)
    assert backbone.facts.image_size == size
    check(backbone, model, size)


@pytest.mark.parametrize(("kind", "size"), [("clip", 24), ("clip", 4), ("siglip", 100), ("eva", 8)])
def test_an_image_size_that_is_no_multiple(tmp_path: Path, kind: str, size: int) -> None:
    path = write(source(kind).state_dict(), tmp_path / "x.safetensors")
    refusal(lambda: load(kind, path, size), str(size), "multiples of")


@pytest.mark.parametrize("change", ["missing", "extra", "wrong shape"])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("clip", "visual.transformer.resblocks.1.mlp.c_fc.weight"),
        ("siglip", "visual.trunk.blocks.1.attn.qkv.bias"),
        ("siglip", "text.text_projection.bias"),
        ("mobileclip", "visual.trunk.classifier.weight"),
        ("convnext", "visual.head.proj.weight"),
        ("eva", "text.transformer.resblocks.1.ln_2.weight"),
        ("eva", "logit_scale"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, kind: str, key: str, change: str) -> None:
    state = dict(source(kind).state_dict())
    if change == "extra":
        key += "s"
        state[key] = torch.zeros(3)
    else:
        value = state.pop(key)
        if change == "wrong shape":
            state[key] = torch.zeros(2, *value.shape)
    path = write(state, tmp_path / "x.safetensors")
    refusal(lambda: load(kind, path), "do not fit tiny", key)


def test_another_models_weights(tmp_path: Path) -> None:
    path = write(source("siglip").state_dict(), tmp_path / "x.safetensors")
    refusal(lambda: load("eva", path), "do not fit", "more")
    path = write({"cls_token": torch.zeros(1, 1, 14)}, tmp_path / "y.safetensors")
    refusal(lambda: load("clip", path), "do not fit", "is missing")


def test_the_record_of_the_weights_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean, std, kernel and activation belong to the weights, not to the architecture."""
    published = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "quick_gelu": True}
    model = source("clipa", quick_gelu=True)
    path = write(model.state_dict(), tmp_path / "x.safetensors")
    monkeypatch.setattr(from_open_clip, "describe", lambda *_: (about("clipa"), published))
    monkeypatch.setattr(from_open_clip, "Tokenizer", lambda _: Letters())
    backbone = catalogue.load(BackboneConfig(name="open_clip/ViT-B-16/x", weights=str(path)))
    assert backbone.facts == Facts(SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", PATCH)
    assert len(backbone.identity) == 64
    check(backbone, model, SIZE)


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("siglip_vit_b16", "timm/ViT-B-16-SigLIP"),
        ("open_clip/MobileCLIP-S1/datacompdr", "apple/MobileCLIP-S1-OpenCLIP"),
        ("laion_vit_b16", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    ],
)
def test_no_network_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub: str) -> None:
    asked = []

    def unreachable(repository: str, file: str, *, local_files_only: bool) -> str:
        if not local_files_only:
            asked.append((repository, file))
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path))
    place = tmp_path / (name.replace("/", "__") + ".safetensors")
    refusal(lambda: catalogue.locate(BackboneConfig(name=name), fetch=False), "the model hub was not asked", place.name)
    assert not asked
    refusal(
        lambda: catalogue.load(BackboneConfig(name=name)),
        "'open_clip_model.safetensors'",
        f"https://huggingface.co/{hub} ",
        repr(str(place)),
    )
    assert asked == [(hub, from_open_clip.FILES[0])]
    place.write_bytes(b"no weights")  # so the place it names is where it looks
    assert catalogue.locate(BackboneConfig(name=name), fetch=False) == place
    with torch.device("meta"):
        refusal(lambda: catalogue.load(BackboneConfig(name=name)), "cannot be read as weights", place.name)


@pytest.mark.parametrize("absent", [True, False])
def test_another_file_is_asked_for_where_the_hub_has_none(
    absent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client retries for long where there is no network, so the next name would wait as long for nothing."""
    asked = []

    def download(_repository: str, file: str, *, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        asked.append(file)
        if file == "first":
            raise EntryNotFoundError("404") if absent else LocalEntryNotFoundError("no network")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path))
    if absent:
        assert weights.find("name", None, "own/name", ("first", "second")) == tmp_path / "second"
    else:
        refusal(lambda: weights.find("name", None, "own/name", ("first", "second")), "cannot be reached")
    assert asked == (["first", "second"] if absent else ["first"])


def test_the_tokenizer_is_made_when_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's needs a further package: without it the image tower works, and the error says what to do."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with torch.device("meta"):
        backbone = catalogue.load(BackboneConfig(name="siglip_vit_b16"), weights=False)
    text = backbone.text_encoder("the test")
    assert text.sites("q")
    for act in (lambda: text.read(["a cat"]), lambda: text.encode(["a cat"])):
        refusal(act, "tokenizer of open_clip/ViT-B-16-SigLIP", "pip install", "head_init=class_mean")


def test_the_tokenizer_is_open_clips() -> None:
    ids = from_open_clip.Tokenizer("ViT-B-16")(["a cat", "an old dog"])
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-16")(["a cat", "an old dog"]))


def test_text_towers_that_cannot_be_read_are_refused() -> None:
    record = about("clip")
    record["text_cfg"] |= {"pool_type": "none"}
    facts = Facts(SIZE, clip.MEAN, clip.STD)
    refusal(
        lambda: from_open_clip.assemble(BackboneConfig(name="tiny"), record, None, facts, Letters()), "pools by 'none'"
    )


def test_where_the_map_is_linear_features_lie_before_it() -> None:
    """One linear map becomes the projection; a longer way leaves the features in the joint space."""
    widths = {}
    for kind in KINDS:
        backbone = from_open_clip.assemble(
            BackboneConfig(name=kind), about(kind), None, Facts(native(kind), clip.MEAN, clip.STD), Letters()
        )
        projection, bias = backbone.image_projection, backbone.image_bias
        widths[kind] = (None if projection is None else tuple(projection.shape), None if bias is None else len(bias))
        assert not any(isinstance(m, nn.Linear) and m.out_features == JOINT for m in backbone.image.modules()) or (
            kind == "convnext_mlp"
        )
    assert widths == {
        "clip": ((14, 11), None),
        "clipa": ((14, 11), None),
        "siglip": (None, None),
        "mean_pool": (None, None),
        "eva": ((64, 11), 11),
        "mobileclip": ((256, 11), 11),
        "convnext": ((64, 11), None),
        "projected": ((64, 11), 11),
        "convnext_mlp": (None, None),
    }
