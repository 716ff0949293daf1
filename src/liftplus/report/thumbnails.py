"""The most confused pairs of classes, with pictures if the run's data can still be read."""

from __future__ import annotations

import base64
import io
import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass

from PIL import Image

from liftplus.data.dataset import DataSet, Store
from liftplus.errors import UserError
from liftplus.report.series import Series
from liftplus.words import counted

PAIRS, PICTURES, SIDE = 10, 3, 88


@dataclass(frozen=True)
class Pair:
    """A true class and the class that it was mistaken for.

    Attributes:
        images: number of wrong pictures, summed over the seeds.
        tests: number of test pictures of the true class, summed over the seeds.
        seeds: number of tested seeds.
        true_train, predicted_train: training pictures of the two classes.
        wrong: data URIs of wrong pictures, those first that most seeds had wrong.
        example: data URI of a training picture of the predicted class.
    """

    true: str
    predicted: str
    images: int
    tests: int
    seeds: int
    true_train: int
    predicted_train: int
    wrong: tuple[str, ...] = ()
    example: str | None = None

    def row(self) -> tuple[str, str, int, int, int, str, int, int]:
        """Its row of the CSV."""
        names, counts = (self.true, self.predicted), (self.images, self.seeds, self.tests)
        return (*names, *counts, f"{self.share:.6g}", self.true_train, self.predicted_train)

    @property
    def count(self) -> str:
        """How often, in words."""
        if self.seeds == 1:
            of = f"of its {counted(self.tests, 'test picture')}"
        else:
            each = self.tests // self.seeds
            of = f"of {self.tests:,} ({self.seeds} seeds, {counted(each, 'test picture')} each)"
        return f"{self.images:,} {of}, {self.share:.0f} %"

    @property
    def share(self) -> float:
        """Wrong pictures among the true class's test pictures, in percent."""
        return 100 * self.images / self.tests if self.tests else 0.0


def pairs(one: Series, dataset: DataSet | None) -> list[Pair]:
    """The pairs that a series confuses most, with pictures if there is a data set."""
    classes = next((t.classes for t in one.tested if t.classes), ())
    tables = [t.classes for t in one.tested if t.confusion and len(t.classes) == len(classes)]
    chosen = [p for p in one.confusion() if max(p[:2]) < len(classes)][:PAIRS]
    wrong, examples = _keys(one, {(classes[t].name, classes[g].name) for t, g, _ in chosen}), _first_keys(dataset)
    made = []
    for true, guess, images in chosen:
        a, b = classes[true], classes[guess]
        shown: tuple[str, ...] = ()
        example = None
        if dataset is not None:
            uris = (uri(dataset.store, key) for key in wrong[a.name, b.name])
            shown = tuple(itertools.islice((found for found in uris if found), PICTURES))
            example = uri(dataset.store, examples[guess]) if guess in examples else None
        tests = sum(rows[true].test_images for rows in tables)
        made.append(Pair(a.name, b.name, images, tests, len(tables), a.train_images, b.train_images, shown, example))
    return made


def _keys(one: Series, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Keys of wrong pictures by their pair of class names; those first that most seeds had wrong."""
    keys: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for tested in one.tested:
        for p in tested.predictions:
            if (p.true, p.predicted) in wanted:
                keys[p.true, p.predicted][p.path] += 1
    return defaultdict(list, {pair: [key for key, _ in found.most_common()] for pair, found in keys.items()})


def _first_keys(dataset: DataSet | None) -> dict[int, str]:
    if dataset is None or "train" not in dataset.splits:
        return {}
    part = dataset.splits["train"]
    return dict(reversed(list(zip(part.labels, part.keys, strict=True))))


def uri(store: Store, key: str) -> str | None:
    """A small JPEG as a data URI; None if the picture cannot be read."""
    try:
        image = store.image(key)
    except (UserError, OSError, KeyError, IndexError, ValueError):  # stores raise any of these for a missing key
        return None
    image.thumbnail((2 * SIDE, SIDE * 2), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
