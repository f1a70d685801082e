"""The base of every layer: :class:`Parameter` (a value and its gradient) and :class:`Module` (a tree of them).

NumPy's functions follow the library of their array arguments. So the code of ``convx.nn`` and ``convx.optim`` derives
every new array from an argument (``zeros_like``, operators, methods) and names no library: a network with CuPy's
parameters runs on the GPU.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from .._cpu import ShapeError
from .._devices import moved, moved_like
from .._quiet import quiet
from .._types import FloatArray

ModuleT = TypeVar("ModuleT", bound="Module")


def check_array(owner: str, name: str, value: Any) -> None:
    """Raise TypeError where `value` is not an array: a list has no shape and dtype, a tensor no dtype of NumPy."""
    if not (hasattr(value, "shape") and isinstance(getattr(value, "dtype", None), np.dtype)):
        raise TypeError(f"{owner}: {name} is {type(value).__name__}, expected an array of NumPy or CuPy")


class Parameter:
    """A trained array and its gradient.

    Parameters
    ----------
    value : array
        The values; optimizers change them in place.
    name : str
        The name in error messages, such as ``"weight"``.

    Attributes
    ----------
    grad : array or None
        The sum of all gradients since the last :meth:`zero_grad`, of the value's shape and dtype; None before one.

    Raises
    ------
    TypeError
        Where `value` is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> parameter = nn.Parameter(np.array([1.0, 2.0]))
    >>> parameter.accumulate(np.array([0.5, 0.5]))
    >>> parameter.accumulate(np.array([0.5, 0.0]))
    >>> parameter.grad
    array([1. , 0.5])
    """

    def __init__(self, value: FloatArray, name: str = "parameter") -> None:
        check_array("Parameter", name, value)
        self.value = value
        self.name = name
        self.grad: FloatArray | None = None

    @quiet
    def accumulate(self, grad: FloatArray) -> None:
        """Add `grad` to the gradient. The first gradient is not copied: do not change it afterwards.

        Parameters
        ----------
        grad : array
            Of the value's shape and dtype.

        Raises
        ------
        ShapeError, TypeError
            For another shape, or another dtype.
        """
        if grad.shape != self.value.shape:
            raise ShapeError(f"{self.name}: gradient has shape {grad.shape}, expected {self.value.shape}")
        if grad.dtype != self.value.dtype:
            raise TypeError(f"{self.name}: gradient has dtype {grad.dtype}, expected {self.value.dtype}")
        # Not in place: the array of the first call may have other references.
        self.grad = grad if self.grad is None else self.grad + grad

    def zero_grad(self) -> None:
        """Set the gradient to None."""
        self.grad = None

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.value.shape}, dtype={self.value.dtype})"


class Module:
    """The base class of all layers. A user's network derives from it and defines `forward` and `backward`.

    Attributes of a module that are parameters or layers belong to it; their dotted attribute names are the names in
    :meth:`state_dict`.

    Examples
    --------
    A block that adds its input to its output, with one layer used twice:

    >>> import numpy as np
    >>> from convx import nn
    >>> class Residual(nn.Module):
    ...     def __init__(self, channels):
    ...         self.conv = nn.Conv2d(channels, channels, 3, padding=1, rng=0)
    ...     def forward(self, input):
    ...         hidden, first = self.conv.forward(input)
    ...         output, second = self.conv.forward(hidden)
    ...         return input + output, (first, second)
    ...     def backward(self, grad_output, context, *, need_grad_input=True):
    ...         first, second = context
    ...         return grad_output + self.conv.backward(self.conv.backward(grad_output, second), first)
    >>> block = Residual(4)
    >>> output, context = block.forward(np.ones((1, 4, 5, 5), np.float32))
    >>> block.backward(np.ones_like(output), context).shape
    (1, 4, 5, 5)
    >>> list(block.state_dict())
    ['conv.weight', 'conv.bias']
    """

    def forward(self, input: FloatArray) -> tuple[FloatArray, Any]:
        """Compute the output and the context for :meth:`backward`; the module does not change.

        Parameters
        ----------
        input : array
            The batch, of the dtype and the library of the parameters.

        Returns
        -------
        output : array
        context : object
            Whatever `backward` needs.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, grad_output: FloatArray, context: Any, *, need_grad_input: bool = True) -> Any:
        """Add the gradients of the parameters to their ``grad`` and return the gradient of the input.

        Parameters
        ----------
        grad_output : array
            The gradient of the loss with respect to the output of the forward pass.
        context : object
            The second result of that `forward`.
        need_grad_input : bool
            False skips the gradient of the input (a network's first layer does not need it) and returns None.

        Returns
        -------
        array of the shape of the input, or None
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def __call__(self, input: FloatArray) -> FloatArray:
        """Compute the output alone (inference)."""
        return self.forward(input)[0]

    def members(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the names and the parameters and modules directly inside this one, in order of definition."""
        for name, member in vars(self).items():
            if isinstance(member, (Parameter, Module)):
                yield name, member

    def _parameters_by_every_name(self) -> Iterator[tuple[str, Parameter]]:
        for name, member in self.members():
            if isinstance(member, Parameter):
                yield name, member
            else:
                for inner, parameter in member._parameters_by_every_name():
                    yield f"{name}.{inner}", parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter once, with its dotted name (the first name of a shared parameter)."""
        seen: set[int] = set()
        for name, parameter in self._parameters_by_every_name():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Yield every parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self: ModuleT, array_module: Any) -> ModuleT:
        """Convert all parameters and gradients to arrays of another library, and return the module itself.

        The layers run on the device of their parameters and inputs: ``network.to(cupy)`` and CuPy inputs train on
        CuPy's current device. Call it before an optimizer's first step, since the optimizer's state does not move.

        Parameters
        ----------
        array_module : module
            ``numpy`` or ``cupy``.

        Returns
        -------
        Module
            This one.

        Raises
        ------
        TypeError
            Where `array_module` has no function ``asarray``.

        Examples
        --------
        >>> import numpy as np
        >>> from convx import nn
        >>> type(nn.Conv2d(1, 2, 3).to(np).weight.value)
        <class 'numpy.ndarray'>
        """
        if not hasattr(array_module, "asarray"):
            raise TypeError(f"to: array_module is {array_module!r}, expected numpy or cupy")
        for parameter in self.parameters():
            parameter.value = moved(parameter.value, array_module)
            if parameter.grad is not None:
                parameter.grad = moved(parameter.grad, array_module)
        return self

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of all parameter values under their dotted names.

        A shared parameter appears under each of its names, as in PyTorch. Unlike PyTorch's, the arrays are copies:
        later training does not change a state dict.

        Returns
        -------
        dict from str to array

        Examples
        --------
        >>> from convx import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> {name: value.shape for name, value in network.state_dict().items()}
        {'0.weight': (2, 1, 3, 3), '0.bias': (2,)}
        """
        return {name: parameter.value.copy() for name, parameter in self._parameters_by_every_name()}

    @quiet
    def load_state_dict(self, state_dict: Mapping[str, FloatArray]) -> None:
        """Copy `state_dict` into the parameters, in place; all of them or, after an error, none.

        Parameters
        ----------
        state_dict : mapping from str to array
            As :meth:`state_dict` returns it; arrays of NumPy or CuPy.

        Raises
        ------
        ShapeError
            Where names are missing or unexpected or a shape differs; the message lists every such name.
        TypeError
            Where an entry is not a floating-point array. Floating-point values convert to the parameter's dtype.
        """
        expected = dict(self._parameters_by_every_name())
        problems = [f"missing {name!r}" for name in expected if name not in state_dict]
        problems += [f"unexpected {name!r}" for name in state_dict if name not in expected]
        for name, wanted in expected.items():
            if name not in state_dict:
                continue
            value = state_dict[name]
            check_array("load_state_dict", repr(name), value)
            if value.dtype.kind != "f":
                raise TypeError(f"load_state_dict: {name!r} has dtype {value.dtype}, expected floating point")
            if value.shape != wanted.value.shape:
                problems.append(f"{name!r} has shape {value.shape}, expected {wanted.value.shape}")
        if problems:
            raise ShapeError(f"load_state_dict: {type(self).__name__}: " + "; ".join(problems))
        for name, parameter in expected.items():
            parameter.value[...] = moved_like(state_dict[name], parameter.value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`state_dict` to exactly `path` as an npz file (arrays only, no pickle).

        Parameters
        ----------
        path : str or path-like
            The file; no suffix is added.

        Raises
        ------
        OSError
            Where the file cannot be written.
        """
        with open(path, "wb") as file:
            arrays = {name: moved(value, np) for name, value in self.state_dict().items()}
            np.savez(file, **arrays)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load a file of :meth:`save`; nothing in the file is executed.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        OSError
            Where the file cannot be read.
        ValueError
            Where it is not an npz file.
        ShapeError, TypeError
            As :meth:`load_state_dict` does.
        """
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"load: {os.fspath(path)} is not an npz file")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                self.load_state_dict(dict(arrays))
