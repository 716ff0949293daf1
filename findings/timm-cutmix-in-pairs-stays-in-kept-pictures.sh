#!/bin/sh
# timm 1.0.31 with torch 2.15.0 on Python 3.11, Linux.
#
# FastCollateMixup mixes pictures while it puts a batch together. A small data set is often decoded once and kept in
# memory as bytes, and __getitem__ returns a row of it. One would guess that collating only reads those rows, as torch's
# default_collate and timm's fast_collate do, and as the modes "batch" and "elem" do here. But CutMix with mode="pair"
# or "half" pastes the patches into the rows themselves. They stay there, and the next epoch cuts from pictures that are
# mixed already. The labels know of the last patch only. After five epochs most of a training picture is from other
# pictures, and nothing is said. MixUp copies in each mode. Kept workers spoil their own copy from epoch to epoch, while
# new workers start afresh. With num_workers=0 the data set itself is spoilt, also for whoever reads it next.
# timm.data.Mixup works on the finished batch and leaves the rows alone.
#
# Output seen (share of the kept values that are from another picture, after epochs 1 to 5):
#   cutmix, batch: 0.00 0.00 0.00 0.00 0.00
#   cutmix, elem:  0.00 0.00 0.00 0.00 0.00
#   cutmix, pair:  0.31 0.51 0.65 0.74 0.78
#   cutmix, half:  0.15 0.27 0.39 0.48 0.53
#   mixup, pair:   0.00 0.00 0.00 0.00 0.00
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import numpy as np
import torch
from timm.data import FastCollateMixup
from torch.utils.data import DataLoader, Dataset

PICTURES, EPOCHS = 64, 5


class Kept(Dataset):
    """Pictures in memory as bytes [picture, channel, row, column]; each is of one colour, its own number."""

    def __init__(self) -> None:
        numbers = np.arange(PICTURES, dtype=np.uint8)
        self.pictures = np.broadcast_to(numbers[:, None, None, None], (PICTURES, 3, 32, 32)).copy()

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return self.pictures[number], number % 4

    def foreign(self) -> float:
        """The share of values that are from another picture."""
        return float((self.pictures != np.arange(PICTURES)[:, None, None, None]).mean())


def epochs(mixup_alpha: float, cutmix_alpha: float, mode: str) -> list[float]:
    torch.manual_seed(0)
    np.random.seed(0)
    data = Kept()
    collate = FastCollateMixup(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, mode=mode, num_classes=4)
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    shares = []
    for _ in range(EPOCHS):
        for _ in loader:
            pass
        shares.append(data.foreign())
    return shares


held = []
for name, alphas, mode in (
    ("cutmix, batch", (0.0, 1.0), "batch"),
    ("cutmix, elem", (0.0, 1.0), "elem"),
    ("cutmix, pair", (0.0, 1.0), "pair"),
    ("cutmix, half", (0.0, 1.0), "half"),
    ("mixup, pair", (1.0, 0.0), "pair"),
):
    shares = epochs(*alphas, mode)
    print(f"{name + ':':14}", *(f"{share:.2f}" for share in shares))
    spoilt = mode in ("pair", "half") and alphas[1] > 0
    held.append(shares[0] > 0.1 and shares[-1] > 0.4 if spoilt else max(shares) == 0)
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
