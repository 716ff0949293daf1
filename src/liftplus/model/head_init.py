"""First rows of the classifier: from class names (SAI), from features, or at random.

Rows have unit length but for discriminants of a head with a bias. Closed forms are in `picture_init`.
"""

from __future__ import annotations

import json
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from liftplus.backbones.base import Backbone
from liftplus.backbones.text import ClassTexts, centred
from liftplus.data import documents
from liftplus.errors import UserError, unknown
from liftplus.names import presets
from liftplus.registry import Component, register

Features = tuple[Tensor, Tensor]
"""Features [n, D] and their labels [n]."""


@dataclass(frozen=True)
class Stream:
    """Features that need not all be in memory: the labels [N] of all of them, and batches in the same order."""

    labels: Tensor
    batches: Callable[[], Iterator[Features]]


@dataclass(frozen=True)
class Start:
    """Where a head starts: a weight row for each class [C, D], and biases [C] where it has any."""

    rows: Tensor
    bias: Tensor | None = None


def as_they_are(features: Tensor) -> Tensor:
    """The view of a head that compares features unchanged."""
    return features


@dataclass(frozen=True)
class InitContext:
    """What an initialisation may use.

    Attributes:
        backbone: the bare backbone, with its text encoder if it has one.
        class_names: one a class, in class order.
        features: called with k, gives plain features [n, D] and labels [n] of at most k images a class.
        generator: source of randomness.
        texts: called with the classes' prompts, gives unit features [C, joint]; by default the text encoder's own.
        stream: called with k or None, gives plain features of at most k, or of all, images a class batch by batch.
        view: features as the head compares them with its rows, [n, D] -> [n, D].
        notes: takes what an initialisation decided, one sentence each.
    """

    backbone: Backbone
    class_names: Sequence[str]
    features: Callable[[int], Features]
    generator: torch.Generator
    texts: Callable[[ClassTexts], Tensor] | None = None
    stream: Callable[[int | None], Stream] | None = None
    view: Callable[[Tensor], Tensor] = as_they_are
    notes: list[str] = field(default_factory=list)

    def images(self, shots: int | None) -> Stream:
        """Plain features of at most `shots` images a class, or of all; in one batch where there is no stream."""
        if self.stream is not None:
            return self.stream(shots)
        features, labels = self.features(sys.maxsize if shots is None else shots)
        return Stream(labels, lambda: iter([(features, labels)]))


class HeadInit(Component):
    """Configuration of an initialisation."""

    reads_names: ClassVar[bool] = False
    """Whether it needs class names and a text tower."""
    needs_bias: ClassVar[bool] = False
    """Whether its rows are wrong without the biases that come with them."""

    @abstractmethod
    def rows(self, context: InitContext) -> Tensor:
        """Rows [C, D], fp32; of unit length but where they need a bias."""

    def start(self, context: InitContext) -> Start:
        """The rows, with biases where the initialisation has them."""
        return Start(self.rows(context))


def templates_of(name: str) -> list[str]:
    """The templates of a prompt set, {} for the class name; a library's own are read from the installed library."""
    table = presets("prompts")
    if name not in table:
        raise unknown("prompt set", name, table)
    entry = table[name]
    if "library" in entry:
        import open_clip  # takes seconds, and only these sets need it

        return [fill("{}") for fill in getattr(open_clip, entry["library"])]
    return list(entry["templates"])


def spoken(name: str) -> str:
    """A class name as prompts say it: underscores become spaces."""
    return name.replace("_", " ")


def described(path: str, names: Sequence[str]) -> list[list[str]]:
    """Each class's own prompts from a JSON file {class name: [prompt, ...]}; classes are matched without case."""
    table: dict[str, list[str]] = {}
    for name, own in _read_descriptors(path).items():
        key = spoken(name).casefold()
        if key in table:
            raise UserError(f"The descriptors in {path!r} name the class {name!r} twice. Keep one of them.")
        if not isinstance(own, list) or not own or not all(map(_is_prompt, own)):
            raise UserError(
                f"The descriptors of {name!r} in {path!r} are {json.dumps(own, ensure_ascii=False)[:80]}; "
                'allowed is a list of one or more prompts, such as ["a photo of a {}, which has feathers."].'
            )
        table[key] = own
    missing = [name for name in names if spoken(name).casefold() not in table]
    if missing:
        raise UserError(
            f"The descriptors in {path!r} lack {len(missing)} of {len(names)} classes: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}. Give every class a list of prompts."
        )
    return [[text.replace("{}", spoken(name)) for text in table[spoken(name).casefold()]] for name in names]


def _is_prompt(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and documents.is_unicode(text)


def _read_descriptors(path: str) -> dict[str, Any]:
    form = 'a JSON file {"class name": ["prompt", ...]}'
    try:
        table = documents.json_value(documents.text(documents.place(path), "file"), path, distinct=True)
    except UserError as error:
        raise UserError(f"head_init.descriptors is {path!r}, which cannot be read ({error}) Give {form}.") from error
    if not isinstance(table, dict):
        raise UserError(f"head_init.descriptors is {path!r}, which holds a {type(table).__name__}. Give {form}.")
    return table


def text_rows(backbone: Backbone, joint: Tensor) -> Tensor:
    """Unit joint-space text features [C, joint] as rows on image features [C, D]: u_k P_img^T."""
    if backbone.image_projection is None:
        return F.normalize(joint, dim=-1)
    return F.normalize(joint @ backbone.image_projection.float().T, dim=-1)


def random_rows(classes: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit rows [C, D] that point anywhere."""
    return F.normalize(torch.randn(classes, dim, generator=generator), dim=-1)


@register("head_init", "semantic")
class Semantic(HeadInit):
    """Semantic-aware initialisation (LIFT, section 4.3): each row from the text feature of its class name."""

    reads_names: ClassVar[bool] = True

    prompts: str = "default"
    """Prompt set: a name from presets/prompts.toml, such as default, name, ensemble, species."""

    template: str | None = None
    """An own prompt in place of a set; {} stands for the class name."""

    descriptors: str | None = None
    """A JSON file {class name: [prompt, ...]} with prompts for each class, in place of a set."""

    centre: bool = False
    """Subtract the mean text feature over the classes first, which sharpens what tells classes apart."""

    @field_validator("prompts")
    @classmethod
    def _known(cls, name: str) -> str:
        templates_of(name)
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.template is not None and "{}" not in self.template:
            raise UserError(f'The prompt template is {self.template!r}; it needs "{{}}" where the class name goes.')
        if self.template is not None and self.descriptors is not None:
            raise UserError(
                f"head_init.template is {self.template!r} and head_init.descriptors is {self.descriptors!r}; "
                "prompts come from one of them. Leave the other out."
            )
        return self

    def texts(self, names: Sequence[str]) -> list[list[str]]:
        """The prompts of each class."""
        if self.descriptors is not None:
            return described(self.descriptors, names)
        templates = templates_of(self.prompts) if self.template is None else [self.template]
        return [[template.replace("{}", spoken(name)) for template in templates] for name in names]

    def rows(self, context: InitContext) -> Tensor:
        context.backbone.text_encoder("head_init=semantic")
        return text_rows(context.backbone, class_features(context, self))


def class_prompts(init: HeadInit, names: Sequence[str]) -> list[list[str]]:
    """The prompts of each class [C] by the initialisation, by the default prompt set where it reads no text."""
    return (init if isinstance(init, Semantic) else Semantic()).texts(names)


def centres(init: HeadInit) -> bool:
    """Whether the initialisation asks for text features centred over the classes."""
    return isinstance(init, Semantic) and init.centre


def class_features(context: InitContext, init: HeadInit) -> Tensor:
    """Unit text features of the classes in the joint space [C, joint]: normalise(mean of the prompts'), centred or not.

    Centring comes from work on few-shot classifiers, not from LIFT, and does not help on all data.
    """
    encode = context.texts or context.backbone.text_encoder("a start from class names").encode
    features = encode(class_prompts(init, context.class_names))
    return centred(features) if centres(init) else features


def _most(shots: int | None) -> int:
    return sys.maxsize if shots is None else shots


def _all(shots: Any) -> Any:
    return None if shots == "all" else shots


Shots = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_all)]


@register("head_init", "class_mean")
class ClassMean(HeadInit):
    """Mean feature of each class; a class without images gets a random row."""

    shots: Shots = 100
    """Most images a class to average; null or all for every one, as in LIFT."""

    def rows(self, context: InitContext) -> Tensor:
        features, labels = context.features(_most(self.shots))
        classes = len(context.class_names)
        sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features.float())
        rows = F.normalize(sums, dim=-1)
        empty = torch.bincount(labels, minlength=classes) == 0
        rows[empty] = random_rows(classes, features.shape[1], context.generator)[empty]
        return rows


@register("head_init", "linear_probe")
class LinearProbe(HeadInit):
    """Multinomial logistic regression with balanced class weights on plain features, rows normalised."""

    shots: Shots = 100
    """Most images a class to fit on; null or all for every one, as in LIFT."""

    max_iterations: int = Field(default=100, ge=1)
    """Most L-BFGS iterations."""

    def rows(self, context: InitContext) -> Tensor:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        features, labels = context.features(_most(self.shots))
        present = labels.unique()
        rows = random_rows(len(context.class_names), features.shape[1], context.generator)
        if len(present) < 2:
            return rows
        model = LogisticRegression(max_iter=self.max_iterations, class_weight="balanced")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a note of ours says it
            model.fit(features.double().numpy(), labels.numpy())
        if model.n_iter_.max() >= self.max_iterations:
            context.notes.append(
                f"head_init=linear_probe stopped after {self.max_iterations} iterations, before its logistic "
                f"regression had converged. head_init.max_iterations={10 * self.max_iterations} goes on for longer."
            )
        weight = torch.from_numpy(model.coef_).float()
        if len(present) == 2:  # scikit-learn gives one row for two classes: that of the second
            weight = torch.cat([-weight, weight])
        rows[present] = F.normalize(weight, dim=-1)
        return rows


@register("head_init", "random")
class Random(HeadInit):
    """Random unit rows."""

    def rows(self, context: InitContext) -> Tensor:
        return random_rows(len(context.class_names), context.backbone.dim, context.generator)
