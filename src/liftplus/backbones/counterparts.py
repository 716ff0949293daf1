"""Find the backbone of timm or open_clip that has the architecture of a transformers model, by its sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from liftplus.backbones.from_transformers import LABELS, bare_names, family
from liftplus.backbones.transformers_config import About

# How timm calls a plain transformer of this width and depth.
SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
_DINOV3 = {
    (384, 12, False): "small",
    (384, 12, True): "small_plus",
    (768, 12, False): "base",
    (1024, 24, False): "large",
    (1280, 32, True): "huge_plus",
    (4096, 40, True): "7b",
}


def counterpart(about: About) -> str | None:
    """timm/ARCH.TAG or open_clip/ARCH/TAG of this architecture; None where there is none.

    The tag only selects timm's or open_clip's record of the architecture; the weights are the model's own.
    """
    if about.family in ("clip", "siglip"):
        found = _dual_encoders(about) if about.text is not None else iter(())
        return next((f"open_clip/{name}" for _, name in sorted(found)), None)
    import timm

    image = about.image
    size = SIZES.get((image["hidden_size"], image["num_hidden_layers"]))
    patch = f"patch{image['patch_size']}"
    if about.family == "dinov2":
        registers = f"_reg{image['num_register_tokens']}" if image.get("num_register_tokens") else ""
        arch = f"vit_{size}_{patch}{registers}_dinov2"
    elif about.family == "dinov3":
        gated = bool(image["use_gated_mlp"])
        size = _DINOV3.get((image["hidden_size"], image["num_hidden_layers"], gated), size)
        arch = f"vit_{size}_{patch}_dinov3{'_qkvb' if image['query_bias'] else ''}"
    else:
        arch = f"{about.family}_{size}_{patch}_224"
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")] if timm.is_model(arch) else []
    # Weights of plain architectures come first: tags name the training, and some bring another input.
    tags.sort(key=lambda tag: not tag.startswith(("augreg_in21k", "in22k", "orig", "lvd")))
    return f"timm/{arch}.{tags[0]}" if tags else None


def _dual_encoders(about: About) -> Iterator[tuple[tuple[bool, int, bool, int], str]]:
    """open_clip's ARCH/TAG of these sizes, each with its rank: those of the same input size and of OpenAI first."""
    import open_clip

    for place, arch in enumerate(open_clip.list_models()):
        ours = open_clip.get_model_config(arch)
        if not _equal(about, ours):
            continue
        for tag in open_clip.list_pretrained_tags_by_model(arch):
            quick = bool(ours.get("quick_gelu") or open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu"))
            asked = about.image["hidden_act"]
            if about.family == "clip" and asked is not None and quick != (asked == "quick_gelu"):
                continue
            resized = ours["vision_cfg"].get("image_size", 224) != about.image["image_size"]
            plain = quick and not ours.get("quick_gelu")
            yield (resized, _rank(tag), plain, place), f"{arch}/{tag}"


def _rank(tag: str) -> int:
    """OpenAI's and LAION's records first: others have other means, or are small experiments."""
    return 0 if tag == "openai" else 1 if tag.startswith("laion2b") else 2


def _equal(about: About, ours: dict[str, Any]) -> bool:
    """Whether an architecture of open_clip has the same sizes, as far as both are known."""
    from liftplus.backbones.from_open_clip import is_plain

    vision, words, image, text = ours["vision_cfg"], ours["text_cfg"], about.image, about.text
    assert text is not None
    pairs = [
        (about.joint, ours["embed_dim"]),
        *((text[theirs], words.get(own)) for theirs, own in _TEXT.items()),
    ]
    if about.family == "clip":
        if not is_plain(ours) or isinstance(vision["layers"], list):
            return False
        pairs += [(image[theirs], vision.get(own)) for theirs, own in _IMAGE.items()]
        pairs += [(image["num_attention_heads"], vision["width"] // vision.get("head_width", 64))]
        pairs += [(image["intermediate_size"], int(vision["width"] * vision.get("mlp_ratio", 4)))]
    else:
        tower = vision.get("timm_model_name", "")
        patch = re.search(r"_patch(\d+)_siglip_\d+$", tower)
        if patch is None or "hf_model_name" in words:
            return False
        pairs += [(image["hidden_size"], ours["embed_dim"]), (image["patch_size"], int(patch[1]))]
    return all(given is None or given == own for given, own in pairs)


_TEXT = {
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_hidden_layers": "layers",
}
_IMAGE = {"hidden_size": "width", "num_hidden_layers": "layers", "patch_size": "patch_size"}


def described(table: Mapping[str, Tensor]) -> str | None:
    """A sentence about a table of a known form: what it seems to be and which backbone takes it."""
    kind = family(table)
    if kind is not None:
        form, name, about = "in the form of the library transformers", None, _measured(kind, table)
    elif (own := _measured_open_clip(table)) is not None:
        form, name, about = "in open_clip's or OpenAI's names", "open_clip/ARCH/TAG", own
    elif (own := _measured_timm(table)) is not None:
        form, name, about = "in timm's or its authors' names", "timm/ARCH.TAG", own
    else:
        return None
    image = about.image
    what = (
        f"It seems to be a {LABELS[about.family]} {form}, of width {image['hidden_size']} "
        f"with {image['num_hidden_layers']} blocks and patches of {image['patch_size']} px"
    )
    if about.family in ("clip", "siglip") and about.text is None:
        return f"{what}, without its text tower. Take the file with both, or name timm's image tower of this size."
    found = counterpart(about)
    if found is None:
        unknown = "No backbone of timm or open_clip is known to have these sizes"
        return f"{what}. {f'Name the backbone as {name}, with its size' if name else unknown}."
    if name == "timm/ARCH.TAG":
        return f"{what}. It fits backbone {found}. If it was trained as another tag says, take that tag."
    return f"{what}. It fits backbone {found}{_other_activation(about, found)}."


def _other_activation(about: About, found: str) -> str:
    """The same architecture with the other activation, where a CLIP's file does not tell which it was trained with."""
    if about.family != "clip" or about.image["hidden_act"] is not None:
        return ""
    quick, exact = (
        counterpart(replace(about, image=about.image | {"hidden_act": act})) for act in ("quick_gelu", "gelu")
    )
    if quick is None or exact is None:
        return ""
    return f" if it was trained with QuickGELU, as OpenAI's, else {exact}" if found == quick else ""


def _measured(kind: str, table: Mapping[str, Tensor]) -> About:
    """A model's settings, as far as the shapes of its tensors show them."""
    ends = {bare: tuple(table[name].shape) for name, bare in bare_names(table).items()}
    words = any(name.startswith("text_model.") for name in ends)

    def shape(ending: str, side: str = "") -> tuple[int, ...]:
        return next((size for name, size in ends.items() if name.startswith(side) and name.endswith(ending)), (0,) * 4)

    dual = kind in ("clip", "siglip")
    patch = shape(".patch_embedding.weight") if dual else shape(".projection.weight", "") or ()
    if kind == "dinov3":
        patch = shape("patch_embeddings.weight")
    image: dict[str, Any] = {
        "hidden_size": patch[0],
        "num_hidden_layers": _depth(ends, "vision_model." if dual else ""),
        "patch_size": patch[-1],
        "num_register_tokens": shape("register_tokens")[-2],
        "use_gated_mlp": any(".mlp.gate_proj." in name for name in ends),
        "query_bias": any(name.endswith("q_proj.bias") for name in ends),
    } | dict.fromkeys(("num_attention_heads", "intermediate_size", "hidden_act", "image_size"))
    text = None
    if words:
        rows = shape("token_embedding.weight", "text_model.")
        text = {
            "vocab_size": rows[0],
            "hidden_size": rows[-1],
            "max_position_embeddings": shape("position_embedding.weight", "text_model.")[0],
            "num_hidden_layers": _depth(ends, "text_model."),
            "num_attention_heads": None,
        }
    joint = shape("visual_projection.weight")[0] if kind == "clip" else patch[0]
    return About(kind, image, text, joint, {})


def _measured_open_clip(table: Mapping[str, Tensor]) -> About | None:
    """The settings of a dual encoder in open_clip's or OpenAI's names, as far as shapes show them."""
    ends = {name.removeprefix("text."): tuple(value.shape) for name, value in table.items()}
    words, places = ends.get("token_embedding.weight"), ends.get("positional_embedding")
    if words is None or places is None:
        return None
    text = {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "max_position_embeddings": places[0],
        "num_hidden_layers": _depth(ends, "transformer.", "resblocks"),
        "num_attention_heads": None,
    }
    if "visual.trunk.attn_pool.latent" in ends:
        patch, tower, kind = ends.get("visual.trunk.patch_embed.proj.weight"), "visual.trunk.", "siglip"
        depth, size = _depth(ends, tower, "blocks"), _side(ends.get("visual.trunk.pos_embed"), 0)
    else:
        patch, tower, kind = ends.get("visual.conv1.weight"), "visual.", "clip"
        depth, size = _depth(ends, tower, "resblocks"), _side(ends.get("visual.positional_embedding"), 1)
    if patch is None or depth == 0:  # a tower of convolutions, for one
        return None
    image: dict[str, Any] = {
        "hidden_size": patch[0],
        "num_hidden_layers": depth,
        "patch_size": patch[-1],
        "image_size": size and size * patch[-1],
        "num_attention_heads": None,
        "intermediate_size": ends.get("visual.transformer.resblocks.0.mlp.c_fc.weight", (None,))[0],
        # Only OpenAI's archives have this entry, and they were all trained with QuickGELU.
        "hidden_act": "quick_gelu" if "input_resolution" in ends else None,
    }
    joint = ends.get("visual.proj", (0, patch[0]))[1]
    return About(kind, image, text, joint, {})


def _measured_timm(table: Mapping[str, Tensor]) -> About | None:
    """The settings of a plain image tower in timm's names, which its authors' files often have too."""
    ends = {name: tuple(value.shape) for name, value in table.items()}
    patch = ends.get("patch_embed.proj.weight")
    if patch is None or len(patch) != 4 or "blocks.0.attn.proj.weight" not in ends:
        return None
    registers = next((ends[name] for name in ("reg_token", "register_tokens", "storage_tokens") if name in ends), None)
    scaled = "blocks.0.ls1.gamma" in ends
    if registers and ("pos_embed" not in ends) and (scaled or "blocks.0.gamma_1" in ends):
        kind = "dinov3"
    elif "blocks.0.gamma_1" in ends and any(name.endswith("relative_position_bias_table") for name in ends):
        kind = "beit"
    elif scaled and "pos_embed" in ends and patch[-1] == 14:
        kind = "dinov2"
    elif (
        not scaled
        and "norm_pre.weight" not in ends
        and {"pos_embed", "cls_token", "blocks.0.attn.qkv.bias"} <= ends.keys()
    ):
        kind = "vit"
    else:
        return None
    gates = ("blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.w1.weight")
    image = {
        "hidden_size": patch[0],
        "num_hidden_layers": _depth(ends, "", "blocks"),
        "patch_size": patch[-1],
        "num_register_tokens": registers[-2] if registers else 0,
        "use_gated_mlp": any(name in ends for name in gates),
        "query_bias": "blocks.0.attn.q_bias" in ends,
    }
    return About(kind, image, None, None, {})


def _side(positions: tuple[int, ...] | None, before: int) -> int | None:
    """The side of the grid of positions [..., tokens, width], of which some come before the grid."""
    return None if positions is None or len(positions) < 2 else math.isqrt(max(positions[-2] - before, 0))


def _depth(names: Mapping[str, Any], side: str, block: str = "layers?") -> int:
    found = {re.search(rf"\b{block}\.(\d+)\.", name) for name in names if name.startswith(side)}
    return len({match[1] for match in found if match is not None})
