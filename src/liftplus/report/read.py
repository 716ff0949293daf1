"""Read run folders. A missing or damaged file is reported, and only its part of the report is left out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from liftplus.runs.reuse import TESTS

T = TypeVar("T")
FILES = ("config.json", "metrics.json", "per_class.csv", "log.jsonl")
INSIDE = ("*/metrics.json", f"{TESTS}/*/metrics.json")  # where further tests of a run are


@dataclass(frozen=True)
class ClassRow:
    """One class of a tested split; accuracy in percent, None without a test image."""

    id: str
    name: str
    group: str
    train_images: int
    test_images: int
    accuracy: float | None


@dataclass(frozen=True)
class Prediction:
    """One tested picture: names of the true and the best class, its probability in [0, 1]."""

    path: str
    true: str
    predicted: str
    probability: float
    correct: bool


@dataclass(frozen=True)
class EvaluationFiles:
    """One evaluation: metrics.json and the tables beside it. A part that could not be read is empty."""

    folder: Path
    metrics: dict[str, Any]
    classes: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, int, int], ...] = ()  # true class, predicted class, pictures
    predictions: tuple[Prediction, ...] = ()

    @property
    def tte(self) -> bool:
        """Whether five crops were averaged."""
        return bool(table(self.metrics.get("evaluation")).get("tte"))

    @property
    def expand(self) -> int | None:
        """Pixels by which the short side exceeded the input size."""
        value = table(self.metrics.get("evaluation")).get("expand")
        return value if isinstance(value, int) else None

    @property
    def margins(self) -> tuple[Any, Any]:
        """The settings of the crops' margins: expand and one_crop_expand."""
        evaluation = table(self.metrics.get("evaluation"))
        return evaluation.get("expand"), evaluation.get("one_crop_expand")

    @property
    def resize(self) -> str:
        """How pictures were resized: short_side, or square."""
        return str(table(self.metrics.get("evaluation")).get("resize", "short_side"))

    @property
    def adjusted(self) -> tuple[Any, bool]:
        """The prior for which the logits were adjusted, and whether zero-shot logits were added."""
        return table(self.metrics.get("evaluation")).get("prior", "as_trained"), "gla" in self.metrics

    @property
    def what(self) -> tuple[str, str]:
        """Data set and split."""
        return str(self.metrics.get("data", "")), str(self.metrics.get("split", ""))


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    about: dict[str, Any]  # config.json
    log: tuple[dict[str, float], ...]  # one entry per epoch
    tested: EvaluationFiles | None
    others: tuple[EvaluationFiles, ...]  # further tests, in folders inside
    problems: tuple[str, ...] = field(default=())

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings as plain values."""
        return table(self.about.get("config"))

    @property
    def seed(self) -> int:
        """The run's seed; 0 if it is not known."""
        seed = self.config.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def other_crops(self) -> EvaluationFiles | None:
        """The test of the same data and split with the other number of crops, preferably with the same margins.

        A test with pictures of another shape, or with logits adjusted for another prior, does not count.
        """
        if (own := self.tested) is None:
            return None
        same = [t for t in self.others if (t.what, t.adjusted, t.resize) == (own.what, own.adjusted, own.resize)]
        found = [t for t in same if t.tte != own.tte]
        return max(found, key=lambda t: t.margins == own.margins, default=None)

    @property
    def train_counts(self) -> tuple[int, ...]:
        """Training pictures of each class, from config.json or else from the table of classes."""
        counts = table(self.about.get("data")).get("train_counts")
        if isinstance(counts, list) and all(isinstance(n, int) for n in counts):
            return tuple(counts)
        return tuple(row.train_images for row in self.tested.classes) if self.tested else ()

    @property
    def seconds(self) -> float | None:
        """Seconds of training; None if not recorded."""
        seconds = self.tested.metrics.get("seconds") if self.tested else None
        return number(seconds) if seconds is not None else self.log[-1].get("seconds") if self.log else None


def table(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def run(folder: Path) -> Run:
    """Everything a run folder holds."""
    problems: list[str] = []
    nothing: dict[str, Any] = {}
    about = _tried(folder / "config.json", _json, nothing, problems)
    log: tuple[dict[str, float], ...] = ()
    if (folder / "log.jsonl").is_file():
        log = _tried(folder / "log.jsonl", _log, log, problems)
    if table(table(about.get("config")).get("train")).get("epochs") and not log:
        problems.append(f"{folder / 'log.jsonl'} has no epoch, so this run has no training curve.")
    tested = _tested(folder, problems)
    inside = sorted(path.parent for place in INSIDE for path in folder.glob(place))
    others = tuple(found for path in inside if (found := _tested(path, problems)) is not None)
    return Run(folder, about, log, tested, others, tuple(problems))


def _tested(folder: Path, problems: list[str]) -> EvaluationFiles | None:
    metrics = _tried(folder / "metrics.json", _metrics, None, problems)
    if metrics is None:
        return None
    return EvaluationFiles(
        folder,
        metrics,
        _tried(folder / "per_class.csv", _classes, (), problems),
        _tried(folder / "confusion.csv", _confusion, (), problems),
        _tried(folder / "predictions.csv", _predictions, (), problems),
    )


def _tried(path: Path, reader: Callable[[Path], T], instead: T, problems: list[str]) -> T:
    """The result of a reader, or `instead` and a sentence in `problems` if it fails."""
    try:
        return reader(path)
    except FileNotFoundError:
        problems.append(f"{path} is missing, so its part is left out.")
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}), so its part is left out.")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"column or key {error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        problems.append(f"{path} is damaged ({reason[:200]}), so its part is left out.")
    return instead


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _metrics(path: Path) -> dict[str, Any]:
    value = _json(path)
    if number(value["overall"]) is None:
        raise ValueError("overall is not a number")
    for key in ("mean_class", "many", "medium", "few"):
        if value[key] is not None and number(value[key]) is None:
            raise ValueError(f"{key} is not a number")
    return value


def _log(path: Path) -> tuple[dict[str, float], ...]:
    """The entries of the log; damaged lines, such as a last one cut short, are skipped."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            entries.append({key: float(entry[key]) for key in ("epoch", "loss", "lr", "seconds")})
        except (ValueError, KeyError, TypeError):
            continue
    return tuple(entries)


def _rows(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    if not found:
        raise ValueError("it has no rows")
    return found


def _classes(path: Path) -> tuple[ClassRow, ...]:
    rows = []
    for place, row in enumerate(_rows(path)):
        if int(row["class"]) != place or row["group"] not in ("many", "medium", "few"):
            raise ValueError(f"row {place + 1} is out of order")
        accuracy = float(row["accuracy"]) if row["accuracy"] else None
        counts = int(row["train_images"]), int(row["test_images"])
        rows.append(ClassRow(row["id"], row["name"], row["group"], *counts, accuracy))
    return tuple(rows)


def _confusion(path: Path) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(row["true"]), int(row["predicted"]), int(row["images"])) for row in _rows(path))


def _predictions(path: Path) -> tuple[Prediction, ...]:
    found = []
    for row in _rows(path):
        chance = float(row["probability"])
        if not 0 <= chance <= 1:
            raise ValueError(f"a probability is {chance}")
        found.append(Prediction(row["path"], row["true"], row["predicted"], chance, row["correct"] == "1"))
    return tuple(found)
