"""ONNX models of one case each, for libraries that run graphs; weights are constants, which they may pack ahead."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper, numpy_helper

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem
from benchmarks.runners import Unsupported

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def model(case: Case, data: dict[str, Array]) -> bytes:
    """The serialised model, from `x` to the result (and `indices`); raises Unsupported for other passes."""
    if case.passname not in ("forward", "forward_relu", "forward_indices"):
        raise Unsupported("forward only" if not case.passname.startswith("forward") else "the library has no such pass")
    problem, nodes, names = case.problem, list[Any](), ["x"]

    def append(kind: str, inputs: list[str], more_outputs: tuple[str, ...] = (), **attributes: Any) -> None:
        names.append(f"t{len(nodes)}")
        nodes.append(helper.make_node(kind, [names[-2], *inputs], [names[-1], *more_outputs], **attributes))

    match problem:
        case ConvProblem():
            append("Conv", ["weight", "bias"], **conv_attributes(problem))
            if case.passname == "forward_relu":
                append("Relu", [])
        case FusedProblem():
            append("Conv", ["weight", "bias"], **conv_attributes(problem.conv))
            append("Relu", [])
            append("MaxPool", [], **pool_attributes(problem.pool))
        case PoolProblem():
            indices = ("indices",) if case.passname == "forward_indices" else ()
            append("MaxPool", [], indices, **pool_attributes(problem))
        case _:
            append("Relu", [])
    kind = TYPES[case.dtype]
    outputs = [helper.make_tensor_value_info(names[-1], kind, problem.output_shape)]
    if case.passname == "forward_indices":
        outputs.append(helper.make_tensor_value_info("indices", TensorProto.INT64, problem.output_shape))
    constants = [numpy_helper.from_array(data[name], name) for name in ("weight", "bias") if name in data]
    inputs = [helper.make_tensor_value_info("x", kind, problem.input_shape)]
    graph = helper.make_graph(nodes, "case", inputs, outputs, constants)
    # An old file format, which every release of the runtimes reads.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    serialised: bytes = made.SerializeToString()
    return serialised


def conv_attributes(problem: ConvProblem) -> dict[str, Any]:
    return {
        "kernel_shape": problem.kernel,
        "strides": problem.stride,
        "pads": problem.padding * 2,
        "dilations": problem.dilation,
        "group": problem.groups,
    }


def pool_attributes(problem: PoolProblem) -> dict[str, Any]:
    return {
        "kernel_shape": problem.kernel,
        "strides": problem.stride,
        "pads": problem.padding * 2,
        "ceil_mode": int(problem.ceil_mode),
    }
