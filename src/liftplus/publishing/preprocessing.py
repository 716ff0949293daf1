"""An exported ONNX graph that takes decoded pictures of any size: resize, crops and class names become part of it.

ONNX Runtime resizes uint8 as Pillow and PyTorch do: an antialiasing kernel, first horizontal, then vertical, rounded to
uint8 in between. Its coefficients have single precision, Pillow's double, so some values next to a half are rounded to
the other side. Pillow 13 alone resizes pictures of over about twice their width in height vertically first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from liftplus.config import EvaluationConfig
from liftplus.data.dataset import Store
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import KERNELS as PILLOW
from liftplus.data.pictures import ArrayPicture, Box, Decode, Picture, PillowPicture, to_tensor
from liftplus.data.transforms import LONGEST, CentreCrop, FiveCrops
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import crops
from liftplus.machine.disk import folder_of, write_json
from liftplus.machine.progress import Progress
from liftplus.publishing import export as exporting
from liftplus.publishing.export import Deployed, Parity
from liftplus.training.checkpoint import Trained

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUTS = "pictures", (*exporting.OUTPUTS, "class_index", "class_name")
LEVELS = 2
"""Most by which a resized value may differ from Pillow's, of 255."""
KERNELS = {"bicubic": 'mode = "cubic", cubic_coeff_a = -0.5', "bilinear": 'mode = "linear"'}
"""Attributes of ONNX's Resize that make it Pillow's kernel of that name."""
SHAPES = ((1, 1), (3, 5), (37, 411), (640, 51), (333, 500), (767, 511), (7, 300), (224, 224))
"""Heights and widths that pictures of the data are brought to: tiny, wide, tall, odd."""
DECODING = (
    "Decode the file, turn the picture by its EXIF orientation, lay transparency on white, convert it to RGB (grey "
    "ones too), and scale more than 8 bits to 0 to 255. All pictures of a batch have one size."
)


@dataclass(frozen=True)
class Likeness:
    """How the answers of the file compare with those of `predict` in fp32 with as many crops.

    Attributes:
        images: pictures of the data that were compared.
        made: pictures of tiny, wide, tall and odd sizes that were made from them and compared too.
        probability: largest absolute difference of a probability.
        same_class: share of all these pictures with the same best class.
        levels: largest difference of a resized value from Pillow's, horizontal pass first, of 255.
        changed: share of resized values that differ from those.
    """

    images: int
    made: int
    probability: float
    same_class: float
    levels: int
    changed: float


@dataclass(frozen=True)
class Sample:
    """Pictures to compare on: some of a store's, and others made of them in `SHAPES`.

    Attributes:
        decode: how `predict` decodes and resizes them.
    """

    store: Store
    keys: Sequence[str]
    decode: Decode

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], Picture, bool]]:
        """Pixels [H, W, 3]; the picture as `predict` has it; whether it was made. Unreadable ones are passed over."""
        self.store.decode = self.decode
        first: list[Image.Image] = []
        for key in self.keys:
            try:
                image = self.store.image(key)
            except UnreadableImage:
                continue
            yield np.asarray(image), self.store.picture(key), False
            if len(first) < len(SHAPES):
                first.append(image)
        for number, (height, width) in enumerate(SHAPES if first else ()):
            pixels = np.asarray(first[number % len(first)].resize((width, height)))
            yield pixels, _picture(pixels, self.decode), True


@dataclass(frozen=True)
class HorizontalFirst:
    """A whole picture resized by Pillow in this order of passes, whatever the version of Pillow."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def cut(self, _box: Box, size: tuple[int, int], kernel: str) -> Tensor:
        """The picture at another size (width, height): uint8 [3, height, width]."""
        wide = self.image.resize((size[0], self.image.height), PILLOW[kernel])
        return to_tensor(wide.resize(size, PILLOW[kernel]))


def _picture(pixels: NDArray[np.uint8], decode: Decode) -> Picture:
    """Pixels as `predict` would cut and resize them."""
    return PillowPicture(Image.fromarray(pixels)) if decode == "exact" else ArrayPicture(pixels)


@torch.no_grad()
def export(
    trained: Trained, out: Path, sample: Sample, progress: Progress, evaluation: EvaluationConfig
) -> tuple[Parity, Likeness]:
    """Write the graph and FILE.json with class names and recipe; what fails a comparison is not kept.

    Args:
        trained: on the CPU in fp32; its model is merged in place.
        sample: what to compare on.
        evaluation: how pictures are cut, and the prior.

    Raises:
        UserError: no picture can be read, the graph cannot be written, or it does not compute what PyTorch does.
    """
    model = trained.model
    cut = crops(evaluation, model.backbone.facts)
    begin = front(cut)
    model.shift = priors.shift(trained.config, trained.class_names, trained.train_counts, evaluation.prior)
    deployed = Deployed(model, five_crops=evaluation.tte).eval()
    views, expected, gaps = _by_predict(sample, cut, deployed, _session(begin), progress)
    if int(gaps[:, 0].max()) > LEVELS:
        raise UserError(
            f"The installed onnxruntime resizes pictures with values that differ from Pillow's by up to "
            f"{int(gaps[:, 0].max())} of 255, more than {LEVELS}, so the file was not kept. Update onnxruntime and "
            "report it, or export without --with-preprocessing."
        )
    folder_of(out)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        file = Path(folder) / out.name
        parity = exporting.export(trained, file, "onnx", views, progress, evaluation)
        about = _about(json.loads(exporting.beside(file).read_text(encoding="utf-8")))
        join(begin, file, trained.class_names, about)
        logits, found = _answers(sample, file, progress)
        made = slice(len(views) - len(SHAPES), None)
        _refuse_difference(logits[made], deployed(views[made])[0])
        likeness = Likeness(
            images=len(views) - len(SHAPES),
            made=len(SHAPES),
            probability=float((found - expected).abs().max()),
            same_class=float((found.argmax(1) == expected.argmax(1)).float().mean()),
            levels=int(gaps[:, 0].max()),
            changed=float(gaps[:, 1].mean()),
        )
        write_json(exporting.beside(file), about | {"compared_with_predict": vars(likeness)})
        for piece in sorted(Path(folder).iterdir()):
            piece.replace(out.parent / piece.name)
    return parity, likeness


def front(cut: CentreCrop | FiveCrops) -> onnx.ModelProto:
    """The graph from pictures, uint8 [N, H, W, 3], to the input of the plain export.

    Raises:
        UserError: the resize kernel has no equal in ONNX.
    """
    import onnx.parser

    if cut.kernel not in KERNELS:
        raise UserError(
            f"The run resizes pictures by {cut.kernel!r}, which ONNX does not have; it has {', '.join(KERNELS)}. "
            "Export without --with-preprocessing."
        )
    several = cut.count > 1
    shape = f"batch, {'5, ' if several else ''}3, {cut.size}, {cut.size}"
    return onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["": 18]>
    front (uint8[batch, height, width, 3] {INPUT}) => (float[{shape}] {exporting.INPUT})
    <int64[1] cut_short = {{{cut.short}}}, int64[1] cut_longest = {{{LONGEST * cut.short}}},
     int64[1] cut_size = {{{cut.size}}}, int64[1] cut_three = {{3}}, float[1] cut_half = {{0.5}},
     int64[1] cut_0 = {{0}}, int64[1] cut_1 = {{1}}, int64[1] cut_axis_3 = {{3}}, int64[2] cut_axes = {{2, 3}}>
    {{
        cut_planes = Transpose <perm = [0, 3, 1, 2]> ({INPUT})
        cut_given = Shape ({INPUT})
        cut_batch = Slice (cut_given, cut_0, cut_1)
        cut_sides = Slice (cut_given, cut_1, cut_axis_3)
        cut_least = ReduceMin <keepdims = 1> (cut_sides)
        cut_shorter = Max (cut_least, cut_1)
        cut_product = Mul (cut_sides, cut_short)
        cut_quotient = Div (cut_product, cut_shorter)
        cut_scaled = Min (cut_quotient, cut_longest)
        cut_target = Concat <axis = 0> (cut_batch, cut_three, cut_scaled)
        cut_whole = Resize <{KERNELS[cut.kernel]}, antialias = 1, exclude_outside = 1> (cut_planes, , , cut_target)
        cut_slack = Sub (cut_scaled, cut_size)
        cut_slack_float = Cast <to = 1> (cut_slack)
        cut_centre_exact = Mul (cut_slack_float, cut_half)
        cut_centre_even = Round (cut_centre_exact)
        cut_centre = Cast <to = 7> (cut_centre_even)
        {_corners() if several else ""}
        {_view("centre")}
        cut_views = {_JOINED if several else "Identity (cut_view_centre)"}
        cut_shape = Constant <value_ints = [0, {shape.partition(", ")[2]}]> ()
        cut_shaped = Reshape (cut_views, cut_shape)
        {exporting.INPUT} = Cast <to = 1> (cut_shaped)
    }}
    """)


def _view(start: str) -> str:
    """The view that begins at a place (top, left)."""
    return f"""
        cut_end_{start} = Add (cut_{start}, cut_size)
        cut_view_{start} = Slice (cut_whole, cut_{start}, cut_end_{start}, cut_axes)"""


def _corners() -> str:
    """The views at the corners."""
    return f"""
        cut_right = Constant <value_ints = [0, 1]> ()
        cut_bottom = Constant <value_ints = [1, 0]> ()
        cut_top_left = Sub (cut_slack, cut_slack)
        cut_top_right = Mul (cut_slack, cut_right)
        cut_bottom_left = Mul (cut_slack, cut_bottom)
        cut_bottom_right = Identity (cut_slack)
        {"".join(map(_view, _CORNERS))}"""


_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
_JOINED = f"Concat <axis = 1> ({', '.join(f'cut_view_{start}' for start in (*_CORNERS, 'centre'))})"


def join(begin: onnx.ModelProto, file: Path, class_names: Sequence[str], about: dict[str, Any]) -> None:
    """Put a front before the graph in a file, and the best class and its name behind it.

    Weights that stand in a file of their own stay there untouched.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    names = [name.encode() for name in class_names]
    end = [
        helper.make_node("ArgMax", ["probabilities"], ["class_index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["cut_names", "class_index"], ["class_name"]),
    ]
    nodes = [*begin.graph.node, *graph.node, *end]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(begin.graph.input)
    graph.initializer.extend(begin.graph.initializer)
    graph.initializer.append(helper.make_tensor("cut_names", TensorProto.STRING, [len(names)], names))
    _name_batch([*graph.output, *graph.value_info], graph.output[0].type.tensor_type.shape.dim[0].dim_param)
    for name, kind in zip(OUTPUTS[2:], (TensorProto.INT64, TensorProto.STRING), strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["batch"]))
    for item in model.metadata_props:
        if item.key == "liftplus":
            item.value = json.dumps(about, ensure_ascii=False)
    onnx.save(model, str(file))
    onnx.checker.check_model(str(file))


def _name_batch(values: Sequence[onnx.ValueInfoProto], name: str) -> None:
    """Call the size of a batch so, whatever the exporter called it."""
    for value in values:
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param == name:
                side.dim_param = "batch"


def _about(plain: dict[str, Any]) -> dict[str, Any]:
    """The description of the plain graph, turned into that of the graph with its front."""
    given = plain["input"]
    inside = {key: given[key] for key in ("crops", "crop", "resize", "interpolation")}
    recipe = given["recipe"].partition("lay it on white, ")[2]
    count = plain["outputs"]["logits"][1]
    return plain | {
        "input": {
            "name": INPUT,
            "shape": ["batch", "height", "width", 3],
            "type": "uint8",
            "values": "RGB, 0 to 255",
            "decoding": DECODING,
            "answers": given["answers"],
        },
        "cut_inside": inside | {"recipe": recipe},
        "outputs": {
            "logits": ["batch", count],
            "probabilities": ["batch", count],
            "class_index": ["batch"],
            "class_name": ["batch"],
        },
    }


Run = Callable[[NDArray[np.uint8]], list[Any]]


def _session(model: onnx.ModelProto | Path) -> Run:
    """A function that runs a graph on one picture [H, W, 3] and gives all of its outputs."""
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return lambda pixels: list(session.run(None, {INPUT: pixels[None]}))


def _by_predict(
    sample: Sample, cut: CentreCrop | FiveCrops, deployed: Deployed, begin: Run, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """For each picture the graph's views, `predict`'s probabilities, and how the views differ from Pillow's.

    The last is [N, 2]: the largest difference, and the share of values that differ.
    """
    views, chances, gaps = [], [], []
    with progress.task("Running PyTorch as predict does", len(sample.keys)) as advance:
        for pixels, picture, made in sample:
            view = torch.from_numpy(begin(pixels)[0])[0]
            exact = cut(HorizontalFirst(Image.fromarray(pixels))).float()
            gap = (view - (exact if cut.count > 1 else exact[0])).abs()
            gaps.append(torch.stack([gap.max(), (gap > 0).float().mean()]))
            own = cut(picture).float()
            chances.append(deployed(own[None] if cut.count > 1 else own)[1])
            views.append(view)
            if not made:
                advance()
    if not views:
        raise UserError("None of the pictures to compare on can be read. Give others with --check.")
    return torch.stack(views), torch.cat(chances), torch.stack(gaps)


def _answers(sample: Sample, file: Path, progress: Progress) -> tuple[Tensor, Tensor]:
    """Logits and probabilities [N, C] that the file gives for each picture."""
    whole = _session(file)
    found = []
    with progress.task("Running onnx from pictures", len(sample.keys)) as advance:
        for pixels, _, made in sample:
            found.append([torch.from_numpy(output) for output in whole(pixels)[:2]])
            if not made:
                advance()
    logits, chances = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(chances)


def _refuse_difference(found: Tensor, expected: Tensor) -> None:
    """Refuse a graph whose parts do not act together as they do alone."""
    difference = float((found - expected).abs().max())
    if not difference <= exporting.TOLERANCE * max(1.0, float(expected.std(unbiased=False))):
        raise UserError(
            f"Logits of the exported file differ from PyTorch's on the same crops by up to {difference:.1e}, so it was "
            "not kept. Export without --with-preprocessing, and report it."
        )
