"""What cpu_kernel_gate.py demands of each kernel, on each machine: the bounds, and why they are no better.

With two pipes, each of which begins an FMA every cycle, a loop can take 0.50 cycles for each FMA; the simulation starts
and ends within the 0.02 above that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ELEMENTS = ("float", "double")
ISA = Path(__file__).parents[1] / "csrc" / "cpu" / "isa"


class Tile(NamedTuple):
    """The sizes that make_kernel_set is given in csrc/cpu/isa."""

    mr: int
    vecs: int
    dot_rows: int
    dot_columns: int

    @property
    def sums(self) -> int:
        return self.mr * self.vecs


def tile_of(isa: str) -> Tile:
    found = re.search(r"make_kernel_set<CONVX_ELEMENT, (\d+), (\d+), (\d+), (\d+)>", (ISA / f"{isa}.cpp").read_text())
    assert found, f"{isa}.cpp has no make_kernel_set"
    return Tile(*map(int, found.groups()))


class Machine(NamedTuple):
    isa: str
    cpu: str  # as llvm-mca spells it
    cycles: float  # for each FMA at most, where nothing but the FMA pipes bounds a loop
    why: str

    def describe(self, assembly: str) -> str:
        """Return the loop in the terms of LLVM's model of this machine.

        A broadcast from memory to 512 bits is a load on Zen 4 and nothing else: this tile runs there at 97 to 99 % of
        the FMA peak. LLVM's model adds a shuffle in an FMA pipe (1.5 cycles an FMA).
        """
        if (self.isa, self.cpu) == ("avx512", "znver4"):
            return re.sub(r"vbroadcasts[sd] (\S*\(\S*\),%zmm)", r"vmovups \1", assembly)
        return assembly


MACHINES = (
    Machine("avx2", "haswell", 0.52, "two FMA pipes"),
    Machine("avx2", "znver3", 0.52, "two FMA pipes"),
    Machine("avx2", "znver4", 0.52, "two FMA pipes"),
    Machine("avx512", "znver4", 1.04, "an FMA of 512 bits takes both pipes"),
    Machine("avx512", "skylake-avx512", 0.55, "the simulation sends scalar instructions to ports 0 and 5 as well"),
    Machine("avx512", "sapphirerapids", 1.04, "LLVM's model lacks the second pipe for 512 bits, which servers have"),
)


class Kernel(NamedTuple):
    name: str
    symbols: str  # pattern of the functions with its loops; <T>, <mr> and so on stand for the type and the tile
    fma: Callable[[Tile], int]  # in one round of the loop
    share: tuple[float, float] = (0.45, 0.50)  # of the instructions are FMAs at least, AVX2 and AVX-512
    factor: float = 1.0  # to the machine's cycles for each FMA
    others: float = 0.0  # cycles for each FMA that units other than the FMA pipes may take
    spare: int = 0  # FMAs of tails that compilers put into the same loop
    inside: bool = False  # of several variants that without borders is meant, which has the largest share of FMAs
    why: str = "FMA"  # what bounds it

    def matches(self, function: str, fma: int, element: str, tile: Tile) -> bool:
        pattern = self.symbols.replace("<T>", element).replace("<sums>", str(tile.sums))
        for name, value in tile._asdict().items():
            pattern = pattern.replace(f"<{name}>", str(value))
        wanted = self.fma(tile)
        return re.fullmatch(pattern, function) is not None and wanted <= fma <= wanted + self.spare

    def bound(self, machine: Machine) -> float:
        """Return the most cycles for each FMA."""
        return max(self.factor * machine.cycles, self.others)


def always(number: int) -> Callable[[Tile], int]:
    return lambda tile: number


def sums(tile: Tile) -> int:
    return tile.sums


def direct(channels: int) -> tuple[str, Callable[[Tile], int]]:
    """Return the functions and the FMAs of direct_tile for some channels, in 8 vectors at most."""
    return (
        f"direct_(sums|panel_of)<<T>,{channels},.*|direct_tile<<T>,<sums>>",
        lambda tile: channels * min(tile.sums // channels, 8),
    )


# Not here: the transforms of Winograd's method, which are no register tiles, and the depthwise kernels plane_columns
# (5x5) and adjoint_columns: a round of their loop takes one of several paths, so that nothing static describes it.
KERNELS = (
    Kernel("fma_rounds", "longfma_rounds<<T>>", always(12), (0.75, 0.75), why="FMA alone: a check of the gate itself"),
    Kernel("gemm_tile", "gemm_tile_sized<<T>,<mr>,<vecs>,PackedRows.*", sums),
    Kernel(
        "gemm_tile_rows", "gemm_tile_sized<<T>,<mr>,<vecs>,StridedRows.*", sums, factor=1.05,
        why="FMA; 12 rows take more pointers than there are registers",
    ),
    Kernel(
        "gemm_tile_pixels", "gemm_tile_sized<<T>,<mr>,<vecs>,IndirectRows.*", sums, factor=1.05,
        why="FMA; pointers as above, and an offset",
    ),
    Kernel("winograd_products", "products_tile<<T>,<mr>,<vecs>,<mr>,<vecs>>", sums),
    Kernel("winograd_tile_products", "tile_products<<T>,<vecs>,<mr>>", sums),
    Kernel("direct_tile, 4 channels", *direct(4)),
    Kernel("direct_tile, 3 channels", *direct(3)),
    Kernel("direct_tile, 2 channels", *direct(2), factor=1.05, why="FMA; 6 or 8 pointers and the taps' distances"),
    Kernel(
        "direct_tile, 1 channel", *direct(1), others=0.78, inside=True,
        why="10 loads for 8 FMA; Haswell splits an FMA with an indexed operand",
    ),
    Kernel("direct_grad_weight, 4 channels", "direct_grad_weight_tile<<T>,4,3>", always(12)),
    Kernel("direct_grad_weight, 3 channels", "direct_grad_weight_tile<<T>,3,4>", always(12)),
    Kernel(
        "direct_grad_weight, 2 channels", "direct_grad_weight_tile<<T>,2,5>", always(10), (0.45, 0.45), factor=1.1,
        why="FMA; 4 scalar instructions for 10 FMA",
    ),
    Kernel(
        "direct_grad_weight, 1 channel", "direct_grad_weight_tile<<T>,1,9>", always(9), others=0.75,
        why="10 loads for 9 FMA; Haswell splits an FMA with an indexed operand",
    ),
    Kernel(
        "dot_tile", "dot_tile_sized<<T>,<dot_rows>,<dot_columns>>", lambda tile: tile.dot_rows * tile.dot_columns
    ),
    Kernel(
        "selected_products", "selected_products_tile<<T>,.*>", sums, others=0.65, why="loads: one an FMA, and two"
    ),
    Kernel(
        "depthwise_pixels", "pixel_sums<<T>,4,2>", always(8), (0.40, 0.40), others=0.97, why="14 loads for 8 FMA"
    ),
    Kernel(
        "depthwise_pixel_products", "pixel_products<<T>,3,4>", always(12), (0.45, 0.45), others=0.82,
        why="16 loads for 12 FMA",
    ),
    Kernel(
        "depthwise_planes 3x3", "(rolling_pair<<T>,|pair_of_columns<<T>,3,)1.*", always(18), (0.40, 0.40), others=0.75,
        inside=True, why="6 loads, on AVX2 6 weights in memory, and moves between sums, for 18 FMA",
    ),
    Kernel(
        "depthwise_planes 3x3, stride 2", "(rolling_pair<<T>,|pair_of_columns<<T>,3,)2.*", always(18), (0.28, 0.25),
        others=1.60, inside=True, why="shuffles that take even and odd columns apart",
    ),
    Kernel(
        "depthwise_grad_weight 3x3", "(add_columns<<T>,3,1|depthwise_grad_weight_of<<T>,1).*", always(36), (0.33, 0.38),
        others=1.10, spare=3, inside=True, why="22 loads for 36 FMA; borders of rows",
    ),
    Kernel(
        "depthwise_grad_weight 3x3, stride 2", "(add_columns<<T>,3,2|depthwise_grad_weight_of<<T>,2).*", always(36),
        (0.24, 0.22), others=1.75, spare=3, inside=True, why="shuffles, as above",
    ),
)  # fmt: skip
NO_SPILLS = "gemm_tile|products|tile_products|direct_|dot_tile|selected_products|pixel_"  # functions, with their tails
