"""Losses for long-tailed data: sum_i w_i l_i / sum_i w_i over the images of a batch.

z: logits [B, C]; n_k: training images of class k; pi_k = n_k / N. A class without training images counts as one image
wherever counts enter, so that every prior, margin and weight stays finite.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from liftplus.errors import UserError, unknown
from liftplus.registry import Component, register

# Far from where a weight, or a batch's sum of weights, leaves the range of fp32.
ClassWeight = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]


def class_prior(counts: Tensor) -> Tensor:
    """pi_k = n_k / N, fp64; a class without images counts as one image, so that its logarithm stays finite."""
    smoothed = counts.double().clamp_min(1)
    return smoothed / smoothed.sum()


class LossModule(nn.Module):
    """Maps logits [B, C] and labels [B] to a scalar in fp32, or in fp64 where the logits are."""

    class_weights: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            weights = self.image_weights(labels, logits.dtype)
            mean = (weights * self.each(logits, labels)).sum() / weights.sum()
            return mean + self.extra(logits, labels)

    @abstractmethod
    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss [B] of each image, from logits of full precision."""

    def base_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [B] that the loss itself gives each image; `dtype` is that of the logits."""
        return torch.ones(labels.shape, dtype=dtype, device=labels.device)

    def extra(self, logits: Tensor, labels: Tensor) -> Tensor | float:
        """A term of the batch as a whole."""
        return 0.0

    def batch_weight(self, labels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Sum of `image_weights`, a scalar: a piece's share of it is how much the piece counts in its batch."""
        return self.image_weights(labels, dtype).sum()

    def added(self, classes: int) -> Tensor:
        """What the loss adds to the logits of every image [C], fp64."""
        return torch.zeros(classes, dtype=torch.float64)

    def image_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of each image [B], class weights included."""
        own = self.base_weights(labels, dtype)
        return own if self.class_weights is None else own * self.class_weights.to(dtype)[labels]


class Loss(Component):
    """Configuration of a loss."""

    class_weights: dict[str, ClassWeight] | None = None
    """Weight of each image of a class, by class name, as JSON: {"cat": 3}. Classes not named have weight 1. Multiplies
    the loss's own weights, where it has some."""

    gives_posterior: ClassVar[bool] = False
    """Whether softmax(z + `LossModule.added`) is, at the optimum, the posterior under the classes' weighted prior."""

    @property
    def adjusts_prior(self) -> bool:
        """Whether the training prior enters the logits, so that training makes up for the imbalance."""
        return False

    def for_head(self, head: nn.Module) -> Loss:
        """The same loss, with the settings that it takes from the built head."""
        return self

    def build(self, counts: Tensor, class_names: Sequence[str] = ()) -> LossModule:
        """The loss for these training counts [C]; the names [C] are needed where classes are weighted by name."""
        module = self.module(counts)
        module.class_weights = self.class_weight_tensor(class_names)
        return module

    def class_weight_tensor(self, class_names: Sequence[str]) -> Tensor | None:
        """The class weights [C] in fp64, or None where none are given. Refuses a name that several classes share."""
        given = self.class_weights
        if not given:
            return None
        known = set(class_names)
        if not known:
            raise UserError("loss.class_weights names classes, but the classes here have no names. Leave it out.")
        for name in given:
            if name not in known:
                raise unknown("class in loss.class_weights", name, known)
            if list(class_names).count(name) > 1:
                raise UserError(
                    f"loss.class_weights names {name!r}, and several classes have that name. Give them names of "
                    "their own with data.class_names."
                )
        return torch.tensor([given.get(name, 1.0) for name in class_names], dtype=torch.float64)

    @abstractmethod
    def module(self, counts: Tensor) -> LossModule:
        """The loss for these training counts [C], before class weights."""


class _CrossEntropy(LossModule):
    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


class _Adjusted(LossModule):
    """Cross-entropy on z + shift."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift, persistent=False)

    def added(self, classes: int) -> Tensor:
        return self.shift.double()

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift.to(logits.dtype), labels, reduction="none")


class _Focal(LossModule):
    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p_y without cancellation; the floor keeps the slope of a power below 1 finite at p_y = 1.
        missing = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
        return missing**self.gamma * entropy


class _Margin(LossModule):
    """Cross-entropy with `margin` [C] taken from the true class's logit."""

    margin: Tensor

    def __init__(self, margin: Tensor) -> None:
        super().__init__()
        self.register_buffer("margin", margin, persistent=False)

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        taken = self.margin.to(logits.dtype)[labels]
        return F.cross_entropy(logits.scatter_add(1, labels[:, None], -taken[:, None]), labels, reduction="none")


class _Weighted(_CrossEntropy):
    """Cross-entropy with weights [C], scaled to mean 1: `full` for fp64 logits, `single` for fp32."""

    full: Tensor
    single: Tensor

    def __init__(self, full: Tensor, single: Tensor) -> None:
        super().__init__()
        self.register_buffer("full", full / full.mean(), persistent=False)
        self.register_buffer("single", single / single.mean(), persistent=False)

    def base_weights(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.full if dtype == torch.float64 else self.single).to(dtype)[labels]


class _Lade(_Adjusted):
    """Cross-entropy on z + log(pi), and over the batch the regulariser with `prior` [C]."""

    prior: Tensor

    def __init__(self, prior: Tensor, strength: float, penalty: float) -> None:
        super().__init__(prior.log())
        self.strength, self.penalty = strength, penalty
        self.register_buffer("prior", prior, persistent=False)

    def extra(self, logits: Tensor, labels: Tensor) -> Tensor:
        prior = self.prior.to(logits.dtype)
        batch, classes = logits.shape
        own = F.one_hot(labels, classes).to(logits.dtype)
        inside = (logits * own).sum(0) / (own.sum(0) + 1e-8)
        towards_uniform = math.log(1 / classes + 1e-9) - torch.log(prior + 1e-9)
        outside = torch.logsumexp(logits + towards_uniform, dim=0) - math.log(batch)
        gain = inside - outside - self.penalty * outside**2
        return -self.strength * (prior * gain).sum()


@register("loss", "cross_entropy")
class CrossEntropy(Loss):
    """Plain cross-entropy, which the head classes dominate."""

    gives_posterior = True

    def module(self, counts: Tensor) -> LossModule:
        return _CrossEntropy()


@register("loss", "focal")
class Focal(Loss):
    """(1 - p_y)^gamma CE: easy images count less (Lin et al. 2017, eq. 4)."""

    gamma: float = Field(default=2.0, ge=0)
    """Focusing power; 0 is plain cross-entropy."""

    def module(self, counts: Tensor) -> LossModule:
        return _Focal(self.gamma)


@register("loss", "ldam")
class LDAM(Loss):
    """Cross-entropy with margins that grow as classes get rarer (Cao et al. 2019).

    z_y <- z_y - s m_y with m_k = margin n_k^(-1/4) / max_j n_j^(-1/4).
    """

    margin: float = Field(default=0.5, ge=0)
    """Margin of the rarest class, in units of the cosine."""

    scale: float | None = Field(default=None, gt=0)
    """Cosine scale s that margins are multiplied by; by default the head's own (exp(logit_scale) with head=joint), 25
    where it has none."""

    def for_head(self, head: nn.Module) -> LDAM:
        return self if self.scale else self.model_copy(update={"scale": getattr(head, "scale", None)})

    def module(self, counts: Tensor) -> LossModule:
        rarity = counts.double().clamp_min(1) ** -0.25
        return _Margin((self.scale or 25.0) * self.margin * rarity / rarity.max())


@register("loss", "class_balanced")
class ClassBalanced(Loss):
    """CE weighted by (1 - beta) / (1 - beta^n_k), weights of mean 1 (Cui et al. 2019)."""

    gives_posterior = True

    beta: float = Field(default=0.9999, ge=0, lt=1)
    """How fast further images of a class lose value; 0 is plain cross-entropy."""

    def module(self, counts: Tensor) -> LossModule:
        # The published figures took 1 - beta^n in fp32, which is off by some 1e-4 for n below 10: kept for fp32 logits.
        return _Weighted(self._weights(counts.double()), self._weights(counts.float()))

    def _weights(self, counts: Tensor) -> Tensor:
        return (1 - self.beta) / (1 - self.beta ** counts.clamp_min(1))


@register("loss", "reweight")
class Reweight(Loss):
    """CE weighted by pi_k^(-rho), weights of mean 1: the generalised re-weighting of Zhang et al. 2021 (DisAlign)."""

    gives_posterior = True

    rho: float = Field(default=1.0, ge=0)
    """Strength; 0 is plain cross-entropy, 1 weighs classes by their inverse frequency."""

    def module(self, counts: Tensor) -> LossModule:
        weights = class_prior(counts) ** -self.rho
        return _Weighted(weights, weights.float())


@register("loss", "balanced_softmax")
class BalancedSoftmax(Loss):
    """Cross-entropy on z + log(pi) (Ren et al. 2020)."""

    gives_posterior = True

    @property
    def adjusts_prior(self) -> bool:
        return True

    def module(self, counts: Tensor) -> LossModule:
        return _Adjusted(class_prior(counts).log())


@register("loss", "logit_adjusted")
class LogitAdjusted(Loss):
    """Cross-entropy on z + tau log(pi) (Menon et al. 2021, eq. 10), the default of LIFT and LIFT+."""

    gives_posterior = True

    tau: float = Field(default=1.0, ge=0)
    """Strength of the adjustment; 0 is plain cross-entropy."""

    @property
    def adjusts_prior(self) -> bool:
        return self.tau > 0

    def module(self, counts: Tensor) -> LossModule:
        return _Adjusted(self.tau * class_prior(counts).log())


@register("loss", "lade")
class LADE(Loss):
    """Balanced softmax plus a regulariser that takes the training prior out of the logits (Hong et al. 2021).

    CE(z + log pi) + strength E, E = -sum_k pi_k (A_k - S_k - penalty S_k^2): A_k is the mean logit of class k's own
    images, S_k the log of the mean, over all images, of exp(z_k) re-weighted to a uniform prior.
    """

    strength: float = Field(default=0.1, ge=0)
    """Weight of the regulariser; 0 is balanced softmax."""

    penalty: float = Field(default=0.1, ge=0)
    """Weight of S_k^2, which keeps the estimate stable."""

    @property
    def adjusts_prior(self) -> bool:
        return True

    def module(self, counts: Tensor) -> LossModule:
        return _Lade(class_prior(counts), self.strength, self.penalty)
