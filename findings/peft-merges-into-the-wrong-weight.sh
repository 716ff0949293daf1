#!/bin/sh
# peft 0.21.2 and timm 1.0.31 with torch 2.15.0 on Python 3.11, Linux.
#
# BiT's ResNets and the hybrid ViTs of timm standardise each kernel on the way: StdConv2d is a Conv2d whose forward pass
# takes (W - mean) / deviation in place of W. peft takes it as the Conv2d that it is by class. One would guess that
# merge_and_unload gives the outputs that were trained, up to rounding, or refuses the layer as it does one with groups.
# But LoRA adds its part to the output, beside the standardisation. Merging adds it to W, before the standardisation,
# which takes its mean away and divides it by the deviation. The merged model is a third one, neither the base nor the
# tuned one. Nothing is said. safe_merge=True passes too, as it looks for NaN only. Where torch.nn.utils.weight_norm
# makes the kernel anew at each pass (DINO's last layer), the merged part is lost at once. A padding_mode other than
# zeros is left out by LoRA's own convolution, but not by the merged one.
#
# Output seen (largest difference from the tuned model's outputs, as a share of their scatter):
#   Conv2d                  base 1.05, merged 0.00
#   timm's StdConv2d        base 2.95, merged 2.22
#   Linear with weight_norm base 1.30, merged 1.30
#   Conv2d, padding reflect base 1.23, merged 0.61
#   resnetv2_50x1_bit       base 1.03, merged 0.78
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet peft==0.21.2 timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys
import warnings

import timm
import torch
from peft import LoraConfig, get_peft_model
from timm.layers import StdConv2d
from torch import nn
from torch.nn.utils import weight_norm

# torch asks to use another weight_norm, which peft refuses with an AttributeError.
warnings.simplefilter("ignore", FutureWarning)


def compared(name: str, model: nn.Module, target: str, picture: torch.Tensor) -> tuple[float, float]:
    """Largest difference from the tuned model's outputs, for the base model and the merged one."""
    model.eval()
    with torch.no_grad():
        base = model(picture)
        # Without its usual zeros, LoRA starts as it were after some training.
        config = LoraConfig(r=4, lora_alpha=2, target_modules=target, init_lora_weights=False)
        tuned = get_peft_model(model, config).eval()
        wanted = tuned(picture)
        merged = tuned.merge_and_unload(safe_merge=True)(picture)
    scatter = wanted.std()
    away = [float((outputs - wanted).abs().max() / scatter) for outputs in (base, merged)]
    print(f"{name:23} base {away[0]:.2f}, merged {away[1]:.2f}")
    return away[0], away[1]


torch.manual_seed(0)
maps = torch.randn(2, 8, 12, 12)
reflect = {"padding": 1, "padding_mode": "reflect"}
plain = compared("Conv2d", nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), "0", maps)
others = [
    compared("timm's StdConv2d", nn.Sequential(StdConv2d(8, 8, 3, padding=1)), "0", maps),
    compared("Linear with weight_norm", nn.Sequential(weight_norm(nn.Linear(12, 12))), "0", maps),
    compared("Conv2d, padding reflect", nn.Sequential(nn.Conv2d(8, 8, 3, **reflect)), "0", maps),
]
bit = timm.create_model("resnetv2_50x1_bit", num_classes=5, zero_init_last=False)
others.append(compared("resnetv2_50x1_bit", bit, r"stages\.\d\.blocks\.0\.conv[13]", torch.randn(2, 3, 64, 64)))
sys.exit(0 if plain[1] < 1e-4 and all(base > 0.05 and merged > 0.05 for base, merged in others) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
