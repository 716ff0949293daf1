#!/bin/sh
# peft 0.21.2 with torch 2.15.0 and transformers 5.23.0 on Python 3.11, Linux.
#
# OFT turns the input of a layer by a rotation that starts as the identity. One would guess that a fresh adapter leaves
# the outputs as they are, and that merge_and_unload gives the outputs that were trained, as for a linear. For a
# convolution with a kernel larger than 1 x 1 neither holds. The adapter cuts the feature map into patches of the
# kernel's size with stride 1, turns each, and puts them back with torch's fold, which adds up where patches overlap. So
# under a 3 x 3 kernel the inner pixels come out nine times as large, those near the border fewer times, whatever the
# rotation. Merging turns the kernel itself, without that sum, and is right. The model that was trained and measured is
# another one than the merged one. Nothing is said, and safe_merge=True passes. On a feature map as large as the kernel
# there is one patch, and both agree, so a small test passes. BOFT, HRA, LoRA, LoHa and LoKr keep the base's outputs.
#
# Output seen (spread of one convolution's outputs with a fresh adapter, as a multiple of the base's):
#   kernel 1, stride 1: 1.00; merged 1.00
#   kernel 3, stride 1: 6.70; merged 1.00
#   kernel 4, stride 4: 10.07; merged 1.00
#   kernel 3 on a map of 3 x 3: 1.00; merged 1.00
# and of a network of two of them:
#   OFT: logits change by 34.82 of their spread when it is added, by 3.47 when it is merged
#   HRA: logits change by 0.00 of their spread when it is added, by 0.00 when it is merged
#   LoRA: logits change by 0.00 of their spread when it is added, by 0.00 when it is merged
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet peft==0.21.2 torch==2.15.0 transformers==5.23.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import copy
import sys

import torch
from peft import HRAConfig, LoraConfig, OFTConfig, PeftConfig, get_peft_model
from torch import nn


def spread(model: nn.Module, pictures: torch.Tensor) -> float:
    with torch.no_grad():
        return model(pictures).std().item()


def fresh(kernel: int, stride: int, padding: int, side: int) -> tuple[float, float]:
    """The spread of outputs with a fresh adapter and after merging it, as multiples of the base's."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(16, 8, kernel, stride, padding, bias=False)).eval()
    pictures = torch.rand(4, 16, side, side)
    model = get_peft_model(copy.deepcopy(base), OFTConfig(oft_block_size=8, target_modules=["0"])).eval()
    right, before = spread(base, pictures), spread(model, pictures)
    return before / right, spread(model.merge_and_unload(safe_merge=True), pictures) / right


def differences(config: PeftConfig) -> tuple[float, float]:
    """Largest difference of logits as a multiple of their spread: fresh against base, merged against before merging."""
    torch.manual_seed(0)
    base = nn.Sequential()
    base.add_module("first", nn.Conv2d(8, 32, 3, padding=1))
    base.add_module("second", nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)))
    base.add_module("head", nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))
    pictures = torch.rand(40, 8, 16, 16) * torch.rand(40, 8, 1, 1)
    model = get_peft_model(copy.deepcopy(base).eval(), config).eval()
    with torch.no_grad():
        right = base(pictures)
        added = (model(pictures) - right).abs().max() / right.std()
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn_like(weight)
        tuned = model(pictures)
        merged = (model.merge_and_unload(safe_merge=True)(pictures) - tuned).abs().max() / tuned.std()
    return added.item(), merged.item()


held = []
for name, shape, changed in (
    ("kernel 1, stride 1", (1, 1, 0, 16), False),
    ("kernel 3, stride 1", (3, 1, 1, 16), True),
    ("kernel 4, stride 4", (4, 4, 0, 16), True),
    ("kernel 3 on a map of 3 x 3", (3, 1, 1, 3), False),
):
    before, merged = fresh(*shape)
    print(f"{name}: {before:.2f}; merged {merged:.2f}")
    held.append(abs(merged - 1) < 1e-3 and ((before > 2) if changed else abs(before - 1) < 1e-3))
for name, config in (("OFT", OFTConfig(oft_block_size=8)), ("HRA", HRAConfig(r=8)), ("LoRA", LoraConfig(r=8))):
    config.target_modules = {"first", "second.1"}
    added, merged = differences(config)
    print(f"{name}: logits change by {added:.2f} of their spread when it is added, by {merged:.2f} when it is merged")
    held.append(min(added, merged) > 1 if name == "OFT" else max(added, merged) < 0.01)
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
