"""Small real image files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Png = Callable[..., bytes]


def encoded(colour: object = "red", size: tuple[int, int] = (7, 5), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """One plain picture as a file."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.fixture
def png() -> Png:
    return encoded


@pytest.fixture
def grow() -> Callable[[Path, dict[str, int]], Path]:
    """Write `count` different pictures below each folder of a mapping from folder to count."""

    def write(root: Path, folders: dict[str, int]) -> Path:
        shade = 0
        for folder, count in folders.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shade += 1
                (root / folder / f"{i}.png").write_bytes(encoded((shade % 256, shade // 256, 9)))
        return root

    return write
