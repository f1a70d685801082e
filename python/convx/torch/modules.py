"""Layers that take the place of PyTorch's: subclasses with the same arguments, state_dict and options.

They run PyTorch's own forward for tensors that convx has no kernels for (`supported`), so that a layer does no less
than the one that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import cuda
from .._types import Activation
from ._arguments import Way, way
from .functional import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu

__all__ = ["Conv2d", "ConvTranspose2d", "MaxPool2d", "ReLU", "ReLU6", "Sequential"]

_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "meta": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
# The fused operation keeps the number of a tap in one byte, and 255 stands for "no gradient".
_MOST_TAPS = 255


def supported(tensor: Tensor) -> bool:
    """Tell whether convx has kernels for the type and device of `tensor`."""
    return unsupported(tensor) is None


def unsupported(tensor: Tensor) -> str | None:
    """Return why convx has no kernels for the type or device of `tensor`; None where it has.

    What is no tensor at all is left to the operation, whose message names it.
    """
    if not isinstance(tensor, Tensor):
        return None
    device = tensor.device.type
    if tensor.dtype not in _DTYPES.get(device, ()):
        return f"{str(tensor.dtype).removeprefix('torch.')} on {device}"
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}"
    if tensor.is_nested:
        return "a nested tensor"
    if device == "cuda" and (reason := cuda.unavailable_reason()):
        return f"on CUDA: {reason}"
    return None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `convx.torch.conv2d`.

    The arguments, the options, the initial values and the state_dict are those of `torch.nn.Conv2d`.

    Shapes
    ------
    input
        (N, C, H, W) or (C, H, W); contiguous or channels_last, as which the output comes then.
    output
        (N, K, P, Q) or (K, P, Q).

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> layer = convx.torch.Conv2d(3, 8, kernel_size=3, padding=1)
    >>> layer(torch.ones(2, 3, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    >>> list(layer.state_dict())
    ['weight', 'bias']
    """

    stride: tuple[int, int]
    padding: Literal["valid", "same"] | tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`."""
        if not supported(input):
            return super().forward(input)
        return self.convolve(input)

    def convolve(self, input: Tensor, activation: Activation = None) -> Tensor:
        """Return the convolution of `input` and, with ``activation="relu"``, the ReLU of it, in one pass."""
        return conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=activation,
        )


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `convx.torch.conv_transpose2d`.

    The arguments, the options, the initial values and the state_dict are those of `torch.nn.ConvTranspose2d`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> layer = convx.torch.ConvTranspose2d(8, 3, kernel_size=2, stride=2)
    >>> layer(torch.ones(2, 8, 6, 6)).shape
    torch.Size([2, 3, 12, 12])
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of `input`, of the given size where there are several."""
        if not supported(input):
            return super().forward(input, output_size)
        output_padding = self.output_padding
        if output_size is not None:
            stride, padding, kernel_size, dilation = map(
                list[int], (self.stride, self.padding, self.kernel_size, self.dilation)
            )
            rows, columns = self._output_padding(input, output_size, stride, padding, kernel_size, 2, dilation)
            output_padding = rows, columns
        return conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class ReLU(nn.ReLU):
    """`torch.nn.ReLU`, computed by `convx.torch.relu`.

    With ``inplace=True`` it is PyTorch's own: the input is overwritten, as whoever wrote the model expects. One pass
    over memory is as fast as memory in both libraries.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> convx.torch.ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the ReLU of `input`."""
        if self.inplace or not supported(input):
            return super().forward(input)
        return relu(input)


class _ReLU6(torch.autograd.Function):
    """PyTorch's kernels, recorded from the output: where it is 0 or 6, the input was not between them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:
        output = input.clamp_(0, 6) if inplace else input.clamp(0, 6)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], output, 0, 6), None


class ReLU6(nn.ReLU6):
    """`torch.nn.ReLU6`, which keeps its output for the backward pass: the array that the next layer keeps anyway.

    PyTorch's keeps its input, and in place a copy of it: one more pass over memory, and one more array.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> convx.torch.ReLU6()(torch.tensor([-1.0, 2.0, 8.0]))
    tensor([0., 2., 6.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, limited to 0 to 6."""
        if way(input) is Way.RECORDED:
            result: Tensor = _ReLU6.apply(input, self.inplace)  # type: ignore[no-untyped-call]
            return result
        return super().forward(input)


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, computed by `convx.torch.max_pool2d`.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> convx.torch.MaxPool2d(2)(torch.arange(16.0).reshape(1, 1, 4, 4))
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the pooled `input`, and with ``return_indices=True`` the position of each maximum in its plane."""
        if not supported(input):
            result: Tensor | tuple[Tensor, Tensor] = super().forward(input)
        else:
            result = max_pool2d(
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                dilation=self.dilation,
                ceil_mode=self.ceil_mode,
                return_indices=self.return_indices,
            )
        return result


class Sequential(nn.Sequential):
    """`torch.nn.Sequential` that computes Conv2d-ReLU and Conv2d-ReLU-MaxPool2d runs as one operation each.

    It holds the same layers under the same names; what a run gives is what its layers give one after the other. A run
    is looked for in every call, so layers may be exchanged, sliced, and given hooks or a ``forward`` of their own: such
    a layer is called by itself, and each layer where there are hooks for all modules.
    `convx.torch.convert` makes these out of `torch.nn.Sequential`.

    Notes
    -----
    Conv2d-MaxPool2d-ReLU is the same function with the same gradient, bit for bit: the largest value of a window is the
    same before and after ReLU, and where it is not above zero no gradient passes. It is computed as the same operation.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> model = convx.torch.Sequential(
    ...     convx.torch.Conv2d(3, 8, 3), convx.torch.ReLU(), convx.torch.MaxPool2d(2)
    ... )
    >>> model(torch.ones(2, 3, 6, 6)).shape
    torch.Size([2, 8, 2, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the last layer."""
        layers, start, result = list(self), 0, input
        while start < len(layers):
            run = next((run for run in runs(layers, start) if obstacle(run) is None), ())
            if run and supported(result):
                result = _fused(result, *run)
                start += len(run)
            else:
                result = layers[start](result)
                start += 1
        return result


def _fused(input: Tensor, conv: nn.Module, *others: nn.Module) -> Tensor:
    assert isinstance(conv, Conv2d)
    pool = next((layer for layer in others if isinstance(layer, MaxPool2d)), None)
    if pool is None:
        return conv.convolve(input, "relu")
    return conv2d_relu_max_pool2d(
        input,
        conv.weight,
        conv.bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        pool_kernel_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
    )


_RUNS = ((Conv2d, ReLU, MaxPool2d), (Conv2d, MaxPool2d, ReLU), (Conv2d, ReLU))


def runs(layers: Sequence[nn.Module], start: int) -> Iterator[Sequence[nn.Module]]:
    """Yield the runs that begin at `start`, the longest first, whether they can be one operation or not."""
    if type(layers[start]) is Conv2d:
        kinds = tuple(type(layer) for layer in layers[start : start + 3])
        yield from (layers[start : start + len(run)] for run in _RUNS if kinds[: len(run)] == run)


def obstacle(run: Sequence[nn.Module]) -> str | None:
    """Return why the layers of a run have to be computed one by one; None where nothing stands against one operation.

    The fused operation lacks some options of convolution and pooling. Without pooling there is nothing that it lacks.
    """
    if any(map(has_hooks, run)) or _has_any_global_hook():
        return "a layer of it has hooks"
    if any(map(has_own_forward, run)):
        return "the forward of a layer of it was replaced"
    conv, pool = run[0], next((layer for layer in run if isinstance(layer, MaxPool2d)), None)
    if pool is None:
        return None
    if isinstance(conv, Conv2d) and conv.padding_mode != "zeros":
        return f"the fused operation has no padding_mode {conv.padding_mode!r}"
    if pool.ceil_mode:
        return "the fused operation has no ceil_mode"
    if pool.return_indices:
        return "the fused operation returns no indices"
    if _pair(pool.dilation) != (1, 1):
        return "the fused operation has no dilated pooling"
    height, width = _pair(pool.kernel_size)
    if height * width > _MOST_TAPS:
        return f"the fused operation has windows of at most {_MOST_TAPS} elements"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Tell whether something is to be called before or after the layer's forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether `forward` was replaced in this one layer."""
    return "forward" in vars(module)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
