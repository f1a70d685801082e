"""The command line of the benchmarks: cases, libraries, and the file of the results."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import cases as catalogue
from benchmarks import choices, floor, machine, plots, prices, report, sweep, training
from benchmarks.cases import Case
from benchmarks.display import LiveDisplay
from benchmarks.results import FOLDER, Results, file_name
from benchmarks.runners import CONVOLUTION, FILTERS, GENERAL, MODULES, PEERS
from benchmarks.session import Session, Settings, instruction_sets

# The commands with layer lists: their operation, and their default lists.
OPS = {"layers": "conv2d", "inference": "conv2d", "pool": "max_pool2d", "fused": "conv2d_relu_max_pool2d"}
LISTS: dict[str, Sequence[str]] = {
    "layers": ("resnet50", "vgg19", "mobilenet_v1", "grouped", "small", "photo"),
    "inference": ("resnet50", "vgg19", "mobilenet_v2", "resnet18"),
    "pool": ("pool_2x2", "pool"),
    "fused": ("conv_relu_pool",),
}
ALL = ("layers", "pool", "fused", "relu", "overhead")
# One image and a batch for networks; a batch for pooling and fused layers.
BATCHES = {"layers": catalogue.NETWORK_BATCHES, "inference": catalogue.NETWORK_BATCHES}
# The lists that `layers` also times in float64, unless --lists or --dtype is given.
FLOAT64_LISTS = ("resnet18",)
RUNNERS: dict[str, Sequence[str]] = {
    "layers": (*GENERAL, *CONVOLUTION, *FILTERS, "reference"),
    "inference": (*GENERAL, *CONVOLUTION, "convx-prepared"),
    "networks": ("torch", "torch-cl", "convx-nhwc"),
    "pool": (*GENERAL, *CONVOLUTION, "reference"),
    "relu": (*GENERAL, "numpy", "reference"),
    "fused": (*GENERAL, "convx-separate", "reference"),
    "overhead": (*PEERS, "reference"),
    "all": (*PEERS, "convx-separate", "reference"),
    "floor": ("torch", "numpy"),
    "sweep": sweep.RUNNERS,
}
# Drawn problems: short samples, for what is looked for are factors.
SWEEP: dict[str, Any] = {"seconds": 0.06, "rounds": 3, "warm_up": 0.5}
# A training step takes up to a second; each round has several.
STEP_SECONDS = 15.0
# Under a minute: start-up, the cell in progress at the deadline, and the plots take the time after the deadline.
QUICK: dict[str, Any] = {
    "seconds": 0.02, "rounds": 2, "warm_up": 0.1, "most_copies": 2, "peak_seconds": 0.1, "burst_seconds": 0.01,
    "deadline": 38.0,
}  # fmt: skip


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def batches(text: str) -> list[int]:
    """Batch sizes; 0 for `list`, the list's own."""
    return [0 if word == "list" else int(word) for word in words(text)]


def names_of(allowed: Sequence[str]) -> Any:
    """An argparse type for comma-separated names out of `allowed`."""

    def parse(text: str) -> list[str]:
        for word in words(text):
            if word.partition("@")[0] not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return words(text)

    return parse


def parser() -> argparse.ArgumentParser:
    peers = [name for name in MODULES if name != "convx"]
    passes = list(dict.fromkeys(name for each in catalogue.PASSES.values() for name in each))
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--threads", type=int, default=machine.cpu_count(), help="for every library (default: every CPU)")
    run.add_argument("--isa", help="the instruction set that convx is forced to: portable, avx2, avx512")
    run.add_argument("--peers", type=names_of([*peers, "convx"]), metavar="A,B", help=f"{', '.join(peers)}, convx@ISA")
    run.add_argument("--dtype", type=names_of(list(catalogue.ITEMSIZE)), metavar="A,B", help="default: float32")
    run.add_argument("--passes", type=names_of(passes), metavar="A,B", help=f"of {', '.join(passes)} (default: all)")
    run.add_argument("--quick", action="store_true", help="a layer of each class, short samples: under a minute")
    run.add_argument("--seconds", type=float, help="of timing for each cell and library (default: 0.5; networks: 15)")
    run.add_argument("--rounds", type=int, help="number of turns that share these seconds (default: 5)")
    run.add_argument("--memory", choices=("keep", "default"), default="keep", help="default: malloc unchanged")
    run.add_argument("--cache", choices=("auto", "warm"), default="auto", help="warm: no rotation of arrays")
    run.add_argument("--output", type=Path, help="default: benchmarks/results/MACHINE-DATE-COMMAND.json")
    by_list = argparse.ArgumentParser(add_help=False)
    lists = catalogue.available_lists()
    by_list.add_argument("--lists", type=names_of(lists), metavar="A,B", help=f"of {', '.join(lists)}")
    by_list.add_argument(
        "--batch",
        type=batches,
        metavar="N,M",
        help="or `list`: the list's own (default: 1 and 8 in inference, 8 for pool)",
    )

    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Time convx against other libraries.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, about in (
        ("layers", "conv2d: forward, with ReLU, both gradients"),
        ("inference", "conv2d forward summed over whole networks"),
        ("pool", "max_pool2d: forward and backward"),
        ("fused", "conv2d_relu_max_pool2d against separate operations"),
    ):
        commands.add_parser(name, parents=[run, by_list], help=about)
    trained = commands.add_parser("networks", parents=[run], help="training steps of whole networks: time, saved bytes")
    trained.add_argument(
        "--networks", type=names_of(list(catalogue.TRAINED)), metavar="A,B", help=", ".join(catalogue.TRAINED)
    )
    trained.add_argument("--batch", type=batches, metavar="N,M", help="or `list`: the network's own")
    commands.add_parser("relu", parents=[run], help="relu by size: forward and backward")
    commands.add_parser("overhead", parents=[run], help="calls on tiny arrays")
    commands.add_parser("all", parents=[run], help="all of these in one file")
    commands.add_parser("floor", parents=[run], help="the figures of the speed floor, and whether they are met")
    drawn = commands.add_parser("sweep", parents=[run], help="drawn conv2d problems against PyTorch: the worst of them")
    drawn.add_argument("--seed", type=int, default=0, help="of the problems (default: 0)")
    drawn.add_argument("--count", type=int, default=2000, help="of problems (default: 2000)")
    chosen = commands.add_parser("choices", help="every method of every layer: the regret of convx's choice")
    chosen.add_argument("--lists", type=names_of(lists), metavar="A,B", help=f"of {', '.join(lists)}")
    chosen.add_argument("--batch", type=batches, metavar="N,M", help="default: 1 and 8; `list`: the list's own")
    chosen.add_argument("--passes", type=names_of(choices.PASSES), metavar="A,B", help=", ".join(choices.PASSES))
    chosen.add_argument("--dtype", type=names_of(list(catalogue.ITEMSIZE)), metavar="A,B", help="default: float32")
    chosen.add_argument("--layouts", type=names_of(choices.LAYOUTS), metavar="A,B", default=list(choices.LAYOUTS))
    chosen.add_argument("--algorithm", choices=("auto", "direct"), default="auto", help="direct: without Winograd")
    chosen.add_argument("--isa", help="the instruction set that convx is forced to: portable, avx2, avx512")
    chosen.add_argument("--threads", type=int, default=machine.cpu_count())
    chosen.add_argument("--seconds", type=float, default=0.3, help="of timing for each cell (default: 0.3)")
    chosen.add_argument("--rounds", type=int, default=3, help="turns of all methods (default: 3)")
    chosen.add_argument("--output", type=Path, help="the JSON file of the results (default: none)")
    chosen.add_argument("--judge", type=Path, metavar="FILE", help="no timing: judge this build by the times of FILE")
    chosen.add_argument(
        "--fit", type=Path, nargs="+", metavar="FILE", help="no timing: prices.cpp by the times of FILEs"
    )
    again = commands.add_parser("report", help="tables and plots of a result file")
    again.add_argument("file", type=Path)
    compare = commands.add_parser("compare", help="the changes from one result file to another")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    return top


def list_cases(options: argparse.Namespace, command: str) -> list[Case]:
    op, lists = OPS[command], chosen_lists(options, command)
    sizes, passes = getattr(options, "batch", None) or [None], chosen_passes(options, command)
    if not passes:
        return []
    batches = (1,) if options.quick else BATCHES.get(command, (catalogue.NETWORK_BATCH,))
    found = catalogue.layer_cases(op, lists, sizes, passes, chosen_dtypes(options), batches)
    if command == "layers" and not options.dtype and not getattr(options, "lists", None):
        found += catalogue.layer_cases(op, FLOAT64_LISTS, sizes, passes, ["float64"], (1,))
    return found


def chosen_lists(options: argparse.Namespace, command: str) -> Sequence[str]:
    # A sum over a network needs all its layers; --quick therefore takes one network.
    few = command == "inference" and options.quick
    return getattr(options, "lists", None) or (LISTS[command][-1:] if few else LISTS[command])


def chosen_passes(options: argparse.Namespace, command: str) -> list[str]:
    if command == "inference" and not options.passes:
        return ["forward"]
    return [
        name for name in catalogue.PASSES[OPS.get(command, command)] if not options.passes or name in options.passes
    ]


def chosen_dtypes(options: argparse.Namespace) -> list[str]:
    return options.dtype or ["float32"]


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    found: list[Case] = []
    for command in ALL if options.command == "all" else [options.command]:
        if command in LISTS:
            found += list_cases(options, command)
        elif command == "relu":
            sizes = catalogue.FEW_RELU_SIZES if options.quick else catalogue.RELU_SIZES
            found += catalogue.relu_cases(sizes, chosen_passes(options, "relu"), chosen_dtypes(options))
        elif command == "networks":
            few = list(catalogue.TRAINED)[: 1 if options.quick else None]
            found += catalogue.training_cases(options.networks or few, options.batch or [0], chosen_dtypes(options))
        elif command == "overhead":
            found += catalogue.overhead_cases()
        elif command == "sweep":
            found += sweep.cases(options.seed, options.count)
        else:
            found += floor.cases()
    if not found:
        raise ValueError("nothing to time: these lists have no layer with these passes")
    if not options.quick:
        return found
    whole = options.command in ("inference", "networks", "sweep")
    kept = found if whole else catalogue.thin(found)
    # Cheap cases first, so that the deadline cuts off as few as possible. Moving a byte costs about ten FLOPs.
    return sorted(kept, key=lambda case: case.flops + 10 * case.bytes)


def left_out(options: argparse.Namespace) -> dict[str, str]:
    """Rows of the chosen lists that an operation cannot express."""
    rows: dict[str, str] = {}
    for command in ALL if options.command == "all" else [options.command]:
        if command in LISTS:
            rows |= catalogue.left_out(OPS[command], chosen_lists(options, command))
    return rows


def settings(options: argparse.Namespace) -> Settings:
    own = {"networks": {"seconds": STEP_SECONDS}, "sweep": SWEEP}
    chosen = dict(QUICK) if options.quick else dict(own.get(options.command, {}))
    chosen |= {name: value for name in ("seconds", "rounds") if (value := getattr(options, name)) is not None}
    if options.cache == "warm":
        chosen["most_copies"] = 1
    return Settings(options.threads, isa=options.isa, memory=options.memory, **chosen)


def chosen_runners(options: argparse.Namespace) -> list[str]:
    """The command's own; with --quick only the general libraries, which leaves time for all classes."""
    left = {*CONVOLUTION, *FILTERS} if options.quick else set[str]()
    return [name for name in RUNNERS[options.command] if name not in left]


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the command, save its results, and return the file's path."""
    cases, chosen = chosen_cases(options), settings(options)
    peers = options.peers if options.peers is not None else chosen_runners(options)
    names = ["convx", *peers]
    if options.command == "floor" and {"avx2", "avx512"} <= set(instruction_sets(chosen)):
        names += ["convx@avx2", "convx@avx512"]
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    with LiveDisplay(console) as display, Session(list(dict.fromkeys(names)), chosen, display) as session:
        if "convx" in session.missing:
            raise ValueError(f"convx itself does not start: {session.missing['convx']}")
        results = session.run(cases, options.command, command, left_out(options))
    path: Path = options.output or FOLDER / f"{'quick-' if options.quick else ''}{file_name(results.about)}.json"
    results.save(path)
    return path


def measure_choices(options: argparse.Namespace, console: Console) -> None:
    """Run `choices` in this process, since only convx takes part."""
    import convx
    from convx import _cpu

    if options.isa:
        _cpu.set_isa(options.isa)
    convx.set_num_threads(options.threads)
    batches = options.batch or list(catalogue.NETWORK_BATCHES)
    lists, passes = options.lists or LISTS["layers"], options.passes or choices.PASSES
    cases = catalogue.layer_cases("conv2d", lists, batches, passes, chosen_dtypes(options))
    if options.fit:
        print(prices.source(options.fit, cases), end="")
        return
    if options.judge:
        found = list(choices.judged(cases, options.layouts, options.algorithm, options.judge))
    else:
        turns = choices.run(cases, options.layouts, options.algorithm, options.seconds, options.rounds, console)
        found = list(turns)
    choices.show(found, console)
    if options.output:
        choices.save(found, choices.about(options.threads, options.algorithm), options.output)
        console.print(f"wrote {options.output}", soft_wrap=True, highlight=False)


def tell(path: Path, console: Console) -> None:
    """Print the tables on the console and in a text file beside the JSON, and draw the plots."""
    results = Results.load(path)
    more = [*training.tables(results), *sweep.summary(results)]
    if results.about["kind"] == "floor":
        more.append(floor.summary(results))
    report.show(results, console, more)
    text = path.with_suffix(".txt")
    with text.open("w") as file:
        report.show(results, Console(file=file, width=report.FILE_WIDTH), more)
    for written in (path, text, *plots.draw(results, path.with_suffix(""))):
        console.print(f"wrote {written}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=report.FILE_WIDTH)
    try:
        if options.command == "choices":
            measure_choices(options, console)
        elif options.command == "compare":
            report.compare(Results.load(options.before), Results.load(options.after), console)
        else:
            tell(options.file if options.command == "report" else measure(options, console), console)
    except (ValueError, FileNotFoundError) as error:
        console.print(str(error), style="bold red", markup=False)
        return 2
    return 0
