"""Whether a call is plain eager execution, which may go past PyTorch's dispatcher to the kernels.

The dispatcher costs an operation of 13 arguments several microseconds, more than the convolution of a tiny image. It is
needed where something watches or changes what is run: tracing, tensor subclasses, functorch's transforms, autocast,
dispatch modes (profilers of shapes, fake tensors, selective checkpointing), forward-mode AD.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _dispatch_tls_local_include_set
from torch.autograd import forward_ad

# Every such watcher adds a key of its own to this thread's set, so that one look finds all, those of versions to come
# included. With autograd in general there are two keys, in inference mode one.
_eager_keys = DispatchKeySet(DispatchKey.BackendSelect) | DispatchKeySet(DispatchKey.ADInplaceOrView)
_EAGER = {_eager_keys.raw_repr(), DispatchKeySet(DispatchKey.BackendSelect).raw_repr()}

TYPES = (Tensor, torch.nn.Parameter)
"""Subclasses have a say of their own in what is done with them."""


def eager() -> bool:
    """Tell whether nothing watches; autocast and the tensors are still to be looked at."""
    return (
        not torch.compiler.is_compiling()
        and _dispatch_tls_local_include_set().raw_repr() in _EAGER
        and forward_ad._current_level < 0
    )


def is_plain(tensor: object) -> bool:
    """Tell whether this is a dense tensor of no subclass, with memory on the CPU or on CUDA."""
    if type(tensor) not in TYPES:
        return False
    assert isinstance(tensor, Tensor)
    return (tensor.is_cpu or tensor.is_cuda) and tensor.layout is torch.strided and not tensor.is_nested


def plain(gradient: Tensor) -> bool:
    """Tell whether a backward pass may go to the kernels: it need not be recorded either."""
    return not torch.is_grad_enabled() and is_plain(gradient) and eager()
