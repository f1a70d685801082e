"""Layers with explicit gradients: a network consists of plain functions and plain arrays.

There is no tape and no hidden state. A layer's ``forward`` returns its output *and a context* for ``backward``; the
layer itself holds only parameters and their accumulated gradients. So a network can use one layer twice (each use has
its own context, both gradients add up), and a forward pass may be repeated, nested or abandoned at any time::

    output, context = network.forward(images)              # training: keep the context
    loss, loss_context = criterion.forward(output, labels)
    optimizer.zero_grad()
    network.backward(criterion.backward(loss_context), context)
    optimizer.step()

    output = network(images)                               # inference: nothing is kept

A context refers to the arrays of its forward pass without a copy: do not change those in place before ``backward``.
``backward`` only reads a context, so one forward pass may have several backward passes.
"""

from .layers import Conv2d, ConvTranspose2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from .loss import CrossEntropyLoss
from .module import Module, Parameter

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
]
