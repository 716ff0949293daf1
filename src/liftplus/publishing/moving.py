"""A tuned model in the form of timm, open_clip or transformers, which load it with their own loaders.

The folder is written, loaded by the other library, compared with liftplus on pictures, and only then kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.backbones.normalise import Normalise
from liftplus.backbones.transformers_config import activations, kind_of
from liftplus.config import EvaluationConfig
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import crops
from liftplus.machine.disk import new_folder, refuse_existing, room_beside
from liftplus.machine.progress import Progress
from liftplus.model.classifier import Classifier
from liftplus.model.heads import HeadModule, JointModule
from liftplus.publishing.comparing import OTHERWISE, TOLERANCE, answers, largest, within
from liftplus.training.checkpoint import Trained

Library = Literal["timm", "open_clip", "transformers"]
LIBRARIES: tuple[Library, ...] = ("timm", "open_clip", "transformers")


@dataclass(frozen=True)
class LinearHead:
    """A classifier as a linear on the backbone's features.

    Attributes:
        weight, bias: fp32 [C, D] and [C].
        exact: whether its logits are liftplus's; else they are so but for a positive factor of each picture's own,
            which leaves the order of the classes as it is and is taken here at its mean.
    """

    weight: Tensor
    bias: Tensor
    exact: bool


@dataclass(frozen=True)
class Moving:
    """What a library's writer needs to know.

    Attributes:
        trained: the run; its tuners are folded into its model after the writer's check and before it writes.
        cut: how one crop of a picture is taken.
        without_timm: whether transformers' own classes are asked for, not timm's.
    """

    trained: Trained
    cut: CentreCrop
    without_timm: bool = False

    @property
    def backbone(self) -> Backbone:
        return self.trained.model.backbone


@dataclass(frozen=True)
class Written:
    """What a library's own loader made of a folder.

    Attributes:
        logits: normalised pictures fp32 [n, 3, R, R] to logits [n, C], by the other library.
        exact: whether these should be liftplus's own; see `LinearHead`.
        how: how to load it, one line of Python.
        notes: what the user should know, one sentence each.
    """

    logits: Callable[[Tensor], Tensor]
    exact: bool
    how: str
    notes: tuple[str, ...] = ()


Write = Callable[[Path, Callable[[], LinearHead]], Written]
"""Write into an empty folder, and load it with the library.

The second argument gives the classifier as a linear, to be asked for by libraries whose head is one.
"""


@dataclass(frozen=True)
class Checked:
    """A run that a library has a place for, as far as its settings tell, and how it is written."""

    moving: Moving
    library: Library
    write: Write


@dataclass(frozen=True)
class Difference:
    """How the other library's answers compare with liftplus's, in fp32.

    Attributes:
        images: pictures compared.
        logits: largest absolute difference of a logit, after the factor of each picture where the head is not exact.
        deviation: standard deviation of liftplus's logits.
        merging: largest absolute difference of a logit that folding the tuners in made.
        probabilities: largest absolute difference of a probability.
        agree: share of pictures with the same top class.
        exact: whether the other library's head is liftplus's.
    """

    images: int
    logits: float
    deviation: float
    merging: float
    probabilities: float
    agree: float
    exact: bool

    @property
    def holds(self) -> bool:
        """Whether both differences are within the tolerance."""
        return within(max(self.logits, self.merging), self.deviation)

    def notes(self, library: str) -> tuple[str, ...]:
        """What is lost, one sentence each."""
        if self.exact:
            return ()
        return (
            f"Logits were compared up to one factor for each picture: the run's head divides by the picture's own "
            f"length, and {library} has a linear. That leaves the order of the classes as it is, and probabilities "
            f"differ by up to {self.probabilities:.2g}. With head=linear in training, and as .onnx or .pt2, "
            "they are equal.",
        )


def required(library: str) -> Library:
    """The library that is asked for; refuses any other, and one that is not installed, before any work."""
    if library not in LIBRARIES:
        raise UserError(f"--to is {library!r}; it can be {', '.join(LIBRARIES)}.")
    try:
        import_module(library)
    except ImportError as error:
        raise UserError(f"Exporting to {library} needs it installed: pip install {library}.") from error
    return library


@torch.no_grad()
def checked(trained: Trained, library: Library, evaluation: EvaluationConfig, without_timm: bool = False) -> Checked:
    """Refuse what the settings tell that the library has no place for, before any picture is read.

    Args:
        trained: on the CPU in fp32; its model gets the prior's shift.
        evaluation: how one crop is cut, and the prior.
        without_timm: for transformers, write its own classes; others than ViT, DINOv2 and BEiT are refused.
    """
    model, cut = trained.model, crops(evaluation, trained.model.backbone.facts)
    assert isinstance(cut, CentreCrop), "other libraries take one crop of a picture"
    _refuse_kept(model.never_merge(), library)
    model.shift = priors.shift(trained.config, trained.class_names, trained.train_counts, evaluation.prior)
    moving = Moving(trained, cut, without_timm)
    return Checked(moving, library, _check(library)(moving))


@torch.no_grad()
def move(run: Checked, out: Path, images: Tensor, progress: Progress) -> tuple[Written, Difference]:
    """Write a folder that the library loads; one that answers otherwise than liftplus is not kept.

    Args:
        run: its model is merged in place.
        out: a new folder.
        images: what to compare on, RGB 0 to 255, fp32 [n, 3, R, R].
    """
    out = out.absolute()
    refuse_existing(out)
    model, library = run.moving.trained.model, run.library
    pictures = Normalise(model.backbone.facts)(images)
    expected = answers(model, pictures, progress, "Running liftplus")
    _refuse_kept(model.merge(), library)
    features = answers(model.backbone, pictures, progress, "Running liftplus, tuners folded in")
    with room_beside(out) as above:
        folder = above / out.name
        folder.mkdir()
        written = run.write(folder, lambda: linear_head(model, features, expected))
        found = answers(written.logits, pictures, progress, f"Running {library}")
        difference = _compared(found, expected, model(features), written.exact)
        if not difference.holds:
            raise UserError(
                f"{library} gives logits that differ by up to {difference.logits:.1e} from liftplus's "
                f"({difference.merging:.1e} of it by folding tuners in), more than {TOLERANCE:g} of their deviation "
                f"{difference.deviation:.2f} allows, so nothing was kept. {OTHERWISE}, and report it."
            )
        new_folder(out)
        for piece in folder.iterdir():
            piece.replace(out / piece.name)
    return written, difference


def _check(library: Library) -> Callable[[Moving], Write]:
    """The library's own: it refuses what it has no place for, and gives the function that writes."""
    module = import_module(f"liftplus.publishing.to_{library}")
    return cast("Callable[[Moving], Write]", module.check)


def _refuse_kept(kept: list[str], library: Library) -> None:
    """Refuse tuners that stay beside the backbone's own weights."""
    if kept:
        raise UserError(
            f"A model of {library} has no place for {' and '.join(kept)}: what it adds is no change of the backbone's "
            f"own weights, so it cannot be folded into them. {OTHERWISE}, or train with tuner=lora, ssf, aft, bitfit, "
            "norm, partial or full, which fold in wherever they act on linears or norms."
        )


def kinds_of_activations(tower: nn.Module) -> set[str]:
    """How transformers calls the activations of a tower's MLPs."""
    return {kind_of(module) for _, _, module in activations(tower)}


def epsilons(tower: nn.Module) -> set[float]:
    """Those of a tower's norms."""
    return {part.eps for part in tower.modules() if isinstance(part, nn.LayerNorm)}


def epsilon_notes(ours: nn.Module, theirs: nn.Module, library: str) -> tuple[str, ...]:
    """Where the epsilon of norms is another in the library's own tower, which the folder cannot say."""
    eps = [epsilons(tower) for tower in (ours, theirs)]
    if eps[0] == eps[1]:
        return ()
    own, other = (", ".join(f"{value:g}" for value in sorted(values)) for values in eps)
    return (
        f"The epsilon of norms is {own} in the run and {other} in {library}'s model, which moves features a little.",
    )


def classifier_tensors(head: HeadModule, shift: Tensor | None) -> dict[str, Tensor] | None:
    """Rows times the head's scale [C, D], and biases [C] with the prior's shift; None where a head has none.

    Features are compared with the rows as `HeadModule` says.
    """
    rows, own = head.rows(), 1.0 if head.layer_norms or not head.scales else None
    scale = getattr(head, "scale", own)
    if rows is None or scale is None:
        return None
    bias = _bias(head, rows)
    return {"weight": (scale * rows).detach(), "bias": bias if shift is None else bias + shift}


def _bias(head: HeadModule, rows: Tensor) -> Tensor:
    bias = getattr(head, "bias", None)
    return torch.zeros(len(rows)) if bias is None else bias.detach().clone()


def check_linear(model: Classifier, library: str) -> None:
    """Refuse a head that no linear on the backbone's features stands for, with the prior that the model has."""
    head = model.head
    if head.rows() is None:
        raise UserError(
            f"{library} classifies by a linear, and the logits of head={type(head).__name__} are none. {OTHERWISE}, or "
            "train with head=linear or head=cosine."
        )
    if head.scales and model.shift is not None:
        raise UserError(
            f"{library} classifies by a linear, which cannot hold both a prior and a head that divides by each "
            f"picture's own length. Leave --prior out, or train with head=linear. {OTHERWISE}."
        )


def linear_head(model: Classifier, features: Tensor, logits: Tensor) -> LinearHead:
    """The classifier as a linear on the backbone's features [n, D], for which liftplus gave these logits [n, C].

    The head has passed `check_linear`.
    """
    head, backbone = model.head, model.backbone
    rows = head.rows()
    assert rows is not None
    bias = _bias(head, rows)
    if isinstance(head, JointModule):
        if backbone.image_bias is not None:
            bias = rows @ backbone.image_bias
        if backbone.image_projection is not None:
            rows = rows @ backbone.image_projection.T
    factor = 1.0
    if head.scales:
        plain = features @ rows.T + bias
        factor = float(((logits * plain).sum(1) / plain.square().sum(1)).mean())
    if model.shift is not None:
        bias = bias + model.shift
    return LinearHead((factor * rows).detach().float().clone(), (factor * bias).detach().float(), not head.scales)


def _compared(found: Tensor, expected: Tensor, merged: Tensor, exact: bool) -> Difference:
    """Logits [n, C] of the other library, of liftplus, and of liftplus with its tuners folded in."""
    scaled = found
    if not exact:  # by least squares for each picture
        scaled = found * (found * expected).sum(1, keepdim=True) / found.square().sum(1, keepdim=True)
    return Difference(
        images=len(found),
        logits=largest(scaled, expected),
        deviation=float(expected.std(unbiased=False)),
        merging=largest(merged, expected),
        probabilities=largest(found.softmax(1), expected.softmax(1)),
        agree=float((found.argmax(1) == expected.argmax(1)).float().mean()),
        exact=exact,
    )
