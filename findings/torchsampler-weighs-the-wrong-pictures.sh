#!/bin/sh
# torchsampler 0.1.2 with torch 2.15.0 and pandas 3.1.1 on Python 3.11, Linux.
#
# ImbalancedDatasetSampler draws each class equally often. `indices` restricts it to the pictures of a training split,
# and `labels` are theirs, in the same order. Such indices come shuffled from scikit-learn's train_test_split or from
# torch's random_split. One would guess that their order does not matter, as it does not with SubsetRandomSampler. But
# the sampler sorts its table of labels by index, and then takes weight number i for indices[i], which is still
# shuffled. So each picture gets the weight of another one. Nothing is said, every index drawn is of the split, and the
# length is right. The draw is as imbalanced as without a sampler, while a rare class's large weight repeats a few
# pictures of any class. With sorted indices the same call is balanced, and so a test with range(...) passes.
#
# Output seen (share of each class in 20,000 draws; 400 to 5 pictures of it in the split):
#   split:            0.810 0.158 0.022 0.010
#   sorted indices:   0.247 0.247 0.254 0.252
#   shuffled indices: 0.878 0.105 0.013 0.003
#   the picture drawn most often, shuffled: 1076 times, of class 0
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchsampler==0.1.2 torch==2.15.0 torchvision==0.29.2 pandas==3.1.1 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys
from collections import Counter

import torch
from torchsampler import ImbalancedDatasetSampler

COUNTS, DRAWS = (500, 100, 20, 5), 20000
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]


def shares(numbers: list[int]) -> list[float]:
    """The share of each class among these pictures."""
    found = Counter(LABELS[number] for number in numbers)
    return [found[label] / len(numbers) for label in range(len(COUNTS))]


def drawn(indices: list[int]) -> list[int]:
    torch.manual_seed(0)
    labels = [LABELS[number] for number in indices]
    return list(ImbalancedDatasetSampler(data, labels=labels, indices=indices, num_samples=DRAWS))


data = torch.utils.data.TensorDataset(torch.zeros(len(LABELS), 1), torch.tensor(LABELS))
split = torch.utils.data.random_split(data, [0.8, 0.2], generator=torch.Generator().manual_seed(0))[0].indices
draws = {"split": split, "sorted indices": drawn(sorted(split)), "shuffled indices": drawn(split)}
for name, numbers in draws.items():
    print(f"{name + ':':17}", *(f"{share:.3f}" for share in shares(numbers)))
most, times = Counter(draws["shuffled indices"]).most_common(1)[0]
print(f"the picture drawn most often, shuffled: {times} times, of class {LABELS[most]}")
held = [all(abs(share - 0.25) < 0.02 for share in shares(draws["sorted indices"]))]
held += [shares(draws["shuffled indices"])[0] > 0.7, shares(draws["shuffled indices"])[3] < 0.02]
held += [set(draws["shuffled indices"]) <= set(split), LABELS[most] == 0 and times > 500]
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
