"""The operations on PyTorch's tensors without autograd: tensors in, tensors out, on the CPU and on CUDA.

A tensor is handed to the compiled modules as it lies, without a copy. One that lies as channels_last goes to the NHWC
kernels as a permuted view, and gives results that lie so too. Here all images are 4-D and N, C, H, W in shape.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .. import _cpu, _devices
from .._cpu import PreparedWeight
from .._types import Padding, PaddingMode, Pair, Precision

ConvOptions: TypeAlias = tuple[Pair, Padding, Pair, int, PaddingMode, float, str, Precision]
"""stride, padding, dilation, groups, padding_mode, padding_value, algorithm, precision"""

PoolOptions: TypeAlias = tuple[Pair, Pair | None, Padding, Pair, bool]
"""kernel_size, stride, padding, dilation, ceil_mode"""

FusedOptions: TypeAlias = tuple[Pair, Padding, Pair, int, Pair, Pair | None, Padding, Precision]
"""stride, padding, dilation, groups, pool_kernel_size, pool_stride, pool_padding, precision"""

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
    torch.uint8: np.dtype(np.uint8),
}
_CONSTRUCTORS: dict[np.dtype[Any], Any] = {
    _NUMPY[torch.float32]: torch.FloatTensor,
    _NUMPY[torch.float64]: torch.DoubleTensor,
    _NUMPY[torch.int64]: torch.LongTensor,
    _NUMPY[torch.uint8]: torch.ByteTensor,
}


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Return an uninitialised tensor: 1.1 us by the old constructors, 2.5 us by `torch.empty`."""
    constructor = _CONSTRUCTORS[dtype]
    return constructor(*shape) if shape else constructor(1).squeeze_(0)  # type: ignore[no-any-return]


cpu: Any = _cpu.operations_with(_allocate)
"""The operations of `convx._cpu` with results that are allocated by PyTorch: `tensor_of` returns their tensors."""

# An array, not bytes: torch.compile follows the base of every array that it meets where it gives up tracing.
_ELEMENT = np.zeros(8, np.uint8)

MOST_CODES = 255
"""Windows of more taps have int64 indices instead of one-byte codes."""


def conv2d(
    input: Tensor,
    weight: Any,
    bias: Tensor | None,
    relu: bool,
    *options: Any,
    out: Tensor | None = None,
) -> Tensor:
    """Run `convx.conv2d`, with the options in the order of `ConvOptions`; `weight` may be a PreparedWeight."""
    *geometry, algorithm, precision = options
    last = channels_last(input)
    tail = ("relu" if relu else None, "NHWC" if last else "NCHW", algorithm)
    if on_cpu(input):
        kernel = weight if isinstance(weight, PreparedWeight) else as_array(weight)
        array = None if bias is None else as_array(bias)
        destination = None if out is None else _image(out, last)
        found = cpu.conv2d(_image(input, last), kernel, array, *geometry, *tail, destination)
        return out if out is not None else _tensor(found, last)
    library, cuda = _devices.dispatch("conv2d", "input", input)
    tensors = _permuted(input, last), plain_memory(weight), None if bias is None else plain_memory(bias)
    destination = None if out is None else _permuted(out, last)
    result = cuda.conv2d(library, *tensors, *geometry, *tail, precision, destination)
    return _restored(result, last) if out is None else out


def conv2d_backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    last: bool,
    mask: tuple[bool, bool, bool],
    *options: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run `convx.conv2d_backward`; `input` is needed for grad_weight alone, `weight` for grad_input alone."""
    *geometry, algorithm, precision = options
    layout = "NHWC" if last else "NCHW"
    if on_cpu(grad_output):
        gradient = _image(grad_output, last)
        if input is not None:
            image = _image(input, last)
        else:
            n, c, h, w = input_size
            image = _nothing((n, h, w, c) if last else (n, c, h, w), gradient)
        kernel = _nothing(weight_size, gradient) if weight is None else as_array(weight)
        found = cpu.conv2d_backward(gradient, image, kernel, *geometry, layout, algorithm, mask, False)
        return _gradients(found, last)
    library, cuda = _devices.dispatch("conv2d_backward", "grad_output", grad_output)
    nothing = grad_output.new_empty(())
    grad_input, grad_weight, grad_bias = cuda.conv2d_backward(
        library,
        _permuted(grad_output, last),
        _permuted(nothing.expand(input_size) if input is None else input, last),
        nothing.expand(weight_size) if weight is None else plain_memory(weight),
        *geometry,
        layout,
        algorithm,
        precision,
        mask,
        False,
    )
    return None if grad_input is None else _restored(grad_input, last), grad_weight, grad_bias


def conv2d_grad_input(
    grad_output: Tensor, weight: Tensor, input_size: tuple[int, ...], last: bool, *options: Any
) -> Tensor:
    """Return the first of the gradients of conv2d; `last` says that it is to lie as channels_last."""
    sizes = (tuple(input_size), tuple(weight.shape))
    found = conv2d_backward(grad_output, None, weight, *sizes, last, (True, False, False), *options)[0]
    assert found is not None
    return found


def conv2d_grad_weight(grad_output: Tensor, input: Tensor, weight_size: tuple[int, ...], *options: Any) -> Tensor:
    """Return the second of the gradients of conv2d."""
    sizes = (tuple(input.shape), tuple(weight_size))
    last = channels_last(input)
    found = conv2d_backward(grad_output, input, None, *sizes, last, (False, True, False), *options)[1]
    assert found is not None
    return found


def relu(input: Tensor, out: Tensor | None = None) -> Tensor:
    """Run `convx.relu`."""
    if on_cpu(input) and out is None and input.is_contiguous():
        return tensor_of(cpu.relu(as_array(input), False, None))
    out = torch.empty_like(input) if out is None else out
    if on_cpu(input):
        cpu.relu(as_array(input), False, as_array(out))
    else:
        library, cuda = _devices.dispatch("relu", "input", input)
        cuda.relu(library, plain_memory(input), False, out.detach())
    return out


def relu_backward(grad_output: Tensor, output: Tensor, out: Tensor | None = None) -> Tensor:
    """Run `convx.relu_backward`."""
    if on_cpu(grad_output) and out is None and grad_output.is_contiguous():
        return tensor_of(cpu.relu_backward(as_array(grad_output), as_array(output), None))
    out = torch.empty_like(grad_output) if out is None else out
    if on_cpu(grad_output):
        cpu.relu_backward(as_array(grad_output), as_array(output), as_array(out))
    else:
        library, cuda = _devices.dispatch("relu_backward", "grad_output", grad_output)
        cuda.relu_backward(library, plain_memory(grad_output), plain_memory(output), out.detach())
    return out


def max_pool2d(input: Tensor, *options: Any) -> Tensor:
    """Run `convx.max_pool2d` for its values alone."""
    return _max_pool2d(input, options, False, False)  # type: ignore[no-any-return]


def max_pool2d_with_choice(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Run `convx.max_pool2d` for the values and the taps chosen: int64 indices where the last argument is true."""
    *pool, indices = options
    return _max_pool2d(input, pool, indices, not indices)  # type: ignore[no-any-return]


def _max_pool2d(input: Tensor, options: Any, indices: bool, codes: bool) -> Any:
    last = channels_last(input)
    tail = ("NHWC" if last else "NCHW", indices, codes)
    if on_cpu(input):
        found = cpu.max_pool2d(_image(input, last), *options, *tail)
        if not (indices or codes):
            return _tensor(found, last)
        output, choice = found
        return _tensor(output, last), _tensor(choice, last)
    library, cuda = _devices.dispatch("max_pool2d", "input", input)
    found = cuda.max_pool2d(library, _permuted(input, last), *options, *tail)
    if not (indices or codes):
        return _restored(found, last)
    output, choice = found
    return _restored(output, last), _restored(choice, last)


def max_pool2d_backward(grad_output: Tensor, choice: Tensor, input_size: tuple[int, ...], *options: Any) -> Tensor:
    """Run `convx.max_pool2d_backward`; the result lies as `choice` does."""
    last = channels_last(choice)
    n, c, h, w = input_size
    size, layout = ((n, h, w, c), "NHWC") if last else ((n, c, h, w), "NCHW")
    if on_cpu(grad_output):
        images = _image(grad_output, last), _image(choice, last)
        return _tensor(cpu.max_pool2d_backward(*images, size, *options, layout), last)
    library, cuda = _devices.dispatch("max_pool2d_backward", "grad_output", grad_output)
    tensors = _permuted(grad_output, last), _permuted(choice, last)
    return _restored(cuda.max_pool2d_backward(library, *tensors, size, *options, layout), last)


def conv2d_relu_max_pool2d(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    """Run `convx.conv2d_relu_max_pool2d`: the output, and the codes for the backward pass."""
    *fused, precision = options
    last = channels_last(input)
    layout = "NHWC" if last else "NCHW"
    if on_cpu(input):
        arrays = _image(input, last), as_array(weight), None if bias is None else as_array(bias)
        found = cpu.conv2d_relu_max_pool2d(*arrays, *fused, layout)
        output, codes = found
        return _tensor(output, last), _tensor(codes, last)
    library, cuda = _devices.dispatch("conv2d_relu_max_pool2d", "input", input)
    tensors = _permuted(input, last), plain_memory(weight), None if bias is None else plain_memory(bias)
    output, codes = cuda.conv2d_relu_max_pool2d(library, *tensors, *fused, layout, precision)
    return _restored(output, last), _restored(codes, last)


def conv2d_relu_max_pool2d_backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    codes: Tensor,
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    last: bool,
    *options: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run `convx.conv2d_relu_max_pool2d_backward`; the last argument is its `output_mask`.

    `input` is needed for grad_weight alone, `weight` for grad_input alone.
    """
    *fused, precision, mask = options
    layout = "NHWC" if last else "NCHW"
    nothing = grad_output.new_zeros(()) if input is None or weight is None else grad_output
    input = nothing.expand(input_size) if input is None else input
    weight = nothing.expand(weight_size) if weight is None else weight
    if on_cpu(grad_output):
        arrays = _image(grad_output, last), _image(input, last), as_array(weight), _image(codes, last)
        found = cpu.conv2d_relu_max_pool2d_backward(*arrays, *fused, layout, mask)
        return _gradients(found, last)
    library, cuda = _devices.dispatch("conv2d_relu_max_pool2d_backward", "grad_output", grad_output)
    tensors = _permuted(grad_output, last), _permuted(input, last), plain_memory(weight), _permuted(codes, last)
    grad_input, grad_weight, grad_bias = cuda.conv2d_relu_max_pool2d_backward(
        library, *tensors, *fused, layout, precision, mask
    )
    return None if grad_input is None else _restored(grad_input, last), grad_weight, grad_bias


def channels_last(tensor: Tensor) -> bool:
    """Tell whether images lie with their channels adjacent, as PyTorch tells it for its own convolutions.

    Its question `is_contiguous` has two right answers where there is one channel; strides have one.
    """
    stride = tensor.stride()
    if stride[1] != 1:
        return False
    _, c, h, w = tensor.shape
    return bool(stride[3] >= c and (c > 1 or h * w > 1))


def on_cpu(tensor: Tensor) -> bool:
    return tensor.is_cpu


def _image(tensor: Tensor, last: bool) -> Any:
    array = as_array(tensor)
    return array.transpose(0, 2, 3, 1) if last else array


def plain_memory(tensor: Tensor) -> Tensor:
    """Return the numbers themselves: without a graph, and with a negation done that is still to be done."""
    return tensor.detach().resolve_neg()


def _permuted(tensor: Tensor, last: bool) -> Tensor:
    tensor = plain_memory(tensor)
    return tensor.permute(0, 2, 3, 1) if last else tensor


def _restored(tensor: Tensor, last: bool) -> Tensor:
    """Return the NCHW tensor of a result that lies as (N, H, W, C).

    Not as a view: autograd refuses what changes a view in place that one of its functions returned, such as an in-place
    ReLU after a convolution.
    """
    if not last:
        return tensor
    n, h, w, c = tensor.shape
    return tensor.new_empty(0).set_(tensor.untyped_storage(), 0, (n, c, h, w), (h * w * c, 1, w * c, c))


def _tensor(array: Any, last: bool) -> Tensor:
    """Return a result on the CPU likewise."""
    tensor = tensor_of(array)
    if last:
        n, h, w, c = tensor.shape
        tensor.as_strided_((n, c, h, w), (h * w * c, 1, w * c, c))
    return tensor


def tensor_of(array: Any) -> Tensor:
    """Return the tensor that `_allocate` made for an array."""
    tensor: Tensor = array.base
    return tensor


def as_array(tensor: Tensor) -> Any:
    """Return a NumPy array of the same memory."""
    if tensor.is_neg():  # a negation that is still to be done
        tensor = tensor.resolve_neg()
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # what was left over of a transform of torch.func that has ended
        tensor = tensor.detach()
        address = tensor.data_ptr()
    if not address and tensor.numel():
        if not tensor._is_zerotensor():  # PyTorch's copy of such a one is a segmentation fault
            raise RuntimeError(f"convx: a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed")
        tensor = tensor.clone()  # zeros without memory, as derivatives are that PyTorch knows to be 0
        address = tensor.data_ptr()
    return _cpu.array_at(address, tensor.shape, tensor.stride(), _NUMPY[tensor.dtype], tensor)


def _gradients(arrays: Any, last: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_input, grad_weight, grad_bias = arrays
    return (
        None if grad_input is None else _tensor(grad_input, last),
        None if grad_weight is None else tensor_of(grad_weight),
        None if grad_bias is None else tensor_of(grad_bias),
    )


def _nothing(shape: tuple[int, ...], like: Any) -> Any:
    """Make an array of this shape that takes the place of one that is not read: a single element."""
    return np.ndarray(shape, like.dtype, _ELEMENT, strides=(0,) * len(shape))
