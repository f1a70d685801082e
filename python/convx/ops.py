"""The operations as functions: arrays in, arrays out.

The first argument selects the library and the device: NumPy arrays run on the CPU, CuPy arrays on their CUDA device,
PyTorch tensors on theirs, recorded by autograd (`convx.torch`). Work on CUDA follows the library's current stream. All
other arguments must be of the same library and on the same device, and so are the results. An ndarray below is also an
array of CuPy or PyTorch; on CUDA it may also be float16 or bfloat16, which are summed in float32. Shapes, options and
dtypes are checked once, in C++, before anything is computed or written.

Notation: N batch, C input channels, H W input size, K output channels, R S kernel size, P Q output size, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import _cpu, _devices
from ._cpu import PreparedWeight
from ._types import (
    Activation,
    FloatT,
    Gradients,
    Layout,
    OutputMask,
    Padding,
    PaddingMode,
    Pair,
    Precision,
    SavedConv2dReluMaxPool2d,
    check_precision,
)

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_norms",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "prepare_weight",
    "relu",
    "relu_backward",
]

_ALL = (True, True, True)


def conv2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT] | PreparedWeight,
    bias: npt.NDArray[FloatT] | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    out: npt.NDArray[FloatT] | None = None,
) -> npt.NDArray[FloatT]:
    r"""Convolve images with kernels: cross-correlation (the kernel is not flipped).

    .. math::
        \begin{aligned}
        y_{nkpq} &= b_k + \sum_{c,r,s} x_{n,\;gC/G+c,\;h,\;w} \, w_{kcrs}, \qquad g = \lfloor k / (K/G) \rfloor, \\
        h &= p \, \mathrm{stride}_h + r \, \mathrm{dilation}_h - \mathrm{top}, \\
        w &= q \, \mathrm{stride}_w + s \, \mathrm{dilation}_w - \mathrm{left}
        \end{aligned}

    Taps that fall outside the image under ``padding_mode="zeros"`` are skipped: an inf or NaN weight over the border
    adds nothing.

    Parameters
    ----------
    input : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
        The images, (N, H, W, C) or (H, W, C) with ``layout="NHWC"``. Any strides; no array is copied as a whole. N may
        be 0; C may be 0, which gives the bias alone.
    weight : ndarray or PreparedWeight, shape (K, C/G, R, S)
        The kernels, in this order for both layouts. A `PreparedWeight` is for inference; the result is the same.
    bias : ndarray, shape (K,), optional
        Added to every pixel of an output channel.
    stride, dilation : int or (int, int), default 1
        Distance between windows, and between the taps of a window: one number or (h, w).
    padding : int, (int, int), ((int, int), (int, int)) or str, default 0
        One number, (h, w), ((top, bottom), (left, right)), or a rule: ``"valid"`` pads nothing, ``"same"`` pads so that
        ``P = ceil(H / stride)`` with an odd pixel at the bottom/right, ``"same_lower"`` with it at the top/left.
    groups : int, default 1
        G: output channel k reads only the C/G input channels of its group.
    padding_mode : {"zeros", "constant", "reflect", "replicate", "circular"} or a pair of them, default "zeros"
        The values outside the image; a pair is (h, w).
    padding_value : float, default 0.0
        The value outside the image under ``"constant"``.
    activation : {None, "relu"}, default None
        Applied to the output before it is stored.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        Order of the axes of `input` and of the output. It is never guessed.
    algorithm : str, default "auto"
        ``"auto"``: the fastest method for an image of this size (`convx.explain` tells which; in float64 always a
        direct sum), or what `convx.set_default_algorithm` selects. ``"direct"``: every tap is multiplied, as in the
        formula. ``"winograd"``, for 3x3 kernels with stride and dilation 1: 4x4 outputs at a time by F(4x4, 3x3), with
        a quarter of the multiplications. Its error is 5e-6 of the largest output (float64: 1e-14) for normal data and
        512 input channels. It follows the largest value in a tile of 6x6 inputs: use ``"direct"`` where small values
        beside large ones matter. On the CPU also the name of any method among the candidates of `convx.explain`; a
        pass without a method of that name takes the fastest one of its family.
    precision : {"ieee", "tf32x3", "tf32"}, default "ieee"
        The precision of float32 products on CUDA. ``"ieee"``: float32 on the CUDA cores. ``"tf32x3"``: three products
        of TF32 numbers (10 bits of mantissa each) on the tensor cores, which keep about 21 of float32's 23 bits.
        ``"tf32"``: one such product, which keeps 10. Other dtypes and the CPU ignore it.
    out : ndarray, optional
        Written and returned instead of a new array: of the exact shape and dtype, writeable, overlapping no input.

    Returns
    -------
    ndarray, shape (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``; 3-D for a 3-D input
        ``P = floor((H + top + bottom - dilation*(R-1) - 1) / stride) + 1``, Q alike. The same bits for any number of
        threads, for an image alone or in a batch, and for any strides of the arrays.

    Raises
    ------
    ShapeError
        For inconsistent shapes and for options out of range.
    TypeError
        For arrays of another library, dtypes other than float32 and float64, and dtypes that differ.
    MemoryError
        Where the output or the scratch memory cannot be allocated.

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5, for the sum; Dumoulin, Visin, "A guide to
    convolution arithmetic for deep learning" (arXiv:1603.07285), section 5.1, for the output size; Lavin, Gray, "Fast
    algorithms for convolutional neural networks" (CVPR 2016), for Winograd's method.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> image = np.array([[[0, 0, 0], [0, 1, 0], [0, 0, 0]]], dtype=np.float32)
    >>> edges = np.array([[[[0, -1, 0], [-1, 4, -1], [0, -1, 0]]]], dtype=np.float32)
    >>> convx.conv2d(image, edges, padding="same")
    array([[[ 0., -1.,  0.],
            [-1.,  4., -1.],
            [ 0., -1.,  0.]]], dtype=float32)
    """
    if isinstance(input, np.ndarray):
        if precision != "ieee":
            check_precision("conv2d", precision)
        return _cpu.conv2d(
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
            layout,
            algorithm,
            out,
        )
    run = _devices.operation("conv2d", "input", input)
    result: npt.NDArray[FloatT] = run(
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
        layout,
        algorithm,
        precision,
        out,
    )
    return result


def prepare_weight(
    weight: npt.NDArray[FloatT],
    input_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
) -> PreparedWeight:
    """Pack a weight once for many calls of `conv2d`: for inference, where it does not change.

    `conv2d` packs the weight in every call. That is cheap in a large batch but takes a quarter to half of the time
    where one small image meets many channels. The result holds the weight in its packed form; pass it to `conv2d` in
    place of the weight. Results have the same bits.

    It holds the weight twice: as given, for all other uses, and packed. The packed form of implicit GEMM has about the
    weight's size. Winograd's transformed weights take 36/9, four times the weight's size (9 MiB for 256 channels,
    36 MiB for 512 in float32), for any batch: one image gains 1.1 to 1.4 times, a batch of 8 up to 1.1 times. Layers of
    few channels, grouped ones included, keep no packed form: packing takes 1 to 2 % of their calls, 15 % of a call of
    less than 50 us.

    Parameters
    ----------
    weight : ndarray of float32 or float64, shape (K, C/G, R, S)
        Copied: later changes of it have no effect.
    input_shape : sequence of int
        The shape of later inputs, in the order of `layout`. It determines the method, and so the packed form; the batch
        size has no influence.
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm
        As in the later calls of `conv2d`.

    Returns
    -------
    PreparedWeight
        Valid for every call of `conv2d`: a call with another packed form (other options, algorithm or instruction set)
        or without one uses the copy of the weight. ``repr`` tells how many bytes are packed. It can be pickled; the
        machine that loads it packs the weight anew.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv2d` does.

    References
    ----------
    Goto, van de Geijn, "Anatomy of high-performance matrix multiplication" (ACM TOMS 34, 2008), for packed operands.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1, 512, 7, 7), dtype=np.float32)
    >>> w = rng.standard_normal((512, 512, 1, 1), dtype=np.float32)
    >>> prepared = convx.prepare_weight(w, x.shape)
    >>> np.array_equal(convx.conv2d(x, prepared), convx.conv2d(x, w))
    True
    """
    if not isinstance(weight, np.ndarray):
        raise _devices.unsupported("prepare_weight", "weight", weight, numpy_alone=True)
    return _cpu.prepare_weight(
        weight, input_shape, stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm
    )


@overload
def conv2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = ...,
    padding: Padding = ...,
    dilation: Pair = ...,
    groups: int = ...,
    *,
    padding_mode: PaddingMode = ...,
    padding_value: float = ...,
    layout: Layout = ...,
    algorithm: str = ...,
    precision: Precision = ...,
    output_mask: tuple[Literal[True], Literal[True], Literal[True]] = ...,
    per_sample: bool = ...,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[FloatT], npt.NDArray[FloatT]]: ...


@overload
def conv2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = ...,
    padding: Padding = ...,
    dilation: Pair = ...,
    groups: int = ...,
    *,
    padding_mode: PaddingMode = ...,
    padding_value: float = ...,
    layout: Layout = ...,
    algorithm: str = ...,
    precision: Precision = ...,
    output_mask: OutputMask,
    per_sample: bool = ...,
) -> Gradients[FloatT]: ...


def conv2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    output_mask: OutputMask = _ALL,
    per_sample: bool = False,
) -> Gradients[FloatT]:
    """Compute the gradients of `conv2d` with respect to its input, weight and bias: its exact adjoint.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, shape (N, K, P, Q) or (K, P, Q)
        The gradient of the loss with respect to the output of `conv2d`, in the same layout.
    input, weight : ndarray
        The arguments of `conv2d`.
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm, precision
        As given to `conv2d`. With ``activation="relu"``, pass `grad_output` through `relu_backward` first.
    output_mask : (bool, bool, bool), default (True, True, True)
        Which of the three gradients to compute; the others cost nothing.
    per_sample : bool, default False
        Return the gradients of weight and bias of every image instead of their sum, for differentially private
        training and influence functions. Each has the bits of a call for its image alone. `conv2d_grad_norms` computes
        their norms in less memory.

    Returns
    -------
    grad_input : ndarray of the shape of `input`, or None
    grad_weight : ndarray, shape (K, C/G, R, S), or None
        Sums over the batch: zeros where N is 0. With `per_sample` shape (N, K, C/G, R, S); as without it for a 3-D
        `input`.
    grad_bias : ndarray, shape (K,), or None
        The sum of `grad_output` over N, P and Q. With `per_sample` shape (N, K), over P and Q.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv2d` does.

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5, for the sums.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, 2, 3]]], dtype=np.float32)
    >>> w = np.array([[[[10, 100]]]], dtype=np.float32)
    >>> y = convx.conv2d(x, w)
    >>> grad_input, grad_weight, grad_bias = convx.conv2d_backward(np.ones_like(y), x, w)
    >>> grad_input
    array([[[ 10., 110., 100.]]], dtype=float32)
    >>> grad_weight.ravel(), grad_bias
    (array([3., 5.], dtype=float32), array([2.], dtype=float32))
    """
    if isinstance(grad_output, np.ndarray):
        if precision != "ieee":
            check_precision("conv2d_backward", precision)
        return _cpu.conv2d_backward(
            grad_output,
            input,
            weight,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            padding_value,
            layout,
            algorithm,
            output_mask,
            per_sample,
        )
    run = _devices.operation("conv2d_backward", "grad_output", grad_output)
    gradients: Gradients[FloatT] = run(
        grad_output,
        input,
        weight,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        padding_value,
        layout,
        algorithm,
        precision,
        output_mask,
        per_sample,
    )
    return gradients


def conv2d_grad_norms(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight_shape: Sequence[int],
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    padding_value: float = 0.0,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    r"""Compute for every image the squared norms of its gradients of weight and bias, without keeping the gradients.

    .. math::
        \sum_{k,c,r,s} \left( \sum_{p,q} g_{nkpq} \, x_{n,c,h,w} \right)^2
        \quad \text{and} \quad \sum_k \left( \sum_{p,q} g_{nkpq} \right)^2

    These are the sums of squares of `conv2d_backward` with ``per_sample=True``, by which differentially private
    training clips. Each thread holds one gradient at a time. Where an image has fewer pixels than channels, the ghost
    norm replaces it: a sum over pairs of pixels, ``sum over i, j of (g_i . g_j) (x_i . x_j)``, with fewer
    multiplications than the gradient and without it (`convx.explain` tells which one runs). On CUDA the gradients of
    some images lie in the workspace, at most 64 MiB unless one is larger.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, shape (N, K, P, Q) or (K, P, Q)
        The gradient of the loss with respect to the output of `conv2d`, in the same layout.
    input : ndarray
        The argument of `conv2d`.
    weight_shape : sequence of int
        The shape of the weight, (K, C/G, R, S); its values are not needed.
    stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm, precision
        As given to `conv2d`. ``"direct"`` and ``"winograd"`` take the norm of a gradient computed by that algorithm.

    Returns
    -------
    weight_norms, bias_norms : ndarray of float64, shape (N,), or () for a 3-D `input`
        Squares are summed in float64. The norm of a gradient has the error of that gradient. The ghost norm is in
        float64 throughout; its error is at most ``2**-53 * n * |g|**2 * |x|**2`` for sums of n terms, far below the
        rounding of float32 arrays. The same bits for any number of threads, and for an image alone or in a batch.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv2d_backward` does.

    References
    ----------
    Goodfellow, "Efficient per-example gradient computations" (arXiv:1510.01799); Rochette, Manoel, Tramel, "Efficient
    per-example gradient computations in convolutional neural networks" (arXiv:1912.06015); Bu, Wang, Zha, Karypis,
    "Differentially private optimization on large model at small cost" (ICML 2023), for the ghost norm.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[[1, 2, 3]]], [[[1, 0, 0]]]], dtype=np.float32)
    >>> grad_output = np.ones((2, 1, 1, 2), dtype=np.float32)
    >>> convx.conv2d_grad_norms(grad_output, x, (1, 1, 1, 2))
    (array([34.,  1.]), array([4., 4.]))
    """
    options = (stride, padding, dilation, groups, padding_mode, padding_value, layout, algorithm)
    if isinstance(grad_output, np.ndarray):
        if precision != "ieee":
            check_precision("conv2d_grad_norms", precision)
        return _cpu.conv2d_grad_norms(grad_output, input, weight_shape, *options)
    run = _devices.operation("conv2d_grad_norms", "grad_output", grad_output)
    norms: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = run(
        grad_output, input, weight_shape, *options, precision
    )
    return norms


def conv_transpose2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    bias: npt.NDArray[FloatT] | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    out: npt.NDArray[FloatT] | None = None,
) -> npt.NDArray[FloatT]:
    r"""Transposed convolution: the adjoint of `conv2d` (its input gradient), plus a bias.

    .. math::
        y_{n,\;gK/G+k,\;h,\;w} = b_{gK/G+k} + \sum_{c,p,q,r,s} x_{ncpq} \, w_{ckrs}
        \quad\text{over}\quad h = p \, stride_h + r \, dilation_h - top, \;
        w = q \, stride_w + s \, dilation_w - left, \quad g = \lfloor c / (C/G) \rfloor

    Where no window reaches, the output is the bias alone. Nothing is multiplied there, nor where the padding crops a
    window.

    Parameters
    ----------
    input : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
        (N, H, W, C) or (H, W, C) with ``layout="NHWC"``. Any strides. N may be 0; C may be 0, which gives the bias
        alone.
    weight : ndarray, shape (C, K/G, R, S)
        The kernels, in this order for both layouts: the weight of a `conv2d` from K to C channels.
    bias : ndarray, shape (K,), optional
        Added to every pixel of an output channel.
    stride, dilation : int or (int, int), default 1
        Distance between the windows of adjacent pixels, and between the taps of a window: one number or (h, w).
    padding : int, (int, int), ((int, int), (int, int)) or str, default 0
        How many rows and columns of the output are cropped: the padding of the `conv2d` whose adjoint this is. One
        number, (h, w), ((top, bottom), (left, right)); ``"valid"`` crops nothing; ``"same"`` and ``"same_lower"`` make
        the output ``stride * H``, the size of an input that `conv2d` with this padding maps to (H, W).
    output_padding : int or (int, int), default 0
        Additional rows at the bottom and columns on the right, fewer than the larger of stride and dilation. A strided
        `conv2d` maps inputs of several sizes to one output size; this selects one of them.
    groups : int, default 1
        G: input and output channels are split into this many groups of adjacent channels that do not mix.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        Order of the axes of `input` and of the output.
    algorithm, precision
        As in `conv2d`.
    out : ndarray, optional
        Written and returned instead of a new array: of the exact shape and dtype, writeable, overlapping no input.

    Returns
    -------
    ndarray, shape (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``; 3-D for a 3-D input
        ``P = (H-1)*stride + dilation*(R-1) + 1 - top - bottom + output_padding``, Q alike. The same bits for any number
        of threads, for an image alone or in a batch, and for any strides of the arrays.

    Raises
    ------
    ShapeError
        For inconsistent shapes and for options out of range.
    TypeError
        For arrays of another library, dtypes other than float32 and float64, and dtypes that differ.
    MemoryError
        Where the output or the scratch memory cannot be allocated.

    References
    ----------
    Zeiler, Krishnan, Taylor, Fergus, "Deconvolutional networks" (CVPR 2010); Dumoulin, Visin, "A guide to convolution
    arithmetic for deep learning" (arXiv:1603.07285), chapter 4, for the sizes.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, 2]]], dtype=np.float32)
    >>> w = np.array([[[[1, 10, 100]]]], dtype=np.float32)
    >>> convx.conv_transpose2d(x, w, stride=(1, 2))
    array([[[  1.,  10., 102.,  20., 200.]]], dtype=float32)
    """
    options = (stride, padding, output_padding, groups, dilation, layout, algorithm)
    if isinstance(input, np.ndarray):
        if precision != "ieee":
            check_precision("conv_transpose2d", precision)
        return _cpu.conv_transpose2d(input, weight, bias, *options, out)
    run = _devices.operation("conv_transpose2d", "input", input)
    result: npt.NDArray[FloatT] = run(input, weight, bias, *options, precision, out)
    return result


@overload
def conv_transpose2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = ...,
    padding: Padding = ...,
    output_padding: Pair = ...,
    groups: int = ...,
    dilation: Pair = ...,
    *,
    layout: Layout = ...,
    algorithm: str = ...,
    precision: Precision = ...,
    output_mask: tuple[Literal[True], Literal[True], Literal[True]] = ...,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[FloatT], npt.NDArray[FloatT]]: ...


@overload
def conv_transpose2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = ...,
    padding: Padding = ...,
    output_padding: Pair = ...,
    groups: int = ...,
    dilation: Pair = ...,
    *,
    layout: Layout = ...,
    algorithm: str = ...,
    precision: Precision = ...,
    output_mask: OutputMask,
) -> Gradients[FloatT]: ...


def conv_transpose2d_backward(
    grad_output: npt.NDArray[FloatT],
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    layout: Layout = "NCHW",
    algorithm: str = "auto",
    precision: Precision = "ieee",
    output_mask: OutputMask = _ALL,
) -> Gradients[FloatT]:
    """Compute the gradients of `conv_transpose2d` with respect to its input, weight and bias.

    The gradient of the input is a `conv2d` of `grad_output`; the gradient of the weight is the weight gradient of that
    `conv2d`.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, shape (N, K, P, Q) or (K, P, Q)
        The gradient of the loss with respect to the output of `conv_transpose2d`, in the same layout.
    input, weight : ndarray
        The arguments of `conv_transpose2d`.
    stride, padding, output_padding, groups, dilation, layout, algorithm, precision
        As given to `conv_transpose2d`.
    output_mask : (bool, bool, bool), default (True, True, True)
        Which of the three gradients to compute; the others cost nothing.

    Returns
    -------
    grad_input : ndarray of the shape of `input`, or None
    grad_weight : ndarray, shape (C, K/G, R, S), or None
        Sums over the batch: zeros where N is 0.
    grad_bias : ndarray, shape (K,), or None
        The sum of `grad_output` over N, P and Q.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv_transpose2d` does.

    References
    ----------
    Dumoulin, Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, 2]]], dtype=np.float32)
    >>> w = np.array([[[[1, 10, 100]]]], dtype=np.float32)
    >>> y = convx.conv_transpose2d(x, w)
    >>> grad_input, grad_weight, grad_bias = convx.conv_transpose2d_backward(np.ones_like(y), x, w)
    >>> grad_input
    array([[[111., 111.]]], dtype=float32)
    >>> grad_weight.ravel(), grad_bias
    (array([3., 3., 3.], dtype=float32), array([4.], dtype=float32))
    """
    options = (stride, padding, output_padding, groups, dilation, layout, algorithm)
    if isinstance(grad_output, np.ndarray):
        if precision != "ieee":
            check_precision("conv_transpose2d_backward", precision)
        return _cpu.conv_transpose2d_backward(grad_output, input, weight, *options, output_mask)
    run = _devices.operation("conv_transpose2d_backward", "grad_output", grad_output)
    gradients: Gradients[FloatT] = run(grad_output, input, weight, *options, precision, output_mask)
    return gradients


@overload
def relu(
    input: npt.NDArray[FloatT], *, return_mask: Literal[False] = ..., out: npt.NDArray[FloatT] | None = ...
) -> npt.NDArray[FloatT]: ...


@overload
def relu(
    input: npt.NDArray[FloatT], *, return_mask: Literal[True], out: npt.NDArray[FloatT] | None = ...
) -> tuple[npt.NDArray[FloatT], npt.NDArray[np.uint8]]: ...


@overload
def relu(input: npt.NDArray[FloatT], *, return_mask: bool, out: npt.NDArray[FloatT] | None = ...) -> Any: ...


def relu(input: npt.NDArray[FloatT], *, return_mask: bool = False, out: npt.NDArray[FloatT] | None = None) -> Any:
    """Compute ``x if not (x <= 0) else 0`` for every element: NaN stays NaN, -inf gives 0.

    Parameters
    ----------
    input : ndarray of float32 or float64, any shape and strides
    return_mask : bool, default False
        Also return one bit an element, 1 where the gradient passes. It is all that `relu_backward` needs: 1/32 of a
        float32 output.
    out : ndarray, optional
        Written and returned instead of a new array, of the same shape and dtype; `input` itself for an in-place call.

    Returns
    -------
    output : ndarray of the shape and dtype of `input`
    mask : ndarray of uint8, shape (ceil(size / 8),)
        Only with `return_mask`; then the result is a pair. Element i, in row-major order for any strides, is bit
        ``i % 8``, counted from the lowest, of byte ``i // 8``: ``np.unpackbits(mask, count=size, bitorder="little")``
        is ``~(output <= 0)``. Bits after the last element are 0.

    Raises
    ------
    ShapeError
        Where `out` has another shape, cannot be written, or overlaps `input` in part.
    TypeError
        For arrays of another library and dtypes other than float32 and float64.
    MemoryError
        Where the output cannot be allocated.

    References
    ----------
    Nair, Hinton, "Rectified linear units improve restricted Boltzmann machines" (ICML 2010).

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> convx.relu(np.array([-1.0, 0.0, 2.0, np.nan]))
    array([ 0.,  0.,  2., nan])
    >>> convx.relu(np.array([-1.0, 0.0, 2.0, np.nan]), return_mask=True)
    (array([ 0.,  0.,  2., nan]), array([12], dtype=uint8))
    """
    if isinstance(input, np.ndarray):
        return _cpu.relu(input, return_mask, out)
    return _devices.operation("relu", "input", input)(input, return_mask, out)


def relu_backward(
    grad_output: npt.NDArray[FloatT],
    output: npt.NDArray[FloatT] | npt.NDArray[np.uint8],
    *,
    out: npt.NDArray[FloatT] | None = None,
) -> npt.NDArray[FloatT]:
    """Compute the gradient of `relu` from its output, or from its mask: ``0 if y <= 0 else grad``.

    The gradient at 0 is 0; a NaN output passes the gradient on. The input of `relu` need not be kept.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, any shape and strides
        The gradient of the loss with respect to `output`.
    output : ndarray of the same shape and dtype; or of uint8, shape (ceil(size / 8),)
        A result of `relu`: its output or its mask, distinguished by dtype. With a mask, two full arrays are read and
        written instead of three.
    out : ndarray, optional
        Written and returned instead of a new array, of the same shape and dtype; may be `grad_output`, or the output.

    Returns
    -------
    ndarray of the shape and dtype of `grad_output`

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `relu` does.

    References
    ----------
    The subgradient at 0 is that of PyTorch's ``threshold_backward``.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> y = convx.relu(np.array([-1.0, 0.0, 2.0]))
    >>> convx.relu_backward(np.array([5.0, 6.0, 7.0]), y)
    array([0., 0., 7.])
    >>> y, mask = convx.relu(np.array([-1.0, 0.0, 2.0]), return_mask=True)
    >>> convx.relu_backward(np.array([5.0, 6.0, 7.0]), mask)
    array([0., 0., 7.])
    """
    if isinstance(grad_output, np.ndarray):
        return _cpu.relu_backward(grad_output, output, out)
    run = _devices.operation("relu_backward", "grad_output", grad_output)
    result: npt.NDArray[FloatT] = run(grad_output, output, out)
    return result


@overload
def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: Literal[False] = ...,
    return_codes: Literal[False] = ...,
) -> npt.NDArray[FloatT]: ...


@overload
def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: Literal[True],
    return_codes: Literal[False] = ...,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[np.int64]]: ...


@overload
def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: Literal[False] = ...,
    return_codes: Literal[True],
) -> tuple[npt.NDArray[FloatT], npt.NDArray[np.uint8]]: ...


@overload
def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None = ...,
    padding: Padding = ...,
    *,
    dilation: Pair = ...,
    ceil_mode: bool = ...,
    layout: Layout = ...,
    return_indices: bool = ...,
    return_codes: bool = ...,
) -> Any: ...


def max_pool2d(
    input: npt.NDArray[FloatT],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
    return_indices: bool = False,
    return_codes: bool = False,
) -> Any:
    """Take the largest value of each window; padding is -inf and is never selected.

    Ties go to the first tap in row-major order. A window with NaN gives NaN and selects the last NaN. A window of -inf
    alone gives -inf and selects its first tap inside the image. A window whose taps all fall outside the image (by
    dilation) gives -inf, index -1 and code 255.

    Parameters
    ----------
    input : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
        (N, H, W, C) or (H, W, C) with ``layout="NHWC"``. N may be 0.
    kernel_size : int or (int, int)
        R, S.
    stride : int or (int, int), optional
        Distance between windows, by default `kernel_size`.
    padding : int, (int, int), ((int, int), (int, int)) or str, default 0
        The forms of `conv2d`; at most ``dilation*(R-1)`` on each side, so that a window at the border still has its
        last or first tap inside the image.
    dilation : int or (int, int), default 1
        Distance between the taps of a window.
    ceil_mode : bool, default False
        Round the output size up, so that the last window may exceed the image; no window starts beyond it.
    layout : {"NCHW", "NHWC"}, default "NCHW"
        Order of the axes of `input` and of the results.
    return_indices : bool, default False
        Also return int64 indices: ``h*W + w`` of the selected pixel, the same number in both layouts.
    return_codes : bool, default False
        Also return argmax codes, one byte for each output: tap ``r*S + s`` of the window. R*S is at most 255; code 255
        means that no gradient flows back.

    Returns
    -------
    output : ndarray, shape (N, C, P, Q), or (N, P, Q, C) with ``layout="NHWC"``; 3-D for a 3-D input
        P and Q by the formula of `conv2d`, rounded up with `ceil_mode`.
    indices or codes : ndarray of int64 or uint8, the shape of `output`
        Only on request; then the result is a pair. Either can be passed to `max_pool2d_backward`.

    Raises
    ------
    ShapeError
        For options out of range, windows larger than the padded image, and sizes of 0 other than N.
    TypeError
        For arrays of another library and dtypes other than float32 and float64.
    MemoryError
        Where an output cannot be allocated.

    References
    ----------
    Dumoulin, Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285), chapter 3; the clipping
    of `ceil_mode` and the treatment of NaN are PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, 2, 5, 6], [3, 4, 7, 8]]], dtype=np.float32)
    >>> convx.max_pool2d(x, 2)
    array([[[4., 8.]]], dtype=float32)
    >>> convx.max_pool2d(x, 2, return_indices=True)[1]
    array([[[5, 7]]])
    """
    if isinstance(input, np.ndarray):
        return _cpu.max_pool2d(
            input, kernel_size, stride, padding, dilation, ceil_mode, layout, return_indices, return_codes
        )
    return _devices.operation("max_pool2d", "input", input)(
        input, kernel_size, stride, padding, dilation, ceil_mode, layout, return_indices, return_codes
    )


def max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    indices_or_codes: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> npt.NDArray[FloatT]:
    """Add every gradient to the pixel that `max_pool2d` selected: ``grad_input[index] += grad_output``.

    Overlapping windows add in row-major order of the windows.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, shape (N, C, P, Q) or (C, P, Q)
        The gradient of the loss with respect to the output of `max_pool2d`, in the same layout.
    indices_or_codes : ndarray of int64 or uint8, the shape of `grad_output`
        The second result of `max_pool2d`: indices or argmax codes, distinguished by dtype.
    input_shape : sequence of int
        The shape of the input of `max_pool2d`, in the order of `layout`.
    kernel_size, stride, padding, dilation, ceil_mode, layout
        As given to `max_pool2d`.

    Returns
    -------
    ndarray of shape `input_shape`

    Raises
    ------
    ShapeError
        For inconsistent shapes and options, an index outside the plane, and a code outside its window.
    TypeError
        For arrays of another library and wrong dtypes.
    MemoryError
        Where the output cannot be allocated.

    References
    ----------
    The adjoint of `max_pool2d` for the selected pixels.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, 2, 5, 6], [3, 4, 7, 8]]], dtype=np.float32)
    >>> y, codes = convx.max_pool2d(x, 2, return_codes=True)
    >>> convx.max_pool2d_backward(np.ones_like(y), codes, x.shape, 2)
    array([[[0., 0., 0., 0.],
            [0., 1., 0., 1.]]], dtype=float32)
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    if isinstance(grad_output, np.ndarray):
        return _cpu.max_pool2d_backward(grad_output, indices_or_codes, input_shape, *options)
    run = _devices.operation("max_pool2d_backward", "grad_output", grad_output)
    result: npt.NDArray[FloatT] = run(grad_output, indices_or_codes, input_shape, *options)
    return result


def conv2d_relu_max_pool2d(
    input: npt.NDArray[FloatT],
    weight: npt.NDArray[FloatT],
    bias: npt.NDArray[FloatT] | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = 0,
    layout: Layout = "NCHW",
    precision: Precision = "ieee",
) -> tuple[npt.NDArray[FloatT], SavedConv2dReluMaxPool2d[FloatT]]:
    """Compute ``max_pool2d(relu(conv2d(input, weight, bias)))`` as one operation for training.

    The output of the convolution is not kept. The backward pass needs the input, the weight and one byte for each
    pooled element.

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, layout, precision
        As in `conv2d`; the border is zero.
    pool_kernel_size, pool_stride, pool_padding
        `kernel_size`, `stride` and `padding` of `max_pool2d`; the window has at most 255 taps.

    Returns
    -------
    output : ndarray, shape (N, K, P', Q'), or (N, P', Q', K) with ``layout="NHWC"``; 3-D for a 3-D input
        P' and Q' are the pooled P and Q.
    saved : SavedConv2dReluMaxPool2d
        For `conv2d_relu_max_pool2d_backward`. It refers to `input` and `weight` without a copy: change neither before
        the backward pass.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv2d` and `max_pool2d` do.

    References
    ----------
    Those of `conv2d`, `relu` and `max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((8, 3, 32, 32), dtype=np.float32)
    >>> w = rng.standard_normal((16, 3, 3, 3), dtype=np.float32)
    >>> y, saved = convx.conv2d_relu_max_pool2d(x, w, padding=1, pool_kernel_size=2)
    >>> y.shape
    (8, 16, 16, 16)
    >>> saved
    SavedConv2dReluMaxPool2d(input=float32(8, 3, 32, 32) 98304 bytes, weight=float32(16, 3, 3, 3) 1728 bytes,
        codes=uint8(8, 16, 16, 16) 32768 bytes)
    """
    options = (stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, layout)
    if isinstance(input, np.ndarray):
        if precision != "ieee":
            check_precision("conv2d_relu_max_pool2d", precision)
        output, codes = _cpu.conv2d_relu_max_pool2d(input, weight, bias, *options)
    else:
        run = _devices.operation("conv2d_relu_max_pool2d", "input", input)
        output, codes = run(input, weight, bias, *options, precision)
    return output, SavedConv2dReluMaxPool2d(input, weight, codes, *options, precision)


@overload
def conv2d_relu_max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    saved: SavedConv2dReluMaxPool2d[FloatT],
    *,
    output_mask: tuple[Literal[True], Literal[True], Literal[True]] = ...,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[FloatT], npt.NDArray[FloatT]]: ...


@overload
def conv2d_relu_max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    saved: SavedConv2dReluMaxPool2d[FloatT],
    *,
    output_mask: OutputMask,
) -> Gradients[FloatT]: ...


def conv2d_relu_max_pool2d_backward(
    grad_output: npt.NDArray[FloatT],
    saved: SavedConv2dReluMaxPool2d[FloatT],
    *,
    output_mask: OutputMask = _ALL,
) -> Gradients[FloatT]:
    """Compute the gradients of `conv2d_relu_max_pool2d`, those of its three operations in sequence.

    Parameters
    ----------
    grad_output : ndarray of float32 or float64, the shape of the output
        The gradient of the loss with respect to the pooled output.
    saved : SavedConv2dReluMaxPool2d
        The second result of `conv2d_relu_max_pool2d`.
    output_mask : (bool, bool, bool), default (True, True, True)
        Which of the three gradients to compute; the others cost nothing.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        As `conv2d_backward` returns them.

    Raises
    ------
    ShapeError, TypeError, MemoryError
        As `conv2d_backward` does.

    References
    ----------
    Those of `conv2d_backward`, `relu_backward` and `max_pool2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import convx
    >>> x = np.array([[[1, -2, 3, 4]]], dtype=np.float32)
    >>> w = np.array([[[[10]]]], dtype=np.float32)
    >>> y, saved = convx.conv2d_relu_max_pool2d(x, w, pool_kernel_size=(1, 2))
    >>> grad_input, grad_weight, grad_bias = convx.conv2d_relu_max_pool2d_backward(np.ones_like(y), saved)
    >>> grad_input
    array([[[10.,  0.,  0., 10.]]], dtype=float32)
    >>> grad_weight.ravel(), grad_bias
    (array([5.], dtype=float32), array([2.], dtype=float32))
    """
    if not isinstance(saved, SavedConv2dReluMaxPool2d):
        raise TypeError(
            f"conv2d_relu_max_pool2d_backward: saved is a {type(saved).__qualname__}, "
            "expected the second result of conv2d_relu_max_pool2d"
        )
    forward = (
        saved.input,
        saved.weight,
        saved.codes,
        saved.stride,
        saved.padding,
        saved.dilation,
        saved.groups,
        saved.pool_kernel_size,
        saved.pool_stride,
        saved.pool_padding,
        saved.layout,
    )
    if isinstance(grad_output, np.ndarray):
        return _cpu.conv2d_relu_max_pool2d_backward(grad_output, *forward, output_mask)
    run = _devices.operation("conv2d_relu_max_pool2d_backward", "grad_output", grad_output)
    gradients: Gradients[FloatT] = run(grad_output, *forward, saved.precision, output_mask)
    return gradients
