"""Drawn pictures with structure, and copies of them as people make them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

COPIES = ("re-encoded", "resized", "cropped", "mirrored", "equal")


def drawn(seed: int, size: tuple[int, int] = (120, 100)) -> Image.Image:
    """Coloured areas, finer ones on them, width x height."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(size, kernel), float)
        for cells, kernel in ((4, Image.Resampling.BICUBIC), (14, Image.Resampling.BICUBIC))
    ]
    return Image.fromarray((0.6 * layers[0] + 0.4 * layers[1]).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def copy(image: Image.Image, kind: str) -> bytes:
    """A JPEG of an altered copy; `equal` has the bytes of `jpeg(image)`."""
    width, height = image.size
    if kind == "re-encoded":
        return jpeg(image, 50)
    if kind == "resized":
        return jpeg(image.resize((2 * width // 3, 2 * height // 3)))
    if kind == "cropped":
        return jpeg(image.crop((width // 15, height // 25, width - width // 30, height - height // 20)))
    return jpeg(ImageOps.mirror(image) if kind == "mirrored" else image)


def write_pictures(root: Path, counts: dict[str, int]) -> Path:
    """{"train/fox": 4}: folders with pictures 0.jpg and so on, all different."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            seed += 1
            (root / name / f"{number}.jpg").write_bytes(jpeg(drawn(seed)))
    return root
