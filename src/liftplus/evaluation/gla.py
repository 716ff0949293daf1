"""Generalized Logit Adjustment (Zhu et al. 2023, arXiv 2310.08106): tuned plus zero-shot logits, without their priors.

A dual encoder prefers classes that were frequent in its pre-training. Call that prior pi_p, the zero-shot logits z and
the tuned logits f. a - log e removes the training prior from f (`priors`). The logits are

    (f + a - log e) + (z - log pi_p)        (the paper's equation 6, with log p added for a prior p in use).

pi_p is not published. It is estimated as the q for which z - log q has the least cross-entropy on labelled pictures,
each class counting the same (section 4.2). That cross-entropy is convex in log q.

differs: here the minimum is exact; the paper's code takes 1,000 steps on a Lagrangian from the uniform prior. Classes
without pictures get the geometric mean of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.model.classifier import Classifier


def pretraining_prior(logits: Tensor, labels: Tensor) -> Tensor:
    """The pre-training prior pi_p [C], fp64, summing to 1, from zero-shot logits [N, C] and labels [N].

    A class without pictures gets the geometric mean of the others (before normalisation).
    """
    present = labels.unique()
    number = torch.full((logits.shape[1],), -1).index_put((present,), torch.arange(len(present)))
    z = logits.double()[:, present].numpy()
    own = number[labels].numpy()
    found = torch.zeros(logits.shape[1], dtype=torch.float64)
    if len(present) > 1:
        found[present] = torch.from_numpy(_least(z, own))
    return found.softmax(0)


def _least(z: NDArray[np.float64], own: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log q [C] of mean 0 that minimises the class-balanced cross-entropy of z - log q. No class is empty."""
    from scipy import optimize, special

    rows, classes = np.arange(len(own)), z.shape[1]
    weights = 1 / (classes * np.bincount(own)[own])

    def risk(log_q: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = z - log_q
        chances = special.log_softmax(scores, axis=1)
        gradient = 1 / classes - weights @ np.exp(chances)
        return float(-(weights * chances[rows, own]).sum()), gradient

    best = optimize.minimize(
        risk, np.zeros(classes), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    )
    return np.asarray(best.x - best.x.mean())


class Together(nn.Module):
    """Sum of the logits of a tuned and a zero-shot classifier, [B, 3, R, R] -> [B, C]. Both have their shift set."""

    def __init__(self, tuned: Classifier, zeroshot: Classifier) -> None:
        super().__init__()
        self.tuned, self.zeroshot = tuned, zeroshot

    @property
    def backbone(self) -> Backbone:
        """The tuned classifier's backbone."""
        return self.tuned.backbone

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.tuned(images) + self.zeroshot(images)
        return logits

    @contextmanager
    def class_features_kept(self) -> Iterator[None]:
        """See `Classifier.class_features_kept`."""
        with ExitStack() as stack:
            for model in (self.tuned, self.zeroshot):
                stack.enter_context(model.class_features_kept())
            yield
