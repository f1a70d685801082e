"""What this machine runs, and why: threads, instruction set, and the plan of every operation."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from . import _cpu, cuda, ops

__all__ = [
    "CudaPlan",
    "Explanation",
    "Plan",
    "explain",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
]


def get_num_threads() -> int:
    """Return how many threads an operation may use.

    The first of these that says something decides: `set_num_threads`, the environment variables ``CONVX_NUM_THREADS``
    and ``OMP_NUM_THREADS``, the processors that this process may run on and their quota. Small problems use fewer
    threads, and a forked child uses one until it calls `set_num_threads`. Results do not depend on the number, not in a
    single bit.

    Examples
    --------
    >>> import convx
    >>> convx.get_num_threads() >= 1
    True
    """
    return _cpu.get_num_threads()


def set_num_threads(n: int) -> None:
    """Let every operation of this process use up to `n` threads.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ShapeError
        Where `n` is less than 1.
    TypeError
        Where `n` is not an int.

    Examples
    --------
    >>> import convx
    >>> before = convx.get_num_threads()
    >>> convx.set_num_threads(2)
    >>> convx.get_num_threads()
    2
    >>> convx.set_num_threads(before)
    """
    _cpu.set_num_threads(n)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use up to `n` threads inside a ``with`` block, then as many as before.

    The number belongs to the process: blocks in several Python threads at once overwrite each other's.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ShapeError, TypeError
        As `set_num_threads` does.

    Examples
    --------
    >>> import convx
    >>> with convx.threads(1):
    ...     convx.get_num_threads()
    1
    """
    before = _cpu.get_num_threads()
    _cpu.set_num_threads(n)
    try:
        yield
    finally:
        _cpu.set_num_threads(before)


def show_config() -> None:
    """Print what runs here and why: versions, instruction set, processor, threads, compiler, CUDA devices.

    The instruction set is the best one that the processor has, or the one that the environment variable ``CONVX_ISA``
    names.

    Examples
    --------
    >>> import convx
    >>> convx.show_config()  # doctest: +ELLIPSIS
    convx ...
    """
    config = _cpu.config()
    features = [name for name, present in config["cpu_features"].items() if present]
    kib = {name: size // 1024 for name, size in config["cache_bytes"].items()}
    caches = [f"{name} {size} KiB" if size < 1024 else f"{name} {size // 1024} MiB" for name, size in kib.items()]
    idle = "those of PyTorch" if config["uses_team"] else f"idle ones poll for {config['spin_us']} us"
    lines = {
        f"convx {config['version']}": f"Python {platform.python_version()}, NumPy {np.__version__}",
        "instruction set": f"{config['isa']} ({config['isa_reason']}); this machine runs {', '.join(config['isas'])}",
        "processor": f"{config['cpu']}; {', '.join(features) or 'nothing beyond the baseline'}",
        "caches": ", ".join(caches),
        "threads": f"{config['threads']} ({config['threads_reason']}), {idle}",
        "compiler": config["compiler"],
    }
    devices = [f"{index}: {cuda.device_name(index)}" for index in range(cuda.device_count())]
    lines["CUDA"] = "; ".join(devices) or f"cannot be used: {cuda.unavailable_reason()}"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


@dataclass(frozen=True)
class Plan:
    """How one pass of an operation would run.

    Attributes
    ----------
    name : str
        The pass: ``"forward"``, ``"grad_input"``, ...
    algorithm, isa : str
        The loop nest, and the instruction set of its kernels.
    tile, block : str
        What stays in registers, and what stays in cache.
    tasks, threads : int
        Independent parts of the work, and the threads that would take them.
    scratch_bytes : int
        Memory beside the arrays.
    flops, bytes : int
        Multiplications and additions of the direct sum, and array bytes read and written once.
    reason : str
        Why this algorithm.

    Examples
    --------
    >>> import convx
    >>> plan, = convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> plan.name, plan.flops
    ('forward', 1849688064)
    """

    name: str
    algorithm: str
    isa: str
    tile: str
    block: str
    tasks: int
    threads: int
    scratch_bytes: int
    flops: int
    bytes: int
    reason: str

    def __str__(self) -> str:
        lines = {
            "tile": self.tile,
            "block": self.block,
            "tasks": f"{self.tasks} on {self.threads} thread{'s' * (self.threads != 1)}",
            "scratch": f"{_si(self.scratch_bytes)}B",
            "work": f"{_si(self.flops)}FLOP, {_si(self.bytes)}B",
            "reason": self.reason,
        }
        body = (f"    {name:<8} {value}" for name, value in lines.items() if value)
        return "\n".join([f"{self.name}: {self.algorithm}, {self.isa}", *body])


@dataclass(frozen=True)
class CudaPlan:
    """How one pass of an operation would run on a CUDA device, the same on every one.

    Attributes
    ----------
    name : str
        The pass: ``"forward"``, ``"grad_input"``, ...
    algorithm, precision : str
        The method, and how its numbers are multiplied and summed.
    tile : str
        What one block of threads computes.
    parts, blocks : int
        Into how many parts a sum is cut, and the blocks of the largest launch.
    workspace_bytes : int
        Memory beside the arrays, from the allocator of the arrays' library.
    flops, bytes : int
        Multiplications and additions of the direct sum, and array bytes read and written once.
    reason : str
        Why this tile and these parts.
    """

    name: str
    algorithm: str
    precision: str
    tile: str
    parts: int
    blocks: int
    workspace_bytes: int
    flops: int
    bytes: int
    reason: str

    def __str__(self) -> str:
        lines = {
            "tile": self.tile,
            "blocks": f"{self.blocks} in the largest launch, {self.parts} part{'s' * (self.parts != 1)} of a sum",
            "workspace": f"{_si(self.workspace_bytes)}B",
            "work": f"{_si(self.flops)}FLOP, {_si(self.bytes)}B",
            "reason": self.reason,
        }
        body = (f"    {name:<9} {value}" for name, value in lines.items() if value)
        return "\n".join([f"{self.name}: {self.algorithm}, {self.precision}, CUDA", *body])


PlanT = TypeVar("PlanT", Plan, CudaPlan)


class Explanation(tuple[PlanT, ...]):
    """The plans of an operation, one `Plan` or `CudaPlan` for each pass; it prints as text.

    Examples
    --------
    >>> import convx
    >>> plans = convx.explain("conv2d_backward", (8, 64, 56, 56), (64, 64, 3, 3), output_mask=(True, True, False))
    >>> [plan.name for plan in plans]
    ['grad_input', 'grad_weight']
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


@overload
def explain(
    op: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int] | int | None = ...,
    *args: Any,
    dtype: npt.DTypeLike = ...,
    device: Literal["cpu"] = ...,
    **options: Any,
) -> Explanation[Plan]: ...


@overload
def explain(
    op: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int] | int | None = ...,
    *args: Any,
    dtype: npt.DTypeLike = ...,
    device: Literal["cuda"],
    **options: Any,
) -> Explanation[CudaPlan]: ...


def explain(
    op: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int] | int | None = None,
    *args: Any,
    dtype: npt.DTypeLike = "float32",
    device: str = "cpu",
    **options: Any,
) -> Explanation[Any]:
    """Tell what an operation would run on this machine with the present settings, and why; nothing is computed.

    Parameters
    ----------
    op : str
        The name of the function: ``"conv2d"``, ``"conv_transpose2d"``, ``"relu"``, ``"max_pool2d"``,
        ``"conv2d_relu_max_pool2d"``, or one of these with ``_backward``; ``"conv2d_grad_norms"``.
    input_shape : sequence of int
        The shape of `input` (for ReLU, of its array), in the order of the layout.
    weight_shape : sequence of int, optional
        The shape of `weight`, (K, C/G, R, S), for the operations that have one; (C, K/G, R, S) for a transposed
        convolution. Pooling takes its `kernel_size` here.
    *args, **options
        The options of the function itself, in its order and with its defaults: ``stride, padding, ...``.
    dtype : dtype, default float32
        Of all arrays; with ``device="cuda"`` also ``"float16"`` and ``"bfloat16"``.
    device : {"cpu", "cuda"}, default "cpu"
        Where the arrays would lie. Plans for CUDA need convx built with it, but no GPU.

    Returns
    -------
    Explanation
        A tuple with one `Plan` for each pass, one `CudaPlan` with ``device="cuda"``.

    Raises
    ------
    ShapeError, TypeError
        As the function itself does for such shapes and options.
    RuntimeError
        Where plans for CUDA are asked for and convx was built without it.

    Examples
    --------
    >>> import convx
    >>> print(convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1))  # doctest: +ELLIPSIS
    forward: ...
        tile     ...
    """
    try:
        functions = _FUNCTIONS[op]
    except KeyError:
        raise _cpu.ShapeError(f"explain: op is {op!r}, expected one of {', '.join(_FUNCTIONS)}") from None
    if "pool" in op and "conv" not in op and weight_shape is not None:
        args = (weight_shape, *args)
    values = _bind(op, functions, args, options)
    operand = values.pop("kernel_size", weight_shape)
    name = "bfloat16" if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    if device == "cpu":
        ops.check_precision(op, values.get("precision", "ieee"))
        plans = _cpu.explain(op, input_shape, operand, values, name)
        return Explanation(Plan(name=plan.pop("pass"), **plan) for plan in plans)
    if device != "cuda":
        raise _cpu.ShapeError(f"explain: device is {device!r}, expected 'cpu' or 'cuda'")
    try:
        module = cuda.module()
    except ImportError as error:
        raise RuntimeError(f"explain: there are no plans for CUDA: {error}") from None
    plans = module.explain(op, input_shape, operand, values, name)
    return Explanation(CudaPlan(name=plan.pop("pass"), **plan) for plan in plans)


_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {name: (getattr(ops, name),) for name in ops.__all__}
# The options of this forward pass travel to its backward pass in `saved`.
_FUNCTIONS["conv2d_relu_max_pool2d_backward"] = (ops.conv2d_relu_max_pool2d, ops.conv2d_relu_max_pool2d_backward)

_ARRAYS = {
    "input",
    "weight",
    "bias",
    "grad_output",
    "output",
    "out",
    "saved",
    "indices_or_codes",
    "input_shape",
    "weight_shape",
}


def _bind(
    op: str, functions: tuple[Callable[..., Any], ...], args: tuple[Any, ...], options: dict[str, Any]
) -> dict[str, Any]:
    """Return every option of these functions: what is given, otherwise the default."""
    parameters = [parameter for function in functions for parameter in inspect.signature(function).parameters.values()]
    signature = inspect.Signature([parameter for parameter in parameters if parameter.name not in _ARRAYS])
    try:
        bound = signature.bind(*args, **options)
    except TypeError as error:
        raise TypeError(f"explain: {op}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _si(number: float) -> str:
    """Write a number with three digits and a decimal prefix: 1234567 is "1.23 M"."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.4g} T"


def _register_with_threadpoolctl() -> None:
    """Let ``threadpoolctl.threadpool_limits`` govern convx too, where threadpoolctl is imported before convx.

    Importing it from here would cost every other user 3 ms.
    """
    threadpoolctl = sys.modules.get("threadpoolctl")
    if threadpoolctl is None:
        return
    controller = type(
        "ConvxController",
        (threadpoolctl.LibController,),
        {
            "user_api": "convx",
            "internal_api": "convx",
            "filename_prefixes": (os.path.basename(_cpu.__file__).lower(),),
            "get_num_threads": lambda self: _cpu.get_num_threads(),
            "set_num_threads": lambda self, num_threads: _cpu.set_num_threads(num_threads),
            "get_version": lambda self: _cpu.config()["version"],
        },
    )
    threadpoolctl.register(controller)


_register_with_threadpoolctl()
