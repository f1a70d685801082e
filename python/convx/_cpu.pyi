"""The compiled module: positional arguments, and every check of shapes, options and dtypes."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypedDict, final

import numpy as np
import numpy.typing as npt

from ._types import Activation, FloatT, Gradients, Layout, OutputMask, Padding, PaddingMode, Pair

class ShapeError(ValueError, RuntimeError): ...

@final
class PreparedWeight:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def weight(self) -> npt.NDArray[np.floating[Any]]: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def isa(self) -> str: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def prepare_weight(
    weight: npt.NDArray[FloatT],
    input_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    /,
) -> PreparedWeight: ...
def conv2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT] | PreparedWeight,
    bias: npt.NDArray[FloatT] | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    activation: Activation,
    layout: Layout,
    algorithm: str,
    out: npt.NDArray[FloatT] | None,
    /,
) -> npt.NDArray[FloatT]: ...
def conv2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    output_mask: OutputMask,
    per_sample: bool,
    /,
) -> Gradients[FloatT]: ...
def conv2d_grad_norms(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    /,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def conv_transpose2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    bias: npt.NDArray[FloatT] | None,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    out: npt.NDArray[FloatT] | None,
    /,
) -> npt.NDArray[FloatT]: ...
def conv_transpose2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    output_mask: OutputMask,
    /,
) -> Gradients[FloatT]: ...
def relu(
    input: npt.NDArray[FloatT], return_mask: bool, out: npt.NDArray[FloatT] | None, /
) -> npt.NDArray[FloatT] | tuple[npt.NDArray[FloatT], npt.NDArray[np.uint8]]: ...
def relu_backward(
    grad_output: npt.NDArray[FloatT],
    output: npt.NDArray[FloatT] | npt.NDArray[np.uint8],
    out: npt.NDArray[FloatT] | None,
    /,
) -> npt.NDArray[FloatT]: ...
def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    return_indices: bool,
    return_codes: bool,
    /,
) -> npt.NDArray[FloatT] | tuple[npt.NDArray[FloatT], npt.NDArray[np.int64] | npt.NDArray[np.uint8]]: ...
def max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    indices_or_codes: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    /,
) -> npt.NDArray[FloatT]: ...
def conv2d_relu_max_pool2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    bias: npt.NDArray[FloatT] | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    pool_kernel_size: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    layout: Layout,
    /,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[np.uint8]]: ...
def conv2d_relu_max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    codes: npt.NDArray[np.uint8],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    pool_kernel_size: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    layout: Layout,
    output_mask: OutputMask,
    /,
) -> Gradients[FloatT]: ...
def resolve_conv2d(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    activation: Activation,
    layout: Layout,
    algorithm: str,
    /,
) -> tuple[tuple[int, ...], tuple[Any, ...]]: ...
def resolve_conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    /,
) -> tuple[tuple[int, ...], tuple[Any, ...]]: ...
def resolve_relu(input: Any, /) -> tuple[int, ...]: ...
def resolve_max_pool2d(
    input: Any,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    /,
) -> tuple[tuple[int, ...], tuple[Any, ...]]: ...
def resolve_conv2d_relu_max_pool2d(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    pool_kernel_size: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    layout: Layout,
    /,
) -> tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]: ...
def resolve_conv2d_layer(
    layer: str,
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    bias: bool,
    dtype: object,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    /,
) -> tuple[int, int, int, int]: ...
def resolve_conv_transpose2d_layer(
    layer: str,
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    bias: bool,
    dtype: object,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    /,
) -> tuple[int, int, int, int]: ...
def resolve_max_pool2d_layer(
    layer: str,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    /,
) -> tuple[int, int]: ...
def resolve_linear_layer(
    layer: str, in_features: int, out_features: int, bias: bool, dtype: object, /
) -> tuple[int, int]: ...
def truth(owner: str, name: str, value: object, /) -> bool: ...
def integer(owner: str, name: str, value: object, /) -> int: ...
def array_at(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], owner: object, /
) -> npt.NDArray[Any]: ...

entry_points: object

def operations_with(allocate: Callable[[tuple[int, ...], np.dtype[Any]], Any], /) -> SimpleNamespace: ...
def explain(
    op: str,
    input_shape: Sequence[int],
    weight_shape_or_kernel_size: Sequence[int] | int | None,
    options: Mapping[str, Any],
    dtype: str,
    /,
) -> list[dict[str, Any]]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def get_default_algorithm() -> str: ...
def set_default_algorithm(algorithm: str, /) -> None: ...
def use_team(parallel: int, thread_number: int, most_threads: int, /) -> None: ...
def set_isa(name: str, /) -> None: ...
def set_max_pool2d_method(name: str, /) -> None: ...

class _Config(TypedDict):
    version: str
    isa: str
    isa_reason: str
    isas: list[str]
    cpu: str
    cpu_features: dict[str, bool]
    cache_bytes: dict[str, int]
    threads: int
    threads_reason: str
    algorithm: str
    algorithm_reason: str
    uses_team: bool
    spin_us: int
    workspace_cached_bytes: int
    compiler: str

def config() -> _Config: ...
def workspace_release() -> None: ...
def fma_peak(dtype: str, seconds: float, /) -> float: ...
def copy_bandwidth(bytes: int, seconds: float, /) -> float: ...
