"""What tests got right, told apart from chance: each accuracy with its interval and each two methods.

`compare` prints these and the report shows them, so that both give one judgement.

The 95 % interval of one accuracy is Korn and Graubard's (1998, Survey Methodology 24:193): Clopper and Pearson's
interval of a share, for the number of independent images whose share would vary as the accuracy does over seeds and
test images. So it keeps its width where all images are right.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liftplus import noise
from liftplus.errors import UserError
from liftplus.noise import KEYS, LEVEL, Difference


@dataclass(frozen=True)
class Tested:
    """Which images S runs of a method got right, [S, N], in the order of the test split, and the images' classes [N].

    Attributes:
        images: the images' names and true classes, which two methods must share to be compared.
        train_counts: of each class.
        seeds: of the S runs.
    """

    right: NDArray[np.float64]
    labels: NDArray[np.int64]
    images: tuple[tuple[str, str], ...]
    train_counts: tuple[int, ...]
    seeds: tuple[int, ...] = ()

    def accuracy(self, key: str) -> float | None:
        """The mean over seeds in percent; None where no image belongs to the group."""
        weight, _ = noise.weights(key, self.labels, self.train_counts)
        return 100 * float((self.right @ weight).mean()) if weight.any() else None

    def pictures(self, key: str) -> int:
        """How many test images an accuracy rests on."""
        return int((noise.weights(key, self.labels, self.train_counts)[0] > 0).sum())

    def interval(self, key: str) -> tuple[float, float] | None:
        """The accuracy's 95 % interval over seeds and test images, in percent; None without an image."""
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
        alike = 1 / float((weight**2).sum())  # images of equal weight that say as much (Kish 1965)
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
    tested: Tested

    @property
    def name(self) -> str:
        """The method, and five crops where they were averaged."""
        return named(self.method, self.tte)


def named(method: str, tte: bool) -> str:
    """How a table calls a method tested with one crop, or with five."""
    return f"{method} (five crops)" if tte else method


def read_tests(folders: Sequence[Path], seeds: Sequence[int] = ()) -> Tested:
    """Runs that differ by seed, from the folders of their tests; without `seeds` they count from 0."""
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
    return Tested(right, labels, images, counts, tuple(seeds) or tuple(range(len(folders))))


def _table(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        if not lines or not set(columns) <= lines[0].keys():
            raise ValueError("columns are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}). Remove its run's folder to make it anew.") from error
    return lines


def paired(a: Tested, b: Tested) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Right or wrong [S, N] of both on the same images, in a's order, and with the same seeds.

    Where the two share no seed, their runs are paired in order. None where they were tested on other images.
    """
    other = b.right
    if a.images != b.images:
        place = {image: k for k, image in enumerate(b.images)}
        if len(a.images) != len(b.images) or len(place) != len(b.images) or place.keys() != set(a.images):
            return None
        other = other[:, [place[image] for image in a.images]]
    if both := sorted(set(a.seeds) & set(b.seeds)):
        return a.right[[a.seeds.index(s) for s in both]], other[[b.seeds.index(s) for s in both]]
    least = min(len(a.right), len(other))
    return a.right[:least], other[:least]


def _pairs(contenders: Sequence[Contender]) -> list[tuple[Contender, Contender]]:
    """Every two with the same number of crops, five crops against one, and methods that share no number of crops."""
    crops: dict[str, set[bool]] = {}
    for one in contenders:
        crops.setdefault(one.method, set()).add(one.tte)
    return [
        (a, b)
        for k, a in enumerate(contenders)
        for b in contenders[k + 1 :]
        if a.tte == b.tte or a.method == b.method or not crops[a.method] & crops[b.method]
    ]


def judged(contenders: Sequence[Contender]) -> list[Difference]:
    """The differences of methods that were tested on the same images, by accuracy; p-values adjusted for each."""
    pairs = [(a, b, right) for a, b in _pairs(contenders) if (right := paired(a.tested, b.tested)) is not None]
    found: list[Difference] = []
    for key in KEYS:
        told = []
        for a, b, right in pairs:
            weight, strata = noise.weights(key, a.tested.labels, a.tested.train_counts)
            if weight.any():
                told.append((a, b, len(right[0]), a.tested.pictures(key), noise.compare(*right, weight, strata)))
        adjusted = noise.holm([p for *_, (_, _, p) in told])
        found += [
            Difference(a.name, b.name, key, points, half, p, corrected, seeds, images)
            for (a, b, seeds, images, (points, half, p)), corrected in zip(told, adjusted, strict=True)
        ]
    return found


def headlines(contenders: Sequence[Contender], found: Sequence[Difference]) -> list[str]:
    """The sentences to read first: the best method against each other one, overall and on rare classes."""
    out = []
    for key in ("overall", "few"):
        for tte in (False, True):
            scored = [(one.tested.accuracy(key), one.name) for one in contenders if one.tte == tte]
            values = [(value, name) for value, name in scored if value is not None]
            if values:
                _, best = max(values, key=lambda pair: pair[0])
                out += [one.sentence() for one in found if one.key == key and best in (one.a, one.b)]
    return list(dict.fromkeys(out))


def counted(tested: Tested) -> str:
    """On how many test images the accuracies rest: 66 test images: many 30, medium 20, few 16."""
    groups = [f"{key} {n:,}" for key in ("many", "medium", "few") if (n := tested.pictures(key))]
    n = tested.pictures("overall")
    return f"{n:,} test image{'s' if n != 1 else ''}: {', '.join(groups)}"


def caveat(seeds: int) -> str:
    """What the intervals are, and what they do not show."""
    if seeds == 1:
        return (
            "One seed proves nothing under 0.3 points overall or 1 point on a group: other seeds differ by that much. "
            "± is a 95 % interval over test images alone. Give --seeds 3 for more."
        )
    return (
        f'± of a difference is a 95 % interval over {seeds} seeds (paired) and test images together; "more than noise" '
        "holds for all comparisons of one accuracy at once (Holm, 5 %)."
    )
