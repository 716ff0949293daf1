"""First rows of the classifier: from class names (SAI), from features, or at random. All rows have unit length."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from liftplus.backbones.base import Backbone
from liftplus.errors import UserError
from liftplus.registry import Component, register

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InitContext:
    """What an initialisation may draw on.

    Attributes:
        backbone: the bare backbone, with its text encoder if it has one.
        class_names: one a class, in class order.
        features: called with k, gives plain features [n, D] and labels [n] of at most k images a class.
        generator: source of randomness.
    """

    backbone: Backbone
    class_names: Sequence[str]
    features: Callable[[int], Features]
    generator: torch.Generator


class HeadInit(Component):
    """Configuration of an initialisation."""

    @abstractmethod
    def rows(self, context: InitContext) -> Tensor:
        """Unit rows [C, D], fp32."""


def prompts(template: str, names: Sequence[str]) -> list[str]:
    """The template filled with each class name; underscores become spaces."""
    if "{}" not in template:
        raise UserError(f'The prompt template is {template!r}; it needs "{{}}" where the class name goes.')
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def text_rows(backbone: Backbone, joint: Tensor) -> Tensor:
    """Unit joint-space text features [C, joint] as rows on image features [C, D] (METHOD: u_k P_img^T)."""
    if backbone.image_projection is None:
        return F.normalize(joint, dim=-1)
    return F.normalize(joint @ backbone.image_projection.float().T, dim=-1)


def _random(classes: int, dim: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(classes, dim, generator=generator), dim=-1)


@register("head_init", "semantic")
class Semantic(HeadInit):
    """Semantic-aware initialisation (LIFT, section 4.3): each row from the text feature of its class name."""

    template: str = "a photo of a {}."
    """Prompt; {} stands for the class name."""

    def rows(self, context: InitContext) -> Tensor:
        text = context.backbone.text_encoder("head_init=semantic")
        return text_rows(context.backbone, text.encode(prompts(self.template, context.class_names)))


def class_prompts(init: HeadInit, names: Sequence[str]) -> list[str]:
    """The class prompts by the initialisation's template, by the default template where it has none."""
    return prompts(init.template if isinstance(init, Semantic) else Semantic().template, names)


@register("head_init", "class_mean")
class ClassMean(HeadInit):
    """Mean feature of each class; a class without images gets a random row."""

    shots: int = Field(default=100, ge=1)
    """Most images a class to average."""

    def rows(self, context: InitContext) -> Tensor:
        features, labels = context.features(self.shots)
        classes = len(context.class_names)
        sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features.float())
        rows = F.normalize(sums, dim=-1)
        empty = torch.bincount(labels, minlength=classes) == 0
        rows[empty] = _random(classes, features.shape[1], context.generator)[empty]
        return rows


@register("head_init", "linear_probe")
class LinearProbe(HeadInit):
    """Multinomial logistic regression with balanced class weights on plain features, rows normalised."""

    shots: int = Field(default=100, ge=1)
    """Most images a class to fit on."""

    max_iterations: int = Field(default=100, ge=1)
    """Most L-BFGS iterations."""

    def rows(self, context: InitContext) -> Tensor:
        from sklearn.linear_model import LogisticRegression

        features, labels = context.features(self.shots)
        present = labels.unique()
        rows = _random(len(context.class_names), features.shape[1], context.generator)
        if len(present) < 2:
            return rows
        model = LogisticRegression(max_iter=self.max_iterations, class_weight="balanced")
        model.fit(features.double().numpy(), labels.numpy())
        weight = torch.from_numpy(model.coef_).float()
        if len(present) == 2:  # scikit-learn gives one row for two classes: that of the second
            weight = torch.cat([-weight, weight])
        rows[present] = F.normalize(weight, dim=-1)
        return rows


@register("head_init", "random")
class Random(HeadInit):
    """Random unit rows."""

    def rows(self, context: InitContext) -> Tensor:
        return _random(len(context.class_names), context.backbone.dim, context.generator)
