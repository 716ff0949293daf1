"""Run folders as training writes them, with numbers made up from a seed, for tests of the report alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liftplus import config
from liftplus.evaluation.metrics import accuracies, group_of
from liftplus.machine import disk


@dataclass(frozen=True)
class Made:
    """What a made-up run is like.

    Attributes:
        names: of the classes.
        skill: chance that a picture is right, for (many, medium, few).
    """

    names: Sequence[str]
    method: str = "lift+"
    seed: int = 0
    skill: tuple[float, float, float] = (0.8, 0.7, 0.6)
    tests: int = 3
    overrides: tuple[str, ...] = ()
    source: str = "gone"
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """Training pictures: from 500 down to 1 along the classes."""
        return [max(1, int(500 * 0.002 ** (k / max(1, len(self.names) - 1)))) for k in range(len(self.names))]

    def write(self, folder: Path) -> Path:
        """A finished run, but for its model."""
        folder.mkdir(parents=True)
        run = config.resolve(
            data=self.source,
            method=self.method,
            overrides=[f"seed={self.seed}", "evaluation.tte=false", *self.overrides],
        )
        about = {
            "command": "liftplus train --data gone",
            "config": run.to_dict(),
            "versions": {"liftplus": "0", "torch": "0", "precision": "fp32", "hardware": "a machine"},
            "backbone_identity": "0" * 64,
            "patch_size": 8,
            "data": {"name": "made up", "train_counts": self.counts, "notes": ["Nothing of this is real."]},
            "parameters": {"frozen": 1000, "tuned": {"full": 900, "lift+": 50}.get(self.method, 0), "head": 40},
        }
        disk.write_json(folder / "config.json", about | self.about)
        for epoch in range(1, run.train.epochs + 1):
            loss = 3 / epoch * (1 + 0.01 * self.seed)
            disk.append_json(
                folder / "log.jsonl", {"epoch": epoch, "loss": loss, "lr": 0.1 / epoch, "seconds": 2.0 * epoch}
            )
        self.evaluate(folder, run.evaluation.model_dump())
        return folder

    def evaluate(self, folder: Path, evaluation: dict[str, Any], gain: float = 0.0) -> None:
        """Metrics and tables, right by chance."""
        folder.mkdir(exist_ok=True)
        generator = np.random.default_rng(self.seed + 1)
        classes, counts = len(self.names), self.counts
        labels = np.repeat(np.arange(classes), self.tests)
        skill = {"many": self.skill[0], "medium": self.skill[1], "few": self.skill[2]}
        chance = np.array([skill[group_of(n)] for n in counts]).repeat(self.tests) + gain
        right = generator.random(len(labels)) < chance
        guess = np.where(right, labels, (labels + generator.integers(1, min(4, classes), len(labels))) % classes)
        metrics = accuracies(guess, labels, counts)
        what = {
            "data": "made up",
            "split": "test",
            "evaluation": evaluation,
            "seconds": 12.5,
            "peak_memory_bytes": 3 << 20,
        }
        disk.write_json(folder / "metrics.json", what | metrics.summary())
        rows = zip(range(classes), self.names, counts, metrics.per_class, strict=True)
        disk.write_csv(
            folder / "per_class.csv",
            ("class", "id", "name", "group", "train_images", "test_images", "accuracy"),
            ((k, k, name, group_of(n), n, self.tests, "" if a is None else f"{a:.2f}") for k, name, n, a in rows),
        )
        pairs = sorted(Counter(zip(labels.tolist(), guess.tolist(), strict=True)).items())
        disk.write_csv(folder / "confusion.csv", ("true", "predicted", "images"), ((t, p, n) for (t, p), n in pairs))
        disk.write_csv(
            folder / "predictions.csv",
            ("path", "true", "predicted", "probability", "correct"),
            (
                (f"{self.names[t]}/{i}.jpg", self.names[t], self.names[p], f"{c:.4f}", int(t == p))
                for i, (t, p, c) in enumerate(zip(labels, guess, generator.uniform(0.2, 1, len(labels)), strict=True))
            ),
        )


def loaded(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
