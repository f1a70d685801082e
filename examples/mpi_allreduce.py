"""
Data-parallel training over MPI
===============================

A loop in NumPy on several machines; an allreduce of mpi4py adds the gradients.

Every process has the same network and computes the gradients of its share of a batch of handwritten digits. One
allreduce adds the gradients of all processes in one array, and all processes take the same step. ::

    python -m pip install '.[mpi]' scikit-learn
    mpirun -n 2 python examples/mpi_allreduce.py

``mpirun --host A,B`` runs it on several machines. With CuPy (``network.to(cupy)``) an MPI with CUDA support reads the
arrays on the device, after ``cupy.cuda.get_current_stream().synchronize()``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from convx import nn, optim


def network(rng: np.random.Generator) -> nn.Sequential:
    """Return two blocks of convolution, ReLU and pooling, and a linear layer, with weights drawn from `rng`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10, rng=rng),
    )  # fmt: skip


def add_up(parameters: list[nn.Parameter], weight: float) -> None:
    """Replace every gradient by `weight` times its sum over all processes."""
    flat = np.concatenate([parameter.grad.ravel() for parameter in parameters]) * np.float32(weight)
    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, flat)
    start = 0
    for parameter in parameters:
        parameter.grad[...] = flat[start : start + parameter.grad.size].reshape(parameter.grad.shape)
        start += parameter.grad.size


def main() -> None:
    """Train, and print the loss of each epoch and the accuracy."""
    parser = argparse.ArgumentParser(description="Data-parallel training in NumPy over MPI.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images of a step, in all processes together")
    options = parser.parse_args()

    world = MPI.COMM_WORLD
    rank, processes = world.Get_rank(), world.Get_size()
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=297, random_state=0, stratify=digits.target
    )
    rng = np.random.default_rng(0)  # every process draws the same weights and the same order of the images
    model = network(rng)
    parameters, criterion = list(model.parameters()), nn.CrossEntropyLoss("sum")
    optimizer = optim.SGD(parameters, lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        start, total = time.perf_counter(), 0.0
        for batch in np.split(rng.permutation(len(train_x)), range(options.batch, len(train_x), options.batch)):
            mine = batch[rank::processes]
            output, context = model.forward(train_x[mine])
            loss, loss_context = criterion.forward(output, train_y[mine])
            optimizer.zero_grad()
            model.backward(criterion.backward(loss_context), context, need_grad_input=False)
            add_up(parameters, 1 / len(batch))
            optimizer.step()
            total += float(loss)
        mean = world.allreduce(total) / len(train_x)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {mean:.4f}, {time.perf_counter() - start:.2f} s", flush=True)
    accuracy = (model(test_x).argmax(axis=1) == test_y).mean()
    print(f"process {rank} of {processes}: accuracy {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
