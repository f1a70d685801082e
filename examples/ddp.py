"""
Data-parallel training in PyTorch
=================================

A converted model under DistributedDataParallel, in processes that torchrun starts.

Each process trains on its share of every batch of handwritten digits; DistributedDataParallel averages the gradients,
as for any model. Two processes on this machine::

    python -m pip install '.[torch]' scikit-learn
    torchrun --standalone --nproc-per-node 2 examples/ddp.py

Several machines, with the same command on each; HOST is one of them::

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/ddp.py

Processes with a GPU communicate through NCCL, others through gloo.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import convx
import convx.torch


def digits(device: torch.device) -> tuple[TensorDataset, Tensor, Tensor]:
    """Return the training set, and the images (N, 1, 8, 8) and labels of the test set."""
    bunch = load_digits()
    images = (bunch.images[:, None] / 8 - 1).astype(np.float32)
    parts = train_test_split(images, bunch.target, test_size=297, random_state=0, stratify=bunch.target)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part).to(device) for part in parts)
    return TensorDataset(train_x, train_y), test_x, test_y


def network() -> nn.Module:
    """Return two blocks of convolution, ReLU and pooling, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Train, and print the loss of each epoch and the accuracy, from the first process."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    train_set, test_x, test_y = digits(device)
    torch.manual_seed(0)  # DistributedDataParallel copies the weights of the first process to all
    model = DistributedDataParallel(convx.torch.convert(network(), verbose=rank == 0).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = DistributedSampler[Tensor](train_set, seed=0)
    loader = DataLoader(train_set, batch_size=options.batch // processes, sampler=sampler)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        start, losses = time.perf_counter(), []
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {mean / processes:.4f}, {time.perf_counter() - start:.2f} s", flush=True)
    with torch.no_grad():
        accuracy = (model.module(test_x).argmax(1) == test_y).float().mean()
    print(f"process {rank} of {processes}: accuracy {accuracy:.3f}", flush=True)


def main() -> None:
    """Join the other processes, train, and leave the group."""
    parser = argparse.ArgumentParser(description="Data-parallel training of a converted model.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images of a step, in all processes together")
    options = parser.parse_args()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        convx.set_num_threads(torch.get_num_threads())  # 1 under torchrun, since the processes share the cores
        dist.init_process_group("gloo")
    try:
        train(options, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
