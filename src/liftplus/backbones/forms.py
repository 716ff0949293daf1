"""What weights that cannot be taken seem to be, and which form of them can: one sentence each, from names and bytes."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from liftplus.backbones.from_transformers import LABELS

SAVED = ("model.safetensors", "pytorch_model.bin")
"""transformers' names of the weight file in a folder with a config.json; the first one present is used."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_GRAPH = "a graph for prediction, which has no names of layers. Take the weights that it was exported from"
_ELSEWHERE = "a form that liftplus does not read. Take the same weights in timm's or transformers' form for PyTorch"
_ENDINGS = {
    ".onnx": f"ONNX, {_GRAPH}",
    ".pt2": f"a program of torch.export, {_GRAPH}",
    ".tflite": f"TensorFlow Lite, {_GRAPH}",
    ".h5": f"HDF5 of Keras or TensorFlow, {_ELSEWHERE}",
    ".keras": f"Keras's archive, {_ELSEWHERE}",
    ".msgpack": f"Flax's msgpack, {_ELSEWHERE}",
    ".npz": f"NumPy's archive, {_ELSEWHERE}",
    ".gguf": f"GGUF, {_ELSEWHERE}",
    ".json": "a table of text beside weights. Give the weight file, or the folder with both",
}
_BEGINNINGS = (
    (rb"version https://git-lfs", "a pointer of Git LFS in place of the weights. Fetch them: git lfs pull"),
    (rb"\s*<(?:!doctype|html|\?xml)", "a web page in place of the weights. Fetch the file again"),
    (rb"GGUF", _ENDINGS[".gguf"]),
    (rb"\x89HDF", _ENDINGS[".h5"]),
    (rb".{4}TFL3", _ENDINGS[".tflite"]),
    (rb"\x08.\x12.pytorch", _ENDINGS[".onnx"]),
)


def of_file(path: Path) -> str | None:
    """What a file that is no table of tensors seems to be, and what to do; None where its bytes do not tell."""
    with path.open("rb") as stream:
        start = stream.read(64)
    if not start:
        return "It is empty. Fetch the file again."
    found = next((what for pattern, what in _BEGINNINGS if re.match(pattern, start, re.IGNORECASE | re.DOTALL)), None)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            found = _ENDINGS[".npz"]
        elif any(name.endswith("archive_format") for name in names):
            found = _ENDINGS[".pt2"]
        elif path.suffix == ".safetensors":
            found = "an archive of PyTorch's. Rename it so that it ends in .pth"
    found = found or _ENDINGS.get(path.suffix.lower())
    return found and f"It seems to be {found}."


def other_form(folder: Path) -> str:
    """A sentence, with a space before it, about a folder that is a model for another library; empty for any other."""
    about: dict[str, object] = {}
    with suppress(OSError, ValueError, TypeError):
        about = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if (folder / "adapter_config.json").is_file():
        found = "peft"
    elif (folder / "open_clip_config.json").is_file():
        found = "open_clip"
    elif "architecture" in about and "pretrained_cfg" in about:
        found = "timm or transformers with timm"
    elif "model_type" in about:
        found = "transformers"
    else:
        return ""
    return f" The folder seems to be a model for {found}, as `liftplus export` writes it too."


def is_safetensors(path: Path) -> bool:
    """Whether a file of any name has a header of safetensors: its length in 8 bytes, and a table of JSON."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def of_folder(folder: Path) -> str:
    """What a folder without a weight file seems to be, and what to give instead."""
    names = sorted(item.name for item in folder.iterdir())
    files = [name for name in names if name.endswith(SUFFIXES)]
    if "adapter_config.json" in names:
        return "It seems to be an adapter of peft. Merge that into its model, merge_and_unload(), and save the model."
    if "log.jsonl" in names and "metrics.json" in names:
        return "It seems to be a run of liftplus, not a backbone. Give the backbone's own weights."
    if "snapshots" in names and (found := re.fullmatch(r"models--(.+?)--(.+)", folder.name)):
        owner, name = found.groups()
        inside = sorted(item.name for item in (folder / "snapshots").iterdir())[:1]
        whole = f"snapshots/{inside[0]}" if inside else "snapshots"
        return (
            f"It seems to be a repository in the cache of the model hub's client. Name the backbone as "
            f"{'timm' if owner == 'timm' else f'hf/{owner}'}/{name}, or give what is in its folder {whole}."
        )
    if any(name.endswith(".distcp") for name in names):
        return (
            "It seems to be a distributed checkpoint of PyTorch. Make a file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth."
        )
    if "config.json" not in names and (saved := [name for name in SAVED if name in names]):
        return f"Beside {saved[0]}, config.json is missing. Put it there, or give the file itself."
    if files:
        return f"Give a file. In it are {', '.join(files[:4])}."
    if "config.json" in names:
        others = [name for name in names if name.endswith((".h5", ".msgpack", ".onnx", ".gguf"))][:2]
        has = f"only {' and '.join(others)}" if others else "no weights"
        return f"Beside config.json it has {has}. Put model.safetensors or pytorch_model.bin there."
    return (
        f"It has no weights. Give a file that ends in {', '.join(SUFFIXES)}." if names else "It is empty. Give a file."
    )


def of_parts(folder: Path) -> str:
    """What to do with weights in a folder that are split over several files; its index tells which."""
    parts = set()
    for index in folder.glob("*.index.json"):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            parts.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(str(part) for part in parts if not (folder / str(part)).is_file())
    first = f" Of these {', '.join(map(repr, missing[:2]))} {'is' if len(missing) == 1 else 'are'} missing; fetch it."
    return (
        f"The weights in {str(folder)!r} are split over several files.{first if missing else ''} Save them as one: "
        "model.save_pretrained(FOLDER, max_shard_size='100GB')."
    )


# Names of the attribute that holds the backbone in a training script's own module.
BEFORE = ("module.", "model.", "backbone.", "net.", "network.", "timm_model.")

# Modules of the library transformers, and what it calls layers.
_TRANSFORMERS = re.compile(
    r"(?:vision_model|text_model|vit|embeddings|dinov2|siglip|swin|swinv2|convnext|deit|resnet|regnet)\."
    r"|.*\bencoder\.layers?\.\d+\.|.*\battention\.(?:attention|self|output)\.|.*\blayernorm_(?:before|after)\."
    r"|.*\.(?:convolution|normalization|depthwise_conv)\."
)
_QUANTISED = (".absmax", ".SCB", ".qweight", ".weight_scale", ".weight_packed")


def of_names(names: Sequence[str]) -> str:
    """What a file with these names seems to be, and what to do about it."""
    has = set(names)
    starts = {name.partition(".")[0] for name in names}
    if any(name.endswith(_QUANTISED) for name in names):
        return "Its weights seem to be quantised. Take the same weights in 32 or 16 bits."
    if any(".lora_A." in name or "base_layer." in name for name in names):
        return "It seems to be a model of peft with its adapter. Merge that first: merge_and_unload()."
    if "conv_proj.weight" in has or any("encoder_layer_" in name for name in names):
        return "These are torchvision's names of a ViT. Take a ViT in timm's or transformers' form."
    if any(_TRANSFORMERS.match(name) for name in names):
        return (
            f"These are the names of the library transformers, of which liftplus takes {', '.join(LABELS.values())}. "
            "Take the same weights in timm's or open_clip's form: model.safetensors of a timm repository, or "
            "open_clip_model.safetensors."
        )
    if starts <= {"tuners", "head", "backbone"} and starts & {"tuners", "head"}:
        return "It seems to be what liftplus learned in a run, not a backbone. Give the backbone's own weights."
    if starts <= {"exp_avg", "exp_avg_sq", "momentum_buffer", "step"}:
        return "It seems to be the state of an optimiser. Give the weights that were saved with it."
    for start in (*BEFORE, "teacher.", "student.", "ema.", "model_ema.", "ema_model."):
        if any(name.startswith(start) for name in names):
            return (
                f"Only some of its names begin with {start!r}, as of a module that holds more than its backbone. "
                f"Save that part alone: {{k.removeprefix({start!r}): v for k, v in state.items() if "
                f"k.startswith({start!r})}}."
            )
    if "visual.proj" in has or any(name.startswith("visual.") for name in names):
        return "These are open_clip's names of a dual encoder. Name the backbone as open_clip/ARCH/TAG, with its size."
    if "patch_embed.proj.weight" in has or any(name.startswith(("stages.", "blocks.")) for name in names):
        return "These are timm's names of an image tower. Name the backbone as timm/ARCH.TAG, with its size."
    if "bn1.weight" in has and "layer1.0.conv1.weight" in has:
        return (
            "These are timm's and torchvision's names of a ResNet. Name the backbone as timm/ARCH.TAG, with its size."
        )
    return "Give the file that belongs to this backbone."


def part_of_several(path: Path) -> bool:
    """Whether a file is one of the parts over which weights were split, by its name."""
    return re.search(r"-\d{5}-of-\d{5}\b", path.name) is not None
