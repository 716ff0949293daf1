"""One run as frozen configurations: presets first, then key=value, all mistakes reported at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo

from liftplus import registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.data.config import DataConfig
from liftplus.data.samplers import Instance, Sampler
from liftplus.data.transforms import MDA, Augment, Evaluation
from liftplus.errors import UserError, unknown
from liftplus.model.head_init import HeadInit, Semantic
from liftplus.model.heads import Cosine, Head
from liftplus.model.losses import LogitAdjusted, Loss
from liftplus.names import presets
from liftplus.tuners.base import Tuner


def _part(kind: str) -> Any:
    """Parse "focal" or {"name": "focal", "gamma": 1} into the registered component of that kind."""

    def parse(value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not _has_names(value):
            return value
        options = {key: item for key, item in value.items() if key != "name"}
        return registry.get(kind, str(value.get("name")))(**options)

    return BeforeValidator(parse)


def _tuners(value: Any) -> Any:
    """Parse "none", "lora+ssf" or {"lora": {"rank": 4}} into components by name."""
    if isinstance(value, str):
        value = {name: {} for name in value.split("+") if name != "none"}
    if not _has_names(value):
        return value
    return {name: registry.get("tuner", name)(**item) if _has_names(item) else item for name, item in value.items()}


def _trackers(value: Any) -> Any:
    """Parse "none" or "tensorboard+mlflow" into names."""
    return [name for name in value.split("+") if name != "none"] if isinstance(value, str) else value


def _has_names(value: Any) -> bool:
    """Whether a value is a table of named options; what is not is left to the validation, which explains it."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


class TrainConfig(BaseModel):
    """The training run: the `train.*` keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    epochs: int = Field(default=5, ge=0)
    """Passes over the training images."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes for the whole run, with recipe=auto: as many epochs, up to 30, as fit beside the test."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate at the start."""
    batch_size: int = Field(default=128, ge=1)
    """Images an optimiser step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images a forward pass, where memory is short. The pieces add up to the loss of the whole batch, exactly, but for
    lade: its regulariser takes each piece for a batch."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay on all tuned and head weights."""
    schedule: Literal["epoch", "step"] = "epoch"
    """Cosine decay of the learning rate stepped by epoch (as in the papers) or by step."""
    scale_rates: bool = False
    """Multiply the rate of each light module's output weights by the mean square of the activation that they add to,
    measured before the first step and at most 1. One rate then suits every backbone."""
    go_back: bool = False
    """Where the loss is above what it was before training, or not finite, after an epoch: go back to the start and
    halve the rate, once."""
    select: Literal["last", "overall", "mean_class"] = "last"
    """Weights to end with: the last epoch's, as in the papers, or those of the epoch with the best overall or
    mean-class accuracy on the validation split (one crop; of equal ones the first). Both are kept."""
    validate_every: int = Field(default=0, ge=0)
    """Epochs between measurements on the validation split, the last one included; 0: none, or after each where
    `select` needs them."""
    workers: int | None = Field(default=None, ge=0)
    """Loader processes; by default by the number of cores."""
    save_minutes: float = Field(default=10.0, gt=0)
    """Minutes between saves of the run's state; it is saved at the end of each epoch too."""


class RunConfig(BaseModel):
    """Everything that defines a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    method: str = "lift+"
    """The preset that the run started from."""
    recipe: Literal["auto", "paper"] = "paper"
    """paper: the method's settings as published. auto: those of `automatic` are chosen from the data and the backbone;
    it is the default for data of your own."""
    automatic: tuple[str, ...] = ()
    """Settings that recipe=auto chooses: those of `AUTOMATIC` that were not given."""
    seed: int = Field(default=0, ge=0, lt=2**32 - 1)
    """Seed of weights, order and crops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of matrix products and frozen weights; auto takes bf16 where the device computes in it."""
    deterministic: bool = False
    """On a GPU, only algorithms that give the same bits each time, cuDNN's among them; slower. A CPU always does."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """torch.compile for training and testing; auto: on a GPU. Costs a minute at the start. graphs: as CUDA graphs too,
    which are faster at small batches."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_trackers)] = ()
    """Experiment trackers that follow the run, joined by +: tensorboard, wandb, mlflow; each is an extra to install."""
    cache: bool = True
    """Compute features of frozen towers once and keep them on disk for later runs."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    tuner: Annotated[dict[str, SerializeAsAny[Tuner]], BeforeValidator(_tuners)] = {}
    head: Annotated[SerializeAsAny[Head], _part("head")] = Cosine()
    head_init: Annotated[SerializeAsAny[HeadInit], _part("head_init")] = Semantic()
    augment: Annotated[SerializeAsAny[Augment], _part("augment")] = MDA()
    loss: Annotated[SerializeAsAny[Loss], _part("loss")] = LogitAdjusted()
    sampler: Annotated[SerializeAsAny[Sampler], _part("sampler")] = Instance()
    train: TrainConfig = TrainConfig()
    evaluation: Evaluation = Evaluation()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back; components carry their name."""
        out = self.model_dump(mode="json")
        for key in PARTS:
            out[key] = {"name": getattr(self, key).name} | out[key]
        return out


def flat(run: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        else:
            yield key, value

    return dict(walk(run.to_dict(), ""))


PARTS = ("head", "head_init", "augment", "loss", "sampler")


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Validate plain values; every mistake is listed in one error."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item) for item in error.errors())) from error


RENAMED = {"vit_b16_in21k": "vit_b16_in21k_raw"}
"""Short names of backbones that stood for other weights before `backbone.interpolation` was there."""


def saved(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a saved run, with what was in force where it lacks an option that came later."""
    tower: Any = values.get("backbone")
    if _has_names(tower) and tower.get("name") in RENAMED and "interpolation" not in tower:
        values = values | {"backbone": tower | {"name": RENAMED[tower["name"]]}}
    tuners: Any = values.get("tuner")
    if not _has_names(tuners) or not all(map(_has_names, tuners.values())):
        return values  # validation says what is wrong
    then = {name: cast(type[Tuner], registry.get("tuner", name)).upgraded(own) for name, own in tuners.items()}
    return values | {"tuner": then}


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    given = item.get("input")
    if isinstance(given, dict | BaseModel) and item["type"] == "value_error":  # about several settings of a section
        return f"{where or 'The configuration'}: {item['ctx']['error']}."
    shown = repr(given) if len(repr(given)) <= 200 else f"{repr(given)[:200]}…"
    return f"{where or 'The configuration'} = {shown} is not allowed: {item['msg'].lower()}."


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a component given by name replaces the whole component."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


AUTOMATIC = (
    *("train.epochs", "train.batch_size", "train.lr", "train.schedule", "train.scale_rates", "train.go_back"),
    *("tuner.adaptformer.min_width", "tuner.adapter.min_width", "head_init"),
)
"""Settings that recipe=auto chooses where they are not given; `recipe.py` says how."""


def resolve(
    *,
    data: str | None = None,
    backbone: str | None = None,
    method: str = "lift+",
    overrides: Sequence[str] = (),
    recipe: str = "paper",
) -> RunConfig:
    """A run from names and key=value pairs.

    Args:
        data: a data set's name or path.
        backbone: a name from the catalogue.
        method: a name from presets/methods.toml.
        overrides: "section.key=value", or "key=value" where only one section has that key.
        recipe: auto or paper, where the overrides do not say it.
    """
    rest = []
    for override in overrides:
        key, equals, value = override.partition("=")
        match full_key(key) if equals else None:
            case "method":
                method = value.strip()
            case "backbone.name":
                backbone = value.strip()
            case "data.source":
                data = value.strip()
            case "recipe":
                recipe = value.strip()
            case "automatic":
                raise UserError(
                    "automatic is not set by hand: give recipe=auto or recipe=paper, and values of your own."
                )
            case _:
                rest.append(override)
    automatic = AUTOMATIC if recipe == "auto" else ()
    values = _of_presets(data, backbone, method) | {"recipe": recipe, "automatic": automatic}
    run = changed(from_dict(values).to_dict(), rest)
    known = {*flat(run), *PARTS} if run.train.epochs else set()
    if _settings(method).get("head_init") != "semantic" or run.head.name == "joint":
        known.discard("head_init")
    if run.train.minutes is None:
        known.discard("train.epochs")
    elif recipe != "auto" or "train.epochs" not in run.automatic:
        raise UserError("train.minutes chooses the epochs: leave epochs out, and give recipe=auto.")
    return run.model_copy(update={"automatic": tuple(key for key in run.automatic if key in known)})


def _of_presets(data: str | None, backbone: str | None, method: str) -> dict[str, Any]:
    """What the presets say of a method on these data with this backbone, counterparts in place."""
    chosen = _settings(method)
    values = RunConfig(method=method).to_dict()
    if data is not None:
        values["data"]["source"] = data
    if backbone is not None:
        values["backbone"]["name"] = backbone
    tower = presets("backbones").get(values["backbone"]["name"], {})
    for change in (
        tower.get("defaults", {}),
        chosen,
        tower.get("methods", {}).get(method, {}),
        presets("data").get(data or "", {}).get(method, {}),
    ):
        values = _merge(values, change)
    values = from_dict(values).to_dict()
    return values | {kind: _part_by_name(method, kind, name) for kind, name in stand_ins(values).items()}


def _part_by_name(method: str, kind: str, name: str) -> dict[str, Any]:
    """A part, or tuners joined by +, with the options that a method gives to any part of the kind that has them."""
    own = presets("methods").get(method, {}).get("options", {}).get(kind, {})
    names = [one for one in name.split("+") if one != "none"] if kind == "tuner" else [name]
    given = {
        one: {key: value for key, value in own.items() if key in registry.get(kind, one).model_fields} for one in names
    }
    return given if kind == "tuner" else {"name": name} | given[name]


def stand_ins(values: dict[str, Any]) -> dict[str, str]:
    """Parts that take the place of those a method asks for, where the backbone has nothing they could act on.

    Without a text tower the classifier starts from class means; where no block has an MLP beside its residual stream,
    AdaptFormer's place is taken by its convolutional counterpart, or by LoRA.
    """
    traits, out = catalogue.traits(values["backbone"]["name"]), {}
    if values["head_init"]["name"] == "semantic" and not traits.reads_text:
        out["head_init"] = "class_mean"
    if values["head_init"]["name"] == "mix" and not traits.reads_text:
        out["head_init"] = "ridge"
    if list(values["tuner"]) == ["adaptformer"] and "mlp" not in traits.kinds:
        out["tuner"] = "conv_adapter" if "map" in traits.kinds else "lora"
    return out


def replaced(run: RunConfig) -> list[str]:
    """A sentence for each part of the run's method that another one stands in for."""
    asked = from_dict(_merge(run.to_dict(), _settings(run.method))).to_dict()
    have = {"head_init": run.head_init.name, "tuner": "+".join(run.tuner)}
    return [
        f"Method {run.method} asks for a {key} that {run.backbone.name!r} has no place for; {key}={part} stands in."
        for key, part in stand_ins(asked).items()
        if have[key] == part
    ]


def _settings(method: str) -> dict[str, Any]:
    """What a method changes in the defaults."""
    methods = presets("methods")
    if method not in methods:
        raise unknown("method", method, methods)
    return {key: value for key, value in methods[method].items() if key not in ("summary", "expected", "options")}


def changed(values: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A configuration as plain values with key=value pairs applied in order; what is given is no longer automatic."""
    for override in overrides:
        values = _override(values, override)
    run = from_dict(values)
    given = {_full_key(run, values, override.partition("=")[0].strip()) for override in overrides}
    given |= {key.partition(".")[0] for key in given if key.partition(".")[0] in PARTS}
    return run.model_copy(update={"automatic": tuple(key for key in run.automatic if key not in given)})


CHANGEABLE = (
    *("data", "evaluation", "backbone", "train"),
    *("device", "precision", "deterministic", "compile", "track", "cache"),
)


def after_training(values: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A trained run's settings, as plain values, with what may change after training changed."""
    before = from_dict(values).to_dict()
    settings = changed(values, overrides)
    after = settings.to_dict()
    fixed = [key for key in after if key not in CHANGEABLE and after[key] != before[key]]
    if fixed:
        raise UserError(
            f"{fixed[0]} belongs to the trained run and cannot be changed any more. "
            "Allowed are data.*, evaluation.*, device, precision, cache, train.workers and backbone.weights."
        )
    return settings


def _leaves(run: RunConfig, values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys that hold a value; `values` are the run's, below `prefix`."""
    for key, value in values.items():
        if isinstance(value, dict) and not _is_table(run, prefix + key):
            yield from _leaves(run, value, f"{prefix}{key}.")
        elif (key != "name" or prefix == "backbone.") and prefix + key != "automatic":
            yield prefix + key


def _full_key(run: RunConfig, values: dict[str, Any], key: str) -> str:
    """The dotted key that a user's short form stands for."""
    leaves = list(_leaves(run, values))
    if key in values or key in leaves:
        return key
    matches = [leaf for leaf in leaves if leaf.split(".")[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"The key {key!r} is ambiguous; write one of {', '.join(matches)}.")
    names = [*leaves, *(leaf.split(".")[-1] for leaf in leaves)]
    if not (near := difflib.get_close_matches(key, names, n=1, cutoff=0.5)):
        raise UserError(f"Unknown key {key!r}. Known keys: {', '.join(leaves)}.")
    section = next(leaf for leaf in leaves if near[0] in (leaf, leaf.split(".")[-1])).rpartition(".")[0]
    alike = [leaf for leaf in leaves if leaf.rpartition(".")[0] == section]
    raise UserError(f"Unknown key {key!r}. Did you mean {near[0]!r}? Known beside it: {', '.join(alike)}.")


def full_key(key: str) -> str:
    """The dotted key that a short one stands for whatever parts a run has; any other key as it is given."""
    key, run = key.strip(), RunConfig()
    try:
        return _full_key(run, run.to_dict(), key)
    except UserError:
        return key


def locate(run: RunConfig, key: str) -> tuple[str, bool]:
    """The dotted key that a user's short form stands for, and whether its value is text, which nothing is read into."""
    full = _full_key(run, run.to_dict(), key)
    return full, _is_text(run, full)


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form key=value, for example epochs=10.")
    run = from_dict(values)
    full = _full_key(run, values, key.strip())
    value = text.strip() if _is_text(run, full) else _value(text.strip())
    if full == "tuner" or full in PARTS:
        # A swapped part starts from its own defaults, which later keys may change.
        return from_dict(values | {full: _part_by_name(values["method"], full, str(value))}).to_dict()
    if isinstance(values.get(full), dict):
        keys = ", ".join(_leaves(run, values[full], f"{full}."))
        raise UserError(f"{full!r} is a section; set one of its keys: {keys}.")
    return _placed(values, full.split("."), value)


def _placed(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """`values` with the one at this path replaced, also where it is a table."""
    key, *rest = path
    return values | {key: _placed(values[key], rest, value) if rest else value}


def _field(run: RunConfig, key: str) -> FieldInfo | None:
    """The field that a dotted key names, None where it names an entry of a dict."""
    *parents, leaf = key.split(".")
    owner: Any = run
    for parent in parents:
        owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
    return type(owner).model_fields.get(leaf) if isinstance(owner, BaseModel) else None


def _is_text(run: RunConfig, key: str) -> bool:
    """Whether a key's value is text, which must not be read as a number or an object."""
    field = _field(run, key)
    return field is not None and field.annotation in (str, str | None)


def _is_table(run: RunConfig, key: str) -> bool:
    """Whether a key's value is a dict of numbers, which is set as a whole."""
    field = _field(run, key)
    annotation = field.annotation if field else None
    dicts = [choice for choice in (annotation, *get_args(annotation)) if get_origin(choice) is dict]
    items = [get_args(choice)[1] for choice in dicts]
    return any(item is float or get_args(item)[:1] == (float,) for item in items)


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # numbers of over 4300 digits are a ValueError
        return {"True": True, "False": False, "None": None, "none": "none"}.get(text, text)
