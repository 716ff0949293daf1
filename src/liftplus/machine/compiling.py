"""Compile models with torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


class Compiled:
    """A model as a function of one batch, made faster by torch.compile; it runs uncompiled where that fails.

    A smaller batch, as the last of an epoch, is filled up to the size of the first one with pictures whose outputs are
    dropped, since another size would be compiled anew.

    With `graphs` the kernels of a batch are recorded once and launched together from then on, which saves the time that
    Python takes to launch them one by one. Gradients must be used up before the next call: PyTorch's graphs (up to 2.11
    at least) return them in memory that the next call writes over (PyTorch issue 169545).
    """

    def __init__(self, model: nn.Module, compiler: Callable[..., Any] = torch.compile, *, graphs: bool = False) -> None:
        self.model, self.graphs = model, graphs
        own = _OWN.setdefault(model, {})
        if graphs not in own:
            options = {"mode": "reduce-overhead"} if graphs else {}
            own[graphs] = compiler(_function(), dynamic=False, **options)
        self.forward: Callable[..., Any] = partial(own[graphs], model)
        self.tried, self.full = False, 0

    def __call__(self, images: torch.Tensor) -> Any:
        count, self.full = len(images), max(self.full, len(images))
        if count < self.full and self.forward is not self.model:
            images = torch.cat([images, images[-1:].expand(self.full - count, *images.shape[1:])])
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        out = self.forward(images) if self.tried else self._first(images)
        return out[:count].clone() if self.graphs else out[:count]  # a graph's next run writes over its outputs

    def _first(self, images: torch.Tensor) -> Any:
        self.tried = True
        try:
            with warnings.catch_warnings():
                # Heads compute in fp32 on purpose.
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                return self.forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail with exceptions of every kind
            warnings.warn(f"torch.compile failed ({_first_line(error)}); the model runs without it.", stacklevel=3)
            self.forward = self.model
            return self.model(images)


_OWN: WeakKeyDictionary[nn.Module, dict[bool, Callable[..., Any]]] = WeakKeyDictionary()
"""What was compiled for each model, without and with graphs."""


def _function() -> Callable[..., Any]:
    """Runs a model on images, with code of its own.

    torch.compile keeps what it made by code object, eight of each. Models share the code of their class and take two
    each, to train and to test, so in a process that trains one after the other the fifth could run uncompiled.
    """

    def forward(model: nn.Module, images: torch.Tensor) -> Any:
        return model(images)

    return FunctionType(forward.__code__.replace(), forward.__globals__, "forward")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
