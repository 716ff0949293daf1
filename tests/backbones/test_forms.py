"""Weights in forms that are not taken: each is told what it seems to be, and which form or backbone is."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save, save_file

from liftplus.backbones import catalogue, counterparts
from liftplus.backbones.base import BackboneConfig
from liftplus.errors import UserError
from liftplus.names import full_backbone

NAME = "timm/test_vit.r160_in1k"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346345912\n"


def refused(path: Path, name: str = NAME) -> str:
    with pytest.raises(UserError) as error:
        catalogue.load(BackboneConfig(name=name, weights=str(path)))
    said = str(error.value)
    assert "\n" not in said and len(said) < 900 and repr(str(path)) in said
    return said


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in names:
            made.writestr(name, b"pt2")
    return out.getvalue()


def arrays() -> bytes:
    out = io.BytesIO()
    np.savez(out, **{"Transformer/encoderblock_0/bias": np.zeros(3)})
    return out.getvalue()


FILES: list[tuple[str, bytes, str]] = [
    ("empty.safetensors", b"", "It is empty. Fetch"),
    ("empty.pth", b"", "It is empty. Fetch"),
    ("pointer.safetensors", LFS, "pointer of Git LFS in place of the weights. Fetch them: git lfs pull"),
    ("pointer.bin", LFS, "pointer of Git LFS"),
    ("page.safetensors", b"\n<!DOCTYPE html><html></html>", "a web page in place of the weights"),
    ("page.pth", b"<html><head>Not found</head></html>", "a web page in place of the weights"),
    ("m.onnx", b"anything", "ONNX, a graph for prediction"),
    ("m.pth", b"\x08\x08\x12\x07pytorch\x1a\x052.8.0", "ONNX, a graph for prediction"),
    ("m.pt2", archive("m/archive_format", "m/version"), "a program of torch.export"),
    ("m.gguf", b"GGUF\x03\0\0\0", "GGUF, a form that liftplus does not read"),
    ("m.bin", b"\x89HDF\r\n\x1a\n", "HDF5 of Keras or TensorFlow"),
    ("m.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ("flax_model.msgpack", b"\x81\xa1a\x00", "Flax's msgpack"),
    ("B_16.npz", arrays(), "NumPy's archive"),
    ("model.safetensors.index.json", b"{}", "Give the weight file, or the folder with both"),
    ("renamed.safetensors", archive("archive/data.pkl"), "an archive of PyTorch's. Rename it"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES, ids=[name for name, _, _ in FILES])
def test_files_of_other_formats(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    found = refused(tmp_path / name)
    assert said in found and "damaged" not in found


def test_what_ends_in_another_way_is_read_by_its_content(tmp_path: Path) -> None:
    state = timm.create_model("test_vit.r160_in1k", num_classes=0).state_dict()
    (tmp_path / "4d7a21").write_bytes(save(state))
    found = catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path / "4d7a21")))
    assert torch.equal(found.image.state_dict()["cls_token"], state["cls_token"])


FOLDERS: list[tuple[str, list[str], str]] = [
    ("adapter", ["adapter_config.json", "adapter_model.safetensors"], "an adapter of peft. Merge that"),
    ("run", ["config.json", "log.jsonl", "metrics.json"], "a run of liftplus, not a backbone"),
    ("models--facebook--dinov2-base", ["snapshots/f9e4/config.json"], "hf/facebook/dinov2-base, or give what is in"),
    ("models--timm--vit_tiny_patch16_224.augreg_in21k", ["snapshots/a/x"], "as timm/vit_tiny_patch16_224.augreg_in21k"),
    ("sharded", ["__0_0.distcp", ".metadata"], "distributed checkpoint of PyTorch"),
    ("keras", ["config.json", "tf_model.h5"], "Beside config.json it has only tf_model.h5. Put model.safetensors"),
    ("bare", ["config.json"], "Beside config.json it has no weights"),
    ("unconfigured", ["model.safetensors"], "Beside model.safetensors, config.json is missing. Put it there, or give"),
    ("unconfigured_bin", ["pytorch_model.bin", "vocab.txt"], "Beside pytorch_model.bin, config.json is missing"),
    ("two", ["a.pth", "b.pt", "notes.txt"], "Give a file. In it are a.pth, b.pt."),
    ("text", ["notes.txt"], "It has no weights. Give a file that ends in .safetensors"),
    ("nothing", [], "It is empty. Give a file"),
]


@pytest.mark.parametrize(("name", "files", "said"), FOLDERS, ids=[name for name, _, _ in FOLDERS])
def test_folders_without_a_weight_file(name: str, files: list[str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    assert said in refused(folder)


def test_parts_of_weights(tmp_path: Path) -> None:
    """The index tells which part is missing; a part alone is told to be one."""
    part = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 3)}, part)
    index = {"weight_map": {"a": part.name, "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    for given in (tmp_path, part):
        with pytest.raises(UserError, match=r"split over several files\..*00002-of-00002.* is missing.*Save them as"):
            catalogue.load(BackboneConfig(name=NAME, weights=str(given)))


def tower(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base_patch14_dinov2", "a DINOv2 in timm's or its authors' names, of width 768 with 12 blocks"),
        ("vit_large_patch14_reg4_dinov2", "a DINOv2 in timm's"),
        ("vit_small_patch16_dinov3", "a DINOv3 in timm's"),
        ("vit_small_plus_patch16_dinov3", "a DINOv3 in timm's"),
        ("vit_tiny_patch16_224", "a ViT in timm's or its authors' names, of width 192 with 12 blocks"),
        ("vit_large_patch16_224", "a ViT in timm's"),
        ("beit_base_patch16_224", "a BEiT in timm's"),
    ],
)
def test_which_tower_of_timm_a_file_is(name: str, said: str) -> None:
    found = counterparts.described(tower(name))
    assert found is not None and said in found and f"It fits backbone timm/{name}." in found


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        (
            "ViT-B-32",
            "It fits backbone open_clip/ViT-B-32-quickgelu/openai if it was trained with QuickGELU, as OpenAI's",
        ),
        ("ViT-L-14-336", "It fits backbone open_clip/ViT-L-14-336-quickgelu/openai"),
        ("ViT-H-14", "It fits backbone open_clip/ViT-H-14/"),
        ("ViT-B-16-SigLIP-384", "It fits backbone open_clip/ViT-B-16-SigLIP-384/webli"),
    ],
)
def test_which_dual_encoder_a_file_is(arch: str, said: str) -> None:
    about = open_clip.get_model_config(arch)
    with torch.device("meta"):
        made = open_clip.CustomTextCLIP if "SigLIP" in arch else open_clip.CLIP
        state = made(**{key: about[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}).state_dict()
    found = counterparts.described(state)
    assert found is not None and "in open_clip's or OpenAI's names" in found and said in found
    if arch == "ViT-B-32":
        assert ", else open_clip/ViT-B-32/laion2b" in found
        only = counterparts.described(state | {"input_resolution": torch.tensor(224)})
        assert only is not None and only.endswith("open_clip/ViT-B-32-quickgelu/openai.")


NAMES: list[tuple[list[str], str]] = [
    (["deit.embeddings.cls_token", "classifier.weight"], "names of the library transformers"),
    (["swinv2.embeddings.norm.bias"], "names of the library transformers"),
    (["embedder.embedder.convolution.weight"], "names of the library transformers"),
    (["stages.0.layers.0.depthwise_conv.weight"], "names of the library transformers"),
    (["class_token", "conv_proj.weight"], "torchvision's names of a ViT"),
    (["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.bias"], "torchvision's names of a ResNet"),
    (["stages.0.blocks.0.conv_dw.weight"], "timm's names of an image tower"),
    (["exp_avg", "step"], "the state of an optimiser"),
    (["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.SCB"], "seem to be quantised"),
]


@pytest.mark.parametrize(("names", "said"), NAMES, ids=[said for _, said in NAMES])
def test_what_names_tell(names: list[str], said: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(3) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said) as told:
        catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path / "x.safetensors")))
    assert "is missing; " in str(told.value) and " more. The file's names begin with" in str(told.value)


def test_config_json_beside_a_file_tells_more(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "model.safetensors")

    def said(about: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(about))
        with pytest.raises(UserError) as told:
            catalogue.load(BackboneConfig(name=NAME, weights=str(tmp_path)))
        return str(told.value)

    assert "has the model_type 'deit'. liftplus takes transformers' CLIP" in said({"model_type": "deit"})
    own = {"architecture": "resnet18", "pretrained_cfg": {"tag": "a1_in1k"}}
    assert "names timm/resnet18.a1_in1k. Name that as the backbone" in said(own)
    own["pretrained_cfg"] = {}
    assert "names timm/resnet18, with a tag" in said(own)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights/vit.safetensors", "give the weights as backbone.weights=weights/vit.safetensors"),
        (".", "it is a file or folder"),
        ("facebook/dinov2-base", "write hf/facebook/dinov2-base for a model of transformers"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "write timm/vit_tiny_patch16_224.augreg_in21k"),
        ("vit_base_patch16_224.augreg_in21k", "write timm/vit_base_patch16_224.augreg_in21k"),
        ("resnet50d", "Did you mean 'resnet50'"),
        ("ViT-B/16", "Full names also work"),
    ],
)
def test_names_that_are_paths_or_another_librarys(name: str, said: str) -> None:
    with pytest.raises(UserError, match="Unknown backbone") as told:
        full_backbone(name)
    assert said in str(told.value)
