#!/bin/sh
# torch 2.15.0 on Python 3.11, Linux.
#
# persistent_workers=True keeps a DataLoader's worker processes from one epoch to the next, to save their start. With a
# seeded generator the order of pictures is the same for any number of workers, none included. One would guess that the
# same holds for keeping the workers. It does for the first epoch only. A DataLoader draws a seed for its workers from
# the same generator that shuffles, once for each new set of workers. Kept workers need no seed, so from the second
# epoch on every shuffle starts from another state. Two runs with one seed, one of them tuned for speed, see other
# batches, and so does a WeightedRandomSampler with that generator. Nothing says so, and a test of one epoch passes.
# Without a generator of one's own the seed is drawn from torch's, and every random number after it is another one.
#
# Output seen (against no workers; epochs 1, 2 and 3):
#   shuffle=True:          2 workers same same same, 2 kept same other other, 1 kept same other other
#   WeightedRandomSampler: 2 workers same same same, 2 kept same other other, 1 kept same other other
#   2 kept workers and 1 agree: True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

PICTURES, EPOCHS = list(range(24)), 3


def epochs(weighted: bool, workers: int, kept: bool) -> list[list[int]]:
    """The pictures of each epoch, in order."""
    generator = torch.Generator().manual_seed(0)
    sampler = WeightedRandomSampler([1.0 + p for p in PICTURES], 24, generator=generator) if weighted else None
    loader = DataLoader(
        PICTURES,
        batch_size=4,
        shuffle=not weighted,
        sampler=sampler,
        generator=generator,
        num_workers=workers,
        persistent_workers=kept,
    )
    return [[int(picture) for batch in loader for picture in batch] for _ in range(EPOCHS)]


if __name__ == "__main__":
    held, agree = [], []
    for name, weighted in (("shuffle=True:", False), ("WeightedRandomSampler:", True)):
        plain, texts, others = epochs(weighted, 0, False), [], []
        for workers, kept in ((2, False), (2, True), (1, True)):
            others.append(epochs(weighted, workers, kept))
            same = [one == other for one, other in zip(plain, others[-1], strict=True)]
            held.append(same == ([True, False, False] if kept else [True] * EPOCHS))
            words = " ".join("same" if one else "other" for one in same)
            texts.append(f"{workers} {'kept' if kept else 'workers'} {words}")
        agree.append(others[1] == others[2])
        print(f"{name:22}", ", ".join(texts))
    print("2 kept workers and 1 agree:", all(agree))
    sys.exit(0 if all(held) and all(agree) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
