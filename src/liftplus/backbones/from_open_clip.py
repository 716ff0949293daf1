"""Any open_clip dual encoder by ARCH/TAG: LAION's, DataComp's, MetaCLIP, SigLIP, EVA, MobileCLIP and more."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from liftplus.backbones import clip, from_timm
from liftplus.backbones.base import Backbone, BackboneConfig, Facts, check_size
from liftplus.backbones.positions import settled
from liftplus.backbones.sites import residual_blocks
from liftplus.backbones.text import TextEncoder
from liftplus.backbones.weights import find, identity_of, load_strict, read_tensors, single_precision, with_scalar
from liftplus.errors import UserError

FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"]

# What the configuration of a CLIP in OpenAI's form may say; anything further is built by open_clip.
_PLAIN_IMAGE = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}


def backbone(config: BackboneConfig, arch: str, tag: str, *, weights: bool = True) -> Backbone:
    """The dual encoder ARCH with the weights TAG.

    Args:
        config: name, local weight file and input size.
        arch: open_clip's name of the architecture, such as "ViT-B-16".
        tag: open_clip's name of the weights, such as "laion2b_s34b_b88k".
        weights: whether to load them; without, the parameters are random.
    """
    about, published = describe(arch, tag)
    path = locate(config, arch, tag) if weights else None
    vision = about["vision_cfg"]
    # QuickGELU's weights load into a GELU model without an error, so the flag comes from the weights' own record.
    quick = bool(about.get("quick_gelu") or published.get("quick_gelu"))
    facts = Facts(
        config.image_size or vision.get("image_size", 224),
        tuple(published.get("mean") or clip.MEAN),
        tuple(published.get("std") or clip.STD),
        "bilinear" if published.get("interpolation") == "bilinear" else "bicubic",
    )
    identity = "random" if path is None else identity_of(path)
    if is_plain(about):
        shape = clip.shape_from(about, quick_gelu=quick)
        if config.image_size is not None:
            check_size(config.name, config.image_size, shape.patch or 32)
        state = None if path is None else clip.read_state(path)
        facts = replace(facts, patch_size=shape.patch)
        placed = None if state is None else settled(state, config, facts.image_size)
        built = clip.clip_backbone(config.name, shape, placed, facts=facts, identity=identity)
        built.notes += _size_note(config, state, facts)
        return built
    return assemble(config, about, path, facts, Tokenizer(arch), quick_gelu=quick, identity=identity)


def is_plain(about: dict[str, Any]) -> bool:
    """Whether an architecture is a CLIP in OpenAI's form."""
    return about["vision_cfg"].keys() <= _PLAIN_IMAGE and about["text_cfg"].keys() <= _PLAIN_TEXT


def locate(config: BackboneConfig, arch: str, tag: str, *, fetch: bool = True) -> Path:
    """The weight file of ARCH/TAG on this machine, fetched from the model hub where it is not there yet."""
    _, published = describe(arch, tag)
    hub, file = os.path.split(published.get("hf_hub") or f"timm/{arch}/")
    return find(config.name, config.weights, hub, [file] if file else FILES, fetch=fetch)


def describe(arch: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's configuration of an architecture and its record of the weights; refuses unsupported ones."""
    if arch not in open_clip.list_models():  # open_clip would look for some names on the hub or the disk
        raise from_timm.unknown_model("open_clip", arch, open_clip.list_models())
    about: dict[str, Any] = open_clip.get_model_config(arch)
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag not in tags:
        if not tags:
            raise UserError(f"open_clip has no pretrained weights of {arch}. Choose another model.")
        given = f"open_clip has no weights {tag!r} of {arch}" if tag else f"Name the weights of open_clip/{arch}"
        raise UserError(f"{given}: write {', '.join(f'open_clip/{arch}/{name}' for name in tags)}.")
    for key, why in (("hf_model_name", "a text tower of another library"), ("multimodal_cfg", "a captioning decoder")):
        if key in about or key in about["text_cfg"]:
            raise UserError(f"open_clip/{arch} has {why}, which liftplus does not take. Choose another CLIP model.")
    return about, open_clip.get_pretrained_cfg(arch, tag)


def assemble(
    config: BackboneConfig,
    about: dict[str, Any],
    path: Path | None,
    facts: Facts,
    tokenizer: Any,
    *,
    quick_gelu: bool = False,
    identity: str = "random",
) -> Backbone:
    """A backbone from open_clip's own towers, for the architecture `about`."""
    sides = {key: about[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    # open_clip sizes its own transformer when it builds it; a timm tower is resized once it is loaded.
    resized = facts.image_size != about["vision_cfg"].get("image_size", 224)
    if resized and "timm_model_name" not in about["vision_cfg"]:
        check_size(config.name, facts.image_size, about["vision_cfg"].get("patch_size", 32))
        sides["vision_cfg"] = about["vision_cfg"] | {"image_size": facts.image_size}
    model = CustomTextCLIP(**sides, quick_gelu=quick_gelu, init_logit_bias=about.get("init_logit_bias"))
    state = None if path is None else _state(model, path)
    # A file of the native size is loaded first and resized with the tower, any other into the tower as resized.
    given = dict(state or {})
    state = None if state is None else settled(state, config, facts.image_size)
    native = state is None or _shapes(state).items() <= _shapes(model.state_dict()).items()
    if resized and not native:
        _resize(model.visual, facts.image_size, config.name)
    if state is not None:
        resize_pos_embed(state, model)
        _resample_trunk(state, model.visual)
        model.logit_bias = None
        load_strict(model, state, config.name)
    if resized and native:
        _resize(model.visual, facts.image_size, config.name)
    image, projection, bias = image_side(model.visual)
    patch = from_timm.patch_of(image) or about["vision_cfg"].get("patch_size")
    facts = replace(facts, patch_size=patch)
    if not residual_blocks(image) or not isinstance(model.text, TextTransformer):
        raise UserError(f"Backbone {config.name!r} has towers that liftplus does not know. Choose another CLIP model.")
    scale = math.log(1 / 0.07) if model.logit_scale.is_meta else float(model.logit_scale.detach())
    encoder = TextEncoder(model.text, tokenizer, scale)
    return Backbone(
        config.name,
        image,
        facts,
        image_projection=projection,
        image_bias=bias,
        text=encoder,
        identity=identity,
        notes=_size_note(config, given, facts),
    )


def _size_note(config: BackboneConfig, state: dict[str, Tensor] | None, facts: Facts) -> tuple[str, ...]:
    """See `from_timm.size_note`; for a file in OpenAI's or open_clip's names."""
    places = ("visual.positional_embedding", "visual.trunk.pos_embed")
    found = next((state[place] for place in places if place in state), None) if state else None
    return from_timm.size_note(config, found, facts.image_size, facts.patch_size)


def _state(model: CustomTextCLIP, path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file in the names of open_clip's model."""
    state = convert_state_dict(model, convert_to_custom_text_state_dict(single_precision(read_tensors(path))))
    state = with_scalar(state, "logit_scale")
    for extra in ("logit_bias", "text.attn_mask"):
        state.pop(extra, None)
    return state


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _resize(visual: nn.Module, size: int, name: str) -> None:
    """Give a timm tower another input size; open_clip's own are built for it."""
    if isinstance(visual, TimmModel):
        from_timm.set_input_size(visual.trunk, size, name)


def _resample_trunk(state: dict[str, Tensor], visual: nn.Module) -> None:
    """Resample the position embeddings of a file to the size of a timm tower, as timm does it."""
    place, trunk = "visual.trunk.pos_embed", getattr(visual, "trunk", None)
    own, given = getattr(trunk, "pos_embed", None), state.get(place)
    if own is None or given is None or given.ndim != 3 or own.ndim != 3 or given.shape == own.shape:
        return
    prefix = 0 if getattr(trunk, "no_embed_class", False) else getattr(trunk, "num_prefix_tokens", 1)
    if given.shape[-1] == own.shape[-1] and math.isqrt(given.shape[1] - prefix) ** 2 == given.shape[1] - prefix:
        grid = list(getattr(trunk, "patch_embed").grid_size)  # noqa: B009 (timm carries no types)
        state[place] = resample_abs_pos_embed(given, grid, num_prefix_tokens=prefix)


def image_side(visual: nn.Module) -> tuple[nn.Module, Tensor | None, Tensor | None]:
    """Features before the projection to the joint space, that projection [dim, joint] and its bias.

    Where the way to the joint space is more than one linear map, the features are those in the joint space.
    """
    if isinstance(visual, VisionTransformer):
        projection, visual.proj, visual.output_tokens = visual.proj, None, False
        if isinstance(projection, Tensor):
            visual.output_dim = projection.shape[0]
        return visual, projection, None
    if not isinstance(visual, TimmModel):
        return visual, None, None
    linear = last_linear(visual)
    if linear is None:
        visual.output_dim = _joint_width(visual)
        return (visual if len(visual.head) else visual.trunk), None, None
    visual.trunk.reset_classifier(0)
    bias = None if linear.bias is None else linear.bias.detach().clone()
    return visual.trunk, linear.weight.T.contiguous(), bias


def last_linear(visual: TimmModel) -> nn.Linear | None:
    """The only map between timm's features and the joint space, where it is one linear."""
    inside = [child for child in visual.head.children() if not isinstance(child, nn.Dropout)]
    if len(inside) == 1 and isinstance(inside[0], nn.Linear):
        return inside[0]
    own = visual.trunk.get_classifier() if not inside else None
    return own if isinstance(own, nn.Linear) else None


def _joint_width(visual: TimmModel) -> int:
    """Width of the features where the tower ends in the joint space itself."""
    linears = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
    return int(linears[-1].out_features if linears else visual.trunk.num_features)


class Tokenizer:
    """open_clip's tokenizer of an architecture, made at its first use: some need a further package and the hub."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    @cached_property
    def _made(self) -> Any:
        try:
            return open_clip.get_tokenizer(self.arch)
        except Exception as error:  # a missing package, no network, no such file
            raise UserError(
                f"The tokenizer of open_clip/{self.arch} cannot be made here ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:150]}). It needs pip install 'liftplus[tokenizers]' and, at its first "
                "use, the model hub. Without class names: head_init=class_mean."
            ) from error

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.as_tensor(self._made(texts))
