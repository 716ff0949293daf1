"""Reference figures of whole models: bare and tuned towers, their training, text features, joint-space logits, TTE."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clip_shape import shape_of
from liftplus.backbones import clip, weights
from liftplus.backbones.base import Backbone, Facts
from liftplus.backbones.normalise import Normalise
from liftplus.backbones.sites import residual_blocks
from liftplus.backbones.text import text_features
from liftplus.data.transforms import CentreCrop, FiveCrops
from liftplus.model.classifier import Classifier
from liftplus.model.head_init import InitContext, Semantic, text_rows
from liftplus.model.heads import Cosine, Joint
from liftplus.model.losses import LogitAdjusted
from liftplus.registry import get
from liftplus.tuners.aft import draw
from liftplus.tuners.base import Tuner

SCALE, LR, MOMENTUM, DECAY = 25.0, 0.02, 0.9, 5e-4
TEXT_HEADS, TIMM_HEADS, POOL_HEADS = 4, 4, 2
PART = r"none|fft_last\d+|fft|bitfit|vpt_deep|vpt_shallow|vpt|lora|adaptformer|adapter|ssf|aft"
PLAIN = Semantic(template="{}")

# Reference names of the tuned parts of a block, in our names.
LINEAR = {"attn.in_proj": "qkv", "attn.out_proj": "proj", "mlp.in_proj": "fc1", "mlp.out_proj": "fc2"}
# What marks the weights of a part that has no name of its own in them.
MARKS = {"vpt": r"\.prompt$", "fft": r"_(weight|bias)$", "bitfit": r"_bias$"}
BLOCK_NAMES = (
    ("attn.qkv.", "attn.in_proj."),
    ("attn.proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.in_proj."),
    ("mlp.fc2.", "mlp.out_proj."),
    ("mlp.c_fc.", "mlp.in_proj."),
    ("mlp.c_proj.", "mlp.out_proj."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
)


class Rows:
    """A tokenizer whose texts are row numbers of a table of ids."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.ids[[int(text) for text in texts]]


def _names(reference: Any) -> list[str]:
    return [str(row) for row in range(len(reference.tensors["text/tokens"]))]


def _backbone(reference: Any, model: str) -> Backbone:
    """The model with the reference's weights; all sizes are read off them."""
    state = {name: value.clone() for name, value in reference.under(f"{model}/backbone").items()}
    if model == "timm_vit":
        patch = state["patch_embed.proj.weight"]
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        size = reference.tensors[f"{model}/images"].shape[-1]
        tower = VisionTransformer(
            img_size=size,
            patch_size=patch.shape[-1],
            embed_dim=patch.shape[0],
            depth=depth,
            num_heads=TIMM_HEADS,
            num_classes=0,
        )
        weights.load_strict(tower, state, model)
        half = (0.5, 0.5, 0.5)
        return Backbone(model, tower, Facts(size, half, half, patch_size=patch.shape[-1]))
    heads = POOL_HEADS if "visual.attnpool.k_proj.weight" in state else None
    shape = shape_of(state, heads=heads, text_heads=TEXT_HEADS)
    return clip.clip_backbone(model, shape, state, tokenizer=Rows(reference.tensors["text/tokens"]))


def _context(reference: Any, backbone: Backbone) -> InitContext:
    def no_features(_shots: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("no features are needed")

    return InitContext(backbone, _names(reference), no_features, torch.Generator())


def _of(tuned: dict[str, Tensor], pattern: str) -> list[Tensor]:
    return [value for name, value in tuned.items() if re.search(pattern, name)]


def _options(part: str, tuned: dict[str, Tensor]) -> dict[str, Any]:
    """A tuner's settings, read off the reference's tensors."""
    if part in ("adapter", "adaptformer"):
        return {"width": _of(tuned, rf"\.{part}\.down\.weight$")[0].shape[0]}
    if part == "lora":
        targets = {match[1] for name in tuned if (match := re.search(r"\.lora\.(\w+)\.down$", name))}
        return {"rank": _of(tuned, r"\.lora\.\w+\.down$")[0].shape[1], "targets": tuple(sorted(targets))}
    if part.startswith("vpt"):
        return {"length": _of(tuned, r"\.prompt$")[0].shape[0]}
    if part == "aft":
        return _aft_options(tuned)
    return {}


def _aft_options(tuned: dict[str, Tensor]) -> dict[str, Any]:
    kinds = {match[1] for name in tuned if (match := re.search(r"\.(attn|mlp)\.aft\.", name))}
    masks = _of(tuned, r"\.mask$")
    low = max(float(mask.sum()) / mask.numel() for mask in masks)
    high = min(float(mask.sum() + 1) / mask.numel() for mask in masks)
    # The shortest decimal that keeps as many values of every tensor; it is what was typed.
    ratio = next(value for digits in range(1, 12) if low <= (value := -(-low * 10**digits // 1) / 10**digits) < high)
    targets = "both" if len(kinds) == 2 else "attention" if kinds == {"attn"} else "mlp"
    seed = next((seed for seed in range(1000) if torch.equal(draw(masks[0].shape, ratio, seed), masks[0])), 0)
    return {"ratio": ratio, "targets": targets, "seed": seed}


def _tuners(name: str, tuned: dict[str, Tensor], depth: int, side: str) -> dict[str, Tuner]:
    """Tuners of a group such as adaptformer_lora, fft_last1 or vpt."""
    found: dict[str, Tuner] = {}
    for part in re.findall(rf"(?:{PART})(?=_|$)", name):
        if part == "none":
            continue
        options = _options(part, tuned) | {"side": side}
        mark = MARKS.get(part, MARKS["vpt"] if part.startswith("vpt") else rf"\.{part}\.")
        layers = {int(match[1]) for key in tuned if (match := re.search(rf"blocks\.(\d+)\S*?{mark}", key))}
        if part.startswith("fft_last"):
            part, options = "partial", options | {"blocks": int(part.removeprefix("fft_last"))}
        elif part == "vpt":
            part = "vpt_deep" if len(layers) > 1 or depth == 1 else "vpt_shallow"
        elif part not in ("vpt_shallow",) and layers and len(layers) < depth:
            options["layers"] = tuple(sorted(layers))
        part = "full" if part == "fft" else part
        tuner = get("tuner", part)(**options)
        assert isinstance(tuner, Tuner)
        found[part] = tuner
    return found


def _own_names(model: Classifier) -> dict[str, str]:
    """Reference names (dots as underscores) of the blocks' own weights, to ours."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    towers = {"image": residual_blocks(model.backbone.image)}
    if model.backbone.text is not None:
        towers["text"] = list(model.backbone.text.tower.transformer.resblocks)
    out = {}
    for side, blocks in towers.items():
        for layer, block in enumerate(blocks):
            for name, parameter in block.named_parameters():
                for ours, theirs in BLOCK_NAMES:
                    name = name.replace(ours, theirs)
                key = f"{side}_encoder.blocks.{layer}.{name}".replace(".", "_")
                out[key] = by_identity[id(parameter)]
    return out


def _our_name(name: str, tuners: dict[str, Tuner], depth: int) -> str | None:
    """Our name of a reference's tuner weight; None for a block's own weight."""
    special = {"classifier.weight": "head.weight", "text_encoder.ctx": "tuners.coop.context"}
    if name in special:
        return special[name]
    if match := re.fullmatch(r"(image|text)_adapter\.(.+)", name):
        side = f"{match[1]}." if tuners["clip_adapter"].side == "both" else ""
        return f"tuners.clip_adapter.{side}{match[2]}"
    if match := re.fullmatch(r"\w+_encoder\.ssf\.(scale|shift)", name):
        return f"tuners.ssf.{depth - 1}.pool.{match[1]}"
    match = re.fullmatch(r"\w+_encoder\.blocks\.(\d+)\.(.+)", name)
    if match is None:
        return None
    layer, rest = match.groups()
    if inner := re.fullmatch(r"(?:mlp\.|attn\.)?(adaptformer|adapter|lora)\.(.+)", rest):
        return f"tuners.{inner[1]}.{layer}.{inner[2]}"
    if rest == "prompt":
        return f"tuners.{next(tuner for tuner in tuners if tuner.startswith('vpt'))}.{layer}.prompt"
    if inner := re.fullmatch(r"(attn|mlp)\.ssf\.(\w+)\.(scale|shift)", rest):
        return f"tuners.ssf.{layer}.{LINEAR[f'{inner[1]}.{inner[2]}']}.{inner[3]}"
    if inner := re.fullmatch(r"(attn|mlp)\.aft\.(\w+)\.masked_(weight|bias)\.optimized_params", rest):
        return f"tuners.aft.{layer}.{LINEAR[f'{inner[1]}.{inner[2]}']}.values.{inner[3]}"
    return None


def _load(model: Classifier, tuners: dict[str, Tuner], tuned: dict[str, Tensor]) -> None:
    """Strictly load the reference's tuned weights."""
    own, state = _own_names(model), {}
    for name, value in tuned.items():
        if name.endswith(".mask"):
            continue
        ours = _our_name(name, tuners, model.backbone.depth) or own.get(name.replace(".", "_"))
        assert ours is not None, f"unknown reference weight {name}"
        state[ours] = value.clone()
    if "head.weight" not in state:
        state |= {name: value for name, value in model.learned_state().items() if name.startswith("head.")}
    model.load_learned(state)


def _check_masks(model: Classifier, tuned: dict[str, Tensor], exact: Any, group: str) -> None:
    for name, mask in tuned.items():
        if match := re.search(r"blocks\.(\d+)\.(attn|mlp)\.aft\.(\w+)\.masked_(weight|bias)\.mask$", name):
            layer = model.tuners["aft"][match[1]][LINEAR[f"{match[2]}.{match[3]}"]]  # type: ignore[index]
            exact(group, layer.get_buffer(f"{match[4]}_mask"), mask)


def _image_model(reference: Any, group: str) -> tuple[Classifier, dict[str, Tensor]]:
    model_name, tuner_name = group.split("/")
    tuned = reference.under(f"{group}/tuner")
    backbone = _backbone(reference, model_name)
    tuners = _tuners(tuner_name, tuned, backbone.depth, "image")
    classes = len(tuned["classifier.weight"])
    model = Classifier(backbone, tuners, Cosine(scale=SCALE).build(backbone, classes), classes)
    _load(model, tuners, tuned)
    return model, tuned


def test_tuned_image_tower(reference: Any, close: Any, exact: Any, image_group: str) -> None:
    model, tuned = _image_model(reference, image_group)
    expected = reference.under(image_group)
    _check_masks(model, tuned, exact, image_group)
    counts = model.count()
    if (number := reference.values.get(f"{image_group}/tuned_params")) is not None:
        exact(image_group, counts["tuned"] + counts["head"], number)
    images = reference.tensors[image_group.split("/")[0] + "/images"]
    if "features" in expected:
        close(image_group, model.backbone(images), expected["features"])
    close(image_group, model(images), expected["logits"])


def test_training(reference: Any, close: Any, exact: Any, image_group: str) -> None:
    expected = reference.values.get(f"{image_group}/sgd_losses")
    if expected is None:
        pytest.skip("no training was recorded for this group")
    model, _ = _image_model(reference, image_group)
    images, train = reference.tensors[image_group.split("/")[0] + "/images"], reference.under("train")
    loss = LogitAdjusted().build(train["class_counts"])
    optimiser = torch.optim.SGD(model.trainable(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    losses = []
    for _ in expected:
        value = loss(model(images), train["labels"])
        losses.append(float(value.detach()))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    exact(f"{image_group} (training)", losses, expected, rounding=1e-3)
    after = reference.tensors.get(f"{image_group}/logits_after_sgd")
    if after is not None:  # the end of the trajectory, held to the trajectory's tolerance
        close(f"{image_group} (after training)", model(images), after, tolerance=1e-3)


def test_text_features(reference: Any, close: Any, text_features_group: str) -> None:
    text = _backbone(reference, text_features_group).text_encoder("the test")
    expected = reference.tensors[f"{text_features_group}/text_features"]
    close(f"{text_features_group}/text_features", text_features(text.tower, text.tokens(_names(reference))), expected)


def test_semantic_rows(reference: Any, close: Any, semantic_group: str) -> None:
    backbone = _backbone(reference, semantic_group)
    expected = reference.tensors[f"{semantic_group}/semantic_init_weight"]
    close(f"{semantic_group}/semantic_init_weight", PLAIN.rows(_context(reference, backbone)), expected)
    joint = backbone.text_encoder("the test").encode(_names(reference))
    close(f"{semantic_group}/semantic_init_weight", text_rows(backbone, joint), expected)


def _joint_model(reference: Any, model_name: str, tuners: dict[str, Tuner], backbone: Backbone) -> Classifier:
    head = Joint().build(backbone, len(_names(reference)))
    head.weight.data.copy_(Joint().rows(_context(reference, backbone), PLAIN))
    return Classifier.assemble(backbone, tuners, head, _names(reference))


def test_zero_shot(reference: Any, close: Any, zero_shot_group: str) -> None:
    backbone = _backbone(reference, zero_shot_group)
    model = _joint_model(reference, zero_shot_group, {}, backbone)
    images, expected = reference.tensors[f"{zero_shot_group}/images"], reference.under(f"{zero_shot_group}/zero_shot")
    close(f"{zero_shot_group}/zero_shot", model(images), expected["logits"])


def test_tuned_text_side(reference: Any, close: Any, exact: Any, joint_group: str) -> None:
    model_name, name = joint_group.split("/")
    tuned, expected = reference.under(f"{joint_group}/tuner"), reference.under(joint_group)
    backbone = _backbone(reference, model_name)
    if name.startswith("coop"):
        tuners = {"coop": get("tuner", "coop")(places=tuple(reference.values[f"{joint_group}/ctx_loc"]))}
    elif name == "clip_adapter":
        sides = {key.split("_")[0] for key in tuned}
        width = _of(tuned, r"down\.weight$")[0].shape[0]
        side = "both" if len(sides) == 2 else sides.pop()
        tuners = {"clip_adapter": get("tuner", "clip_adapter")(width=width, side=side)}
    else:
        depth = backbone.text_encoder("the test").depth
        tuners = _tuners(name.removeprefix("text_"), tuned, depth, "text")
    model = _joint_model(reference, model_name, tuners, backbone)
    _load(model, tuners, tuned)
    _check_masks(model, tuned, exact, joint_group)
    logits = model(reference.tensors[f"{model_name}/images"])
    close(joint_group, logits, expected["logits"])
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.trainable())
    if (number := reference.values.get(f"{joint_group}/tuned_params")) is not None:
        exact(joint_group, model.count()["tuned"], number)


def test_crops_and_ensemble(reference: Any, close: Any, tte_group: str) -> None:
    image = Image.fromarray(reference.tensors[f"tte/{tte_group}"].numpy())
    backbone = _backbone(reference, "clip_vit")
    size, normalise = backbone.facts.image_size, Normalise(backbone.facts)
    head = Cosine(scale=SCALE).build(backbone, len(_names(reference)))
    head.weight.data.copy_(PLAIN.rows(_context(reference, backbone)))
    model = Classifier(copy.deepcopy(backbone), {}, head, len(_names(reference)))
    for name, expected in reference.under(f"tte/{tte_group}").items():
        if name == "center":
            close(f"tte/{tte_group}", normalise(CentreCrop(size)(image))[0], expected)
            continue
        expand = int(name.split("/")[0].removeprefix("expand"))
        crops = normalise(FiveCrops(size, expand)(image))
        ours = crops if name.endswith("crops") else model(crops).mean(0)
        close(f"tte/{tte_group}", ours, expected)
