#!/bin/sh
# torchmetrics 1.9.0 with torch 2.13.0 on Python 3.11, Linux.
#
# MulticlassAveragePrecision keeps every score in memory. `thresholds=1000` counts them in bins instead, which its docs
# call less accurate and more memory efficient. One would guess that the mean over classes then moves in the third
# decimal. On long-tailed data it can lose a third. A class without a picture in the test set has no recall: 0 / 0. The
# exact form gives nan, warns, and leaves the class out of the mean. The binned form puts 0 there
# (_reduce_average_precision, after a division that is safe from 0) and takes the class into the mean without a word.
# Both agree about all other classes to the third decimal, and more bins bring the means no nearer. MulticlassAUROC
# counts such a class as 0 in either form; its exact form warns.
#
# Output seen (four classes of 100 pictures, two of none):
#   exact:       mean 0.889, classes 0.91 0.90 0.88 0.86 nan nan - warnings 1
#   1000 bins:   mean 0.592, classes 0.91 0.90 0.88 0.86 0.00 0.00 - warnings 0
#   100000 bins: mean 0.593, classes 0.91 0.90 0.88 0.86 0.00 0.00 - warnings 0
#   AUROC exact: mean 0.635, classes 0.97 0.96 0.95 0.94 0.00 0.00 - warnings 2
#   AUROC bins:  mean 0.635, classes 0.97 0.96 0.95 0.94 0.00 0.00 - warnings 0
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import math
import sys
import warnings

import torch
from torchmetrics.classification import MulticlassAUROC, MulticlassAveragePrecision

torch.manual_seed(0)
CLASSES = 6
labels = torch.arange(4).repeat_interleave(100)
logits = torch.randn(len(labels), CLASSES) + 2 * torch.nn.functional.one_hot(labels, CLASSES)
scores = logits.softmax(dim=1)


def measured(kind: type, thresholds: int | None, name: str) -> tuple[float, list[float], int]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mean = kind(CLASSES, average="macro", thresholds=thresholds)(scores, labels).item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = kind(CLASSES, average="none", thresholds=thresholds)(scores, labels).abs().tolist()
    about = [w for w in said if "nan" in str(w.message) or "No positive" in str(w.message)]
    print(f"{name:12} mean {mean:.3f}, classes", *(f"{value:.2f}" for value in each), f"- warnings {len(about)}")
    return mean, each, len(about)


exact = measured(MulticlassAveragePrecision, None, "exact:")
held = [exact[2] > 0, all(math.isnan(value) for value in exact[1][4:]), abs(exact[0] - sum(exact[1][:4]) / 4) < 1e-4]
for bins in (1_000, 100_000):
    binned = measured(MulticlassAveragePrecision, bins, f"{bins} bins:")
    held += [binned[2] == 0, binned[1][4:] == [0.0, 0.0], abs(binned[0] - sum(binned[1][:4]) / 6) < 1e-4]
    held.append(max(abs(a - b) for a, b in zip(exact[1][:4], binned[1][:4], strict=True)) < 5e-3)
for bins in (None, 1_000):
    area = measured(MulticlassAUROC, bins, "AUROC exact:" if bins is None else "AUROC bins:")
    held.append(area[1][4:] == [0.0, 0.0])
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
