"""Write the files of a test: metrics, accuracy by class, confusions and predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liftplus.data.dataset import DataSet, Split
from liftplus.evaluation.inference import TopK
from liftplus.evaluation.metrics import Metrics, group_of
from liftplus.machine.disk import write_csv, write_json


def write_evaluation(
    folder: Path,
    dataset: DataSet,
    split: Split,
    predictions: TopK,
    metrics: Metrics,
    train_counts: Sequence[int],
    about: dict[str, Any],
) -> None:
    """Write metrics.json, per_class.csv, confusion.csv and predictions.csv of one tested split.

    Args:
        train_counts: training images of each class [C].
        about: further entries for metrics.json.
    """
    names = dataset.class_names
    tested = Counter(split.labels)
    extra = ["frequency"] if dataset.frequency else []
    levels = dataset.levels
    best = predictions.classes[:, 0].tolist()
    write_json(folder / "metrics.json", about | metrics.summary())
    write_csv(
        folder / "per_class.csv",
        (
            *("class", "id", "name", "group", "train_images", "test_images", "accuracy"),
            *(*extra, *(f"level_{name}" for name in levels)),
        ),
        (
            (
                k,
                dataset.class_ids[k],
                names[k],
                group_of(train_counts[k]),
                train_counts[k],
                tested[k],
                "" if metrics.per_class[k] is None else f"{metrics.per_class[k]:.2f}",
                *(dataset.frequency.get(dataset.class_ids[k], "") for _ in extra),
                *(groups[dataset.class_ids[k]] for groups in levels.values()),
            )
            for k in range(len(names))
        ),
    )
    pairs = sorted(Counter(zip(split.labels, best, strict=True)).items())
    write_csv(folder / "confusion.csv", ("true", "predicted", "images"), ((t, p, n) for (t, p), n in pairs))
    write_csv(
        folder / "predictions.csv",
        ("path", "true", "predicted", "probability", "correct"),
        (
            (key, names[label], names[guess], f"{probability:.4f}", int(label == guess))
            for key, label, guess, probability in zip(
                split.keys, split.labels, best, predictions.probabilities[:, 0].tolist(), strict=True
            )
        ),
    )
