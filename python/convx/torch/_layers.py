"""What layers have in common: the tensors that they compute, the checks of their constructors, and tracing."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

from .. import _cpu, cuda
from .._cpu import ShapeError
from ._options import torch_pair
from .functional import max_pool2d

_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "meta": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
_ANY_DTYPE = ("float32",)  # dtypes that convx has no kernels for run in PyTorch's


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


# What the constructors refuse: options that PyTorch's take and no operation does
#
# The checks are those of `convx.nn` (csrc/bindings/cpu_layers.cpp). What PyTorch's constructors compute with is checked
# before they do, since they name no argument ("not all arguments converted during string formatting"); what else they
# refuse comes in their words, before the other checks.


def check_algorithm(op: str, algorithm: Any) -> str:
    """Return the word if it is one that convolutions know."""
    _cpu.resolve_conv2d_layer(op, 1, 1, 3, True, *_ANY_DTYPE, 1, 0, 1, 1, "zeros", 0.0, "NCHW", algorithm)
    return algorithm  # type: ignore[no-any-return]


def lacks_algorithm(layer: nn.Conv2d | nn.ConvTranspose2d, algorithm: str) -> str | None:
    """Return why a layer cannot be computed by an algorithm; None where it can."""
    window = tuple(map(torch_pair, (layer.kernel_size, layer.stride, layer.dilation)))
    if algorithm != "winograd" or window == ((3, 3), (1, 1), (1, 1)):
        return None
    kernel, stride, dilation = window
    return f"kernel {kernel}, stride {stride} and dilation {dilation}, expected (3, 3), (1, 1) and (1, 1)"


def set_algorithm(layer: Any, algorithm: object) -> None:
    op = type(layer).__name__
    word = check_algorithm(op, algorithm)
    if reason := lacks_algorithm(layer, word):
        raise ShapeError(f'{op}: algorithm is "{word}" with {reason}')
    if word != "auto":
        layer.algorithm = word


def checked(base: type[nn.Module]) -> Callable[..., None]:
    """Return the constructor of `base` with the checks behind it; `base` is a layer of PyTorch that convx has."""
    original: Callable[..., None] = base.__init__

    @functools.wraps(original)
    def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        check_layer(base, self)

    return construct


def check_layer(base: type[nn.Module], layer: nn.Module, bias: object = True) -> None:
    """Refuse a layer whose options no operation takes; a layer keeps of `bias` alone what it was taken for."""
    _flag(layer, "bias", bias)
    _CHECKS[base](layer)


def listed(option: Any) -> Any:
    """Return an option that PyTorch's constructors iterate over as a tuple, one integer without axes as a number."""
    iterable = isinstance(option, Iterable) and not isinstance(option, str)
    if not iterable:
        return option
    try:
        return operator.index(option)
    except TypeError:
        pass
    try:
        return tuple(option)
    except TypeError:  # an array or tensor without axes that is no integer
        return option


def check_weight(layer: str, in_channels: Any, out_channels: Any, kernel_size: Any, groups: Any) -> None:
    """Refuse sizes that no weight has."""
    sizes = in_channels, out_channels, kernel_size
    _cpu.resolve_conv2d_layer(layer, *sizes, True, *_ANY_DTYPE, 1, 0, 1, groups, "zeros", 0.0, "NCHW", "auto")


def _conv2d(layer: Any) -> None:
    channels = layer.in_channels, layer.out_channels
    options = layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    _expect_weight(
        layer,
        _cpu.resolve_conv2d_layer(
            "Conv2d", *channels, layer.kernel_size, True, *_ANY_DTYPE, *options, 0.0, "NCHW", "auto"
        ),
    )


def _conv_transpose2d(layer: Any) -> None:
    channels = layer.in_channels, layer.out_channels
    options = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    _expect_weight(
        layer,
        _cpu.resolve_conv_transpose2d_layer(
            "ConvTranspose2d", *channels, layer.kernel_size, True, *_ANY_DTYPE, *options, "NCHW", "auto"
        ),
    )


def _expect_weight(layer: Any, shape: tuple[int, ...]) -> None:
    if tuple(layer.weight.shape) != shape:  # PyTorch takes one number in a tuple for one axis here
        raise ShapeError(f"{type(layer).__name__}: kernel_size is {layer.kernel_size}, expected a pair (height, width)")


def _max_pool2d(layer: Any) -> None:
    _flag(layer, "return_indices", layer.return_indices)
    options = layer.kernel_size, layer.stride, layer.padding
    _cpu.resolve_max_pool2d_layer("MaxPool2d", *options, layer.dilation, layer.ceil_mode, "NCHW")
    # What PyTorch refuses beyond that, the function refuses.
    images = torch.empty(1, 1, 1 << 29, 1 << 29, device="meta")
    max_pool2d(images, *options, dilation=layer.dilation, ceil_mode=layer.ceil_mode)


def _activation(layer: Any) -> None:
    _flag(layer, "inplace", layer.inplace)


def _flag(layer: nn.Module, name: str, value: object) -> None:
    """Refuse what is true or false by accident; old code says 0, 1 and None."""
    if not isinstance(value, int) and value is not None:
        _cpu.truth(type(layer).__name__, name, value)


_CHECKS: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.MaxPool2d: _max_pool2d,
    nn.ReLU: _activation,
    nn.ReLU6: _activation,
}


# Programs that record layers rather than tensors: torch.fx, and TorchScript
#
# torch.compile, torch.export and make_fx see the operations (_library.py) and need nothing of this.


def traced(layer: nn.Module, *args: Any) -> Any:
    """Record a call of the layer as a node where torch.fx would do so for PyTorch's own; None elsewhere.

    The layer that is traced itself runs its forward, as those do, and so does one with hooks, which are to be traced.
    """
    proxy = next((each for each in args if isinstance(each, Proxy)), None)
    if proxy is None or has_hooks(layer) or _has_any_global_hook():
        return None
    tracer: Any = proxy.tracer
    try:
        path = tracer.path_of_module(layer)
    except (AttributeError, NameError):  # no tracer of modules, or no module of the one that it traces
        return None
    if not path or not tracer.is_leaf_module(_as_of_pytorch(layer), path):
        return None
    return tracer.create_proxy("call_module", path, args, {})


def _as_of_pytorch(layer: nn.Module) -> nn.Module:
    """Return the layer of torch.nn that `layer` is a kind of, which holds the very same: tracers ask for its type."""
    kind = next(each for each in type(layer).__mro__ if each.__module__.startswith("torch.nn."))
    original: nn.Module = object.__new__(kind)
    original.__dict__ = layer.__dict__
    return original


def has_hooks(module: nn.Module) -> bool:
    """Tell whether something is to be called before or after the layer's forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def refuse_script(layer: nn.Module) -> nn.Module:
    """Say what to do instead: torch.jit.script calls this first."""
    raise NotImplementedError(
        f"torch.jit.script: {type(layer).__qualname__} is a layer of convx, which TorchScript does not know: use "
        "torch.export, or convx.torch.revert for the model that is scripted"
    )
