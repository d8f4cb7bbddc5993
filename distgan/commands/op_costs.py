"""What operations of a graph cost on a GPU by their static shapes: whether they launch a kernel, its FLOPs and its bytes.

FLOPs, a multiplication and an addition each one:
  matrix product [.., m, k] x [.., k, n]: 2 m k n, times the batch;
  convolution, its gradient by the input, and its gradient by the filter: 2 x (elements of the small side) x kh x kw x
    channels in, where the small side is the output of the convolution, or the gradient by it;
  elementwise: one for each element of the result; a sum of n tensors: n - 1;
  reduction: one for each element of what is reduced; half a sum of squares: two;
  Adam: 12 for each weight.
Everything else counts none. Bytes are those of a kernel's inputs and outputs in the device's memory, as if nothing stayed in
a cache and nothing was fused; an optimizer's variables are read and written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.ops import handle_data_util

from distgan.training import graph_ops
from distgan.training.graph_ops import Op, Value

_BINARY = (
    "Add AddV2 Sub Mul MulNoNan Div DivNoNan RealDiv FloorDiv FloorMod Maximum Minimum Pow SquaredDifference Atan2 Xdivy Xlogy "
    "Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr BiasAdd Select SelectV2 AddN ClipByValue "
    "BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift"
)
_UNARY = (
    "Abs Cast Ceil Cos Elu Erf Exp Expm1 Floor Inv IsFinite IsInf IsNan LeakyRelu Log Log1p LogicalNot Neg OnesLike "
    "Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin Softplus Softsign Sqrt Square Tan Tanh ZerosLike"
)
_GRADIENTS = (
    "EluGrad InvGrad LeakyReluGrad ReciprocalGrad Relu6Grad ReluGrad RsqrtGrad SeluGrad SigmoidGrad SoftplusGrad "
    "SoftsignGrad SqrtGrad TanhGrad"
)
_KINDS = {
    "convolution": "Conv2D Conv2DBackpropInput Conv2DBackpropFilter DepthwiseConv2dNative",
    "matmul": "MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3",
    "elementwise": f"{_BINARY} {_UNARY} {_GRADIENTS}",
    "reduction": "Sum Mean Max Min Prod All Any L2Loss BiasAddGrad ArgMax ArgMin Softmax LogSoftmax AvgPool MaxPool "
    "AvgPoolGrad MaxPoolGrad Cumsum",
    "data movement": "BroadcastTo ConcatV2 DepthToSpace Fill Gather GatherNd GatherV2 MirrorPad OneHot Pack Pad PadV2 "
    "ResizeNearestNeighbor ResizeNearestNeighborGrad ReverseV2 Roll ScatterNd Slice SpaceToDepth Split SplitV StridedSlice "
    "StridedSliceGrad TensorScatterUpdate Tile Transpose Unpack UnsortedSegmentSum",
    "random": "StatelessRandomNormalV2 StatelessRandomUniformV2",
    "optimizer": "ResourceApplyAdam ResourceApplyGradientDescent AssignAddVariableOp AssignSubVariableOp",
    # Those that give another shape or name to what is there.
    "view": "EnsureShape ExpandDims Identity IdentityN Reshape Squeeze",
    "variable": "AssignVariableOp ReadVariableOp VarHandleOp VariableShape",
}
_KIND_BY_TYPE = {op_type: kind for kind, op_types in _KINDS.items() for op_type in op_types.split()}
_WITHOUT_KERNEL = ("view", "variable", "collective", "python", "iterator", "control")
_FLOPS_OF_ADAM = 12


def kind(op: Op) -> str:
    """What sort of work it is; `other` is a kernel without a formula here."""
    if op.type in _KIND_BY_TYPE:
        return _KIND_BY_TYPE[op.type]
    if graph_ops.is_collective(op):
        return "collective"
    if graph_ops.py_functions([op]):
        return "python"
    if op.type in graph_ops.CONTROL or op.type == "NoOp":
        return "control"
    return "iterator" if op.type.startswith(graph_ops.ITERATORS) else "other"


def launches_kernel(op: Op) -> bool:
    """Whether a GPU starts a kernel for it; one at least, and here counted as one. Collectives are counted apart."""
    return kind(op) not in _WITHOUT_KERNEL and graph_ops.runs_on_device(op)


def flops(op: Op) -> int | None:
    """Of one run, by the module's formulas; None where a shape is not known."""
    sort = kind(op)
    inputs, outputs = [_elements(value) for value in op.inputs], [_elements(value) for value in op.outputs]
    if sort == "convolution":
        return _convolution_flops(op)
    if sort == "matmul":
        attributes = op.node.node_def.attr
        transposed = attributes["transpose_a"].b or attributes["adj_x"].b
        return _product(2, outputs[0], op.inputs[0].tensor.shape.as_list()[-2 if transposed else -1])
    if sort == "elementwise":
        return _product(len(inputs) - 1 if op.type == "AddN" else 1, outputs[0])
    if sort == "reduction":
        return _product(2 if op.type == "L2Loss" else 1, inputs[0])
    if sort == "optimizer":
        return _product(_FLOPS_OF_ADAM if op.type == "ResourceApplyAdam" else 1, inputs[-1])
    return 0


def _convolution_flops(op: Op) -> int | None:
    by_place = {"Conv2DBackpropInput": (2, op.inputs[1]), "Conv2DBackpropFilter": (2, op.outputs[0])}
    if op.type in by_place:
        place, kernel = by_place[op.type]
        small = op.inputs[place]
    else:
        small, kernel = op.outputs[0], op.inputs[1]
    height, width, channels, _ = kernel.tensor.shape.as_list()
    return _product(2, _elements(small), height, width, 1 if op.type == "DepthwiseConv2dNative" else channels)


def bytes_moved(op: Op) -> tuple[int | None, int | None]:
    """What a kernel reads and what it writes in one run; None where a shape is not known."""
    handles = [value for value in op.inputs if value.tensor.dtype in graph_ops.HANDLES]
    on_device = [
        value for value, from_host in zip(op.inputs, graph_ops.takes_from_host(op), strict=True) if not from_host
    ]
    variables = [_variable_bytes(value) for value in handles]
    read = [value.bytes for value in on_device if value not in handles]
    written = [value.bytes for value in op.outputs]
    changed = variables if kind(op) == "optimizer" else []
    return _sum([*variables, *read]), _sum([*changed, *written])


def fusible_groups(ops: Sequence[Op]) -> list[list[Op]]:
    """The elementwise kernels in groups that one fused kernel could replace: neighbours with no other kernel on a way between.

    A group of one is an elementwise kernel without such a neighbour.
    """
    levels: dict[Op, int] = {}
    group_of: dict[Op, list[Op]] = {}
    for op in ops:
        sources = [value.producer for value in op.inputs if value.producer in levels]
        passes = {source: kind(source) in ("elementwise", "view") for source in sources}
        levels[op] = max((levels[source] + (not passed) for source, passed in passes.items()), default=0)
        if not (kind(op) == "view" or (kind(op) == "elementwise" and launches_kernel(op))):
            continue
        group_of[op] = [op]
        for source in sources:
            if source in group_of and _place(source) == _place(op) and levels[source] == levels[op]:
                _join(group_of, group_of[source], group_of[op])
    groups = {id(group): [op for op in group if kind(op) == "elementwise"] for group in group_of.values()}
    return [group for group in groups.values() if group]


def _place(op: Op) -> tuple[str, str, bool]:
    return op.function, op.device, op.compiled


def _join(group_of: dict[Op, list[Op]], first: list[Op], second: list[Op]) -> None:
    if first is not second:
        first += second
        for op in second:
            group_of[op] = first


def _elements(value: Value) -> int | None:
    elements: int | None = value.tensor.shape.num_elements()
    return elements


def _product(*factors: int | None) -> int | None:
    return None if None in factors else math.prod(factor for factor in factors if factor is not None)


def _sum(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _variable_bytes(value: Value) -> int | None:
    """The size of the variable behind a handle."""
    data = handle_data_util.get_resource_handle_data(value.tensor)
    if data is None or not data.is_set:
        return None
    [one] = data.shape_and_type
    elements = tf.TensorShape(one.shape).num_elements()
    return None if elements is None else elements * tf.as_dtype(one.dtype).size
