"""``python -m benchmarks.gpu``: every operation on a CUDA device against PyTorch with cuDNN, in one process.

The arrays are PyTorch's; convx reads them in place. A sample is the time between two CUDA events around as many calls
as fill a millisecond. The libraries take turns, and inputs rotate through copies that together exceed twice the L2
cache. cuDNN runs in benchmark mode, in NCHW and channels_last; the faster one is the best peer. Results are compared
with float64 before anything is timed. The bounds (copy bandwidth, matrix products of each precision) are measured in
the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import convx
import convx.cuda
from benchmarks.cases import Case, layer_cases, relu_cases, thin
from benchmarks.display import duration
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem, ReluProblem

aten = torch.ops.aten
Call = Callable[[], Any]
SAMPLE_SECONDS = 1e-3
LISTS = ("resnet50", "mobilenet_v1", "grouped", "small")


@dataclass(frozen=True)
class Mode:
    """A dtype and a precision: convx's option, and PyTorch's switch for TF32."""

    name: str
    dtype: torch.dtype
    precision: str = "ieee"
    tf32: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("float32", torch.float32),
        Mode("float32 3xTF32", torch.float32, "tf32x3"),
        Mode("TF32", torch.float32, "tf32", True),
        Mode("bfloat16", torch.bfloat16),
        Mode("float16", torch.float16),
    )
}


def tensor(shape: Sequence[int], mode: Mode) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float32).to(mode.dtype)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    """A view of shape (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def calls(case: Case, mode: Mode) -> dict[str, Call]:
    """The calls of convx and PyTorch, in NCHW and channels_last."""
    problem = case.problem
    if isinstance(problem, ConvProblem):
        return conv_calls(case.passname, problem, mode)
    if isinstance(problem, PoolProblem):
        return pool_calls(case.passname, problem, mode)
    if isinstance(problem, ReluProblem):
        return relu_calls(case.passname, problem, mode)
    assert isinstance(problem, FusedProblem)
    return fused_calls(case.passname, problem, mode)


def conv_calls(passname: str, problem: ConvProblem, mode: Mode) -> dict[str, Call]:
    x, w = tensor(problem.input_shape, mode), tensor(problem.weight_shape, mode)
    g, b = tensor(problem.output_shape, mode), tensor((problem.k,), mode)
    options = (problem.stride, problem.padding, problem.dilation, problem.groups)
    mask = (passname == "grad_input", passname == "grad_weight", False)

    def ours(x: torch.Tensor, g: torch.Tensor, layout: str) -> Call:
        if passname.startswith("forward"):
            activation = "relu" if passname == "forward_relu" else None
            return lambda: convx.conv2d(
                x, w, b, *options, layout=layout, activation=activation, precision=mode.precision
            )
        return lambda: convx.conv2d_backward(
            g, x, w, *options, layout=layout, output_mask=mask, precision=mode.precision
        )[0 if mask[0] else 1]

    def theirs(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> Call:
        if passname == "forward":
            return lambda: F.conv2d(x, w, b, *options)
        if passname == "forward_relu":
            return lambda: F.conv2d(x, w, b, *options).relu_()
        return lambda: aten.convolution_backward(
            g, x, w, None, problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.groups, mask
        )[0 if mask[0] else 1]

    x_last, g_last = channels_last(x), channels_last(g)
    return {
        "convx": ours(x, g, "NCHW"),
        "convx-nhwc": ours(nhwc(x_last), nhwc(g_last), "NHWC"),
        "cudnn": theirs(x, w, g),
        "cudnn-cl": theirs(x_last, channels_last(w), g_last),
    }


def pool_calls(passname: str, problem: PoolProblem, mode: Mode) -> dict[str, Call]:
    x, g = tensor(problem.input_shape, mode), tensor(problem.output_shape, mode)
    ours = {"kernel_size": problem.kernel, "stride": problem.stride, "padding": problem.padding}
    theirs = (problem.kernel, problem.stride, problem.padding, (1, 1), problem.ceil_mode)
    saved = {"forward_codes": "return_codes", "forward_indices": "return_indices"}

    def convx_call(x: torch.Tensor, g: torch.Tensor, layout: str) -> Call:
        options = {**ours, "ceil_mode": problem.ceil_mode, "layout": layout}
        if passname.startswith("forward"):
            keep = {saved[passname]: True} if passname in saved else {}
            return lambda: convx.max_pool2d(x, **options, **keep)
        kind = "return_indices" if passname == "backward_indices" else "return_codes"
        selection = convx.max_pool2d(x, **options, **{kind: True})[1]
        return lambda: convx.max_pool2d_backward(g, selection, tuple(x.shape), **options)

    def torch_call(x: torch.Tensor, g: torch.Tensor) -> Call:
        if passname.startswith("forward"):
            return lambda: aten.max_pool2d_with_indices(x, *theirs)
        indices = aten.max_pool2d_with_indices(x, *theirs)[1]
        return lambda: aten.max_pool2d_with_indices_backward(g, x, *theirs, indices)

    x_last, g_last = channels_last(x), channels_last(g)
    return {
        "convx": convx_call(x, g, "NCHW"),
        "convx-nhwc": convx_call(nhwc(x_last), nhwc(g_last), "NHWC"),
        "cudnn": torch_call(x, g),
        "cudnn-cl": torch_call(x_last, g_last),
    }


def relu_calls(passname: str, problem: ReluProblem, mode: Mode) -> dict[str, Call]:
    x = tensor(problem.input_shape, mode)
    out, grad, y = torch.empty_like(x), tensor(problem.input_shape, mode), torch.relu(x)
    if passname == "backward":
        return {
            "convx": lambda: convx.relu_backward(grad, y),
            "cudnn": lambda: aten.threshold_backward(grad, y, 0),
        }
    if passname == "forward_out":
        return {
            "convx": lambda: convx.relu(x, out=out),
            "cudnn": lambda: torch.clamp_min(x, 0, out=out),
        }
    return {"convx": lambda: convx.relu(x), "cudnn": lambda: torch.relu(x)}


def fused_calls(passname: str, problem: FusedProblem, mode: Mode) -> dict[str, Call]:
    conv = problem.conv
    x, w, b = tensor(conv.input_shape, mode), tensor(conv.weight_shape, mode), tensor((conv.k,), mode)
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    pool = (problem.pool_kernel, problem.pool_stride, problem.pool_padding)
    names = dict(zip(("pool_kernel_size", "pool_stride", "pool_padding"), pool, strict=True))
    grad = tensor(problem.output_shape, mode)
    mask = (problem.needs_grad_input, True, True)

    def ours(x: torch.Tensor, grad: torch.Tensor, layout: str) -> Call:
        def forward() -> Any:
            return convx.conv2d_relu_max_pool2d(x, w, b, *options, **names, layout=layout)

        if passname == "forward":
            return forward
        saved = forward()[1]
        return lambda: convx.conv2d_relu_max_pool2d_backward(grad, saved, output_mask=mask)

    def theirs(x: torch.Tensor, w: torch.Tensor, grad: torch.Tensor) -> Call:
        def forward() -> Any:
            y = F.conv2d(x, w, b, *options).relu_()
            return y, *aten.max_pool2d_with_indices(y, *pool)

        if passname == "forward":
            return forward
        y, _, indices = forward()

        def backward() -> Any:
            g = aten.max_pool2d_with_indices_backward(grad, y, *pool, (1, 1), False, indices)
            g = aten.threshold_backward(g, y, 0)
            return aten.convolution_backward(
                g, x, w, [conv.k], conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, mask
            )

        return backward

    x_last, g_last = channels_last(x), channels_last(grad)
    return {
        "convx": ours(x, grad, "NCHW"),
        "convx-nhwc": ours(nhwc(x_last), nhwc(g_last), "NHWC"),
        "cudnn": theirs(x, w, grad),
        "cudnn-cl": theirs(x_last, channels_last(w), g_last),
    }


def first_tensor(result: Any) -> torch.Tensor:
    found = result
    while not isinstance(found, torch.Tensor):
        found = next(each for each in found if each is not None)
    return found


def conv_error(case: Case, mode: Mode) -> dict[str, float]:
    """The errors of convx and cuDNN against float64, relative to the largest value, on the same data."""
    assert isinstance(case.problem, ConvProblem)
    found: dict[str, float] = {}
    torch.manual_seed(1)
    exact = first_tensor(conv_calls(case.passname, case.problem, Mode("float64", torch.float64))["cudnn"]())
    for name in ("convx", "convx-nhwc", "cudnn"):
        torch.manual_seed(1)
        got = first_tensor(conv_calls(case.passname, case.problem, mode)[name]()).double()
        if got.shape != exact.shape:
            got = got.permute(0, 3, 1, 2)
        found[name] = float((got - exact).abs().max() / exact.abs().max())
    return found


def time_alternately(functions: dict[str, list[Call]], rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds of a call, by library; the libraries take turns."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(choices: list[Call], count: int) -> float:
        begin.record()
        for i in range(count):
            choices[i % len(choices)]()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / count

    counts = {}
    for name, choices in functions.items():
        for choice in choices:
            choice()
        once = max(sample(choices, len(choices)), 1e-6)
        counts[name] = max(len(choices), math.ceil(SAMPLE_SECONDS / once))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, choices in functions.items():
            each = max(1, int(seconds / rounds / SAMPLE_SECONDS))
            samples[name] += [sample(choices, counts[name]) for _ in range(each)]
    return {name: statistics.median(found) for name, found in samples.items()}


def bounds() -> dict[str, float]:
    """Copy bandwidth in bytes/s (read and written) and matrix products in FLOP/s, measured with PyTorch."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy = time_alternately({"copy": [lambda: target.copy_(source)]}, 3, 0.1)["copy"]
    found = {"copy": 2 * source.nbytes / copy}
    size = 8192
    for mode in MODES.values():
        if mode.precision == "tf32x3":
            continue
        torch.backends.cuda.matmul.allow_tf32 = mode.tf32
        a, b = tensor((size, size), mode), tensor((size, size), mode)
        found[mode.name] = 2 * size**3 / time_alternately({"mm": [lambda a=a, b=b: a @ b]}, 3, 0.1)["mm"]
    return found


def cases(quick: bool) -> list[Case]:
    found = layer_cases("conv2d", LISTS, network_batches=(32,), passes=("forward", "grad_input", "grad_weight"))
    found += layer_cases("max_pool2d", ("pool_2x2", "pool"), network_batches=(32,))
    found += layer_cases("conv2d_relu_max_pool2d", ("conv_relu_pool",))
    found += relu_cases((1 << 20, 1 << 24, 1 << 27))
    return thin(found) if quick else found


def measure(options: argparse.Namespace, console: Console) -> Iterator[dict[str, Any]]:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    for case in cases(options.quick):
        for name in options.modes:
            mode = MODES[name]
            if mode.precision != "ieee" and not isinstance(case.problem, ConvProblem):
                continue
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.tf32
            itemsize = torch.empty(0, dtype=mode.dtype).element_size()
            moved = case.problem.bytes(case.passname, itemsize)
            copies = max(1, min(4, math.ceil(2 * cache / moved)))
            row: dict[str, Any] = {
                "key": case.key, "kind": case.kind, "op": case.op, "pass": case.passname, "mode": name,
                "layer": case.name, "problem": case.problem.describe(), "flops": case.flops, "bytes": moved,
                "occurrences": case.occurrences,
            }  # fmt: skip
            try:
                if isinstance(case.problem, ConvProblem):
                    row["error"] = conv_error(case, mode)
                sets = [calls(case, mode) for _ in range(copies)]
                row["seconds"] = time_alternately(
                    {library: [one[library] for one in sets] for library in sets[0]}, options.rounds, options.seconds
                )
            except (RuntimeError, TypeError, ValueError) as failure:  # the row keeps it, the run goes on
                row["failure"] = f"{type(failure).__name__}: {failure}"
            console.print(line(row), markup=False, highlight=False, soft_wrap=True)
            yield row


def best(row: dict[str, Any], libraries: Sequence[str]) -> float | None:
    times = [row["seconds"][name] for name in libraries if name in row.get("seconds", {})]
    return min(times, default=None)


def ratio(row: dict[str, Any]) -> float | None:
    ours, theirs = best(row, ("convx", "convx-nhwc")), best(row, ("cudnn", "cudnn-cl"))
    return theirs / ours if ours and theirs else None


def line(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"{row['key']} {row['mode']}: FAILED {row['failure']}"
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in row["seconds"].items())
    return f"{row['layer']} {row['problem']} {row['pass']} {row['mode']}: {times} = {ratio(row):.2f}x"


def summary(rows: Sequence[dict[str, Any]], limits: dict[str, float]) -> Table:
    """By class, pass and mode: the geometric mean and the worst of the ratios to cuDNN's best layout."""
    table = Table(title="best layout of convx against best layout of PyTorch with cuDNN")
    for column in ("class", "pass", "mode", "cells", "ratio", "worst", "NCHW", "NHWC", "% of bound"):
        table.add_column(column)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "seconds" in row:
            groups.setdefault((row["kind"], row["pass"], row["mode"]), []).append(row)
    for (kind, passname, mode), members in groups.items():
        ratios = [each for row in members if (each := ratio(row))]
        by_layout = [
            [row["seconds"][theirs] / row["seconds"][ours] for row in members if ours in row["seconds"]]
            for ours, theirs in (("convx", "cudnn"), ("convx-nhwc", "cudnn-cl"))
        ]
        shares = [share for row in members if (share := of_bound(row, limits))]
        means = [f"{statistics.geometric_mean(each):.2f}" if each else "-" for each in (ratios, *by_layout)]
        table.add_row(
            kind, passname, mode, str(len(members)), means[0], f"{min(ratios):.2f}", means[1], means[2],
            f"{100 * statistics.median(shares):.0f}" if shares else "-",
        )  # fmt: skip
    return table


def of_bound(row: dict[str, Any], limits: dict[str, float]) -> float | None:
    """Share of the roofline: the larger of bytes over copy bandwidth and FLOPs over the matrix product's rate."""
    ours = best(row, ("convx", "convx-nhwc"))
    rate = limits.get(row["mode"], limits["float32"])
    return max(row["bytes"] / limits["copy"], row["flops"] / rate) / ours if ours else None


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a layer of each class")
    parser.add_argument("--seconds", type=float, default=0.1, help="of timing for each cell and library")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES), help=", ".join(MODES))
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/DEVICE-DATE-gpu.json)")
    options = parser.parse_args()
    console = Console(width=160)
    if not convx.cuda.is_available():
        raise SystemExit(f"no CUDA device: {convx.cuda.unavailable_reason()}")
    torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    device, today = torch.cuda.get_device_name(0), datetime.datetime.now(datetime.timezone.utc)
    limits = bounds()
    about = {
        "device": device, "date": today.isoformat(timespec="seconds"), "convx": convx.__version__,
        "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "bounds": limits,
    }  # fmt: skip
    console.print_json(data=about)
    rows = list(measure(options, console))
    console.print(summary(rows, limits))
    name = "-".join(device.lower().split())
    path = options.output or Path(__file__).parent / "results" / f"{name}-{today:%Y-%m-%d}-gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
