"""ncnn on the CPU: a net of one layer for each copy of the weights, forward only, IEEE float32."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import ncnn
import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.problems import ConvProblem, PoolProblem
from benchmarks.runners import Calls, Runner, Unsupported, inference_only

# The flag of float32 before the weights of a layer in the file of a model.
FLOAT32 = bytes(4)
LOW_PRECISION = (
    "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage",
)  # fmt: skip


class NcnnRunner(Runner):
    outputs = "allocated by ncnn for each image; copied into one NumPy array where there is more than one image"

    def describe(self) -> dict[str, Any]:
        return {"version": ncnn.__version__, "threads": self.threads, "layout": "NCHW in and out, weights packed ahead"}

    def logical(self, case: Case, result: Any) -> Array:
        array: Array = result
        return array

    def calls(self, case: Case, arrays: dict[str, Array], copies: int) -> Calls:
        inference_only(case)
        problem = case.problem
        if isinstance(problem, PoolProblem):
            layer, weights = pool_layer(problem), b""
        else:
            assert isinstance(problem, ConvProblem)
            layer = conv_layer(problem, case.passname == "forward_relu")
            weights = FLOAT32 + arrays["weight"].tobytes() + arrays["bias"].tobytes()
        nets = [self.net(layer, weights) for _ in range(copies)]
        x = arrays["input"]
        if len(x) == 1:
            return [partial(one_image, net, x) for net in nets]
        return [partial(images, net, x, problem.output_shape) for net in nets]

    def net(self, layer: str, weights: bytes) -> Any:
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        for option in LOW_PRECISION:
            setattr(net.opt, option, False)
        failed = net.load_param_mem(f"7767517\n2 2\nInput x 0 1 x\n{layer}\n")
        # A file, because a net that reads from memory keeps pointers into it.
        with tempfile.NamedTemporaryFile() as file:
            file.write(weights)
            file.flush()
            failed = failed or net.load_model(file.name)
        if failed:
            raise RuntimeError(f"ncnn does not load {layer!r}")
        return net


def one_image(net: Any, x: Array) -> Array:
    return run(net, x[0])[np.newaxis]


def images(net: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """One run for each image, since the blobs of a net have no batch."""
    output = np.empty(shape, x.dtype)
    for image, place in zip(x, output, strict=True):
        place[...] = run(net, image)
    return output


def run(net: Any, image: Array) -> Array:
    extractor = net.create_extractor()
    extractor.input("x", ncnn.Mat(image))
    _, output = extractor.extract("y")
    array: Array = output.numpy()
    return array


def parameters(values: dict[int, int]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def conv_layer(problem: ConvProblem, relu: bool) -> str:
    """The line of the layer in ncnn's text format, with the numbers that its parameters have there."""
    (r, s), (vertical, horizontal), (top, left) = problem.kernel, problem.stride, problem.padding
    values = {
        0: problem.k, 1: s, 11: r, 2: problem.dilation[1], 12: problem.dilation[0], 3: horizontal, 13: vertical,
        4: left, 15: left, 14: top, 16: top, 5: 1, 6: problem.k * problem.c // problem.groups * r * s, 9: int(relu),
    }  # fmt: skip
    if problem.groups == 1:
        return f"Convolution y 1 1 x y {parameters(values)}"
    return f"ConvolutionDepthWise y 1 1 x y {parameters({**values, 7: problem.groups})}"


def pool_layer(problem: PoolProblem) -> str:
    """The same for pooling; raises Unsupported where ncnn's rounding up has another size."""
    (r, s), (vertical, horizontal), (top, left) = problem.kernel, problem.stride, problem.padding
    padded = zip(problem.input_shape[2:], problem.kernel, problem.stride, problem.padding, strict=True)
    up = tuple(-(-(size + 2 * pad - kernel) // stride) + 1 for size, kernel, stride, pad in padded)
    if problem.ceil_mode and up != problem.output_shape[2:]:
        raise Unsupported("with ceil_mode it keeps windows that start in the padding")
    values = {
        0: 0, 1: s, 11: r, 2: horizontal, 12: vertical, 3: left, 14: left, 13: top, 15: top,
        5: 0 if problem.ceil_mode else 1,
    }  # fmt: skip
    return f"Pooling y 1 1 x y {parameters(values)}"


def create(variant: str, threads: int) -> Runner:
    return NcnnRunner(variant, threads)
