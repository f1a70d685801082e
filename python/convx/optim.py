"""Optimizers: :class:`SGD` and :class:`Adam`, with the formulas of PyTorch.

An optimizer changes the parameters' values in place. It takes any :class:`convx.nn.Parameter` and skips those without a
gradient. The hyperparameters are plain attributes, so a learning-rate schedule is an assignment, ``optimizer.lr *=
0.1``, which the next step checks. The state of a parameter is made at its first step, in the array library of its
value: see :meth:`convx.nn.Module.to`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from . import _cpu
from ._cpu import ShapeError
from ._devices import described, moved_like
from ._quiet import quiet
from ._types import FloatArray, real
from .nn.module import Parameter

__all__ = ["SGD", "Adam", "Optimizer"]


def _in_range(owner: str, name: str, value: Any, below: float = math.inf) -> float:
    """Return `value` as a float where ``0 <= value < below``, or raise the error that names the argument."""
    number = real(value)
    if number is None:
        raise TypeError(f"{owner}: {name} is {value!r}, expected a number")
    if not 0 <= number < below:
        raise ValueError(f"{owner}: {name} is {value}, expected 0 <= {name} < {below:g}")
    return number


class Optimizer:
    """The base class of the optimizers: the parameters, and the state of each between steps.

    Parameters
    ----------
    parameters : iterable of Parameter
        Each at most once, as from ``network.parameters()``.

    Raises
    ------
    ValueError
        Where there is no parameter, one occurs twice, or a hyperparameter is out of its range.
    TypeError
        Where an item is not a Parameter, or a hyperparameter is not a number.

    Examples
    --------
    A training step, with the learning rate of a schedule:

    >>> import numpy as np
    >>> from convx import nn, optim
    >>> network = nn.Linear(2, 1, rng=0)
    >>> optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    >>> optimizer.lr *= 0.5
    >>> output, context = network.forward(np.ones((4, 2), np.float32))
    >>> optimizer.zero_grad()
    >>> _ = network.backward(output, context)
    >>> optimizer.step()
    """

    lr: float
    hyperparameters: ClassVar[tuple[str, ...]]
    entries: ClassVar[tuple[str, ...]]
    """The state of a parameter from its first step on; ``"step"`` is a count, all others are arrays."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        if not isinstance(parameters, Iterable):
            found = described(type(parameters))
            raise TypeError(f"{type(self).__name__}: parameters is {found}, expected an iterable of convx.nn.Parameter")
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: there are no parameters")
        for position, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Parameter):
                found = described(type(parameter))
                raise TypeError(
                    f"{type(self).__name__}: parameter {position} is {found}, expected a convx.nn.Parameter"
                )
            if any(parameter is earlier for earlier in self.parameters[:position]):
                raise ValueError(f"{type(self).__name__}: parameter {position} ({parameter.name}) occurs twice")
        self.state: list[dict[str, Any]] = [{} for _ in self.parameters]

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters:
            parameter.zero_grad()

    @quiet
    def step(self) -> None:
        """Update every parameter that has a gradient, once.

        Raises
        ------
        ValueError, TypeError
            As the constructor does, for a hyperparameter assigned since; then no parameter has changed.
        """
        self._configure(**self._hyperparameters())
        for parameter, state in zip(self.parameters, self.state, strict=True):
            if parameter.grad is not None:
                self._update(parameter.value, parameter.grad, state)

    def state_dict(self) -> dict[str, Any]:
        """Return the hyperparameters and copies of all arrays, under flat names such as ``"0.momentum_buffer"``.

        Parameters are named by their position. ``numpy.savez(path, **optimizer.state_dict())`` stores it;
        :meth:`load_state_dict` takes the result of ``numpy.load``.

        Returns
        -------
        dict from str to array or number
        """
        state = self._hyperparameters()
        for position, kept in enumerate(self.state):
            for name, entry in kept.items():
                state[f"{position}.{name}"] = entry if name == "step" else entry.copy()
        return state

    @quiet
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the :meth:`state_dict` of an optimizer of the same class and parameters; nothing in case of an error.

        Parameters
        ----------
        state_dict : mapping from str to array or number
            As :meth:`state_dict` returns it.

        Raises
        ------
        ShapeError
            Where names are missing or unexpected or a shape is not that of the parameter; the message lists them all.
        ValueError, TypeError
            For bad hyperparameters, as the constructor does.
        """
        problems = [f"missing {name!r}" for name in self.hyperparameters if name not in state_dict]
        loaded: list[dict[str, Any]] = [{} for _ in self.parameters]
        for name, entry in state_dict.items():
            position, _, kept = name.partition(".")
            if name in self.hyperparameters:
                continue
            if not position.isdecimal() or int(position) >= len(loaded) or kept not in self.entries:
                problems.append(f"unexpected {name!r}")
                continue
            value = self.parameters[int(position)].value
            expected = () if kept == "step" else value.shape
            if np.shape(entry) != expected:
                problems.append(f"{name!r} has shape {np.shape(entry)}, expected {expected}")
            else:
                loaded[int(position)][kept] = (
                    int(entry) if kept == "step" else moved_like(entry, value).astype(value.dtype)
                )
        for index, state in enumerate(loaded):
            problems += [f"missing '{index}.{name}'" for name in self.entries if state and name not in state]
        if problems:
            raise ShapeError(f"load_state_dict: {type(self).__name__}: " + "; ".join(problems))
        self._configure(**{name: np.asarray(state_dict[name]).tolist() for name in self.hyperparameters})
        self.state = loaded

    def _hyperparameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.hyperparameters}

    def _configure(self, *args: Any, **kwargs: Any) -> None:
        """Check the hyperparameters and set them."""
        raise NotImplementedError

    def _update(self, value: FloatArray, grad: FloatArray, state: dict[str, Any]) -> None:
        """Change `value` in place; `grad` is only read."""
        raise NotImplementedError

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyperparameters)
        return f"{type(self).__name__}({len(self.parameters)} parameters, {options})"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: ``buffer = momentum * buffer + grad; value -= lr * buffer``.

    Parameters
    ----------
    parameters : iterable of Parameter
        The parameters to train.
    lr : float
        The learning rate.
    momentum : float
        From 0 (none) to below 1. The buffer starts as the first gradient.
    weight_decay : float
        ``weight_decay * value`` is added to the gradient first.
    nesterov : bool
        Step along ``grad + momentum * buffer`` instead of the buffer.

    Raises
    ------
    ValueError, TypeError
        As :class:`Optimizer` does; also for `nesterov` without momentum.

    References
    ----------
    Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning" (ICML 2013),
    in the form of PyTorch: the learning rate multiplies the buffer.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn, optim
    >>> parameter = nn.Parameter(np.array([1.0]))
    >>> parameter.accumulate(np.array([0.5]))
    >>> optim.SGD([parameter], lr=0.1).step()
    >>> parameter.value.tolist()
    [0.95]
    """

    hyperparameters = ("lr", "momentum", "weight_decay", "nesterov")
    entries = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters)
        self._configure(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _configure(self, *, lr: Any, momentum: Any, weight_decay: Any, nesterov: Any) -> None:
        checked = (
            _in_range("SGD", "lr", lr),
            _in_range("SGD", "momentum", momentum, 1),
            _in_range("SGD", "weight_decay", weight_decay),
            _cpu.truth("SGD", "nesterov", nesterov),
        )
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        self.lr, self.momentum, self.weight_decay, self.nesterov = checked

    def _update(self, value: FloatArray, grad: FloatArray, state: dict[str, Any]) -> None:
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        if self.momentum:
            if state:
                state["momentum_buffer"] *= self.momentum
                state["momentum_buffer"] += grad
            else:
                state["momentum_buffer"] = grad.copy()
            buffer = state["momentum_buffer"]
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        value -= self.lr * grad


class Adam(Optimizer):
    """Adam: steps along the mean gradient, divided by the root of the mean squared gradient.

    With the step count t and every operation per element (Kingma and Ba, "Adam", ICLR 2015, algorithm 1)::

        exp_avg    += (1 - beta1) * (grad - exp_avg)
        exp_avg_sq += (1 - beta2) * (grad**2 - exp_avg_sq)
        value      -= lr / (1 - beta1**t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps)

    Parameters
    ----------
    parameters : iterable of Parameter
        The parameters to train.
    lr : float
        The learning rate.
    betas : (float, float)
        The decay rates of the two means, each from 0 to below 1.
    eps : float
        Added to the divisor.
    weight_decay : float
        ``weight_decay * value`` is added to the gradient first.

    Raises
    ------
    ValueError, TypeError
        As :class:`Optimizer` does.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn, optim
    >>> parameter = nn.Parameter(np.array([1.0]))
    >>> parameter.accumulate(np.array([0.5]))
    >>> optim.Adam([parameter], lr=0.1).step()    # the first step has the length of the learning rate
    >>> parameter.value.round(6)
    array([0.9])
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay")
    entries = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters)
        self._configure(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _configure(self, *, lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"Adam: betas is {betas!r}, expected a pair of numbers")
        checked = (
            _in_range("Adam", "lr", lr),
            (_in_range("Adam", "betas[0]", betas[0], 1), _in_range("Adam", "betas[1]", betas[1], 1)),
            _in_range("Adam", "eps", eps),
            _in_range("Adam", "weight_decay", weight_decay),
        )
        self.lr, self.betas, self.eps, self.weight_decay = checked

    def _update(self, value: FloatArray, grad: FloatArray, state: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(value), exp_avg_sq=np.zeros_like(value))
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        state["step"] += 1
        beta1, beta2 = self.betas
        exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
        exp_avg += (1 - beta1) * (grad - exp_avg)
        exp_avg_sq *= beta2
        exp_avg_sq += (1 - beta2) * grad * grad
        divisor = np.sqrt(exp_avg_sq)
        divisor /= math.sqrt(1 - beta2 ** state["step"])
        divisor += self.eps
        value -= self.lr / (1 - beta1 ** state["step"]) * (exp_avg / divisor)
