"""A model's calibration: its temperature, what sets need, and how pictures of no known class are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liftplus.calibration import sets, temperature, unknown
from liftplus.calibration.measured import Covered, covered, mean_class, shares
from liftplus.calibration.sets import By, Known
from liftplus.calibration.unknown import Reference, Scales, Views
from liftplus.errors import UserError

LEVEL, ALARMS = 0.9, 0.05
"""The promises that are measured where none is asked for: coverage of sets, and rate of false alarms."""


@dataclass(frozen=True)
class Pictures:
    """What a model says of N labelled pictures.

    Attributes:
        logits: for the prior of use [N, C].
        features: [N, D].
        labels: [N].
    """

    logits: Tensor
    features: Tensor
    labels: Tensor

    def taken(self, places: Tensor) -> Pictures:
        """These pictures alone."""
        return Pictures(self.logits[places], self.features[places], self.labels[places])


@dataclass(frozen=True)
class Frequencies:
    """What is known of the classes' frequencies.

    Attributes:
        train_counts: training pictures of each class [C].
        log_prior: log of the prior that the logits stand for [C].
        in_use: log of the prior in use [C]; None if it is that of the calibration pictures.
    """

    train_counts: tuple[int, ...]
    log_prior: Tensor
    in_use: Tensor | None = None

    def weights(self, counts: Tensor) -> Tensor:
        """How much a calibration picture of each class counts, fp64 [C], from their numbers [C].

        A class without pictures counts like the one that counts most.
        """
        if self.in_use is None:
            return torch.ones(len(counts), dtype=torch.float64)
        prior = self.in_use.double().exp()
        found = prior * counts.sum() / counts.clamp(min=1)
        found[(counts == 0) & (prior > 0)] = found[counts > 0].max()
        return found


@dataclass(frozen=True)
class Calibration:
    """See the top of the file.

    Attributes:
        temperature: what logits are divided by.
        known: the calibration pictures' own log-probabilities.
        score: the name of the score of unknown pictures.
        scales: see `unknown.scales`.
        reference: what the score needs of the training pictures; None without their features.
        scored: the calibration pictures' scores [N].
        judged: AUROC of each score on hidden classes, in [0, 1]; empty if they were too few.
    """

    temperature: float
    known: Known
    score: str
    scales: Scales
    reference: Reference | None
    scored: Tensor
    judged: dict[str, float]

    def log_chances(self, logits: Tensor) -> Tensor:
        """Log-probabilities [N, C], fp64."""
        return (logits.double() / self.temperature).log_softmax(-1)

    def members(self, logits: Tensor, level: float, by: By = "group", share: float = sets.CLASS_SHARE) -> Tensor:
        """Which classes are in each picture's set, bool [N, C]. Arguments are as for `sets.limits`."""
        return sets.members(self.log_chances(logits), sets.limits(self.known, level, by, share))

    def scores(self, logits: Tensor, features: Tensor) -> Tensor:
        """How unknown each picture is [N]; higher is more unknown."""
        return unknown.score(self.score, Views.of(logits, features, self.reference), self.scales)

    def threshold(self, alarms: float) -> float:
        """The score above which a picture counts as unknown, so that a known one does with at most this probability.

        Raises:
            UserError: there are too few calibration pictures for so low a rate.
        """
        weights = self.known.weights[self.known.labels]
        found = float(sets.quantiles(self.scored, weights, 1 - alarms)(self.known.weights.max()[None])[0])
        if math.isinf(found):
            raise UserError(
                f"A rate of false alarms of {alarms:g} needs at least {sets.needed(1 - alarms):,} calibration pictures "
                f"that count alike, and there are {len(self.scored):,}. Calibrate on more pictures, or ask for a "
                "higher rate."
            )
        return found


def fit(
    pictures: Pictures,
    frequencies: Frequencies,
    training: tuple[Tensor, Tensor] | None,
    rows: Tensor | None = None,
    seed: int = 0,
) -> Calibration:
    """Calibrate on pictures that the model was not trained on.

    Args:
        training: features [M, D] and labels [M] of training pictures; None if they cannot be had.
        rows: the head's rows [C, R]; None if it has none.
        seed: draws which classes are hidden together.
    """
    classes = pictures.logits.shape[1]
    judged, reference = {}, None
    if training is not None:
        reference = Reference.of(*training, classes if rows is None else rows)
        judged = unknown.compare(pictures.features, pictures.labels, *training, classes, seed)
    usual = unknown.USUAL if training is not None else unknown.OF_LOGITS[0]
    name = max(judged, key=lambda one: judged[one]) if judged else usual
    return with_score(pictures, frequencies, name, None if reference is None else reference.needed_by(name), judged)


def with_score(
    pictures: Pictures,
    frequencies: Frequencies,
    name: str,
    reference: Reference | None,
    judged: dict[str, float],
) -> Calibration:
    """`fit` with a score of unknown pictures that was chosen before; `reference` and `judged` belong to it."""
    weights = frequencies.weights(torch.bincount(pictures.labels, minlength=pictures.logits.shape[1]))
    found = temperature.fitted(pictures.logits, pictures.labels, weights[pictures.labels])
    own = (pictures.logits.double() / found).log_softmax(-1).gather(1, pictures.labels[:, None])[:, 0]
    known = Known(own, pictures.labels, frequencies.train_counts, frequencies.log_prior.double(), weights)
    views = Views.of(pictures.logits, pictures.features, reference)
    by = unknown.scales(name, views)
    return Calibration(found, known, name, by, reference, unknown.score(name, views, by), judged)


@dataclass(frozen=True)
class Measured:
    """What a calibration keeps of its promises on pictures that it was not fitted on.

    Attributes:
        error: expected calibration error without and with the temperature, in percent.
        cross_entropy: without and with the temperature, in nats.
        level: promised coverage in [0, 1].
        sets: `Covered` by rule and by group.
        mean_class: mean coverage over classes by rule, in percent.
        alarms: promised rate of false alarms in [0, 1]; None if there are too few calibration pictures for it.
        alarmed: share of pictures that were taken for unknown, by group, in percent.
    """

    error: tuple[float, float]
    cross_entropy: tuple[float, float]
    level: float
    sets: dict[By, dict[str, Covered]]
    mean_class: dict[By, float]
    alarms: float | None
    alarmed: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "calibration_error": [round(value, 3) for value in self.error],
            "cross_entropy": [round(value, 4) for value in self.cross_entropy],
            "promised_coverage": 100 * self.level,
            "sets": {
                by: {name: one.plain() for name, one in table.items()} | {"mean_class": round(self.mean_class[by], 2)}
                for by, table in self.sets.items()
            },
            "promised_false_alarms": None if self.alarms is None else 100 * self.alarms,
            "false_alarms": {name: round(value, 2) for name, value in self.alarmed.items()},
        }


def measure(
    pairs: Sequence[tuple[Calibration, Pictures]],
    rules: Sequence[By] = sets.RULES,
    level: float = LEVEL,
    alarms: float = ALARMS,
) -> Measured:
    """What calibrations keep of their promises, each on pictures that it was not fitted on, all taken together.

    Pictures count by the calibration's weights, so that what is measured is what was promised for the prior of use.
    """
    counts = pairs[0][0].known.train_counts
    labels = torch.cat([own.labels for _, own in pairs])
    weights = torch.cat([one.known.weights[own.labels] for one, own in pairs])
    weights = weights if bool((weights > 0).any()) else torch.ones_like(weights)
    before = torch.cat([own.logits.double() for _, own in pairs])
    after = torch.cat([own.logits.double() / one.temperature for one, own in pairs])
    tables, means = {}, {}
    for by in rules:
        members = torch.cat([one.members(own.logits, level, by) for one, own in pairs])
        tables[by], means[by] = covered(members, labels, counts, weights), mean_class(members, labels)
    promised: float | None = alarms
    try:
        flags = [one.scores(own.logits, own.features) > one.threshold(alarms) for one, own in pairs]
        alarmed = shares(torch.cat(flags), labels, counts, weights)
    except UserError:
        promised, alarmed = None, {}
    error, nats = temperature.calibration_error, temperature.cross_entropy
    return Measured(
        (100 * error(before, labels, 1.0, weights), 100 * error(after, labels, 1.0, weights)),
        (nats(before, labels, 1.0, weights), nats(after, labels, 1.0, weights)),
        level,
        tables,
        means,
        promised,
        alarmed,
    )


def by_halves(whole: Calibration, pictures: Pictures, frequencies: Frequencies, half: Tensor) -> Measured:
    """What to expect of a calibration: its like fitted on one half of its pictures, measured on the other, and back.

    Args:
        half: places of one half.
    """
    one = torch.zeros(len(pictures.labels), dtype=torch.bool).index_fill_(0, half, True)
    parts = [pictures.taken(one), pictures.taken(~one)]
    fits = [with_score(part, frequencies, whole.score, whole.reference, whole.judged) for part in parts]
    return measure([(fits[0], parts[1]), (fits[1], parts[0])])
