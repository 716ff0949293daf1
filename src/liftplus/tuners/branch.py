"""What a tuner adds to an activation of the tower, and how large that activation is; not a tuner itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class Branch(nn.Module):
    """A map whose output is added to an activation: zero at the start, and linear in its output weights."""

    watcher: Callable[[Tensor], None] | None = None
    """Called with every activation that the output is added to."""

    @abstractmethod
    def output_weights(self) -> tuple[Tensor, ...]:
        """The weights and biases in which the output is linear; they are zero at the start."""

    def joins(self, activation: Tensor) -> None:
        """Called by the hooks with the activation that the output is added to."""
        if self.watcher is not None:
            self.watcher(activation.detach())
