"""The functions of `convx.torch`: NCHW in shape, recorded by autograd, any memory format."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._types import Activation, Padding, PaddingMode, Pair, Precision
from . import _conv2d_calls, _conv2d_relu_max_pool2d, _conv_transpose2d, _max_pool2d, _options, _relu

__all__ = ["conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "relu"]

_hand_over: Any = handle_torch_function


def _overriding(*values: object) -> bool:
    """Tell whether a mode, or something that is no tensor, decides what becomes of a call.

    A proxy of torch.fx records it. A mode sees one call then, as of PyTorch's functions, not all that a kernel asks
    tensors for: under `torch.device` that takes half of the time. Subclasses of tensors decide when the call reaches
    the dispatcher.
    """
    return has_torch_function_variadic(*values) and (
        torch._C._is_torch_function_mode_enabled()
        or any(hasattr(type(each), "__torch_function__") and not isinstance(each, Tensor) for each in values)
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    activation: Activation = None,
    algorithm: str = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Convolve images with kernels, as `torch.nn.functional.conv2d` does and `convx.conv2d` describes.

    Parameters
    ----------
    input : Tensor of float32 or float64, shape (N, C, H, W) or (C, H, W)
        Any strides. One that lies as channels_last runs through the NHWC kernels without a copy. On CUDA also float16
        and bfloat16.
    weight : Tensor, shape (K, C/G, R, S)
        The kernels, of the dtype and on the device of `input`.
    bias : Tensor, shape (K,), optional
        Added to every pixel of an output channel.
    stride, padding, dilation, groups, padding_mode, padding_value, activation, algorithm, precision
        As in `convx.conv2d`: PyTorch's forms, and more.

    Returns
    -------
    Tensor, shape (N, K, P, Q) or (K, P, Q)
        It lies as `input` does. Gradients of every order are recorded, and forward-mode ones.

    Raises
    ------
    ShapeError
        For shapes that do not fit each other, options out of range, and tensors on different devices.
    TypeError
        For what is no dense tensor, dtypes that differ, and dtypes that the device does not compute with.

    Notes
    -----
    Under ``torch.autocast("cpu")`` the result has the dtype of autocast, as PyTorch's has; it is computed in float32
    and rounded once, because convx has no 16-bit arithmetic on the CPU. Under ``torch.autocast("cuda")`` tensors are
    converted to its dtype. float64 stays as it is.

    References
    ----------
    Those of `convx.conv2d`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> x = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> y = convx.torch.conv2d(x, torch.ones(1, 1, 3, 3), padding=1)
    >>> y[0, 0]
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]], grad_fn=<SelectBackward0>)
    >>> y.sum().backward()
    >>> x.grad[0, 0]
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """
    if _overriding(input, weight, bias):
        words = dict(
            padding_mode=padding_mode,
            padding_value=padding_value,
            activation=activation,
            algorithm=algorithm,
            precision=precision,
        )
        args = (input, weight, bias, stride, padding, dilation, groups)
        return _hand_over(conv2d, args[:3], *args, **words)  # type: ignore[no-any-return]
    return _conv2d_calls.conv2d(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        padding_value,
        activation,
        "NCHW",
        algorithm,
        precision,
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    algorithm: str = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Convolve transposed, as `torch.nn.functional.conv_transpose2d` does: the adjoint of `conv2d` in its input.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (C, H, W)
        As in `conv2d`.
    weight : Tensor, shape (C, K/G, R, S)
        The weight of the convolution from K to C channels whose adjoint this is.
    bias : Tensor, shape (K,), optional
        Added to every pixel of an output channel.
    stride, padding, groups, dilation
        Of that convolution, in all its forms: padding is what is cut off here. ``"same"`` makes the output
        ``stride * H``.
    output_padding : int or (int, int), default 0
        Rows and columns at the bottom and right that the convolution would not have seen; smaller than the stride or
        the dilation.
    algorithm, precision
        As in `conv2d`.

    Returns
    -------
    Tensor, shape (N, K, P, Q) or (K, P, Q)
        ``P = (H-1)*stride + dilation*(R-1) + 1 - top - bottom + output_padding``, Q alike. It lies as `input` does.

    Raises
    ------
    ShapeError, TypeError
        As `conv2d` does.

    Notes
    -----
    Under autocast as `conv2d`.

    References
    ----------
    Dumoulin, Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285), chapter 4.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> x = torch.tensor([[[[1.0, 10.0]]]])
    >>> convx.torch.conv_transpose2d(x, torch.tensor([[[[1.0, 2.0, 3.0]]]]), stride=2)
    tensor([[[[ 1.,  2., 13., 20., 30.]]]])
    """
    if _overriding(input, weight, bias):
        words = dict(algorithm=algorithm, precision=precision)
        args = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return _hand_over(conv_transpose2d, args[:3], *args, **words)  # type: ignore[no-any-return]
    options = (stride, padding, output_padding, groups, dilation)
    return _conv_transpose2d.conv_transpose2d(input, weight, bias, *options, "NCHW", algorithm, precision)


def relu(input: Tensor) -> Tensor:
    """Return ``input`` where it is not <= 0, else 0, as `torch.relu` does: NaN stays NaN.

    Parameters
    ----------
    input : Tensor of float32 or float64, any shape and strides
        On CUDA also float16 and bfloat16.

    Returns
    -------
    Tensor of the shape, dtype and memory format of `input`
        The backward pass keeps this tensor, not `input`. Gradients of every order are recorded.

    Raises
    ------
    TypeError
        As `conv2d` does. Under ``torch.autocast("cpu")`` 16-bit tensors are taken too, and their dtype is kept.

    References
    ----------
    Those of `convx.relu`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> convx.torch.relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if _overriding(input):
        return _hand_over(relu, (input,), input)  # type: ignore[no-any-return]
    return _relu.relu(input)  # type: ignore[no-any-return]


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    return_indices: bool,
) -> Any: ...


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Take the largest value of each window, as `torch.nn.functional.max_pool2d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (C, H, W)
        As in `conv2d`.
    kernel_size, stride, padding, dilation, ceil_mode
        As in `convx.max_pool2d`: PyTorch's forms, and more. Padding is at most half of the window, as PyTorch's.
    return_indices : bool, default False
        Return int64 indices ``h*W + w`` too, as `torch.nn.functional.max_unpool2d` takes them.

    Returns
    -------
    output : Tensor, shape (N, C, P, Q) or (C, P, Q)
        It lies as `input` does. Recording keeps one byte for each element of it (eight with indices, and where windows
        have more than 255 taps). Gradients of every order are recorded.
    indices : Tensor of int64, the shape of `output`
        Only with `return_indices`; then the result is a pair.

    Raises
    ------
    ShapeError, TypeError
        As `convx.max_pool2d` does. Under ``torch.autocast("cpu")`` 16-bit tensors are taken too; they keep their dtype.

    References
    ----------
    Those of `convx.max_pool2d`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> x = torch.tensor([[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]])
    >>> convx.torch.max_pool2d(x, 2, return_indices=True)
    (tensor([[[4., 8.]]]), tensor([[[5, 7]]]))
    """
    if _overriding(input):
        words = dict(dilation=dilation, ceil_mode=ceil_mode, return_indices=return_indices)
        return _hand_over(max_pool2d, (input,), input, kernel_size, stride, padding, **words)
    _options.expect_half_windows("max_pool2d", padding, kernel_size, dilation)
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool2d.max_pool2d(input, *options, "NCHW", return_indices, False)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = 0,
    precision: Precision = "ieee",
) -> Tensor:
    """Compute ``max_pool2d(relu(conv2d(input, weight, bias)))`` as one operation.

    The output of the convolution is never stored. Recording keeps the input, the weight and one byte for each element
    of the result.

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, precision
        As in `conv2d`; outside the image are zeros.
    pool_kernel_size, pool_stride, pool_padding
        `kernel_size`, `stride` and `padding` of `max_pool2d`; the window has at most 255 taps.

    Returns
    -------
    Tensor, shape (N, K, P', Q') or (K, P', Q')
        It lies as `input` does. Gradients of every order are recorded; the second ones go through the three parts.

    Raises
    ------
    ShapeError, TypeError
        As `conv2d` and `max_pool2d` do.

    Notes
    -----
    Under autocast as `conv2d`.

    References
    ----------
    Those of `convx.conv2d_relu_max_pool2d`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> x, w = torch.randn(8, 3, 32, 32), torch.randn(16, 3, 3, 3, requires_grad=True)
    >>> y = convx.torch.conv2d_relu_max_pool2d(x, w, padding=1, pool_kernel_size=2)
    >>> y.shape, y.requires_grad
    (torch.Size([8, 16, 16, 16]), True)
    """
    if _overriding(input, weight, bias):
        words: dict[str, Any] = dict(
            pool_kernel_size=pool_kernel_size, pool_stride=pool_stride, pool_padding=pool_padding, precision=precision
        )
        args = (input, weight, bias, stride, padding, dilation, groups)
        return _hand_over(conv2d_relu_max_pool2d, args[:3], *args, **words)  # type: ignore[no-any-return]
    _options.expect_half_windows("conv2d_relu_max_pool2d", pool_padding, pool_kernel_size)
    options = (stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, "NCHW", precision)
    return _conv2d_relu_max_pool2d.conv2d_relu_max_pool2d(input, weight, bias, *options)[0]
