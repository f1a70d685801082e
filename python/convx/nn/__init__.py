"""Layers with explicit gradients: a network is plain functions, its state plain arrays.

There is no tape and no hidden state. A layer's ``forward`` returns its output *and a context*, which holds what
``backward`` needs; a layer itself holds parameters and their accumulated gradients, nothing else. So one layer can
stand twice in a network (each use has its own context, both gradients add up), and a forward pass may be repeated,
nested or abandoned at any time::

    output, context = network.forward(images)              # training: keep the context
    loss, loss_context = criterion.forward(output, labels)
    optimizer.zero_grad()
    network.backward(criterion.backward(loss_context), context)
    optimizer.step()

    output = network(images)                               # inference: nothing is kept

A context refers to the arrays of its forward pass without a copy: do not change those in place before ``backward``.
One forward, any number of backwards: a context is only read.
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
