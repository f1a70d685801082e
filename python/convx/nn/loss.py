"""Loss functions: ``forward`` returns the loss and a context, ``backward`` the gradient of the scores."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._cpu import ShapeError
from .._devices import namespace_of
from .._quiet import quiet
from .._types import FloatArray
from .module import check_array

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]

REDUCTIONS = ("mean", "sum")


class _Classified(NamedTuple):
    """The context: the softmax of the scores, and the labels."""

    probabilities: FloatArray
    labels: IntArray


def _rows(labels: IntArray) -> IntArray:
    """Return the row numbers as an array of the library of `labels`."""
    rows: IntArray = namespace_of(labels).arange(len(labels))
    return rows


def _outside(input: FloatArray, labels: IntArray) -> npt.NDArray[np.bool_]:
    """Return which labels are not a class."""
    outside: npt.NDArray[np.bool_] = (labels < 0) | (labels >= input.shape[1])
    return outside


class CrossEntropyLoss:
    """Softmax and negative log-likelihood of integer labels: ``loss[n] = log(sum_k exp(x[n,k])) - x[n,label[n]]``.

    The logarithm of the sum is taken after subtracting each row's maximum, so large scores do not overflow.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        Over the N rows.

    Raises
    ------
    ShapeError
        For another `reduction`, at construction and in `forward`.

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.2.2.3.

    Examples
    --------
    >>> import numpy as np
    >>> from convx import nn
    >>> criterion = nn.CrossEntropyLoss()
    >>> loss, context = criterion.forward(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(loss), 4)                           # log(4): four classes, no preference
    1.3863
    >>> criterion.backward(context)[0].tolist()
    [-0.375, 0.125, 0.125, 0.125]
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction
        self._check_reduction()

    def _check_reduction(self) -> None:
        if not isinstance(self.reduction, str) or self.reduction not in REDUCTIONS:
            expected = ", ".join(REDUCTIONS)
            raise ShapeError(f"CrossEntropyLoss: reduction is {self.reduction!r}, expected one of {expected}")

    @quiet
    def forward(self, input: FloatArray, labels: IntArray) -> tuple[Any, _Classified]:
        """Compute the loss.

        Parameters
        ----------
        input : array, shape (N, classes)
            Scores before the softmax (logits), floating point.
        labels : array, shape (N,)
            The right class of each row, an integer from 0 to classes - 1.

        Returns
        -------
        loss : scalar of the input's dtype
        context : object
            For :meth:`backward`.

        Raises
        ------
        ShapeError
            For inconsistent shapes, and for a mean over no rows.
        TypeError
            Where the input is not floating point or the labels are not integers.
        ValueError
            Where a label is not a class. On a GPU the loss is NaN instead, since nothing waits for the device.
        """
        self._check(input, labels)
        shifted = input - input.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        right = shifted[_rows(labels), labels][:, None]
        losses = np.log(sums) - right
        if not isinstance(labels, np.ndarray):
            losses = losses + np.where(_outside(input, labels), np.nan, 0).astype(losses.dtype)[:, None]
        loss = losses.mean() if self.reduction == "mean" else losses.sum()
        return loss, _Classified(exponentials / sums, labels)

    @quiet
    def backward(self, context: _Classified) -> FloatArray:
        """Compute the gradient of the loss with respect to the input: softmax minus one-hot labels.

        Parameters
        ----------
        context : object
            The second result of :meth:`forward`.

        Returns
        -------
        array, shape (N, classes)
            With ``reduction="mean"`` divided by N.
        """
        grad = context.probabilities.copy()
        grad[_rows(context.labels), context.labels] -= 1
        if self.reduction == "mean":
            grad /= grad.shape[0]
        return grad

    def __call__(self, input: FloatArray, labels: IntArray) -> Any:
        """Compute the loss alone; see :meth:`forward`."""
        return self.forward(input, labels)[0]

    def _check(self, input: FloatArray, labels: IntArray) -> None:
        self._check_reduction()
        check_array("CrossEntropyLoss", "input", input)
        check_array("CrossEntropyLoss", "labels", labels)
        if input.ndim != 2 or input.shape[1] == 0:
            raise ShapeError(f"CrossEntropyLoss: input has shape {input.shape}, expected (N, classes)")
        if labels.shape != input.shape[:1]:
            raise ShapeError(f"CrossEntropyLoss: labels have shape {labels.shape}, expected {input.shape[:1]}")
        if input.dtype.kind != "f":
            raise TypeError(f"CrossEntropyLoss: input has dtype {input.dtype}, expected floating point")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"CrossEntropyLoss: labels have dtype {labels.dtype}, expected integers")
        if self.reduction == "mean" and input.shape[0] == 0:
            raise ShapeError("CrossEntropyLoss: input has no rows, so there is no mean")
        if not isinstance(labels, np.ndarray):
            return  # reading the labels would wait for the device; forward makes their loss NaN
        outside = _outside(input, labels)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"CrossEntropyLoss: label {labels[row]} of row {row} is not a class, expected 0 to {input.shape[1] - 1}"
            )

    def __repr__(self) -> str:
        return f"CrossEntropyLoss(reduction={self.reduction!r})"
