"""convx for PyTorch: the operations on tensors, recorded by autograd, for eager and compiled programs.

>>> import torch
>>> import convx.torch
>>> images = torch.randn(8, 3, 32, 32)
>>> weight = torch.randn(16, 3, 3, 3, requires_grad=True)
>>> y = convx.torch.conv2d(images, weight, padding=1, activation="relu")
>>> convx.torch.max_pool2d(y, 2).sum().backward()
>>> weight.grad.shape
torch.Size([16, 3, 3, 3])

Nothing of it is compiled against PyTorch: it works with the version that is installed. Import it by name; `import
convx` alone does not load PyTorch.
"""

from . import _flops, _quantization, _recording, _shapes, _threads, _vmap  # noqa: F401  what PyTorch is told
from ._decompositions import decompositions
from .convert import Conversion, convert, revert
from .functional import conv2d, conv2d_relu_max_pool2d, conv_transpose2d, max_pool2d, relu
from .modules import Conv2d, ConvTranspose2d, MaxPool2d, ReLU, ReLU6, Sequential

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "Conversion",
    "MaxPool2d",
    "ReLU",
    "ReLU6",
    "Sequential",
    "conv2d",
    "conv2d_relu_max_pool2d",
    "conv_transpose2d",
    "convert",
    "decompositions",
    "max_pool2d",
    "relu",
    "revert",
]

_threads.adopt()
