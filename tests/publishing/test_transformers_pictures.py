"""Picture files through transformers, on the folder of `export --to transformers`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.normalise import Normalise
from liftplus.data.transforms import CentreCrop
from liftplus.evaluation.inference import crops
from liftplus.model.heads import Linear
from moved import NAMES, ONE_CROP, move, trained

transformers = pytest.importorskip("transformers")


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours."""
    noise = torch.rand(3, 12, 9, generator=torch.Generator().manual_seed(3))
    smooth = F.interpolate(noise[None], (height, width), mode="bilinear")[0]
    return Image.fromarray((255 * smooth).byte().permute(1, 2, 0).contiguous().numpy())


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(91, 133, 0, 0), (73, 75, 0, 1), (300, 41, 0, 0), (75, 73, 1, 0)]
)
def test_transformers_pictures(width: int, height: int, left: int, top: int, tmp_path: Path) -> None:
    """By timm ours within a step of 255; without it where the sides are not 3, 7, 11, … pixels longer than the cut.

    There transformers rounds half of the difference down and torchvision up. PyTorch rounds values once, Pillow between
    its two passes, which is the step.
    """
    trunk = catalogue.load(BackboneConfig(name="mini_clip"))
    cut, one = crops(ONE_CROP, trunk.facts), picture(width, height)
    assert isinstance(cut, CentreCrop)
    ours = cut(one)[0].float()

    def found(without_timm: bool) -> Tensor:
        out = tmp_path / f"out-{without_timm}"
        written, _ = move(trained(trunk, Linear()), out, "transformers", without_timm=without_timm)
        assert any("one pixel further up or left" in note for note in written.notes) == without_timm
        processor = transformers.AutoImageProcessor.from_pretrained(out)
        return 255 * (processor(one, return_tensors="pt")["pixel_values"][0] / 2 + 0.5)

    own = found(without_timm=True)
    assert (own[:, top:, left:] - ours[:, : 64 - top, : 64 - left]).abs().max() < 1.01
    assert (left + top == 0) == bool((own - ours).abs().max() < 1.01)
    assert (found(without_timm=False) - ours).abs().max() < 1.01


@pytest.mark.parametrize(("margin", "off"), [(None, 0), (0, 0), (7, 1)])
@pytest.mark.parametrize("without_timm", [False, True])
def test_squashed_pictures(without_timm: bool, margin: int | None, off: int, tmp_path: Path) -> None:
    """A square is the same number of pixels longer than the cut for every picture, so it tells where the cut is off."""
    trunk = catalogue.load(BackboneConfig(name="mini_clip"))
    asked = {"resize": "square", "one_crop_expand": margin}
    written, _ = move(trained(trunk, Linear()), tmp_path / "out", "transformers", without_timm=without_timm, **asked)
    off *= without_timm
    told = [note for note in written.notes if "one pixel further up" in note]
    assert bool(told) == bool(off)
    if told:
        assert "for all pictures" in told[0] and "another margin than 7" in told[0]
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1  # all may be read by others
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    cut = crops(ONE_CROP.model_copy(update=asked), trunk.facts)
    for width, height in ((91, 133), (73, 75), (300, 41), (41, 300), (40, 30)):
        one = picture(width, height)
        found = 255 * (processor(one, return_tensors="pt")["pixel_values"][0] / 2 + 0.5)
        assert (found[:, off:, off:] - cut(one)[0, :, : 64 - off, : 64 - off]).abs().max() < 1.01, (width, height)


@pytest.mark.parametrize("without_timm", [False, True])
@torch.no_grad()
def test_the_pipeline_of_transformers_answers_for_a_file(without_timm: bool, tmp_path: Path) -> None:
    """Names and probabilities, from a picture file and the folder alone."""
    trunk = catalogue.load(BackboneConfig(name="mini_clip"))
    run = trained(trunk, Linear())
    cut, one = crops(ONE_CROP, trunk.facts), picture(91, 133)
    one.save(tmp_path / "picture.png")
    chances = run.model(Normalise(trunk.facts)(cut(one).float()))[0].softmax(-1)
    move(run, tmp_path / "out", "transformers", without_timm=without_timm)
    answering = transformers.pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    found = {row["label"]: row["score"] for row in answering(str(tmp_path / "picture.png"), top_k=len(NAMES))}
    assert found == pytest.approx(dict(zip(NAMES, chances.tolist(), strict=True)), abs=0.01)
    assert max(found, key=lambda name: found[name]) == NAMES[int(chances.argmax())]
