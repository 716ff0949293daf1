"""A tuned model as a folder of transformers: `AutoModelForImageClassification.from_pretrained("FOLDER")`.

By default it is timm's folder, which transformers' `TimmWrapperForImageClassification` loads with timm's own transform:
that cuts pictures as liftplus does, and no image processor of transformers' own does. ViT, DINOv2 with and without
registers and BEiT also have classes of transformers' own that pool as liftplus does and need no timm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.backbones.from_transformers import bare_names, left_out, renamed
from liftplus.backbones.mini_towers import ImageTower
from liftplus.backbones.transformers_config import PROCESSOR, activations, kind_of
from liftplus.errors import UserError
from liftplus.machine.disk import write_bytes, write_json
from liftplus.publishing import to_timm
from liftplus.publishing.comparing import OTHERWISE, loading
from liftplus.publishing.moving import LinearHead, Moving, Write, Written, check_linear

# Family, configuration and model by what the image tower is.
_CLASSES = {
    "vit": ("vit", "ViTConfig", "ViTForImageClassification"),
    "dinov2": ("dinov2", "Dinov2Config", "Dinov2ForImageClassification"),
    "registers": ("dinov2", "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification"),
    "beit": ("beit", "BeitConfig", "BeitForImageClassification"),
}
_HOW = 'transformers.AutoModelForImageClassification.from_pretrained("{folder}")'


def check(moving: Moving) -> Write:
    """Refuse what transformers has no class for; the rest writes a folder."""
    return _own(moving) if moving.without_timm else _by_timm(moving)


def _own(moving: Moving) -> Write:
    """Configuration, image processor and weights of transformers' own classes."""
    check_linear(moving.trained.model, "transformers")
    made = _made(moving)
    if made is None:
        raise UserError(
            f"transformers {transformers.__version__} has no class of its own that classifies as "
            f"{moving.backbone.name!r} does{_as_chosen(moving)}. Leave --without-timm out, or export to .onnx or .pt2."
        )

    def write(folder: Path, linear: Callable[[], LinearHead]) -> Written:
        head = linear()
        made.fill(moving.backbone, head)
        with _quietly():
            made.model.save_pretrained(folder)  # in the names of files, which are the same in every version
        for weights in folder.glob("*.safetensors"):  # which it writes for its own user alone
            write_bytes(weights, weights.read_bytes())
        write_json(folder / PROCESSOR, _processor(moving))
        return Written(_loaded(folder), head.exact, _HOW, tuple(_cut_notes(moving)))

    return write


def _cut_notes(moving: Moving) -> Iterator[str]:
    """Which pictures transformers' own image processor cuts elsewhere."""
    cut = moving.cut
    which = "a quarter of the pictures' sizes, which can be all pictures of one camera"
    advice = ""
    if cut.resize == "square":
        if (margin := cut.short - cut.size) % 4 != 3:
            return
        which, advice = "all pictures", f", or take another margin than {margin} (evaluation.one_crop_expand)"
    yield (
        f"transformers' image processor cuts the centre one pixel further up or left for {which}, so probabilities and "
        f"some top classes differ. Leave --without-timm out for a folder that cuts as liftplus does{advice}."
    )


def _as_chosen(moving: Moving) -> str:
    pooling = moving.backbone.facts.pooling
    return f" with backbone.pooling={pooling}" if pooling else ""


def _by_timm(moving: Moving) -> Write:
    """timm's folder; `--to timm` writes the same one."""
    wrapper: Any = getattr(transformers, "TimmWrapperConfig", None)
    if wrapper is None or "model_args" not in signature(wrapper).parameters:
        raise UserError(
            f"transformers {transformers.__version__} cannot read the folder, as its TimmWrapper is missing or knows "
            "no arguments of models; 4.53 and later can. Update it, or add --without-timm, which some backbones allow."
        )
    by_timm = to_timm.check(moving)
    note = (
        "transformers reads the folder by TimmWrapperForImageClassification, so timm must be installed there. "
        "--without-timm writes transformers' own classes for ViT, DINOv2 and BEiT."
    )

    def write(folder: Path, linear: Callable[[], LinearHead]) -> Written:
        written = by_timm(folder, linear)
        return Written(_loaded(folder), written.exact, _HOW, (note, *written.notes))

    return write


def _loaded(folder: Path) -> Callable[[Tensor], Tensor]:
    with loading("transformers"), _quietly():
        model: Any = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    return lambda pictures: model(pixel_values=pictures).logits


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' own progress bars and remarks from the user."""
    logging: Any = transformers.utils.logging
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _kind(tower: nn.Module) -> str | None:
    """Which class of transformers has such a tower; None where none has."""
    if isinstance(tower, ImageTower):
        return "vit"
    blocks: Any = getattr(tower, "blocks", None)
    if isinstance(tower, Beit) and tower.global_pool == "avg":
        return "beit"
    if not isinstance(tower, VisionTransformer) or tower.global_pool != "token" or tower.has_class_token is False:
        return None
    if not isinstance(tower.norm_pre, nn.Identity):  # CLIP
        return None
    if isinstance(blocks[0].ls1, nn.Identity):
        return None if tower.reg_token is not None else "vit"
    return "dinov2" if tower.reg_token is None else "registers"


@dataclass(frozen=True)
class Made:
    """A model of transformers' own, still to be filled.

    Attributes:
        model: with random weights.
        family: how weights of transformers are brought to our names.
        places: where each of its tensors lies in the family's table, as `_place` says; None for what no logit needs.
    """

    model: Any
    family: str
    places: dict[str, tuple[str, int, int] | None]

    def fill(self, backbone: Backbone, head: LinearHead) -> None:
        """Give it the tower's weights and the classifier; refuses tensors that tuners have added."""
        state, tensors = self.model.state_dict(), _in_family(self.family, backbone.image)
        if strange := tensors.keys() - {place[0] for place in self.places.values() if place}:
            raise UserError(
                f"transformers' model of {backbone.name!r} does not have the tuned one's tensors, such as "
                f"{min(strange)!r}: tuners can add biases where the architecture has none. {OTHERWISE}, or train with "
                "tuner=lora."
            )
        weights = {f"classifier.{name}": getattr(head, name) for name in ("weight", "bias")}
        weights = {name: _widened(value, state[name]) for name, value in weights.items()}
        for name, place in self.places.items():
            weights[name] = torch.zeros_like(state[name]) if place is None else _part(tensors, place)
        self.model.load_state_dict(weights)


def _made(moving: Moving) -> Made | None:
    """transformers' model for a tower, by the tower's names and shapes; None where it has none."""
    kind = _kind(moving.backbone.image)
    if kind is None or not hasattr(transformers, _CLASSES[kind][2]):
        return None
    family, config_class, model_class = _CLASSES[kind]
    config = getattr(transformers, config_class)(**_settings(kind, moving))
    model = getattr(transformers, model_class)(config).eval()
    state = model.state_dict()
    tensors = _in_family(family, moving.backbone.image)
    places: dict[str, tuple[str, int, int] | None] = {}
    for name, bare in bare_names(state).items():
        if name.startswith("classifier."):
            continue
        if name in left_out(state):
            places[name] = None
            continue
        place = _place(renamed(family, bare) or "")
        key, _, parts = place
        if key not in tensors or tensors[key].shape[0] % parts or _part(tensors, place).shape != state[name].shape:
            return None
        places[name] = place
    if tensors.keys() - {place[0] for place in places.values() if place}:
        return None  # such as norms of queries, which transformers' tower has no place for
    return Made(model, family, places)


def _part(tensors: dict[str, Tensor], place: tuple[str, int, int]) -> Tensor:
    """What lies at a place of the family's table."""
    key, part, parts = place
    return tensors[key].chunk(parts)[part]


def _widened(value: Tensor, like: Tensor) -> Tensor:
    """A classifier's rows with zeros for what it does not see: DINOv2's reads the mean over patches too."""
    if value.shape == like.shape:
        return value
    return torch.cat([value, value.new_zeros(len(value), like.shape[1] - value.shape[1])], dim=1)


def _place(source: str) -> tuple[str, int, int]:
    """Where a tensor of transformers' lies in the family's table: its name, and which part of how many."""
    if found := re.fullmatch(r"(.*\.mlp\.)(gate|up|down)(\.(?:weight|bias))", source):
        start, role, end = found.groups()
        return (f"{start}w3{end}", 0, 1) if role == "down" else (f"{start}w12{end}", ("gate", "up").index(role), 2)
    whole, _, part = source.partition("/")
    return (whole, "qkv".index(part), 3) if part else (whole, 0, 1)


def _in_family(family: str, tower: nn.Module) -> dict[str, Tensor]:
    """timm's tensors in the names that weights of transformers are brought to when they are read."""
    state = dict(tower.state_dict())
    if family == "beit":
        for name in [name for name in state if name.endswith(".attn.q_bias")]:
            query, value = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    if family == "dinov2":
        if (registers := state.pop("reg_token", None)) is not None:
            positions = state["pos_embed"]  # timm has added its position to the class token
            whole = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
            state |= {"register_tokens": registers, "pos_embed": whole}
        if _gated(tower):
            swaps = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
            state = {re.sub(r"\.mlp\.fc[12]\.", lambda m: swaps[m[0]], name): value for name, value in state.items()}
    return {name: value.detach() for name, value in state.items()}


def _gated(tower: nn.Module) -> bool:
    """Whether the MLPs of a tower have gates, whose halves timm keeps in one linear."""
    blocks: Any = tower.blocks
    return hasattr(blocks[0].mlp, "gate_last")


def _settings(kind: str, moving: Moving) -> dict[str, Any]:
    """What config.json says of a tower, in transformers' words."""
    names = list(moving.trained.class_names)
    tower: Any = moving.backbone.image
    blocks = tower.blocks
    block = blocks[0]
    eps = next(module.eps for module in tower.modules() if isinstance(module, nn.LayerNorm))
    found = {
        "hidden_size": moving.backbone.dim,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.attn.heads if isinstance(tower, ImageTower) else block.attn.num_heads,
        "image_size": moving.cut.size,
        "patch_size": tower.patch_embed.proj.weight.shape[-1],
        "layer_norm_eps": eps,
        "hidden_act": next((kind_of(module) for _, _, module in activations(tower)), "gelu"),
        "id2label": dict(enumerate(names)),
        "label2id": {name: k for k, name in enumerate(names)},
    }
    if kind in ("vit", "beit"):
        found["intermediate_size"] = block.mlp.fc1.out_features
    if kind in ("vit", "dinov2", "registers"):
        found["qkv_bias"] = block.attn.qkv.bias is not None
    if kind in ("dinov2", "registers"):
        found["use_swiglu_ffn"] = _gated(tower)
        found["mlp_ratio"] = 4 if _gated(tower) else block.mlp.fc1.out_features // moving.backbone.dim
    if kind == "registers":
        found["num_register_tokens"] = tower.reg_token.shape[1]
    if kind == "beit":
        found["use_absolute_position_embeddings"] = tower.pos_embed is not None
        found["use_relative_position_bias"] = block.attn.relative_position_bias_table is not None
    return found


def _processor(moving: Moving) -> dict[str, Any]:
    """An image processor that resizes, cuts and normalises as liftplus does for one crop."""
    facts, cut = moving.backbone.facts, moving.cut
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": cut.short, "width": cut.short} if cut.resize == "square" else {"shortest_edge": cut.short},
        "resample": {"bilinear": 2, "bicubic": 3}[cut.kernel],
        "do_center_crop": True,
        "crop_size": {"height": cut.size, "width": cut.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts.mean),
        "image_std": list(facts.std),
    }
