"""A tuned image tower with its text tower as a folder of open_clip, and the classifier as a matrix beside it.

open_clip has no classifier: it compares unit vectors of pictures with rows, which is what a cosine head does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from liftplus.backbones import catalogue, from_open_clip
from liftplus.backbones.base import Backbone
from liftplus.backbones.clip import IMAGE_NAMES
from liftplus.backbones.text import TextEncoder
from liftplus.config import RunConfig
from liftplus.errors import UserError
from liftplus.machine.disk import write_bytes, write_json
from liftplus.model.classifier import Classifier
from liftplus.model.heads import JointModule
from liftplus.names import full_backbone
from liftplus.publishing.comparing import OTHERWISE, loading
from liftplus.publishing.moving import (
    LinearHead,
    Moving,
    Write,
    Written,
    classifier_tensors,
    epsilon_notes,
    kinds_of_activations,
)

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HEAD, ABOUT = "classifier.safetensors", "classifier.json"


def check(moving: Moving) -> Write:
    """Refuse what open_clip has no model for; the rest writes its configuration, weights and the classifier."""
    model, config = moving.trained.model, moving.trained.config
    about, quick = _about(config, moving.backbone)
    classifier = _classifier(model)
    whole = CustomTextCLIP(**{key: about[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}, quick_gelu=quick)
    text = catalogue.load(config.backbone).text_encoder("--to open_clip")  # a classifier does without it
    notes = [*_otherwise(moving.backbone.image, whole.visual), *_otherwise(text.tower, whole.text)]

    def write(folder: Path, _linear: Callable[[], LinearHead]) -> Written:
        _fill_image(whole.visual, moving.backbone)
        _fill_text(whole, text)
        plain = from_open_clip.is_plain(about)
        state = {key.removeprefix("text.") if plain else key: value for key, value in whole.state_dict().items()}
        write_bytes(folder / WEIGHTS, save({key: value.contiguous().clone() for key, value in state.items()}))
        write_json(folder / CONFIG, _config(moving, about, quick=quick, plain=plain))
        write_bytes(folder / HEAD, save(classifier, {"format": "pt"}))
        before = _before(whole.visual, model)
        names = {"classes": list(moving.trained.class_names), "class_ids": list(moving.trained.class_ids)}
        write_json(folder / ABOUT, names | {"normalised": model.head.scales, "before": before})
        return Written(
            _logits(_loaded(folder), before, load_file(folder / HEAD), normalised=model.head.scales),
            exact=True,
            how='open_clip.create_model_from_pretrained("local-dir:{folder}")',
            notes=(*_notes(moving, about, before), *notes),
        )

    return write


def _about(config: RunConfig, backbone: Backbone) -> tuple[dict[str, Any], bool]:
    """open_clip's configuration of the run's backbone at its input size, and whether its weights need QuickGELU."""
    if any(tuner.side != "image" for tuner in config.tuner.values()):
        raise UserError(
            f"The run tunes the text side, which --to open_clip does not write. {OTHERWISE}: there the classes' texts "
            "are fixed rows."
        )
    name = config.backbone.name
    if name.startswith("hf/"):
        from liftplus.backbones import from_hub

        name = from_hub.same(config.backbone, weight=False, fetch=False).name
    library, _, rest = full_backbone(name).partition("/")
    if library != "open_clip":
        raise UserError(
            f"{backbone.name!r} is no dual encoder of open_clip's. Export with --to timm, or to .onnx or .pt2."
        )
    arch, _, tag = rest.partition("/")
    about, published = from_open_clip.describe(arch, tag)
    size, native = backbone.facts.image_size, about["vision_cfg"].get("image_size", 224)
    if size != native and "timm_model_name" in about["vision_cfg"]:
        raise UserError(
            f"open_clip builds the image tower of {backbone.name!r} for {native} px alone, and the run has "
            f"backbone.image_size={size}. Export with --to timm, or to .onnx or .pt2."
        )
    sized = about | {"vision_cfg": about["vision_cfg"] | {"image_size": size}}
    return sized, bool(about.get("quick_gelu") or published.get("quick_gelu"))


def _classifier(model: Classifier) -> dict[str, Tensor]:
    """Rows [C, D] times the head's scale, and biases [C] with the prior."""
    head = model.head
    tensors = None if head.layer_norms else classifier_tensors(head, model.shift)
    if tensors is None:
        raise UserError(
            f"open_clip compares unit vectors with rows, and the logits of the run's head ({type(head).__name__}) are "
            f"something else. {OTHERWISE}, or train with head=cosine."
        )
    return tensors


def _fill_image(visual: nn.Module, backbone: Backbone) -> None:
    """Put an image tower and its projection into open_clip's."""
    state, projection = dict(backbone.image.state_dict()), backbone.image_projection
    ends: dict[str, Tensor] = {}
    if isinstance(visual, TimmModel):
        linear = from_open_clip.last_linear(visual)
        if not isinstance(backbone.image, TimmModel):
            state = {f"trunk.{name}": value for name, value in state.items()}
        if linear is not None and projection is not None:
            name = next(name for name, module in visual.named_modules() if module is linear)
            ends[f"{name}.weight"] = projection.T
            if backbone.image_bias is not None:
                ends[f"{name}.bias"] = backbone.image_bias
    else:
        if not isinstance(backbone.image, VisionTransformer | ModifiedResNet):
            state = _original_names(state)
        state = _packed(state)
        if projection is not None:
            ends["proj"] = projection
    _load(visual, state | ends)


def _otherwise(ours: nn.Module, theirs: nn.Module) -> tuple[str, ...]:
    """Refuse another activation than open_clip's; a note on another epsilon."""
    own, other = kinds_of_activations(ours), kinds_of_activations(theirs)
    if own != other:
        raise UserError(
            f"The activation is {', '.join(sorted(own))} in the run, as config.json beside its weights says, and "
            f"{', '.join(sorted(other))} in open_clip's model. Export with --to timm, or to .onnx or .pt2."
        )
    return epsilon_notes(ours, theirs, "open_clip")


def _fill_text(whole: CustomTextCLIP, text: TextEncoder) -> None:
    """Put the pretrained text tower into open_clip's."""
    _load(whole.text, _packed(text.tower.state_dict()))
    with torch.no_grad():
        whole.logit_scale.fill_(text.logit_scale)


def _load(tower: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"open_clip's model does not have the tuned one's tensors ({' '.join(str(error).split())[:200]}): tuners "
            f"can add biases where the architecture has none. {OTHERWISE}, or train with tuner=lora."
        ) from error


def _original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An image tower in timm's names in OpenAI's."""
    out = {}
    for name, value in state.items():
        if name == "cls_token":
            out["class_embedding"] = value.flatten()
        elif name == "pos_embed":
            out["positional_embedding"] = value[0]
        else:
            for old, new in IMAGE_NAMES:
                name = name.replace(new, old)
            out[name] = value
    return out


def _packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention that was opened to hooks (`sites.SplitAttention`) in the names of nn.MultiheadAttention."""
    swaps = ((".attn.qkv.", ".attn.in_proj_"), (".attn.proj.", ".attn.out_proj."))
    out = {}
    for name, value in state.items():
        for old, new in swaps:
            name = name.replace(old, new)
        out[name] = value
    return out


def _config(moving: Moving, about: dict[str, Any], *, quick: bool, plain: bool) -> dict[str, Any]:
    """open_clip_config.json, as open_clip's hub has it."""
    facts = moving.backbone.facts
    model = {key: about[key] for key in ("embed_dim", "vision_cfg", "text_cfg")} | {"quick_gelu": quick}
    return {
        "model_cfg": model | ({} if plain else {"custom_text": True}),
        "preprocess_cfg": {
            "size": facts.image_size,
            "mean": list(facts.mean),
            "std": list(facts.std),
            "interpolation": facts.interpolation,
            "resize_mode": "squash" if moving.cut.resize == "square" else "shortest",
        },
    }


def _loaded(folder: Path) -> Any:
    with loading("open_clip"):
        return open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False).eval()


def _before(visual: nn.Module, model: Classifier) -> str:
    """The line that takes away what follows the features that the head is on; empty where nothing does."""
    if isinstance(model.head, JointModule) or model.backbone.image_projection is None:
        return ""
    if not isinstance(visual, TimmModel):
        return "model.visual.proj = None"
    return "model.visual.head = torch.nn.Identity()" if len(visual.head) else "model.visual.trunk.reset_classifier(0)"


def _logits(model: Any, before: str, classifier: dict[str, Tensor], *, normalised: bool) -> Callable[[Tensor], Tensor]:
    """What the folder's files give for pictures, by open_clip's own forward pass."""
    if "proj" in before:
        model.visual.proj = None
    elif "head" in before:
        model.visual.head = nn.Identity()
    elif before:
        model.visual.trunk.reset_classifier(0)
    weight, bias = classifier["weight"], classifier["bias"]

    def logits(pictures: Tensor) -> Tensor:
        features = model.encode_image(pictures)
        return F.linear(F.normalize(features, dim=-1) if normalised else features, weight, bias)

    return logits


def _notes(moving: Moving, about: dict[str, Any], before: str) -> Iterator[str]:
    cut = moving.cut
    unit = "unit vectors of " if moving.trained.model.head.scales else ""
    yield f"The classifier is {HEAD}: logits are {unit}model.encode_image(pictures) @ weight.T + bias, see {ABOUT}." + (
        f" It is on the features before the joint space: run `{before}` first, after which texts no longer fit."
        if before
        else ""
    )
    if cut.short != cut.size:
        sides = "both sides" if cut.resize == "square" else "the short side"
        yield (
            f"open_clip's transform resizes {sides} to {cut.size} px and liftplus to {cut.short} px before it "
            f"cuts {cut.size}, so pictures differ. evaluation.one_crop_expand=0 takes liftplus's as open_clip's."
        )
    if about.get("init_logit_bias") is not None:
        yield "The bias of sigmoid logits between pictures and texts is left out, as liftplus does not read it."
