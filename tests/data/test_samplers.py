"""Samplers: class frequencies against closed forms, the same order from the same seed, classes left out."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from liftplus import registry
from liftplus.data.dataset import Split
from liftplus.data.loader import Loader, Shuffled, TrainView
from liftplus.data.samplers import EffectiveNumber, Instance, Progressive, Sampler
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import MDA

from ..conftest import picture

NAMES = sorted(registry.discover("sampler"))
RESAMPLERS = [name for name in NAMES if name != "instance"]
COUNTS = [4001, 907, 211, 53, 0, 11, 2]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).tolist()
EPOCHS = 5


def make(name: str, **options: float) -> Sampler:
    sampler = registry.get("sampler", name)(**options)
    assert isinstance(sampler, Sampler)
    return sampler


def expected(name: str, epoch: int) -> list[float]:
    """Probability of each class in this epoch of five, from the papers' formulas."""
    t = epoch / (EPOCHS - 1)
    present, total = sum(n > 0 for n in COUNTS), sum(COUNTS)
    own = {
        "instance": lambda n: n / total,
        "class_balanced": lambda n: 1 / present,
        "square_root": lambda n: n**0.5,
        "effective_number": lambda n: n * (1 - 0.9999) / (1 - 0.9999**n),
        "progressive": lambda n: (1 - t) * n / total + t / present,
    }[name]
    shares = [own(n) if n else 0.0 for n in COUNTS]
    return [share / sum(shares) for share in shares]


def within_five_sigma(drawn: np.ndarray, share: np.ndarray) -> bool:
    """Whether binomial counts are within five standard deviations (and one) of their means."""
    draws = drawn.sum()
    return bool((np.abs(drawn - draws * share) <= 5 * np.sqrt(draws * share * (1 - share)) + 1).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_class_frequencies(name: str, epoch: int) -> None:
    drawn = np.zeros(len(COUNTS))
    for seed in range(10):
        indices = make(name).order(LABELS, EPOCHS, seed)(epoch)
        assert len(indices) == len(LABELS)
        drawn += np.bincount(np.array(LABELS)[list(indices)], minlength=len(COUNTS))
    assert drawn[4] == 0
    assert within_five_sigma(drawn, np.array(expected(name, epoch)))


@pytest.mark.parametrize("name", RESAMPLERS)
def test_within_a_class_every_image_comes_equally_often(name: str) -> None:
    labels = np.array(LABELS)
    order = make(name).order(LABELS, EPOCHS, 0)
    drawn = np.bincount([index for epoch in range(EPOCHS) for index in order(epoch)], minlength=len(labels))
    for k, count in enumerate(COUNTS):
        assert not count or within_five_sigma(drawn[labels == k], np.full(count, 1 / count))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_follows_from_seed_and_epoch(name: str) -> None:
    order = make(name).order(LABELS, EPOCHS, 3)
    later, first = list(order(2)), list(order(0))
    assert list(order(2)) == later and list(make(name).order(LABELS, EPOCHS, 3)(0)) == first
    assert list(pickle.loads(pickle.dumps(order))(2)) == later
    assert first != later
    assert first != list(make(name).order(LABELS, EPOCHS, 4)(0))


def test_instance_sampling_is_a_seeded_shuffle() -> None:
    order = Instance().order(LABELS, EPOCHS, 3)
    assert order == Shuffled(len(LABELS), 3)
    assert sorted(order(1)) == list(range(len(LABELS)))
    # The first run's order, which pinned results rest on.
    assert list(Instance().order([0] * 7, EPOCHS, 0)(0)) == [3, 4, 0, 1, 6, 2, 5]


@pytest.mark.parametrize(("epochs", "epoch", "same"), [(5, 0, "effective_number"), (5, 4, "class_balanced")])
def test_progressive_ends_are_the_samplers_it_goes_between(epochs: int, epoch: int, same: str) -> None:
    other = EffectiveNumber(beta=0) if same == "effective_number" else make(same)  # beta = 0: every image alike
    assert Progressive().order(LABELS, epochs, 3)(epoch) == other.order(LABELS, epochs, 3)(epoch)


def test_progressive_in_one_epoch_is_balanced() -> None:
    assert Progressive().order(LABELS, 1, 3)(0) == make("class_balanced").order(LABELS, 1, 3)(0)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_and_one_image(name: str) -> None:
    alone = make(name).order([2] * 5, EPOCHS, 0)(1)
    assert len(alone) == 5 and set(alone) <= set(range(5))
    assert list(make(name).order([6], EPOCHS, 0)(0)) == [0]


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_workers_gives_the_same_batches(name: str, tmp_path: Path) -> None:
    labels = [0] * 8 + [1, 2]
    for index in range(len(labels)):
        picture((20 * index, 100, 200), index, (40, 40)).save(tmp_path / f"{index}.png")
    split = Split([f"{index}.png" for index in range(len(labels))], labels)

    def batches(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        order = make(name).order(labels, 2, 1)
        view = TrainView(MDA(), 32, "bicubic", 2, seed=1)
        loader = Loader(FolderStore(tmp_path), split, view, batch_size=4, order=order, workers=workers)
        return [(batch.images, batch.indices) for epoch in range(2) for batch in loader.epoch(epoch)]

    for (images, indices), (again, same) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(images, again) and torch.equal(indices, same)


@pytest.mark.parametrize("name", NAMES)
def test_inaturalist_is_ordered_in_a_moment(name: str) -> None:
    """437,513 images of 8,142 classes: about 0.2 s; the bound leaves room for a busy machine."""
    share = 1 / np.arange(1, 8143)
    labels = np.random.default_rng(0).choice(8142, 437_513, p=share / share.sum()).tolist()
    started = time.process_time()
    indices = make(name).order(labels, EPOCHS, 0)(1)
    assert time.process_time() - started < 5
    assert len(indices) == len(labels)
