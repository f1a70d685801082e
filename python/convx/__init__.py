"""Convolution, ReLU and max-pooling for people who write their own training loops: arrays in, arrays out.

The functions take and return NumPy arrays and run on hand-written kernels for this machine's instruction set. Arrays of
CuPy or PyTorch on a CUDA device run on that device, if convx was built with CUDA (see `convx.cuda`). PyTorch's tensors
work on the CPU too and are recorded by autograd.

>>> import numpy as np
>>> import convx
>>> images = np.ones((8, 3, 32, 32), dtype=np.float32)
>>> kernels = np.ones((16, 3, 3, 3), dtype=np.float32)
>>> y = convx.conv2d(images, kernels, padding=1, activation="relu")
>>> convx.max_pool2d(y, 2).shape
(8, 16, 16, 16)

`convx.nn` has layers, `convx.optim` optimizers, `convx.reference` the same functions in plain NumPy. `convx.torch` has
the operations for PyTorch; import it by name.
"""

from . import cuda, nn, optim, reference
from ._cpu import PreparedWeight, ShapeError
from ._types import SavedConv2dReluMaxPool2d
from .ops import (
    conv2d,
    conv2d_backward,
    conv2d_grad_norms,
    conv2d_relu_max_pool2d,
    conv2d_relu_max_pool2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    max_pool2d,
    max_pool2d_backward,
    prepare_weight,
    relu,
    relu_backward,
)
from .runtime import (
    CudaPlan,
    Explanation,
    Plan,
    default_algorithm,
    explain,
    get_default_algorithm,
    get_num_threads,
    set_default_algorithm,
    set_num_threads,
    show_config,
    threads,
)

__version__ = "0.1.0"

__all__ = [
    "CudaPlan",
    "Explanation",
    "Plan",
    "PreparedWeight",
    "SavedConv2dReluMaxPool2d",
    "ShapeError",
    "__version__",
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_norms",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cuda",
    "default_algorithm",
    "explain",
    "get_default_algorithm",
    "get_num_threads",
    "max_pool2d",
    "max_pool2d_backward",
    "nn",
    "optim",
    "prepare_weight",
    "reference",
    "relu",
    "relu_backward",
    "set_default_algorithm",
    "set_num_threads",
    "show_config",
    "threads",
]
