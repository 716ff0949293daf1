"""The update is torch.optim.SGD's."""

import pytest
import torch
from torch import nn

from liftplus.training.momentum import Momentum, descent


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-4), (0.0, 0.1), (0.5, 0.0)])
def test_updates_are_those_of_torch_to_the_bit(momentum: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(7, 3, generator=generator), torch.randn(5, generator=generator), torch.randn(())]
    mine, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    ours = Momentum(
        [{"params": mine[:1]}, {"params": mine[1:], "of": "x"}], lr=0.1, momentum=momentum, weight_decay=decay
    )
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=decay)
    for number in range(4):
        for own, other in zip(mine, theirs, strict=True):
            if own is mine[1] and number == 2:  # a weight that this step gives no gradient
                continue
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        for optimiser in (ours, reference):
            for group in optimiser.param_groups:
                group["lr"] = 0.1 / (number + 1)
            optimiser.step()
            optimiser.zero_grad()
        assert all(p.grad is None for p in mine)
        assert all(torch.equal(own, other) for own, other in zip(mine, theirs, strict=True))
    kept = [ours.state[p].get("momentum_buffer") for p in mine]
    assert all((buffer is None) == (momentum == 0) for buffer in kept)


def test_a_gpu_has_torchs_own_fused_update() -> None:
    weights = [{"params": [nn.Parameter(torch.zeros(2))]}]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    assert isinstance(descent(weights, torch.device("cpu"), **settings), Momentum)
    elsewhere = descent(weights, torch.device("mps"), **settings)
    assert isinstance(elsewhere, torch.optim.SGD) and not elsewhere.defaults["fused"]
