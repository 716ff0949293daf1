"""Classifier heads: features [B, D] -> logits [B, C], always computed in fp32."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.model.head_init import HeadInit, InitContext, Start, class_features
from liftplus.registry import Component, discover, register


class HeadModule(nn.Module):
    """A head with one row of `weight` [C, D] for each class."""

    scales: ClassVar[bool] = False
    """Whether its logits are those of `rows` times a positive factor of each picture's own."""

    layer_norms: ClassVar[bool] = False
    """Whether that factor is a LayerNorm's, without learned scale (eps 1e-12), and not the features' length."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim))

    def forward(self, features: Tensor) -> Tensor:
        # bf16 would round logits of a scale of 25 to steps of 1/8, more than many priors differ by.
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(features.float())

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """fp32 features to fp32 logits."""

    def rows(self) -> Tensor | None:
        """Rows r [C, D] with logits a (r f) plus the bias, where a is 1 or as `scales` says; None where it has none."""
        return None


class Head(Component):
    """Configuration of a head."""

    has_bias: ClassVar[bool] = False
    """Whether its module has a parameter `bias` [C]."""

    unit_rows: ClassVar[bool] = False
    """Whether it compares features with rows of unit length, so that rows from pictures can join them later."""

    @abstractmethod
    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        """The module, its rows still to be initialised."""

    def rows(self, context: InitContext, init: HeadInit) -> Tensor:
        """First rows [C, D] by the chosen initialisation."""
        return self.start(context, init).rows

    def start(self, context: InitContext, init: HeadInit) -> Start:
        """First rows [C, D] by the chosen initialisation, with biases [C] where both have them."""
        return init.start(replace(context, view=self.view))

    def view(self, features: Tensor) -> Tensor:
        """Features [n, D] as the head compares them with its rows; to override where `logits` changes them."""
        return features


class _Linear(HeadModule):
    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    def rows(self) -> Tensor:
        return self.weight


class _L2Norm(HeadModule):
    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.rows())

    def rows(self) -> Tensor:
        return F.normalize(self.weight, dim=-1)


class _Cosine(_L2Norm):
    scales = True

    def __init__(self, dim: int, num_classes: int, scale: float) -> None:
        super().__init__(dim, num_classes)
        self.scale = scale

    def logits(self, features: Tensor) -> Tensor:
        return self.scale * super().logits(F.normalize(features, dim=-1))


class _LayerNorm(_L2Norm):
    scales, layer_norms = True, True

    def logits(self, features: Tensor) -> Tensor:
        features = F.layer_norm(features, features.shape[-1:], eps=1e-12)
        return F.linear(features, F.normalize(self.weight, dim=-1))

    def rows(self) -> Tensor:
        unit = F.normalize(self.weight, dim=-1)
        return unit - unit.mean(-1, keepdim=True)  # the mean that is taken off features can be taken off rows


@register("head", "linear")
class Linear(Head):
    """W f + b; the bias starts at 0, but for head_init=lda."""

    has_bias: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        return _Linear(backbone.dim, num_classes)


@register("head", "cosine")
class Cosine(Head):
    """s * cos(f, w_k), the default of LIFT and LIFT+."""

    unit_rows: ClassVar[bool] = True

    scale: float = Field(default=25.0, gt=0)
    """Cosine scale s."""

    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        return _Cosine(backbone.dim, num_classes, self.scale)

    def view(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)


@register("head", "l2norm")
class L2Norm(Head):
    """f . w_k / |w_k|: rows of unit length, features as they are."""

    unit_rows: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        return _L2Norm(backbone.dim, num_classes)


@register("head", "layernorm")
class LayerNorm(Head):
    """LN(f) . w_k / |w_k|, the LayerNorm without learned scale (eps 1e-12)."""

    unit_rows: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        return _LayerNorm(backbone.dim, num_classes)

    def view(self, features: Tensor) -> Tensor:
        return F.layer_norm(features, features.shape[-1:], eps=1e-12)


class JointModule(HeadModule):
    """CLIP's logits. Its features are unit vectors in the joint space [B, joint], from `Backbone.joint`."""

    scales = True

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone.text_encoder("head=joint").joint_dim, num_classes)
        self.scale = math.exp(backbone.text_encoder("head=joint").logit_scale)
        self.weight.requires_grad_(False)

    def logits(self, features: Tensor) -> Tensor:
        return self.compare(features, self.weight)

    def rows(self) -> Tensor:
        return self.weight

    def compare(self, image: Tensor, text: Tensor) -> Tensor:
        """Unit vectors of images [B, joint] and of class prompts [C, joint] to logits [B, C], fp32."""
        with torch.autocast(image.device.type, enabled=False):
            return self.scale * F.linear(image.float(), text.float())


@register("head", "joint")
class Joint(Head):
    """CLIP's own logits exp(logit_scale) * cos(image, text) in the joint space.

    Rows are text features: frozen, or encoded afresh in every step where a tuner acts on the text side.
    """

    def build(self, backbone: Backbone, num_classes: int) -> HeadModule:
        return JointModule(backbone, num_classes)

    def start(self, context: InitContext, init: HeadInit) -> Start:
        context.backbone.text_encoder("head=joint")
        return Start(class_features(context, init))


def of_unit_rows() -> list[str]:
    """Names of the heads that compare features with rows of unit length."""
    return [name for name, head in discover("head").items() if cast(type[Head], head).unit_rows]
