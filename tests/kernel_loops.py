"""The loops with the FMAs, found in the disassembly of an object file: what cpu_kernel_gate.py measures.

A loop is a strongly connected component of the control flow, because addresses alone do not show it: compilers move the
rare blocks of a loop to the end of the function.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
INSTRUCTION = re.compile(r"^\s*(?P<address>[0-9a-f]+):\t(?P<mnemonic>\S+)\s*(?P<operands>[^<#]*)")
FMA = re.compile(r"^vfn?m(?:add|sub)\d+[ps][sd]$")
VECTOR = re.compile(r"%[xyz]mm\d+")
MEMORY = re.compile(r"-?(?:0x)?[0-9a-f]*\([^)]*\)")


class Instruction(NamedTuple):
    address: int
    mnemonic: str
    operands: str  # in the order of AT&T: the destination is the last

    @property
    def is_jump(self) -> bool:
        return self.mnemonic.startswith("j")

    @property
    def target(self) -> int | None:
        """Return the address that a direct jump leads to."""
        return int(self.operands, 16) if self.is_jump and re.fullmatch(r"[0-9a-f]+", self.operands) else None

    @property
    def ends_flow(self) -> bool:
        return self.mnemonic in ("jmp", "ret", "ud2")

    @property
    def is_fma(self) -> bool:
        return FMA.match(self.mnemonic) is not None

    @property
    def memory(self) -> str:
        """Return the address of the operand in memory, or nothing; lea and prefetches only compute one."""
        found = MEMORY.search(self.operands)
        return found[0] if found and not self.mnemonic.startswith(("lea", "nop", "prefetch")) else ""

    @property
    def writes_memory(self) -> bool:
        return bool(self.memory) and re.search(r"\)(?:\{%k\d\})?$", self.operands) is not None


@dataclass(frozen=True)
class Loop:
    function: str
    body: tuple[Instruction, ...]  # without padding
    frame: bool  # %rbp holds the frame of the function, no pointer

    @property
    def fma(self) -> int:
        return sum(each.is_fma for each in self.body)

    @property
    def loads(self) -> int:
        return sum(bool(each.memory) and not each.writes_memory for each in self.body)

    @property
    def share(self) -> float:
        return self.fma / len(self.body)

    def on_stack(self, *, vectors: bool) -> list[Instruction]:
        """Return the accesses to the stack, those of vector registers or the others."""
        registers = ("%rsp", "%rbp") if self.frame else ("%rsp",)
        found = [each for each in self.body if any(register in each.memory for register in registers)]
        return [each for each in found if bool(VECTOR.search(each.operands)) == vectors]

    @property
    def spills(self) -> int:
        """Count the vectors that the loop stores on the stack, and their reloads: accumulators without a register."""
        accesses = self.on_stack(vectors=True)
        stored = {each.memory for each in accesses if each.writes_memory}
        return sum(each.memory in stored for each in accesses)

    @property
    def constants(self) -> int:
        """Count the loads of vectors that lie on the stack and never change in the loop, such as weights."""
        return len(self.on_stack(vectors=True)) - self.spills

    @property
    def scalars(self) -> int:
        """Count the accesses to pointers and counters on the stack."""
        return len(self.on_stack(vectors=False))

    def assembly(self) -> str:
        """Return the text for an assembler; every jump leads to the first instruction."""
        lines = [f"{each.mnemonic} {'0b' if each.target is not None else each.operands}" for each in self.body]
        return "\n".join(["0:", *lines])


def functions(disassembly: str) -> dict[str, list[Instruction]]:
    """Split the output of `objdump --disassemble --demangle --no-show-raw-insn`."""
    found: dict[str, list[Instruction]] = defaultdict(list)
    name = ""
    for line in disassembly.splitlines():
        if header := FUNCTION.match(line):
            name = header["name"]
        elif match := INSTRUCTION.match(line):
            found[name].append(Instruction(int(match["address"], 16), match["mnemonic"], match["operands"].strip()))
    return found


def blocks_of(code: list[Instruction]) -> tuple[list[list[Instruction]], list[list[int]]]:
    """Return the basic blocks, and for each the indices of those that can follow it."""
    addresses = {each.address for each in code}
    starts = {code[0].address} | {each.target for each in code if each.target in addresses}
    starts |= {after.address for each, after in pairwise(code) if each.is_jump or each.ends_flow}
    blocks: list[list[Instruction]] = []
    for each in code:
        if each.address in starts:
            blocks.append([])
        blocks[-1].append(each)
    index = {block[0].address: i for i, block in enumerate(blocks)}
    successors = []
    for i, block in enumerate(blocks):
        following = [index[block[-1].target]] if block[-1].target in index else []
        if not block[-1].ends_flow and i + 1 < len(blocks):
            following.append(i + 1)
        successors.append(following)
    return blocks, successors


def components(nodes: set[int], edges: dict[int, set[int]]) -> list[set[int]]:
    """Return the strongly connected components that contain a cycle (Kosaraju's algorithm, without recursion)."""
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(nodes):
        path = [] if root in seen else [(root, iter(edges[root]))]
        seen.add(root)
        while path:
            node, rest = path[-1]
            for each in rest:
                if each not in seen:
                    seen.add(each)
                    path.append((each, iter(edges[each])))
                    break
            else:
                order.append(node)
                path.pop()
    before: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for each in edges[node]:
            before[each].add(node)
    found = []
    for root in reversed(order):
        component, waiting = set(), [root] if root in seen else []
        while waiting:
            node = waiting.pop()
            if node in seen:
                seen.remove(node)
                component.add(node)
                waiting += before[node]
        if len(component) > 1 or any(node in edges[node] for node in component):
            found.append(component)
    return found


def all_loops(successors: list[list[int]]) -> list[set[int]]:
    """Return the blocks of each loop: a strongly connected component, and those within it without its way back.

    Unlike natural loops these may have several entries: compilers jump into the middle of a loop.
    """
    found: list[set[int]] = []
    waiting = [(set(range(len(successors))), {block: set(following) for block, following in enumerate(successors)})]
    while waiting:
        nodes, edges = waiting.pop()
        for component in components(nodes, edges):
            found.append(component)
            from_outside = {
                each for block in range(len(successors)) if block not in component for each in successors[block]
            }
            entries = component & (from_outside | {0}) or {min(component)}
            waiting.append((component, {node: edges[node] & component - entries for node in component}))
    return found


def fma_loops(name: str, code: list[Instruction]) -> list[Loop]:
    """Return the loops of one function with FMAs that contain no smaller one with FMAs."""
    blocks, successors = blocks_of(code)
    frame = any(each.mnemonic == "mov" and each.operands == "%rsp,%rbp" for each in code)
    with_fma = [each for each in all_loops(successors) if any(item.is_fma for block in each for item in blocks[block])]
    innermost = [each for each in with_fma if not any(other < each for other in with_fma)]
    return [
        Loop(
            name,
            tuple(item for block in sorted(each) for item in blocks[block] if not is_padding(item)),
            frame,
        )
        for each in innermost
    ]


def is_padding(each: Instruction) -> bool:
    text = f"{each.mnemonic} {each.operands}"
    return re.match(r"(?:data16 |cs )*(?:nop|xchg\s+%ax,%ax)", text) is not None
