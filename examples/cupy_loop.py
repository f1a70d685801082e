"""
A training loop in CuPy, and as a CUDA graph
============================================

Forward, backward and SGD step in CuPy, then the step replayed as a CUDA graph. Needs a GPU.

CuPy has had no convolution or pooling since version 14. convx takes CuPy arrays without a copy. Its work goes on CuPy's
current stream, its results come from CuPy's memory pool, and nothing waits for the device; so a whole step can be
captured once and replayed. ::

    python -m pip install '.[cuda13]' scikit-learn          # or .[cuda12], on a machine with nvcc
    python examples/cupy_loop.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cupy as cp
import numpy as np
from sklearn.datasets import load_digits

import convx
import convx.cuda

CLASSES = 10
BATCH = 64


def parameters(rng: np.random.Generator) -> dict[str, Any]:
    """Return weights of He's variance and zero biases, float32 on the device."""
    shapes = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "linear": (CLASSES, 32 * 2 * 2)}
    values = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        values[f"{name}.weight"] = cp.asarray(rng.standard_normal(shape) * scale, dtype=cp.float32)
        values[f"{name}.bias"] = cp.zeros(shape[0], dtype=cp.float32)
    return values


def forward(p: dict[str, Any], images: Any) -> tuple[Any, list[Any]]:
    """Return the logits, shape (N, 10), and the saved arrays for images of shape (N, 1, 8, 8)."""
    pooled1, saved1 = convx.conv2d_relu_max_pool2d(
        images, p["conv1.weight"], p["conv1.bias"], padding=1, pool_kernel_size=2
    )
    pooled2, saved2 = convx.conv2d_relu_max_pool2d(
        pooled1, p["conv2.weight"], p["conv2.bias"], padding=1, pool_kernel_size=2
    )
    flat = pooled2.reshape(len(images), -1)
    return flat @ p["linear.weight"].T + p["linear.bias"], [saved1, saved2, flat]


def softmax_cross_entropy(logits: Any, onehot: Any) -> tuple[Any, Any]:
    """Return the mean loss, still on the device, and its gradient with respect to the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = cp.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = -((shifted - cp.log(total)) * onehot).sum() / len(logits)
    return loss, (exponentials / total - onehot) / len(logits)


def backward(p: dict[str, Any], grad_logits: Any, kept: list[Any]) -> dict[str, Any]:
    """Return the gradient of every parameter."""
    saved1, saved2, flat = kept
    grad_flat = grad_logits @ p["linear.weight"]
    grad_pooled2 = grad_flat.reshape(len(flat), 32, 2, 2)
    grad_pooled1, weight2, bias2 = convx.conv2d_relu_max_pool2d_backward(grad_pooled2, saved2)
    # The images are data, so their gradient is not computed.
    _, weight1, bias1 = convx.conv2d_relu_max_pool2d_backward(grad_pooled1, saved1, output_mask=(False, True, True))
    return {
        "conv1.weight": weight1, "conv1.bias": bias1, "conv2.weight": weight2, "conv2.bias": bias2,
        "linear.weight": grad_logits.T @ flat, "linear.bias": grad_logits.sum(axis=0),
    }  # fmt: skip


def step(p: dict[str, Any], velocity: dict[str, Any], images: Any, onehot: Any, rate: float) -> Any:
    """Take one step of SGD with momentum 0.9, in place; return the loss, still on the device."""
    logits, kept = forward(p, images)
    loss, grad_logits = softmax_cross_entropy(logits, onehot)
    for name, grad in backward(p, grad_logits, kept).items():
        velocity[name] *= 0.9
        velocity[name] += grad
        p[name] -= rate * velocity[name]
    return loss


class GraphStep:
    """The step as a CUDA graph: one launch instead of about 60, so that the device does not wait for Python.

    A replay reads and writes the memory of the capture. Inputs are therefore copied into `images` and `onehot`, and the
    step allocates from a pool of its own.
    """

    def __init__(self, p: dict[str, Any], velocity: dict[str, Any], images: Any, onehot: Any, rate: float) -> None:
        self.images, self.onehot = images.copy(), onehot.copy()
        self.pool, self.stream = cp.cuda.MemoryPool(), cp.cuda.Stream(non_blocking=True)
        before = {name: value.copy() for name, value in {**p, **{f"v {k}": v for k, v in velocity.items()}}.items()}
        with cp.cuda.using_allocator(self.pool.malloc), self.stream:
            # The first step compiles CuPy's kernels and fills the pool; neither is possible during a capture.
            step(p, velocity, self.images, self.onehot, rate)
            self.stream.synchronize()
            self.stream.begin_capture()
            self.loss = step(p, velocity, self.images, self.onehot, rate)
            self.graph = self.stream.end_capture()
        for name, value in before.items():
            (velocity[name[2:]] if name.startswith("v ") else p[name])[...] = value
        cp.cuda.get_current_stream().synchronize()

    def __call__(self, images: Any, onehot: Any) -> Any:
        """Run the step on new data; return the loss, still on the device."""
        with self.stream:
            self.images[...] = images
            self.onehot[...] = onehot
            self.graph.launch(self.stream)
        return self.loss


def main() -> None:
    """Train on scikit-learn's digits, step by step and as a graph, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if not convx.cuda.is_available():
        raise SystemExit(f"no CUDA device: {convx.cuda.unavailable_reason()}")

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = cp.asarray(digits.images[order, None] / 16, dtype=cp.float32)
    labels = cp.asarray(digits.target[order])
    onehot = cp.eye(CLASSES, dtype=cp.float32)[labels]
    held_out = 360
    batches = range(held_out, len(images) - BATCH + 1, BATCH)

    for name in ("calls", "graph"):
        p = parameters(np.random.default_rng(1))
        velocity = {key: cp.zeros_like(value) for key, value in p.items()}
        if name == "graph":
            run = GraphStep(p, velocity, images[:BATCH], onehot[:BATCH], 0.05)
        else:

            def run(x: Any, y: Any, p: Any = p, velocity: Any = velocity) -> Any:
                return step(p, velocity, x, y, 0.05)

        start = time.perf_counter()
        for _ in range(options.epochs):
            for first in batches:
                loss = run(images[first : first + BATCH], onehot[first : first + BATCH])
        cp.cuda.Device().synchronize()
        seconds = time.perf_counter() - start
        correct = float((forward(p, images[:held_out])[0].argmax(axis=1) == labels[:held_out]).mean())
        print(
            f"{name}: {options.epochs * len(batches)} steps in {seconds:.2f} s, last loss {float(loss):.4f}, "
            f"{100 * correct:.2f} % of {held_out} held-out digits right"
        )


if __name__ == "__main__":
    main()
