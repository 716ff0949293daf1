"""docs/method.md: its tables are what the code computes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from doc_pages import page
from liftplus import config, describe, registry
from liftplus.data.transforms import MDA
from liftplus.training.loop import rate

METHOD = page("method.md")


@pytest.mark.parametrize("row", re.findall(r"^\| ([\d,]+) \| (\d+) \| ([\d,]+) \|$", METHOD, re.MULTILINE))
def test_widths_and_weights(row: tuple[str, str, str]) -> None:
    classes, width, weights = (int(cell.replace(",", "")) for cell in row)
    assert width == 2 ** math.floor(math.log2(classes / 24))
    run = config.resolve(backbone="clip_vit_b16")
    assert describe.planned(run, classes)[0].count()["tuned"] == weights


@pytest.mark.parametrize("row", re.findall(r"^\| `([\w+]+)` \| (\d+)[^|]* \| ([\d.]+) \|$", METHOD, re.MULTILINE))
def test_presets(row: tuple[str, str, str]) -> None:
    train = config.resolve(data="x", backbone="clip_vit_b16", method=row[0]).train
    assert (train.epochs, train.lr) == (int(row[1]), float(row[2]))


def test_every_loss_and_head_is_told() -> None:
    for kind in ("loss", "head"):
        table = METHOD.split(f"| `{kind}=` |")[1].split("\n\n")[0]
        told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
        assert told | {"logit_adjusted"} == set(registry.discover(kind)) | {"logit_adjusted"}


def test_schedules_are_their_formulas() -> None:
    """g(t) of the page, at a few t, against the crop's smallest area."""
    formulas = {
        "convex": lambda t: 1 - math.sqrt(1 - t * t),
        "linear": lambda t: t,
        "concave": lambda t: math.sqrt(1 - (1 - t) ** 2),
        "min": lambda t: 0.0,
        "max": lambda t: 1.0,
    }
    for name, g in formulas.items():
        for t in (0.0, 0.25, 0.5, 1.0):
            part = registry.get("augment", "mda")(schedule=name)
            assert isinstance(part, MDA)
            assert part.min_area(t) == pytest.approx(0.08 + 0.92 * g(t), rel=1e-12)


def test_the_rate_is_its_formula() -> None:
    run = config.resolve(data="x", backbone="clip_vit_b16", overrides=["epochs=5"])
    for epoch in range(5):
        expected = 0.5 * run.train.lr * (1 + math.cos(math.pi * epoch / 5))
        assert rate(run, epoch, 0.0) == pytest.approx(expected, rel=1e-12)


def test_nothing_is_cited_that_the_project_does_not_hold() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [path for folder in ("src", "docs", "changes") for path in (root / folder).rglob("*") if path.is_file()]
    text = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".toml")}
    assert len(text) > 100
    assert [path for path, words in text.items() if re.search(r"\bDESIGN\b|\bMETHOD\b(?!-seed)", words)] == []
