"""How many operations the convolutions take, for `torch.utils.flop_counter.FlopCounterMode`.

Without these it would count none of a converted model. Counted as PyTorch counts its own: two for each product, taps
that fall into the padding included, bias, ReLU and pooling not; the same number for either gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from . import _library, _options


def _products(weight_size: Sequence[int], output_size: Sequence[int]) -> int:
    n, _, p, q = output_size
    return 2 * n * p * q * math.prod(weight_size)


def _conv2d(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _products(weight, out_shape)


def _conv2d_grad_input(grad_output: Any, weight: Any, *_: Any, **__: Any) -> int:
    return _products(weight, grad_output)


def _conv2d_grad_weight(grad_output: Any, input: Any, weight_size: Any, *_: Any, **__: Any) -> int:
    return _products(weight_size, grad_output)


def _fused(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any, **__: Any) -> int:
    return _products(weight, _options.conv_output_size(input, weight, stride, padding, dilation))


def _fused_backward(grad_output: Any, input: Any, weight: Any, codes: Any, *options: Any, **_: Any) -> int:
    wanted: Sequence[bool] = options[-1]
    return sum(wanted[:2]) * _products(weight, _options.conv_output_size(input, weight, *options[:3]))


_FORMULAS: dict[str, Callable[..., int]] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "conv2d_relu_max_pool2d": _fused,
    "conv2d_relu_max_pool2d_backward": _fused_backward,
}
for _name, _formula in _FORMULAS.items():
    register_flop_formula(getattr(_library, _name).overloadpacket)(_formula)
