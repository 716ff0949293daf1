"""ImageNet-LT's real layout in miniature, with random weights where the hub's would lie, through to a verdict."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from liftplus.backbones import from_open_clip, from_timm, weights

from ..conftest import COLOURS, Command, picture

NAME = "imagenet_lt/clip_vit_b16/lift+"
QUICK = ("epochs=1", "train.batch_size=8", "evaluation.batch_size=4", "workers=0", "device=cpu", "precision=fp32")
ARCH = "ViT-B-16-quickgelu"
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
LAYOUT = ("ImageNet_LT_train.txt", "classnames.txt", "train/", "val/")


def miniature(root: Path) -> Path:
    """Lists, class names and small JPEGs as ImageNet-LT's: three classes with 6, 3 and 2 training pictures."""
    ids = ("n01440764", "n01443537", "n01484850")
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, (wnid, colour) in enumerate(zip(ids, COLOURS.values(), strict=True)):
        for number in range((6, 3, 2)[label]):
            lines["train"].append(f"train/{wnid}/{wnid}_{number}.JPEG {label}")
        lines["val"].append(f"train/{wnid}/{wnid}_{90 + label}.JPEG {label}")
        lines["test"] += [f"val/{wnid}/ILSVRC2012_val_{10 * label + k:08}.JPEG {label}" for k in range(2)]
        for line in (line for part in lines.values() for line in part if f"/{wnid}/" in line):
            path = root / line.rpartition(" ")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(colour, zlib.crc32(path.name.encode()) % 1000).save(path, format="JPEG")
    for split, rows in lines.items():
        (root / f"ImageNet_LT_{split}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    names = ("tench", "goldfish", "great white shark")
    text = "".join(f"{wnid} {name}\n" for wnid, name in zip(ids, names, strict=True))
    (root / "classnames.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of a small CLIP under the papers' backbone's name, put by hand where the errors tell."""
    real = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda arch: SMALL if arch == ARCH else real(arch))
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    state = open_clip.CLIP(**SMALL).state_dict()
    save_file({name: value.contiguous() for name, value in state.items() if name != "attn_mask"}, by_hand())


def by_hand() -> Path:
    place = weights.put_by_hand("clip_vit_b16")
    return place.with_name(place.name + ".safetensors")


def judged(command: Command) -> None:
    """Run the papers' main experiment on the miniature, once, and read its verdict."""
    ended = command("reproduce", "run", NAME, "--data-root", "data", "--out", "r", "--seeds", 1, *QUICK)
    assert ended.code == 0, ended.err
    found = json.loads(command("reproduce", "status", NAME, "--out", "r", "--json").out)
    (result,) = found["results"]
    figures = {one["key"]: one for one in result["figures"]}
    assert figures["overall"]["mean"] is not None and figures["overall"]["low"] == 78.3
    assert figures["overall"]["verdict"] in ("reached", "above", "below")
    assert figures["many"]["verdict"] == "not run", "no class of the miniature has over 100 pictures"
    assert result["differs"] == [
        "epochs=1",
        "train.batch_size=8",
        "3 classes in place of 1,000",
        "11 training images in place of 115,846",
        "6 test images in place of 50,000",
    ]
    about = json.loads(next(Path("r").rglob("config.json")).read_text(encoding="utf-8"))
    assert about["data"]["train_counts"] == [6, 3, 2]
    table = next(Path("r").rglob("per_class.csv")).read_text(encoding="utf-8")
    assert "great white shark" in table and "n0148" not in table


@pytest.mark.usefixtures("small_clip")
def test_through_to_a_verdict(command: Command, tmp_path: Path) -> None:
    miniature(tmp_path / "data" / "imagenet_lt")
    judged(command)


@pytest.mark.slow
def test_with_the_real_architecture(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    state = open_clip.create_model(ARCH, precision="fp16").state_dict()
    save_file({name: value.contiguous() for name, value in state.items() if name != "attn_mask"}, by_hand())
    miniature(tmp_path / "data" / "imagenet_lt")
    judged(command)


def test_all_that_is_missing_is_told_at_once(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for module in (from_open_clip, from_timm):
        monkeypatch.setattr(module, "read_tensors", lambda path: pytest.fail("weights were read"))
    ended = command("reproduce", "run", NAME, "inat2018/vit_b16_in21k/lift+", "--out", "r")
    assert ended.code == 2 and not (tmp_path / "r").exists()
    for part in (*LAYOUT, "data/imagenet_lt", "train2018.json", "--data-root DIR", "image-net.org", "inat_comp"):
        assert part in ended.err, part
    assert "clip_vit_b16.safetensors" in ended.err and "vit_b16_in21k.safetensors" in ended.err
    root = miniature(tmp_path / "elsewhere")
    (root / "classnames.txt").unlink()
    ended = command("reproduce", "run", NAME, "--out", "r", f"data.root={root}")
    assert ended.code == 2 and "which lacks classnames.txt. Put there" in ended.err
    ended = command("reproduce", "run", "imagenet_lt/clip_vit_b16", "places_lt/clip_vit_b16/lift+", f"data.root={root}")
    assert ended.code == 2 and "several data sets" in ended.err and "imagenet_lt, places_lt" in ended.err
