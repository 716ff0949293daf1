"""The parts of an ONNX graph before and behind the model: resize and crops of decoded pictures, names of classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liftplus.data.transforms import LONGEST, CentreCrop, FiveCrops
from liftplus.errors import UserError
from liftplus.publishing import export as exporting

if TYPE_CHECKING:
    import onnx

INPUT = "pictures"
KERNELS = {"bicubic": 'mode = "cubic", cubic_coeff_a = -0.5', "bilinear": 'mode = "linear"'}
"""Attributes of ONNX's Resize that make it Pillow's kernel of that name."""


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
    over = "Identity" if cut.resize == "square" else "ReduceMin <keepdims = 1>"
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
        cut_least = {over} (cut_sides)
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
    for name, kind in (("class_index", TensorProto.INT64), ("class_name", TensorProto.STRING)):
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
