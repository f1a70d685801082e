"""An answer to `torch.ao.quantization.fuse_modules`, which looks layers up by their exact types."""

from __future__ import annotations

import itertools
from typing import Any, NoReturn

from torch import nn

from .convert import SWAPS

try:
    from torch.ao.quantization import fuser_method_mappings
except ImportError:  # PyTorch means to leave this to a package of its own
    _METHODS: dict[Any, Any] = {}
else:
    _METHODS = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})


def _refuse(_: bool, *layers: nn.Module) -> NoReturn:
    """Fuse nothing: what PyTorch would make of these is quantized by its own types, of all layers or none."""
    names = ", ".join(type(layer).__name__ for layer in layers)
    raise NotImplementedError(
        f"torch.ao.quantization.fuse_modules: {names} has layers of convx, which are not quantized: call "
        "convx.torch.revert for the model first"
    )


for _kinds in list(_METHODS):
    for _pattern in itertools.product(*((kind, SWAPS[kind]) if kind in SWAPS else (kind,) for kind in _kinds)):
        _METHODS.setdefault(_pattern, _refuse)
