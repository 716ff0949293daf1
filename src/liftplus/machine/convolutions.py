"""Other ways to compute some convolutions, where the library's own way is slow on a device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cuts_into_patches(convolution: nn.Conv2d) -> bool:
    """Whether its windows tile the picture, as in a ViT's patch embedding."""
    plain = convolution.padding in ((0, 0), "valid") and convolution.dilation == (1, 1) and convolution.groups == 1
    return plain and convolution.kernel_size == convolution.stride


class PatchProduct:
    """Stands in for the `forward` of a convolution that cuts into patches: the same sums, as one matrix product.

    Convolution kernels for three input channels leave most of a GPU idle: on an H200 that of ViT-B/16 took a tenth of
    the forward pass, for less than a hundredth of its arithmetic.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        high, wide = self.convolution.kernel_size
        rows, columns = input.shape[-2] // high, input.shape[-1] // wide
        cut = input[..., : rows * high, : columns * wide].unflatten(-1, (columns, wide)).unflatten(-3, (rows, high))
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        out = F.linear(patches, self.convolution.weight.flatten(1), self.convolution.bias)
        return out.transpose(1, 2).unflatten(2, (rows, columns))


def strides_by_channel(convolution: nn.Conv2d) -> bool:
    """Whether it is depthwise and skips pixels, as those of a MobileNet that shrink the picture."""
    depthwise = convolution.groups == convolution.in_channels > 1
    plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return depthwise and plain and max(convolution.stride) > 1 and type(convolution).__name__ in _KINDS


_KINDS = ("Conv2d", "Conv2dSame")  # PyTorch's own and timm's; others may change their weights before they use them


class WideGradient:
    """Stands in for a convolution's `forward`: the same output; its gradients are computed in fp32.

    On a CPU with bf16 units, the bf16 gradient of a strided depthwise convolution takes 10 to 100 times as long as the
    fp32 one (oneDNN as of PyTorch 2.15). Four such layers took half of EfficientNet-Lite0's training step.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def __call__(self, input: Tensor) -> Tensor:
        conv, padding = self.convolution, self.convolution.padding
        if type(conv).__name__ == "Conv2dSame":
            from timm.layers.padding import pad_same  # here, as models without such layers do without timm

            input, padding = pad_same(input, conv.kernel_size, conv.stride, conv.dilation), (0, 0)
        shape = (conv.stride, padding, conv.dilation, conv.groups)
        out: Tensor = _WideGradient.apply(input, conv.weight, conv.bias, *shape)
        return out


class _WideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *shape: Any) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.shape, ctx.bias = shape, None if bias is None else list(bias.shape)
        return F.conv2d(input, weight, bias, *shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        (stride, padding, dilation, groups), wanted = ctx.shape, ctx.needs_input_grad[:3]
        # The gradient of the input does not read the input.
        wide = input.float() if wanted[1] else torch.empty_like(input, dtype=torch.float32)
        found = torch.ops.aten.convolution_backward(
            grad.float(), wide, weight.float(), ctx.bias, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        kinds = (input.dtype, weight.dtype, weight.dtype)
        return (*(None if g is None else g.to(kind) for g, kind in zip(found, kinds, strict=True)), *[None] * 4)
