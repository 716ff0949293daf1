"""docs/backbones.md: its table is what the code says, and its names exist."""

from __future__ import annotations

import re
import textwrap

import pytest

from doc_pages import page
from liftplus import describe, registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.weights import put_by_hand, weight_folders
from liftplus.errors import UserError
from zoo import ZOO, backbone_of

BACKBONES = page("backbones.md")

# How docs/backbones.md calls a family, a name that liftplus knows, and its small model in zoo.py, if there is one.
FAMILIES = [
    ("CLIP ViT (OpenAI, LAION, DataComp, MetaCLIP, DFN)", "clip_vit_b16", "clip_vit"),
    ("CLIP ResNet", "clip_rn50", "clip_resnet"),
    ("SigLIP with its text tower", "siglip2_vit_b16", None),
    ("EVA-02-CLIP", "eva02_clip_b16", None),
    ("CLIPA, open_clip's own ViT", "open_clip/ViT-L-14-CLIPA/datacomp1b", "open_clip_vit"),
    ("CLIP with a convolutional or hybrid tower", "laion_convnext_base", "open_clip_timm"),
    ("ViT (DINOv2, DeiT-III, MAE, AugReg)", "dinov2_reg_b14", "timm_vit"),
    ("ViT without class token", "timm/vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "timm_mean_pool"),
    ("SigLIP's image tower alone", "timm/vit_base_patch16_siglip_224.webli", "siglip"),
    ("EVA-02", "eva02_b14", "eva"),
    ("DINOv3 ViT", "dinov3_b16", "dinov3"),
    ("BEiT", "beit_b16", "beit"),
    ("Swin", "swin_t", "swin"),
    ("Swin V2", "timm/swinv2_tiny_window8_256.ms_in1k", "swin_v2"),
    ("MaxViT", "timm/maxvit_tiny_tf_224.in1k", "maxvit"),
    ("ResNet", "resnet50", "resnet"),
    ("ConvNeXt", "convnext_b_in22k", "convnext"),
    ("EfficientNet", "efficientnet_b0", "efficientnet"),
    ("RegNet", "regnety_016", "regnet"),
]


def fitting(name: str) -> list[str]:
    return describe.fitting(catalogue.without_weights(BackboneConfig(name=name)))


def table_of_tuners() -> str:
    """The section of docs/backbones.md, from what the code says."""
    fits = {label: set(fitting(name)) for label, name, _ in FAMILIES}
    everywhere = sorted(set.intersection(*fits.values()))
    rest = sorted(set(registry.discover("tuner")) - set(everywhere))
    lines = [f"| family | for example | {' | '.join(f'`{name}`' for name in rest)} |", "|---" * (len(rest) + 2) + "|"]
    for label, name, _ in FAMILIES:
        cells = " | ".join("yes" if part in fits[label] else "–" for part in rest)
        lines.append(f"| {label} | `{name}` | {cells} |")
    sentence = f"Every family here takes {', '.join(f'`{name}`' for name in everywhere)}."
    return textwrap.fill(sentence, 120, break_on_hyphens=False) + "\n\n" + "\n".join(lines)


@pytest.mark.slow
def test_table_of_tuners_is_the_code() -> None:
    expected = table_of_tuners()
    assert f"\n\n{expected}\n\n" in BACKBONES, f"docs/backbones.md should hold\n\n{expected}\n"


@pytest.mark.slow
def test_small_models_take_what_the_published_ones_take() -> None:
    assert {zoo for _, _, zoo in FAMILIES if zoo} == set(ZOO), "name the new family in FAMILIES"
    for _, name, zoo in FAMILIES:
        assert zoo is None or describe.fitting(backbone_of(zoo)) == fitting(name), (name, zoo)


def test_names_of_backbones_and_files_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LIFTPLUS_WEIGHTS", "LIFTPLUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    names = set(re.findall(r"`((?:timm|open_clip)/[\w./-]+)`", BACKBONES)) - {"timm/ARCH.TAG", "open_clip/ARCH/TAG"}
    with pytest.raises(UserError, match="by their tag"):
        catalogue.load(BackboneConfig(name="timm/vit_base_patch16_224"), weights=False)
    assert names - {"timm/vit_base_patch16_224"} <= set(catalogue.find("/"))
    short = BACKBONES.split("## How to name it")[0]
    assert set(re.findall(r"`(\w+_\w+|resnet50)`", short)) <= set(catalogue.entries())
    for file in re.findall(r"`([\w.]+)\.safetensors`", BACKBONES):
        assert any(put_by_hand(name).name == file for name in (*names, *catalogue.entries())), file
    assert str(weight_folders()[-1]).endswith(".cache/liftplus/weights")
