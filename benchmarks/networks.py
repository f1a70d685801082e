"""Networks in PyTorch, which the benchmarks and the tests train.

Each is ``nn.Sequential(features, classifier)`` of two nn.Sequential, so that `units` can split it layer by layer.
Parameters have PyTorch's default initial values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10
# Layers that belong to the unit of the layer before them.
FOLLOWERS = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d)


def network(features: Iterable[nn.Module], classifier: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*features), classifier=nn.Sequential(nn.Flatten(), *classifier))
    )


def lenet5(classes: int = CLASSES) -> nn.Sequential:
    """LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998), figure 2.

    With ReLU and max-pooling, as is common today; for images of 1 x 28 x 28.
    """
    features = [
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip
    sizes = (16 * 5 * 5, 120, 84)
    hidden = [each for pair in pairwise(sizes) for each in (nn.Linear(*pair), nn.ReLU())]
    return network(features, [*hidden, nn.Linear(sizes[-1], classes)])


def vgg11(classes: int = CLASSES) -> nn.Sequential:
    """Simonyan, Zisserman (arXiv:1409.1556), configuration A, with one linear layer: for images of 3 x 32 x 32."""
    features, channels = list[nn.Module](), 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            features.append(nn.MaxPool2d(2))
    return network(features, [nn.Linear(channels, classes)])


def convolution(c: int, k: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and batch normalisation; padded so that stride 1 keeps the size."""
    return [nn.Conv2d(c, k, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(k)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        first, second = convolution(c, k, 3, stride), convolution(k, k, 3)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.shortcut = nn.Sequential(*(convolution(c, k, 1, stride) if stride != 1 or c != k else []))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return result


def resnet18(classes: int = 1000, width: int = 64) -> nn.Sequential:
    """He, Zhang, Ren, Sun (arXiv:1512.03385), table 1, 18 layers: for images of 3 x 224 x 224."""
    features = [*convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    c = width
    for stage in range(4):
        k = width << stage
        features += [BasicBlock(c, k, 2 if stage else 1), BasicBlock(k, k, 1)]
        c = k
    return pooled(features, c, classes)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3, a 1x1 that narrows; a shortcut where the shapes allow it."""

    def __init__(self, c: int, k: int, stride: int, widening: int) -> None:
        super().__init__()
        hidden = c * widening
        widen = [*convolution(c, hidden, 1), nn.ReLU6(inplace=True)] if widening > 1 else []
        self.body = nn.Sequential(
            *widen, *convolution(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True), *convolution(hidden, k, 1)
        )
        self.shortcut = stride == 1 and c == k

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x) if self.shortcut else self.body(x)
        return result


def mobilenet_v2(classes: int = 1000) -> nn.Sequential:
    """Sandler, Howard, Zhu, Zhmoginov, Chen (arXiv:1801.04381), table 2: for images of 3 x 224 x 224."""
    c = 32
    features = [*convolution(3, c, 3, 2), nn.ReLU6(inplace=True)]
    for widening, k, blocks, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            features.append(InvertedResidual(c, k, 1 if block else stride, widening))
            c = k
    return pooled([*features, *convolution(c, 1280, 1), nn.ReLU6(inplace=True)], 1280, classes)


def pooled(features: list[nn.Module], channels: int, classes: int) -> nn.Sequential:
    """A network with global average pooling and one linear layer behind `features`."""
    return network([*features, nn.AdaptiveAvgPool2d(1)], [nn.Linear(channels, classes)])


BUILDERS: dict[str, Callable[[], nn.Sequential]] = {
    "lenet5": lenet5,
    "vgg11_cifar": vgg11,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}


def build(name: str, seed: int = 0) -> nn.Sequential:
    """The network of that name, with initial values drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name]()


def units(model: nn.Sequential) -> Iterator[tuple[str, nn.Sequential]]:
    """Split a network into (name, unit): a layer with its followers, or a block."""
    for name, part in model.named_children():
        assert isinstance(part, nn.Sequential)
        starts = [index for index, layer in enumerate(part) if index == 0 or not isinstance(layer, FOLLOWERS)]
        for start, stop in zip(starts, [*starts[1:], len(part)], strict=True):
            yield f"{name}.{start} {type(part[start]).__name__}", part[start:stop]
