"""Boxes of a detection file as pictures: each is cut out when it is read, and nothing is written.

A key is the image's path, a "#" and the box in whole pixels: left, top, right and bottom, as `img/7.jpg#10,20,110,80`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from liftplus.data.arrays import uncompressed
from liftplus.data.dataset import Table, listing
from liftplus.data.identity import Origin, origin
from liftplus.data.images import UnreadableImage
from liftplus.data.lists import normal
from liftplus.data.pictures import Box, Picture
from liftplus.data.stores import ByteStore, FileStore
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BoxOptions:
    """How boxes become pictures.

    Attributes:
        margin: share of the box's width and height that is added on each side, as far as the image goes.
        least: pixels of the shorter side, without the margin, under which a box is left out.
    """

    margin: float
    least: int


def key_of(file: str, box: Box) -> str:
    """The key of a box."""
    return f"{file}#{','.join(map(str, box))}"


def parts(key: str) -> tuple[str, Box]:
    """The image's path and the box."""
    file, _, numbers = key.rpartition("#")
    left, top, right, bottom = map(int, numbers.split(","))
    return file, (left, top, right, bottom)


def file_of(key: str) -> str:
    """The image that a box is in."""
    return key.rpartition("#")[0]


class Reader:
    """Boxes of COCO's and LVIS's annotation files.

    Args:
        base: holds the images.

    Attributes:
        sizes: (width, height) in pixels of each image read so far.
        notes: what was left out, one sentence each.
    """

    def __init__(self, options: BoxOptions, base: FileStore) -> None:
        self.options, self.base = options, base
        self.sizes: dict[str, tuple[int, int]] = {}
        self.notes: tuple[str, ...] = ()

    def rows(self, document: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
        """(key, class id) of every box that can be taken.

        Raises:
            UserError: the file is not in COCO's form.
        """
        try:
            files = self._files(document, path)
            found: dict[str, str] = {}
            left_out: Counter[str] = Counter()
            several: set[str] = set()
            for note in document["annotations"]:
                file, label = files[note["image_id"]], str(note["category_id"])
                box = self._box(note, self.sizes[file], path)
                if isinstance(box, str):
                    left_out[box] += 1
                elif (key := key_of(file, box)) not in found:
                    found[key] = label
                elif found[key] == label:
                    left_out["equal to another of its class"] += 1
                else:
                    several.add(key)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise UserError(
                f"{path} is not in COCO's form: {type(error).__name__} at {error}. With data.boxes=true it needs "
                "images (id, file_name or coco_url, width, height) and annotations (image_id, category_id, bbox) that "
                "refer to them."
            ) from error
        if several:
            left_out[f"with two classes, first {min(several)!r}"] = len(several)
        self.notes += tuple(
            f"{counted(count, 'box', 'boxes')} of {path.name} {agreeing(count, 'was', 'were')} left out: {why}."
            for why, count in left_out.items()
        )
        return [row for row in found.items() if row[0] not in several]

    def _files(self, document: Mapping[str, Any], path: Path) -> dict[Any, str]:
        """Paths in the store by image id; fills `sizes` too."""
        files: dict[Any, str] = {}
        ways = _ways(document["images"], path)
        way = next((one for one in ways if not self.base.missing([one(document["images"][0])])), ways[0])
        for image in document["images"]:
            file = files[image["id"]] = way(image)
            given = image["width"], image["height"]
            size = int(given[0]), int(given[1])
            if size != given or min(size) < 1 or bool in map(type, given):
                raise UserError(
                    f"{path} says that {file} has {given[0]} x {given[1]} pixels; boxes need whole numbers."
                )
            if self.sizes.setdefault(file, size) != size:
                raise UserError(f"{path} gives {file} twice, with different sizes. Keep one of the entries.")
        return files

    def _box(self, note: Mapping[str, Any], size: tuple[int, int], path: Path) -> Box | str:
        """Whole pixels with the margin, inside the image; or why the box is left out."""
        try:
            x, y, w, h = map(float, note["bbox"])
        except (KeyError, TypeError, ValueError):
            x, y, w, h = (math.nan,) * 4
        if not all(map(math.isfinite, (x, y, w, h))) or w < 0 or h < 0:
            raise UserError(
                f"{path}, annotation {note.get('id', '?')} has the bbox {str(note.get('bbox'))[:60]}; with "
                "data.boxes=true each one needs [left, top, width, height] in pixels."
            )
        if note.get("iscrowd") not in (None, 0, False, "0"):
            return "around a crowd (iscrowd)"
        inside = min(x + w, size[0]) - max(x, 0.0), min(y + h, size[1]) - max(y, 0.0)
        if min(inside) <= 0:
            return "without any pixel in the image"
        if min(inside) < self.options.least:
            return f"smaller than {self.options.least} pixels (data.box_least)"
        more = self.options.margin * w, self.options.margin * h
        left, top = max(0, math.floor(x - more[0])), max(0, math.floor(y - more[1]))
        return left, top, min(size[0], math.ceil(x + w + more[0])), min(size[1], math.ceil(y + h + more[1]))


def _ways(images: Sequence[Mapping[str, Any]], path: Path) -> list[Callable[[Mapping[str, Any]], str]]:
    """Ways to an image's path: the name as given, or the same inside the split's folder, as COCO has it.

    The split's folder comes from the image's URL, which LVIS gives in place of a name, or from the end of the
    annotation file's name: train2017 for instances_train2017.json.
    """

    def address(image: Mapping[str, Any]) -> str:
        return "/".join(str(image["coco_url"]).split("/")[-2:])

    if images and "file_name" not in images[0]:
        return [address, lambda image: address(image).rpartition("/")[2]]
    split = path.stem.rpartition("_")[2]
    ways: list[Callable[[Mapping[str, Any]], str]] = [
        lambda image: normal(str(image["file_name"])),
        lambda image: f"{split}/{normal(str(image['file_name']))}",
    ]
    return ways


class BoxStore(ByteStore):
    """Parts of the images that another store holds.

    Args:
        base: holds the images.
        sizes: (width, height) of each image in the annotations; an image of another size raises `UnreadableImage`.
    """

    def __init__(self, base: FileStore, sizes: Mapping[str, tuple[int, int]]) -> None:
        self.base, self.sizes = base, sizes

    def where(self, key: str) -> str:
        """The image's file, and the box."""
        file, box = parts(key)
        return key_of(self.base.where(file), box)

    def image(self, key: str) -> Image.Image:
        """The box, cut out of the image."""
        file, box = parts(key)
        image = self.base.image(file)
        self._check(file, image.size)
        return image.crop(box)

    def picture(self, key: str) -> Picture:
        """The box, to be cut and resized as `decode` says."""
        file, box = parts(key)
        self.base.decode = self.decode
        whole = self.base.picture(file)
        self._check(file, whole.size)
        return Part(whole, box)

    def read(self, key: str) -> bytes:
        """The box as an uncompressed image file, so that equal pixels are equal bytes."""
        return uncompressed(self.image(key))

    def size(self, key: str) -> int:
        """Of the image, and of the box as text."""
        file, box = parts(key)
        return self.base.size(file) + len(str(box))

    def content(self, key: str) -> bytes:
        """The image, and the box as text."""
        file, box = parts(key)
        return self.base.content(file) + str(box).encode()

    def origin(self, key: str) -> Origin:
        """Where the image comes from; the size that it must have, and the box."""
        file, box = parts(key)
        whole = origin(self.base, file)
        return whole._replace(part=f"{whole.part} {self.sizes[file]} {box}")

    def _check(self, file: str, size: tuple[int, int]) -> None:
        if size != self.sizes[file]:
            raise UnreadableImage(
                f"{self.base.where(file)} is {size[0]} x {size[1]} pixels, and its boxes are for "
                f"{self.sizes[file][0]} x {self.sizes[file][1]}, so they would show something else."
            )


@dataclass(frozen=True)
class Part:
    """One box of a picture, as a picture of its own."""

    whole: Picture
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def cut(self, box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        left, top = self.box[:2]
        return self.whole.cut((box[0] + left, box[1] + top, box[2] + left, box[3] + top), size, kernel)


def shared(rows: Mapping[str, Iterable[tuple[str, str]]]) -> tuple[str, ...]:
    """A note on images that have boxes in several splits."""
    files = {split: {file_of(key) for key, _ in pairs} for split, pairs in rows.items()}
    names = list(files)
    both = sorted({f for k, one in enumerate(names) for other in names[k + 1 :] for f in files[one] & files[other]})
    if not both:
        return ()
    return (
        f"{counted(len(both), 'image has', 'images have')} boxes in several splits: {listing(both, 3)}; a test on them "
        "says little about unseen images.",
    )


def images_of(table: Table) -> Table:
    """The images that the boxes of a table are in, each once a split."""
    return Table(
        {
            split: [(f, "") for f in dict.fromkeys(file_of(key) for key, _ in pairs)]
            for split, pairs in table.rows.items()
        }
    )
