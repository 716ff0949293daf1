#!/bin/sh
# timm 1.0.31 and peft 0.21.2 with torch 2.15.0 on Python 3.11, Linux.
#
# FastViT and the image towers of MobileCLIP train with several branches side by side. timm's reparameterize_model folds
# them into one convolution for use, and it takes a model that peft has wrapped. One would guess that the folded model
# has the outputs of the tuned one, or that a layer which is no Conv2d any more is refused. But folding reads
# `.conv.weight`, and a LoRA layer of peft answers to that with the weight of the base. The branches are then deleted,
# and LoRA's matrices with them. The result is the model before tuning, up to rounding, and nothing is said. RepViT and
# TinyViT, whose folding also asks for `.groups`, end in an AttributeError there. merge_adapter() beforehand keeps the
# tuning.
#
# Output seen (LoRA on the dense convolutions of fastvit_t8; largest difference of logits, as a share of their scatter):
#   LoRA against the base model: 0.74
#   folded against LoRA: 0.74
#   folded against the base model: 0.00
#   numbers of LoRA left in the folded model: 0
#   merged, then folded, against LoRA: 0.00
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 peft==0.21.2 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import timm
import torch
from peft import LoraConfig, get_peft_model
from timm.models.fastvit import MobileOneBlock
from timm.utils import reparameterize_model
from torch import nn

torch.manual_seed(0)
model = timm.create_model("fastvit_t8", num_classes=5)
picture = torch.randn(4, 3, 64, 64)
# Random weights shrink the signal from layer to layer: batch statistics bring it back to a usual size.
with torch.no_grad():
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(picture)
    model.eval()
targets = [
    f"{name}.conv_kxk.0.conv"
    for name, block in model.named_modules()
    if isinstance(block, MobileOneBlock) and block.num_conv_branches and block.conv_kxk[0].conv.groups == 1
]


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(picture)


def off(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first - second).abs().max() / base.std()).item()


base = logits(model)
# Without its usual zeros, LoRA starts as it were after some training.
tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=1, target_modules=targets, init_lora_weights=False)).eval()
wanted = logits(tuned)
folded = reparameterize_model(tuned)
found = logits(folded)
left = sum(weight.numel() for name, weight in folded.named_parameters() if "lora_" in name)
tuned.merge_adapter()
merged = logits(reparameterize_model(tuned))
print(f"LoRA against the base model: {off(wanted, base):.2f}")
print(f"folded against LoRA: {off(found, wanted):.2f}")
print(f"folded against the base model: {off(found, base):.2f}")
print("numbers of LoRA left in the folded model:", left)
print(f"merged, then folded, against LoRA: {off(merged, wanted):.2f}")
held = min(off(wanted, base), off(found, wanted)) > 0.1 and off(found, base) < 1e-3 and left == 0
sys.exit(0 if held and off(merged, wanted) < 1e-3 else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
