"""One run as frozen configurations: presets first, then key=value, all mistakes reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from liftplus import registry
from liftplus.backbones.base import BackboneConfig
from liftplus.data.config import DataConfig
from liftplus.data.samplers import Instance, Sampler
from liftplus.data.transforms import MDA, Augment, Resize
from liftplus.errors import UserError
from liftplus.model.head_init import HeadInit, Semantic
from liftplus.model.heads import Cosine, Head
from liftplus.model.losses import LogitAdjusted, Loss
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
    """Minutes for the whole run, test included, with recipe=auto: it trains as many epochs as fit, up to 30."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate at the start."""
    batch_size: int = Field(default=128, ge=1)
    """Images an optimiser step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images a forward pass, where memory is short. The pieces add up exactly to the loss of the whole batch, except
    for lade, whose regulariser treats each piece as a batch."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Share of each training picture's patches that a step sees, drawn anew in each epoch (PatchDropout). Only for
    image towers with one plain sequence of tokens. Steps take less time and memory; tests see whole pictures."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay on all tuned and head weights."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Layer-wise learning rates: of L blocks, block i and the light modules on it take the rate times
    layer_decay^(L + 1 - i), embeddings as block 0; the classifier and a final norm take the whole rate. 1: one rate for
    all. BEiT and MAE take 0.65 to 0.75 for full fine-tuning."""
    schedule: Literal["epoch", "step"] = "epoch"
    """Cosine decay of the learning rate stepped by epoch (as in the papers) or by step."""
    scale_rates: bool = False
    """Multiply the rate of each light module's output weights by the mean square of the activation that they add to,
    measured before the first step and at most 1. One rate then suits every backbone."""
    go_back: bool = False
    """Once a run: if the loss after an epoch is not finite, or above both ln(classes) and the loss before training, go
    back to the start and halve the rate."""
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


class EvaluationConfig(registry.Component):
    """How pictures are cut for testing: the `evaluation.*` keys."""

    tte: bool = False
    """Test-time ensembling: the mean of the logits over five crops."""
    expand: int = Field(default=24, ge=0)
    """Pixels by which the short side exceeds the input size under TTE; best not a multiple of the patch size."""
    one_crop_expand: int | None = Field(default=None, ge=0)
    """Pixels by which the short side exceeds the input size with one crop; None for a seventh of that size."""
    resize: Resize = "short_side"
    """short_side: a picture keeps its shape. square: both sides get the length that is the short one's else, as
    transformers prepares pictures for SigLIP, ViT, BEiT and DINOv3. Training's own crops stay as they are."""
    batch_size: int = Field(default=128, ge=1)
    """Images a batch (five crops each under TTE)."""
    top_k: int = Field(default=5, ge=1)
    """Classes kept for each image in predictions."""
    prior: str = "as_trained"
    """Class frequencies in use: as_trained (logits as they are), training, uniform, or a JSON file of counts."""


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
    """On a GPU, use only algorithms that give the same bits each time, in cuDNN too; slower. A CPU always does."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """torch.compile for training and testing; auto: on a GPU. Costs a minute at the start. graphs: as CUDA graphs too,
    which are faster at small batches."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_trackers)] = ()
    """Experiment trackers that follow the run, joined by +: tensorboard, wandb, mlflow; each is an extra to install."""
    cache: bool = True
    """Keep on disk for later: features of frozen towers, and what was found of each picture's file."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    tuner: Annotated[dict[str, SerializeAsAny[Tuner]], BeforeValidator(_tuners)] = {}
    head: Annotated[SerializeAsAny[Head], _part("head")] = Cosine()
    head_init: Annotated[SerializeAsAny[HeadInit], _part("head_init")] = Semantic()
    augment: Annotated[SerializeAsAny[Augment], _part("augment")] = MDA()
    loss: Annotated[SerializeAsAny[Loss], _part("loss")] = LogitAdjusted()
    sampler: Annotated[SerializeAsAny[Sampler], _part("sampler")] = Instance()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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
"""Short names of backbones that meant other weights before `backbone.interpolation` existed."""


def saved(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a saved run; an option that was added later gets the value that was in force."""
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
