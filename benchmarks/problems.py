"""The timed problems, as plain sizes, with their output shapes, FLOPs and bytes.

Notation: N batch, C input channels, H W input size, K output channels, R S kernel size, P Q output size, G groups.

FLOPs are one multiplication and one addition per tap, taps over the border included: the usual convention, by which the
figures of all libraries and papers are comparable, and exact without padding. Bytes are the least possible traffic:
every input array read once, every output array written once. Additional traffic of a library does not count, so the
share of the copy bandwidth describes the operation, not the implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Pair = tuple[int, int]
Shape = tuple[int, ...]

CODE_BYTES = 1
INDEX_BYTES = 8


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    out = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A window may not start in the bottom or right padding.
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def by(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


@dataclass(frozen=True)
class ConvProblem:
    """A conv2d layer with symmetric zero padding; `c` and `k` are totals over the groups."""

    n: int
    c: int
    h: int
    w: int
    k: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def input_shape(self) -> Shape:
        return (self.n, self.c, self.h, self.w)

    @property
    def weight_shape(self) -> Shape:
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def output_shape(self) -> Shape:
        sizes = zip((self.h, self.w), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return (self.n, self.k, *(conv_size(*size) for size in sizes))

    def flops(self, passname: str) -> int:
        """The same for every pass: forward and each gradient visit each (output, tap, channel) once."""
        return 2 * prod(self.output_shape) * (self.c // self.groups) * prod(self.kernel)

    def elements(self, passname: str) -> int:
        """Elements read and written; the gradients of one array read the other two."""
        bias = self.k if passname.startswith("forward") else 0
        return prod(self.input_shape) + prod(self.weight_shape) + prod(self.output_shape) + bias

    def bytes(self, passname: str, itemsize: int) -> int:
        return self.elements(passname) * itemsize

    def describe(self) -> str:
        parts = [f"{self.n}x{self.c}x{self.h}x{self.w} -> {self.k}", f"{self.kernel[0]}x{self.kernel[1]}"]
        if self.stride != (1, 1):
            parts.append(f"s{by(self.stride)}")
        if self.padding != (0, 0):
            parts.append(f"p{by(self.padding)}")
        if self.dilation != (1, 1):
            parts.append(f"d{by(self.dilation)}")
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        return " ".join(parts)


@dataclass(frozen=True)
class PoolProblem:
    """A max_pool2d layer with symmetric padding."""

    n: int
    c: int
    h: int
    w: int
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False

    @property
    def input_shape(self) -> Shape:
        return (self.n, self.c, self.h, self.w)

    @property
    def output_shape(self) -> Shape:
        sizes = zip((self.h, self.w), self.kernel, self.stride, self.padding, strict=True)
        return (self.n, self.c, *(pool_size(*size, self.ceil_mode) for size in sizes))

    def flops(self, passname: str) -> int:
        return 0

    def bytes(self, passname: str, itemsize: int) -> int:
        """Input and output (or their gradients) once, and codes or indices where the pass has them."""
        selection = {
            "forward": 0,
            "forward_codes": CODE_BYTES,
            "forward_indices": INDEX_BYTES,
            "backward": CODE_BYTES,
            "backward_indices": INDEX_BYTES,
        }[passname]
        return (prod(self.input_shape) + prod(self.output_shape)) * itemsize + prod(self.output_shape) * selection

    def describe(self) -> str:
        text = f"{self.n}x{self.c}x{self.h}x{self.w} {self.kernel[0]}x{self.kernel[1]} s{by(self.stride)}"
        text += f" p{by(self.padding)}" if self.padding != (0, 0) else ""
        return text + (" ceil" if self.ceil_mode else "")


@dataclass(frozen=True)
class ReluProblem:
    """A ReLU over `size` contiguous elements."""

    size: int

    @property
    def input_shape(self) -> Shape:
        return (self.size,)

    @property
    def output_shape(self) -> Shape:
        return (self.size,)

    def flops(self, passname: str) -> int:
        return 0

    def bytes(self, passname: str, itemsize: int) -> int:
        arrays = 3 if passname == "backward" else 2
        return arrays * self.size * itemsize

    def describe(self) -> str:
        for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
            if self.size >= unit and self.size % unit == 0:
                return f"{self.size // unit} {name} elements"
        return f"{self.size} elements"


@dataclass(frozen=True)
class FusedProblem:
    """conv2d + bias, ReLU and max_pool2d as one training operation that keeps one byte per pooled element."""

    conv: ConvProblem
    pool_kernel: Pair
    pool_stride: Pair
    pool_padding: Pair = (0, 0)

    @property
    def pool(self) -> PoolProblem:
        n, k, p, q = self.conv.output_shape
        return PoolProblem(n, k, p, q, self.pool_kernel, self.pool_stride, self.pool_padding)

    @property
    def n(self) -> int:
        return self.conv.n

    @property
    def input_shape(self) -> Shape:
        return self.conv.input_shape

    @property
    def output_shape(self) -> Shape:
        return self.pool.output_shape

    @property
    def needs_grad_input(self) -> bool:
        """Whether a training step needs it: the input of a first layer (at most 4 channels) is data."""
        return self.conv.c > 4

    def flops(self, passname: str) -> int:
        """Backward counts as dense gradients, although a 2x2 pooling makes three of four values of them zero."""
        if passname == "forward":
            return self.conv.flops(passname)
        return self.conv.flops(passname) * (2 if self.needs_grad_input else 1)

    def bytes(self, passname: str, itemsize: int) -> int:
        sizes = prod(self.conv.input_shape), prod(self.conv.weight_shape) + self.conv.k, prod(self.output_shape)
        inputs, parameters, outputs = sizes
        if passname == "forward":
            return (inputs + parameters + outputs) * itemsize + outputs * CODE_BYTES
        read_and_written = (2 if self.needs_grad_input else 1) * inputs + 2 * parameters + outputs
        return read_and_written * itemsize + outputs * CODE_BYTES

    def describe(self) -> str:
        return f"{self.conv.describe()} + pool {self.pool.describe().split(' ', 1)[1]}"


@dataclass(frozen=True)
class NetworkProblem:
    """A whole network of networks.py with a batch of images (C, H, W); its FLOPs and bytes are not counted."""

    network: str
    n: int
    image: tuple[int, int, int]

    @property
    def input_shape(self) -> Shape:
        return (self.n, *self.image)

    @property
    def output_shape(self) -> Shape:
        return (self.n,)

    def flops(self, passname: str) -> int:
        return 0

    def bytes(self, passname: str, itemsize: int) -> int:
        return 0

    def describe(self) -> str:
        return f"{self.network} {'x'.join(map(str, self.input_shape))}"


Problem = ConvProblem | PoolProblem | ReluProblem | FusedProblem | NetworkProblem
