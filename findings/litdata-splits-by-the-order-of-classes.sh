#!/bin/sh
# litdata 0.2.76 with torch 2.15.0 on Python 3.11, Linux.
#
# train_test_split(dataset, splits=[0.8, 0.2], shuffle=True) says that it shuffles the data and then splits them. One
# would guess a random fifth of the pictures, as from torch's random_split. But it shuffles whole chunk files and then
# cuts their row in two. Pictures from class folders lie sorted by class. With chunks of 64 MB, as its guide has them, a
# small data set is one chunk: the test split is the last classes, whatever the seed, and most of those have no picture
# in the training split. With many chunks a rare class lies whole in one of them, and most have no test picture. The
# lengths are right and nothing is said. StreamingDataset(subsample=0.2, shuffle=True), "randomly sampled" by its
# docstring, is cut in the same way: it is the first class or two.
#
# Output seen (30 classes with 300 to 2 pictures, sorted by class):
#   random_split:         1503 and 375 pictures, 25 classes tested, 0 of them never trained
#   one chunk, seed 0:    1502 and 375 pictures, 21 classes tested, 20 of them never trained
#   one chunk, seed 1:    1502 and 375 pictures, 21 classes tested, 20 of them never trained
#   47 chunks, seed 0:    1502 and 375 pictures, 11 classes tested, 1 of them never trained
#   47 chunks, seed 1:    1502 and 375 pictures, 12 classes tested, 1 of them never trained
#   subsample=0.2, one chunk: 375 pictures of 2 classes
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet litdata==0.2.76 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys
from collections.abc import Iterable

import litdata
import torch

COUNTS = [round(300 * (2 / 300) ** (rank / 29)) for rank in range(30)]
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]


def picture(number: int) -> dict[str, int]:
    return {"number": number, "label": LABELS[number]}


def labels(data: Iterable[dict[str, int]]) -> list[int]:
    return [int(example["label"]) for example in data]


def described(name: str, train: list[int], test: list[int]) -> int:
    """Prints what a split has, and gives the number of classes that are tested and never trained."""
    lost = len(set(test) - set(train))
    print(f"{name + ':':21} {len(train)} and {len(test)} pictures, {len(set(test))} classes tested,", end=" ")
    print(f"{lost} of them never trained")
    return lost


def main() -> int:
    held = []
    parts = torch.utils.data.random_split(LABELS, [0.8, 0.2], generator=torch.Generator().manual_seed(0))
    held.append(described("random_split", list(parts[0]), list(parts[1])) <= 2)
    for name, size in (("one chunk", {"chunk_bytes": "64MB"}), ("47 chunks", {"chunk_size": 40})):
        folder = f"{sys.argv[1]}/{name.replace(' ', '-')}"
        litdata.optimize(picture, inputs=list(range(len(LABELS))), output_dir=folder, num_workers=1, **size)
        data = litdata.StreamingDataset(folder)
        held.append(sorted(int(example["number"]) for example in data) == list(range(len(LABELS))))
        tests = []
        for seed in (0, 1):
            train, test = litdata.train_test_split(data, splits=[0.8, 0.2], seed=seed, shuffle=True)
            tests.append(labels(test))
            lost = described(f"{name}, seed {seed}", labels(train), tests[-1])
            held.append(lost >= 15 if name == "one chunk" else len(set(tests[-1])) <= 15)
        if name == "one chunk":
            held.append(tests[0] == tests[1] and max(tests[0]) == 29)
            some = labels(litdata.StreamingDataset(folder, subsample=0.2, shuffle=True, seed=1))
            last = f"subsample=0.2, one chunk: {len(some)} pictures of {len(set(some))} classes"
            held.append(len(set(some)) <= 2)
    print(last)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
END
"$folder/venv/bin/python" "$folder/check.py" "$folder" 2>"$folder/errors" >"$folder/seen" || failed=$?
grep pictures "$folder/seen" || tail -n 5 "$folder/errors"
exit "${failed:-0}"
