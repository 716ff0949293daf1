"""The temperature and the errors of probabilities, against closed forms and other code."""

from __future__ import annotations

import math

import pytest
import torch

from liftplus.calibration import temperature


def made(scale: float, count: int = 4000, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right but for a factor."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return logits * scale, labels


def test_two_kinds_of_pictures_have_a_closed_form() -> None:
    """Logits (a, 0), right in a share s: p = s at the optimum, so T = a / log(s / (1 - s))."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert temperature.fitted(logits, labels) == pytest.approx(3 / math.log(4), rel=1e-5)
    # With weights, the share is 8 / (8 + 2 * 3).
    weights = torch.tensor([1.0] * 8 + [3.0] * 2)
    assert temperature.fitted(logits, labels, weights) == pytest.approx(3 / math.log(8 / 6), rel=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_a_factor_is_found_and_a_step_away_is_worse(scale: float) -> None:
    logits, labels = made(scale)
    found = temperature.fitted(logits, labels)
    assert found == pytest.approx(scale, rel=0.06)
    best = temperature.cross_entropy(logits, labels, found)
    for other in (0.98 * found, 1.02 * found):
        assert temperature.cross_entropy(logits, labels, other) > best
    assert best == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double() / found, labels)), rel=1e-9)
    error = temperature.calibration_error(logits, labels, found)
    assert error < 0.03
    if scale != 1:
        assert temperature.calibration_error(logits, labels) > 2 * error


def test_no_optimum_ends_at_the_bounds() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert temperature.fitted(logits, torch.tensor([0, 1])) == temperature.COLDEST
    assert temperature.fitted(logits, torch.tensor([1, 0])) == temperature.HOTTEST


def test_the_calibration_error_of_two_bins_by_hand() -> None:
    """Three pictures say 0.9 and two of them are right; one says 0.6 and is wrong: (|2 - 2.7| + |0 - 0.6|) / 4."""
    chances = torch.tensor([0.9, 0.9, 0.9, 0.6])
    logits = torch.stack([chances, 1 - chances], 1).log()
    assert temperature.calibration_error(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(1.3 / 4, abs=1e-6)
