"""What a calibrated model tells of a picture beside logits, as a module that a graph for other programs can hold."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.calibration import sets, unknown
from liftplus.calibration.calibrated import Calibration
from liftplus.calibration.sets import By
from liftplus.calibration.unknown import Reference, Views


class Promised(nn.Module):
    """Logits [B, C] and features [B, D], fp32 -> probabilities [B, C], and what else was asked for, see `outputs`.

    Attributes:
        asked: what was asked for, as JSON has it; empty if nothing was.
        needs_features: whether features are looked at; without, anything may be given for them.
    """

    def __init__(
        self,
        calibration: Calibration | None = None,
        level: float | None = None,
        by: By = "group",
        class_share: float = sets.CLASS_SHARE,
        alarms: float | None = None,
    ) -> None:
        """
        Args:
            calibration: None for probabilities without a temperature, and no promises.
            level, by, class_share: see `sets.limits`; a level of None asks for no sets.
            alarms: see `Calibration.threshold`; None does not tell unknown pictures.

        Raises:
            UserError: there are too few calibration pictures for the rate of false alarms.
        """
        super().__init__()
        self.limits: Tensor | None
        self.temperature = 1.0 if calibration is None else calibration.temperature
        self.asked: dict[str, Any] = {}
        limits: Tensor | None = None
        if calibration is not None and level is not None:
            # What fp32 rounds must put no class out of its set.
            limits = sets.limits(calibration.known, level, by, class_share).float() + 1e-6
            self.asked["sets"] = {"coverage": level, "by": by} | ({"class_share": class_share} if by == "class" else {})
        self.register_buffer("limits", limits)
        self.needs_features = False
        if calibration is not None and alarms is not None:
            self.threshold = calibration.threshold(alarms)
            self.score, self.scales = calibration.score, calibration.scales
            self.needs_features = calibration.reference is not None and self.score not in unknown.OF_LOGITS
            for name, value in vars(calibration.reference).items() if self.needs_features else ():
                if value.numel():  # torch.export cannot save an empty tensor
                    self.register_buffer(name, value.clone())
            self.asked["unknown"] = {"false_alarms": alarms, "score": self.score, "threshold": self.threshold}

    @property
    def outputs(self) -> dict[str, list[str]]:
        """Names and shapes of all that is told, in its order.

        `in_set` is bool: the classes of the picture's set. `unknown_score` is fp32, and higher is more unknown;
        `unknown` is bool.
        """
        found = {"probabilities": ["batch", "classes"]}
        found |= {"in_set": ["batch", "classes"]} if "sets" in self.asked else {}
        return found | ({"unknown_score": ["batch"], "unknown": ["batch"]} if "unknown" in self.asked else {})

    def _reference(self) -> Reference | None:
        """What the score needs of the training pictures."""
        if not self.needs_features:
            return None
        names = [field.name for field in fields(Reference)]
        return Reference(*(getattr(self, name) if hasattr(self, name) else torch.empty(0, 0) for name in names))

    def forward(self, logits: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        scaled = logits / self.temperature
        found: tuple[Tensor, ...] = (scaled.softmax(-1),)
        if self.limits is not None:
            found += (-scaled.log_softmax(-1) <= self.limits,)
        if "unknown" in self.asked:
            score = unknown.score(self.score, Views.at_once(logits, features, self._reference()), self.scales)
            found += (score, score > self.threshold)
        return found
