"""bf16 on a CPU that has no units for it: the same roundings, at fp32's speed.

Kernels for bf16 take two bf16 matrices, add up in fp32 and round the sum to bf16. Here the product of the same bf16
matrices is taken by the fp32 kernel and rounded, so results differ from native bf16 in the order of summation only. It
says nothing about bf16's speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
PRODUCTS = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
)


class RoundedProducts(TorchDispatchMode):
    """While this is on, products of bf16 tensors are computed by fp32 kernels and rounded; all else stays as it is."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func not in PRODUCTS or not any(isinstance(x, Tensor) and x.dtype is torch.bfloat16 for x in args):
            return func(*args, **options)
        return tree_map(_rounded, func(*tree_map(_single, args), **options))


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _rounded(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value
