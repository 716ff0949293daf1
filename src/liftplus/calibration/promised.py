"""What a model tells of a picture beside logits, as a module that a graph for other programs can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liftplus.calibration import sets, unknown
from liftplus.calibration.calibrated import Calibration
from liftplus.calibration.sets import By
from liftplus.calibration.unknown import Reference, Views
from liftplus.evaluation.levels import Level


class Promised(nn.Module):
    """Logits [B, C] and features [B, D], fp32 -> probabilities [B, C], and what else was asked for, see `outputs`.

    Attributes:
        asked: the promises that were asked for, as JSON has them; empty if none were.
        levels: those to choose the answer's level from, the highest first; empty if none was asked for.
        sure: the least probability of an answer at a level; None for none.
        needs_features: whether features are looked at; without, anything may be given for them.
    """

    def __init__(
        self,
        calibration: Calibration | None = None,
        level: float | None = None,
        by: By = "group",
        class_share: float = sets.CLASS_SHARE,
        alarms: float | None = None,
        levels: Sequence[Level] = (),
        sure: float | None = None,
    ) -> None:
        """
        Args:
            calibration: None for probabilities without a temperature, and no promises.
            level, by, class_share: see `sets.limits`; a level of None asks for no sets.
            alarms: see `Calibration.threshold`; None does not tell unknown pictures.
            levels, sure: a picture is answered at the deepest of these levels that is sure; they need no calibration.

        Raises:
            UserError: there are too few calibration pictures for the rate of false alarms.
        """
        super().__init__()
        self.limits: Tensor | None
        self.temperature = 1.0 if calibration is None else calibration.temperature
        self.asked: dict[str, Any] = {}
        self.levels, self.sure = tuple(levels), sure
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
        `unknown` is bool. `level` is the number of the answer's level in `levels`, and `group` that of its group there,
        both int64; `group_probability` is fp32. Where no level is sure they are -1, -1 and NaN.
        """
        found = {"probabilities": ["batch", "classes"]}
        found |= {"in_set": ["batch", "classes"]} if "sets" in self.asked else {}
        found |= {"unknown_score": ["batch"], "unknown": ["batch"]} if "unknown" in self.asked else {}
        return found | ({name: ["batch"] for name in ("level", "group", "group_probability")} if self.levels else {})

    @property
    def levels_asked(self) -> dict[str, Any]:
        """The levels with their groups, and the least probability, as JSON has them."""
        return {
            "levels": [{"name": level.name, "groups": list(level.groups)} for level in self.levels],
            "sure": self.sure,
        }

    def _reference(self) -> Reference | None:
        """What the score needs of the training pictures."""
        if not self.needs_features:
            return None
        names = [field.name for field in fields(Reference)]
        return Reference(*(getattr(self, name) if hasattr(self, name) else torch.empty(0, 0) for name in names))

    def forward(self, logits: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        scaled = logits / self.temperature
        chances = scaled.softmax(-1)
        found: tuple[Tensor, ...] = (chances,)
        if self.limits is not None:
            found += (-scaled.log_softmax(-1) <= self.limits,)
        if "unknown" in self.asked:
            score = unknown.score(self.score, Views.at_once(logits, features, self._reference()), self.scales)
            found += (score, score > self.threshold)
        return found + self._answer(chances) if self.levels else found

    def _answer(self, chances: Tensor) -> tuple[Tensor, ...]:
        """The level, the group and its probability, each [B], from the probabilities of the classes [B, C]."""
        best = [level.sums(chances).max(1) for level in self.levels]
        groups, sums = torch.stack([one.indices for one in best], 1), torch.stack([one.values for one in best], 1)
        deepest = torch.where(sums >= _least(self.sure), torch.arange(len(self.levels)), -1).amax(1)
        place, none = deepest.clamp(min=0)[:, None], deepest < 0
        group, chance = groups.gather(1, place)[:, 0], sums.gather(1, place)[:, 0]
        return deepest, group.masked_fill(none, -1), chance.masked_fill(none, torch.nan)


def _least(sure: float | None) -> float:
    """The least number of single precision that is as large, as a graph compares in it."""
    if sure is None:
        return 0.0
    near = np.float32(sure)
    return float(near if float(near) >= sure else np.nextafter(near, np.float32(2)))
