"""The timed cases: a case is one problem, pass and dtype, with its occurrences in the layer lists.

The layer lists are the CSV files in shapes/ (their README names the sources). Identical layers are timed once: the
`*N` of a name and repeats across the selected lists become the case's `occurrences`, its weight in a network's sum.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.problems import ConvProblem, FusedProblem, NetworkProblem, PoolProblem, Problem, ReluProblem

SHAPES = Path(__file__).parent / "shapes"

PASSES: dict[str, tuple[str, ...]] = {
    "conv2d": ("forward", "forward_relu", "grad_input", "grad_weight"),
    "max_pool2d": ("forward", "forward_codes", "forward_indices", "backward", "backward_indices"),
    "relu": ("forward", "forward_out", "backward"),
    "conv2d_relu_max_pool2d": ("forward", "backward"),
    "training": ("step",),
}
PROBLEMS: dict[str, type[Problem]] = {
    "conv2d": ConvProblem,
    "max_pool2d": PoolProblem,
    "relu": ReluProblem,
    "conv2d_relu_max_pool2d": FusedProblem,
    "training": NetworkProblem,
}
ITEMSIZE = {"float32": 4, "float64": 8}

# The batch size of the lists of whole networks; all other lists have their own.
NETWORK_BATCH = 8
NETWORKS = (
    "alexnet", "grouped", "mobilenet_v1", "mobilenet_v2", "pool", "pool_2x2", "resnet18", "resnet50", "resnet50_v1_5",
    "squeezenet_v11", "vgg11", "vgg19",
)  # fmt: skip

# One image and a batch: `layers` and `inference` time both.
NETWORK_BATCHES = (1, NETWORK_BATCH)

# The trained networks of networks.py: batch size, and shape (C, H, W) of an image.
TRAINED: dict[str, tuple[int, tuple[int, int, int]]] = {
    "lenet5": (64, (1, 28, 28)),
    "vgg11_cifar": (64, (3, 32, 32)),
    "resnet18": (NETWORK_BATCH, (3, 224, 224)),
    "mobilenet_v2": (NETWORK_BATCH, (3, 224, 224)),
}

# From within L1 to several times any last-level cache; the shorter list is for --quick.
RELU_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
FEW_RELU_SIZES = (1 << 12, 1 << 20, 1 << 24)

# The order in which classes appear in tables and plots.
CLASSES = (
    "first layer", "3x3 at 112 and up", "3x3 at 56", "3x3 at 28", "3x3 at 14", "3x3 at 7", "1x1", "strided",
    "depthwise", "grouped", "other kernels", "small", "photo", "float64", "fused", "pool 2x2",
    "pool 3x3", "pool, other", "relu", "overhead", "training",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One problem to time; `occurrences` counts the layer in each requested list.

    `rotate` marks layers of a network. Training touches far more than a cache holds between two visits of one layer, so
    weights and saved arrays rotate through copies. The array that the neighbouring layer has just written does not: in
    real use it is as warm as its size allows.
    """

    op: str
    passname: str
    problem: Problem
    dtype: str
    name: str
    occurrences: dict[str, int] = field(default_factory=dict, compare=False, hash=False)
    rotate: bool = False

    @property
    def flops(self) -> int:
        return self.problem.flops(self.passname)

    @property
    def bytes(self) -> int:
        return self.problem.bytes(self.passname, ITEMSIZE[self.dtype])

    @property
    def key(self) -> str:
        """The name of the cell in all result files; it does not depend on the list."""
        return f"{self.op}.{self.passname} {self.dtype} {self.problem.describe()}"

    @property
    def kind(self) -> str:
        """The class of the case, one of CLASSES."""
        if "overhead" in self.occurrences:
            return "overhead"
        if self.dtype == "float64":
            return "float64"
        if isinstance(self.problem, ConvProblem):
            return classify_conv(self.problem)
        if isinstance(self.problem, PoolProblem):
            return {(2, 2): "pool 2x2", (3, 3): "pool 3x3"}.get(self.problem.kernel, "pool, other")
        if isinstance(self.problem, NetworkProblem):
            return "training"
        return "relu" if isinstance(self.problem, ReluProblem) else "fused"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the arrays that `rotate`: weights, and the saved arrays of a backward pass."""
        size, problem = ITEMSIZE[self.dtype], self.problem
        if isinstance(problem, FusedProblem):
            saved = prod(problem.input_shape) * size + prod(problem.output_shape) if self.passname == "backward" else 0
            return prod(problem.conv.weight_shape) * size + saved
        if isinstance(problem, ConvProblem):
            weight, saved = prod(problem.weight_shape) * size, prod(problem.input_shape) * size
            return {"grad_input": weight, "grad_weight": saved}.get(self.passname, weight)
        if isinstance(problem, PoolProblem):
            return problem.bytes(self.passname, 0)
        return prod(problem.output_shape) * size if self.passname == "backward" else 0

    def copies(self, cache_bytes: int, most: int = 8) -> int:
        """The number of copies of the stored arrays that together exceed twice the last-level cache.

        `most` bounds the set-up time of libraries that compile a model for each weight. Small weights then stay in the
        last-level cache; reading them costs next to nothing beside their arithmetic.
        """
        if not self.rotate or self.stored_bytes == 0 or self.bytes >= 2 * cache_bytes:
            return 1
        return min(most, -(-2 * cache_bytes // self.stored_bytes))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        problem = data["problem"]
        if "conv" in problem:
            problem = {**problem, "conv": ConvProblem(**as_tuples(problem["conv"]))}
        kind = PROBLEMS[data["op"]]
        return Case(**{**data, "problem": kind(**as_tuples(problem))})


def as_tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def classify_conv(problem: ConvProblem) -> str:
    if problem.groups > 1:
        return "depthwise" if problem.groups == problem.c else "grouped"
    if problem.c <= 4 and problem.k <= 4:
        return "photo"
    if problem.c < 32 and problem.k < 32:
        return "small"
    if problem.c <= 4:
        return "first layer"
    if problem.stride != (1, 1):
        return "strided"
    if problem.kernel == (1, 1):
        return "1x1"
    if problem.kernel == (3, 3) and problem.dilation == (1, 1):
        for least, plane in ((80, "112 and up"), (40, "56"), (20, "28"), (10, "14")):
            if min(problem.h, problem.w) >= least:
                return f"3x3 at {plane}"
        return "3x3 at 7"
    return "other kernels"


def read_rows(name: str) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Rows of shapes/NAME.csv as (layer name, occurrences, numbers)."""
    with (SHAPES / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            layer, _, times = row.pop("name").partition("*")
            yield layer, int(times or 1), {column: int(value) for column, value in row.items()}


def available_lists() -> list[str]:
    return sorted(path.stem for path in SHAPES.glob("*.csv"))


def pair(row: dict[str, int], first: str, second: str) -> tuple[int, int]:
    return row[first], row[second]


def conv_problem(row: dict[str, int], n: int) -> ConvProblem:
    return ConvProblem(
        n, row["c"], row["h"], row["w"], row["k"], pair(row, "r", "s"), pair(row, "stride_h", "stride_w"),
        pair(row, "pad_h", "pad_w"), pair(row, "dil_h", "dil_w"), row["groups"],
    )  # fmt: skip


def fused_problem(row: dict[str, int], n: int) -> FusedProblem:
    return FusedProblem(
        conv_problem(row, n), pair(row, "pool_r", "pool_s"), pair(row, "pool_stride_h", "pool_stride_w"),
        pair(row, "pool_pad_h", "pool_pad_w"),
    )  # fmt: skip


def pool_problem(row: dict[str, int], n: int) -> PoolProblem | str:
    """The problem, or the reason why it is left out: libraries pad symmetrically, by at most half the kernel."""
    kernel, padding = pair(row, "r", "s"), pair(row, "pad_h", "pad_w")
    if any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
        return "padding of more than half the kernel"
    for ceil_mode in (False, True):
        problem = PoolProblem(
            n, row["c"], row["h"], row["w"], kernel, pair(row, "stride_h", "stride_w"), padding, ceil_mode
        )
        if problem.output_shape[2:] == pair(row, "out_h", "out_w"):
            return problem
    return "padding that differs between the sides"


def problems(op: str, name: str, batch: int | None) -> Iterator[tuple[str, int, Problem | str]]:
    """(layer, occurrences, problem) of the operation's rows; a reason instead of the problem where it is left out."""
    for layer, times, row in read_rows(name):
        n = batch or row["n"]
        if op == "conv2d" and "k" in row:
            yield layer, times, conv_problem(row, n)
        elif op == "conv2d_relu_max_pool2d" and "pool_r" in row:
            yield layer, times, fused_problem(row, n)
        elif op == "max_pool2d" and "out_h" in row:
            average = any(word in layer for word in ("ave_", "avg_"))
            yield layer, times, "average pooling" if average else pool_problem(row, n)


def left_out(op: str, lists: Sequence[str]) -> dict[str, str]:
    """Rows of the lists that the operation cannot express, with the reason."""
    return {
        f"{name} row {row}: {layer}": problem
        for name in lists
        for row, (layer, _, problem) in enumerate(problems(op, name, None), 1)
        if isinstance(problem, str)
    }


def layer_cases(
    op: str,
    lists: Sequence[str],
    batches: Sequence[int | None] = (None,),
    passes: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    network_batches: Sequence[int] = (NETWORK_BATCH,),
) -> list[Case]:
    """Cases of the given lists.

    Batch None means `network_batches` for networks and the list's own for others; 0 means the list's own for all.
    """
    cases: list[Case] = []
    for name in lists:
        if name not in available_lists():
            raise ValueError(f"no layer list {name!r}; there are {', '.join(available_lists())}")
        network = name in NETWORKS
        own: Sequence[int | None] = network_batches if network else (None,)
        for chosen in (each for batch in batches for each in (own if batch is None else (batch or None,))):
            cases += [
                Case(op, passname, problem, dtype, layer, {name: times}, rotate=network)
                for layer, times, problem in problems(op, name, chosen)
                if not isinstance(problem, str)
                for dtype in dtypes
                for passname in passes or PASSES[op]
            ]
    return merge(cases)


def relu_cases(
    sizes: Iterable[int] = RELU_SIZES,
    passes: Sequence[str] = PASSES["relu"],
    dtypes: Sequence[str] = ("float32",),
) -> list[Case]:
    return [
        Case("relu", passname, ReluProblem(size), dtype, "relu", {"relu": 1})
        for dtype in dtypes
        for size in sizes
        for passname in passes
    ]


def overhead_cases() -> list[Case]:
    """Calls with next to no arithmetic: the time is that of the dispatch path from Python to the kernel and back."""
    conv = ConvProblem(1, 1, 8, 8, 1, (3, 3), padding=(1, 1))
    wider = ConvProblem(1, 8, 8, 8, 8, (3, 3), padding=(1, 1))
    pool = PoolProblem(1, 1, 8, 8, (2, 2), (2, 2))
    tiny: list[tuple[str, str, Problem]] = [
        ("relu", "forward", ReluProblem(8)),
        ("relu", "forward_out", ReluProblem(8)),
        ("conv2d", "forward", conv),
        ("conv2d", "forward_relu", conv),
        ("conv2d", "forward", wider),
        ("conv2d", "grad_input", wider),
        ("conv2d", "grad_weight", wider),
        ("max_pool2d", "forward", pool),
        ("max_pool2d", "backward", pool),
    ]
    return [Case(op, passname, problem, "float32", "overhead", {"overhead": 1}) for op, passname, problem in tiny]


def training_cases(
    networks: Sequence[str] = tuple(TRAINED), batches: Sequence[int] = (0,), dtypes: Sequence[str] = ("float32",)
) -> list[Case]:
    """A training step of each network at each batch size; 0 is the network's own."""
    return [
        Case("training", "step", NetworkProblem(name, n or TRAINED[name][0], TRAINED[name][1]), dtype, name)
        for dtype in dtypes
        for name in networks
        for n in batches
    ]


def merge(cases: Iterable[Case]) -> list[Case]:
    """Merge identical problems, in the order of their first appearance; the occurrences of each list add up."""
    merged: dict[str, Case] = {}
    for case in cases:
        first = merged.get(case.key)
        if first is None:
            merged[case.key] = dataclasses.replace(case, occurrences=dict(case.occurrences))
        else:
            for name, times in case.occurrences.items():
                first.occurrences[name] = first.occurrences.get(name, 0) + times
            if case.rotate and not first.rotate:
                merged[case.key] = dataclasses.replace(first, rotate=True)
    return list(merged.values())


def thin(cases: Sequence[Case], each: int = 1) -> list[Case]:
    """Select for --quick: at most `each` layers of each class and operation, with all passes; all relu and overhead."""
    chosen: dict[tuple[str, str, str], list[str]] = {}
    kept = []
    for case in cases:
        layers = chosen.setdefault((case.kind, case.op, case.dtype), [])
        layer = case.problem.describe()
        if layer not in layers and (len(layers) < each or case.kind in ("relu", "overhead")):
            layers.append(layer)
        if layer in layers:
            kept.append(case)
    return kept
