"""Learning rates that fit the backbone at hand, and the way back from a rate that was too high.

A light module's branch is added to an activation of mean square m. A step of rate lr changes the branch by an amount
that does not depend on m, so relative to the activation it acts as a rate of lr / m: most blocks of a DINOv2 ViT-S/14
have m below 0.02 (benchmarks/stream_sizes.py), and the papers' rate destroys their features within an epoch. The rate
of a branch's output weights is therefore multiplied by m, as it was before the first step. Where m is above 1 the rate
stays: a branch may then move too little, which the classifier's own training makes up for, but never too much.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from liftplus.backbones.normalise import Normalise
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.data.loader import FixedView, Loader, seeded
from liftplus.data.transforms import CentreCrop
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.losses import LossModule
from liftplus.training.saved_state import Position, TrainingState
from liftplus.tuners.branch import Branch

PICTURES = 256
PIECE = 32


class Probe:
    """Up to 256 training pictures, drawn by the seed, on which a model is measured, with the centre crop.

    All processes of a job use the same ones.
    """

    def __init__(self, model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> None:
        self.model, self.runtime, self.config = model, runtime, config
        train, facts = dataset.splits["train"], model.backbone.facts
        count = min(PICTURES, max(PIECE, len(train) // 16))
        chosen = torch.randperm(len(train), generator=seeded(config.seed, -3))[:count].tolist()
        split = train.taken(chosen)
        self.labels = torch.tensor(split.labels)
        self.view = CentreCrop(facts.image_size, facts.interpolation)
        loader = Loader(dataset.store, split, FixedView(self.view.picture), batch_size=PIECE, workers=0)
        self.batches = [(batch.images, batch.sizes) for batch in loader.epoch()]
        self.normalise = Normalise(facts).to(runtime.device)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """The model's logits, fp32 [n, C], on the CPU."""
        parts = []
        with self.model.class_features_kept():
            for images, sizes in self.batches:
                cut = self.view.cut(images, sizes).flatten(0, 1).to(self.runtime.device)
                with self.runtime.autocast():
                    parts.append(self.model(self.normalise(cut)).float().cpu())
        return torch.cat(parts)

    def loss(self, loss: LossModule) -> float:
        """The training loss on these pictures."""
        device = self.runtime.device
        return float(loss(self.logits().to(device), self.labels.to(device)))

    def accuracy(self) -> float:
        """Share of these pictures whose class has the largest logit."""
        return float((self.logits().argmax(1) == self.labels).float().mean())

    def mean_squares(self) -> dict[str, float]:
        """Mean square of the activation that each used branch is added to, by the branch's name."""
        branches = {name: part for name, part in self.model.named_modules() if isinstance(part, Branch)}
        seen: dict[str, list[float]] = {name: [] for name in branches}

        def watch(name: str, activation: Tensor) -> None:
            seen[name].append(float(activation.float().square().mean()))

        for name, branch in branches.items():
            branch.watcher = partial(watch, name)
        try:
            self.logits()
        finally:
            for branch in branches.values():
                branch.watcher = None
        return {name: sum(values) / len(values) for name, values in seen.items() if values}

    def rates(self) -> dict[str, float]:
        """Factor of the rate of each branch's output weights, by name: the mean square above, at most 1."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            names[id(weight)]: min(1.0, square)
            for name, square in self.mean_squares().items()
            for weight in cast(Branch, self.model.get_submodule(name)).output_weights()
        }


class Safeguard:
    """Once a run: if the loss is not finite, or above both the start's and ln C, restore the start and halve the rate.

    Made while the model is at its start; without a probe it never goes back.
    """

    def __init__(self, step: Any, probe: Probe | None) -> None:
        self.step, self.probe, self.bound = step, probe, math.inf
        if probe is None:
            return
        self.start = {name: value.clone() for name, value in step.model.learned_state().items()}
        # A start in closed form has an unusually low loss on the pictures that it was solved on. A loss above it is not
        # alarming; one above that of guessing is.
        self.bound = max(probe.loss(step.loss), math.log(max(2, len(step.model.head.weight))))

    @property
    def may_go_back(self) -> bool:
        """Whether the run may go back, and has not yet."""
        return self.probe is not None and self.step.slowed == 1.0

    def rises(self) -> bool:
        """Whether the loss is above both the start's and that of guessing, or not finite; a job's leader decides."""
        if self.probe is None or not self.may_go_back:
            return False
        now = self.probe.loss(self.step.loss)
        return bool(self.step.job.from_leader(lambda: not math.isfinite(now) or now > self.bound))

    def go_back(self, state: TrainingState) -> None:
        """Take the start's weights and position, forget the momentum, halve the rate."""
        state.move(Position())
        self.step.restart(self.start, slowed=0.5)
