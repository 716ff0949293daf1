#!/bin/sh
# timm 1.0.31 with torch 2.15.0 on Python 3.11, Linux.
#
# timm has each DINOv3 twice: with biases of queries and values (names that end in _qkvb) and without, since some of
# Meta's published files have biases that are all zero. One would guess that a file in Meta's names whose biases are not
# zero is refused by a model without them, as strict loading refuses any tensor that has no place. But the converter of
# names (timm.models.eva.checkpoint_filter_fn) leaves such biases out, whatever their values, before strict loading sees
# them. It prints the text of a caught exception to standard output. Loading succeeds, and features are those of another
# model. The model with biases takes the same file and differs.
#
# Output seen:
#   printed while names are converted: '`q_bias` is not an nn.Parameter'
#   strict loading: <All keys matched successfully>
#   the same features as with biases that are zero: True
#   the model with biases gives other features: True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import contextlib
import io
import sys

import timm
import torch
from timm.models.eva import checkpoint_filter_fn

torch.manual_seed(0)
WIDTH, NAME = 384, "vit_small_patch16_dinov3"


def in_metas_names(bias: float) -> dict[str, torch.Tensor]:
    """The plain model's weights as Meta calls them, with biases of queries and values in both blocks."""
    names = {"reg_token": "storage_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"}
    out = {}
    for name, value in weights.items():
        for ours, metas in names.items():
            name = name.replace(ours, metas)
        out[name] = torch.ones_like(value) if "gamma" in name else value.clone()
    for block in range(2):
        own = torch.full((3 * WIDTH,), bias)
        own[WIDTH : 2 * WIDTH] = 0  # those of keys
        out[f"blocks.{block}.attn.qkv.bias"] = own
    return out


def features(name: str, bias: float) -> tuple[torch.Tensor, str, str]:
    """Features of one random picture by a model that was loaded strictly, what was printed, and what loading said."""
    model = timm.create_model(name, num_classes=0, depth=2).eval()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        state = checkpoint_filter_fn(in_metas_names(bias), model)
    said = str(model.load_state_dict(state, strict=True))
    with torch.no_grad():
        return model(picture), printed.getvalue().splitlines()[0] if printed.getvalue() else "", said


weights = timm.create_model(NAME, num_classes=0, depth=2).state_dict()
picture = torch.randn(1, 3, 64, 64)
plain, printed, said = features(NAME, 0.5)
print("printed while names are converted:", repr(printed))
print("strict loading:", said)
zero, _, _ = features(NAME, 0.0)
same = torch.equal(plain, zero)
print("the same features as with biases that are zero:", same)
other, _, _ = features(NAME + "_qkvb", 0.5)
differs = not torch.allclose(other, plain, atol=1e-3)
print("the model with biases gives other features:", differs)
sys.exit(0 if "q_bias" in printed and "All keys matched" in said and same and differs else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
