"""Losses against closed forms in float64, their gradients, their limits and their symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from liftplus import registry
from liftplus.errors import UserError
from liftplus.model.losses import LADE, LDAM, ClassBalanced, Focal, LogitAdjusted, Loss, Reweight

NAMES = sorted(registry.discover("loss"))
COUNTS = torch.tensor([311, 101, 43, 17, 5, 2, 1])
CLASSES, BATCH = len(COUNTS), 13
WORDS = ("fox", "owl", "elk", "bee", "cod", "yak", "ant")
BY_NAME = {"ant": 7.5, "fox": 0.3, "bee": 2.0}

# Options under which a loss is plain cross-entropy on balanced counts. LDAM has a margin whatever the counts, and
# LADE's regulariser does not vanish: both have a strength to switch off.
PLAIN_WHEN_BALANCED = {"ldam": {"margin": 0.0}, "lade": {"strength": 0.0}, "focal": {"gamma": 0.0}}
# Options under which a loss is a mean over images alone, without a term of the whole batch.
MEAN_OVER_IMAGES = {"lade": {"strength": 0.0}}


def make(name: str, **options: Any) -> Loss:
    loss = registry.get("loss", name)(**options)
    assert isinstance(loss, Loss)
    return loss


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.randint(CLASSES, (BATCH,), generator=generator)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in row))
    return [value - total for value in row]


def entropies(logits: Tensor, labels: Tensor, shift: Callable[[int, int], float] = lambda k, y: 0.0) -> list[float]:
    """-log p_y of each row of z + shift(k, y), in plain arithmetic."""
    pairs = zip(logits.tolist(), labels.tolist(), strict=True)
    return [-log_softmax([z + shift(k, y) for k, z in enumerate(row)])[y] for row, y in pairs]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def prior() -> list[float]:
    total = int(COUNTS.sum())
    return [int(count) / total for count in COUNTS]


def lade_regulariser(logits: Tensor, labels: Tensor) -> float:
    pi, rows, truth = prior(), logits.tolist(), labels.tolist()
    regulariser = 0.0
    for k in range(CLASSES):
        own = [row[k] for row, y in zip(rows, truth, strict=True) if y == k]
        a = math.fsum(own) / (len(own) + 1e-8)
        ratio = (1 / CLASSES + 1e-9) / (pi[k] + 1e-9)
        s = math.log(math.fsum(math.exp(row[k]) * ratio for row in rows)) - math.log(BATCH)
        regulariser -= pi[k] * (a - s - 0.1 * s * s)
    return 0.1 * regulariser


def values_of(name: str, logits: Tensor, labels: Tensor) -> list[float]:
    """The loss of each image."""
    if name in ("cross_entropy", "class_balanced", "reweight"):
        return entropies(logits, labels)
    if name == "focal":
        return [(1 - math.exp(-e)) ** 2 * e for e in entropies(logits, labels)]
    if name == "ldam":
        rarest = max(int(n) ** -0.25 for n in COUNTS)
        margin = [0.5 * int(n) ** -0.25 / rarest for n in COUNTS]
        return entropies(logits, labels, lambda k, y: -25 * margin[k] if k == y else 0.0)
    if name in ("balanced_softmax", "logit_adjusted", "lade"):
        pi = prior()
        return entropies(logits, labels, lambda k, y: math.log(pi[k]))
    raise AssertionError(f"write down the closed form of {name}")


def closed_form(name: str, logits: Tensor, labels: Tensor, by_name: dict[str, float]) -> float:
    own = {
        "class_balanced": [(1 - 0.9999) / (1 - 0.9999 ** int(n)) for n in COUNTS],
        "reweight": [1 / p for p in prior()],
    }.get(name, [1.0] * CLASSES)
    weights = [own[y] * by_name.get(WORDS[y], 1.0) for y in labels.tolist()]
    values = values_of(name, logits, labels)
    extra = lade_regulariser(logits, labels) if name == "lade" else 0.0
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights) + extra


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_name", [{}, BY_NAME])
@pytest.mark.parametrize("seed", range(3))
def test_closed_form(name: str, by_name: dict[str, float], seed: int) -> None:
    logits, labels = data(seed)
    value = make(name, class_weights=by_name or None).build(COUNTS, WORDS)(logits, labels)
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(closed_form(name, logits, labels, by_name), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_name", [None, BY_NAME])
def test_gradient_by_finite_differences(name: str, by_name: dict[str, float] | None) -> None:
    logits, labels = data()
    loss = make(name, class_weights=by_name).build(COUNTS, WORDS)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_class_weight_of_two_is_every_image_of_the_class_twice(name: str) -> None:
    logits, labels = data()
    options = MEAN_OVER_IMAGES.get(name, {})
    twice = torch.cat([torch.arange(BATCH), *(torch.where(labels == k)[0] for k in (1, 5))])
    value = make(name, class_weights={"owl": 2, "yak": 2}, **options).build(COUNTS, WORDS)(logits, labels)
    repeated = make(name, **options).build(COUNTS)(logits[twice], labels[twice])
    assert float(value) == pytest.approx(float(repeated), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_name", [None, BY_NAME])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uneven_pieces_add_up_to_the_batch(name: str, by_name: dict[str, float] | None, dtype: torch.dtype) -> None:
    logits, labels = data()
    logits = logits.to(dtype)
    loss = make(name, class_weights=by_name, **MEAN_OVER_IMAGES.get(name, {})).build(COUNTS, WORDS)
    whole, pieces = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = loss(whole, labels)
    value.backward()
    total, in_all = torch.zeros((), dtype=dtype), loss.batch_weight(labels, dtype)
    for z, y in zip(pieces.split([5, 1, 7]), labels.split([5, 1, 7]), strict=True):
        part = loss(z, y) * (loss.batch_weight(y, dtype) / in_all)
        part.backward()
        total += part.detach()
    assert whole.grad is not None and pieces.grad is not None
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert float(total) == pytest.approx(float(value.detach()), rel=rounding)
    torch.testing.assert_close(pieces.grad, whole.grad, rtol=rounding, atol=rounding * float(whole.grad.std()))


def test_class_weights_are_checked() -> None:
    loss = make("cross_entropy", class_weights={"fox": 2, "oak": 3})
    with pytest.raises(UserError, match=r"Unknown class in loss\.class_weights 'oak'. Did you mean 'yak'\?"):
        loss.build(COUNTS, WORDS)
    with pytest.raises(UserError, match="no names"):
        loss.build(COUNTS)
    for wrong in (0, -1, math.inf, math.nan, 1e-30, 1e30, "much"):
        with pytest.raises(ValidationError):
            make("cross_entropy", class_weights={"fox": wrong})
    with pytest.raises(UserError, match=r"'crane', and several classes have that name.*data\.class_names"):
        make("cross_entropy", class_weights={"crane": 3}).build(torch.ones(3), ("crane", "crane", "fox"))
    assert make("cross_entropy", class_weights={}).build(COUNTS).class_weights is None


def test_losses_that_take_the_prior_in_say_so() -> None:
    assert {name for name in NAMES if make(name).adjusts_prior} == {"balanced_softmax", "logit_adjusted", "lade"}
    assert not LogitAdjusted(tau=0).adjusts_prior


@pytest.mark.parametrize("name", NAMES)
def test_balanced_counts_give_cross_entropy(name: str) -> None:
    logits, labels = data()
    value = make(name, **PLAIN_WHEN_BALANCED.get(name, {})).build(torch.full((CLASSES,), 37))(logits, labels)
    assert float(value) == pytest.approx(mean(entropies(logits, labels)), rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_reordering_the_classes_changes_nothing(name: str) -> None:
    loss = make(name, class_weights=BY_NAME)
    logits, labels = data()
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(3))
    place = torch.empty_like(order)
    place[order] = torch.arange(CLASSES)
    logits.requires_grad_()
    value = loss.build(COUNTS, WORDS)(logits, labels)
    moved = loss.build(COUNTS[order], [WORDS[k] for k in order.tolist()])(logits[:, order], place[labels])
    (gradient,) = torch.autograd.grad(value, logits)
    (again,) = torch.autograd.grad(moved, logits)
    value, moved = value.detach(), moved.detach()
    assert float(moved) == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(again, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_name", [None, {"fox": 1e-6, "ant": 1e6}])
def test_extreme_logits_are_finite(name: str, dtype: torch.dtype, by_name: dict[str, float] | None) -> None:
    signs = torch.randint(2, (BATCH, CLASSES), generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits = (signs * 1e4).to(dtype).requires_grad_()
    value = make(name, class_weights=by_name).build(COUNTS, WORDS)(logits, data()[1])
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_classes_without_images_are_defined(name: str) -> None:
    """They count as one image: nothing is infinite, and the value is that of counts of one."""
    logits, labels = data()
    counts = COUNTS.clone()
    counts[4:] = 0
    value = make(name).build(counts)(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(value, logits)
    value, logits = value.detach(), logits.detach()
    assert value.isfinite() and gradient.isfinite().all()
    assert float(value) == float(make(name).build(counts.clamp_min(1))(logits, labels))


@pytest.mark.parametrize("name", NAMES)
def test_buffers_follow_and_are_not_saved(name: str) -> None:
    module = make(name, class_weights=BY_NAME).build(COUNTS, WORDS)
    assert module.state_dict() == {}
    assert "class_weights" in dict(module.named_buffers())
    assert {buffer.dtype for buffer in module.to(torch.float32).buffers()} == {torch.float32}
    assert all(buffer.is_meta for buffer in module.to("meta").buffers())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_at_certainty(gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0], [40.0, 0.0]], requires_grad=True)
    value = Focal(gamma=gamma).build(COUNTS[:2])(logits, torch.zeros(2, dtype=torch.long))
    value.backward()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_options_at_zero_switch_off() -> None:
    logits, labels = data()
    plain = mean(entropies(logits, labels))
    for loss in (LogitAdjusted(tau=0), Reweight(rho=0), ClassBalanced(beta=0), LDAM(margin=0), Focal(gamma=0)):
        assert float(loss.build(COUNTS)(logits, labels)) == pytest.approx(plain, rel=1e-10)
    balanced = make("balanced_softmax").build(COUNTS)(logits, labels)
    assert float(LADE(strength=0).build(COUNTS)(logits, labels)) == pytest.approx(float(balanced), rel=1e-12)


def test_fp32_agrees_with_float64() -> None:
    """Class-balanced weights lose digits in fp32 (the published arithmetic), the others only rounding."""
    logits, labels = data()
    for name in NAMES:
        loss = make(name).build(COUNTS)
        tolerance = 2e-3 if name == "class_balanced" else 1e-5
        assert float(loss(logits.float(), labels)) == pytest.approx(float(loss(logits, labels)), rel=tolerance)
