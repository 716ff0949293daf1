"""Small picture folders and an in-process command line for the tests."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The models are tiny, and pytest-xdist has a process a core. Set before torch is imported, and for processes of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from liftplus import cli

# A busy machine must not fail a property.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real photographs and reference figures, where they lie beside the project."""
COLOURS = {"red_square": (200, 30, 30), "green hill": (30, 170, 60), "blue sky": (40, 60, 210)}


def picture(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (80, 70)) -> Image.Image:
    """A noisy plane of one colour, width x height."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def write_folder(root: Path, counts: dict[str, Sequence[int]]) -> Path:
    """Class folders below split folders: {"train": [12, 5, 2], …} pictures of each colour."""
    seed = 0
    for split, numbers in counts.items():
        for (name, colour), count in zip(COLOURS.items(), numbers, strict=False):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed += 1
                picture(colour, seed, (80 + index, 70)).save(folder / f"{index}.png")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that one process is not left alone with them at the end; none that lacks its data."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="the folder ../shared is not beside the project"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests read and write nothing in the user's cache."""
    monkeypatch.setenv("LIFTPLUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes, 12 / 5 / 2 training and 2 test pictures each."""
    return write_folder(tmp_path / "photos", {"train": (12, 5, 2), "test": (2, 2, 2)})


PARENTS = {"blue sky": "scenery", "green hill": "scenery", "red square": "figure"}


def table_with_parents(photos: Path) -> Path:
    """all.csv in a folder that `write_folder` made: its pictures with their classes, splits and parents."""
    with (photos / "all.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "label", "split", "parent"))
        for path in sorted(photos.rglob("*.png")):
            split, label = path.relative_to(photos).parts[0], path.parent.name.replace("_", " ")
            table.writerow((path.relative_to(photos), label, split, PARENTS[label]))
    return photos / "all.csv"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `liftplus ARGS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["liftplus", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        told = capsys.readouterr()
        return Ended(code, told.out, told.err)

    return run
