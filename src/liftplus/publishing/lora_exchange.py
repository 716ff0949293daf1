"""Convert LoRA weights to and from the files of the peft library (adapter_config.json, adapter_model.safetensors).

peft adds B A alpha/r to the weight [out, in] of a whole linear. liftplus adds W_d W_u scale/r to a part of one. On a
joint query-key-value linear of width w, parts of rank r become A [parts r, in], stacked, and B [3w, parts r], block by
block. This is exact in both directions. peft names layers as the model's own library does. So attention that liftplus
had to open (nn.MultiheadAttention, BEiT's biases) has no name in peft and is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.sites import SplitAttention
from liftplus.config import EvaluationConfig
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.machine.disk import new_folder, read_json, write_bytes, write_json
from liftplus.model.classifier import Classifier
from liftplus.model.heads import JointModule
from liftplus.names import full_backbone
from liftplus.publishing import to_timm
from liftplus.publishing.moving import classifier_tensors, epsilons
from liftplus.training.checkpoint import Trained
from liftplus.tuners.lora import LoRA, LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD, ABOUT = "head.safetensors", "classifier.json"
PREFIX = "base_model.model."
# Settings for which peft's forward pass is not W x + B A x alpha / r.
STRANGE = (
    *("use_dora", "fan_in_fan_out", "megatron_config", "layer_replication", "modules_to_save", "lora_bias"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
# Initialisations that change the base weights.
MOVES_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


@dataclass(frozen=True)
class Hooked:
    """A linear or convolution of the image tower with LoRA branches; `path` is its name in the tower."""

    path: str
    layer: nn.Linear | nn.Conv2d
    branches: tuple[LowRank, ...]


@dataclass(frozen=True)
class Adapter:
    """What was written for peft: the number of linears, and what the user should know, one sentence each."""

    linears: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """The model that an adapter is for, as timm makes it.

    Attributes:
        architecture: timm's name, with the tag where timm's published weights are the run's; None where timm has none.
        options: of its constructor, without the pooling.
        pooling: what `reset_classifier` has to be given; None for the architecture's own.
        eps: of the norms, where timm's is another; else None.
        published: whether timm itself loads the run's weights.
    """

    architecture: str | None
    options: dict[str, Any]
    pooling: str | None
    eps: float | None
    published: bool


def write_folder(trained: Trained, folder: Path, evaluation: EvaluationConfig) -> Adapter:
    """Write a run's LoRA as a peft adapter for its image tower, with the classifier beside it.

    Args:
        evaluation: how one crop is cut, and the prior, which is added to the classifier's biases.

    Raises:
        UserError: the run tunes more than LoRA on the image tower, peft has no name for a layer, the head is none that
            can be written, or the folder exists.
    """
    _only_lora(trained)
    model, backbone = trained.model, trained.config.backbone
    found, (head, steps) = list(hooked(model)), _classifier(trained, evaluation)
    base = _base(model.backbone, backbone)
    facts = model.backbone.facts
    cut = CentreCrop(facts.image_size, facts.interpolation, evaluation.one_crop_expand, evaluation.resize)
    new_folder(folder)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for place in found:
        down = torch.cat([branch.down.T for branch in place.branches])
        up = torch.zeros(_rows(place.layer), len(down))
        column = 0
        for branch in place.branches:
            rank, width = branch.up.shape
            up[branch.start : branch.start + width, column : column + rank] = branch.up.T * branch.factor
            column += rank
        shape = (1, 1) if isinstance(place.layer, nn.Conv2d) else ()
        tensors[f"{PREFIX}{place.path}.lora_A.weight"] = down.detach().reshape(*down.shape, *shape).contiguous()
        tensors[f"{PREFIX}{place.path}.lora_B.weight"] = up.detach().reshape(*up.shape, *shape).contiguous()
        ranks[place.path] = len(down)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_json(folder / CONFIG, _config(ranks, backbone.weights or backbone.name))
    write_bytes(folder / HEAD, save(head, {"format": "pt", "classes": json.dumps(trained.class_names)}))
    about = {
        "classes": list(trained.class_names),
        "class_ids": list(trained.class_ids),
        "head": trained.config.head.name,
        **steps,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_sha256": model.backbone.identity,
        "architecture": base.architecture,
        "pretrained": base.published,
        "model_args": base.options,
        "global_pool": base.pooling,
        "layer_norm_eps": base.eps,
        "positions": backbone.positions,
        "pretrained_cfg": to_timm.preparation(facts, cut),
    }
    write_json(folder / ABOUT, about)
    return Adapter(len(found), tuple(_notes(backbone, base)))


def _classifier(trained: Trained, evaluation: EvaluationConfig) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """Tensors that make logits of the image tower's features, and which steps come before the rows."""
    head, tower = trained.model.head, trained.model.backbone
    shift = priors.shift(trained.config, trained.class_names, trained.train_counts, evaluation.prior)
    tensors = classifier_tensors(head, shift)
    if tensors is None:
        raise UserError(
            f"The logits of the run's head ({type(head).__name__}) are not features compared with rows, so they cannot "
            "be written beside an adapter of peft. Export to ONNX or .pt2 instead, or train with head=cosine."
        )
    joint = isinstance(head, JointModule)
    if joint and tower.image_projection is not None:
        tensors["projection"] = tower.image_projection
    if joint and tower.image_bias is not None:
        tensors["projection_bias"] = tower.image_bias
    steps = {"layer_normed": head.layer_norms, "normalised": head.scales and not head.layer_norms}
    return {name: value.detach().float().contiguous().clone() for name, value in tensors.items()}, steps


def _base(backbone: Backbone, config: BackboneConfig) -> Base:
    """timm's model for an image tower, as far as timm has one with the same tensors."""
    none = Base(None, {}, None, None, False)
    try:
        architecture, options, made = to_timm.counterpart(backbone, 0)
    except UserError:
        return none
    shapes, own = ({name: value.shape for name, value in m.state_dict().items()} for m in (made, backbone.image))
    if shapes != own:
        return none
    library, _, name = full_backbone(config.name).partition("/")
    published = library == "timm" and config.weights is None and config.pretrained
    pooling = cast(str, backbone.image.global_pool) if backbone.facts.pooling else None
    found, theirs = epsilons(backbone.image), epsilons(made)
    eps = found.pop() if len(found) == 1 and found != theirs else None
    return Base(name if published else architecture, options, pooling, eps, published)


def _notes(config: BackboneConfig, base: Base) -> Iterator[str]:
    if base.architecture is None:
        yield (
            "The adapter is for the image tower of the run's backbone as its own library makes it. timm has no model "
            "with these tensors."
        )
        return
    if not base.published:
        what = f"the weights of {config.weights or config.name!r}"
        if not config.pretrained:
            what = f"the random weights of {config.name!r} that liftplus drew"
        yield (
            f"The adapter belongs to {what}, and timm's pretrained=True loads others. Put these into timm's "
            f"{base.architecture} first, or export the whole model with --to timm."
        )
    if base.eps is not None:
        yield (
            f"The epsilon of norms is {base.eps:g} in the run and another in timm's model. Set it in timm's model: "
            "for part in model.modules(): "
            f"isinstance(part, torch.nn.LayerNorm) and setattr(part, 'eps', {base.eps:g})"
        )
    if config.positions == "plain":
        yield (
            "The run resampled positions without antialiasing (backbone.positions=plain), and timm resamples with it. "
            "Take the positions from --to timm where the run's input size is not the native one."
        )


def _config(ranks: dict[str, int], base: str) -> dict[str, Any]:
    """The adapter_config.json. alpha = r everywhere, because B already contains the factor.

    Args:
        base: the weight file or folder that the run was given, else the name of its backbone.
    """
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "task_type": None,
    }


def read_folder(model: Classifier, folder: Path) -> int:
    """Load a peft adapter into a classifier tuned with LoRA; returns the number of linears.

    The classifier's LoRA needs all of the adapter's targets and at least its rank. Unused columns stay zero.

    Raises:
        UserError: the adapter is not plain LoRA, is damaged, or does not fit the classifier's LoRA.
    """
    _refuse_strange(read_json(folder / CONFIG), folder)  # first, as other kinds of adapter lack these keys
    config = read_json(folder / CONFIG, "r", "lora_alpha", "target_modules")
    pairs = _pairs(folder / WEIGHTS)
    places = {place.path: place for place in hooked(model)}
    strange = sorted(pairs.keys() - places.keys())
    if strange:
        raise UserError(
            f"The adapter tunes {strange[0]!r}, but the model's LoRA does not. It tunes "
            f"{', '.join(sorted(places)[:4])}, … Choose its targets with tuner.lora.targets."
        )
    # This checks everything, before any weight is changed.
    parts = [part for path, (a, b) in pairs.items() for part in _parts(places[path], a, b * _factor(config, path, a))]
    with torch.no_grad():
        for place in places.values():
            for branch in place.branches:
                branch.up.zero_()
        for branch, down, up in parts:
            branch.down[:, : down.shape[1]] = down
            branch.up[: len(up)] = up / branch.factor
    return len(pairs)


def _oft(config: dict[str, Any]) -> str:
    """A warning for the one adapter of peft that merges into another model than was trained (peft 0.21.2)."""
    if config.get("peft_type") != "OFT":
        return ""
    return " Then compare its answers: on convolutions larger than 1 x 1, merged OFT is not what was trained."


def _refuse_strange(config: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter that does not simply add B A alpha / r to the published base weights."""
    strange = [f"{key}={config[key]!r:.60}" for key in STRANGE if config.get(key)]
    if config.get("peft_type") != "LORA":
        strange.append(f"peft_type={config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        strange.append(f"bias={config['bias']}")
    if strange:
        raise UserError(
            f"{str(folder / CONFIG)!r} is not a plain LoRA ({', '.join(strange)}), and nothing else can be imported. "
            f"Merge it into the backbone with peft's merge_and_unload instead.{_oft(config)}"
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(MOVES_BASE):
        raise UserError(
            f"{str(folder / CONFIG)!r} has init_lora_weights={start!r}. That changed the base weights, and the adapter "
            "fits only the changed ones. Save it with path_initial_model_for_weight_conversion of peft's "
            "save_pretrained, or merge it into the backbone with merge_and_unload."
        )


def _parts(place: Hooked, a: Tensor, b: Tensor) -> Iterator[tuple[LowRank, Tensor, Tensor]]:
    """Each branch with its down [in, k] and up [k, width]: the k columns of B [out, r] that reach it, and A [r, in]."""
    if a.shape[1] != place.layer.weight.shape[1] or len(b) != _rows(place.layer):
        raise UserError(
            f"The adapter's weights of {place.path!r} do not fit the model: they have the shapes {tuple(b.shape)} and "
            f"{tuple(a.shape)}. Give an adapter for this backbone."
        )
    covered = torch.zeros(len(b), dtype=torch.bool)
    for branch in place.branches:
        rows = slice(branch.start, branch.start + branch.up.shape[1])
        covered[rows] = True
        used = b[rows].any(0)
        if int(used.sum()) > branch.up.shape[0]:
            raise UserError(
                f"The adapter has rank {int(used.sum())} on {place.path!r}, but the model's LoRA has rank "
                f"{branch.up.shape[0]}. Set tuner.lora.rank={int(used.sum())}."
            )
        yield branch, a[used].T, b[rows][:, used].T
    if b[~covered].any():
        raise UserError(
            f"The adapter tunes all of {place.path!r}, but the model's LoRA tunes only parts of it. Set "
            'tuner.lora.targets=["q","k","v"].'
        )


def _factor(config: dict[str, Any], path: str, a: Tensor) -> float:
    """The adapter's factor: alpha / r, or alpha / sqrt(r) for rsLoRA, with alpha from peft's patterns."""
    try:
        matches = [
            value for key, value in (config.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", path)
        ]
    except re.error as error:
        raise UserError(
            f"The adapter's alpha_pattern holds {error.pattern!r}, which is not a regular expression. Correct it."
        ) from error
    alpha = matches[0] if matches else config["lora_alpha"]
    return float(alpha) / (len(a) ** 0.5 if config.get("use_rslora") else len(a))


def _pairs(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of each linear, by its path."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error}). Give the folder that peft's save_pretrained made."
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, mark, rest = name.removeprefix(PREFIX).rpartition(".lora_")
        if not mark or rest not in ("A.weight", "B.weight"):
            raise UserError(f"{str(path)!r} holds {name!r}, which is not a LoRA of a linear. It cannot be imported.")
        found.setdefault(layer, {})[rest[0]] = value.float().flatten(1) if value[0, 0].numel() == 1 else value
    if any(pair.keys() != {"A", "B"} or any(v.ndim != 2 for v in pair.values()) for pair in found.values()):
        raise UserError(f"{str(path)!r} is incomplete, or tunes convolutions larger than 1x1. Neither can be imported.")
    return {layer: (pair["A"], pair["B"]) for layer, pair in found.items()}


def hooked(model: Classifier) -> Iterator[Hooked]:
    """The image tower's linears with LoRA. Raises UserError for attention that has no name in peft."""
    for path, layer in model.backbone.image.named_modules():
        owners = [getattr(hook, "__self__", None) for hook in layer._forward_hooks.values()]
        branches = tuple(owner for owner in owners if isinstance(owner, LowRank))
        if not branches:
            continue
        above, _, name = path.rpartition(".")
        parent = model.backbone.image.get_submodule(above)
        past = name == "qkv" and getattr(parent, "qkv_bias_separate", False)  # the original attention never calls it
        if isinstance(parent, SplitAttention) or past:
            raise UserError(
                f"LoRA acts on {path!r}. In the library of {model.backbone.name!r} this layer is hidden inside another "
                "module, so peft has no name for it. Export the merged model to ONNX or .pt2 instead."
            )
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        yield Hooked(path, layer, branches)


def _rows(layer: nn.Linear | nn.Conv2d) -> int:
    return int(layer.weight.shape[0])


def _only_lora(trained: Trained) -> None:
    tuners = trained.config.tuner
    text = " on the text side" if any(tuner.side != "image" for tuner in tuners.values()) else ""
    if list(tuners) != ["lora"] or not isinstance(tuners["lora"], LoRA) or tuners["lora"].side != "image":
        raise UserError(
            f"Only a run with LoRA on the image tower can be written for peft; this run tunes "
            f"{'+'.join(tuners) or 'nothing'}{text}. Export it to ONNX or .pt2 instead."
        )
