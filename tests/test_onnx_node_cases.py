"""ONNX's own backend tests for Conv, ConvTranspose, MaxPool and Relu: all 1-D and 2-D float cases of its package.

The cases are models of one node of these types, on float32, with three or four axes (a Relu with any number); a case
with one spatial axis runs with a height of 1. Left out are 3-D windows, integer pooling, and models with other nodes.
"""

from __future__ import annotations

import functools
import pathlib
import warnings

import numpy as np
import pytest

import convx
from support import assert_equal, assert_within, rounding_bound

# By name, so that missing and new cases of a later onnx are noticed (test_every_case_is_here).
CASES = {
    "node": [
        "test_basic_conv_with_padding",
        "test_basic_conv_without_padding",
        "test_conv_with_autopad_same",
        "test_conv_with_strides_and_asymmetric_padding",
        "test_conv_with_strides_no_padding",
        "test_conv_with_strides_padding",
        "test_convtranspose",
        "test_convtranspose_1d",
        "test_convtranspose_autopad_same",
        "test_convtranspose_dilations",
        "test_convtranspose_group_2",
        "test_convtranspose_group_2_image_3",
        "test_convtranspose_kernel_shape",
        "test_convtranspose_output_shape",
        "test_convtranspose_pad",
        "test_convtranspose_pads",
        "test_maxpool_1d_default",
        "test_maxpool_2d_ceil",
        "test_maxpool_2d_ceil_output_size_reduce_by_one",
        "test_maxpool_2d_default",
        "test_maxpool_2d_dilations",
        "test_maxpool_2d_pads",
        "test_maxpool_2d_precomputed_pads",
        "test_maxpool_2d_precomputed_same_upper",
        "test_maxpool_2d_precomputed_strides",
        "test_maxpool_2d_same_lower",
        "test_maxpool_2d_same_upper",
        "test_maxpool_2d_strides",
        "test_maxpool_with_argmax_2d_precomputed_pads",
        "test_maxpool_with_argmax_2d_precomputed_strides",
        "test_relu",
    ],
    "pytorch-converted": [
        "test_Conv1d",
        "test_Conv1d_dilated",
        "test_Conv1d_groups",
        "test_Conv1d_pad1",
        "test_Conv1d_pad1size1",
        "test_Conv1d_pad2",
        "test_Conv1d_pad2size1",
        "test_Conv1d_stride",
        "test_Conv2d",
        "test_Conv2d_depthwise",
        "test_Conv2d_depthwise_padded",
        "test_Conv2d_depthwise_strided",
        "test_Conv2d_depthwise_with_multiplier",
        "test_Conv2d_dilated",
        "test_Conv2d_groups",
        "test_Conv2d_groups_thnn",
        "test_Conv2d_no_bias",
        "test_Conv2d_padding",
        "test_Conv2d_strided",
        "test_ConvTranspose2d",
        "test_ConvTranspose2d_no_bias",
        "test_MaxPool1d",
        "test_MaxPool1d_stride",
        "test_MaxPool1d_stride_padding_dilation",
        "test_MaxPool2d",
        "test_MaxPool2d_stride_padding_dilation",
        "test_ReLU",
    ],
    "pytorch-operator": ["test_operator_conv", "test_operator_convtranspose", "test_operator_maxpool"],
    "simple": ["test_single_relu_model"],
}


@functools.cache
def onnx_cases(kind):
    """The cases of one kind: name -> (node, list of (inputs, outputs))."""
    onnx = pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # onnx computes the expected values of all its operators here, overflows included
        from onnx.backend.test.loader import load_model_tests

        found = {}
        for case in load_model_tests(kind=kind):
            folder = case.model_dir and pathlib.Path(case.model_dir)
            model = onnx.load(str(folder / "model.onnx")) if folder else case.model
            if len(model.graph.node) != 1 or model.graph.node[0].op_type not in (
                "Conv",
                "ConvTranspose",
                "MaxPool",
                "Relu",
            ):
                continue
            node = model.graph.node[0]
            x = next(value for value in model.graph.input if value.name == node.input[0]).type.tensor_type
            if x.elem_type != onnx.TensorProto.FLOAT or (node.op_type != "Relu" and len(x.shape.dim) not in (3, 4)):
                continue
            data = case.data_sets
            if folder:
                weights = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
                data = [
                    (tensors(data_set, "input") + weights, tensors(data_set, "output"))
                    for data_set in folder.glob("test_data_set_*")
                ]
            assert data, case.name
            assert all(len(inputs) == len(node.input) for inputs, _ in data), case.name
            found[case.name] = node, data
    return found


def tensors(folder, what):
    from onnx import TensorProto, numpy_helper

    arrays = []
    for index in range(len(list(folder.glob(f"{what}_*.pb")))):
        tensor = TensorProto()
        tensor.ParseFromString((folder / f"{what}_{index}.pb").read_bytes())
        arrays.append(numpy_helper.to_array(tensor))
    return arrays


def attributes(node):
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def padding_of(attribute):
    """ONNX's auto_pad and pads (all beginnings, then all ends) as the padding of convx."""
    rule = attribute.get("auto_pad", b"NOTSET").decode()
    if rule == "NOTSET":
        top, left, bottom, right = attribute.get("pads", (0, 0, 0, 0))
        return (top, bottom), (left, right)
    return {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}[rule]


def with_unit_height(attribute, arrays):
    """The node and its arrays with a second spatial axis, of size 1, where there is one."""
    if arrays[0].ndim != 3:
        return attribute, arrays
    added = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0, "output_shape": 1}
    attribute = {name: [added[name], *value] if name in added else value for name, value in attribute.items()}
    if "pads" in attribute:
        begin, end = attribute["pads"]
        attribute["pads"] = (0, begin, 0, end)
    return attribute, [array[:, :, None] if array.ndim == 3 else array for array in arrays]


def conv(attribute, x, w, b=None):
    assert tuple(attribute.get("kernel_shape", w.shape[2:])) == w.shape[2:]
    return convx.conv2d(
        x,
        w,
        b,
        stride=tuple(attribute.get("strides", (1, 1))),
        padding=padding_of(attribute),
        dilation=tuple(attribute.get("dilations", (1, 1))),
        groups=attribute.get("group", 1),
    )


def conv_transpose(attribute, x, w, b=None):
    assert tuple(attribute.get("kernel_shape", w.shape[2:])) == w.shape[2:]
    stride, dilation = tuple(attribute.get("strides", (1, 1))), tuple(attribute.get("dilations", (1, 1)))
    output_padding = tuple(attribute.get("output_padding", (0, 0)))
    padding = padding_of(attribute)
    if "output_shape" in attribute:
        # output_shape determines the padding: rows and columns beyond it are cropped, half on each side and
        # an odd one at the beginning (SAME_UPPER: at the end). A larger size adds rows and columns at the end.
        sides, output_padding = [], []
        for axis, size in enumerate(attribute["output_shape"]):
            span = stride[axis] * (x.shape[2 + axis] - 1) + dilation[axis] * (w.shape[2 + axis] - 1) + 1
            cut = max(0, span - size)
            end = cut - cut // 2 if padding == "same" else cut // 2
            sides.append((cut - end, end))
            output_padding.append(max(0, size - span))
        padding, output_padding = tuple(sides), tuple(output_padding)
    group = attribute.get("group", 1)
    return convx.conv_transpose2d(x, w, b, stride, padding, output_padding, group, dilation)


def max_pool(attribute, x, wanted):
    """`wanted` outputs: the values, and the indices within the whole tensor, by rows or by columns of a plane."""
    kernel, dilation = tuple(attribute["kernel_shape"]), tuple(attribute.get("dilations", (1, 1)))
    options = dict(
        stride=tuple(attribute.get("strides", (1, 1))),
        padding=padding_of(attribute),
        dilation=dilation,
        ceil_mode=bool(attribute.get("ceil_mode", 0)),
    )
    if wanted == 1:
        return [convx.max_pool2d(x, kernel, **options)]
    output, indices = convx.max_pool2d(x, kernel, return_indices=True, **options)
    n, c, h, w = x.shape
    if attribute.get("storage_order", 0) == 1:
        indices = indices % w * h + indices // w
    return [output, indices + np.arange(n * c).reshape(n, c, 1, 1) * (h * w)]


@pytest.mark.parametrize("kind", CASES)
def test_every_case_is_here(kind):
    assert sorted(onnx_cases(kind)) == CASES[kind]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CASES.items() for name in names])
def test_case(kind, name, isa):
    node, data_sets = onnx_cases(kind)[name]
    for inputs, outputs in data_sets:
        attribute = attributes(node)
        if node.op_type != "Relu":
            attribute, inputs = with_unit_height(attribute, inputs)
            outputs = with_unit_height({}, outputs)[1]
        if node.op_type in ("Conv", "ConvTranspose"):
            # Both results are float32 sums in different orders.
            function = conv if node.op_type == "Conv" else conv_transpose
            sizes = function(attribute, *(np.abs(array) for array in inputs))
            weight = inputs[1]
            terms = weight.size // weight.shape[node.op_type == "ConvTranspose"] + len(inputs) - 2
            bound = 2 * rounding_bound(terms, sizes, "float32")
            assert_within(function(attribute, *inputs), outputs[0], bound, name)
        elif node.op_type == "MaxPool":
            for actual, expected in zip(max_pool(attribute, inputs[0], len(outputs)), outputs, strict=True):
                assert actual.dtype == expected.dtype
                assert_equal(actual, expected, name)
        else:
            assert_equal(convx.relu(inputs[0]), outputs[0], name)
