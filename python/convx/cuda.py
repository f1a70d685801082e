"""Whether operations on CUDA arrays run on this machine, and on which devices.

The operations are those of :mod:`convx`: they run on the device of their first argument.

>>> import convx
>>> if not convx.cuda.is_available():
...     reason = convx.cuda.unavailable_reason()
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ._cpu import ShapeError

__all__ = ["device_count", "device_name", "is_available", "unavailable_reason"]

_module: ModuleType | None = None
_ready = False


def is_available() -> bool:
    """Return whether convx was built with CUDA, and a driver and a device are available.

    Examples
    --------
    >>> import convx
    >>> convx.cuda.is_available() == (convx.cuda.device_count() > 0)
    True
    """
    return not unavailable_reason()


def unavailable_reason() -> str:
    """Return why CUDA cannot be used; an empty string where it can.

    Examples
    --------
    >>> import convx
    >>> bool(convx.cuda.unavailable_reason()) != convx.cuda.is_available()
    True
    """
    global _ready
    if _ready:
        return ""
    try:
        found = module()
    except ImportError as error:
        return str(error)
    reason = str(found.unavailable_reason())
    _ready = not reason
    return reason


def device_count() -> int:
    """Return how many CUDA devices convx can use; 0 where it cannot use any, for any reason.

    Examples
    --------
    >>> import convx
    >>> convx.cuda.device_count() >= 0
    True
    """
    return 0 if unavailable_reason() else int(module().device_count())


def device_name(device: int = 0) -> str:
    """Return the name and the compute capability of a device.

    Parameters
    ----------
    device : int, default 0
        From 0 to `device_count` - 1.

    Returns
    -------
    str

    Raises
    ------
    RuntimeError
        Where CUDA cannot be used; the message has the reason.
    ShapeError
        Where `device` does not exist.

    Examples
    --------
    >>> import convx
    >>> names = [convx.cuda.device_name(device) for device in range(convx.cuda.device_count())]
    """
    if reason := unavailable_reason():
        raise RuntimeError(f"device_name: CUDA cannot be used: {reason}")
    count = device_count()
    if not 0 <= device < count:
        raise ShapeError(f"device_name: device is {device}, expected 0 to {count - 1}")
    return str(module().device_name(device))


def module() -> Any:
    """Return the compiled module; the first call loads it.

    Raises
    ------
    ImportError
        Where convx was built without it, or the system cannot load it.
    """
    global _module
    if _module is None:
        try:
            _module = importlib.import_module("convx._cuda")
        except ModuleNotFoundError:
            built = "convx was built without CUDA (pip install with --config-settings=cmake.define.CONVX_CUDA=ON)"
            raise ImportError(built) from None
        except ImportError as error:
            raise ImportError(f"convx._cuda cannot be loaded: {error}") from error
    return _module
