"""hf/OWNER/NAME: where a model of transformers is found, and which architecture of ours equals it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import liftplus
from conftest import Command
from liftplus.backbones import catalogue, counterparts, from_hub, transformers_config
from liftplus.backbones.base import BackboneConfig
from liftplus.errors import UserError
from liftplus.report import content
from liftplus.studies import compare

transformers = pytest.importorskip("transformers")
slim = pytest.importorskip("slim")


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "published" not in request.node.name:
        slim.thin_libraries(monkeypatch)


def in_cache(root: Path, repository: str, source: Path) -> None:
    """A repository as the hub's client keeps it."""
    place = root / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    source.rename(place / "snapshots" / ("0" * 40))


@pytest.mark.parametrize("kind", slim.KINDS)
def test_a_model_in_the_hubs_cache(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    slim.saved(kind, tmp_path / "model")
    expected = slim.load(tmp_path / "model", kind, image_size=518 if "dinov2" in kind else 224)
    in_cache(tmp_path / "hub", f"own/{kind}", tmp_path / "model")
    config = BackboneConfig(name=f"hf/own/{kind}")
    found = catalogue.load(config)
    assert found.name == config.name and found.identity == expected.identity and found.notes == expected.notes
    own, wanted = found.state_dict(), expected.state_dict()
    assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own)
    assert found.facts.image_size == expected.facts.image_size and not found.facts.saw_imagenet
    assert catalogue.locate(config, fetch=False) is not None
    assert catalogue.traits(config.name).reads_text == (kind in ("clip", "siglip"))


def test_a_model_put_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path))
    slim.saved("vit", tmp_path / "hf__own__vit-ft-in1k")
    slim.changed(tmp_path / "hf__own__vit-ft-in1k", image_size=224)
    found = catalogue.load(BackboneConfig(name="hf/own/vit-ft-in1k"))
    assert found.facts.saw_imagenet and found.label == "backbone 'hf/own/vit-ft-in1k'"
    control = catalogue.load(BackboneConfig(name="hf/own/vit-ft-in1k", pretrained=False))
    assert control.identity != found.identity and control.dim == found.dim


def test_a_folder_that_is_given_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a run's model has moved: liftplus eval RUN weights=FOLDER."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    slim.saved("vit", tmp_path / "moved")
    found = catalogue.load(BackboneConfig(name="hf/own/moved", weights=str(tmp_path / "moved")))
    assert found.identity == slim.load(tmp_path / "moved", "vit").identity
    assert catalogue.traits("hf/own/moved", str(tmp_path / "moved")).kinds == found.kinds()


def test_everything_takes_the_folder_that_is_given(
    photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and Python, from the presets to the command in the report; the hub is never asked."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    slim.saved("vit", tmp_path / "moved")
    slim.saved("siglip", tmp_path / "both")
    name, given, words = "hf/own/given", "weights=moved", ["epochs=1", "tte=false", "precision=fp32"]
    for folder, start in (("moved", "class_mean"), ("both", "semantic")):
        shown = command("info", "--backbone", name, f"weights={folder}", "num_classes=4", "--json")
        assert shown.code == 0, shown.err
        assert json.loads(shown.out)["config"]["head_init"]["name"] == start

    ended = command("train", "--data", photos, "--backbone", name, given, *words, "--out", "run")
    assert ended.code == 0, ended.err
    line = content.alone(json.loads((tmp_path / "run" / "config.json").read_text())["config"])
    assert line is not None and line.count("weights=moved") == 1
    fitted = liftplus.fit(photos, name, weights=tmp_path / "moved", epochs=0)
    assert fitted.config.backbone.weights == str(tmp_path / "moved")

    asked = compare.Comparison(str(photos), name, tuple(compare.entries("closed_form,lift+")), overrides=(given,))
    assert [asked.config(entry, 0).train.epochs > 0 for entry in asked.entries] == [False, True]


def unreachable(*_given: Any, local_files_only: bool = False, **_options: Any) -> str:
    raise ConnectionError("no route")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf/own/unknown", "put them into the folder"),
        ("hf/unknown", "write hf/OWNER/NAME"),
        ("hf/a/b/c", "write hf/OWNER/NAME"),
        ("hf/../..", "put them into the folder"),
    ],
)
def test_offline_a_name_is_refused(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for act in (catalogue.load, catalogue.without_weights, catalogue.locate):
        with pytest.raises(UserError, match=said) as error:
            act(BackboneConfig(name=name))
        assert "\n" not in str(error.value)


def test_a_model_without_counterpart_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path))
    folder = tmp_path / "hf__own__odd"
    slim.saved("vit", folder)
    for values, said in (
        ({"hidden_size": 40}, "a vit of width 40 with 2 blocks"),
        ({"model_type": None, "architecture": "vit"}, "named timm/ARCH.TAG"),
    ):
        slim.changed(folder, **values)
        with pytest.raises(UserError, match=said):
            from_hub.same(BackboneConfig(name="hf/own/odd"))


# The libraries as they are


def about(whole: dict[str, Any], folder: Path) -> transformers_config.About:
    (folder / "config.json").write_text(json.dumps(whole))
    found = transformers_config.read(folder)
    assert found is not None
    return found


CLIP_L = {
    "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    | {"intermediate_size": 4096},
    "projection_dim": 768,
}
SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
PUBLISHED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "clip"}, "open_clip/ViT-B-32-quickgelu/openai"),
    ({"model_type": "clip", "vision_config": {"patch_size": 16}}, "open_clip/ViT-B-16-quickgelu/openai"),
    ({"model_type": "clip", "vision_config_dict": {"patch_size": 16}}, "open_clip/ViT-B-16-quickgelu/openai"),
    ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, "open_clip/ViT-B-32/laion"),
    ({"model_type": "clip"} | CLIP_L, "open_clip/ViT-L-14-quickgelu/openai"),
    (
        {"model_type": "clip"} | CLIP_L | {"vision_config": CLIP_L["vision_config"] | {"image_size": 336}},  # type: ignore[operator]
        "open_clip/ViT-L-14-336-quickgelu/openai",
    ),
    ({"model_type": "siglip"}, "open_clip/ViT-B-16-SigLIP/webli"),
    ({"model_type": "siglip", "vision_config": {"image_size": 512}}, "open_clip/ViT-B-16-SigLIP-512/webli"),
    (
        {"model_type": "siglip", "text_config": {"vocab_size": 256000}, "vision_config": {"image_size": 224}},
        "open_clip/ViT-B-16-SigLIP2/webli",
    ),
    (
        {
            "model_type": "siglip",
            "text_config": SO400M,
            "vision_config": SO400M | {"patch_size": 14, "image_size": 384},
        },
        "open_clip/ViT-SO400M-14-SigLIP-384/webli",
    ),
    ({"model_type": "dinov2", "image_size": 518}, "timm/vit_base_patch14_dinov2.lvd142m"),
    (
        {"model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24},
        "timm/vit_giant_patch14_dinov2.lvd142m",
    ),
    ({"model_type": "dinov2_with_registers", "patch_size": 14}, "timm/vit_base_patch14_reg4_dinov2.lvd142m"),
    ({"model_type": "dinov3_vit"}, "timm/vit_small_patch16_dinov3_qkvb.lvd1689m"),
    ({"model_type": "dinov3_vit", "use_gated_mlp": True}, "timm/vit_small_plus_patch16_dinov3_qkvb.lvd1689m"),
    ({"model_type": "vit"}, "timm/vit_base_patch16_224.augreg_in21k"),
    ({"model_type": "vit", "patch_size": 32}, "timm/vit_base_patch32_224.augreg_in21k"),
    ({"model_type": "beit"}, "timm/beit_base_patch16_224.in22k_ft_in22k"),
]


def test_published_models_have_their_counterpart(tmp_path: Path) -> None:
    """Of the same sizes, activation and input, by the settings that the hub's repositories state."""
    for whole, name in PUBLISHED:
        found = counterparts.counterpart(about(whole, tmp_path))
        assert found is not None and found.startswith(name), (whole, found)


def test_published_defaults_are_transformers_own() -> None:
    """What a config.json leaves out."""
    for kind, own in transformers_config.DEFAULTS.items():
        if kind in transformers.CONFIG_MAPPING:
            config = transformers.CONFIG_MAPPING[kind]()
            # Early versions lack the name of what they always do.
            theirs = {name: getattr(config, name, own[name]) for name in own}
            if kind == "dinov2" and theirs["patch_size"] == 16 and int(transformers.__version__.split(".")[0]) < 5:
                theirs["patch_size"] = 14  # its default then; its weights have another shape, so loading refuses them
            assert theirs == own, kind
