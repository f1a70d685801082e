"""Arithmetic without NumPy's floating point warnings: inf, NaN and denormals are ordinary results here.

The compiled operations never warn. The NumPy code beside them follows the same rule under any ``numpy.errstate`` of the
caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")


def quiet(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `function` without floating point warnings and errors.

    Examples
    --------
    >>> import numpy as np
    >>> from convx._quiet import quiet
    >>> with np.errstate(all="raise"):
    ...     quiet(np.subtract)(np.inf, np.inf)
    nan
    """

    # numpy.errstate is a decorator too, but one instance of it is not thread-safe.
    @functools.wraps(function)
    def calm(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return calm
