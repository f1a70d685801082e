"""relu and its gradient as operations of PyTorch, as _conv2d.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _library, _memory, _tensors
from ._library import Operation
from ._tensors import DISPATCHER, KERNEL, PAST_DISPATCHER, RECORDED

relu_op = Operation("relu", "Tensor input")
backward_op = Operation("relu_backward", "Tensor grad_output, Tensor output")


# Calls


@_tensors.entry_point
def relu(input: Tensor, return_mask: Any = False, out: Any = None) -> Any:
    """Run `convx.relu`."""
    path = _tensors.path_of(input)
    if out is None and return_mask is False:
        if path is KERNEL:
            return kernel(input)
        if path is RECORDED:
            return _apply_relu(kernel, input)
        if path is DISPATCHER:
            return relu_op(input)
    if _tensors.autocasts(input):
        return _tensors.in_float32("relu", lambda x, out: relu(x, return_mask, out), (0,), input, out=out)
    if return_mask is not False:
        tensors = _tensors.unrecorded("relu", out, input=input)
        out = torch.empty_like(tensors["input"]) if out is None else out
        return _memory.run_unrecorded("relu", tensors, (return_mask, out))
    if path in PAST_DISPATCHER:
        _tensors.destination("relu", out, input)
        if path is KERNEL:
            return _tensors.written(kernel(input, out))
    _tensors.refuse_out("relu", out)
    (input,), _ = _tensors.checked("relu", input=input)
    return relu_op(input)


@_tensors.entry_point
def relu_backward(grad_output: Tensor, output: Any, out: Any = None) -> Tensor:
    """Run `convx.relu_backward`."""
    op = "relu_backward"
    if _tensors.autocasts(grad_output):
        return _tensors.in_float32(op, relu_backward, (0,), grad_output, output, out=out)  # type: ignore[no-any-return]
    if isinstance(output, Tensor) and output.dtype == torch.uint8:
        tensors = _tensors.unrecorded(op, out, grad_output=grad_output)
        expected = {torch.uint8: "a mask of relu"}
        tensors["output"] = _tensors.selection(op, "output", output, grad_output, "grad_output", expected)
        out = torch.empty_like(tensors["grad_output"]) if out is None else out
        return _memory.run_unrecorded(op, tensors, (out,))  # type: ignore[no-any-return]
    path = _tensors.path_of(grad_output, output)
    if path in PAST_DISPATCHER:
        if out is not None:
            _tensors.destination(op, out, grad_output)
        if path is KERNEL:
            result = backward_kernel(grad_output, output, out)
            return result if out is None else _tensors.written(result)
    _tensors.refuse_out(op, out)
    if path is RECORDED:
        return _apply_backward(backward_kernel, grad_output, output)  # type: ignore[no-any-return]
    (grad_output, output), _ = _tensors.checked(op, grad_output=grad_output, output=output)
    return backward_op(grad_output, output)  # type: ignore[no-any-return]


# Kernels


def kernel(input: Tensor, out: Tensor | None = None) -> Tensor:
    """Run `convx.relu`."""
    if _memory.on_cpu(input) and out is None and input.is_contiguous():
        return _memory.tensor_of(_memory.cpu.relu(_memory.array_of(input), False, None))
    out = torch.empty_like(input) if out is None else out
    if _memory.on_cpu(input):
        _memory.cpu.relu(_memory.array_of(input), False, _memory.array_of(out))
    else:
        _memory.on_device("relu", "input", "NCHW", (input,), (), False, out.detach())
    return out


def backward_kernel(grad_output: Tensor, output: Tensor, out: Tensor | None = None) -> Tensor:
    """Run `convx.relu_backward`."""
    arrays = _memory.array_of
    if _memory.on_cpu(grad_output) and out is None and grad_output.is_contiguous():
        return _memory.tensor_of(_memory.cpu.relu_backward(arrays(grad_output), arrays(output), None))
    out = torch.empty_like(grad_output) if out is None else out
    if _memory.on_cpu(grad_output):
        _memory.cpu.relu_backward(arrays(grad_output), arrays(output), arrays(out))
    else:
        _memory.on_device("relu_backward", "grad_output", "NCHW", (grad_output, output), (), out.detach())
    return out


# Derivatives


class _ReLU(torch.autograd.Function):
    """apply(run, input)."""

    @staticmethod
    def forward(ctx: Any, run: Any, input: Tensor) -> Tensor:
        """Keep the output, which the next operation mostly keeps as well."""
        output: Tensor = run(input)
        ctx.save_for_backward(output)
        if run is not kernel:
            ctx.save_for_forward(output)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradient where the output is not <= 0."""
        if grad is None:
            return None, None
        (output,) = ctx.saved_tensors
        return None, (backward_kernel if _tensors.plain(grad) else backward_op)(grad, output)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        """Pass the tangent likewise."""
        result: Tensor = backward_op(tangent, *ctx.saved_tensors)
        return result


class _ReLUBackward(torch.autograd.Function):
    """apply(run, grad_output, output): linear in the first, constant in the second wherever it has a derivative."""

    @staticmethod
    def forward(ctx: Any, run: Any, grad: Tensor, output: Tensor) -> Tensor:
        """Keep the output of the ReLU."""
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.set_materialize_grads(False)
        result: Tensor = run(grad, output)
        return result

    @staticmethod
    def backward(ctx: Any, of_result: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradient where the output is not <= 0: the operation is its own adjoint."""
        if of_result is None:
            return None, None, None
        (output,) = ctx.saved_tensors
        _, needs_grad, needs_output = ctx.needs_input_grad
        run = backward_kernel if _tensors.plain(of_result) else backward_op
        # Zeros, not None: the derivative in the output exists, and is 0.
        return (
            None,
            run(of_result, output) if needs_grad else None,
            torch.zeros_like(output) if needs_output else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, of_grad: Tensor | None, __: Tensor | None) -> Tensor:
        """Pass the tangent likewise."""
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output) if of_grad is None else backward_op(of_grad, output)


_apply_relu = _library.applied(_ReLU)
_apply_backward = _library.applied(_ReLUBackward)


# Results without data, and batches


def _backward_fake(grad: Tensor, output: Tensor) -> Tensor:
    _library.match("relu_backward", "output", output.shape, grad.shape)
    return torch.empty_like(grad)


def _backward_batch(size: int, dims: Any, grad: Tensor, output: Tensor) -> tuple[Tensor, int]:
    return backward_op(_library.front(grad, dims[0], size), _library.front(output, dims[1], size)), 0


relu_op.implement(
    kernel=kernel,
    fake=lambda x: torch.empty_like(x),  # PyTorch asks a function for its annotations
    derivative=lambda x: _apply_relu(relu_op.below, x),
    batch=lambda size, dims, x: (relu_op(x), dims[0]),
    decomposition=F.relu,
)
backward_op.implement(
    kernel=backward_kernel,
    fake=_backward_fake,
    derivative=lambda grad, output: _apply_backward(backward_op.below, grad, output),
    batch=_backward_batch,
)
