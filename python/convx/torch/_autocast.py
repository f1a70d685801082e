"""Autocast on the CPU: results have the dtypes that PyTorch's operations give, and are computed in float32.

convx has no 16-bit arithmetic on the CPU. What comes in with 16 bits is widened and the result is rounded once, at the
end, both recorded by autograd: gradients arrive in the dtype of what they are gradients of. float64 stays as it is.

Sources: PyTorch's lists of operations ("Automatic Mixed Precision package", CPU Op-Specific Behavior), where
convolutions run in the lower precision, ReLU and max-pooling in the dtype of their input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._cpu import ShapeError

_F = TypeVar("_F", bound=Callable[..., Any])

LOWER = -1
"""For `in_float32`: the dtype of autocast."""

_HALF = (torch.float16, torch.bfloat16)


def in_float32(*dtypes: int, writes_out: bool = False) -> Callable[[_F], _F]:
    """Let an operation on tensors of the CPU run in float32 where autocast is on.

    `dtypes` says for each result which argument has its dtype; `LOWER`: that of autocast. With `writes_out` the last
    argument is where the result goes, or None.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **words: Any) -> Any:
            if not torch.is_autocast_enabled("cpu"):
                return function(*args, **words)
            first = args[0]
            if not isinstance(first, Tensor) or first.device.type != "cpu":
                return function(*args, **words)
            targets = [_target(args, position) for position in dtypes]
            args, out = (args[:-1], args[-1:]) if writes_out else (args, ())
            into = [None if isinstance(each, Tensor) and each.dtype in _HALF else each for each in out]
            with torch.autocast("cpu", enabled=False):
                found = function(*map(_widened, args), *into, **words)
                if out and out[0] is not None:
                    return _written(function.__name__, out[0], found)
                if not isinstance(found, tuple):
                    return _rounded(found, targets[0])
                return *map(_rounded, found, targets), *found[len(targets) :]

        return call  # type: ignore[return-value]

    return decorate


def _target(args: Any, position: int) -> torch.dtype | None:
    """Return the dtype that a result is to have; None where it stays as it is computed."""
    like = args[max(position, 0)]
    if not isinstance(like, Tensor) or like.dtype not in (torch.float32, *_HALF):
        return None
    return torch.get_autocast_dtype("cpu") if position == LOWER else like.dtype


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


def _rounded(found: Any, dtype: torch.dtype | None) -> Any:
    return found if found is None or dtype is None or found.dtype != torch.float32 else found.to(dtype)


def _written(op: str, out: Tensor, found: Any) -> Any:
    """Return the results with `out` as the first: written already, unless it has 16 bits."""
    first, *rest = found if isinstance(found, tuple) else (found,)
    if first is not out:
        if out.shape != first.shape:
            raise ShapeError(f"{op}: out has shape {tuple(out.shape)}, expected {tuple(first.shape)}")
        out.copy_(first)
    return (out, *rest) if rest else out
