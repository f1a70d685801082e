"""The benchmark program: FLOPs and bytes, layer lists, reports, and one small run from end to end."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import convx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cases, choices, cli, data, floor, plots, report, runners, session, timing, training
from benchmarks.cases import Case
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem, ReluProblem
from benchmarks.results import Cell, Results, file_name

CONV = ConvProblem(8, 64, 56, 56, 64, (3, 3), padding=(1, 1))


def conv_case(problem: ConvProblem = CONV, passname: str = "forward", element: str = "float32") -> Case:
    return Case("conv2d", passname, problem, element, "layer", {"resnet50": 3}, rotate=True)


def all_cases() -> list[Case]:
    """Every layer of every list, and the cases without a list, in one pass each."""
    ops = ("conv2d", "max_pool2d", "conv2d_relu_max_pool2d")
    listed = [case for op in ops for case in cases.layer_cases(op, cases.available_lists(), passes=["forward"])]
    return [*listed, *cases.relu_cases(), *cases.overhead_cases(), *cases.training_cases()]


class TestCounts:
    def test_conv_flops_and_bytes(self) -> None:
        # ResNet's first layer: 64 x 112 x 112 outputs of 3 x 7 x 7 taps, one multiply and one add each.
        first = ConvProblem(1, 3, 224, 224, 64, (7, 7), (2, 2), (3, 3))
        assert first.output_shape == (1, 64, 112, 112)
        assert first.flops("forward") == first.flops("grad_weight") == 236_027_904
        assert first.bytes("forward", 4) == 4 * (3 * 224 * 224 + 64 * 147 + 64 + 64 * 112 * 112)
        assert first.bytes("grad_input", 8) == 8 * (3 * 224 * 224 + 64 * 147 + 64 * 112 * 112)

    def test_groups_and_dilation(self) -> None:
        depthwise = ConvProblem(2, 8, 10, 12, 16, (3, 1), padding=(2, 0), dilation=(2, 1), groups=8)
        assert depthwise.weight_shape == (16, 1, 3, 1)
        assert depthwise.output_shape == (2, 16, 10, 12)
        assert depthwise.flops("forward") == 2 * (2 * 16 * 10 * 12) * 3

    @pytest.mark.parametrize(
        "case", [case for case in all_cases() if case.op not in ("relu", "training")], ids=lambda case: case.key
    )
    def test_output_shapes_are_those_of_the_library(self, case: Case) -> None:
        """The shapes, from which the counts follow, are those of the library on empty batches."""
        problem, empty = case.problem, partial(np.zeros, dtype=np.float32)
        assert not isinstance(problem, ReluProblem)
        if isinstance(problem, PoolProblem):
            x = empty((0, *problem.input_shape[1:]))
            y = convx.max_pool2d(x, problem.kernel, problem.stride, problem.padding, ceil_mode=problem.ceil_mode)
        else:
            conv = problem.conv if isinstance(problem, FusedProblem) else problem
            x, weight = empty((0, *conv.input_shape[1:])), empty(conv.weight_shape)
            y = convx.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            if isinstance(problem, FusedProblem):
                y = convx.max_pool2d(y, problem.pool_kernel, problem.pool_stride, problem.pool_padding)
        assert y.shape[1:] == problem.output_shape[1:]

    def test_pool_bytes_follow_what_is_written(self) -> None:
        pool = PoolProblem(1, 2, 4, 4, (2, 2), (2, 2))
        assert pool.output_shape == (1, 2, 2, 2)
        assert pool.bytes("forward", 4) == (32 + 8) * 4
        assert pool.bytes("forward_codes", 4) == (32 + 8) * 4 + 8
        assert pool.bytes("backward_indices", 8) == (32 + 8) * 8 + 8 * 8

    def test_relu_bytes(self) -> None:
        assert ReluProblem(10).bytes("forward", 4) == 80
        assert ReluProblem(10).bytes("backward", 8) == 240

    def test_fused_counts(self) -> None:
        fused = FusedProblem(ConvProblem(2, 8, 8, 8, 4, (3, 3), padding=(1, 1)), (2, 2), (2, 2))
        assert fused.output_shape == (2, 4, 4, 4)
        assert fused.flops("backward") == 2 * fused.flops("forward")
        assert fused.bytes("forward", 4) == 4 * (2 * 8 * 64 + 4 * 8 * 9 + 4 + 128) + 128
        first = dataclasses.replace(fused, conv=dataclasses.replace(fused.conv, c=3))
        assert first.flops("backward") == first.flops("forward")


class TestCases:
    def test_every_list_is_read(self) -> None:
        kinds = {case.kind for case in all_cases()}
        assert kinds == set(cases.CLASSES) - {"float64"}

    def test_names_carry_occurrences(self) -> None:
        resnet = cases.layer_cases("conv2d", ["resnet50"], passes=["forward"])
        assert len(resnet) == 20
        assert sum(case.occurrences["resnet50"] for case in resnet) == 53
        assert resnet[1].name == "resnet_50:res2a_branch1"
        assert resnet[1].problem == ConvProblem(8, 64, 56, 56, 256, (1, 1))

    @pytest.mark.parametrize(
        ("name", "layers"), [("resnet18", 20), ("vgg19", 16), ("mobilenet_v2", 53), ("squeezenet_v11", 26)]
    )
    def test_networks_are_whole(self, name: str, layers: int) -> None:
        found = cases.layer_cases("conv2d", [name], passes=["forward"])
        assert sum(case.occurrences[name] for case in found) == layers

    def test_batches(self) -> None:
        def sizes(name: str, batch: int | None) -> set[int]:
            found = cases.layer_cases("conv2d", [name], [batch], ["forward"])
            return {case.problem.input_shape[0] for case in found}

        assert sizes("vgg19", None) == {8}
        assert sizes("vgg19", 0) == {64}
        assert sizes("vgg19", 3) == {3}
        assert 129 in sizes("nasty_hand", None)
        both = cases.layer_cases("conv2d", ["vgg19", "small"], passes=["forward"], network_batches=(1, 8))
        assert {case.problem.input_shape[0] for case in both if case.rotate} == {1, 8}
        assert {case.problem.input_shape[0] for case in both if not case.rotate} == {1, 32, 64}

    def test_commands_choose_cases(self) -> None:
        def chosen(command: str) -> list[Case]:
            return cli.chosen_cases(cli.parser().parse_args(command.split()))

        layers = chosen("layers")
        assert {case.kind for case in layers} == {*cases.CLASSES[:14]} - {"other kernels"}
        assert {case.problem.input_shape[0] for case in layers if case.rotate} == {1, 8}
        assert not any(case.dtype == "float64" for case in chosen("layers --dtype float32"))
        inference = chosen("inference")
        assert {case.passname for case in inference} == {"forward"}
        assert {name for case in inference for name in case.occurrences} == set(cli.LISTS["inference"])
        # Only whole networks are added up.
        assert sum(case.occurrences["resnet18"] for case in chosen("inference --quick")) == 20
        assert {case.passname for case in chosen("inference --lists vgg19 --passes grad_input")} == {"grad_input"}
        trained = [case.problem.describe() for case in chosen("networks")]
        assert trained == [
            "lenet5 64x1x28x28", "vgg11_cifar 64x3x32x32", "resnet18 8x3x224x224", "mobilenet_v2 8x3x224x224",
        ]  # fmt: skip
        few = chosen("networks --networks resnet18,lenet5 --batch 2,list")
        assert [case.problem.input_shape[0] for case in few] == [2, 8, 2, 64]
        assert [case.name for case in chosen("networks --quick")] == ["lenet5"]
        assert len(chosen("all --quick")) < len(chosen("all")) / 5

    def test_identical_layers_are_merged(self) -> None:
        once = conv_case()
        twice = dataclasses.replace(once, name="again", occurrences={"resnet50": 1, "vgg19": 2}, rotate=False)
        (merged,) = cases.merge([once, twice])
        assert merged.name == "layer"
        assert merged.occurrences == {"resnet50": 4, "vgg19": 2}
        assert once.occurrences == {"resnet50": 3}
        assert len(cases.merge([once, conv_case(passname="grad_input"), conv_case(element="float64")])) == 3

    def test_rows_that_cannot_be_expressed_are_named(self) -> None:
        left = cases.left_out("max_pool2d", ["pool"])
        rows = sum(1 for _ in cases.read_rows("pool"))
        used = sum(1 for _, _, problem in cases.problems("max_pool2d", "pool", None) if not isinstance(problem, str))
        assert set(left.values()) == {
            "average pooling", "padding of more than half the kernel", "padding that differs between the sides",
        }  # fmt: skip
        assert rows == used + len(left)

    def test_unknown_list(self) -> None:
        with pytest.raises(ValueError, match="no layer list 'resnet'"):
            cases.layer_cases("conv2d", ["resnet"])

    @pytest.mark.parametrize(
        ("problem", "kind"),
        [
            (CONV, "3x3 at 56"),
            (ConvProblem(1, 512, 7, 7, 512, (3, 3), padding=(1, 1)), "3x3 at 7"),
            (ConvProblem(1, 64, 56, 56, 256, (1, 1)), "1x1"),
            (ConvProblem(1, 64, 56, 56, 256, (1, 1), (2, 2)), "strided"),
            (ConvProblem(1, 3, 224, 224, 64, (7, 7), (2, 2)), "first layer"),
            (ConvProblem(1, 32, 9, 9, 64, (3, 3), groups=32), "depthwise"),
            (ConvProblem(1, 96, 27, 27, 256, (5, 5), groups=2), "grouped"),
            (ConvProblem(1, 6, 14, 14, 16, (5, 5)), "small"),
            (ConvProblem(1, 1, 99, 99, 1, (3, 3)), "photo"),
            (ConvProblem(1, 64, 33, 33, 64, (3, 3), dilation=(12, 12)), "other kernels"),
        ],
    )
    def test_classes(self, problem: ConvProblem, kind: str) -> None:
        assert conv_case(problem).kind == kind
        assert conv_case(problem, element="float64").kind == "float64"

    @pytest.mark.parametrize("case", [*all_cases()[::7], cases.training_cases()[1]], ids=lambda case: case.key)
    def test_json_round_trip(self, case: Case) -> None:
        again = Case.from_json(json.loads(json.dumps(case.to_json())))
        assert again == case
        assert (again.occurrences, again.key, again.kind) == (case.occurrences, case.key, case.kind)

    def test_copies_exceed_the_cache(self) -> None:
        cache = 1 << 20
        small, weight = conv_case(ConvProblem(1, 512, 7, 7, 64, (3, 3), padding=(1, 1))), 64 * 512 * 9 * 4
        assert small.copies(cache) == -(-2 * cache // weight) == 2
        assert conv_case(ConvProblem(1, 64, 7, 7, 64, (1, 1))).copies(cache) == 8
        assert conv_case(ConvProblem(64, 64, 56, 56, 64, (1, 1))).copies(cache) == 1
        assert dataclasses.replace(small, rotate=False).copies(cache) == 1

    def test_quick_keeps_a_layer_of_each_class_with_all_passes(self) -> None:
        thin = cases.thin(cases.layer_cases("conv2d", ["resnet50", "vgg19"]))
        groups = [(case.kind, case.passname) for case in thin]
        assert len(set(groups)) == len(groups)
        assert {passname for _, passname in groups} == set(cases.PASSES["conv2d"])


class TestTiming:
    def test_summary(self) -> None:
        found = timing.summarise([[1.0, 2.0, 3.0], [4.0, 5.0]])
        assert (found["median"], found["p25"], found["p75"], found["min"], found["count"]) == (3, 2, 4, 1, 5)
        assert found["round_medians"] == [2, 4.5]
        assert timing.summarise([[7.0]])["median"] == 7

    def test_copies_take_turns(self) -> None:
        counts = [0, 0, 0]

        def count(index: int) -> None:
            counts[index] += 1

        samples, faults = timing.sample([partial(count, index) for index in range(3)], 0.01)
        assert len(samples) >= 3
        assert 0 < min(samples) < 1e-3
        assert faults >= 0
        assert max(counts) - min(counts) <= 2

    def test_slow_calls_end_the_turn(self) -> None:
        samples, _ = timing.sample([partial(time.sleep, 0.02)], 0.01)
        assert len(samples) == 1
        assert samples[0] >= 0.02

    def test_arrays_are_random_and_equal_everywhere(self) -> None:
        case = conv_case(ConvProblem(1, 4, 6, 6, 5, (3, 3)), "grad_weight")
        first, second = data.arrays(case), data.arrays(case)
        assert set(first) == {"input", "weight", "bias", "grad_output"}
        for name, array in first.items():
            assert np.array_equal(array, second[name])
            assert array.dtype == np.float32
            assert np.count_nonzero(array) == array.size
        copies = data.ring(first["input"], 3)
        assert len({copy.ctypes.data for copy in copies}) == 3


def timed(median: float, spread: float = 0.1, **more: Any) -> dict[str, Any]:
    quartiles = {"p25": median * (1 - spread / 2), "p75": median * (1 + spread / 2)}
    times = {"median": median, "min": median / 2, "count": 9, "round_medians": [median], **quartiles}
    return {**times, "page_faults": 0.0, "difference": 1e-7, "agrees": True, **more}


def results(kind: str = "layers", factor: float = 1.0) -> Results:
    """A run on a machine with a peak of 100 GFLOP/s and a copy of 10 GB/s; convx takes `factor` times as long."""
    one_by_one = ConvProblem(8, 64, 56, 56, 256, (1, 1))
    pool, relu = PoolProblem(8, 64, 112, 112, (2, 2), (2, 2)), ReluProblem(1 << 24)
    cells = [
        Cell(conv_case(passname=name), {
            "convx": timed(CONV.flops(name) / 80e9 * factor),
            "torch": timed(CONV.flops(name) / 40e9),
            "torch-cl": timed(CONV.flops(name) / 60e9),
            "numpy": {"unsupported": "the library has no such operation"},
        }) for name in ("forward", "grad_input", "grad_weight")
    ]  # fmt: skip
    half_peak, wrong = timed(one_by_one.flops("forward") / 50e9 * factor), timed(1e-9, agrees=False, difference=0.3)
    cells.append(Cell(conv_case(one_by_one), {"convx": half_peak, "torch": wrong, "torch-cl": {"error": "it died"}}))
    pooled = Case("max_pool2d", "forward", pool, "float32", "pool1", {"pool_2x2": 1})
    cells.append(Cell(pooled, {"convx": timed(1e-3 * factor), "torch": timed(9e-3), "torch-cl": timed(2e-3)}))
    large = Case("relu", "forward", relu, "float32", "relu", {"relu": 1})
    cells.append(Cell(large, {"convx": timed(relu.bytes("forward", 4) / 9e9 * factor), "numpy": timed(0.02)}))
    cells.append(Cell(cases.overhead_cases()[0], {"convx": timed(1.5e-6 * factor), "numpy": timed(6e-7)}))
    for cell in cells[:4]:
        cell.peak = {"min": 95e9, "median": 100e9, "max": 102e9, "count": 5}
    fma = {"float32": {"all": 100e9, "one": 30e9}, "float64": {"all": 50e9, "one": 15e9}}
    lower = {"float32": {"all": 90e9, "one": 20e9}, "float64": {"all": 40e9, "one": 10e9}}
    about = {
        "format": 1, "kind": kind, "command": f"python -m benchmarks {kind}", "date": "2026-01-31T12:00:00+00:00",
        "seconds": 1.0, "git": {"commit": "0123456789abcdef", "changed": False},
        "machine": {
            "cpu": "Some CPU(R) 9000 @ 3.0GHz", "clock_mhz": "3000.1", "cpus": 4, "caches": {"L1d": 32768},
            "system": "Linux", "python": "3.11", "load_average": 0.1, "load_average_after": 0.2,
        },
        "settings": {"threads": 4},
        "libraries": {
            name: {"version": "1", "outputs": "allocated"} for name in ("convx", "torch", "torch-cl", "numpy")
        },
        "missing": {"openvino": "No module named 'openvino'"}, "left_out": {"pool row 2: x": "average pooling"},
        "isa_peaks": {}, "peaks": [{"fma": fma, "copy": {"all": 9e9}}, {"fma": lower, "copy": {"all": 10e9}}],
    }  # fmt: skip
    for cell in cells:
        for name in about["libraries"]:
            cell.timings.setdefault(name, {"unsupported": "not in this example"})
    return Results(about, cells)


def text_of(show: Any, *arguments: Any) -> str:
    file = io.StringIO()
    show(*arguments, Console(file=file, width=report.FILE_WIDTH))
    return file.getvalue()


class TestResults:
    def test_ratios_and_shares(self) -> None:
        run = results()
        forward, wrong_peer = run.cells[0], run.cells[3]
        assert forward.best_peer() == ("torch-cl", CONV.flops("forward") / 60e9)
        assert forward.ratio() == pytest.approx(80 / 60)
        assert forward.ratio(["torch"]) == pytest.approx(2)
        assert forward.spread("convx") == pytest.approx(0.1)
        assert wrong_peer.best_peer() is None
        assert wrong_peer.ratio() is None
        # Relative to the bursts beside the cell; without bursts to the median of the measurements, here 100 and 90.
        assert run.of_peak(forward) == pytest.approx(0.8)
        forward.peak = None
        assert run.of_peak(forward) == pytest.approx(80 / 100)
        for cell in run.cells:
            cell.peak = None
        assert run.of_peak(forward) == pytest.approx(80 / 95)
        assert run.of_bandwidth(run.cells[5]) == pytest.approx(0.9)
        assert run.of_peak(run.cells[5]) is None

    def test_save_and_load(self, tmp_path: Path) -> None:
        run = results()
        run.save(tmp_path / "new" / "run.json")
        again = Results.load(tmp_path / "new" / "run.json")
        assert again.about == run.about
        assert again.cells == run.cells
        (tmp_path / "old.json").write_text('{"format": 0, "cells": []}')
        with pytest.raises(ValueError, match="not a result file"):
            Results.load(tmp_path / "old.json")

    def test_a_busy_machine_is_pointed_out(self) -> None:
        for load, warned in ((0.1, False), (3.0, True)):
            run = results()
            run.about["machine"]["load_average"] = load
            assert ("OTHER WORK WAS RUNNING" in text_of(report.show, run)) == warned

    def test_file_name(self) -> None:
        assert file_name(results().about) == "some-9000-4threads-2026-01-31-layers"

    def test_tables(self) -> None:
        shown = text_of(report.show, results())
        for part in (
            "python -m benchmarks layers", "openvino: missing (No module named 'openvino')", "3x3 at 56", "1.33",
            "torch-cl failed in conv2d.forward float32 8x64x56x56 -> 256 1x1: it died",
            "torch is wrong by 3.0e-01 of the largest value in conv2d.forward", "1 of its results do not count",
            "numpy without conv2d.forward", "Left out (average pooling): 1",
        ):  # fmt: skip
            assert part in shown
        row = next(line for line in shown.splitlines() if "8x64x56x56 -> 64 3x3 p1" in line)
        for part in ("forward", "23.1 ms", "80", "1.33", "torch-cl", "46.2 ms", "30.8 ms"):
            assert part in row.split() or part in row

    def test_sums_over_a_list_need_all_its_layers(self) -> None:
        layers = cases.layer_cases("conv2d", ["resnet50"], passes=["forward"])
        whole = [Cell(case, {"convx": timed(0.001)}) for case in layers]
        run = results()
        for kept, shown in ((whole, True), (whole[1:], False)):
            table = report.network_summary(Results(run.about, kept))
            assert (table is not None) == shown
        assert report.total(whole, "resnet50", "convx") == pytest.approx(0.053)

    def test_networks_are_compared_with_one_library_for_all_layers(self) -> None:
        layers = cases.layer_cases("conv2d", ["resnet18"], passes=["forward"], network_batches=(1, 8))
        # Each library is the faster one for some layers, torch in sum.
        both = [{"convx": 1.0, "torch": 1.0, "torch-cl": 3.0}, {"convx": 1.0, "torch": 2.0, "torch-cl": 1.0}]
        chosen = [both[index % 2] for index in range(len(layers))]
        whole = [
            Cell(case, {name: timed(seconds) for name, seconds in times.items()})
            for case, times in zip(layers, chosen, strict=True)
        ]
        first, second = report.network_totals(Results(results().about, whole))
        assert [first.label, second.label] == ["conv2d.forward float32 N=1", "conv2d.forward float32 N=8"]
        times = sum(case.occurrences["resnet18"] for case in layers) / 2
        assert first.seconds["convx"] == times
        assert first.best_peer == "torch"
        assert first.ratio == pytest.approx(first.seconds["torch"] / times)
        whole[0].timings["torch"] = {"error": "it died"}
        assert report.network_totals(Results(results().about, whole))[0].best_peer == "torch-cl"

    def test_class_summary(self) -> None:
        run = results()
        run.cells[0].timings["torch"] = timed(CONV.flops("forward") / 90e9)
        lines = text_of(lambda console: console.print(report.class_summary(run))).splitlines()
        head = next(line for line in lines if "geomean" in line and "pass" in line)
        for name in ("worst", "in layer", "under 0.95", "torch", "torch-cl", "% peak (median)", "lowest"):
            assert name in head
        forward = next(line for line in lines if "3x3 at 56" in line).split()
        # Cells, ratio, worst, the layer, how many are under 0.95, torch, torch-cl, % of the peak and of the copy.
        assert forward[4:] == ["1", "0.89", "0.89", "layer", "N=8", "1", "0.89", "1.33", "80", "80", forward[-1]]
        shown = text_of(report.show, run)
        assert "FMA peak 100 GFLOP/s float32: median of 20 bursts between the cells, 95 to 102" in shown

    def test_compare(self) -> None:
        shown = text_of(report.compare, results(), results(factor=0.5))
        assert "conv2d.grad_input: A/B 2.000 (geomean of 1 cells, 2.00 to 2.00)" in shown
        assert "7 cells compared, 0 cells only in A, 0 only in B" in shown
        assert shown.count("faster") == 7
        row = next(line for line in shown.splitlines() if "conv2d.grad_input float32" in line).split()
        # The share of the peak and the ratio to the best peer in A and in B.
        assert row[-5:] == ["80", "160", "1.33", "2.67", "faster"]
        same = text_of(report.compare, results(), results(factor=1.01))
        assert "faster" not in same
        assert "slower" not in same

    def test_plots(self, tmp_path: Path) -> None:
        written = plots.draw(results(), tmp_path / "run")
        names = ["run-ratio-conv2d.png", "run-ratio-max_pool2d.png", "run-ratio-relu.png", "run-roofline.png"]
        assert [path.name for path in written] == names
        for path in written:
            assert path.read_bytes()[:4] == b"\x89PNG"

    def test_network_plot(self, tmp_path: Path) -> None:
        layers = cases.layer_cases("conv2d", ["resnet18"], passes=["forward"])
        whole = [Cell(case, {name: timed(0.001) for name in ("convx", "torch")}) for case in layers]
        written = plots.draw(Results(results().about, whole), tmp_path / "run")
        assert "run-networks.png" in [path.name for path in written]

    def test_training_tables_and_plot(self, tmp_path: Path) -> None:
        run = results("networks")
        (case, *_) = cases.training_cases(["vgg11_cifar"])
        units = {name: [["features.0 Conv2d", n << 20], ["features.5 Flatten", 0]] for name, n in (("a", 9), ("b", 3))}
        run.cells = [Cell(case, {
            "torch": timed(0.3, saved_bytes=9 << 20, saved_by_unit=units["a"]),
            "torch-cl": timed(0.2, saved_bytes=9 << 20, saved_by_unit=units["a"]),
            "convx": timed(0.125, saved_bytes=3 << 20, saved_by_unit=units["b"]),
            "convx-nhwc": timed(0.1, saved_bytes=3 << 20, saved_by_unit=units["b"]),
        })]  # fmt: skip
        run.about["libraries"]["convx-nhwc"] = {"version": "1", "outputs": "allocated"}
        del run.about["libraries"]["numpy"]
        lines = text_of(lambda console: report.show(run, console, training.tables(run)))
        row = next(line.split() for line in lines.splitlines() if line.strip().startswith("vgg11_cifar 64x3x32x32  "))
        # Each library's time, the ratio of the better layouts, the saved MiB of both and their ratio.
        assert row[2:] == ["300", "ms", "200", "ms", "125", "ms", "100", "ms", "2.00", "9.00", "3.00", "3.00"]
        row = next(line.split() for line in lines.splitlines() if "features.0" in line)
        assert row == ["features.0", "Conv2d", "9.00", "3.00", "3.00"]
        assert "features.5" not in lines
        assert [path.name for path in plots.draw(run, tmp_path / "run")] == ["run-training.png"]
        run.save(tmp_path / "run.json")
        assert Results.load(tmp_path / "run.json").cells == run.cells

    def test_floor(self) -> None:
        found = {figure.what: figure for figure in floor.figures(results("floor"))}
        three, one = (found[f"conv2d forward {kernel}, share of the FMA peak"] for kernel in ("3x3", "1x1"))
        assert three.value == pytest.approx(0.8)
        assert three.met is True
        assert one.value == pytest.approx(0.5)
        assert one.met is False
        assert found["conv2d grad_input 1x1, share of the FMA peak"].met is None
        assert found["conv2d, AVX2's speed over AVX-512's"].met is None
        assert found["max_pool2d 2x2 forward, ratio to PyTorch NCHW"].value == pytest.approx(9)
        assert found["relu forward beyond the cache, share of the copy bandwidth"].met is True
        assert found["relu of 8 floats, one call"].met is True
        slow = {figure.what: figure for figure in floor.figures(results("floor", 2))}
        assert slow["relu of 8 floats, one call"].met is False
        assert "MISSED" in text_of(lambda console: console.print(floor.summary(results("floor", 2))))

    def test_floor_compares_instruction_sets_of_one_peak(self) -> None:
        run = results("floor")
        run.about["libraries"] |= {name: {"version": "1", "outputs": ""} for name in ("convx@avx2", "convx@avx512")}
        for cell in run.cells:
            cell.timings |= {"convx@avx2": timed(2.0), "convx@avx512": timed(1.9)}
        for peak, expected in ((99e9, 0.95), (60e9, None)):
            run.about["isa_peaks"] = {"avx2": peak, "avx512": 100e9}
            found = {figure.what: figure for figure in floor.figures(run)}
            value = found["conv2d, AVX2's speed over AVX-512's"].value
            assert value == (pytest.approx(expected) if expected else None)

    def test_floor_takes_the_layers_it_names(self) -> None:
        problems = [case.problem for case in floor.cases() if case.op == "conv2d"]
        assert {problem.kernel for problem in problems if isinstance(problem, ConvProblem)} == {(1, 1), (3, 3)}
        assert min(problem.c for problem in problems if isinstance(problem, ConvProblem)) == 64
        assert {problem.input_shape[0] for problem in problems} == {8}

    def test_regret(self) -> None:
        one = choices.Choice("a", "1x1", "NCHW", "x", {"x": 1.2, "y": 1.0, "z": 2.0})
        other = choices.Choice("b", "1x1", "NCHW", "y", {"x": 1.2, "y": 1.0})
        assert (one.best, one.regret, other.regret) == ("y", pytest.approx(0.2), 0)
        text = text_of(lambda console: choices.show([one, other], console))
        assert "2 cells: median regret 10.0 %, mean 10.0 %; 1 of them, 50.0 %, over 10.0 %" in text


class Silent:
    """A display that shows nothing."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None


class TestProcesses:
    """Real processes: convx and its reference."""

    def test_a_run_from_end_to_end(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.json"
        command = "fused --peers convx-separate,reference,nothing --seconds 0.01 --rounds 2 --threads 2"
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--output", str(path)])
        assert "'nothing' is not one of" in capsys.readouterr().err
        command = "layers --lists small --passes forward,grad_weight --peers reference,convx@portable --quick"
        assert cli.main([*command.split(), "--rounds", "2", "--threads", "2", "--output", str(path)]) == 0
        shown = capsys.readouterr().out
        run = Results.load(path)
        assert len(run.cells) == 10
        assert run.about["libraries"]["convx"]["threads"] == 2
        assert run.about["libraries"]["convx@portable"]["isa"] == "portable"
        assert run.about["isa_peaks"]["portable"] > 1e8
        for cell in run.cells:
            ours = cell.timings["convx"]
            assert ours.get("agrees", cell.seconds("reference") is None), cell.case.key
            assert 0 < ours["min"] <= ours["p25"] <= ours["median"] <= ours["p75"]
            assert len(ours["round_medians"]) == 2
        assert sum(cell.seconds("reference") is not None for cell in run.cells) == 6
        for cell in run.cells:
            assert cell.peak is not None
            assert 1e8 < cell.peak["min"] <= cell.peak["median"] <= cell.peak["max"]
            assert cell.peak["count"] == 2
        assert all(peak["fma"]["float32"]["all"] > 1e8 and peak["copy"]["one"] > 1e7 for peak in run.about["peaks"])
        assert "[10/10 " in shown
        assert path.with_suffix(".txt").read_text().count("lenet:conv1") >= 1
        assert (tmp_path / "run-roofline.png").exists()
        assert cli.main(["report", str(path)]) == 0
        assert cli.main(["compare", str(path), str(path)]) == 0
        assert "10 cells compared" in capsys.readouterr().out

    def test_choices(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path, before = tmp_path / "choices.json", (convx.get_num_threads(), convx._cpu.config()["isa"])
        command = "choices --lists grouped --batch 1 --passes grad_weight --layouts NHWC --seconds 0.01 --rounds 1"
        try:
            assert cli.main([*command.split(), "--isa", "portable", "--threads", "1", "--output", str(path)]) == 0
        finally:
            convx.set_num_threads(before[0])
            convx._cpu.set_isa(before[1])
        saved = json.loads(path.read_text())
        assert (saved["about"]["isa"], saved["about"]["threads"]) == ("portable", 1)
        found = [choices.Choice(**each) for each in saved["choices"]]
        assert len(found) > 5
        for each in found:
            assert each.chosen in each.seconds and each.best in each.seconds and each.regret >= 0
            assert each.layout == "NHWC" and each.kind == "grouped"
        assert f"{len(found)} cells: median regret" in capsys.readouterr().out

    def test_every_operation_and_pass_of_convx_agrees_with_the_reference(self) -> None:
        conv = ConvProblem(2, 6, 9, 10, 4, (3, 3), (1, 1), (1, 1), (1, 1), 2)
        pool = PoolProblem(2, 3, 9, 10, (3, 3), (2, 2), (1, 1), ceil_mode=True)
        problems = {
            "conv2d": conv, "max_pool2d": pool, "relu": ReluProblem(1000),
            "conv2d_relu_max_pool2d": FusedProblem(conv, (2, 2), (2, 2)),
        }  # fmt: skip
        for name, expected_calls in (("convx", 52), ("convx-nhwc", 52), ("convx-separate", 8), ("convx-prepared", 8)):
            ours, reference = runners.create(name, convx.get_num_threads()), runners.create("reference", 1)
            compared = 0
            for op, problem in problems.items():
                for passname in cases.PASSES[op]:
                    for copies in (1, 3):
                        case = Case(op, passname, problem, "float64", "case")
                        arrays = data.arrays(case)
                        try:
                            calls = ours.calls(case, arrays, copies)
                            expected = data.probe(reference.logical(case, reference.calls(case, arrays, 1)[0]()))
                        except runners.Unsupported:
                            continue
                        assert len(calls) == copies
                        for call in calls:
                            np.testing.assert_allclose(data.probe(ours.logical(case, call())), expected, atol=1e-12)
                            compared += 1
            assert compared == expected_calls, name

    def test_a_training_step_and_what_it_keeps(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("torch")
        path = tmp_path / "run.json"
        command = f"networks --networks lenet5 --batch 4 --quick --rounds 2 --threads 1 --output {path}"
        assert cli.main(command.split()) == 0
        assert "MiB kept for the backward pass, by layer" in capsys.readouterr().out
        (cell,) = Results.load(path).cells
        assert set(cell.timings) == {"convx", "convx-nhwc", "torch", "torch-cl"}
        for name, timing_ in cell.timings.items():
            assert timing_["agrees"], name
            units = dict(timing_["saved_by_unit"])
            # For each pooled element convx keeps one byte; PyTorch keeps the window's four floats and an int64 index.
            assert units["features.0 Conv2d"] == 4 * 6 * 14 * 14 * (1 if "convx" in name else 4 * 4 + 8)
            # The loss keeps some bytes too.
            assert sum(units.values()) < timing_["saved_bytes"] < sum(units.values()) + 1000

    def test_a_dead_process_is_one_failed_cell(self) -> None:
        case = Case("relu", "forward", ReluProblem(64), "float32", "relu", {"relu": 1})
        settings = session.Settings(threads=1, seconds=0.01, rounds=1, peak_seconds=0.01)
        with session.Session(["convx", "reference"], settings, Silent()) as running:
            running.children["reference"].process.kill()
            cell = running.cell(case)
            assert "the process ended with status -9" in cell.timings["reference"]["error"]
            assert cell.seconds("convx") is not None
            again = running.cell(case)
            assert again.seconds("reference") is not None

    @pytest.mark.parametrize("number", session.STOP_SIGNALS)
    def test_what_was_measured_before_an_interruption_is_kept(self, number: signal.Signals) -> None:
        class Interrupting(Silent):
            def begin(self, case: Case) -> None:
                if case.problem == ReluProblem(65):
                    signal.raise_signal(number)

        settings = session.Settings(threads=1, seconds=0.01, rounds=1, peak_seconds=0.01)
        wanted = cases.relu_cases([64, 65, 66], ["forward"])
        with session.Session(["convx"], settings, Interrupting()) as running:
            before = signal.getsignal(number)
            run = running.run(wanted, "relu", "", {})
            assert signal.getsignal(number) is before
        assert [cell.case for cell in run.cells] == wanted[:1]
        assert set(run.about["left_out"]) == {case.key for case in wanted[1:]}

    def test_a_missing_library_is_said_to_be_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "openvino.py").write_text("raise ImportError('not on this machine')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        with session.Session(["convx", "openvino"], session.Settings(threads=1), Silent()) as running:
            assert list(running.libraries) == ["convx"]
            assert running.missing == {"openvino": "not on this machine"}
