"""Intervals of accuracies, and which differences between methods are more than noise.

`compare` prints these and the report shows them, so both give the same judgement.

The 95 % interval of an accuracy is Korn and Graubard's (1998, Survey Methodology 24:193). It is Clopper and Pearson's
interval of a share, with an effective number of independent images: that many images would give the variance which the
accuracy has over seeds and test images. So the interval does not shrink to a point when all images are right.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liftplus import words
from liftplus.errors import UserError
from liftplus.evaluation import noise
from liftplus.evaluation.noise import KEYS, LEVEL, Difference


@dataclass(frozen=True)
class Answers:
    """What S runs of a method, one per seed, got right on N test images.

    Attributes:
        right: 1 where right, else 0, [S, N], in the order of the test split.
        labels: class of each image [N].
        images: name and true class of each image; two methods need the same ones to be compared.
        train_counts: training images of each class [C].
        seeds: of the S runs.
    """

    right: NDArray[np.float64]
    labels: NDArray[np.int64]
    images: tuple[tuple[str, str], ...]
    train_counts: tuple[int, ...]
    seeds: tuple[int, ...] = ()

    def accuracy(self, key: str) -> float | None:
        """The mean over seeds in percent; None if no image belongs to the group."""
        weight, _ = noise.weights(key, self.labels, self.train_counts)
        return 100 * float((self.right @ weight).mean()) if weight.any() else None

    def pictures(self, key: str) -> int:
        """Number of test images in an accuracy."""
        return int((noise.weights(key, self.labels, self.train_counts)[0] > 0).sum())

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy over seeds and test images, in percent; None if no image belongs to it."""
        from scipy import stats

        weight, strata = noise.weights(key, self.labels, self.train_counts)
        if not weight.any():
            return None
        by_seed, images = self.right @ weight, int((weight > 0).sum())
        share = float(np.clip(by_seed.mean(), 0, 1))
        parts = [noise.image_variance(self.right.mean(0), weight, strata) or (0.0, 1.0)]
        if len(by_seed) > 1:
            parts.append((float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1.0))
        variance = sum(part for part, _ in parts)
        alike = 1 / float((weight**2).sum())  # effective number of images (Kish 1965)
        if 1e-9 < share < 1 - 1e-9 and variance > 1e-12:
            freedom = variance**2 / sum(part**2 / df for part, df in parts)
            t = [float(stats.t.ppf(1 - LEVEL / 2, df)) for df in (max(images - 1, 1), freedom)]
            alike = min(share * (1 - share) / variance * (t[0] / t[1]) ** 2, alike * len(by_seed))
        low = stats.beta.ppf(LEVEL / 2, share * alike, (1 - share) * alike + 1) if share > 1e-9 else 0.0
        high = stats.beta.ppf(1 - LEVEL / 2, share * alike + 1, (1 - share) * alike) if share < 1 - 1e-9 else 1.0
        return 100 * float(low), 100 * float(high)


@dataclass(frozen=True)
class Contender:
    """A method tested with one crop, or with five."""

    method: str
    tte: bool
    answers: Answers

    @property
    def name(self) -> str:
        """The method's name in tables, marked if five crops were averaged."""
        return named(self.method, self.tte)


def named(method: str, tte: bool) -> str:
    """The name of a method in tables; `tte` marks five crops."""
    return f"{method} (five crops)" if tte else method


def read_tests(folders: Sequence[Path], seeds: Sequence[int] = ()) -> Answers:
    """Read the answers of runs that differ only in their seed, from the folders of their tests.

    Args:
        seeds: of the runs; by default 0, 1, 2, …

    Raises:
        UserError: a file cannot be read, or the runs were tested on different images.
    """
    classes = _table(folders[0] / "per_class.csv", "name", "train_images")
    index = {line["name"]: k for k, line in enumerate(classes)}
    shown = [_table(folder / "predictions.csv", "path", "true", "correct") for folder in folders]
    for folder, lines in zip(folders, shown, strict=True):
        if [(line["path"], line["true"]) for line in lines] != [(line["path"], line["true"]) for line in shown[0]]:
            raise UserError(f"{str(folder)!r} and {str(folders[0])!r} were tested on different images.")
    labels = np.array([index[line["true"]] for line in shown[0]], dtype=np.int64)
    right = np.array([[float(line["correct"]) for line in lines] for lines in shown])
    images = tuple((line["path"], line["true"]) for line in shown[0])
    counts = tuple(int(line["train_images"]) for line in classes)
    return Answers(right, labels, images, counts, tuple(seeds) or tuple(range(len(folders))))


def _table(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        if not lines or not set(columns) <= lines[0].keys():
            raise ValueError("columns are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}). Delete the run's folder and make it again."
        ) from error
    return lines


def _ordered(one: Answers, images: tuple[tuple[str, str], ...]) -> NDArray[np.float64]:
    """Right or wrong [S, N], reordered to the given order of the same images."""
    if one.images == images:
        return one.right
    place = {image: k for k, image in enumerate(one.images)}
    return one.right[:, [place[image] for image in images]]


def _same_seeds(a: Contender, b: Contender) -> tuple[Contender, Contender] | None:
    """Two tests of one training, restricted to the seeds that both have; None if they share no seed."""
    both = tuple(sorted(set(a.answers.seeds) & set(b.answers.seeds)))
    if not both:
        return None
    kept = [replace(one.answers, seeds=both, right=_of(one.answers, both)) for one in (a, b)]
    return replace(a, answers=kept[0]), replace(b, answers=kept[1])


def _of(one: Answers, seeds: Sequence[int]) -> NDArray[np.float64]:
    return one.right[[one.seeds.index(seed) for seed in seeds]]


Pair = tuple[Contender, Contender]


def _families(contenders: Sequence[Contender]) -> list[list[Pair]]:
    """Groups of pairs on the same images, each with its own estimate of the seeds' variance.

    The groups are: both with one crop, both with five, one method with five crops against one, and two methods that
    were never tested with the same number of crops.
    """
    crops: dict[str, set[bool]] = {}
    for one in contenders:
        crops.setdefault(one.method, set()).add(one.tte)
    found: dict[tuple[str, frozenset[tuple[str, str]]], list[Pair]] = {}
    for a, b in combinations(contenders, 2):
        images = frozenset(a.answers.images)
        distinct = len(a.answers.images) == len(b.answers.images) == len(images)
        if a.answers.images != b.answers.images and not (distinct and images == frozenset(b.answers.images)):
            continue
        if a.method == b.method:
            if (pair := _same_seeds(a, b)) is not None:
                found.setdefault(("crops", images), []).append(pair)
        elif a.tte == b.tte:
            found.setdefault(("five" if a.tte else "one", images), []).append((a, b))
        elif not crops[a.method] & crops[b.method]:
            found.setdefault(("other", images), []).append((a, b))
    order = ("one", "five", "crops", "other")
    return [pairs for kind in order for (key, _), pairs in found.items() if key == kind]


def judged(contenders: Sequence[Contender]) -> list[Difference]:
    """Differences between methods tested on the same images. p-values are adjusted within each accuracy."""
    families, found = _families(contenders), []
    for key in KEYS:
        told = [one for family in families for one in _compared(family, key)]
        adjusted = noise.holm([one.p for one in told])
        found += [replace(one, adjusted=p) for one, p in zip(told, adjusted, strict=True)]
    return found


def _compared(family: Sequence[Pair], key: str) -> list[Difference]:
    """A family's differences in one accuracy, with p not adjusted; empty if no image belongs to the accuracy."""
    members = list({one.name: one for pair in family for one in pair}.values())
    first = members[0].answers
    weight, strata = noise.weights(key, first.labels, first.train_counts)
    if not weight.any():
        return []
    names = [one.name for one in members]
    places = [(names.index(a.name), names.index(b.name)) for a, b in family]
    right = [_ordered(one.answers, first.images) for one in members]
    found = noise.compare_all(right, places, weight, strata, [one.method for one in members])
    images = int((weight > 0).sum())
    return [
        Difference(
            *(a.name, b.name, key, one.points, one.half, one.p, one.p),
            min(len(a.answers.right), len(b.answers.right)),
            images,
            one.part,
        )
        for (a, b), one in zip(family, found, strict=True)
    ]


def headlines(contenders: Sequence[Contender], found: Sequence[Difference]) -> list[str]:
    """The main findings: the best method against each other method, overall and on few classes."""
    out = []
    for key in ("overall", "few"):
        for tte in (False, True):
            scored = [(one.answers.accuracy(key), one.name) for one in contenders if one.tte == tte]
            values = [(value, name) for value, name in scored if value is not None]
            if values:
                _, best = max(values, key=lambda pair: pair[0])
                out += [one.sentence() for one in found if one.key == key and best in (one.a, one.b)]
    return list(dict.fromkeys(out))


def counted(answers: Answers) -> str:
    """Numbers of test images in words: "66 test images: many 30, medium 20, few 16"."""
    groups = [f"{key} {n:,}" for key in ("many", "medium", "few") if (n := answers.pictures(key))]
    n = answers.pictures("overall")
    return f"{words.counted(n, 'test image')}: {', '.join(groups)}"


def caveat(seeds: int) -> str:
    """What the printed intervals mean, and what they do not show."""
    if seeds == 1:
        return (
            "One seed proves nothing: other seeds give other accuracies, and their spread is not known. ± of a "
            "difference is a 95 % interval over test images alone. Give --seeds 3 to see which differences are more "
            "than noise."
        )
    return (
        f'± of a difference is a 95 % interval over {seeds} seeds and the test images together. "More than noise" '
        "is adjusted for all differences in one accuracy: at most one such set in twenty has a false finding "
        "(Holm, 5 %)."
    )
