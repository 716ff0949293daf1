"""Files as people have them: wrapped by compilers and training scripts, with several tables, of another library."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from liftplus import config
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.errors import UserError
from liftplus.runs import opening

NAME = "timm/test_vit.r160_in1k"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(3)
    model = timm.create_model("test_vit.r160_in1k", num_classes=0)
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


def load(content: Any, folder: Path) -> Backbone:
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return catalogue.load(BackboneConfig(name=NAME, weights=str(path)))


def below(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def within(state: State, mark: str) -> State:
    return {name.replace("blocks.0.", f"blocks.0.{mark}"): value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "compiled": lambda state: below(state, "_orig_mod."),
    "compiled in DDP": lambda state: {"state_dict": below(state, "module._orig_mod.")},
    "a compiled block": lambda state: within(state, "_orig_mod."),
    "FSDP": lambda state: within(state, "_fsdp_wrapped_module."),
    "Lightning": lambda state: {"state_dict": below(state, "model."), "epoch": 3, "pytorch-lightning_version": "2.5"},
    "a detector's backbone": lambda state: {"model": below(state, "backbone.")},
    "Lightning around a backbone": lambda state: {"state_dict": below(state, "model.backbone.")},
    "transformers around timm": lambda state: below(state, "timm_model."),
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "the only table": lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": []}, "acc": 91.0},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_training_puts_around_is_removed(kind: str, state: State, tmp_path: Path) -> None:
    found = load(WRAPPED[kind](state), tmp_path)
    own = found.image.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value) for name, value in state.items())
    assert found.notes == ()


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_which_of_raw_and_averaged_weights_was_taken(key: str, state: State, tmp_path: Path) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    found = load({"state_dict": state, key: averaged}, tmp_path)
    assert torch.equal(found.image.state_dict()["cls_token"], state["cls_token"])
    (note,) = found.notes
    assert repr(key) in note and "'state_dict', the raw ones, which were taken" in note
    code = (
        note.rpartition("For the others: ")[2].removesuffix(".").replace("checkpoint.pth", f"{tmp_path}/checkpoint.pth")
    )
    exec(code.replace("ema.pth", f"{tmp_path}/ema.pth"), {"torch": torch})
    again = catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path / "ema.pth")))
    assert torch.equal(again.image.state_dict()["cls_token"], averaged["cls_token"])


def refused(content: Any, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load(content, folder)
    said = str(error.value)
    assert "\n" not in said and len(said) < 900
    return said


def test_dinos_student_and_teacher(state: State, tmp_path: Path) -> None:
    """Refused, with a line that makes a file which is taken."""
    teacher = below(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)}
    said = refused({"student": below(teacher, "module."), "teacher": teacher, "epoch": 3}, tmp_path)
    assert "'student', 'teacher'" in said and "DINO" in said
    code = said.partition("Save the one alone: ")[2].removesuffix(".")
    code = code.replace("checkpoint.pth", f"{tmp_path}/checkpoint.pth").replace(
        "weights.pth", f"{tmp_path}/weights.pth"
    )
    exec(code, {"torch": torch})
    found = catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path / "weights.pth")))
    assert torch.equal(found.image.state_dict()["cls_token"], state["cls_token"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"args": argparse.Namespace(lr=1), "state_dict": {"a": torch.zeros(1)}}, "argparse.Namespace"),
        ({"epoch": 3, "loss": 0.5}, "holds no table of tensors, but 'epoch', 'loss'"),
        ([torch.zeros(1)], "it holds a list"),
    ],
)
def test_files_without_a_table_that_can_be_read(content: Any, said: str, tmp_path: Path) -> None:
    found = refused(content, tmp_path)
    assert said in found
    assert ("weights_only=False)['state_dict']" in found) == ("Namespace" in said)
    assert ("or .state_dict()" in found) == ("Namespace" in said)
    assert "damaged" not in found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["vision_model.encoder.layers.0.mlp.fc1.weight", "text_model.x"], "names of the library transformers"),
        (["embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"], "names of the library transf"),
        (["vit.embeddings.cls_token", "classifier.weight"], "names of the library transformers"),
        (["model.cls_token", "criterion.weight"], "Only some of its names begin with 'model.'"),
        (["tuners.lora.0.up", "head.weight"], "liftplus learned in a run"),
        (["blocks.0.attn.qkv.base_layer.weight", "blocks.0.attn.qkv.lora_A.default.weight"], "merge_and_unload"),
        (["visual.conv1.weight", "token_embedding.weight"], "open_clip/ARCH/TAG"),
        (["conv1.weight", "bn1.weight"], "Give the file that belongs to this backbone"),
    ],
)
@pytest.mark.parametrize("backbone", [NAME, "mini_clip", "open_clip/ViT-B-32/laion2b_s34b_b79k"])
def test_another_librarys_file(backbone: str, names: list[str], said: str, tmp_path: Path) -> None:
    """The file's own first names are shown, and what it seems to be; names are never cut in the middle."""
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(3) for name in names}, path)
    with torch.device("meta"), pytest.raises(UserError) as error:
        catalogue.load(BackboneConfig(name=backbone, weights=str(path)))
    found = str(error.value)
    assert "The file's names begin with" in found and repr(sorted(names)[0]) in found
    if not (said.startswith("open_clip/") and backbone != NAME):
        assert said in found


def test_timms_tower_for_a_dual_encoder(state: State, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "x.safetensors")
    with torch.device("meta"), pytest.raises(UserError, match=r"ViT in timm's .* of width 64 with .*timm/ARCH\.TAG"):
        catalogue.load(BackboneConfig(name="clip_vit_b32", weights=str(tmp_path / "x.safetensors")))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"is a folder and no weight file.*Beside model\.safetensors, config\.json is missing"
    ):
        catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path)))


def test_a_run_tells_it(state: State, tmp_path: Path, photos: Path) -> None:
    """What is noted about weights stands among the notes of the run."""
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "c.pth")
    chosen = config.resolve(data=str(photos), backbone=NAME, overrides=[f"weights={tmp_path / 'c.pth'}"])

    class Model:
        backbone = catalogue.load(chosen.backbone)
        notes = ()

    class Data:
        notes, splits, name = (), {"test": ()}, "photos"

    assert any("'state_dict_ema'" in note for note in opening.notes(chosen, Data, Model))  # type: ignore[arg-type]
