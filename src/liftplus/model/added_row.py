"""A row for a class that is added after training: ridge regression in the tuned feature space, matched to the old rows.

Trained rows have other cosines with their pictures than rows in closed form. So the new row is the part that the old
rows share, plus the ridge's row with a weight. The weight is the one at which the new class's pictures, each left out
in turn, score best, among rows that cost the old classes little accuracy. A single picture cannot be left out; then old
classes are removed in turn and added again from one picture.

What a row costs the old classes shows only on pictures that the model has not seen, and there are none of them. The
training pictures lie far closer to their rows, so their features are moved away from these (`as_unseen`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus.model.closed_form import Gathering, Ridge, Sample, Statistics

EPISODES = 20
"""Most old classes that are removed and added again."""
LEFT_OUT = 20
"""Most pictures of a new class that are left out in turn."""
HARM = 0.005
"""Default for the most that the mean accuracy of the old classes may lose by estimate, 0 to 1."""
SMOOTHING = 0.01
"""Difference of two cosines within which a picture counts as partly lost: whole pictures would give coarse steps."""
SCALE = 25.0
"""Factor of cosines when a margin becomes a probability; that of LIFT's head."""
GAMMAS = tuple(10 ** (power / 4) for power in range(-8, 5))
WEIGHTS = tuple(2 ** (power / 4) for power in range(-10, 11))
"""Values tried for gamma, and for the weight of the ridge's unit row beside what the old rows share."""


@dataclass(frozen=True)
class Choice:
    """How a row is made.

    Attributes:
        ridge: gamma in units of the mean eigenvalue.
        weight: weight of the ridge's unit row beside what the old rows share.
        text: whether the name's text counts too.
    """

    ridge: float = 0.1
    weight: float = 1.0
    text: bool = False


@dataclass(frozen=True)
class Old:
    """What is known of the old classes: unit rows [C, D], some of their features [N, D] with labels [N], fp64.

    Attributes:
        texts: unit rows of their names [C, D], where names are read.
    """

    rows: Tensor
    sample: Sample
    texts: Tensor | None = None

    def base(self, text: Tensor | None, without: int | None = None) -> Tensor:
        """What a new row shares with the old ones [D]: their mean, plus its text's difference from the mean text."""
        keep = torch.arange(len(self.rows)) != (-1 if without is None else without)
        mean = self.rows[keep].double().mean(0)
        if text is None or self.texts is None:
            return mean
        return mean + text.double() - self.texts[keep].double().mean(0)


def gathered(features: Tensor, labels: Tensor | None = None, classes: int = 1) -> Statistics:
    """Statistics of features that are all in memory; without labels they are one class."""
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    gathering = Gathering(torch.bincount(labels, minlength=classes), features.shape[1])
    gathering.add(features, labels)
    return gathering.statistics()


def rows(
    background: Statistics, features: Tensor, bases: tuple[Tensor, Tensor | None], choices: Sequence[Choice]
) -> Tensor:
    """Unit rows [choices, D] of a class with these features [n, D] beside the background's classes.

    Args:
        bases: `Old.base` without the class's text, and with it where there is one.
    """
    ridge = Ridge(background + gathered(features))
    by_gamma = {gamma: ridge.rows(gamma)[-1] for gamma in {choice.ridge for choice in choices}}
    out = []
    for choice in choices:
        base = bases[1] if choice.text and bases[1] is not None else bases[0]
        out.append(base + choice.weight * by_gamma[choice.ridge])
    return F.normalize(torch.stack(out), dim=-1)


def bases(old: Old, text: Tensor | None, without: int | None = None) -> tuple[Tensor, Tensor | None]:
    """`Old.base` without the class's text and with it, as `rows` takes them."""
    return old.base(None, without), None if text is None else old.base(text, without)


def choices(with_text: bool) -> list[Choice]:
    """All choices that are tried."""
    texts = (False, True) if with_text else (False,)
    return [Choice(ridge, weight, text) for text in texts for ridge in GAMMAS for weight in WEIGHTS]


@dataclass(frozen=True)
class Fitted:
    """A new row.

    Attributes:
        row: unit row [1, D].
        choice: how it is made.
        own: share of its pictures that are right by rows made without them, 0 to 1; None for a single picture.
    """

    row: Tensor
    choice: Choice
    own: float | None


def fit(old: Old, background: Statistics, features: Tensor, text: Tensor | None, most: float = HARM) -> Fitted:
    """The row of a class with these features [n, D] on which they score best, among rows that harm little.

    Args:
        most: what the mean accuracy of the old classes may lose by estimate, 0 to 1.
    """
    tried, start = choices(text is not None), bases(old, text)
    made = rows(background, features, start, tried)
    cost = harm(old, made)
    few = len(features) < 2
    margins = _single(old, tried) if few else _left_out(old, background, features, start, tried)
    liked = F.logsigmoid(SCALE * margins).mean(0)
    best = int(torch.where(cost <= max(most, float(cost.min())), liked, -torch.inf).argmax())
    return Fitted(made[best : best + 1], tried[best], None if few else float((margins[:, best] > 0).double().mean()))


def _left_out(
    old: Old, background: Statistics, x: Tensor, start: tuple[Tensor, Tensor | None], tried: Sequence[Choice]
) -> Tensor:
    """Lead of each picture's score with rows made without it over its best score with an old row [n, choices]."""
    found = []
    for k in range(min(len(x), LEFT_OUT)):
        made = rows(background, torch.cat([x[:k], x[k + 1 :]]), start, tried)
        found.append(margin(x[k : k + 1], made, old.rows))
    return torch.cat(found)


def _single(old: Old, tried: Sequence[Choice]) -> Tensor:
    """The same for old classes that are added again from one picture, by their other pictures [n, choices]."""
    found = [torch.zeros(1, len(tried), dtype=torch.float64)]
    for c, mine, rest in _episodes(old.sample.labels, 1):
        others = old.sample.labels != c
        x, y = old.sample.features.double(), old.sample.labels
        text = None if old.texts is None else old.texts[c]
        made = rows(gathered(x[others], y[others], len(old.rows)), x[mine], bases(old, text, c), tried)
        found.append(margin(x[rest], made, old.rows, c).mean(0, keepdim=True))
    return torch.cat(found)


def _episodes(labels: Tensor, pictures: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Old classes, with the positions of the pictures that they are added again from, and of their other ones."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(labels)
    order = torch.randperm(len(counts), generator=generator)
    order = order[counts[order] > 1]
    # Classes with more pictures than needed come first, in random order.
    for c in order[(counts[order] <= pictures).int().argsort(stable=True)][:EPISODES].tolist():
        own = (labels == c).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        few = min(pictures, len(own) - 1)
        yield c, own[:few], own[few:]


def margin(features: Tensor, new: Tensor, old_rows: Tensor, without: int | None = None) -> Tensor:
    """Lead of the scores of features [n, D] with new rows [k, D] over their best score with an old row [n, k]."""
    return features.double() @ new.T - _best(features, old_rows, without)[0][:, None]


def harm(old: Old, new: Tensor) -> Tensor:
    """Loss of mean accuracy of the old classes in the sample by each new row [k, D], 0 to 1, [k].

    A picture that was right counts as lost by the logistic function of the new row's lead, in units of `SMOOTHING`.
    """
    x, y = F.normalize(old.sample.features.double(), dim=-1), old.sample.labels
    best, where = _best(x, old.rows, None)
    right = (_shares(y, len(old.rows)) * (where == y))[:, None]
    return (right * torch.sigmoid((x @ new.T - best[:, None]) / SMOOTHING)).sum(0)


def as_unseen(sample: Sample, rows: Tensor, accuracy: float) -> Sample:
    """Features of training pictures moved to where pictures of their classes lie that the model has not seen.

    Each loses the same multiple of its own class's row, just enough for the mean accuracy over classes to fall to what
    is given, and keeps its length. Features that are no better than that stay as they are.

    Args:
        sample: features [N, D] with labels [N].
        rows: the classes' unit rows [C, D].
        accuracy: on pictures not seen, mean over classes, 0 to 1.
    """
    y, rows = sample.labels, rows.double()
    x = F.normalize(sample.features.double(), dim=-1)
    scores, own = x @ rows.T, F.one_hot(y, len(rows)).bool()
    # Taking a times row y from x lowers its lead over class c by a (1 - row_y . row_c).
    room = (scores[own][:, None] - scores) / (1 - (rows @ rows.T)[y]).clamp(min=1e-9)
    room, order = room.masked_fill(own, torch.inf).amin(1).sort()
    left = 1 - _shares(y, len(rows))[order].cumsum(0)
    lost = int((left > accuracy + 1e-9).sum()) + 1
    if lost <= int((room <= 0).sum()) or lost >= len(room) or accuracy >= 1:
        return sample
    moved = room[lost - 1 : lost + 1].mean()
    x = F.normalize(x - moved * rows[y], dim=-1)
    return Sample((x * sample.features.double().norm(dim=-1, keepdim=True)).to(sample.features.dtype), y)


def _shares(labels: Tensor, classes: int) -> Tensor:
    """Weight of each picture [N] in the mean over the classes that have pictures."""
    counts = torch.bincount(labels, minlength=classes).double()
    return 1 / (counts[labels] * (counts > 0).sum())


def _best(features: Tensor, old_rows: Tensor, without: int | None) -> tuple[Tensor, Tensor]:
    scores = features.double() @ old_rows.double().T
    if without is not None:
        scores[:, without] = -torch.inf
    return scores.max(1)
