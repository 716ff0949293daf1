"""Reference figures of everything but whole models: losses, heads, crops, widths, accuracies, CIFAR-LT indices."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from liftplus import registry
from liftplus.backbones.base import Backbone, Facts
from liftplus.data.cifar import long_tailed_indices
from liftplus.data.transforms import MDA, MIN_AREA, progress_of
from liftplus.evaluation.metrics import accuracies
from liftplus.model.heads import Head
from liftplus.model.losses import Loss
from liftplus.tuners.base import Tuner

LOSS_NAMES = {"ce": "cross_entropy", "generalized_reweight": "reweight"}
SIZES = {"vpt_len": "vpt_deep", "lora_dim": "lora", "adapter_dim": "adapter", "adaptformer_dim": "adaptformer"}


def test_every_group_is_known(reference: Any) -> None:
    assert set(reference.groups().get("unknown", ())) == set()


def test_every_kind_of_group_has_a_test(reference: Any) -> None:
    """A test compares a kind of group by an argument <kind>_group."""
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    tested = {kind for source in sources for kind in re.findall(r"(\w+)_group: str", source)}
    assert set(reference.groups()) - {"input", "unknown"} - tested == set()


def _component(kind: str, text: str) -> Any:
    """A registered part from the reference's name, such as logit_adjusted_tau1.5."""
    match = re.fullmatch(r"(.+?)(?:_(tau|gamma|beta|rho)([\d.]+))?", text)
    assert match is not None
    name, option, value = match.groups()
    return registry.get(kind, LOSS_NAMES.get(name, name))(**({option: float(value)} if option else {}))


def test_loss(reference: Any, close: Any, loss_group: str) -> None:
    data = reference.under("loss")
    config = _component("loss", loss_group)
    assert isinstance(config, Loss)
    logits = data["logits"].clone().requires_grad_()
    value = config.build(data["class_counts"])(logits, data["labels"])
    value.backward()
    close(f"loss/{loss_group}", value, data[f"{loss_group}/value"])
    close(f"loss/{loss_group}", logits.grad, data[f"{loss_group}/grad"])


def test_head(reference: Any, close: Any, head_group: str) -> None:
    data = reference.under("head")
    config = registry.get("head", head_group)()
    assert isinstance(config, Head)
    classes, dim = data["weight"].shape
    tower = VisionTransformer(img_size=4, patch_size=4, embed_dim=dim, depth=1, num_heads=1, num_classes=0)
    head = config.build(Backbone("tiny", tower, FACTS), classes)
    head.load_state_dict({"weight": data["weight"]} | ({"bias": data["bias"]} if head_group == "linear" else {}))
    close(f"head/{head_group}", head(data["features"]), data[f"{head_group}/logits"])


FACTS = Facts(image_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_mda_schedule(reference: Any, exact: Any, mda_min_scale_group: str) -> None:
    for key, expected in reference.values[mda_min_scale_group].items():
        schedule, epochs = key.split("/")
        augment = MDA(schedule=schedule)
        shares = [augment.min_area(progress_of(epoch, int(epochs))) for epoch in range(int(epochs))]
        exact("mda_min_scale", shares, expected, rounding=1e-12)


def test_mda_crops(reference: Any, mda_crops_group: str) -> None:
    """The recorded crops lie within our bounds; ours are square, inside, and uniform in area and place."""
    for crop in reference.values[mda_crops_group]:
        height, width, (low, high) = crop["h"], crop["w"], crop["scale"]
        assert high == 1.0, "the library's largest area share is 1"
        top, left, tall, wide = crop["ijhw"]
        largest = min(height, width) ** 2 / (height * width)
        area = (min(low, largest) * height * width, min(high, largest) * height * width)
        sides = [round(math.sqrt(value)) for value in area]
        assert tall == wide
        assert sides[0] <= tall <= sides[1]
        assert top + tall <= height
        assert left + wide <= width
        _check_draws(height, width, low, area, sides)


def _check_draws(height: int, width: int, low: float, area: tuple[float, float], sides: list[int]) -> None:
    augment, progress = MDA(schedule="linear"), (low - MIN_AREA) / (1 - MIN_AREA)
    generator = torch.Generator().manual_seed(height * 1009 + width)
    boxes = np.array([augment.box(width, height, progress, generator) for _ in range(600)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (wide == tall).all()
    assert sides[0] <= wide.min()
    assert wide.max() <= sides[1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    # Areas are uniform on their range, places on what the side leaves. The side is a whole number, which
    # smears its share of the area range by at most 2 sides; 600 draws: the mean's deviation is 0.29 / sqrt(600).
    if sides[1] - sides[0] > 2:
        share = (wide.astype(float) ** 2 - area[0]) / (area[1] - area[0])
        assert abs(share.mean() - 0.5) < 0.06
    for start, side, length in ((boxes[:, 0], wide, width), (boxes[:, 1], tall, height)):
        slack = length - side
        free = slack > 10
        if free.sum() > 100:
            assert abs((start[free] / slack[free]).mean() - 0.5) < 5 * 0.29 / math.sqrt(free.sum())


def test_auto_sizes(reference: Any, exact: Any, auto_sizes_group: str) -> None:
    for key, expected in reference.values[auto_sizes_group].items():
        assert set(expected) <= set(SIZES), f"unknown sizes {set(expected) - set(SIZES)}"
        match = re.fullmatch(r"K=(\d+),L=(\d+)", key)
        assert match is not None
        classes, depth = int(match[1]), int(match[2])
        exact("auto_sizes", [_size(SIZES[name], classes, depth) for name in expected], list(expected.values()))


def _size(name: str, classes: int, depth: int) -> int:
    """The default width or length of a tuner, as seen in its parameters' shapes."""
    tuner = registry.get("tuner", name)()
    assert isinstance(tuner, Tuner)
    with torch.device("meta"):
        module = tuner.attach(_tower_of(depth), classes)
    shapes = {key.split(".", 1)[1]: value.shape for key, value in module.named_parameters() if key.startswith("0.")}
    for key, axis in (("prompt", 0), ("q.down", 1), ("down.weight", 0)):
        if key in shapes:
            return int(shapes[key][axis])
    raise AssertionError(f"{name} shows no width: {shapes}")


@cache
def _tower_of(depth: int) -> Backbone:
    with torch.device("meta"):
        tower = VisionTransformer(img_size=4, patch_size=4, embed_dim=6, depth=depth, num_heads=1, num_classes=0)
        return Backbone("tiny", tower, FACTS)


def test_accuracies(reference: Any, exact: Any, eval_group: str) -> None:
    data, expected = reference.under("eval"), reference.values[eval_group]
    counts = [int(count) for count in data["class_counts"]]
    summary = accuracies(data["y_pred"].tolist(), data["y_true"].tolist(), counts).summary()
    assert set(expected) <= set(summary), f"unknown accuracies {set(expected) - set(summary)}"
    present = {name: value for name, value in expected.items() if value is not None and not math.isnan(value)}
    assert {name for name in expected if summary[name] is None} == set(expected) - set(present)
    # The recorded means were taken in fp32.
    exact("eval", [summary[name] for name in present], list(present.values()), rounding=4e-7)


def test_cifar_indices(reference: Any, exact: Any, cifar_group: str) -> None:
    labels = reference.tensors["cifar_lt/labels"].numpy().astype(np.int64)
    kept = long_tailed_indices(labels, float(cifar_group.removeprefix("ir")))
    exact(f"cifar_lt/{cifar_group}", kept, reference.tensors[f"cifar_lt/{cifar_group}/index"])
    counts = np.bincount(labels[kept], minlength=labels.max() + 1)
    exact(f"cifar_lt/{cifar_group}", counts, reference.values[f"cifar_lt/{cifar_group}/counts"])
