#!/bin/sh
# transformers 5.23.0 with torch 2.13.0 on Python 3.11, Linux.
#
# Checkpoints are compared by loading one after another into one model: the best epoch, an average, a soup. One would
# guess that after load_state_dict, which reports that all keys match, an evaluated model is that of the new weights. A
# LeViT is not. In eval mode its attention keeps the table of biases that it gathered at the first picture, and neither
# loading nor a further eval() clears it. Only train() does. So every checkpoint after the first is scored with its own
# weights but the first one's attention biases, which belong to no model that was ever trained. state_dict() shows the
# new biases. timm's LeViT, TinyViT and EfficientFormer keep such tables too (timm 1.0.31). There eval() clears them as
# well (pull request 2795), which a loop that calls eval() once never does.
#
# Output seen (random weights):
#   loading: <All keys matched successfully>
#   the model's own attention biases are the new ones: True
#   logits against a fresh model with the same weights: off by 3.22, their scatter is 13.26
#   after a further eval(): off by 3.22
#   after train() and eval(): off by 0.00
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import copy
import sys

import torch
from transformers import LevitConfig, LevitForImageClassification

torch.manual_seed(0)
config = LevitConfig(
    image_size=64,
    hidden_sizes=[32, 48, 64],
    num_attention_heads=[2, 3, 4],
    key_dim=[8] * 3,
    depths=[2] * 3,
    num_labels=5,
)


def moved(model: LevitForImageClassification) -> LevitForImageClassification:
    """The model after some training: each weight is a step further."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn(weight.shape) * (1.0 if "attention_biases" in name else 0.1))
    return model.eval()


def off(model: LevitForImageClassification) -> float:
    with torch.no_grad():
        return (model(pictures).logits - right).abs().max().item()


pictures = torch.randn(4, 3, 64, 64)
model = moved(LevitForImageClassification(config))
later = moved(model)
with torch.no_grad():
    model(pictures)
    right = later(pictures).logits
said = str(model.load_state_dict(later.state_dict()))
print("loading:", said)
biases = [torch.equal(v, later.state_dict()[n]) for n, v in model.state_dict().items() if "attention_biases" in n]
print("the model's own attention biases are the new ones:", bool(biases) and all(biases))
loaded = off(model)
scatter = right.std().item()
print(f"logits against a fresh model with the same weights: off by {loaded:.2f}, their scatter is {scatter:.2f}")
evaluated = off(model.eval())
print(f"after a further eval(): off by {evaluated:.2f}")
# transformers' LevitAttention.train returns nothing, so the calls are not chained.
model.train()
model.eval()
cleared = off(model)
print(f"after train() and eval(): off by {cleared:.2f}")
held = "All keys matched" in said and biases and all(biases) and min(loaded, evaluated) > 0.1 and cleared < 1e-4
sys.exit(0 if held else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
