"""The fast decoder and resizer against Pillow: the same verdicts, the same decoded bits, nearly the same pixels."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from liftplus.data.config import DataConfig
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import KERNELS, ArrayPicture, Box, Decode, JpegPicture, PillowPicture, picture
from liftplus.data.sources import load
from liftplus.data.stores import ByteStore
from liftplus.data.transforms import MDA, CentreCrop, FiveCrops, LiftAugment, short_side

from ..conftest import SHARED


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Edges, ramps and some noise, as photographs have."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 9) + np.cos(y / 13), np.sin((x + y) / 17), np.cos(x * y / 4000)], 2)
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((128 + 55 * waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 90} | options))
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(90, 60), exif=exif)


PLAIN = {
    "420": encoded(photo(301, 203), subsampling="4:2:0"),
    "422": encoded(photo(203, 301), subsampling="4:2:2"),
    "444": encoded(photo(150, 149), subsampling="4:4:4"),
    "grey": encoded(photo(131, 97, "L")),
    "restarts": encoded(photo(301, 203), restart_marker_rows=1),
    "tiny": encoded(photo(5, 3)),
    "wide": encoded(photo(700, 9)),
    "upright": turned(1),
    "trailing": encoded(photo(90, 60)) + b"\xff\xd8 more",
}
OTHERS = {
    "progressive": encoded(photo(301, 203), progressive=True),
    "cmyk": encoded(photo(90, 60, "CMYK")),
    "turned": turned(6),
    "mirrored": turned(2),
}


@pytest.mark.parametrize("name", PLAIN | OTHERS)
@pytest.mark.parametrize("bottom", [1.0, 0.4])
def test_decoded_pixels_are_pillows(name: str, bottom: float) -> None:
    """Without resizing every bit is the same, also where only the upper rows are decoded."""
    data = (PLAIN | OTHERS)[name]
    fast, exact = picture(data, name, "fast"), picture(data, name, "exact")
    assert isinstance(fast, JpegPicture if name in PLAIN else ArrayPicture)
    assert fast.size == exact.size
    box = (0, 0, fast.size[0], max(1, int(bottom * fast.size[1])))
    assert torch.equal(fast.cut(box, box[2:], "bicubic"), exact.cut(box, box[2:], "bicubic"))


def difference(data: bytes, box: Box, size: int, kernel: str, how: Decode = "fast") -> Tensor:
    views = [picture(data, "x", mode).cut(box, (size, size), kernel).int() for mode in (how, "exact")]
    return (views[0] - views[1]).abs().float()


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", PLAIN | OTHERS)
def test_resized_pixels_differ_by_rounding(name: str, kernel: str) -> None:
    data = (PLAIN | OTHERS)[name]
    width, height = picture(data, name, "exact").size
    generator = torch.Generator().manual_seed(1)
    for augment in (MDA(), LiftAugment()):
        for _ in range(3):
            found = difference(data, augment.box(width, height, 0.0, generator), 64, kernel)
            assert found.mean() < 0.1 and found.max() <= 3


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("width", "height"), [(40, 300), (300, 40), (64, 64), (40, 64), (20, 31)])
def test_pixels_do_not_depend_on_pillows_order_of_passes(width: int, height: int, kernel: str) -> None:
    """The width is resized first, whatever the shape; Pillow 13 itself takes the other order for tall pictures."""
    image, size = photo(width, height), (32, 32)
    wide = image.resize((32, height), KERNELS[kernel])
    expected = torch.from_numpy(np.array(wide.resize(size, KERNELS[kernel]))).permute(2, 0, 1)
    assert torch.equal(PillowPicture(image).cut((0, 0, width, height), size, kernel), expected)


def test_scaled_decoding_keeps_the_picture() -> None:
    data = encoded(photo(1200, 900), subsampling="4:2:0")
    box = (150, 40, 1050, 850)
    # The box moves to whole pixels of the smaller picture.
    assert 0 < difference(data, box, 200, "bicubic", "scaled").mean() < 6
    # Boxes too small to be halved are decoded in full.
    whole = [picture(data, "x", how).cut((0, 0, 399, 399), (200, 200), "bicubic") for how in ("fast", "scaled")]
    assert torch.equal(*whole)


@pytest.mark.parametrize("size", [(1200, 900), (1200, 150), (150, 1200), (2400, 71)], ids=str)
def test_squashing_from_fast_and_scaled_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG is decoded no smaller than the square on either side, unless it is smaller itself."""
    data, decoded = encoded(photo(*size)), []
    plain = JpegPicture._decoded

    def watched(self: JpegPicture, bottom: int, shrink: int) -> Any:
        decoded.append((-(-size[0] // shrink), -(-size[1] // shrink)))
        return plain(self, bottom, shrink)

    monkeypatch.setattr(JpegPicture, "_decoded", watched)
    for view in (CentreCrop(64, resize="square"), FiveCrops(64, 24, resize="square")):
        found = {how: view(picture(data, "x", how)).float() for how in ("exact", "fast", "scaled")}
        assert found["fast"].shape == found["scaled"].shape == found["exact"].shape
        assert (found["fast"] - found["exact"]).abs().max() <= 2
        assert (found["scaled"] - found["exact"]).abs().mean() < 6
        whole, small = decoded[-2:]
        assert whole == size and all(a >= min(view.short, b) for a, b in zip(small, size, strict=True))
        assert (small != size) == (min(size) >= 2 * view.short)


def verdict(data: bytes, how: Decode) -> Tensor | str:
    try:
        found = picture(data, "file", how)
        return found.cut((0, 0, *found.size), found.size, "bicubic")
    except UnreadableImage as error:
        return str(error)


def same_verdict(data: bytes) -> bool:
    fast, exact = verdict(data, "fast"), verdict(data, "exact")
    if isinstance(exact, str) or isinstance(fast, str):
        return fast == exact
    return torch.equal(fast, exact)


@pytest.mark.parametrize("name", ["420", "444", "grey", "restarts", "upright", "progressive"])
def test_damage_is_judged_as_pillow_judges_it(name: str) -> None:
    """Cut short, bytes changed, bytes lost: the same sentence, or the same picture."""
    rng, data = random.Random(name), (PLAIN | OTHERS)[name]
    for case in range(24):
        damaged = bytearray(data)
        start = rng.randrange(2 if case % 2 else len(data) // 8, len(data))
        if case % 4 == 0:
            del damaged[start:]
        elif case % 4 == 1:
            damaged[start] = rng.randrange(256)
        elif case % 4 == 2:
            del damaged[start : start + rng.randrange(1, 40)]
        else:
            damaged[start : start + 2] = b"\xff" + bytes([rng.randrange(256)])
        assert same_verdict(bytes(damaged))


@pytest.mark.parametrize("name", ["420", "444", "grey", "restarts", "upright"])
def test_every_damaged_byte_of_the_header_of_a_scan(name: str) -> None:
    """Pillow's libjpeg refuses some that the fast decoder's would take."""
    data = PLAIN[name]
    start = data.index(b"\xff\xda")
    for place in range(start, start + 14):
        for byte in (0, 1, 63, 255):
            assert same_verdict(data[:place] + bytes([byte]) + data[place + 1 :])
            assert same_verdict(data[:place] + bytes([byte]) + data[place:])


def test_a_frame_of_more_colours_than_any() -> None:
    data = PLAIN["420"]
    place, frame = data.index(b"\xff\xc0"), bytes([8, 0, 203, 1, 45, 200, *(3 * 200 * [17])])
    frame = b"\xff\xc0" + (len(frame) + 2).to_bytes(2, "big") + frame
    assert same_verdict(data[:place] + frame + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :])


def test_a_bad_end_is_refused_also_where_it_is_not_looked_at() -> None:
    data = PLAIN["420"]
    with pytest.raises(UnreadableImage, match="truncated"):
        picture(data[: len(data) * 3 // 4], "file", "fast").cut((0, 0, 50, 50), (32, 32), "bicubic")


def reference_crops(image: Image.Image, size: int, expand: int) -> Tensor:
    """Five crops as they were cut at first: from the whole resized picture by Pillow, which resized the width first."""
    target = short_side(*image.size, size + expand)
    wide = image.resize((target[0], image.height), Image.Resampling.BICUBIC)
    whole = torch.from_numpy(np.array(wide.resize(target, Image.Resampling.BICUBIC))).permute(2, 0, 1)
    right, bottom = target[0] - size, target[1] - size
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2)))
    return torch.stack([whole[:, y : y + size, x : x + size] for x, y in corners])


def test_five_crops_of_a_batch_of_mixed_sizes() -> None:
    """Bit-equal to crops cut one by one; a long picture is sent as the three parts that are shown."""
    view = FiveCrops(32, 5)
    images = [photo(*size) for size in ((60, 50), (50, 61), (37, 37), (900, 40), (41, 2000), (101, 99))]
    small = [view.picture(image) for image in images]
    assert max(picture.numel() for picture in small) <= 3 * 37 * 3 * 32
    sizes = torch.tensor([picture.shape[1:] for picture in small])
    found = view.cut(torch.cat([picture.flatten() for picture in small]), sizes)
    assert torch.equal(found, torch.stack([reference_crops(image, 32, 5) for image in images]))


def test_centre_crop_of_a_batch() -> None:
    view = CentreCrop(32)
    images = [photo(60, 50), photo(50, 61)]
    stacked = torch.stack([view.picture(image) for image in images])
    assert torch.equal(view.cut(stacked, torch.tensor([[32, 32]] * 2)), torch.stack([view(i) for i in images]))


def test_setting_reaches_the_store_and_old_files_mean_pillow(photos: Path) -> None:
    config = DataConfig(source=str(photos))
    assert config.decode == "fast" and load(config).store.decode == "fast"
    assert load(config.model_copy(update={"decode": "exact"})).store.decode == "exact"
    saved = config.model_dump()
    assert DataConfig(**saved) == config
    del saved["decode"]
    assert DataConfig(**saved).decode == "exact"


@pytest.mark.shared
@pytest.mark.parametrize("augment", [MDA(), MDA(schedule="max"), LiftAugment()], ids=["first", "last", "lift"])
def test_photographs(augment: MDA | LiftAugment) -> None:
    """Issue 4: at most 0.5 of 255 on average, and no photograph above 2."""
    dataset = load(DataConfig(source=str(SHARED / "data" / "imagenet_sample_100.zip")), for_testing=True)
    store, generator = dataset.store, torch.Generator().manual_seed(0)
    assert isinstance(store, ByteStore)
    means = []
    for key in dataset.splits["test"].keys:
        data = store.read(key)
        box = augment.box(*picture(data, key, "exact").size, 0.0, generator)
        means.append(float(difference(data, box, 224, "bicubic").mean()))
    assert len(means) == 100
    assert sum(means) / len(means) <= 0.5 and max(means) <= 2
