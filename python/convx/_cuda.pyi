"""The compiled CUDA module: as convx._cpu's functions, behind the library of the arrays (convx._devices)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ._devices import Library
from ._types import Activation, Layout, OutputMask, Padding, PaddingMode, Pair, Precision

def conv2d(
    library: Library,
    input: Any,
    weight: Any,
    bias: Any | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    activation: Activation,
    layout: Layout,
    algorithm: str,
    precision: Precision,
    out: Any | None,
    /,
) -> Any: ...
def conv2d_backward(
    library: Library,
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    precision: Precision,
    output_mask: OutputMask,
    per_sample: bool,
    /,
) -> tuple[Any | None, Any | None, Any | None]: ...
def conv2d_grad_norms(
    library: Library,
    grad_output: Any,
    input: Any,
    weight_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    padding_mode: PaddingMode,
    padding_value: float,
    layout: Layout,
    algorithm: str,
    precision: Precision,
    /,
) -> tuple[Any, Any]: ...
def conv_transpose2d(
    library: Library,
    input: Any,
    weight: Any,
    bias: Any | None,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    precision: Precision,
    out: Any | None,
    /,
) -> Any: ...
def conv_transpose2d_backward(
    library: Library,
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    layout: Layout,
    algorithm: str,
    precision: Precision,
    output_mask: OutputMask,
    /,
) -> tuple[Any | None, Any | None, Any | None]: ...
def relu(library: Library, input: Any, return_mask: bool, out: Any | None, /) -> Any: ...
def relu_backward(library: Library, grad_output: Any, output: Any, out: Any | None, /) -> Any: ...
def max_pool2d(
    library: Library,
    input: Any,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    return_indices: bool,
    return_codes: bool,
    /,
) -> Any: ...
def max_pool2d_backward(
    library: Library,
    grad_output: Any,
    indices_or_codes: Any,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair | None,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: Layout,
    /,
) -> Any: ...
def conv2d_relu_max_pool2d(
    library: Library,
    input: Any,
    weight: Any,
    bias: Any | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    pool_kernel_size: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    layout: Layout,
    precision: Precision,
    /,
) -> tuple[Any, Any]: ...
def conv2d_relu_max_pool2d_backward(
    library: Library,
    grad_output: Any,
    input: Any,
    weight: Any,
    codes: Any,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    pool_kernel_size: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    layout: Layout,
    precision: Precision,
    output_mask: OutputMask,
    /,
) -> tuple[Any | None, Any | None, Any | None]: ...
def explain(
    op: str,
    input_shape: Sequence[int],
    weight_shape_or_kernel_size: Sequence[int] | int | None,
    options: Mapping[str, Any],
    dtype: str,
    /,
) -> list[dict[str, Any]]: ...
def device_count() -> int: ...
def unavailable_reason() -> str: ...
def device_name(device: int, /) -> str: ...
