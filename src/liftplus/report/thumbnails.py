"""The most confused pairs of classes with pictures, where the run's data are still there."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass

from PIL import Image

from liftplus.data.dataset import DataSet, Store
from liftplus.errors import UserError
from liftplus.report.series import Series

PAIRS, PICTURES, SIDE = 10, 3, 88


@dataclass(frozen=True)
class Pair:
    """A true class and the class that it was taken for.

    Attributes:
        images: wrong pictures, mean over the seeds.
        share: of the true class's test pictures, in percent.
        wrong: data URIs of such pictures.
        example: data URI of a training picture of the predicted class.
    """

    true: str
    predicted: str
    images: float
    share: float
    true_train: int
    predicted_train: int
    wrong: tuple[str, ...] = ()
    example: str | None = None


def pairs(one: Series, dataset: DataSet | None) -> list[Pair]:
    """The pairs that one series confuses most, with pictures where there are data."""
    classes = next((t.classes for t in one.tested if t.classes), ())
    chosen = [p for p in one.confusion() if max(p[:2]) < len(classes)][:PAIRS]
    wrong, examples = _keys(one, {(classes[t].name, classes[g].name) for t, g, _ in chosen}), _first_keys(dataset)
    made = []
    for true, guess, images in chosen:
        a, b = classes[true], classes[guess]
        shown: tuple[str, ...] = ()
        example = None
        if dataset is not None:
            uris = (uri(dataset.store, key) for key in wrong[a.name, b.name][:PICTURES])
            shown = tuple(found for found in uris if found)
            example = uri(dataset.store, examples[guess]) if guess in examples else None
        share = 100 * images / a.test_images if a.test_images else 0.0
        made.append(Pair(a.name, b.name, images, share, a.train_images, b.train_images, shown, example))
    return made


def _keys(one: Series, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Keys of wrongly classified pictures by their pair of class names."""
    keys: dict[tuple[str, str], list[str]] = defaultdict(list)
    for tested in one.tested[:1]:
        for p in tested.predictions:
            if (p.true, p.predicted) in wanted:
                keys[p.true, p.predicted].append(p.path)
    return keys


def _first_keys(dataset: DataSet | None) -> dict[int, str]:
    if dataset is None or "train" not in dataset.splits:
        return {}
    part = dataset.splits["train"]
    return dict(reversed(list(zip(part.labels, part.keys, strict=True))))


def uri(store: Store, key: str) -> str | None:
    """A small JPEG as a data URI; None where the picture cannot be read."""
    try:
        image = store.image(key)
    except (UserError, OSError, KeyError, IndexError, ValueError):  # what stores raise for a key they do not hold
        return None
    image.thumbnail((2 * SIDE, SIDE * 2), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
