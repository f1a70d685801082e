"""Checksums of the results of every public operation, to show that a refactoring changes no bit.

    python tests/checksums.py save before.json [--drawn 2000] [--isas avx2,portable]
    python tests/checksums.py compare before.json

It covers the layer lists of benchmarks/shapes (one image of each layer) and random problems, on every instruction set
and in both layouts: all passes under every algorithm, transposed and per-sample, prepared weights, pooling by codes and
by indices, ReLU by outputs and by masks, the fused block. A call that raises has its message as the checksum. `compare`
runs the cases of the file, prints the differences, and exits with 1 if there are any. The emulated set runs only random
problems.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import convx
from convx import _cpu

SHAPES = Path(__file__).parents[1] / "benchmarks/shapes"
MOST_FLOPS = 2_000_000_000  # limit of a layer; larger ones run the same methods on larger planes
ALGORITHMS = ("auto", "direct", "winograd")


def digest(result: Any) -> str:
    """Return a checksum of arrays, in tuples of any depth, by shape, dtype and bits."""
    state = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, tuple | list):
            for each in value:
                add(each)
        elif value is not None:
            state.update(f"{value.dtype}{value.shape}".encode())
            state.update(np.ascontiguousarray(value))

    add(result)
    return state.hexdigest()


def random(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return normally distributed numbers, some of them zero."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    values[np.abs(values) < 0.05] = 0
    return values.astype(dtype)


def convolution(shape: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and thunks of the passes of a convolution; `shape` is N, C, H, W, K, R, S."""
    n, c, h, w, k, r, s = shape
    groups = options.get("groups", 1)
    x = random(1, (n, c, h, w) if layout == "NCHW" else (n, h, w, c), dtype)
    weight, bias = random(2, (k, c // groups, r, s), dtype), random(3, (k,), dtype)
    words = {**options, "layout": layout}
    try:
        y = convx.conv2d(x, weight, bias, **words)
    except convx.ShapeError as error:
        yield "refused", lambda error=error: (_ for _ in ()).throw(error)
        return
    g = random(4, y.shape, dtype)
    masks = {"input": (True, False, False), "weight": (False, True, False), "bias": (False, False, True)}
    for algorithm in ALGORITHMS:
        own = {**words, "algorithm": algorithm}
        yield f"forward {algorithm}", lambda own=own: convx.conv2d(x, weight, bias, activation="relu", **own)
        for name, mask in masks.items():
            if name == "bias" and algorithm != "auto":
                continue
            yield (
                f"grad_{name} {algorithm}",
                lambda own=own, mask=mask: convx.conv2d_backward(g, x, weight, output_mask=mask, **own),
            )
    yield "prepared", lambda: convx.conv2d(x, convx.prepare_weight(weight, x.shape, **words), bias, **words)
    yield "norms", lambda: convx.conv2d_grad_norms(g, x, weight.shape, **words)
    if n > 1:
        mask = (False, True, True)
        yield "per sample", lambda: convx.conv2d_backward(g, x, weight, output_mask=mask, per_sample=True, **words)
    if not {"padding_mode", "padding_value"} & set(options):
        adjoint = random(5, (c, k // groups, r, s), dtype)
        shift = random(6, (k,), dtype)
        yield "transposed", lambda: convx.conv_transpose2d(x, adjoint, shift, **words)
        yield (
            "fused",
            lambda: _fused(x, weight, bias, {**words, "pool_kernel_size": 2}),
        )
        yield (
            "fused 3",
            lambda: _fused(x, weight, bias, {**words, "pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}),
        )


def _fused(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, words: dict[str, Any]) -> Any:
    output, saved = convx.conv2d_relu_max_pool2d(x, weight, bias, **words)
    gradient = random(7, output.shape, str(output.dtype))
    return output, convx.conv2d_relu_max_pool2d_backward(gradient, saved)


def pooling(shape: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and thunks of the passes of a max-pooling."""
    n, c, h, w = shape
    x = random(1, (n, c, h, w) if layout == "NCHW" else (n, h, w, c), dtype)
    size, words = options["kernel_size"], {**options, "layout": layout}
    del words["kernel_size"]
    for name in ("indices", "codes"):

        def both(name: str = name) -> Any:
            y, choice = convx.max_pool2d(x, size, **{**words, f"return_{name}": True})
            gradient = random(2, y.shape, dtype)
            return y, choice, convx.max_pool2d_backward(gradient, choice, x.shape, size, **words)

        yield name, both
    yield "values", lambda: convx.max_pool2d(x, size, **words)


def relus(size: int, dtype: str) -> Iterator[tuple[str, Any]]:
    """Yield names and thunks of ReLU and its gradients."""
    x, g = random(1, (size,), dtype), random(2, (size,), dtype)
    yield "relu", lambda: convx.relu_backward(g, convx.relu(x))
    yield "mask", lambda: (mask := convx.relu(x, return_mask=True), convx.relu_backward(g, mask[1]))


def layers() -> Iterator[tuple[str, Callable[[], Iterator[tuple[str, Any]]]]]:
    """Yield every distinct layer of the lists, of one image."""
    seen = set()
    for path in sorted(SHAPES.glob("*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                size = {name: int(value) for name, value in row.items() if name != "name"}
                pair = {name: (size.get(f"{name}_h", 1), size.get(f"{name}_w", 1)) for name in ("stride", "pad", "dil")}
                if "k" in size:
                    shape = tuple(size[name] for name in "chwkrs")
                    options = {"stride": pair["stride"], "padding": pair["pad"], "dilation": pair["dil"]}
                    options["groups"] = size["groups"]
                    outputs = size["h"] * size["w"] // (pair["stride"][0] * pair["stride"][1])
                    flops = 2 * outputs * size["k"] * size["c"] // size["groups"] * size["r"] * size["s"]
                    kind = convolution
                else:
                    shape = tuple(size[name] for name in "chw")
                    floor = (size["h"] + 2 * size["pad_h"] - size["r"]) // size["stride_h"] + 1
                    options = {"kernel_size": (size["r"], size["s"]), "stride": pair["stride"], "padding": pair["pad"]}
                    options["ceil_mode"] = size["out_h"] > floor
                    flops, kind = 0, pooling
                name = f"{kind.__name__} {shape} {options}"
                if name in seen or flops > MOST_FLOPS:
                    continue
                seen.add(name)
                for layout in ("NCHW", "NHWC"):
                    yield (
                        f"{name} {layout}",
                        lambda kind=kind, shape=shape, layout=layout, options=options: kind(
                            (1, *shape), "float32", layout, options
                        ),
                    )


def drawn(count: int) -> Iterator[tuple[str, Callable[[], Iterator[tuple[str, Any]]]]]:
    """Yield `count` random problems, always the same ones."""
    rng = np.random.default_rng(2026)

    def draw(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    for index in range(count):
        dtype, layout = draw("float32", "float32", "float64"), draw("NCHW", "NHWC")
        size = [number(1, draw(4, 9, 20, 40)) for _ in range(2)]
        kernel = draw((3, 3), (3, 3), (5, 5), (1, 1), (number(1, 5), number(1, 5)))
        stride = draw(1, 1, 2, (number(1, 4), number(1, 4)))
        dilation = draw(1, 1, 1, 2, (number(1, 3), number(1, 3)))
        padding = draw(0, kernel[0] // 2, kernel[0] // 2, (number(0, 3), number(0, 3)), "same")
        if index % 5 == 4:
            shape = (number(1, 3), number(1, draw(4, 40)), *size)
            options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
            options["ceil_mode"] = draw(False, True)
            kind = pooling
        else:
            groups = draw(1, 1, 1, number(1, 6), number(1, 40))
            own = (1, 1) if groups > 6 else (number(1, draw(4, 17, 70)), number(1, draw(4, 17, 70)))
            shape = (number(1, draw(2, 9)), own[0] * groups, *size, own[1] * groups, *kernel)
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            if index % 7 == 6:
                options["padding_mode"] = draw("constant", "reflect", "replicate", "circular")
                options["padding_value"] = draw(0.0, 1.5) if options["padding_mode"] == "constant" else 0.0
            kind = convolution
        yield (
            f"{kind.__name__} {dtype} {layout} {shape} {options}",
            lambda kind=kind, shape=shape, dtype=dtype, layout=layout, options=options: kind(
                shape, dtype, layout, options
            ),
        )


def everything(isas: list[str], count: int) -> Iterator[tuple[str, str]]:
    """Yield the name and checksum of every result."""
    for isa in isas:
        _cpu.set_isa(isa)
        lists = drawn(count) if isa.endswith("emulated") else itertools.chain(layers(), drawn(count))
        for name, results in lists:
            for part, compute in results():
                try:
                    found = digest(compute())
                except (ValueError, TypeError) as error:
                    found = str(error)
                yield f"{isa} {name} {part}", found
        for size, dtype in itertools.product((1, 63, 64, 1000, 1 << 20), ("float32", "float64")):
            for part, compute in relus(size, dtype):
                yield f"{isa} {part} {size} {dtype}", digest(compute())


def main() -> int:
    """Save checksums, or compare with saved ones."""
    parser = argparse.ArgumentParser(description="Checksums of what every public operation computes.")
    parser.add_argument("command", choices=("save", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--drawn", type=int, default=2000, metavar="N", help="drawn problems (save)")
    parser.add_argument("--isas", default=",".join(_cpu.config()["isas"]), help="instruction sets (save)")
    arguments = parser.parse_args()
    if arguments.command == "save":
        sums = dict(everything(arguments.isas.split(","), arguments.drawn))
        saved = {"isas": arguments.isas.split(","), "drawn": arguments.drawn, "sums": sums}
        arguments.file.write_text(json.dumps(saved, indent=0))
        print(f"{len(sums)} checksums of {len(saved['isas'])} instruction sets in {arguments.file}")
        return 0
    saved = json.loads(arguments.file.read_text())
    before, count = saved["sums"], len(saved["sums"])
    differing = [name for name, found in everything(saved["isas"], saved["drawn"]) if before.pop(name, None) != found]
    for name in differing[:300]:
        print(f"differs: {name}")
    for name in list(before)[:100]:
        print(f"not computed: {name}")
    print(f"{len(differing)} of {count} differ, {len(before)} are missing")
    return 1 if differing or before else 0


if __name__ == "__main__":
    sys.exit(main())
