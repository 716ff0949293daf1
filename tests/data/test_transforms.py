"""Crops: MDA's areas, LIFT's ratios, the test-time cuts."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from liftplus.backbones.base import Facts
from liftplus.config import EvaluationConfig, resolve
from liftplus.data.pictures import KERNELS
from liftplus.data.transforms import (
    MDA,
    MIN_AREA,
    CentreCrop,
    FiveCrops,
    LiftAugment,
    NoAugment,
    progress_of,
)
from liftplus.errors import UserError
from liftplus.evaluation.inference import crops

SCHEDULES = ("convex", "linear", "concave", "min", "max")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_ends(schedule: str) -> None:
    mda = MDA(schedule=schedule)  # type: ignore[arg-type]
    assert mda.min_area(0.0) == pytest.approx(1.0 if schedule == "max" else MIN_AREA)
    assert mda.min_area(1.0) == pytest.approx(MIN_AREA if schedule == "min" else 1.0)
    areas = [mda.min_area(t) for t in np.linspace(0, 1, 50)]
    assert areas == sorted(areas)


def test_convex_lies_below_linear_below_concave() -> None:
    for t in (0.2, 0.5, 0.8):
        convex, linear, concave = (MDA(schedule=s).min_area(t) for s in ("convex", "linear", "concave"))  # type: ignore[arg-type]
        assert convex < linear < concave


def test_one_epoch_sees_whole_pictures() -> None:
    assert progress_of(0, 1) == 1.0
    assert [progress_of(e, 3) for e in range(3)] == [0.0, 0.5, 1.0]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(SCHEDULES), st.floats(0, 1), st.integers(0, 999))
def test_mda_boxes_are_squares_inside(width: int, height: int, schedule: str, t: float, seed: int) -> None:
    mda = MDA(schedule=schedule)  # type: ignore[arg-type]
    left, top, right, bottom = mda.box(width, height, t, torch.Generator().manual_seed(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left == bottom - top
    share = (right - left) ** 2 / (width * height)
    low = min(mda.min_area(t), min(width, height) ** 2 / (width * height))
    slack = 2 / math.sqrt(width * height) + 1 / (width * height)
    assert share >= low - slack


def test_mda_area_is_uniform_and_place_too() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = np.array([MDA().box(500, 500, 0.0, generator) for _ in range(4000)])
    area = (boxes[:, 2] - boxes[:, 0]) ** 2 / 250_000
    expected = np.linspace(MIN_AREA, 1, 9)
    assert np.abs(np.quantile(area, np.linspace(0, 1, 9)) - expected).max() < 0.03
    slack = 500 - (boxes[:, 2] - boxes[:, 0])
    wide = slack > 50
    assert abs((boxes[wide, 0] / slack[wide]).mean() - 0.5) < 0.02
    assert abs((boxes[wide, 1] / slack[wide]).mean() - 0.5) < 0.02


def test_lift_crops_stay_in_their_ranges() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        left, top, right, bottom = LiftAugment().box(300, 200, 0.0, generator)
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200
        assert 0.07 <= (right - left) * (bottom - top) / 60_000 <= 1.0
        assert 0.72 <= (right - left) / (bottom - top) <= 1.37


def test_very_long_picture_falls_back_to_its_centre() -> None:
    left, top, right, bottom = LiftAugment().box(4000, 10, 0.0, torch.Generator().manual_seed(0))
    assert (right - left, bottom - top) == (13, 10)


def test_lift_flips_half_and_mda_never() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None].repeat(3, 2))
    generator = torch.Generator().manual_seed(3)
    rises = {"lift": 0, "mda": 0}
    for _ in range(200):
        for name, augment in (("lift", LiftAugment()), ("mda", MDA())):
            view = augment(ramp, 32, "bicubic", 0.0, generator).float()
            rises[name] += int(view[0, 0, -1] > view[0, 0, 0])
    assert rises["mda"] == 200
    assert 70 < rises["lift"] < 130


def test_no_augmentation_is_the_central_square() -> None:
    assert NoAugment().box(100, 60, 0.3, torch.Generator()) == (20, 0, 80, 60)


def ramp(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x, y, x + y], 2).astype(np.uint8))


def test_centre_crop() -> None:
    view = CentreCrop(56)(ramp(128, 64))
    assert view.shape == (1, 3, 56, 56)
    # Short side 64 = 56 + 8 means no resizing: the centre of the picture itself.
    assert view[0, 0, 0].tolist() == list(range(36, 92))
    assert view[0, 1, :, 0].tolist() == list(range(4, 60))


def test_one_crop_of_a_larger_picture() -> None:
    facts = Facts(40, (0.5,) * 3, (0.5,) * 3)
    view = crops(EvaluationConfig(one_crop_expand=24), facts)(ramp(100, 64))
    assert (int(view[0, 0, 0, 0]), int(view[0, 1, 0, 0])) == (30, 12), "the central one of the five below"
    assert crops(EvaluationConfig(), facts) == CentreCrop(40)
    assert crops(EvaluationConfig(one_crop_expand=0), facts)(ramp(40, 40))[0, 0, 0].tolist() == list(range(40))


def test_five_crops_without_a_margin() -> None:
    """The papers test a margin of 0 too: of a square all five are the same, of a longer picture they differ."""
    assert EvaluationConfig(expand=0).expand == 0
    square, long = FiveCrops(40, 0)(ramp(40, 40)), FiveCrops(40, 0)(ramp(60, 40))
    assert all(torch.equal(one, square[0]) for one in square)
    assert [int(one[0, 0, 0]) for one in long] == [0, 20, 0, 20, 10]


def test_five_crops_are_corners_and_centre() -> None:
    views = FiveCrops(40, 24)(ramp(100, 64))
    assert views.shape == (5, 3, 40, 40)
    assert [(int(v[0, 0, 0]), int(v[1, 0, 0])) for v in views] == [(0, 0), (60, 0), (0, 24), (60, 24), (30, 12)]


def squashed(image: Image.Image, side: int, kernel: str) -> Image.Image:
    """By Pillow, to a square, in two passes: the width first."""
    return image.resize((side, image.height), KERNELS[kernel]).resize((side, side), KERNELS[kernel])


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(300, 41), (41, 300), (3000, 1), (1, 3000), (2, 3), (73, 73), (91, 133)], ids=str)
def test_square_is_pillow_s_resize_and_torchvision_s_crops(size: tuple[int, int], kernel: str) -> None:
    noise = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())

    def pixels(cut: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)

    for margin in (None, 0, 5, 24):
        side = 64 + (64 // 7 if margin is None else margin)
        expected = functional.center_crop(squashed(image, side, kernel), [64, 64])
        found = CentreCrop(64, kernel, margin, "square")(image)
        assert torch.equal(found, pixels(expected)[None])
    for margin in (0, 5, 24, 150):
        corners = functional.five_crop(squashed(image, 64 + margin, kernel), [64, 64])
        found = FiveCrops(64, margin, kernel, "square")(image)
        assert torch.equal(found, torch.stack([pixels(one) for one in corners]))


def test_the_setting_squashes_and_old_files_do_not() -> None:
    facts = Facts(40, (0.5,) * 3, (0.5,) * 3)
    one, five = (resolve(overrides=["resize=square", f"tte={tte}"]).evaluation for tte in ("false", "true"))
    assert crops(one, facts) == CentreCrop(40, resize="square")
    assert crops(five, facts) == FiveCrops(40, five.expand, resize="square")
    saved = EvaluationConfig().model_dump()
    del saved["resize"]
    assert EvaluationConfig(**saved).resize == "short_side"
    with pytest.raises(UserError, match=r"evaluation\.resize = 'squash' .*'short_side' or 'square'"):
        resolve(overrides=["evaluation.resize=squash"])
    # The whole picture is seen: a stripe at each end stays.
    striped = np.zeros((64, 300, 3), np.uint8)
    striped[:, :30] = striped[:, -30:] = 255
    whole = CentreCrop(40, margin=0, resize="square")(Image.fromarray(striped))[0, 0]
    assert whole[:, 0].min() > 250 and whole[:, -1].min() > 250
    assert CentreCrop(40, margin=0)(Image.fromarray(striped)).max() < 5


def test_transforms_pickle_and_repeat() -> None:
    image = ramp(90, 70)
    for augment in (MDA(), LiftAugment()):
        again = pickle.loads(pickle.dumps(augment))
        views = [a(image, 32, "bicubic", 0.5, torch.Generator().manual_seed(5)) for a in (augment, again)]
        assert torch.equal(*views)
