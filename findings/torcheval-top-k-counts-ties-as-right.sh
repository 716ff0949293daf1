#!/bin/sh
# torcheval 0.0.7 with torch 2.15.0 on Python 3.11, Linux.
#
# MulticlassAccuracy(k=5) asks whether the right class is among the five best. One would guess that it takes torch's
# topk, or breaks ties in some fixed way, so that a classifier without any knowledge scores as chance. But for k > 1 it
# counts the classes with a greater logit, and a tie is not greater. Every class that ties with the fifth counts as
# among the five. A head that starts at zero has all logits equal, and top-5 accuracy 1.0; k=1 takes argmax and gives
# chance. NaN is not greater either, so a run that has diverged to NaN scores 1.0 too, and the best checkpoint by top-5
# is the broken one. In bfloat16, cosines times 100, as CLIP has them, lie an eighth apart, so ties are common and a
# model gains a point over the same logits in float32. HitRate and ReciprocalRank count in the same way. Nothing is
# said.
#
# Output seen (1,000 classes, 4,000 pictures; top-1, top-5; what torch's topk has for top-5):
#   zero logits        top-1 0.001 top-5 1.000 topk 0.005
#   nan logits         top-1 0.001 top-5 1.000 topk 0.005
#   cosines, float32   top-1 0.286 top-5 0.528 topk 0.528
#   cosines, bfloat16  top-1 0.286 top-5 0.541 topk 0.527
#   zero logits: HitRate(k=5) 1.0, ReciprocalRank 1.0
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torcheval==0.0.7 torch==2.15.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # torch on torcheval's torch.jit.script

import torch
from torcheval.metrics import HitRate, MulticlassAccuracy, ReciprocalRank

torch.manual_seed(0)
CLASSES, PICTURES = 1000, 4000
labels = torch.randint(CLASSES, (PICTURES,))
cosines = 20 + 1.5 * torch.randn(PICTURES, CLASSES)
cosines[torch.arange(PICTURES), labels] += 4


def accuracy(logits: torch.Tensor, k: int) -> float:
    return MulticlassAccuracy(k=k).update(logits, labels).compute().item()


held = []
for name, logits in (
    ("zero logits", torch.zeros(PICTURES, CLASSES)),
    ("nan logits", torch.full((PICTURES, CLASSES), torch.nan)),
    ("cosines, float32", cosines),
    ("cosines, bfloat16", cosines.bfloat16()),
):
    first, five = accuracy(logits, 1), accuracy(logits, 5)
    topk = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    print(f"{name:18} top-1 {first:.3f} top-5 {five:.3f} topk {topk:.3f}")
    if name == "cosines, float32":
        held.append(abs(five - topk) < 1e-3)
    elif name == "cosines, bfloat16":
        held.append(five - topk > 0.005)
    else:
        held.append(five == 1 and max(first, topk) < 0.02)
zero = torch.zeros(PICTURES, CLASSES)
hits = HitRate(k=5).update(zero, labels).compute().mean().item()
ranks = ReciprocalRank().update(zero, labels).compute().mean().item()
print(f"zero logits: HitRate(k=5) {hits}, ReciprocalRank {ranks}")
held.append(hits == 1 and ranks == 1)
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
