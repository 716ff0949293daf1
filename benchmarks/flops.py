"""Useful floating-point operations of a step: what no implementation can leave out.

Counted on tensors without storage, from one image's forward and backward pass through liftplus's own module: all matrix
products and convolutions of the forward pass, input gradients from the head down to the first tuned site, gradients of
tuned weights. Weight gradients of frozen layers and whatever is computed twice do not count.
"""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from contenders import Work, catalogue_size, plain_classifier
from liftplus.machine import runtime


def _counted(work: Work, *, training: bool) -> int:
    meta, side = torch.device("meta"), work.size or catalogue_size(work.model)
    with meta:
        model = plain_classifier(replace(work, checkpointing=False), meta)
    runtime.fuse_attention(model, False)  # the fused backward pass computes products twice
    # Autocast refuses to be asked about "meta".
    no_autocast = mock.patch.object(torch, "is_autocast_enabled", return_value=False)
    with no_autocast, FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        features: Tensor = model.backbone(torch.empty(1, 3, side, side, device=meta))
        if training and features.requires_grad:
            features.sum().backward()
    # The head is one product with its rows, in the backward pass one each for features and rows; it knows no "meta".
    head = 2 * work.classes * model.backbone.dim
    passes = 1 if not training else 3 if features.requires_grad else 2
    return int(counter.get_total_flops()) + passes * head


def of_step(work: Work) -> int:
    """Useful FLOPs of training, an image."""
    return _counted(work, training=True)


def of_forward(work: Work) -> int:
    """FLOPs of the forward pass, an image."""
    return _counted(work, training=False)


def vit(*, width: int, depth: int, tokens: int, patch: int, mlp: int = 4) -> int:
    """Closed form of a plain ViT's forward pass: patches, 4 D² + 2 mlp D² a token and block, two attention products."""
    patches = (tokens - 1) * 2 * 3 * patch**2 * width
    linears = tokens * 2 * width**2 * (4 + 2 * mlp)
    attention = 2 * 2 * tokens**2 * width
    return patches + depth * (linears + attention)
