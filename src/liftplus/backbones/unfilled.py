"""Modules built without the random numbers that loaded weights would replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWS = {
    *(Tensor.normal_, Tensor.uniform_),
    *(init.normal_, init.uniform_, init.trunc_normal_, init.orthogonal_),
    *(init.xavier_normal_, init.xavier_uniform_, init.kaiming_normal_, init.kaiming_uniform_),
}
# PyTorch draws truncated normals by these, with a generator, until all values lie within the bounds: without end where
# nothing is drawn and the memory holds other values. There each writes one value, its parameter of this name.
_REPEATED = {Tensor.normal_: "mean", Tensor.uniform_: "from"}
# What libraries do in place to the numbers drawn. On the meta device each costs far more than on real tensors.
_FOLLOW = {
    *(Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.div_, Tensor.clamp_),
    *(Tensor.fill_, Tensor.zero_, Tensor.copy_, init.zeros_, init.ones_, init.constant_),
}


class Unfilled(TorchFunctionMode):
    """Within it parameters are made and not drawn: their values are undefined until something is loaded into them.

    On the meta device, where there are no values, in-place arithmetic is left out as well.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS or func in _FOLLOW:
            target: Tensor = args[0] if args else given["tensor"]
            if func in _REPEATED and "generator" in given and not target.is_meta:
                target.detach().fill_(args[1] if len(args) > 1 else given.get(_REPEATED[func], 0.0))
            if func in _DRAWS or target.is_meta:
                return target
        return func(*args, **given)
