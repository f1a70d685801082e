"""A training step of a whole network in PyTorch, and the bytes that it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.cases import Case
from benchmarks.data import Array
from benchmarks.problems import NetworkProblem

# Small, so that values stay ordinary for hundreds of steps on one batch.
LEARNING_RATE = 1e-3


class Step:
    """A call: forward, loss, backward and the step of SGD on one batch. It returns the gradient of the first weight."""

    def __init__(
        self,
        case: Case,
        data: dict[str, Array],
        memory_format: torch.memory_format = torch.contiguous_format,
        change: Callable[[nn.Sequential], nn.Sequential] | None = None,
    ) -> None:
        assert isinstance(case.problem, NetworkProblem)
        model = networks.build(case.problem.network).to(getattr(torch, case.dtype), memory_format=memory_format)
        self.model = change(model) if change else model
        self.images = torch.from_numpy(data["images"]).contiguous(memory_format=memory_format)
        self.labels = torch.from_numpy(data["labels"])
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE)

    def __call__(self) -> Tensor:
        with torch.enable_grad():
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.images), self.labels).backward()
            self.optimizer.step()
        gradient = next(self.model.parameters()).grad
        assert gradient is not None
        return gradient

    def saved(self) -> dict[str, Any]:
        """Bytes that the forward pass keeps: the sum at its end, which is the peak, and the share of each unit.

        Each storage counts once; parameters, buffers and the batch do not count.
        """
        seen = {each.untyped_storage().data_ptr() for each in (*self.model.state_dict().values(), self.images)}
        new = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal new
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                new += storage.nbytes()
            return tensor

        amounts, result = list[tuple[str, int]](), self.images
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for name, part in networks.units(self.model):
                before, result = new, part(result)
                amounts.append((name, new - before))
            # The loss holds the graph, and with it every storage, so that no address is used twice.
            loss = F.cross_entropy(result, self.labels)
        del loss
        return {"saved_bytes": new, "saved_by_unit": amounts}
