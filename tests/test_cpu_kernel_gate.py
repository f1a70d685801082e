"""What cpu_kernel_gate.py sees in made-up disassembly."""

import re

import pytest

from cpu_kernel_gate import MARKS, README, Row, differences, short_name, spilling
from kernel_loops import fma_loops, functions
from kernel_table import KERNELS, MACHINES, Kernel, Tile, tile_of

TILE = Tile(mr=2, vecs=1, dot_rows=1, dot_columns=1)


def code(*lines):
    """One function, an instruction every 4 bytes, as objdump prints it."""
    text = "\n".join(f"  {4 * i:x}:\t{line}" for i, line in enumerate(lines))
    return functions(f"0000000000000000 <kernel>:\n{text}\n")["kernel"]


def the_loop(*lines):
    (loop,) = fma_loops("kernel", code(*lines))
    return loop


GOOD = (
    "vxorps %xmm0,%xmm0,%xmm0",
    "vmovups (%rsi),%ymm2",
    "vfmadd231ps (%rdi),%ymm2,%ymm0",
    "vfmadd231ps 0x20(%rdi),%ymm2,%ymm1",
    "add    $0x20,%rdi",
    "jne    4 <kernel+0x4>",
    "ret",
)


def row(loop, cycles, share=0.0, bound=1.0):
    kernel = Kernel("made up", "kernel", lambda tile: 2, (share, share), others=bound)
    return Row("avx2", "float", kernel, TILE, [loop] if loop else [], cycles)


def test_figures_of_a_good_loop():
    loop = the_loop(*GOOD)
    assert (loop.fma, len(loop.body), loop.loads) == (2, 5, 3)
    assert (loop.spills, loop.constants, loop.scalars) == (0, 0, 0)
    assert loop.assembly().splitlines()[-1] == "jne 0b"
    assert row(loop, {"haswell": 0.9}, share=0.4).problems() == []


def test_a_spilled_accumulator():
    loop = the_loop(
        "vmovaps 0x40(%rsp),%ymm1",
        "vfmadd231ps (%rdi),%ymm2,%ymm1",
        "vmovaps %ymm1,0x40(%rsp)",
        "dec    %rcx",
        "jne    0 <kernel>",
        "ret",
    )
    assert loop.spills == 2
    assert spilling("avx2", "float", [loop]) == []  # "kernel" is none of those that must not spill
    tile = loop.__class__("gemm_tile_sized<float,5,2>", loop.body, loop.frame)
    (line,) = spilling("avx2", "float", [tile])
    assert "gemm_tile_sized<float,5,2>" in line
    assert "spills" in line


@pytest.mark.parametrize(
    ("set_up", "register", "spills"),
    [("mov    %rsp,%rbp", "%rbp", 1), ("mov    (%rsi),%rbp", "%rbp", 0), ("nop", "%rsp", 1)],
)
def test_the_frame_pointer_is_the_stack_where_it_is_one(set_up, register, spills):
    loop = the_loop(
        set_up, f"vmovaps %ymm1,-0x40({register})", "vfmadd231ps (%rdi),%ymm2,%ymm1", "jne    4 <kernel+0x4>"
    )
    assert loop.spills == spills


def test_constants_and_pointers_on_the_stack_are_no_spills():
    loop = the_loop(
        "mov    0x8(%rsp),%rax",
        "vfmadd231ps 0x40(%rsp),%ymm2,%ymm1",
        "vmovups %ymm1,(%rax)",
        "jne    0 <kernel>",
    )
    assert (loop.spills, loop.constants, loop.scalars) == (0, 1, 1)


def test_a_poor_share_and_slow_cycles():
    padding = ("vmovaps %ymm0,%ymm3",) * 8
    loop = the_loop(*GOOD[:2], *padding, *GOOD[2:])
    (share,) = row(loop, {}, share=0.4).problems()
    assert "0.15 of the instructions, less than 0.40" in share
    (slow,) = row(loop, {"haswell": 1.2, "znver3": 0.5}).problems()
    assert "1.20 cycles an FMA on haswell, more than 1.00" in slow


def test_a_kernel_that_is_not_found():
    (missing,) = row(None, {}).problems()
    assert "no loop of 2 FMAs" in missing


def test_the_innermost_loop_with_blocks_elsewhere():
    """A loop around another; a rare block of the inner one at the end of the function; padding."""
    loop = the_loop(
        "vmovups (%rsi),%ymm2",  # 0: the outer loop
        "vfmadd231ps (%rdi),%ymm2,%ymm0",  # 4: the inner one
        "js     1c <kernel+0x1c>",
        "jne    4 <kernel+0x4>",
        "cs nopw 0x0(%rax,%rax,1)",
        "jmp    0 <kernel>",
        "ret",
        "neg    %rcx",  # 1c
        "jmp    4 <kernel+0x4>",
    )
    assert [each.address for each in loop.body] == [0x4, 0x8, 0xC, 0x1C, 0x20]


def test_a_loop_that_is_entered_in_the_middle():
    loop = the_loop(
        "je     8 <kernel+0x8>",
        "vfmadd231ps (%rdi),%ymm2,%ymm0",
        "add    $0x20,%rdi",
        "jne    4 <kernel+0x4>",
        "ret",
    )
    assert len(loop.body) == 3


def test_fmas_outside_of_loops_are_no_loop():
    assert fma_loops("kernel", code("vfmadd231ps (%rdi),%ymm2,%ymm0", "ret")) == []


def test_short_names():
    symbol = "void (anonymous namespace)::rolling_pair<float, 1, ((anonymous namespace)::Edge)0, true>(long, long)"
    assert short_name(symbol) == "rolling_pair<float,1,0,true>"


def test_a_broadcast_is_a_load_on_zen_4():
    machine = next(each for each in MACHINES if (each.isa, each.cpu) == ("avx512", "znver4"))
    assert machine.describe("vbroadcastss 0x4(%rax),%zmm14") == "vmovups 0x4(%rax),%zmm14"
    assert machine.describe("vbroadcastss %xmm1,%zmm14") == "vbroadcastss %xmm1,%zmm14"


def test_tiles_of_the_sources():
    assert tile_of("avx2").sums == 12
    assert tile_of("avx512").sums == 24


TABLE = "Figures of g++ 12.2 and llvm-mca 22.1, float:\n\n| kernel | AVX2 |\n|---|---|\n| gemm_tile | 0.50 |\n"


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (TABLE, None),
        (TABLE.replace("0.50", "0.505"), None),  # within the tolerance
        (TABLE.replace("0.50", "0.60"), "other figures"),
        (TABLE.replace("0.50", "0.60").replace("12.2", "14.2"), None),  # of another compiler: only bounds count
        (TABLE.replace("gemm_tile", "dot_tile"), "other kernels"),
    ],
)
def test_the_table_of_the_readme(found, complaint):
    problems = differences(TABLE, found)
    assert problems == [] if complaint is None else complaint in problems[0]


def test_the_readme_has_every_kernel():
    table = README.read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    assert re.findall(r"^\| (.+?) \|", table, re.M) == ["kernel", *(each.name for each in KERNELS)]
