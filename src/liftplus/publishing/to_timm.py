"""A tuned model as a folder of timm's own: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

transformers reads the same folder by its `TimmWrapperForImageClassification`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.counterparts import SIZES
from liftplus.backbones.mini_towers import ImageTower
from liftplus.backbones.transformers_config import kind_of
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.machine.disk import write_bytes, write_json
from liftplus.publishing.comparing import OTHERWISE, loading
from liftplus.publishing.moving import (
    LinearHead,
    Moving,
    Write,
    Written,
    check_linear,
    epsilon_notes,
    epsilons,
    kinds_of_activations,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# timm's names of activations by those of transformers.
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
# What adds to the residual stream of a pre-norm ViT, and the norms that read the stream.
_EMBEDDINGS = r"cls_token|reg_token|pos_embed|patch_embed\.proj\.(weight|bias)"
_LAYER_SCALES = r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])"
_LAST_LINEARS = r"blocks\.\d+\.(attn\.proj|mlp\.fc2)\.(weight|bias)"
_NORMS = r"(blocks\.\d+\.norm[12]|norm|fc_norm)"
LARGEST_STREAM = 32
"""Most times that an export enlarges the residual stream, or makes it smaller.

fp16 overflows at 65504, and streams reach hundreds.
"""


def check(moving: Moving) -> Write:
    """Refuse heads and towers that timm has no model for; the rest writes config.json and model.safetensors."""
    backbone, classes = moving.backbone, len(moving.trained.class_names)
    check_linear(moving.trained.model, "timm")
    architecture, options, made = counterpart(backbone, classes)
    if pooling := _pooling(backbone, made):
        options |= pooling
        made = _made(architecture, classes, options)
    name = _classifier(made, backbone)

    def write(folder: Path, linear: Callable[[], LinearHead]) -> Written:
        head = linear()
        weights = _weights(backbone, made, {f"{name}.weight": head.weight, f"{name}.bias": head.bias})
        factor, notes = _stream(backbone.image, made)
        weights = _with_stream(weights, factor)
        write_bytes(folder / WEIGHTS, save(weights, {"format": "pt"}))
        write_json(folder / CONFIG, _config(moving, architecture, options, made))
        how = 'timm.create_model("local-dir:{folder}", pretrained=True)'
        return Written(loaded(folder), head.exact, how, notes)

    return write


def loaded(folder: Path) -> Any:
    with loading("timm"):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def counterpart(backbone: Backbone, classes: int) -> tuple[str, dict[str, Any], nn.Module]:
    """timm's name of an image tower's architecture, its constructor's options, and the model that they make.

    The model pools as the architecture does by itself, and its weights are random. Raises UserError if timm has none.
    """
    architecture, options = architecture_of(backbone)
    made = _made(architecture, classes, options)
    kinds = kinds_of_activations(backbone.image)
    if len(kinds) == 1 and kinds != kinds_of_activations(made) and kinds <= ACTIVATIONS.keys():
        options["act_layer"] = ACTIVATIONS[kinds.pop()]  # as config.json beside the weights said
        made = _made(architecture, classes, options)
    return architecture, options, made


def architecture_of(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """timm's name of an image tower's architecture, and the options of its constructor that differ."""
    tower, size = backbone.image, backbone.facts.image_size
    published = getattr(tower, "pretrained_cfg", None)
    if published and published.get("architecture"):
        return published["architecture"], {} if published["input_size"][-1] == size else {"img_size": size}
    if isinstance(tower, VisionTransformer | ImageTower):
        return _plain(tower, size)
    raise UserError(
        f"timm has no model like the image tower of {backbone.name!r}, a {type(tower).__name__} of another library. "
        f"{OTHERWISE}; a dual encoder of open_clip can be exported with --to open_clip."
    )


def _plain(tower: VisionTransformer | ImageTower, size: int) -> tuple[str, dict[str, Any]]:
    """The architecture of a CLIP's image tower in timm's form, or of mini_clip's."""
    blocks: Any = tower.blocks
    embed: Any = tower.patch_embed
    width, patch = int(tower.num_features), int(embed.proj.weight.shape[-1])
    options = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.heads if isinstance(tower, ImageTower) else blocks[0].attn.num_heads,
        "mlp_ratio": blocks[0].mlp.fc1.out_features / width,
    }
    if isinstance(tower, ImageTower):
        return "vit_base_patch16_224", options
    kind = "clip_quickgelu" if kind_of(blocks[0].mlp.act) == "quick_gelu" else "clip"
    named = f"vit_{SIZES.get((width, len(blocks)))}_patch{patch}_{kind}_{size}"
    return (named if timm.is_model(named) else f"vit_base_patch16_{kind}_224"), options


def _made(architecture: str, classes: int, options: dict[str, Any]) -> nn.Module:
    """timm's model with a classifier; an input size that its constructor does not take leaves the options."""
    try:
        made: nn.Module = timm.create_model(architecture, num_classes=classes, **options)
    except TypeError:
        if "img_size" not in options:
            raise
        options.pop("img_size")  # convolutions work at any size
        made = timm.create_model(architecture, num_classes=classes, **options)
    return made


def _pooling(backbone: Backbone, made: Any) -> dict[str, Any]:
    """The options of timm's constructor for `backbone.pooling`; none where the architecture pools so by itself."""
    tower: Any = backbone.image
    if backbone.facts.pooling is None or made.global_pool == tower.global_pool:
        return {}
    if backbone.facts.pooling == "token":
        return {"global_pool": tower.global_pool}
    place = "fc_norm" if isinstance(tower, VisionTransformer) else "use_fc_norm"
    return {"global_pool": tower.global_pool, place: isinstance(tower.norm, nn.Identity)}


def _classifier(made: nn.Module, backbone: Backbone) -> str:
    """The path of a model's classifier."""
    ask: Any = getattr(made, "get_classifier", None)
    found = ask() if ask else None
    name = next((name for name, module in made.named_modules() if module is found), None)
    if name is None or not isinstance(found, nn.Linear) or found.in_features != backbone.dim:
        raise UserError(f"timm's model of {backbone.name!r} has no single linear as classifier. {OTHERWISE}.")
    return name


def _weights(backbone: Backbone, made: nn.Module, head: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors in timm's names, with those of the head; an error where those of timm's model are others."""
    tensors = dict(backbone.image.state_dict()) | head
    own = made.state_dict()
    if backbone.facts.pooling == "token" and "norm.weight" in own:  # before or after, it is the same norm of one token
        tensors = {re.sub("^fc_norm", "norm", key): value for key, value in tensors.items()}
    strange = sorted(key for key in own.keys() | tensors.keys() if _shape(own, key) != _shape(tensors, key))
    if strange:
        raise UserError(
            f"timm's model of {backbone.name!r} does not have the tuned one's tensors, such as {strange[0]!r}: tuners "
            f"can add biases where the architecture has none. {OTHERWISE}, or train with tuner=lora."
        )
    return {key: value.detach().to(own[key].dtype).contiguous().clone() for key, value in tensors.items()}


def _stream(ours: nn.Module, made: nn.Module) -> tuple[float, tuple[str, ...]]:
    """How many times as large the residual stream has to be for timm's epsilon to act as ours, and notes on epsilons.

    (c x - c mean) / sqrt(c^2 var + eps) = (x - mean) / sqrt(var + eps / c^2), so that norms which read the stream c
    times as large give the same output with c^2 times the epsilon. 1 where the epsilons are equal, and where the tower
    is no pre-norm ViT or has norms elsewhere. At most `LARGEST_STREAM`, and at least one over that.
    """
    own, other = _epsilon(ours), _epsilon(made)
    if own is None or other is None or own == other:
        return 1.0, epsilon_notes(ours, made, "timm")
    factor = max(min(math.sqrt(other / own), LARGEST_STREAM), 1 / LARGEST_STREAM)
    note = (
        f"The epsilon of norms is {own:g} in the run and {other:g} in timm's model. So weights that add to the "
        f"residual stream are written times {factor:g}, with which timm's epsilon acts as {other / factor**2:.2g} and "
        f"outputs stay as they are.{' In fp16 the stream overflows that much earlier.' if factor > 1 else ''}"
    )
    return factor, (note,)


def _epsilon(tower: nn.Module) -> float | None:
    """That of the norms that read the residual stream; None where there are others, or it is no pre-norm ViT."""
    names = [name for name, part in tower.named_modules() if isinstance(part, nn.LayerNorm)]
    plain = isinstance(tower, VisionTransformer | Beit) and all(re.fullmatch(_NORMS, name) for name in names)
    found = epsilons(tower)
    return found.pop() if plain and len(found) == 1 else None


def _with_stream(weights: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The weights with all that adds to the residual stream times a factor."""
    scaled = any(re.fullmatch(_LAYER_SCALES, name) for name in weights)
    added = re.compile(f"{_EMBEDDINGS}|{_LAYER_SCALES if scaled else _LAST_LINEARS}")
    return {name: value * factor if added.fullmatch(name) else value for name, value in weights.items()}


def _shape(tensors: dict[str, Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None


def _config(moving: Moving, architecture: str, options: dict[str, Any], made: nn.Module) -> dict[str, Any]:
    """timm's config.json, as its hub has it."""
    facts = moving.backbone.facts
    published: Any = getattr(made, "pretrained_cfg", {})
    names = list(moving.trained.class_names)
    pooling = getattr(made, "global_pool", None)
    return {
        "architecture": architecture,
        "num_classes": len(names),
        "num_features": moving.backbone.dim,
        **({"global_pool": pooling} if isinstance(pooling, str) else {}),
        "label_names": names,
        **({"model_args": options} if options else {}),
        "pretrained_cfg": {
            "tag": "liftplus",
            "custom_load": False,
            **preparation(facts, moving.cut),
            "fixed_input_size": bool(published.get("fixed_input_size")),
            "num_classes": len(names),
            "pool_size": None,
            "first_conv": published.get("first_conv"),
            "classifier": published.get("classifier"),
        },
    }


def preparation(facts: Facts, cut: CentreCrop) -> dict[str, Any]:
    """How one crop is taken and normalised, in the words of timm's pretrained_cfg."""
    return {
        "input_size": [3, cut.size, cut.size],
        "interpolation": cut.kernel,
        "crop_pct": share(cut.size, cut.short),
        "crop_mode": "squash" if cut.resize == "square" else "center",
        "mean": list(facts.mean),
        "std": list(facts.std),
    }


def share(size: int, short: int) -> float:
    """The part of the resized side that is cut, such that timm's floor(size / part) is that side."""
    share = size / short
    return share if math.floor(size / share) == short else math.nextafter(share, 0)
