"""Public signatures: names, order and defaults of the arguments, the same in `convx` and `convx.reference`."""

from __future__ import annotations

import inspect

import pytest

import convx
from convx import reference

SIGNATURES = {
    "conv2d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode='zeros', "
    "padding_value=0.0, activation=None, layout='NCHW', algorithm='auto', precision='ieee', out=None)",
    "conv2d_backward": "(grad_output, input, weight, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', padding_value=0.0, layout='NCHW', algorithm='auto', precision='ieee', "
    "output_mask=(True, True, True), per_sample=False)",
    "conv2d_grad_norms": "(grad_output, input, weight_shape, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', padding_value=0.0, layout='NCHW', algorithm='auto', precision='ieee')",
    "conv_transpose2d": "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, "
    "layout='NCHW', algorithm='auto', precision='ieee', out=None)",
    "conv_transpose2d_backward": "(grad_output, input, weight, stride=1, padding=0, output_padding=0, groups=1, "
    "dilation=1, *, layout='NCHW', algorithm='auto', precision='ieee', output_mask=(True, True, True))",
    "relu": "(input, *, return_mask=False, out=None)",
    "relu_backward": "(grad_output, output, *, out=None)",
    "max_pool2d": "(input, kernel_size, stride=None, padding=0, *, dilation=1, ceil_mode=False, layout='NCHW', "
    "return_indices=False, return_codes=False)",
    "max_pool2d_backward": "(grad_output, indices_or_codes, input_shape, kernel_size, stride=None, padding=0, *, "
    "dilation=1, ceil_mode=False, layout='NCHW')",
    "conv2d_relu_max_pool2d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, "
    "pool_kernel_size, pool_stride=None, pool_padding=0, layout='NCHW', precision='ieee')",
    "conv2d_relu_max_pool2d_backward": "(grad_output, saved, *, output_mask=(True, True, True))",
}


def signature_of(function):
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("module", [convx, reference], ids=lambda module: module.__name__)
def test_operation(module, name):
    assert signature_of(getattr(module, name)) == SIGNATURES[name]


def test_prepare_weight_takes_what_conv2d_takes():
    assert signature_of(convx.prepare_weight) == (
        "(weight, input_shape, stride=1, padding=0, dilation=1, groups=1, *, padding_mode='zeros', padding_value=0.0, "
        "layout='NCHW', algorithm='auto')"
    )


def test_the_package_offers_what_it_promises():
    expected = {
        *SIGNATURES,
        "prepare_weight",
        "explain",
        "get_num_threads",
        "set_num_threads",
        "threads",
        "show_config",
        "ShapeError",
    }
    assert expected <= set(convx.__all__)
    for name in convx.__all__:
        assert hasattr(convx, name), name
