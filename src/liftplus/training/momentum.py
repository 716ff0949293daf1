"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


def descent(
    groups: Sequence[dict[str, Any]], device: torch.device, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD | Momentum:
    """The optimiser for groups of weights on a device; settings as for `Momentum`.

    A `torch.optim.Optimizer` imports PyTorch's compiler when it is made, two seconds before a run's first step. A GPU's
    run needs the compiler anyway, a CPU's does not.
    """
    if device.type == "cpu":
        return Momentum(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    fused = device.type == "cuda"
    return torch.optim.SGD(list(groups), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


class Momentum:
    """One update of the weights at a time, the same bits as `torch.optim.SGD` without dampening.

    Attributes:
        param_groups: each with its weights `params` and its rate `lr`, which may change between steps.
        state: for each weight that has been updated, its `momentum_buffer`; nothing where the momentum is 0.

    Args:
        groups: weights `params`, and further entries, which are kept.
        lr: first rate of all groups.
        momentum: share of the last update that stays, in [0, 1).
        weight_decay: share of a weight that is added to its gradient.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        self.param_groups = [{**group, "lr": lr} for group in groups]
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            buffers = [self.state[p].get("momentum_buffer") for p in weights]
            sgd(
                weights,
                [p.grad for p in weights],
                buffers,
                foreach=False,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            for p, buffer in zip(weights, buffers, strict=True):
                if buffer is not None:
                    self.state[p]["momentum_buffer"] = buffer

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
