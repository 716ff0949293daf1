"""What is told of each picture: the best classes; if asked, a set of classes, whether it is unknown, and its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from liftplus.calibration import sets
from liftplus.calibration.calibrated import Calibration
from liftplus.calibration.sets import CLASS_SHARE, RULES, By
from liftplus.errors import UserError
from liftplus.evaluation import levels
from liftplus.evaluation.inference import Answering, TopK
from liftplus.evaluation.levels import Level
from liftplus.training.checkpoint import Trained


@dataclass(frozen=True)
class Guess:
    """The best classes of one file, or why it could not be read.

    Attributes:
        members: the classes of its set, best first, if sets were asked for.
        unknown: whether it is of no known class, if that was asked for.
        unknown_score: how unknown it is, in units of the run's calibration.
        level: the level that its group is of, if one was asked for; "" if no level was sure.
        group: its group there, and the group's probability.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None
    members: tuple[str, ...] | None = None
    unknown: bool | None = None
    unknown_score: float | None = None
    level: str | None = None
    group: tuple[str, float] | None = None


@dataclass(frozen=True)
class Promises:
    """What is asked of a calibrated run beside the best classes.

    Attributes:
        sets: the coverage that sets of classes promise, between 0 and 1; None for no sets.
        by: the rule of the sets.
        class_share: for the rule `class`, how much a class's own quantile counts, in [0, 1].
        alarms: the rate of known pictures that are taken for unknown, between 0 and 1; None not to tell them.
    """

    sets: float | None = None
    by: By = "group"
    class_share: float = CLASS_SHARE
    alarms: float | None = None

    def __post_init__(self) -> None:
        if self.sets is not None and not 0 < self.sets < 1:
            raise UserError(f"Sets promise a coverage between 0 and 1, such as 0.9, and {self.sets:g} was given.")
        if self.alarms is not None and not 0 < self.alarms < 1:
            raise UserError(f"A rate of false alarms is between 0 and 1, such as 0.05, and {self.alarms:g} was given.")
        if self.by not in RULES:
            raise UserError(f"Sets are made by {', '.join(RULES[:-1])} or {RULES[-1]}, and {self.by!r} was given.")
        if not 0 <= self.class_share <= 1:
            raise UserError(f"The share of a class's own quantile is from 0 to 1, and {self.class_share:g} was given.")

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return self.sets is not None or self.alarms is not None

    def notes(self, calibration: Calibration, names: Sequence[str]) -> list[str]:
        """Which classes have too few calibration pictures for what is asked, one sentence each.

        Raises:
            UserError: there are too few pictures for the rate of false alarms.
        """
        if self.alarms is not None:
            calibration.threshold(self.alarms)
        return [] if self.sets is None else sets.shortages(calibration.known, self.sets, self.by, names)


SURE = 0.9
"""The least probability of an answer at the deepest sure level, where none is asked for."""


@dataclass(frozen=True)
class LevelAsked:
    """At which level pictures are answered.

    Attributes:
        levels: the levels to choose from, the highest first; the classes themselves are the deepest.
        sure: the least probability of an answer; the deepest level that reaches it is chosen. None asks for none.
    """

    levels: tuple[Level, ...]
    sure: float | None = None

    @classmethod
    def of(cls, trained: Trained, name: str | None, sure: float | None) -> LevelAsked | None:
        """The level that the user names, or all with "auto"; without `sure`, auto asks for 0.9 and others for nothing.

        Without a name it is None.

        Raises:
            UserError: the run has no such level, or `sure` is no probability or is given without a level.
        """
        if name is None:
            if sure is not None:
                raise UserError(
                    f"--sure (in Python sure=) is {sure!r}, but no level was asked for. Give --level auto "
                    "(level='auto') too, or leave it out."
                )
            return None
        own = levels.above(trained.levels, trained.class_ids)
        if not own:
            raise UserError(
                f"The classes of {str(trained.folder)!r} have no levels above them. Train on data with a column of "
                "parents, or with the taxonomy of an annotation file, or ask for no level."
            )
        if sure is not None and not (isinstance(sure, int | float) and 0 < sure <= 1):
            raise UserError(f"The least probability (sure) is {sure!r}. Give one above 0 and at most 1, such as 0.9.")
        every = (*own, levels.classes(trained.class_names))
        if name == "auto":
            return cls(every, SURE if sure is None else sure)
        chosen = tuple(one for one in every if one.name == name)
        if not chosen:
            raise UserError(f"The level is {name!r}. Give {', '.join(one.name for one in every)} or auto.")
        return cls(chosen, sure)

    def answers(self, top: TopK) -> Iterator[tuple[str, tuple[str, float] | None]]:
        """For each picture the level, and the group with its probability; "" and None where no level is sure."""
        assert top.groups is not None and top.sums is not None
        for groups, sums in zip(top.groups.tolist(), top.sums.tolist(), strict=True):
            found = [
                (level.name, (level.groups[group], chance))
                for level, group, chance in zip(self.levels, groups, sums, strict=True)
                if self.sure is None or chance >= self.sure
            ]
            yield found[-1] if found else ("", None)


@dataclass(frozen=True)
class Found:
    """Predictions for N pictures.

    Attributes:
        top: the best classes.
        members: class indices of each picture's set, best first; None without sets.
        unknown: which pictures are of no known class, bool [N]; None if that was not asked.
        scores: how unknown each is [N]; None if that was not asked.
    """

    top: TopK
    members: list[list[int]] | None = None
    unknown: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Asked:
    """What to tell of pictures beside the best classes.

    Attributes:
        calibration: its temperature gives the probabilities. It must be for the crops and the prior of use.
        promises: sets and unknown pictures; these need a calibration.
        level: at which level to answer too.
    """

    calibration: Calibration | None = None
    promises: Promises = Promises()
    level: LevelAsked | None = None

    @property
    def how(self) -> Answering:
        """How answers are made of logits."""
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return Answering(temperature, () if self.level is None else self.level.levels)

    # A server asks for these with every batch, and they follow from all calibration pictures.
    @cached_property
    def _limits(self) -> Tensor:
        calibration, promises = self.calibration, self.promises
        assert calibration is not None and promises.sets is not None
        return sets.limits(calibration.known, promises.sets, promises.by, promises.class_share)

    @cached_property
    def _threshold(self) -> float:
        assert self.calibration is not None and self.promises.alarms is not None
        return self.calibration.threshold(self.promises.alarms)

    def found(self, top: TopK, logits: Tensor, features: Tensor | None) -> Found:
        """What is found in N pictures.

        Args:
            top: their best classes, with the groups at the levels of `how`.
            logits: of all classes [N, C].
            features: of the backbone [N, D]; needed if `promises.any`.
        """
        members = unknown = scores = None
        calibration, promises = self.calibration, self.promises
        if calibration is not None and promises.sets is not None:
            members = []
            for rows in logits.split(1024):
                inside = sets.members(calibration.log_chances(rows), self._limits)
                ordered = rows.argsort(dim=1, descending=True, stable=True)
                members += [order[own[order]].tolist() for order, own in zip(ordered, inside, strict=True)]
        if calibration is not None and promises.alarms is not None and features is not None:
            scores = calibration.scores(logits, features)
            unknown = scores > self._threshold
        return Found(top, members, unknown, scores)

    def guesses(self, paths: Sequence[str], found: Found, names: Sequence[str]) -> list[Guess]:
        """What is told of the pictures with these paths.

        Args:
            names: of the classes.
        """
        answers = None if self.level is None else list(self.level.answers(found.top))
        rows = zip(paths, found.top.classes.tolist(), found.top.probabilities.tolist(), strict=True)
        return [
            Guess(
                path,
                tuple(names[k] for k in classes),
                tuple(chances),
                None,
                None if found.members is None else tuple(names[k] for k in found.members[place]),
                None if found.unknown is None else bool(found.unknown[place]),
                None if found.scores is None else float(found.scores[place]),
                *((None, None) if answers is None else answers[place]),
            )
            for place, (path, classes, chances) in enumerate(rows)
        ]


PLAIN = Asked()


def told(guess: Guess) -> dict[str, Any]:
    """What a JSON answer says of a picture, beside its name."""
    top = zip(guess.classes, guess.probabilities, strict=True)
    about: dict[str, Any] = {
        "error": guess.error,
        "top": [{"class": name, "probability": round(chance, 6)} for name, chance in top],
    }
    if guess.members is not None:
        about["set"] = list(guess.members)
    if guess.unknown is not None:
        about |= {"unknown": guess.unknown, "unknown_score": round(guess.unknown_score or 0.0, 6)}
    if guess.level is not None:
        group = None if guess.group is None else {"name": guess.group[0], "probability": round(guess.group[1], 6)}
        about |= {"level": guess.level, "group": group}
    return about
