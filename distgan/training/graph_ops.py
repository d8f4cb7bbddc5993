"""What a compiled function would run, read from its graph: nothing is run, and no GPU is needed.

The graph is taken as it was traced, with all functions that it calls inlined. Like TensorFlow, which simplifies a graph before
it runs it, the walk drops dead operations and identities, takes results that follow from constants and static shapes for
constants, and merges equal operations.

Where an operation runs on a machine with GPUs, and which of its inputs and outputs lie in host memory there, is read from
TensorFlow's own list of kernels, which a build with CUDA brings along on a machine without a GPU too. In a trial on several
logical CPUs they stand for as many GPUs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2
from tensorflow.python.framework import kernels

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
LOOPS = {"While", "StatelessWhile"}
_BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
_NAMES_ALONE = {"Identity", "IdentityN", "StopGradient", "PreventGradient"}
_STATIC = {"Shape", "ShapeN", "Size", "Rank"}
# On a GPU machine too, the host decides where these go on.
CONTROL = LOOPS | _BRANCHES | {"Condition"}
ITERATORS = ("Iterator", "MultiDeviceIterator", "Optional")
_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
# By the start of their types; NCCL's are among them, of TensorFlow and of Horovod.
_COLLECTIVES = ("CollectiveReduce", "CollectiveGather", "CollectiveBcast", "CollectiveAllToAll", "Nccl", "Horovod")
# On a GPU they wait for it, because the shape of their results depends on values.
_WAITING = {"Where", "DynamicPartition", "Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2"}
# In host memory whatever the device, where they pass from turn to turn of a loop.
_HOST_DTYPES = {tf.int32, tf.string}
_ANY_KERNEL = kernel_def_pb2.KernelDef()
HANDLES = {tf.resource, tf.variant}


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor that an operation gives."""

    producer: Op | None
    """None of an argument of the whole function."""
    index: int
    """Among the producer's outputs, or the function's arguments."""
    tensor: tf.Tensor
    """As it is in its graph; for its shape, dtype and name."""

    @property
    def device(self) -> str:
        """Its producer's."""
        return self.producer.device if self.producer else ""

    @property
    def is_constant(self) -> bool:
        """Whether it follows from constants and static shapes alone."""
        return self.producer is not None and self.producer.is_constant

    @property
    def bytes(self) -> int | None:
        """Its size; None where its shape is not known."""
        elements = self.tensor.shape.num_elements()
        return None if elements is None else elements * self.tensor.dtype.size


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """An operation, once for each place that the function it is in is called from."""

    node: tf.Operation
    """As it is in its graph: name, attributes, static shapes and dtypes."""
    type: str
    """The node's; `Condition` of what says whether a loop goes on."""
    function: str
    """The names of the calls, loops and branches that it is in, the outermost first, joined by `:`."""
    device: str
    """Empty where TensorFlow chooses."""
    times: int
    """How often it runs in one turn of the outermost loop, so 0 outside of it; without a loop: in one call."""
    compiled: bool
    """Whether it is in a function that XLA compiles."""
    inputs: tuple[Value, ...]
    """Where they come from, whatever calls lie between."""
    is_constant: bool = False

    @property
    def outputs(self) -> list[Value]:
        """What it gives."""
        return [Value(self, index, tensor) for index, tensor in enumerate(self.node.outputs)]


def walk(function: Any) -> list[Op]:
    """The operations of a ConcreteFunction, in an order that they could run in.

    Calls, loops and branches are entered: of two branches the one with more operations, of an inner loop one turn.
    """
    walker, graph = _Walker(), function.graph
    looped = any(node.type in LOOPS for node in graph.get_operations())
    arguments = [Value(None, index, tensor) for index, tensor in enumerate(graph.inputs)]
    return walker.needed(walker.enter(graph, arguments, "", 0 if looped else 1, False))


class _Walker:
    """The operations so far."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.needed_values: list[Value] = []
        self.equal: dict[Any, Op] = {}

    def enter(self, graph: Any, arguments: Sequence[Value], function: str, times: int, compiled: bool) -> list[Value]:
        """Goes through a graph; returns its results."""
        values = {tensor.name: value for tensor, value in zip(graph.inputs, arguments, strict=True)}
        for node in graph.get_operations():
            if node.outputs and node.outputs[0].name in values:
                continue
            inputs = tuple(values[tensor.name] for tensor in node.inputs)
            op = Op(node, node.type, function, node.device, times, compiled, inputs)
            values |= {tensor.name: value for tensor, value in zip(node.outputs, self._results(op), strict=True)}
        return [values[tensor.name] for tensor in graph.outputs]

    def _results(self, op: Op) -> Sequence[Value]:
        if op.type in LOOPS:
            return self._loop(op)
        if op.type in _BRANCHES:
            return self._branch(op)
        if op.type in _CALLS:
            [body] = _functions(op.node)
            compiled = op.compiled or op.node.node_def.attr["_XlaMustCompile"].b
            return self.enter(body, op.inputs, _inside(op), op.times, compiled)
        if op.type in _NAMES_ALONE and op.device in ("", op.inputs[0].device):
            return op.inputs
        return self._add(op).outputs

    def _loop(self, op: Op) -> Sequence[Value]:
        condition, body = (_function(op.node, op.node.node_def.attr[part].func.name) for part in ("cond", "body"))
        times = op.times or int(not op.function)
        self.ops.append(op)
        variables = [
            value if after is before or value.tensor.dtype in HANDLES else Value(op, index, value.tensor)
            for index, (value, before, after) in enumerate(zip(op.inputs, body.inputs, body.outputs, strict=True))
        ]
        goes_on = self.enter(condition, variables, _inside(op), times, op.compiled)
        last = condition.outputs[0].op
        self.ops.append(Op(last, "Condition", _inside(op), op.device, times, op.compiled, tuple(goes_on)))
        self.needed_values += self.enter(body, variables, _inside(op), times, op.compiled)
        return op.outputs

    def _branch(self, op: Op) -> Sequence[Value]:
        branches = []
        for body in _functions(op.node):
            walker = _Walker()
            results = walker.enter(body, op.inputs[1:], _inside(op), op.times, op.compiled)
            branches.append((walker, results))
        walker, results = max(branches, key=lambda branch: len(branch[0].ops))
        self.ops += [dataclasses.replace(op, inputs=op.inputs[:1]), *walker.ops]
        self.needed_values += walker.needed_values
        return results

    def _add(self, op: Op) -> Op:
        """Notes an operation, unless it is a constant or there is an equal one; returns which stands for it."""
        op = dataclasses.replace(op, is_constant=_is_constant(op))
        if not (op.node.op_def.is_stateful or is_collective(op)):
            attributes = sorted(
                (name, value.SerializeToString(deterministic=True))
                for name, value in op.node.node_def.attr.items()
                if not name.startswith("_")
            )
            sources = tuple((id(value.producer), value.index) for value in op.inputs)
            equal = self.equal.setdefault((op.type, op.function, op.device, sources, tuple(attributes)), op)
            if equal is not op:
                return equal
        if not op.is_constant:
            self.ops.append(op)
        return op

    def needed(self, results: Sequence[Value]) -> list[Op]:
        """The operations that something depends on: a result, a loop, or what they change."""
        waiting = [op for op in self.ops if op.type in CONTROL or _has_effects(op)]
        waiting += [value.producer for value in (*results, *self.needed_values) if value.producer]
        needed: set[Op] = set()
        while waiting:
            op = waiting.pop()
            if op not in needed:
                needed.add(op)
                waiting += [value.producer for value in op.inputs if value.producer]
        return [op for op in self.ops if op in needed]


def _is_constant(op: Op) -> bool:
    if op.node.op_def.is_stateful or is_collective(op):
        return False
    if op.type in _STATIC:
        return all(value.tensor.shape.is_fully_defined() for value in op.inputs)
    return op.type == "Const" or (bool(op.inputs) and all(value.is_constant for value in op.inputs))


def _has_effects(op: Op) -> bool:
    return op.node.op_def.is_stateful and op.type != "ReadVariableOp"


def _inside(op: Op) -> str:
    return f"{op.function}:{op.node.name}" if op.function else op.node.name


def _functions(node: tf.Operation) -> list[Any]:
    """The graphs of the functions that a node names."""
    attributes = node.node_def.attr
    names = [value.func.name for _, value in sorted(attributes.items()) if value.HasField("func")]
    names += [function.name for _, value in sorted(attributes.items()) for function in value.list.func]
    return [_function(node, name) for name in names]


def _function(node: tf.Operation, name: str) -> Any:
    graph = node.graph
    while name not in graph._functions:
        graph = graph.outer_graph
    return graph._functions[name].graph


def py_functions(ops: Sequence[Op]) -> list[Op]:
    """Those that call Python."""
    return [op for op in ops if op.type in _PYTHON]


def is_collective(op: Op) -> bool:
    """Whether it passes tensors between replicas."""
    return op.type.startswith(_COLLECTIVES)


def collectives(ops: Sequence[Op]) -> list[tuple[Op, int | None]]:
    """Those that pass tensors between replicas, each with the bytes that one replica hands over; None where not known."""
    return [(op, _bytes_handed_over(op)) for op in ops if is_collective(op)]


def _bytes_handed_over(op: Op) -> int | None:
    names = _argument_names(op, op.node.op_def.input_arg)
    total = 0
    for value, name in zip(op.inputs, names, strict=True):
        if name == names[0]:  # Those behind it say who takes part.
            if value.bytes is None:
                return None
            total += value.bytes
    return total


def host_ops(ops: Sequence[Op]) -> list[Op]:
    """Those that have no kernel for a GPU, so that they run on the host, but for what an iterator, loop or branch needs."""
    return [op for op in ops if not (op.type.startswith(ITERATORS) or op.type in CONTROL) and _kernel(op) is None]


def host_transfers(ops: Sequence[Op]) -> list[tuple[Value, Op]]:
    """What the device hands to the host, which has to wait for it: each value once, with the first operation that takes it.

    Such are the values that operations of the host take, those that say whether a loop goes on or which branch is taken,
    and those from which a kernel learns the shape of its result.
    """
    return _moved(ops, lambda op, value, to_host: (to_host or op.type in _WAITING) and _lies_on(value) == "device")


def device_transfers(ops: Sequence[Op]) -> list[tuple[Value, Op]]:
    """What the host hands to the device, but for constants: each value once, with the first operation that takes it."""
    return _moved(ops, lambda _, value, to_host: not to_host and _lies_on(value) == "host")


def _moved(ops: Sequence[Op], is_moved: Callable[[Op, Value, bool], bool]) -> list[tuple[Value, Op]]:
    first: dict[Any, tuple[Value, Op]] = {}
    for op in ops:
        for value, to_host in zip(op.inputs, takes_from_host(op), strict=True):
            if is_moved(op, value, to_host):
                first.setdefault((value.producer, value.index), (value, op))
    return list(first.values())


def runs_on_device(op: Op) -> bool:
    """Whether a GPU has something to do for it: its kernel is for a GPU, and not all that it takes and gives is the host's."""
    if op.type in CONTROL or _kernel(op) is None:
        return False
    given = [_lies_on(value) for value in op.outputs]
    return "device" in given or not given


def _lies_on(value: Value) -> str:
    """`device`, `host`, or `` of a constant or handle, which both have."""
    op, dtype = value.producer, value.tensor.dtype
    if value.is_constant or dtype in HANDLES:
        return ""
    if op is None or op.type in LOOPS:
        return "host" if dtype in _HOST_DTYPES else "device"
    kernel = _kernel(op)
    if kernel is None:
        return "host"
    name = _argument_names(op, op.node.op_def.output_arg)[value.index]
    return "host" if name in kernel.host_memory_arg else "device"


def takes_from_host(op: Op) -> list[bool]:
    """For each input, whether it is taken from host memory."""
    if op.type in CONTROL:
        return [op.type not in LOOPS] * len(op.inputs)
    kernel = _kernel(op)
    if kernel is None:
        return [True] * len(op.inputs)
    names = _argument_names(op, op.node.op_def.input_arg)
    return [name in kernel.host_memory_arg for name in names]


def _argument_names(op: Op, arguments: Any) -> list[str]:
    """The name of each input or output; those of a list have the list's."""
    attributes, names = op.node.node_def.attr, []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = attributes[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(attributes[argument.type_list_attr].list.type)
        names += [argument.name] * count
    return names


def _kernel(op: Op) -> Any:
    """The KernelDef by which a GPU runs an operation; None if it has none. XLA compiles whatever it is given."""
    if op.compiled or is_collective(op):
        return _ANY_KERNEL
    attributes = op.node.node_def.attr
    for kernel in _gpu_kernels(op.type):
        if all(
            attributes[constraint.name].type in constraint.allowed_values.list.type for constraint in kernel.constraint
        ):
            return kernel
    return None


@functools.cache
def _gpu_kernels(op_type: str) -> list[Any]:
    every = kernels.get_registered_kernels_for_op(op_type).kernel
    return [kernel for device in ("GPU", "DEFAULT") for kernel in every if kernel.device_type == device]
