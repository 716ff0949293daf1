"""Read config.json and preprocessor_config.json beside weights in transformers' form, and apply them to a backbone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.from_transformers import LABELS
from liftplus.backbones.sites import is_norm, residual_blocks
from liftplus.backbones.weights import outline
from liftplus.errors import UserError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_KERNELS = {"2": "bilinear", "3": "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}  # numbered as by Pillow

_TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16}
_WORDS = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
_QUICK = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TANH = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_EXACT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
# transformers' own defaults: config.json may leave them out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {"projection_dim": 512},
    "clip_vision_model": _TOWER | _QUICK | {"intermediate_size": 3072, "patch_size": 32},
    "clip_text_model": _WORDS
    | _QUICK
    | {"intermediate_size": 2048, "max_position_embeddings": 77, "vocab_size": 49408},
    "siglip": {},
    "siglip_vision_model": _TOWER | _TANH | {"intermediate_size": 3072, "vision_use_head": True},
    "siglip_text_model": _WORDS
    | _TANH
    | {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 64, "vocab_size": 32000},
    "dinov2": _TOWER | _EXACT | {"layer_norm_eps": 1e-6, "patch_size": 14},
    "dinov2_with_registers": _TOWER | _EXACT | {"layer_norm_eps": 1e-6, "num_register_tokens": 4},
    "dinov3_vit": _TOWER
    | _EXACT
    | {"hidden_size": 384, "num_attention_heads": 6, "layer_norm_eps": 1e-5, "rope_theta": 100.0}
    | {"query_bias": True, "use_gated_mlp": False, "num_register_tokens": 0},
    "vit": _TOWER | _EXACT,
    "beit": _TOWER | _EXACT | {"use_relative_position_bias": False, "use_mean_pooling": True},
}

FAMILIES = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "vit": "vit",
    "beit": "beit",
}
"""The family of each model_type that is read."""


@dataclass(frozen=True)
class About:
    """What config.json says of a model: its family, and the settings of its towers with transformers' defaults."""

    family: str
    image: dict[str, Any]
    text: dict[str, Any] | None
    joint: int | None
    whole: dict[str, Any]


def read(folder: Path) -> About | None:
    """The settings in the folder's config.json; None where there is no config.json of transformers.

    Raises:
        UserError: it cannot be read, or liftplus does not take this kind of model.
    """
    whole = _table(folder / CONFIG)
    kind = whole.get("model_type")
    if not isinstance(kind, str):
        return None
    if kind not in FAMILIES:
        naflex = " That is SigLIP 2 with patches of any number (NaFlex)." if kind.startswith("siglip2") else ""
        raise UserError(
            f"{str(folder / CONFIG)!r} has the model_type {kind!r}.{naflex} liftplus takes transformers' "
            f"{', '.join(LABELS.values())}; of other models, take the weights in timm's or open_clip's form."
        )
    if kind not in ("clip", "siglip"):
        return About(FAMILIES[kind], _checked(DEFAULTS[kind] | whole), None, None, whole)
    sides = {}
    for side in ("vision", "text"):
        given = [whole.get(key) or {} for key in (f"{side}_config", f"{side}_config_dict")]
        if not all(isinstance(table, dict) for table in given):
            raise UserError(f"{str(folder / CONFIG)!r} has a {side}_config that is no table. Fetch it again.")
        sides[side] = DEFAULTS[f"{kind}_{side}_model"] | given[0] | given[1]
    joint = whole.get("projection_dim", 512) if kind == "clip" else sides["text"]["hidden_size"]
    return About(kind, _checked(sides["vision"]), _checked(sides["text"]), joint, whole)


def named_by_timm(folder: Path) -> str | None:
    """A sentence with the name of the backbone that the folder's config.json has, where timm wrote it."""
    whole = _table(folder / CONFIG)
    arch, about = whole.get("architecture"), whole.get("pretrained_cfg")
    if not isinstance(arch, str) or not isinstance(about, dict):
        return None
    tag = about.get("tag")
    name = f"timm/{arch}.{tag}" if isinstance(tag, str) and tag else f"timm/{arch}, with a tag"
    return f"timm wrote {CONFIG} beside it, which names {name}. Name that as the backbone."


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """A tower's settings, a size [s, s] as s; refuses a setting that must be a number and is not."""
    found = dict(settings)
    for key in ("image_size", "patch_size"):
        if isinstance(found.get(key), list) and len(set(found[key])) == 1:
            found[key] = found[key][0]
    for key in filter(found.__contains__, _TOWER):
        if not isinstance(found[key], int) or isinstance(found[key], bool) or found[key] < 1:
            raise UserError(f"{CONFIG}'s {key} is {found[key]!r}; a whole number above 0 is needed. Fetch it again.")
    if not _is_number(found["layer_norm_eps"]) or found["layer_norm_eps"] <= 0:
        raise UserError(
            f"{CONFIG}'s layer_norm_eps is {found['layer_norm_eps']!r}; a number above 0, such as 1e-6, is needed. "
            "Fetch it again."
        )
    if not isinstance(found["hidden_act"], str):
        raise UserError(f"{CONFIG}'s hidden_act is {found['hidden_act']!r}; liftplus knows {', '.join(_SAME)}.")
    if found.get("rope_theta", 100) != 100:
        raise UserError(
            f"{CONFIG}'s rope_theta is {found['rope_theta']}; timm's DINOv3 has only 100. Choose another model."
        )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _table(path: Path) -> dict[str, Any]:
    """A JSON file's table; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON ({error}). Fetch it again.") from error
    return found if isinstance(found, dict) else {}


def settle(backbone: Backbone, kind: str, path: Path, positions: str) -> None:
    """Apply the configuration beside a file in transformers' form to its backbone, and note the differences.

    Args:
        backbone: with the weights of `path`; its norms, activations, facts, notes and identity are changed.
        kind: the family of the file's tensors.
        path: the weight file.
        positions: how they were resampled, as `backbone.positions`.

    Raises:
        UserError: config.json is of another family or of other sizes.
    """
    about = read(path.parent)
    if kind in ("clip", "siglip") and backbone.text is None:
        backbone.notes += (
            f"{backbone.name!r} is an image tower alone, so the file's texts and projections are left out.",
        )
    if about is None:
        backbone.notes += (_unsaid(backbone),)
        return
    if about.family != kind:
        raise UserError(
            f"{str(path)!r} seems to be a {LABELS[kind]}, but {CONFIG} beside it describes a {LABELS[about.family]}. "
            f"Put the weights into a folder with their own {CONFIG}."
        )
    _refuse_other_sizes(about.image, path)
    changed = [*_changed(backbone.image, about.image, "image tower")]
    if backbone.text is not None and about.text is not None:
        changed += _changed(backbone.text.tower, about.text, "text tower")
    processor = _table(path.parent / PROCESSOR)
    backbone.facts, seen = _pictures(backbone.facts, processor)
    changed += seen
    if changed:
        # The same file without its config.json gives other features, so a run must not take one for the other.
        backbone.identity = hashlib.sha256(f"{backbone.identity} {changed}".encode()).hexdigest()
        said = "; ".join(changed)
        backbone.notes += (f"As {CONFIG} or {PROCESSOR} beside the weights says, {said}.",)
    backbone.notes += tuple(_by_design(backbone, about, processor, positions))


def _refuse_other_sizes(settings: dict[str, Any], path: Path) -> None:
    """An error if config.json is not of the image tower in a file; transformers does not load these two either."""
    shapes = {name: value.shape for name, value in outline(path).items() if not name.startswith("text_model.")}
    layers = [int(match[1]) for name in shapes if (match := re.search(r"\blayers?\.(\d+)\.", name))]
    found = {"num_hidden_layers": max(layers) + 1} if layers else {}
    patches = next((shape for name, shape in shapes.items() if _PATCHES.search(name)), None)
    if patches is not None:
        found |= {"hidden_size": patches[0], "num_channels": patches[1], "patch_size": patches[2]}
        tokens = next((shape[-2] for name, shape in shapes.items() if _POSITIONS.search(name)), None)
        if tokens is not None:  # of patches in a square, and of class and register tokens, which are fewer than a row
            found["image_size"] = math.isqrt(tokens) * patches[2]
    for key, own in found.items():
        if settings.get(key, own) != own:
            raise UserError(
                f"{CONFIG} says {key}={settings[key]}, but the tensors of {str(path)!r} are of a model with "
                f"{key}={own}. Put the weights into a folder with their own {CONFIG}."
            )


# Names in transformers' form of the patches' projection [D, channels, side, side] and of learned positions [..., N, D].
_PATCHES = re.compile(r"patch_embeddings?(\.projection)?\.weight$")
_POSITIONS = re.compile(r"position_embeddings?(\.weight)?$")


def _unsaid(backbone: Backbone) -> str:
    norms = [module for module in backbone.image.modules() if is_norm(module)]
    eps = next((f"{module.eps:g}" for module in norms if hasattr(module, "eps")), "its own")
    act = next((kind_of(module) for _, _, module in activations(backbone.image)), "its own")
    return (
        f"The weight file is in transformers' form and has no {CONFIG} beside it, so the epsilon of norms ({eps}) and "
        f"the activation ({act}) are those of the backbone that was named. With {CONFIG} in the same folder they are "
        "those of the file."
    )


def _changed(tower: nn.Module, settings: dict[str, Any], what: str) -> Iterator[str]:
    """Give a tower the epsilon and the activation of its settings; yields a phrase for each change."""
    heads, own = settings["num_attention_heads"], _heads(tower)
    if own is not None and own != heads:
        raise UserError(f"{CONFIG} says that the {what} has {heads} heads; the named backbone has {own}. Name another.")
    eps, norms = settings["layer_norm_eps"], [module for module in tower.modules() if isinstance(module, nn.LayerNorm)]
    others = sorted({module.eps for module in norms} - {eps})
    for module in norms:
        module.eps = eps
    if others:
        yield f"the epsilon of norms in the {what} is {eps:g} instead of {', '.join(f'{other:g}' for other in others)}"
    asked = settings["hidden_act"]
    wanted = _SAME.get(asked, asked)
    if wanted not in _SAME.values():
        raise UserError(f"{CONFIG} names the activation {asked!r}; liftplus knows {', '.join(_SAME)}.")
    if settings.get("use_swiglu_ffn"):  # transformers then ignores the activation it names
        wanted = "silu"
    places = [(parent, name) for parent, name, module in activations(tower) if kind_of(module) != wanted]
    if places:
        before = kind_of(getattr(*places[0]))
        for parent, name in places:
            setattr(parent, name, _made(wanted))
        yield f"the activation in the {what} is {wanted} instead of {before}"


def _heads(tower: nn.Module) -> int | None:
    found = getattr(tower, "heads", None)
    for block in residual_blocks(tower)[:1]:
        found = getattr(getattr(block, "attn", None), "num_heads", found)
    return found if isinstance(found, int) else None


# Names of activations in transformers, and those among them that are the same function.
_SAME = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
    "silu": "silu",
    "swish": "silu",
}


def activations(tower: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The activations of MLPs, each with the module that holds it and its name there."""
    for parent in list(tower.modules()):
        for name, child in list(parent.named_children()):
            if name in ("act", "gelu"):
                yield parent, name, child


def kind_of(module: nn.Module) -> str:
    """transformers' name of this activation."""
    name = type(module).__name__
    if name == "GELUTanh" or getattr(module, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    names = {"GELU": "gelu", "QuickGELU": "quick_gelu", "LeanQuickGELU": "quick_gelu", "SiLU": "silu", "Swish": "silu"}
    return names.get(name, name)


def _made(kind: str) -> nn.Module:
    if kind == "quick_gelu":
        from liftplus.backbones.clip import LeanQuickGELU

        return LeanQuickGELU()
    return nn.SiLU() if kind == "silu" else nn.GELU(approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")


def _pictures(facts: Facts, processor: dict[str, Any]) -> tuple[Facts, list[str]]:
    """The facts with mean, std and kernel of the file, and a phrase for each change."""
    values: dict[str, Any] = _normalisation(facts, processor)
    if kernel := _KERNELS.get(str(processor.get("resample"))):
        values["interpolation"] = kernel
    before = {key: getattr(facts, key) for key in values}
    said = [
        f"{key} of pictures is {_shown(value)} instead of {_shown(before[key])}"
        for key, value in values.items()
        if _shown(value) != _shown(before[key])
    ]
    return replace(facts, **values), said


def _normalisation(facts: Facts, processor: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and std of pictures from 0 to 1 that do what the file's processor does with bytes."""
    found: dict[str, tuple[float, ...]] = {}
    for key, own in (("mean", facts.mean), ("std", facts.std)):
        value = processor.get(f"image_{key}")
        three = list(own) if value is None else [value] * 3 if _is_number(value) else value
        fits = isinstance(three, list) and len(three) == 3 and all(map(_is_number, three))
        if not fits or (key == "std" and min(three) <= 0):
            needed = "three numbers above 0 are" if key == "std" else "three numbers are"
            raise UserError(f"{PROCESSOR}'s image_{key} is {value!r}; {needed} needed. Fetch it again.")
        found[key] = tuple(map(float, three))
    if processor.get("do_normalize") is False:
        found = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    factor = processor.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or factor <= 0:
        raise UserError(f"{PROCESSOR}'s rescale_factor is {factor!r}; a number above 0, such as 1/255, is needed.")
    scale = 255 * (1.0 if processor.get("do_rescale") is False else factor)
    if abs(scale - 1) > 1e-5:  # (255 x f - mean) / std, for x from 0 to 1
        found = {key: tuple(item / scale for item in value) for key, value in found.items()}
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(f"{item:.4g}" for item in value)


def _by_design(backbone: Backbone, about: About, processor: dict[str, Any], positions: str) -> Iterator[str]:
    """Notes on features or pictures that differ from transformers' own although the settings are the same."""
    size, native = backbone.facts.image_size, about.image["image_size"]
    smoothed = about.family in ("dinov3", "beit") or about.image.get("num_register_tokens")
    if size != native and not smoothed and positions == "antialias":
        yield (
            f"The file's positions are for {native} px and are resampled to {size} px as timm does it, with "
            "antialiasing; transformers does it without, so features differ a little from its own. "
            "backbone.positions=plain does it without."
        )
    if about.family == "dinov3" and backbone.facts.pooling is None:
        yield (
            "Features are the mean over patches, as in timm; transformers' pooler_output is the class token, which "
            "backbone.pooling=token takes."
        )
    kernel = processor.get("resample")
    if kernel is not None and str(kernel) not in _KERNELS:
        yield (
            f"{PROCESSOR} has resample={kernel!r}, a kernel that liftplus does not have; pictures are resized with "
            f"{backbone.facts.interpolation}. backbone.interpolation sets another one."
        )
    sides = processor.get("size")
    squashed = isinstance(sides, dict) and "height" in sides and not processor.get("do_center_crop")
    if squashed or (not processor and about.family == "siglip"):
        yield (
            "transformers squashes a whole picture to a square for this model. evaluation.resize=square with "
            "evaluation.one_crop_expand=0 tests in that way; the default resizes the short side and crops."
        )
