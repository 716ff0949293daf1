#!/bin/sh
# transformers 5.23.0 with torch 2.13.0 on Python 3.11, Linux.
#
# A Swin takes pictures of any size. One would guess that a forward pass in eval mode leaves the model as it was, so
# that a picture has the same logits whatever was shown before. But SwinLayer writes to itself. Where the feature map is
# not larger than the window, set_shift_and_window_size stores a shift of 0 and a smaller window in the layer, and
# nothing restores them for the next, larger map. One picture of 224 pixels, the size that Swin was trained at, takes
# the shift out of the last stage for good: its feature map is 7 x 7, as large as the window. From then on pictures of
# 384 pixels get other logits. No weight has changed, and the saved and reloaded model gives the first logits again. So
# the results at several sizes depend on their order. DonutSwinLayer has the same lines.
#
# Output seen (random weights):
#   shifts of the last stage at first: [0, 3]
#   logits of a picture of 384 pixels scatter by 1.23
#   the same picture twice: logits differ by 0.00
#   after one picture of 224 pixels in between: by 0.21, shifts [0, 0]
#   weights are as before: True
#   saved and reloaded: by 0.00, shifts [0, 3]
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import torch
from transformers import SwinConfig, SwinForImageClassification

torch.manual_seed(0)
config = SwinConfig(embed_dim=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], num_labels=5)
assert (config.image_size, config.window_size) == (224, 7)
model = SwinForImageClassification(config).eval()
for weight in model.parameters():
    if weight.ndim > 1:
        torch.nn.init.normal_(weight, std=0.15)
before = {name: value.clone() for name, value in model.state_dict().items()}
large, usual = torch.randn(1, 3, 384, 384), torch.randn(1, 3, 224, 224)


def logits(swin: SwinForImageClassification, picture: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return swin(picture).logits


def shifts(swin: SwinForImageClassification) -> list[int]:
    return [int(block.shift_size) for block in swin.swin.encoder.layers[-1].blocks]


at_first = shifts(model)
print("shifts of the last stage at first:", at_first)
first = logits(model, large)
twice = (logits(model, large) - first).abs().max().item()
print(f"logits of a picture of 384 pixels scatter by {first.std().item():.2f}")
print(f"the same picture twice: logits differ by {twice:.2f}")
logits(model, usual)
later, then = (logits(model, large) - first).abs().max().item(), shifts(model)
print(f"after one picture of 224 pixels in between: by {later:.2f}, shifts {then}")
same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
print("weights are as before:", same)
model.save_pretrained(sys.argv[1])
again = SwinForImageClassification.from_pretrained(sys.argv[1]).eval()
now = shifts(again)
reloaded = (logits(again, large) - first).abs().max().item()
print(f"saved and reloaded: by {reloaded:.2f}, shifts {now}")
held = at_first == now == [0, 3] and then == [0, 0] and same and max(twice, reloaded) < 1e-4 and later > 0.01
sys.exit(0 if held else 1)
END
"$folder/venv/bin/python" "$folder/check.py" "$folder/model"
