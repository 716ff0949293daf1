"""CLIP's weight files in every form they come in, against open_clip's own model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_shape import shape_of
from liftplus.backbones import clip
from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.text import text_features
from liftplus.errors import UserError

WIDTH, LAYERS, PATCH, GRID, JOINT = 64, 3, 5, 3, 11
TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS, CONTEXT, VOCABULARY = 14, 2, 2, 13, 53
SIZE = PATCH * GRID
RESNET = {"layers": [1, 2, 1, 1], "width": 4, "head_width": 64, "image_size": 64}
VIT = {"layers": LAYERS, "width": WIDTH, "patch_size": PATCH, "head_width": 64, "image_size": SIZE}


def at(size: int) -> Facts:
    return Facts(size, clip.MEAN, clip.STD, patch_size=PATCH)


def source(*, vit: bool = True, quick_gelu: bool = True) -> open_clip.CLIP:
    """A random CLIP as open_clip builds it."""
    torch.manual_seed(5)
    text = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": TEXT_WIDTH,
        "heads": TEXT_HEADS,
        "layers": TEXT_LAYERS,
    }
    model = open_clip.CLIP(embed_dim=JOINT, vision_cfg=VIT if vit else RESNET, text_cfg=text, quick_gelu=quick_gelu)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for parameter in model.parameters():  # away from the zeros and ones of a fresh model
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


class _Named(nn.Module):
    """Carries tensors under dotted names, so that its TorchScript archive has OpenAI's state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def openai_archive(state: dict[str, Tensor], path: Path) -> Path:
    """As OpenAI published them: a TorchScript archive, weights in fp16, three sizes as extra tensors."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    halves |= {
        "input_resolution": torch.tensor(SIZE),
        "context_length": torch.tensor(CONTEXT),
        "vocab_size": torch.tensor(VOCABULARY),
    }
    torch.jit.save(torch.jit.trace(_Named(halves), torch.zeros(1)), str(path))
    return path


def training_checkpoint(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


def plain_pickle(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    return path


Writer = Callable[[dict[str, Tensor], Path], Path]
FORMS: dict[str, tuple[Writer, str]] = {
    "openai": (openai_archive, "a.pt"),
    "training": (training_checkpoint, "b.pt"),
    "bin": (plain_pickle, "c.bin"),
    "safetensors": (safetensors, "d.safetensors"),
}


def load(path: Path, **options: Any) -> Backbone:
    state = clip.read_state(path)
    quick_gelu = options.pop("quick_gelu", True)
    shape = shape_of(state, text_heads=TEXT_HEADS, quick_gelu=quick_gelu)
    return clip.clip_backbone("tiny", shape, state, **options)


def inputs(size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCABULARY - 1, (4, CONTEXT), generator=generator)
    for row, end in enumerate((3, 5, 8, CONTEXT - 1)):
        ids[row, end], ids[row, end + 1 :] = VOCABULARY - 1, 0
    return torch.randn(4, 3, size, size, generator=generator), ids


def check(backbone: Backbone, model: open_clip.CLIP, size: int) -> None:
    """Features before and after the projections; unit vectors, as open_clip's encoders with normalize=True."""
    images, ids = inputs(size)
    text = backbone.text_encoder("the test")
    pairs = [
        (backbone.joint(backbone(images)), model.encode_image(images, normalize=True)),
        (text.joint(ids), model.encode_text(ids, normalize=True)),
        (text_features(text.tower, ids) @ text.projection, model.encode_text(ids)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("vit", [True, False])
def test_features_equal_open_clips(tmp_path: Path, form: str, quick_gelu: bool, vit: bool) -> None:
    model = source(vit=vit, quick_gelu=quick_gelu)
    write, name = FORMS[form]
    path = write(model.state_dict(), tmp_path / name)
    if form == "openai":  # fp16 on disk: the comparison is with the model rounded the same way
        model.load_state_dict({k: v.half().to(v.dtype) for k, v in model.state_dict().items()})
    backbone = load(path, quick_gelu=quick_gelu)
    assert backbone.text is not None
    assert backbone.text.logit_scale == pytest.approx(float(model.logit_scale))
    check(backbone, model, SIZE if vit else 64)


def test_the_activation_matters(tmp_path: Path) -> None:
    """The same tensors load into either activation without a word; features tell them apart."""
    path = safetensors(source().state_dict(), tmp_path / "x.safetensors")
    images, _ = inputs()
    quick, exact = (load(path, quick_gelu=value)(images) for value in (True, False))
    assert not torch.allclose(quick, exact, rtol=1e-4, atol=1e-4)


def _vision_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's custom text towers carry a prefix "text."."""
    return {name if name.startswith(("visual.", "logit_scale")) else f"text.{name}": v for name, v in state.items()}


def test_text_prefix_is_removed(tmp_path: Path) -> None:
    model = source()
    check(load(safetensors(_vision_prefix(model.state_dict()), tmp_path / "x.safetensors")), model, SIZE)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        clip.read_state(tmp_path / "absent.pt")
    assert "absent.pt" in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("form", sorted(FORMS))
def test_truncated_file(tmp_path: Path, form: str) -> None:
    write, name = FORMS[form]
    path = write(source().state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _one_sentence(path, "cannot be read as weights")


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Any, Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    save({"state_dict": {"visual.proj": _Harm()}}, path)
    _one_sentence(path, "cannot be read as weights")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, torch.zeros(3)], ids=["list", "number", "tensor"])
def test_a_file_of_something_else(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    _one_sentence(path, "cannot be read as weights")


def _one_sentence(path: Path, text: str) -> None:
    with pytest.raises(UserError, match=text) as error:
        clip.read_state(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "key", ["visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.proj", "ln_final.bias", "logit_scale"]
)
@pytest.mark.parametrize("change", ["missing", "wrong shape"])
def test_weights_that_do_not_fit(key: str, change: str) -> None:
    state = dict(source().state_dict())
    shape = shape_of(state, text_heads=TEXT_HEADS)
    value = state.pop(key)
    if change == "wrong shape":
        state[key] = torch.zeros(2, *value.shape)
    with pytest.raises(UserError, match="do not fit"):
        clip.clip_backbone("tiny", shape, state)


def test_a_tensor_too_many() -> None:
    state = dict(source().state_dict())
    shape = shape_of(state, text_heads=TEXT_HEADS)
    with pytest.raises(UserError, match="not expected"):
        clip.clip_backbone("tiny", shape, state | {"visual.extra": torch.zeros(1)})


@pytest.mark.parametrize("gone", ["visual.", "transformer.", "ln_final."])
def test_weights_without_a_tower(gone: str) -> None:
    state = dict(source().state_dict())
    shape = shape_of(state, text_heads=TEXT_HEADS)
    with pytest.raises(UserError, match=r"do not fit .* is missing"):
        clip.clip_backbone("tiny", shape, {name: v for name, v in state.items() if not name.startswith(gone)})


@pytest.mark.parametrize("vit", [True, False])
def test_another_image_size_resamples_positions(vit: bool) -> None:
    model = source(vit=vit)
    state = dict(model.state_dict())
    shape = shape_of(state, text_heads=TEXT_HEADS)
    size = PATCH * (GRID + 2) if vit else 96
    backbone = clip.clip_backbone("tiny", shape, state, facts=at(size))
    assert backbone.facts.image_size == size
    assert backbone(torch.zeros(2, 3, size, size)).isfinite().all()
    native = clip.clip_backbone("tiny", shape, state)
    images, _ = inputs(shape.image_size)
    torch.testing.assert_close(native.joint(native(images)), model.encode_image(images, normalize=True))


def test_constant_positions_stay_constant_when_resampled() -> None:
    state = dict(source().state_dict())
    state["visual.positional_embedding"] = torch.cat([torch.zeros(1, WIDTH), torch.full((GRID**2, WIDTH), 0.7)])
    shape = shape_of(state, text_heads=TEXT_HEADS)
    resampled = clip.clip_backbone("tiny", shape, state, facts=at(PATCH * 7)).image.pos_embed
    torch.testing.assert_close(resampled[:, 1:], torch.full((1, 49, WIDTH), 0.7))
    assert (resampled[:, 0] == 0).all()
