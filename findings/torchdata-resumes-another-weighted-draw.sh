#!/bin/sh
# torchdata 0.11.0 with torch 2.13.0 on Python 3.11, Linux.
#
# StatefulDataLoader goes on in the middle of an epoch after an interruption: state_dict(), later load_state_dict(). One
# would guess that this holds for torch's own samplers with a seeded generator. With shuffle=True it does, in any epoch:
# there torchdata takes a sampler of its own, which saves its generator. With WeightedRandomSampler, which long-tailed
# data are balanced with, it holds in the first epoch only, and so passes a short test. Its generator is not saved. In a
# later epoch the resumed loader draws the first epoch again, skips as many as were seen, and gives the rest of that.
# Nothing is said. The interrupted epoch is put together from two draws, and the epochs after it are earlier draws too.
# The same holds for torch.utils.data.RandomSampler; only torchdata's own class of that name saves its generator.
#
# Output seen (interrupted after 2 of 6 batches):
#   shuffle=True, epoch 1: resumed like uninterrupted True
#   shuffle=True, epoch 2: resumed like uninterrupted True
#   WeightedRandomSampler, epoch 1: resumed like uninterrupted True
#   WeightedRandomSampler, epoch 2: resumed like uninterrupted False
#   RandomSampler, epoch 1: resumed like uninterrupted True
#   RandomSampler, epoch 2: resumed like uninterrupted False
#   the rest of epoch 2 is that of epoch 1: True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchdata==0.11.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import torch
from torch.utils.data import RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

PICTURES, SEEN = list(range(24)), 2


def loader(name: str) -> StatefulDataLoader:
    generator = torch.Generator().manual_seed(0)
    if name == "shuffle=True":
        return StatefulDataLoader(PICTURES, batch_size=4, shuffle=True, generator=generator)
    if name == "RandomSampler":
        sampler = RandomSampler(PICTURES, generator=generator)
    else:
        sampler = WeightedRandomSampler([1.0 + picture for picture in PICTURES], len(PICTURES), generator=generator)
    return StatefulDataLoader(PICTURES, batch_size=4, sampler=sampler)


def resumed(name: str, epoch: int) -> tuple[bool, bool]:
    """Whether an interrupted and resumed epoch is that of an uninterrupted run; whether its rest is epoch 1's."""
    whole = loader(name)
    epochs = [[batch.tolist() for batch in whole] for _ in range(epoch)]
    stopped = loader(name)
    for _ in range(epoch - 1):
        list(stopped)
    batches = iter(stopped)
    first = [next(batches).tolist() for _ in range(SEEN)]
    state = stopped.state_dict()
    again = loader(name)
    again.load_state_dict(state)
    rest = [batch.tolist() for batch in again]
    assert first == epochs[-1][:SEEN]
    return first + rest == epochs[-1], rest == epochs[0][SEEN:]


held, repeated = [], []
for name in ("shuffle=True", "WeightedRandomSampler", "RandomSampler"):
    for epoch in (1, 2):
        same, of_first = resumed(name, epoch)
        held.append(same == (name == "shuffle=True" or epoch == 1))
        print(f"{name}, epoch {epoch}: resumed like uninterrupted {same}")
    if name != "shuffle=True":
        repeated.append(of_first)
print("the rest of epoch 2 is that of epoch 1:", all(repeated))
sys.exit(0 if all(held) and all(repeated) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
