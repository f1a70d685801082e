"""Bad input: the right exception, with the operation, the argument, the value and the expected value."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import convx
from convx import ShapeError

pytestmark = pytest.mark.core


ALGORITHMS = '"auto", "direct", "winograd" or a method of convx.explain'


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


x, w, b = zeros(2, 8, 6, 7), zeros(4, 8, 3, 3), zeros(4)  # a legal conv2d: output (2, 4, 4, 5)
g = zeros(2, 4, 4, 5)
pooled, codes = convx.max_pool2d(x, 2, return_codes=True)
indices = convx.max_pool2d(x, 2, return_indices=True)[1]
fused = dict(pool_kernel_size=2)
grad_fused = zeros(2, 4, 2, 2)
saved = convx.conv2d_relu_max_pool2d(x, w, b, **fused)[1]


def conv2d(**options):
    return lambda: convx.conv2d(**{**dict(input=x, weight=w, bias=b), **options})


def conv2d_backward(**options):
    return lambda: convx.conv2d_backward(**{**dict(grad_output=g, input=x, weight=w), **options})


def grad_norms(**options):
    return lambda: convx.conv2d_grad_norms(**{**dict(grad_output=g, input=x, weight_shape=w.shape), **options})


def transpose(**options):
    return lambda: convx.conv_transpose2d(**{**dict(input=g, weight=w, bias=zeros(8)), **options})


def transpose_backward(**options):
    return lambda: convx.conv_transpose2d_backward(**{**dict(grad_output=x, input=g, weight=w), **options})


def max_pool2d(**options):
    return lambda: convx.max_pool2d(**{**dict(input=x, kernel_size=2), **options})


def max_pool2d_backward(**options):
    arguments = dict(grad_output=pooled, indices_or_codes=codes, input_shape=x.shape, kernel_size=2)
    return lambda: convx.max_pool2d_backward(**{**arguments, **options})


def fused_forward(**options):
    return lambda: convx.conv2d_relu_max_pool2d(**{**dict(input=x, weight=w, bias=b, pool_kernel_size=2), **options})


def fused_backward(grad_output=grad_fused, output_mask=(True, True, True), **changes):
    import dataclasses

    return lambda: convx.conv2d_relu_max_pool2d_backward(
        grad_output, dataclasses.replace(saved, **changes), output_mask=output_mask
    )


PADDINGS = 'an integer, (height, width), ((top, bottom), (left, right)), "valid", "same" or "same_lower"'
MODES = '"zeros", "constant", "reflect", "replicate", "circular", or a pair of these'
ZERO = "have a size of zero, expected zero only for the batch or the input channels"
MASK = "three bools: (grad_input, grad_weight, grad_bias)"
CODE = "has a code outside its window, expected taps 0 to 3 inside the image, or 255"

SHAPE_ERRORS = {
    "weight channels": (
        conv2d(weight=zeros(4, 5, 3, 3), groups=2),
        "conv2d: weight has 5 input channels per group, expected 4 (input channels 8 / groups 2)",
    ),
    "input axes": (conv2d(input=zeros(6, 7)), "conv2d: input has 2 dimensions, expected 4 or 3 (unbatched)"),
    "input with too many axes": (
        conv2d(input=zeros(1, 1, 8, 6, 7)),
        "conv2d: input has 5 dimensions, expected 4 or 3 (unbatched)",
    ),
    "weight axes": (
        conv2d(weight=zeros(8, 3, 3)),
        "conv2d: weight has 3 dimensions, "
        "expected 4: (out channels, in channels / groups, kernel height, kernel width)",
    ),
    "weight in NHWC": (
        conv2d(input=zeros(2, 6, 7, 8), weight=zeros(4, 3, 3, 8), layout="NHWC"),
        "conv2d: weight has 3 input channels per group, expected 8 (input channels 8 / groups 1)",
    ),
    "groups do not divide C": (conv2d(groups=3), "conv2d: groups is 3, expected a divisor of the 8 input channels"),
    "groups do not divide K": (
        conv2d(weight=zeros(6, 2, 3, 3), groups=4),
        "conv2d: groups is 4, expected a divisor of the 6 output channels",
    ),
    "groups zero": (conv2d(groups=0), "conv2d: groups is 0, expected a positive number"),
    "groups negative": (conv2d(groups=-2), "conv2d: groups is -2, expected a positive number"),
    "groups of zero channels": (
        conv2d(input=zeros(2, 0, 6, 7), weight=zeros(4, 0, 3, 3), groups=3),
        "conv2d: groups is 3, expected a divisor of the 4 output channels",
    ),
    "bias shape": (conv2d(bias=zeros(5)), "conv2d: bias has shape (5,), expected (4,)"),
    "bias axes": (conv2d(bias=zeros(1, 4, 1, 1)), "conv2d: bias has shape (1, 4, 1, 1), expected (4,)"),
    "height zero": (
        conv2d(input=zeros(2, 8, 0, 7)),
        f"conv2d: input (2, 8, 0, 7) and weight (4, 8, 3, 3) {ZERO}",
    ),
    "kernel zero": (
        conv2d(weight=zeros(4, 8, 3, 0)),
        f"conv2d: input (2, 8, 6, 7) and weight (4, 8, 3, 0) {ZERO}",
    ),
    "K zero": (
        conv2d(weight=zeros(0, 8, 3, 3), bias=zeros(0)),
        f"conv2d: input (2, 8, 6, 7) and weight (0, 8, 3, 3) {ZERO}",
    ),
    "stride zero": (conv2d(stride=0), "conv2d: stride is (0, 0), expected positive numbers"),
    "stride negative": (conv2d(stride=(1, -2)), "conv2d: stride is (1, -2), expected positive numbers"),
    "stride of three": (
        conv2d(stride=(1, 2, 3)),
        "conv2d: stride is (1, 2, 3), expected an integer or a pair of integers (height, width)",
    ),
    "stride beyond 64 bits": (conv2d(stride=2**64), f"conv2d: stride is {2**64}, expected a number of at most 64 bits"),
    "stride beyond reason": (
        conv2d(stride=2**62),
        f"conv2d: a size of {2**62} in height, expected at most {2**40}",
    ),
    "dilation zero": (conv2d(dilation=0), "conv2d: dilation is (0, 0), expected positive numbers"),
    "dilation beyond reason": (
        conv2d(dilation=(1, 2**62)),
        f"conv2d: a size of {2**62} in width, expected at most {2**40}",
    ),
    "dilated kernel beyond reason": (
        conv2d(dilation=2**39),
        f"conv2d: the window spans {2**40 + 1} cells in height, expected at most {2**40}",
    ),
    "padding negative": (
        conv2d(padding=(0, -1)),
        f"conv2d: padding is (-1, -1) in width, expected numbers from 0 to {2**40}",
    ),
    "padding beyond reason": (
        conv2d(padding=((0, 2**62), (0, 0))),
        f"conv2d: padding is (0, {2**62}) in height, expected numbers from 0 to {2**40}",
    ),
    "padding beyond 64 bits": (
        conv2d(padding=-(2**70)),
        f"conv2d: padding is {-(2**70)}, expected a number of at most 64 bits",
    ),
    "padded sizes beyond 64 bits": (
        conv2d(padding=2**39),
        "conv2d: padded input of * does not fit 64 bits",
    ),
    "padding of three": (
        conv2d(padding=(1, 2, 3)),
        f"conv2d: padding is (1, 2, 3), expected {PADDINGS}",
    ),
    "padding of three sides": (
        conv2d(padding=((1, 2, 3), (0, 0))),
        "conv2d: padding is (1, 2, 3), expected an integer or a pair of integers (height, width)",
    ),
    "padding of four": (
        conv2d(padding=(1, 2, 3, 4)),
        f"conv2d: padding is (1, 2, 3, 4), expected {PADDINGS}",
    ),
    "padding rule": (
        conv2d(padding="full"),
        f"conv2d: padding is 'full', expected {PADDINGS}",
    ),
    "window over image": (
        conv2d(dilation=(3, 1)),
        "conv2d: the window spans 7 cells in height, expected at most 6 (input 6 + padding 0 + 0)",
    ),
    "window over padded image": (
        conv2d(weight=zeros(4, 8, 3, 12), padding=((0, 0), (1, 3))),
        "conv2d: the window spans 12 cells in width, expected at most 11 (input 7 + padding 1 + 3)",
    ),
    "padding mode": (
        conv2d(padding_mode="mirror"),
        f"conv2d: padding_mode is 'mirror', expected {MODES}",
    ),
    "padding modes of three": (
        conv2d(padding_mode=("zeros",) * 3),
        f"conv2d: padding_mode is ('zeros', 'zeros', 'zeros'), expected {MODES}",
    ),
    "reflect": (
        conv2d(padding=6, padding_mode="reflect"),
        'conv2d: padding is 6 in height, expected at most 5 (padding_mode "reflect", input 6)',
    ),
    "circular": (
        conv2d(padding=(0, 8), padding_mode="circular"),
        'conv2d: padding is 8 in width, expected at most 7 (padding_mode "circular", input 7)',
    ),
    "activation": (conv2d(activation="tanh"), "conv2d: activation is 'tanh', expected None or \"relu\""),
    "layout": (conv2d(layout="CHWN"), 'conv2d: layout is \'CHWN\', expected "NCHW" or "NHWC"'),
    "algorithm": (conv2d(algorithm="fft"), f"conv2d: algorithm is 'fft', expected {ALGORITHMS}"),
    "winograd kernel": (
        conv2d(weight=zeros(4, 8, 5, 3), algorithm="winograd"),
        'conv2d: algorithm is "winograd" with kernel (5, 3), stride (1, 1) and dilation (1, 1), '
        "expected (3, 3), (1, 1) and (1, 1)",
    ),
    "winograd stride": (
        conv2d_backward(stride=(1, 2), dilation=(2, 1), algorithm="winograd"),
        'conv2d_backward: algorithm is "winograd" with kernel (3, 3), stride (1, 2) and dilation (2, 1), '
        "expected (3, 3), (1, 1) and (1, 1)",
    ),
    "out shape": (conv2d(out=zeros(2, 4, 5, 4)), "conv2d: out has shape (2, 4, 5, 4), expected (2, 4, 4, 5)"),
    "out axes": (conv2d(out=zeros(4, 4, 5)), "conv2d: out has shape (4, 4, 5), expected (2, 4, 4, 5)"),
    "out layout": (
        conv2d(input=zeros(2, 6, 7, 8), layout="NHWC", out=zeros(2, 4, 4, 5)),
        "conv2d: out has shape (2, 4, 4, 5), expected (2, 4, 5, 4)",
    ),
    "grad_output shape": (
        conv2d_backward(grad_output=zeros(2, 4, 5, 4)),
        "conv2d_backward: grad_output has shape (2, 4, 5, 4), expected (2, 4, 4, 5)",
    ),
    "grad_output axes": (
        conv2d_backward(grad_output=zeros(4, 4, 5)),
        "conv2d_backward: grad_output has shape (4, 4, 5), expected (2, 4, 4, 5)",
    ),
    "backward weight": (
        conv2d_backward(weight=zeros(4, 7, 3, 3)),
        "conv2d_backward: weight has 7 input channels per group, expected 8 (input channels 8 / groups 1)",
    ),
    "mask of two": (
        conv2d_backward(output_mask=(True, False)),
        "conv2d_backward: output_mask is (True, False), expected three bools: (grad_input, grad_weight, grad_bias)",
    ),
    "per_sample grad_output": (
        conv2d_backward(grad_output=g[:1], per_sample=True),
        "conv2d_backward: grad_output has shape (1, 4, 4, 5), expected (2, 4, 4, 5)",
    ),
    "norms grad_output": (
        grad_norms(grad_output=g[:, :3]),
        "conv2d_grad_norms: grad_output has shape (2, 3, 4, 5), expected (2, 4, 4, 5)",
    ),
    "norms weight_shape": (
        grad_norms(weight_shape=(4, 7, 3, 3)),
        "conv2d_grad_norms: weight has 7 input channels per group, expected 8 (input channels 8 / groups 1)",
    ),
    "norms weight_shape of three": (
        grad_norms(weight_shape=(4, 3, 3)),
        "conv2d_grad_norms: weight has 3 dimensions, "
        "expected 4: (out channels, in channels / groups, kernel height, kernel width)",
    ),
    "norms weight_shape negative": (
        grad_norms(weight_shape=(4, 8, -3, 3)),
        "conv2d_grad_norms: weight_shape is (4, 8, -3, 3), expected sizes >= 0",
    ),
    "norms winograd": (
        grad_norms(stride=2, algorithm="winograd"),
        'conv2d_grad_norms: algorithm is "winograd" with kernel (3, 3), stride (2, 2)*',
    ),
    "relu mask of another size": (
        lambda: convx.relu_backward(zeros(3, 5), zeros(1, dtype="uint8")),
        "relu_backward: output is a mask of shape (1,), expected (2,): "
        "one bit for each of the 15 elements of grad_output",
    ),
    "relu mask of the output's shape": (
        lambda: convx.relu_backward(zeros(2, 4), zeros(2, 4, dtype="uint8")),
        "relu_backward: output is a mask of shape (2, 4), expected (1,): "
        "one bit for each of the 8 elements of grad_output",
    ),
    "relu mask as out": (
        lambda: convx.relu_backward(zeros(8), (shared := zeros(8)).view("uint8")[5:6], out=shared),
        "relu_backward: out shares memory with output, expected memory of its own",
    ),
    "relu out with a mask": (
        lambda: convx.relu(zeros(3), return_mask=True, out=zeros(4)),
        "relu: out has shape (4,), expected (3,)",
    ),
    "transpose input axes": (
        transpose(input=zeros(4, 5)),
        "conv_transpose2d: input has 2 dimensions, expected 4 or 3 (unbatched)",
    ),
    "transpose weight axes": (
        transpose(weight=zeros(4, 8, 3)),
        "conv_transpose2d: weight has 3 dimensions, "
        "expected 4: (in channels, out channels / groups, kernel height, kernel width)",
    ),
    "transpose weight of conv2d": (
        transpose(weight=zeros(8, 4, 3, 3)),
        "conv_transpose2d: weight has 8 input channels, expected 4 as input has",
    ),
    "transpose groups": (
        transpose(groups=3),
        "conv_transpose2d: groups is 3, expected a divisor of the 4 input channels",
    ),
    "transpose groups zero": (transpose(groups=0), "conv_transpose2d: groups is 0, expected a positive number"),
    "transpose stride": (transpose(stride=0), "conv_transpose2d: stride is (0, 0), expected positive numbers"),
    "transpose dilation": (transpose(dilation=(1, -1)), "conv_transpose2d: dilation is (1, -1), expected positive*"),
    "transpose bias": (transpose(bias=zeros(4)), "conv_transpose2d: bias has shape (4,), expected (8,)"),
    "transpose bias of groups": (
        transpose(groups=2),
        "conv_transpose2d: bias has shape (8,), expected (16,)",
    ),
    "transpose K zero": (
        transpose(weight=zeros(4, 0, 3, 3)),
        f"conv_transpose2d: input (2, 4, 4, 5) and weight (4, 0, 3, 3) {ZERO}",
    ),
    "transpose width zero": (
        transpose(input=zeros(2, 4, 4, 0)),
        f"conv_transpose2d: input (2, 4, 4, 0) and weight (4, 8, 3, 3) {ZERO}",
    ),
    "output_padding": (
        transpose(output_padding=1),
        "conv_transpose2d: output_padding is 1 in height, expected 0 to 0 "
        "(less than the larger of stride 1 and dilation 1)",
    ),
    "output_padding of one axis": (
        transpose(stride=2, dilation=(1, 3), output_padding=(1, 3)),
        "conv_transpose2d: output_padding is 3 in width, expected 0 to 2 "
        "(less than the larger of stride 2 and dilation 3)",
    ),
    "output_padding negative": (transpose(output_padding=(0, -1)), "conv_transpose2d: output_padding is -1 in width*"),
    "output_padding of three": (
        transpose(output_padding=(0, 0, 0)),
        "conv_transpose2d: output_padding is (0, 0, 0), expected an integer or a pair of integers (height, width)",
    ),
    "output_padding beside same": (
        transpose(stride=2, padding="same", output_padding=1),
        'conv_transpose2d: output_padding is 1 in height, expected 0: padding "same" or "same_lower" makes the output '
        "stride times as large as the input",
    ),
    "transpose padding": (
        transpose(padding=((3, 3), (0, 0))),
        "conv_transpose2d: padding is (3, 3) in height, expected at most 5 in all "
        "(the windows span 6 cells, output_padding adds 0)",
    ),
    "transpose padding negative": (
        transpose(padding=-1),
        f"conv_transpose2d: padding is (-1, -1) in height, expected numbers from 0 to {2**40}",
    ),
    "transpose padding rule": (
        transpose(padding="full"),
        f"conv_transpose2d: padding is 'full', expected {PADDINGS}",
    ),
    "transpose size beyond reason": (
        transpose(stride=2**39),
        f"conv_transpose2d: a size of {2**41} in height, expected at most {2**40}",
    ),
    "transpose size beyond 64 bits": (
        transpose(stride=2**37),
        "conv_transpose2d: padded output of * does not fit 64 bits",
    ),
    "transpose winograd": (
        transpose(stride=(1, 2), algorithm="winograd"),
        'conv_transpose2d: algorithm is "winograd" with kernel (3, 3), stride (1, 2) and dilation (1, 1), '
        "expected (3, 3), (1, 1) and (1, 1)",
    ),
    "transpose out": (
        transpose(out=zeros(2, 8, 7, 6)),
        "conv_transpose2d: out has shape (2, 8, 7, 6), expected (2, 8*",
    ),
    "transpose grad_output": (
        transpose_backward(grad_output=zeros(2, 8, 6, 6)),
        "conv_transpose2d_backward: grad_output has shape (2, 8, 6, 6), expected (2, 8, 6, 7)",
    ),
    "transpose mask": (
        transpose_backward(output_mask=(True,)),
        f"conv_transpose2d_backward: output_mask is (True,), expected {MASK}",
    ),
    "relu_backward shapes": (
        lambda: convx.relu_backward(zeros(3, 4), zeros(4, 3)),
        "relu_backward: output has shape (4, 3), expected (3, 4)",
    ),
    "relu_backward does not broadcast": (
        lambda: convx.relu_backward(zeros(3, 4), zeros(4)),
        "relu_backward: output has shape (4,), expected (3, 4)",
    ),
    "relu out shape": (lambda: convx.relu(zeros(3), out=zeros(4)), "relu: out has shape (4,), expected (3,)"),
    "pool axes": (max_pool2d(input=zeros(6, 7)), "max_pool2d: input has 2 dimensions, expected 4 or 3 (unbatched)"),
    "pool channels zero": (
        max_pool2d(input=zeros(2, 0, 6, 7)),
        "max_pool2d: input (2, 0, 6, 7) has a size of zero, expected zero only for the batch",
    ),
    "pool kernel zero": (max_pool2d(kernel_size=0), "max_pool2d: kernel_size is (0, 0), expected positive numbers"),
    "pool stride zero": (max_pool2d(stride=(2, 0)), "max_pool2d: stride is (2, 0), expected positive numbers"),
    "pool dilation zero": (max_pool2d(dilation=0), "max_pool2d: dilation is (0, 0), expected positive numbers"),
    "pool padding": (
        max_pool2d(kernel_size=3, padding=3),
        "max_pool2d: padding is 3 in height, expected at most 2 (one less than the window's 3 cells)",
    ),
    "pool padding of one side": (
        max_pool2d(kernel_size=(3, 2), dilation=(1, 3), padding=((2, 2), (0, 4))),
        "max_pool2d: padding is 4 in width, expected at most 3 (one less than the window's 4 cells)",
    ),
    "pool padding negative": (
        max_pool2d(padding=-1),
        f"max_pool2d: padding is (-1, -1) in height, expected numbers from 0 to {2**40}",
    ),
    "pool window over image": (
        max_pool2d(kernel_size=8),
        "max_pool2d: the window spans 8 cells in height, expected at most 6 (input 6 + padding 0 + 0)",
    ),
    "indices and codes": (
        max_pool2d(return_indices=True, return_codes=True),
        "max_pool2d: return_indices and return_codes are both True, expected at most one",
    ),
    "codes of a large window": (
        max_pool2d(input=zeros(1, 1, 16, 16), kernel_size=16, return_codes=True),
        "max_pool2d: the window has 256 taps, expected at most 255 for one-byte codes",
    ),
    "pool layout": (max_pool2d(layout="nchw"), 'max_pool2d: layout is \'nchw\', expected "NCHW" or "NHWC"'),
    "pool grad_output shape": (
        max_pool2d_backward(grad_output=zeros(2, 8, 3, 4)),
        "max_pool2d_backward: grad_output has shape (2, 8, 3, 4), expected (2, 8, 3, 3)",
    ),
    "pool codes shape": (
        max_pool2d_backward(indices_or_codes=codes[:1]),
        "max_pool2d_backward: indices_or_codes has shape (1, 8, 3, 3), expected (2, 8, 3, 3)",
    ),
    "pool codes of a large window": (
        max_pool2d_backward(
            grad_output=zeros(1, 1, 1, 1),
            indices_or_codes=zeros(1, 1, 1, 1, dtype="uint8"),
            input_shape=(1, 1, 16, 16),
            kernel_size=16,
        ),
        "max_pool2d_backward: the window has 256 taps, expected at most 255 for one-byte codes",
    ),
    "pool input_shape": (
        max_pool2d_backward(input_shape=(6, 7)),
        "max_pool2d_backward: input_shape has 2 dimensions, expected 4 or 3 (unbatched)",
    ),
    "pool input_shape of 65 axes": (
        max_pool2d_backward(input_shape=(1,) * 65),
        "max_pool2d_backward: input_shape has 65 dimensions, expected at most 64",
    ),
    "pool input_shape negative": (
        max_pool2d_backward(input_shape=(2, 8, -6, 7)),
        "max_pool2d_backward: input_shape is (2, 8, -6, 7), expected sizes >= 0",
    ),
    "code outside the window": (
        max_pool2d_backward(indices_or_codes=np.full_like(codes, 4)),
        f"max_pool2d_backward: indices_or_codes {CODE}",
    ),
    "pool input_shape zero": (
        max_pool2d_backward(input_shape=(2, 8, 0, 7)),
        "max_pool2d_backward: input_shape (2, 8, 0, 7) has a size of zero, expected zero only for the batch",
    ),
    "index outside the plane": (
        max_pool2d_backward(indices_or_codes=np.full_like(indices, 42)),
        "max_pool2d_backward: indices_or_codes has an index outside the plane, expected 0 to 41",
    ),
    "fused codes outside the window": (
        fused_backward(codes=np.full_like(saved.codes, 4)),
        f"conv2d_relu_max_pool2d_backward: codes {CODE}",
    ),
    "fused codes shape": (
        fused_backward(codes=saved.codes[:1]),
        "conv2d_relu_max_pool2d_backward: codes has shape (1, 4, 2, 2), expected (2, 4, 2, 2)",
    ),
    "fused grad_output": (
        fused_backward(grad_output=zeros(2, 4, 3, 3)),
        "conv2d_relu_max_pool2d_backward: grad_output has shape (2, 4, 3, 3), expected (2, 4, 2, 2)",
    ),
    "fused mask": (
        fused_backward(output_mask=(True,)),
        f"conv2d_relu_max_pool2d_backward: output_mask is (True,), expected {MASK}",
    ),
    "fused weight": (
        fused_forward(weight=zeros(4, 5, 3, 3)),
        "conv2d_relu_max_pool2d: weight has 5 input channels per group, expected 8 (input channels 8 / groups 1)",
    ),
    "fused kernel": (
        fused_forward(pool_kernel_size=0),
        "conv2d_relu_max_pool2d: pool_kernel_size is (0, 0), expected positive numbers",
    ),
    "fused stride": (
        fused_forward(pool_stride=-1),
        "conv2d_relu_max_pool2d: pool_stride is (-1, -1), expected positive numbers",
    ),
    "fused padding": (
        fused_forward(pool_padding=2),
        "conv2d_relu_max_pool2d: pool_padding is 2 in height, expected at most 1 (one less than the window's 2 cells)",
    ),
    "fused window over image": (
        fused_forward(pool_kernel_size=5),
        "conv2d_relu_max_pool2d: the window spans 5 cells in height, expected at most 4 (input 4 + padding 0 + 0)",
    ),
    "fused codes of a large window": (
        fused_forward(input=zeros(1, 8, 20, 20), pool_kernel_size=16),
        "conv2d_relu_max_pool2d: the window has 256 taps, expected at most 255 for one-byte codes",
    ),
    "threads": (lambda: convx.set_num_threads(0), "set_num_threads: n is 0, expected 1 to 4096"),
    "explain": (
        lambda: convx.explain("conv3d", x.shape, w.shape),
        "explain: op is 'conv3d', expected one of *conv2d*max_pool2d*relu*",
    ),
    "explain checks like the operation": (
        lambda: convx.explain("conv2d", x.shape, (4, 5, 3, 3), groups=2),
        "conv2d: weight has 5 input channels per group, expected 4 (input channels 8 / groups 2)",
    ),
}


def matches(message, pattern):
    """Equality; a star in the pattern stands for any text."""
    head, *parts = pattern.split("*")
    if not parts:
        return message == pattern
    if not message.startswith(head) or not message.endswith(parts[-1]):
        return False
    position = len(head)
    for part in parts:
        position = message.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


@pytest.mark.parametrize("name", SHAPE_ERRORS)
def test_shape_error(name):
    call, message = SHAPE_ERRORS[name]
    with pytest.raises(ShapeError) as caught:
        call()
    assert type(caught.value) is ShapeError
    assert matches(str(caught.value), message), f"got      {caught.value}\nexpected {message}"


def test_shape_error_is_what_numpy_and_pytorch_code_catches():
    assert issubclass(ShapeError, ValueError)
    assert issubclass(ShapeError, RuntimeError)
    assert ShapeError.__name__ == "ShapeError"
    assert ShapeError.__module__ == "convx"


TYPE_ERRORS = {
    "stride": (
        conv2d(stride=1.0),
        "conv2d: stride is a float, expected an integer or a pair of integers (height, width)",
    ),
    "stride bool": (
        conv2d(stride=True),
        "conv2d: stride is a bool, expected an integer or a pair of integers (height, width)",
    ),
    "stride None": (
        conv2d(stride=None),
        "conv2d: stride is None, expected an integer or a pair of integers (height, width)",
    ),
    "stride as an array of rows": (
        conv2d(stride=np.array([[2, 2]])),
        "conv2d: stride is a numpy.ndarray, expected an integer",
    ),
    "padding as an array of floats": (
        conv2d(padding=np.array([1.0, 1.0])),
        "conv2d: padding is a numpy.float64, expected an integer or a pair of integers (height, width)",
    ),
    "groups as an array": (conv2d(groups=np.array([1])), "conv2d: groups is a numpy.ndarray, expected an integer"),
    "stride of floats": (conv2d(stride=(1, 2.0)), "conv2d: stride is a float, expected an integer"),
    "padding": (
        conv2d(padding=None),
        f"conv2d: padding is None, expected {PADDINGS}",
    ),
    "groups": (conv2d(groups="2"), "conv2d: groups is a str, expected an integer"),
    "padding_mode": (
        conv2d(padding_mode=0),
        f"conv2d: padding_mode is an int, expected {MODES}",
    ),
    "padding_value": (conv2d(padding_value="0"), "conv2d: padding_value is a str, expected a number"),
    "activation": (conv2d(activation=convx.relu), 'conv2d: activation is a function, expected None or "relu"'),
    "layout": (conv2d(layout=None), 'conv2d: layout is None, expected "NCHW" or "NHWC"'),
    "algorithm": (conv2d(algorithm=None), f"conv2d: algorithm is None, expected {ALGORITHMS}"),
    "mask": (
        conv2d_backward(output_mask=True),
        "conv2d_backward: output_mask is a bool, expected three bools: (grad_input, grad_weight, grad_bias)",
    ),
    "mask of integers": (
        conv2d_backward(output_mask=(1, 0, 1)),
        "conv2d_backward: output_mask is an int, expected a bool",
    ),
    "per_sample": (conv2d_backward(per_sample=1), "conv2d_backward: per_sample is an int, expected a bool"),
    "norms weight instead of its shape": (
        grad_norms(weight_shape=w),
        "conv2d_grad_norms: weight_shape is a numpy.ndarray, expected a tuple of integers",
    ),
    "norms dtype": (
        grad_norms(input=x.astype("float64")),
        "conv2d_grad_norms: grad_output has dtype float32, expected float64 as input has",
    ),
    "return_mask": (
        lambda: convx.relu(zeros(3), return_mask=1),
        "relu: return_mask is an int, expected a bool",
    ),
    "relu mask of bools": (
        lambda: convx.relu_backward(zeros(8), zeros(1, dtype="bool")),
        "relu_backward: output has dtype bool, expected float32 or float64",
    ),
    "relu mask of 64 bits": (
        lambda: convx.relu_backward(zeros(8), zeros(1, dtype="uint64")),
        "relu_backward: output has dtype uint64, expected float32 or float64",
    ),
    "output_padding": (
        transpose(output_padding="1"),
        "conv_transpose2d: output_padding is a str, expected an integer or a pair of integers (height, width)",
    ),
    "ceil_mode": (max_pool2d(ceil_mode=1), "max_pool2d: ceil_mode is an int, expected a bool"),
    "return_indices": (max_pool2d(return_indices="yes"), "max_pool2d: return_indices is a str, expected a bool"),
    "kernel_size": (
        max_pool2d(kernel_size=2.0),
        "max_pool2d: kernel_size is a float, expected an integer or a pair of integers (height, width)",
    ),
    "input_shape": (
        max_pool2d_backward(input_shape=x),
        "max_pool2d_backward: input_shape is a numpy.ndarray, expected a tuple of integers",
    ),
    "indices of 32 bits": (
        max_pool2d_backward(indices_or_codes=indices.astype("int32")),
        "max_pool2d_backward: indices_or_codes has dtype int32, expected int64 (indices) or uint8 (codes)",
    ),
    "indices byte-swapped": (
        max_pool2d_backward(indices_or_codes=indices.astype(">i8")),
        "max_pool2d_backward: indices_or_codes has dtype >i8, expected int64 (indices) or uint8 (codes)",
    ),
    "codes of floats": (
        max_pool2d_backward(indices_or_codes=codes.astype("float32")),
        "max_pool2d_backward: indices_or_codes has dtype float32, expected int64 (indices) or uint8 (codes)",
    ),
    "pool_kernel_size": (
        fused_forward(pool_kernel_size=None),
        "conv2d_relu_max_pool2d: pool_kernel_size is None, expected an integer or a pair of integers (height, width)",
    ),
    "saved": (
        lambda: convx.conv2d_relu_max_pool2d_backward(grad_fused, codes),
        "conv2d_relu_max_pool2d_backward: saved is *ndarray, expected the second result of conv2d_relu_max_pool2d",
    ),
    "threads": (lambda: convx.set_num_threads(2.0), "set_num_threads: n is a float, expected an integer"),
    "positional options of max_pool2d": (lambda: convx.max_pool2d(x, 2, 2, 0, 1), "*max_pool2d() takes*positional*"),
}


@pytest.mark.parametrize("name", TYPE_ERRORS)
def test_type_error(name):
    call, message = TYPE_ERRORS[name]
    with pytest.raises(TypeError) as caught:
        call()
    assert matches(str(caught.value), message), f"got      {caught.value}\nexpected {message}"


class Foreign:
    """An array of another library, which could be converted but must raise."""

    def __array__(self, dtype=None, copy=None):
        return x

    def __dlpack__(self, **_):
        return x.__dlpack__()

    def __dlpack_device__(self):
        return x.__dlpack_device__()


# For every array argument of every operation, a call with that argument replaced.
ARRAY_ARGUMENTS = {
    ("conv2d", "input"): (x, lambda a: convx.conv2d(a, w, b)),
    ("conv2d", "weight"): (w, lambda a: convx.conv2d(x, a, b)),
    ("conv2d", "bias"): (b, lambda a: convx.conv2d(x, w, a)),
    ("conv2d", "out"): (g, lambda a: convx.conv2d(x, w, b, out=a)),
    ("conv2d_backward", "grad_output"): (g, lambda a: convx.conv2d_backward(a, x, w)),
    ("conv2d_backward", "input"): (x, lambda a: convx.conv2d_backward(g, a, w)),
    ("conv2d_backward", "weight"): (w, lambda a: convx.conv2d_backward(g, x, a)),
    ("conv2d_grad_norms", "grad_output"): (g, lambda a: convx.conv2d_grad_norms(a, x, w.shape)),
    ("conv2d_grad_norms", "input"): (x, lambda a: convx.conv2d_grad_norms(g, a, w.shape)),
    ("conv_transpose2d", "input"): (g, lambda a: convx.conv_transpose2d(a, w, zeros(8))),
    ("conv_transpose2d", "weight"): (w, lambda a: convx.conv_transpose2d(g, a)),
    ("conv_transpose2d", "bias"): (zeros(8), lambda a: convx.conv_transpose2d(g, w, a)),
    ("conv_transpose2d", "out"): (x, lambda a: convx.conv_transpose2d(g, w, out=a)),
    ("conv_transpose2d_backward", "grad_output"): (x, lambda a: convx.conv_transpose2d_backward(a, g, w)),
    ("conv_transpose2d_backward", "input"): (g, lambda a: convx.conv_transpose2d_backward(x, a, w)),
    ("conv_transpose2d_backward", "weight"): (w, lambda a: convx.conv_transpose2d_backward(x, g, a)),
    ("relu", "input"): (x, lambda a: convx.relu(a)),
    ("relu", "out"): (x, lambda a: convx.relu(x, out=a)),
    ("relu_backward", "grad_output"): (x, lambda a: convx.relu_backward(a, x)),
    ("relu_backward", "output"): (x, lambda a: convx.relu_backward(x, a)),
    ("relu_backward", "out"): (x, lambda a: convx.relu_backward(x, x, out=a)),
    ("max_pool2d", "input"): (x, lambda a: convx.max_pool2d(a, 2)),
    ("max_pool2d_backward", "grad_output"): (pooled, lambda a: convx.max_pool2d_backward(a, codes, x.shape, 2)),
    ("max_pool2d_backward", "indices_or_codes"): (codes, lambda a: convx.max_pool2d_backward(pooled, a, x.shape, 2)),
    ("conv2d_relu_max_pool2d", "input"): (x, lambda a: convx.conv2d_relu_max_pool2d(a, w, b, **fused)),
    ("conv2d_relu_max_pool2d", "weight"): (w, lambda a: convx.conv2d_relu_max_pool2d(x, a, b, **fused)),
    ("conv2d_relu_max_pool2d", "bias"): (b, lambda a: convx.conv2d_relu_max_pool2d(x, w, a, **fused)),
    ("conv2d_relu_max_pool2d_backward", "grad_output"): (grad_fused, lambda a: fused_backward(grad_output=a)()),
    ("conv2d_relu_max_pool2d_backward", "codes"): (saved.codes, lambda a: fused_backward(codes=a)()),
}


every_array_argument = pytest.mark.parametrize(("op", "argument"), ARRAY_ARGUMENTS, ids=map(":".join, ARRAY_ARGUMENTS))


@every_array_argument
def test_arguments_that_are_no_arrays(op, argument):
    legal, call = ARRAY_ARGUMENTS[op, argument]
    call(legal)
    for wrong in (legal.tolist(), memoryview(legal), 1.0, "array", Foreign(), object()):
        with pytest.raises(TypeError) as caught:
            call(wrong)
        assert str(caught.value).startswith(f"{op}: {argument} is a"), str(caught.value)
        assert type(wrong).__name__ in str(caught.value)
        assert "expected a numpy.ndarray" in str(caught.value)


@every_array_argument
def test_wrong_dtypes(op, argument):
    legal, call = ARRAY_ARGUMENTS[op, argument]
    names = [
        "float16",
        "longdouble",
        "complex64",
        "int8",
        "int32",
        "bool",
        "object",
        "S4",
        "M8[s]",
        ">f4",
        ">f8",
        "f4,f4",
    ]
    for name in names + (["int64", "uint8"] if legal.dtype == np.float32 else ["float32", "float64", "uint64", ">i8"]):
        if (op, argument, name) == ("relu_backward", "output", "uint8"):
            continue  # a mask; SHAPE_ERRORS covers its shape
        wrong = np.zeros(legal.shape, name)
        with pytest.raises(TypeError) as caught:
            call(wrong)
        assert str(caught.value).startswith(f"{op}: {argument} has dtype {wrong.dtype}"), str(caught.value)
        assert ", expected " in str(caught.value)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "relu", "relu_backward", "conv2d_relu_max_pool2d"])
def test_mixed_dtypes(op):
    """No promotion: any one float64 among float32 raises, and the message has both dtypes."""
    arguments = [argument for operation, argument in ARRAY_ARGUMENTS if operation == op]
    for argument in arguments if op != "relu" else ["out"]:
        legal, call = ARRAY_ARGUMENTS[op, argument]
        with pytest.raises(TypeError) as caught:
            call(legal.astype("float64"))
        message = str(caught.value)
        assert message.startswith(f"{op}: "), message
        assert " has dtype " in message
        assert {"float32", "float64"} <= set(message.replace(",", "").split()), message


def test_mixed_dtypes_of_the_fused_gradient():
    message = "conv2d_relu_max_pool2d_backward: grad_output has dtype float64, expected float32 as input has"
    with pytest.raises(TypeError, match=message):
        fused_backward(grad_output=grad_fused.astype("float64"))()


def test_none_is_no_array():
    for call, argument in [
        (lambda: convx.conv2d(None, w), "conv2d: input"),
        (lambda: convx.conv2d(x, None), "conv2d: weight"),
        (lambda: convx.conv2d_backward(g, None, w), "conv2d_backward: input"),
        (lambda: convx.max_pool2d_backward(pooled, None, x.shape, 2), "max_pool2d_backward: indices_or_codes"),
        (lambda: convx.relu(None), "relu: input"),
    ]:
        with pytest.raises(TypeError, match=f"^{argument} is .*None.*expected a numpy.ndarray"):
            call()


def unaligned(*shape):
    return np.zeros(shape, [("flag", "u1"), ("value", "f4")])["value"]


def read_only(array):
    array.flags.writeable = False
    return array


shared = zeros(1000)
OUT_ERRORS = {
    "conv2d read-only": (
        conv2d(out=read_only(zeros(2, 4, 4, 5))),
        "conv2d: out is read-only, expected a writeable array",
    ),
    "conv2d broadcast": (
        lambda: convx.conv2d(x, w, out=np.lib.stride_tricks.as_strided(shared, (2, 4, 4, 5), (0, 80, 20, 4))),
        "conv2d: out has elements that share memory with each other, expected an array without overlap",
    ),
    "conv2d sliding window": (
        lambda: convx.conv2d(x, w, out=np.lib.stride_tricks.as_strided(shared, (2, 4, 4, 5), (320, 80, 16, 4))),
        "conv2d: out has elements that share memory with each other, expected an array without overlap",
    ),
    "conv2d into its input": (
        lambda: convx.conv2d(shared[:672].reshape(2, 8, 6, 7), w, out=shared[600:760].reshape(2, 4, 4, 5)),
        "conv2d: out shares memory with input, expected memory of its own",
    ),
    "conv2d 1x1 in place": (
        lambda: convx.conv2d(shared[:160].reshape(2, 4, 4, 5), zeros(4, 4, 1, 1), out=shared[:160].reshape(2, 4, 4, 5)),
        "conv2d: out shares memory with input, expected memory of its own",
    ),
    "conv2d into its weight": (
        lambda: convx.conv2d(x, shared[:288].reshape(4, 8, 3, 3), out=shared[100:260].reshape(2, 4, 4, 5)),
        "conv2d: out shares memory with weight, expected memory of its own",
    ),
    "conv2d into its bias": (
        lambda: convx.conv2d(x, w, shared[:4], out=shared[3:163].reshape(2, 4, 4, 5)),
        "conv2d: out shares memory with bias, expected memory of its own",
    ),
    "conv2d unaligned": (
        conv2d(out=unaligned(2, 4, 4, 5)),
        "conv2d: out is not aligned, expected strides of whole elements",
    ),
    "relu read-only": (
        lambda: convx.relu(zeros(3), out=read_only(zeros(3))),
        "relu: out is read-only, expected a writeable array",
    ),
    "relu of a read-only array in place": (
        lambda: convx.relu(frozen, out=frozen),
        "relu: out is read-only, expected a writeable array",
    ),
    "relu broadcast": (
        lambda: convx.relu(zeros(3, 3), out=np.lib.stride_tricks.as_strided(shared, (3, 3), (0, 4))),
        "relu: out has elements that share memory with each other, expected an array without overlap",
    ),
    "relu shifted": (
        lambda: convx.relu(shared[:9], out=shared[1:10]),
        "relu: out shares memory with input, expected memory of its own",
    ),
    "relu mirrored": (
        lambda: convx.relu(shared[:9], out=shared[8::-1]),
        "relu: out shares memory with input, expected memory of its own",
    ),
    "relu transposed": (
        lambda: convx.relu(shared[:9].reshape(3, 3), out=shared[:9].reshape(3, 3).T),
        "relu: out shares memory with input, expected memory of its own",
    ),
    "relu_backward shifted": (
        lambda: convx.relu_backward(zeros(9), shared[:9], out=shared[1:10]),
        "relu_backward: out shares memory with output, expected memory of its own",
    ),
    "relu_backward shifted gradient": (
        lambda: convx.relu_backward(shared[:9], zeros(9), out=shared[1:10]),
        "relu_backward: out shares memory with grad_output, expected memory of its own",
    ),
}
frozen = read_only(zeros(3))


@pytest.mark.parametrize("name", OUT_ERRORS)
def test_out_that_cannot_be_written(name):
    call, message = OUT_ERRORS[name]
    with pytest.raises(ShapeError) as caught:
        call()
    assert str(caught.value) == message


def test_a_list_that_shrinks_while_it_is_read():
    class Clears:
        def __index__(self):
            stride.clear()
            return 1

    stride = [Clears(), 1]
    with pytest.raises(IndexError):
        convx.conv2d(x, w, stride=stride)


def test_compiled_functions_count_their_arguments():
    with pytest.raises(TypeError, match=r"^expected 3 arguments, got 1$"):
        convx._cpu.relu(x)


def test_interleaved_memory_is_no_overlap():
    """`out` between the elements of the input: one block of memory, but no common element."""
    memory = np.arange(-10, 10, dtype="float32")
    assert convx.relu(memory[::2], out=memory[1::2]) is not None
    np.testing.assert_array_equal(memory[1::2], np.maximum(np.arange(-10, 10, 2), 0))
    memory = np.ones((2, 4, 4, 10), "float32")
    convx.conv2d(memory[..., ::2], np.ones((4, 4, 1, 1), "float32"), out=memory[..., 1::2])
    assert (memory[..., 1::2] == 4).all()
    assert (memory[..., ::2] == 1).all()


def test_a_failing_call_leaves_out_untouched():
    out = np.full((2, 4, 4, 5), 7, "float32")
    for name, value in [
        ("weight", zeros(4, 5, 3, 3)), ("weight", w.astype("float64")), ("bias", zeros(5)), ("stride", 0),
        ("padding", -1), ("padding", "full"), ("groups", 3), ("padding_mode", "mirror"), ("activation", "tanh"),
        ("layout", "NHWC"), ("algorithm", "fft"), ("dilation", 9), ("input", zeros(2, 8, 0, 7)), ("stride", 3),
        ("padding_value", None),
    ]:  # fmt: skip
        with pytest.raises((ShapeError, TypeError)):
            conv2d(out=out, **{name: value})()
        assert (out == 7).all(), name
    flat = np.full(9, 7, "float32")
    for call in (lambda: convx.relu(zeros(8), out=flat), lambda: convx.relu_backward(zeros(9), zeros(8), out=flat)):
        with pytest.raises(ShapeError):
            call()
        assert (flat == 7).all()


@pytest.mark.parametrize("code", [4, 7, 254])
@pytest.mark.parametrize("position", [0, 1, -1, 100])
def test_one_corrupted_code(code, position, isa, dtype, layout):
    """A single code outside the window, at the edges and in the middle, with and without vectors."""
    grad, taps = np.ones((2, 9, 10, 35), dtype), np.zeros((2, 9, 10, 35), np.uint8)
    shape = (2, 9, 20, 70) if layout == "NCHW" else (2, 18, 20, 35)
    call = lambda: convx.max_pool2d_backward(grad, taps, shape, 2, layout=layout)  # noqa: E731
    call()
    taps.flat[position] = code
    with pytest.raises(ShapeError, match="indices_or_codes has a code outside its window"):
        call()


@pytest.mark.parametrize("index", [-1, -2, -(2**63), 2**63 - 1, 2**31, 2**32, 1400])
@pytest.mark.parametrize("position", [0, 1, -1, 100])
def test_one_corrupted_index(index, position, isa, dtype):
    grad, taps = np.ones((2, 9, 10, 35), dtype), np.zeros((2, 9, 10, 35), np.int64)
    call = lambda: convx.max_pool2d_backward(grad, taps, (2, 9, 20, 70), 2)  # noqa: E731
    call()
    taps.flat[position] = index
    with pytest.raises(ShapeError, match="indices_or_codes has an index outside the plane"):
        call()


@pytest.mark.parametrize("channels", [1, 9, 40])
def test_index_minus_one_is_for_windows_without_a_cell(channels, isa, dtype, layout):
    """Index -1 is valid for windows whose taps all fall outside the image (by dilation), and raises elsewhere."""
    shape = (1, channels, 5, 2) if layout == "NCHW" else (1, 5, 2, channels)
    options = dict(kernel_size=(1, 3), stride=1, padding=(0, 4), dilation=(1, 3), layout=layout)
    output, taps = convx.max_pool2d(np.ones(shape, dtype), return_indices=True, **options)
    empty = taps == -1
    assert empty.any()
    assert (~empty).any()
    call = lambda: convx.max_pool2d_backward(np.ones_like(output), taps, shape, **options)  # noqa: E731
    assert call().sum() == (~empty).sum()
    for position in np.flatnonzero(~empty)[[0, 1, -1]]:
        kept, taps.flat[position] = taps.flat[position], -1
        with pytest.raises(ShapeError, match="indices_or_codes has an index outside the plane"):
            call()
        taps.flat[position] = kept
    for position in np.flatnonzero(empty)[[0, -1]]:
        for index in (-2, 10):
            kept, taps.flat[position] = taps.flat[position], index
            with pytest.raises(ShapeError, match="indices_or_codes has an index outside the plane"):
                call()
            taps.flat[position] = kept
    taps.flat[np.flatnonzero(empty)[0]] = 3  # inside the plane it is an index like any other
    assert call().sum() == (~empty).sum() + 1


def test_a_code_over_the_border_is_outside(isa, dtype, layout):
    """The code of a tap in the padding, which no forward pass selects."""
    shape = (1, 1, 6, 6) if layout == "NCHW" else (1, 6, 6, 1)
    output, taps = convx.max_pool2d(np.zeros(shape, dtype), 3, 2, 1, layout=layout, return_codes=True)
    assert taps.flat[0] == 4
    for code in (0, 1, 2, 3, 6):
        taps.flat[0] = code
        with pytest.raises(ShapeError, match="indices_or_codes has a code outside its window"):
            convx.max_pool2d_backward(output, taps, shape, 3, 2, 1, layout=layout)


HUGE = 2**20
one = np.zeros(1, "float32")


def huge(*shape):
    """An array of any size in four bytes."""
    return np.lib.stride_tricks.as_strided(one, shape, (0,) * len(shape))


@pytest.mark.parametrize(
    "call",
    [
        lambda: convx.conv2d(huge(1, HUGE, HUGE, 2**18), huge(HUGE, HUGE, 1, 1)),
        lambda: convx.conv2d(huge(1, 1, HUGE, HUGE), huge(2**24, 1, 1, 1)),
        lambda: convx.conv2d(huge(1, 1, 1, 1), huge(1, 1, 1, 1), padding=2**30),
        lambda: convx.conv2d_backward(huge(1, 2**10, 2**24, 2**24), huge(1, 1, 2**24, 2**24), huge(2**10, 1, 1, 1)),
        lambda: convx.max_pool2d(huge(2**10, 2**10, HUGE, 2**18), 1),
        lambda: convx.relu(huge(2**30, 2**30)),
        lambda: convx.conv2d_relu_max_pool2d(huge(1, 1, HUGE, HUGE), huge(2**24, 1, 1, 1), pool_kernel_size=1),
    ],
)
def test_results_that_no_machine_can_hold(call):
    """ShapeError where the size does not fit 64 bits, MemoryError where it does, before any computation."""
    with pytest.raises((ShapeError, MemoryError)):
        call()
    assert convx.relu(np.ones(3, "float32")).sum() == 3


def test_no_warning_on_the_way():
    """Overflow and NaN raise no floating-point warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        big = np.full((1, 1, 4, 4), 3e38, "float32")
        assert np.isinf(convx.conv2d(big, np.ones((1, 1, 3, 3), "float32"))).all()
        assert np.isnan(convx.relu(np.full(9, np.nan, "float32"))).all()
