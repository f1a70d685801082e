"""Settings and plans: threads, default algorithm, instruction set, and how every operation would run."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from . import _cpu, cuda, ops
from ._types import check_precision

__all__ = [
    "CudaPlan",
    "Explanation",
    "Plan",
    "default_algorithm",
    "explain",
    "get_default_algorithm",
    "get_num_threads",
    "set_default_algorithm",
    "set_num_threads",
    "show_config",
    "threads",
]


def get_num_threads() -> int:
    """Return how many threads an operation may use.

    The first of these that is set determines the number: `set_num_threads`, the environment variables
    ``CONVX_NUM_THREADS`` and ``OMP_NUM_THREADS``, the processors that this process may run on and their quota. Small
    problems use fewer threads. A forked child uses one until it calls `set_num_threads`. Results have the same bits for
    any number.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> import convx
    >>> convx.get_num_threads() >= 1
    True
    """
    return _cpu.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the largest number of threads that an operation of this process uses.

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
    """Use up to `n` threads inside a ``with`` block, then the previous number.

    The number belongs to the process: concurrent blocks in several Python threads overwrite each other's.

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


def get_default_algorithm() -> str:
    """Return what ``algorithm="auto"`` means in this process: ``"auto"`` or ``"direct"``.

    The first of these that is set determines it: `set_default_algorithm`, the environment variable
    ``CONVX_ALGORITHM``, and ``"auto"``.

    Returns
    -------
    {"auto", "direct"}

    Raises
    ------
    RuntimeError
        Where ``CONVX_ALGORITHM`` is neither ``auto`` nor ``direct``.

    Examples
    --------
    >>> import convx
    >>> convx.get_default_algorithm()
    'auto'
    """
    return _cpu.get_default_algorithm()


def set_default_algorithm(algorithm: Literal["auto", "direct"]) -> None:
    """Set what ``algorithm="auto"`` means in this process: the direct sum, or again the fastest method.

    It applies to every call that names no other algorithm: functions, layers, the fused operation, `convx.torch` and
    converted models, `convx.jax`. A pass reads the setting when it runs. A backward pass therefore uses the setting at
    that time, and so does a compiled graph of PyTorch; a function that `jax.jit` has traced keeps the setting at the
    time of its tracing.

    Parameters
    ----------
    algorithm : {"auto", "direct"}
        ``"direct"`` turns off Winograd's method, whose error follows the largest values of a tile of 6x6 pixels; the
        page on accuracy tells who needs that. 3x3 convolutions with stride 1 then take two to three times as long.

    Raises
    ------
    ShapeError
        Where `algorithm` is another string.
    TypeError
        Where it is not a string.

    Examples
    --------
    >>> import convx
    >>> convx.set_default_algorithm("direct")
    >>> convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1)[0].algorithm
    'implicit-gemm'
    >>> convx.set_default_algorithm("auto")
    >>> convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1)[0].algorithm
    'winograd-tiles'
    """
    _cpu.set_default_algorithm(algorithm)


@contextmanager
def default_algorithm(algorithm: Literal["auto", "direct"]) -> Iterator[None]:
    """Set what ``algorithm="auto"`` means inside a ``with`` block, then restore the previous setting.

    The setting belongs to the process: concurrent blocks in several Python threads overwrite each other's.

    Parameters
    ----------
    algorithm : {"auto", "direct"}
        As in `set_default_algorithm`.

    Raises
    ------
    ShapeError, TypeError
        As `set_default_algorithm` does.

    Examples
    --------
    >>> import convx
    >>> with convx.default_algorithm("direct"):
    ...     convx.get_default_algorithm()
    'direct'
    """
    before = _cpu.get_default_algorithm()
    _cpu.set_default_algorithm(algorithm)
    try:
        yield
    finally:
        _cpu.set_default_algorithm(before)


def show_config() -> None:
    """Print versions, instruction set, processor, threads, compiler and CUDA devices, with reasons.

    The instruction set is the best one of the processor, or the one that the environment variable ``CONVX_ISA`` names;
    the algorithm is what ``"auto"`` means (`set_default_algorithm`).

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
        "algorithm": f"{config['algorithm']} ({config['algorithm_reason']})",
        "compiler": config["compiler"],
    }
    devices = [f"{index}: {cuda.device_name(index)}" for index in range(cuda.device_count())]
    lines["CUDA"] = "; ".join(devices) or f"cannot be used: {cuda.unavailable_reason()}"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


@dataclass(frozen=True)
class Candidate:
    """One of the methods of a pass.

    Attributes
    ----------
    name : str
        For convolutions the value of ``algorithm=`` that selects it.
    supported : bool
        Whether it can compute the problem.
    reason : str
        ``"chosen"``, or why it was not.
    microseconds : float
        Predicted for one image on one thread; 0 where the method is not supported.
    work : dict of str to float
        What the method does for one image, by kind (``csrc/cpu/conv2d/cost.h``): the prediction is the sum of these
        counts, each times its price.

    Examples
    --------
    >>> import convx
    >>> plan, = convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 5, 5), padding=2)
    >>> print(next(each for each in plan.candidates if each.name == "winograd-tiles"))
    winograd-tiles: needs a window of 3 x 3 without stride and dilation
    """

    name: str
    supported: bool
    reason: str
    microseconds: float = 0.0
    work: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """How one pass of an operation would run.

    Attributes
    ----------
    name : str
        The pass: ``"forward"``, ``"grad_input"``, ...
    algorithm, isa : str
        The method, and the instruction set of its kernels.
    tile, block : str
        The register tile, and the block in cache.
    tasks, threads : int
        Independent tasks, and the threads that would run them.
    scratch_bytes : int
        Scratch memory.
    flops, bytes : int
        Multiplications and additions of the direct sum; array bytes, each read or written once.
    reason : str
        Why this method.
    candidates : tuple of Candidate
        Every method of the pass, for convolutions and max-pooling.

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
    candidates: tuple[Candidate, ...] = ()

    def __str__(self) -> str:
        lines = {
            "tile": self.tile,
            "block": self.block,
            "tasks": f"{self.tasks} on {self.threads} thread{'s' * (self.threads != 1)}",
            "scratch": f"{_si(self.scratch_bytes)}B",
            "work": f"{_si(self.flops)}FLOP, {_si(self.bytes)}B",
            "reason": self.reason,
        }
        body = [f"    {name:<8} {value}" for name, value in lines.items() if value]
        others = [f"    {'not' if i == 0 else '':<8} {each}" for i, each in enumerate(self._others())]
        return "\n".join([f"{self.name}: {self.algorithm}, {self.isa}", *body, *others])

    def _others(self) -> list[Candidate]:
        return [each for each in self.candidates if each.name != self.algorithm]


@dataclass(frozen=True)
class CudaPlan:
    """How one pass of an operation would run on a CUDA device; the plan is the same for all devices.

    Attributes
    ----------
    name : str
        The pass: ``"forward"``, ``"grad_input"``, ...
    algorithm, precision : str
        The method, and the precision of its products and sums.
    tile : str
        The tile of one thread block.
    parts, blocks : int
        The slices of a reduction (split-K), and the thread blocks of the largest launch.
    workspace_bytes : int
        Scratch memory from the allocator of the arrays' library.
    flops, bytes : int
        Multiplications and additions of the direct sum; array bytes, each read or written once.
    reason : str
        Why this tile and this split-K.

    Examples
    --------
    ::

        plan, = convx.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, device="cuda")
        print(plan.tile, plan.workspace_bytes)
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
            "blocks": f"{self.blocks} in the largest launch, split-K {self.parts}",
            "workspace": f"{_si(self.workspace_bytes)}B",
            "work": f"{_si(self.flops)}FLOP, {_si(self.bytes)}B",
            "reason": self.reason,
        }
        body = (f"    {name:<9} {value}" for name, value in lines.items() if value)
        return "\n".join([f"{self.name}: {self.algorithm}, {self.precision}, CUDA", *body])


PlanT = TypeVar("PlanT", Plan, CudaPlan)


class Explanation(tuple[PlanT, ...]):
    """The plans of an operation: a tuple of one `Plan` or `CudaPlan` for each pass, printed as text.

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
    """Describe how an operation would run on this machine with the present settings, and why; nothing is computed.

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
        The options of the function, in its order and with its defaults: ``stride, padding, ...``. For
        ``"max_pool2d_backward"`` also `return_indices` or `return_codes`, of the forward pass. The `output_mask` of a
        backward function selects the plans, as it selects the gradients.
    dtype : dtype, default float32
        The dtype of all arrays; with ``device="cuda"`` also ``"float16"`` and ``"bfloat16"``.
    device : {"cpu", "cuda"}, default "cpu"
        The device of the arrays. Plans for CUDA need convx built with CUDA, but no GPU.

    Returns
    -------
    Explanation
        A tuple with one `Plan` for each pass, one `CudaPlan` with ``device="cuda"``.

    Raises
    ------
    ShapeError, TypeError
        As the function itself does for such shapes and options.
    RuntimeError
        Where `device` is ``"cuda"`` and convx was built without CUDA.

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
        check_precision(op, values.get("precision", "ieee"))
        plans = _cpu.explain(op, input_shape, operand, values, name)
        return Explanation(_plan(**plan) for plan in plans)
    if device != "cuda":
        raise _cpu.ShapeError(f"explain: device is {device!r}, expected 'cpu' or 'cuda'")
    try:
        module = cuda.module()
    except ImportError as error:
        raise RuntimeError(f"explain: there are no plans for CUDA: {error}") from None
    plans = module.explain(op, input_shape, operand, values, name)
    return Explanation(CudaPlan(name=plan.pop("pass"), **plan) for plan in plans)


def _plan(candidates: list[tuple[str, bool, str, float, dict[str, float]]], **plan: Any) -> Plan:
    return Plan(name=plan.pop("pass"), **plan, candidates=tuple(Candidate(*each) for each in candidates))


_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {name: (getattr(ops, name),) for name in ops.__all__}
# The options of these forward passes, which `saved` or the indices carry to the backward pass.
_FUNCTIONS["max_pool2d_backward"] = (ops.max_pool2d, ops.max_pool2d_backward)
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
    """Return every option of these functions, with defaults for those not given."""
    parameters = {
        name: parameter
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _ARRAYS
    }
    signature = inspect.Signature(list(parameters.values()))
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
    """Make ``threadpoolctl.threadpool_limits`` control convx too, where threadpoolctl is imported before convx.

    An import from here would cost every other user 3 ms.
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
