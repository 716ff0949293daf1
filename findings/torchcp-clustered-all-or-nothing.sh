#!/bin/sh
# torchcp 1.2.1 with torch 2.15.0 on Python 3.11, Linux.
#
# Clustered conformal prediction (Ding et al. 2023, arXiv 2306.09335) gives classes of alike scores a threshold together,
# and takes classes with hardly any calibration picture out into a null cluster. There the paper uses one threshold from
# the scores of all classes, so one would guess that ClusteredPredictor gives ordinary sets there, or warns. It gives the
# null cluster the threshold infinity instead, and says nothing. Whether there are clusters at all depends on the rarest
# class, and the number of classes: 60 classes with 200 calibration pictures each have sets of 14 classes; if one of them
# has none, the other 59 too have sets of all 60. Four classes with 300 each have sets of all four. SplitPredictor has
# sets of 13, 13 and 1.2 classes on the same logits.
#
# Output seen:
#   60 classes of 200: clustered 14.1, split 13.5 classes in a set; no class has the threshold infinity
#   59 classes of 200 and one of 0: clustered 60.0, split 13.5 classes in a set; every class has the threshold infinity
#   4 classes of 300: clustered 4.0, split 1.2 classes in a set; every class has the threshold infinity
#   no warning speaks of it: True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 scikit-learn==1.9.1 pandas==3.1.1 tqdm==4.70.1 \
    transformers==5.23.0 torch_geometric==2.8.1
"$pip" install --quiet --no-deps torchcp==1.2.1
# One of torchcp's losses, which is not used here, imports torchsort, whose build wants a CUDA compiler.
echo "soft_rank = soft_sort = None" >"$folder/torchsort.py"
cat >"$folder/check.py" <<'END'
import sys
import warnings

import torch
from torchcp.classification.predictor import ClusteredPredictor, SplitPredictor
from torchcp.classification.score import LAC


def drawn(counts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C] that lean to the true class, and labels [n]."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn(len(labels), len(counts), generator=torch.Generator().manual_seed(seed))
    return noise + 2 * torch.nn.functional.one_hot(labels, len(counts)), labels


def mean_size(kind: type, counts: list[int]) -> tuple[float, object]:
    predictor = kind(LAC())
    predictor.calculate_threshold(*drawn(counts, 0), alpha=0.1)
    test, _ = drawn([100] * len(counts), 1)
    return float(predictor.predict_with_logits(test).float().sum(1).mean()), predictor.q_hat


said, held = [], []
for name, counts, infinite in (
    ("60 classes of 200", [200] * 60, 0),
    ("59 classes of 200 and one of 0", [200] * 59 + [0], 60),
    ("4 classes of 300", [300] * 4, 4),
):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clustered, thresholds = mean_size(ClusteredPredictor, counts)
        split, _ = mean_size(SplitPredictor, counts)
    said += [str(one.message) for one in caught]
    found = int(torch.isinf(thresholds).sum())
    whose = {0: "no class", len(counts): "every class"}.get(found, f"{found} classes")
    held.append(found == infinite and (clustered == len(counts)) == (infinite > 0) and split < len(counts) / 2)
    print(f"{name}: clustered {clustered:.1f}, split {split:.1f} classes in a set; {whose} has the threshold infinity")
quiet = not any(word in text.lower() for text in said for word in ("cluster", "inf", "quantile"))
print("no warning speaks of it:", quiet)
sys.exit(0 if all(held) and quiet else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
