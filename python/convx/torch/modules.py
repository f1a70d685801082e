"""Layers that take the place of PyTorch's: subclasses with the same arguments, state_dict and options.

They run PyTorch's own forward for tensors that convx has no kernels for (`supported`), so that a layer does no less
than the one that it replaces.
"""

# Annotations are no strings here: torch.fx takes those of the forward that it traces into its graph, which is pickled
# by their names.

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

from .._types import Activation, Pair
from ._layers import (
    check_layer,
    check_weight,
    checked,
    has_hooks,
    listed,
    refuse_script,
    set_algorithm,
    supported,
    traced,
)
from ._max_pool2d import MOST_CODES
from ._options import torch_pair
from ._tensors import RECORDED, path_of
from .functional import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu

__all__ = ["Conv2d", "ConvTranspose2d", "MaxPool2d", "ReLU", "ReLU6", "Sequential"]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, computed by `convx.torch.conv2d`.

    The arguments, the options, the initial values and the state_dict are those of `torch.nn.Conv2d`; `algorithm`, by
    name, is that of `convx.torch.conv2d`.

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
    algorithm: str = (
        "auto"  # of the class: layers that `convert` makes, and those saved before there was one, have none
    )

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Literal["valid", "same"] | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: str = "auto",
    ) -> None:
        kernel_size, stride, padding, dilation = map(listed, (kernel_size, stride, padding, dilation))
        check_weight("Conv2d", in_channels, out_channels, kernel_size, groups)
        geometry = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*geometry, bias, padding_mode, device, dtype)
        check_layer(nn.Conv2d, self, bias)
        set_algorithm(self, algorithm)

    def extra_repr(self) -> str:
        """Return the options, as PyTorch does."""
        return f"{super().extra_repr()}{_algorithm_text(self)}"  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`."""
        if not isinstance(input, Tensor) and (node := traced(self, input)) is not None:
            return node
        if not supported(input) or "_conv_forward" in vars(self):
            _refuse_quantized(self, input)
            return super().forward(input)
        return self.convolve(input)

    def convolve(self, input: Tensor, activation: Activation = None) -> Tensor:
        """Return the convolution of `input` and, with ``activation="relu"``, the ReLU of it, in one pass."""
        return conv2d(
            input,
            self.weight,
            self.bias,
            torch_pair(self.stride),
            self._sides(),
            torch_pair(self.dilation),
            self.groups,
            padding_mode=self.padding_mode,
            activation=activation,
            algorithm=self.algorithm,
        )

    def _sides(self) -> Any:
        padding: Any = self.padding
        if self.padding_mode != "zeros" and isinstance(padding, (tuple, list)) and len(padding) == 1:
            return 0, torch_pair(padding)[1]  # PyTorch hands its one number to F.pad, which pads the width alone
        return torch_pair(padding)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, computed by `convx.torch.conv_transpose2d`.

    The arguments, the options, the initial values and the state_dict are those of `torch.nn.ConvTranspose2d`;
    `algorithm`, by name, is that of `convx.torch.conv_transpose2d`.

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
    algorithm: str = "auto"

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        algorithm: str = "auto",
    ) -> None:
        kernel_size, stride, padding = map(listed, (kernel_size, stride, padding))
        output_padding, dilation = map(listed, (output_padding, dilation))
        check_weight("ConvTranspose2d", in_channels, out_channels, kernel_size, groups)
        geometry = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
        super().__init__(*geometry, bias, dilation, padding_mode, device, dtype)
        check_layer(nn.ConvTranspose2d, self, bias)
        set_algorithm(self, algorithm)

    def extra_repr(self) -> str:
        """Return the options, as PyTorch does."""
        return f"{super().extra_repr()}{_algorithm_text(self)}"  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of `input`, of the given size where there are several."""
        if not isinstance(input, Tensor):
            args = (input,) if output_size is None else (input, output_size)
            if (node := traced(self, *args)) is not None:
                return node
        if not supported(input):
            _refuse_quantized(self, input)
            return super().forward(input, output_size)
        stride, padding, dilation = map(torch_pair, (self.stride, self.padding, self.dilation))
        output_padding = torch_pair(self.output_padding)
        if output_size is not None:
            rows, columns = self._output_padding(
                input, output_size, list(stride), list(padding), list(self.kernel_size), 2, list(dilation)
            )
            output_padding = rows, columns
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            stride,
            padding,
            output_padding,
            self.groups,
            dilation,
            algorithm=self.algorithm,
        )


def _refuse_quantized(layer: nn.Module, input: Tensor) -> None:
    """Say where a quantized input comes from: torch.ao.quantization exchanges layers by their exact types."""
    if input.is_quantized:
        raise NotImplementedError(
            f"{type(layer).__name__}: input is quantized, and layers of convx are not: call convx.torch.revert for the "
            "model before torch.ao.quantization.prepare"
        )


def _algorithm_text(layer: Conv2d | ConvTranspose2d) -> str:
    return "" if layer.algorithm == "auto" else f", algorithm={layer.algorithm}"


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

    __prepare_scriptable__ = refuse_script

    __init__ = checked(nn.ReLU)

    def forward(self, input: Tensor) -> Tensor:
        """Return the ReLU of `input`."""
        if not isinstance(input, Tensor) and (node := traced(self, input)) is not None:
            return node
        if self.inplace or not supported(input):
            return super().forward(input)
        return relu(input)


class _ReLU6(torch.autograd.Function):
    """PyTorch's kernels, recorded by a mask: the user may change the output in place, as after PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:
        # PyTorch's backward kernel decides where a gradient passes: its vectors and its tails treat NaN differently.
        ctx.save_for_backward(torch.ops.aten.hardtanh_backward(input, input, 0, 6).bool())
        ctx.set_materialize_grads(False)
        if not inplace:
            return input.clamp(0, 6)
        ctx.mark_dirty(input)
        return input.clamp_(0, 6)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        (mask,), (grad,) = ctx.saved_tensors, grads
        return None if grad is None else torch.where(mask, grad, 0), None


class ReLU6(nn.ReLU6):
    """`torch.nn.ReLU6`, which keeps one byte an element for the backward pass: whether the input was between 0 and 6.

    PyTorch's keeps its input, and in place a copy of it.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> convx.torch.ReLU6()(torch.tensor([-1.0, 2.0, 8.0]))
    tensor([0., 2., 6.])
    """

    __prepare_scriptable__ = refuse_script

    __init__ = checked(nn.ReLU6)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, limited to 0 to 6."""
        if not isinstance(input, Tensor) and (node := traced(self, input)) is not None:
            return node
        if path_of(input) is RECORDED:
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

    __prepare_scriptable__ = refuse_script

    __init__ = checked(nn.MaxPool2d)

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the pooled `input`, and with ``return_indices=True`` the position of each maximum in its plane."""
        if not isinstance(input, Tensor) and (node := traced(self, input)) is not None:
            return node
        if not supported(input):
            result: Tensor | tuple[Tensor, Tensor] = super().forward(input)
        else:
            result = max_pool2d(
                input,
                torch_pair(self.kernel_size),
                _stride_of(self),
                torch_pair(self.padding),
                dilation=torch_pair(self.dilation),
                ceil_mode=self.ceil_mode,
                return_indices=self.return_indices,
            )
        return result


def _stride_of(pool: nn.MaxPool2d) -> Any:
    """Return the stride; None, as for PyTorch, where it is that of the window: so is an empty sequence."""
    stride: Any = pool.stride
    return None if isinstance(stride, (tuple, list)) and not stride else torch_pair(stride)


class Sequential(nn.Sequential):
    """`torch.nn.Sequential` that computes Conv2d-ReLU and Conv2d-ReLU-MaxPool2d runs as one operation each.

    It holds the same layers under the same names; what a run gives is what its layers give one after the other. A run
    is looked for in every call, so layers may be exchanged, sliced, and given hooks or a ``forward`` of their own: such
    a layer is called by itself, and each layer where there are hooks for all modules, or torch.fx traces.
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

    __prepare_scriptable__ = refuse_script

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the last layer."""
        layers, start, result = list(self), 0, input
        while start < len(layers):
            run = next((run for run in runs(layers, start) if obstacle(run) is None), ())
            if run and supported(result) and not isinstance(result, Proxy):
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
        torch_pair(conv.stride),
        torch_pair(conv.padding),
        torch_pair(conv.dilation),
        conv.groups,
        pool_kernel_size=torch_pair(pool.kernel_size),
        pool_stride=_stride_of(pool),
        pool_padding=torch_pair(pool.padding),
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
    if isinstance(conv, Conv2d) and conv.algorithm != "auto":
        return f"the fused operation has no algorithm {conv.algorithm!r}"
    if pool.ceil_mode:
        return "the fused operation has no ceil_mode"
    if pool.return_indices:
        return "the fused operation returns no indices"
    if torch_pair(pool.dilation) != (1, 1):
        return "the fused operation has no dilated pooling"
    kernel_size: Any = torch_pair(pool.kernel_size)
    resolved = isinstance(kernel_size, tuple) and all(isinstance(each, int | torch.SymInt) for each in kernel_size)
    if resolved and math.prod(kernel_size) > MOST_CODES:
        return f"the fused operation has windows of at most {MOST_CODES} elements"
    return None


def has_own_forward(module: nn.Module) -> bool:
    """Tell whether `forward` was replaced in this one layer, or `_conv_forward`, which that of nn.Conv2d calls."""
    return "forward" in vars(module) or "_conv_forward" in vars(module)
