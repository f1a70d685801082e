"""What convx's layers do in programs that record layers rather than tensors: torch.fx, and TorchScript.

torch.compile, torch.export and make_fx see the operations (_library.py) and need nothing of this.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["has_hooks", "refuse_script", "traced"]


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
