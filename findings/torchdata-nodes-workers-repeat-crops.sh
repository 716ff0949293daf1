#!/bin/sh
# torchdata 0.11.0 with torch 2.15.0 and torchvision 0.29.2 on Python 3.11, Linux.
#
# torchdata.nodes builds a loader from parts. The library's guide for those who come from torch.utils.data gives such a
# loader as the equivalent of DataLoader: a sampler, a Batcher, and a ParallelMapper with method="process" that reads
# and augments. One would guess that its workers augment as DataLoader's do, each with random numbers of its own, and
# other ones in each epoch. They do not. DataLoader gives each worker a seed. ParallelMapper gives none. Where workers
# are forked, as by default here, each goes on from the main process's state, all from the same one, so that four
# workers crop their pictures alike. New workers start in each epoch. A WeightedRandomSampler with a generator of its
# own, which long-tailed data are balanced with, leaves the main process's state where it is, so that each epoch has the
# crops of the first one again. A plain RandomSampler moves it by one draw, and most crops come back all the same.
# numpy.random repeats with both. The batches look as usual and nothing is said; the run has about a twelfth of the
# augmentation that it seems to have. method="thread" is right. torchdata's issue 1494 asks for a worker_init_fn, for
# seeds among others; it does not say that workers and epochs repeat each other.
#
# Output seen (256 crops an epoch, 4 workers; the counts for processes depend on which worker is how fast):
#   WeightedRandomSampler, DataLoader:     256 different crops an epoch, 1280 in 5 epochs, numpy 1280
#   WeightedRandomSampler, nodes, thread:  256 different crops an epoch, 1280 in 5 epochs, numpy 1280
#   WeightedRandomSampler, nodes, process:  83 different crops an epoch,   88 in 5 epochs, numpy   88
#   RandomSampler, DataLoader:             256 different crops an epoch, 1280 in 5 epochs, numpy 1280
#   RandomSampler, nodes, thread:          256 different crops an epoch, 1280 in 5 epochs, numpy 1280
#   RandomSampler, nodes, process:          94 different crops an epoch,  111 in 5 epochs, numpy  104
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchdata==0.11.0 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import gc
import sys
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler, default_collate
from torchdata.nodes import Batcher, Loader, ParallelMapper, SamplerWrapper
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop

PICTURES, EPOCHS, WORKERS, BATCH = 256, 5, 4, 8


class Crops(Dataset):
    """Random crops of a picture [2, row, column] whose values are the place of each pixel, and a draw of numpy's."""

    def __init__(self) -> None:
        places = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
        self.picture = torch.stack(places)
        self.crop = RandomResizedCrop(224, interpolation=InterpolationMode.NEAREST)

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.crop(self.picture), int(np.random.randint(2**31))


def from_parts(data: Crops, sampler: Sampler, method: str) -> Loader:
    def read(numbers: list[int]) -> list[torch.Tensor]:
        return default_collate([data[number] for number in numbers])

    node = Batcher(SamplerWrapper(sampler), BATCH, drop_last=False)
    return Loader(ParallelMapper(node, read, num_workers=WORKERS, method=method))


def loader_of(kind: str, data: Crops, sampler: Sampler) -> Iterable:
    if kind == "DataLoader":
        return DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS)
    return from_parts(data, sampler, kind.split()[-1])


def different(kind: str, weighted: bool) -> tuple[float, int, int]:
    """Different crops in an epoch (mean), different crops in all epochs, different draws of numpy's in all."""
    torch.manual_seed(0)
    np.random.seed(0)
    data = Crops()
    if weighted:
        weights, own = [1.0 + number for number in range(PICTURES)], torch.Generator().manual_seed(0)
        sampler = WeightedRandomSampler(weights, PICTURES, generator=own)
    else:
        sampler = RandomSampler(data)
    loader = loader_of(kind, data, sampler)
    in_epoch, crops, draws = [], set(), set()
    for _ in range(EPOCHS):
        here = set()
        for pictures, drawn in loader:
            corners = torch.cat([pictures[:, :, 0, 0], pictures[:, :, -1, -1]], dim=1)
            here |= {tuple(corner) for corner in corners.tolist()}
            draws |= set(drawn.tolist())
        in_epoch.append(len(here))
        crops |= here
    return sum(in_epoch) / EPOCHS, len(crops), len(draws)


if __name__ == "__main__":
    held = []
    for weighted, name in ((True, "WeightedRandomSampler"), (False, "RandomSampler")):
        for kind in ("DataLoader", "nodes, thread", "nodes, process"):
            in_epoch, crops, draws = different(kind, weighted)
            gc.collect()  # else a later worker closes this loader again, and complains
            print(f"{name + ', ' + kind + ':':38}", end=" ")
            print(f"{in_epoch:3.0f} different crops an epoch, {crops:4} in {EPOCHS} epochs, numpy {draws:4}")
            if kind == "nodes, process":
                held += [in_epoch < 0.8 * PICTURES, draws <= PICTURES, crops <= PICTURES * (1 if weighted else 2)]
            else:
                held.append(min(in_epoch / PICTURES, crops / PICTURES / EPOCHS, draws / PICTURES / EPOCHS) > 0.98)
    sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" -W ignore "$folder/check.py"
