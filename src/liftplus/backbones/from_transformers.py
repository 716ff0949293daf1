"""Rename weights from the library transformers to the names of timm, open_clip or the authors.

Only names and shapes change, by one table a family; transformers itself is never imported. Names that timm or open_clip
translate themselves (Meta's of DINOv2, OpenAI's of CLIP, open_clip's of an image tower) are left to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from liftplus.errors import UserError

LABELS = {
    "clip": "CLIP",
    "siglip": "SigLIP",
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
    "vit": "ViT",
    "beit": "BEiT",
}
"""Families that are read, and their names for users."""

# Around the backbone in a model with a classifier, and in the names that transformers 5 has in memory.
_AROUND = re.compile(r"^(?:vit|dinov2|dinov2_with_registers|dinov3_vit|dinov3|beit)\.(?:model\.)?|^model\.(?=layer\.)")
# What features do not need: classifiers, and a token for hidden patches.
_UNUSED = re.compile(r"(?:classifier|pooler\.dense|lm_head|decoder)\..*|(?:embeddings\.)?mask_token")
# Buffers of older versions, which hold no weights.
_BUFFER = re.compile(r".*\b(?:position_ids|relative_position_index|inv_freq)")

_PAIR = r"\.(weight|bias)"
_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
_PLAIN = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (rf"embeddings\.patch_embeddings(?:\.projection)?{_PAIR}", r"patch_embed.proj.\1"),
    (rf"(?:layer)?norm{_PAIR}", r"norm.\1"),
    (rf"pooler\.layernorm{_PAIR}", r"fc_norm.\1"),
    (rf"{_BLOCK}attention\.(?:attention\.)?(?:(q)uery|(k)ey|(v)alue){_PAIR}", r"blocks.\1.attn.qkv.\5/\2\3\4"),
    (rf"{_BLOCK}attention\.([qkv])_proj{_PAIR}", r"blocks.\1.attn.qkv.\3/\2"),
    (rf"{_BLOCK}attention\.(?:output\.dense|o_proj){_PAIR}", r"blocks.\1.attn.proj.\2"),
    (
        rf"{_BLOCK}(?:attention\.attention\.)?relative_position_bias\.relative_position_bias_table",
        r"blocks.\1.attn.relative_position_bias_table",
    ),
    (rf"{_BLOCK}(?:intermediate\.dense|mlp\.fc1){_PAIR}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}(?:output\.dense|mlp\.fc2){_PAIR}", r"blocks.\1.mlp.fc2.\2"),
    (rf"{_BLOCK}mlp\.weights_in{_PAIR}", r"blocks.\1.mlp.w12.\2"),
    (rf"{_BLOCK}mlp\.weights_out{_PAIR}", r"blocks.\1.mlp.w3.\2"),
    (rf"{_BLOCK}mlp\.(gate|up|down)_proj{_PAIR}", r"blocks.\1.mlp.\2.\3"),
    (rf"{_BLOCK}(?:layernorm_before|norm1){_PAIR}", r"blocks.\1.norm1.\2"),
    (rf"{_BLOCK}(?:layernorm_after|norm2){_PAIR}", r"blocks.\1.norm2.\2"),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (rf"{_BLOCK}lambda_([12])", r"blocks.\1.gamma_\2"),
)


def _transformer(before: str, after: str, attention: str, joint: str, norm: str, first: str, second: str) -> Any:
    """Renaming of one tower's blocks; `joint` is how the packed projections are called before weight and bias."""
    block = rf"{before}encoder\.layers\.(\d+)\."
    return (
        (rf"{block}self_attn\.([qkv])_proj{_PAIR}", rf"{after}\1.attn.{joint}\3/\2"),
        (rf"{block}self_attn\.out_proj{_PAIR}", rf"{after}\1.attn.{attention}.\2"),
        (rf"{block}layer_norm([12]){_PAIR}", rf"{after}\1.{norm}\2.\3"),
        (rf"{block}mlp\.fc1{_PAIR}", rf"{after}\1.mlp.{first}.\2"),
        (rf"{block}mlp\.fc2{_PAIR}", rf"{after}\1.mlp.{second}.\2"),
    )


_IN_OPEN_CLIP = ("out_proj", "in_proj_", "ln_", "c_fc", "c_proj")
_IN_TIMM = ("proj", "qkv.", "norm", "fc1", "fc2")
_CLIP = (
    *_transformer(r"vision_model\.", "visual.transformer.resblocks.", *_IN_OPEN_CLIP),
    *_transformer(r"text_model\.", "transformer.resblocks.", *_IN_OPEN_CLIP),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (rf"vision_model\.pre_layrnorm{_PAIR}", r"visual.ln_pre.\1"),
    (rf"vision_model\.post_layernorm{_PAIR}", r"visual.ln_post.\1"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (rf"text_model\.final_layer_norm{_PAIR}", r"ln_final.\1"),
    (r"text_projection\.weight", "text_projection"),
    (r"logit_scale", "logit_scale"),
)
_SIGLIP = (
    *_transformer(r"vision_model\.", "visual.trunk.blocks.", *_IN_TIMM),
    *_transformer(r"text_model\.", "text.transformer.resblocks.", *_IN_OPEN_CLIP),
    (rf"vision_model\.embeddings\.patch_embedding{_PAIR}", r"visual.trunk.patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.trunk.pos_embed"),
    (rf"vision_model\.post_layernorm{_PAIR}", r"visual.trunk.norm.\1"),
    (r"vision_model\.head\.probe", "visual.trunk.attn_pool.latent"),
    (r"vision_model\.head\.attention\.in_proj_(weight|bias)", r"visual.trunk.attn_pool.qkv.\1"),
    (rf"vision_model\.head\.attention\.out_proj{_PAIR}", r"visual.trunk.attn_pool.proj.\1"),
    (rf"vision_model\.head\.layernorm{_PAIR}", r"visual.trunk.attn_pool.norm.\1"),
    (rf"vision_model\.head\.mlp\.(fc[12]){_PAIR}", r"visual.trunk.attn_pool.mlp.\1.\2"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text.token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (rf"text_model\.final_layer_norm{_PAIR}", r"text.ln_final.\1"),
    (rf"text_model\.head{_PAIR}", r"text.text_projection.\1"),
    (r"logit_(scale|bias)", r"logit_\1"),
)
_TABLES = {"clip": _CLIP, "siglip": _SIGLIP} | dict.fromkeys(("dinov2", "dinov3", "vit", "beit"), _PLAIN)


def bare_names(names: Mapping[str, Any]) -> dict[str, str]:
    """The names in a table, each with that in the backbone alone.

    A CLIP's or SigLIP's image tower that was saved alone by transformers 5 has no name around it.
    """
    bare = {name: _AROUND.sub("", name) for name in names}
    if "embeddings.patch_embedding.weight" not in bare.values():
        return bare
    outside = ("visual_projection.", "classifier.")
    return {name: new if new.startswith(outside) else f"vision_model.{new}" for name, new in bare.items()}


def family(names: Mapping[str, Any]) -> str | None:
    """The family of a table in transformers' names; None for any other table."""
    bare = set(bare_names(names).values())
    image = "vision_model.embeddings.patch_embedding.bias" in bare
    if "text_model.head.weight" in bare or (image and "vision_model.embeddings.class_embedding" not in bare):
        return "siglip"
    if "vision_model.pre_layrnorm.weight" in bare:  # the library's own spelling
        return "clip"
    if "embeddings.cls_token" not in bare:
        return None
    if "embeddings.patch_embeddings.weight" in bare:
        return "dinov3"
    if any(name.endswith(".layer_scale1.lambda1") for name in bare):
        return "dinov2"
    if any(name.endswith(".lambda_1") for name in bare):
        return "beit"
    return "vit" if any(name.endswith(".layernorm_before.weight") for name in bare) else None


def left_out(names: Mapping[str, Any]) -> list[str]:
    """The tensors of a file in transformers' names that no feature depends on."""
    return [name for name, bare in bare_names(names).items() if _UNUSED.fullmatch(bare)]


def translated(state: dict[str, Any]) -> dict[str, Any]:
    """A table in transformers' names in the form that timm or open_clip load; any other table as it is.

    Raises:
        UserError: a known family has unknown tensors.
    """
    kind = family(state)
    if kind is None:
        return state
    unused = {*left_out(state), *filter(_BUFFER.fullmatch, state)}
    parts = {name: renamed(kind, bare) for name, bare in bare_names(state).items() if name not in unused}
    unknown = [name for name, new in parts.items() if new is None]
    patches = [state[name] for name in state if name.endswith("embeddings.patch_embedding.weight")]
    if unknown or (kind == "siglip" and any(patch.ndim != 4 for patch in patches)):
        raise UserError(_unknown(kind, unknown))
    named = {new: state[name] for name, new in parts.items() if new is not None}
    return _FINISH.get(kind, _same)(_packed(named))


def renamed(kind: str, name: str) -> str | None:
    """A tensor's name in the other library; a part of a packed tensor follows a slash, as in "qkv.weight/q"."""
    for pattern, replacement in _TABLES[kind]:
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    return None


def _unknown(kind: str, unknown: list[str]) -> str:
    what = f"tensors that liftplus does not know, such as {', '.join(map(repr, unknown[:3]))}"
    if not unknown:
        what = "patches of any number and side (NaFlex)"
    return (
        f"The weights are in the names of the library transformers and seem to be a {LABELS[kind]}, but with {what}. "
        f"liftplus takes transformers' {', '.join(LABELS.values())}; of other models, take the weights in timm's or "
        "open_clip's form."
    )


def _packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pack queries, keys and values of each attention into one tensor, in this order; a missing key bias is zero."""
    out = {name: value for name, value in state.items() if "/" not in name}
    for whole in dict.fromkeys(name.partition("/")[0] for name in state if "/" in name):
        given = [state.get(f"{whole}/{part}") for part in "qkv"]
        some = next(value for value in given if value is not None)
        if any(value is None for value in given) and not whole.endswith("bias"):
            missing = [part for part, value in zip("qkv", given, strict=True) if value is None]
            raise UserError(f"The weights lack the projection {missing[0]!r} of {whole!r}. Fetch the file again.")
        out[whole] = torch.cat([torch.zeros_like(some) if value is None else value for value in given])
    return out


def _same(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def _clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections as matrices that features are multiplied with, [width, joint]."""
    ends = {name: state[name].T.contiguous() for name in ("visual.proj", "text_projection") if name in state}
    return state | ends


def _siglip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the pooling's query from its keys and values; positions become [1, tokens, width]."""
    for kind in ("weight", "bias"):
        if (joint := state.pop(f"visual.trunk.attn_pool.qkv.{kind}", None)) is not None:
            query, rest = joint.split([len(joint) // 3, 2 * len(joint) // 3])
            state[f"visual.trunk.attn_pool.q.{kind}"], state[f"visual.trunk.attn_pool.kv.{kind}"] = query, rest
    place = "visual.trunk.pos_embed"
    return state | ({place: state[place][None]} if place in state else {})


def _dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's own names, which timm translates; it recognises them by the mask token."""
    for name in [name for name in state if ".mlp.gate." in name]:
        up, down = name.replace(".gate.", ".up."), name.replace(".gate.", ".down.")
        state[name.replace(".gate.", ".w12.")] = torch.cat([state.pop(name), state.pop(up)])
        state[name.replace(".gate.", ".w3.")] = state.pop(down)
    return state | {"mask_token": torch.empty(0)}


def _dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's own names: from Meta's names, timm would drop biases that the model lacks."""
    gated = any(".mlp.gate." in name for name in state)
    swaps = {"register_tokens": "reg_token", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    swaps |= {".mlp.gate.": ".mlp.fc1_g.", ".mlp.down.": ".mlp.fc2."}
    swaps |= {".mlp.up.": ".mlp.fc1_x." if gated else ".mlp.fc1."}
    out = {}
    for name, value in _without_key_bias(state).items():
        for old, new in swaps.items():
            name = name.replace(old, new)
        out[name] = value
    return out


def _without_key_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries and values as timm stores them where keys have none; key biases must be zero."""
    biases = {name: state.pop(name) for name in list(state) if name.endswith(".attn.qkv.bias")}
    if any(bool(bias.chunk(3)[1].any()) for bias in biases.values()):
        raise UserError(
            "The weights' attention has biases of keys, which timm's model has no place for. Choose another model."
        )
    for name, bias in biases.items():
        query, _, value = bias.chunk(3)
        state |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    return state


def fitted(state: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    """Drop zero biases of queries and values that timm's model lacks: DINOv3 was published with them."""
    biases = [name for name in state if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if "_dinov3" not in model or "_qkvb" in model or any(bool(state[name].any()) for name in biases):
        return state
    return {name: value for name, value in state.items() if name not in biases}


_FINISH = {"clip": _clip, "siglip": _siglip, "dinov2": _dinov2, "dinov3": _dinov3, "beit": _without_key_bias}
