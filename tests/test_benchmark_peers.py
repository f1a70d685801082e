"""The other libraries of the benchmarks: each computes what convx computes, and a wrong result does not count."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import agreement, cases, data, display, expected, report, runners, session
from benchmarks.cases import Case
from benchmarks.problems import ConvProblem, FusedProblem, PoolProblem, Problem, ReluProblem
from benchmarks.results import Cell

CONVS = (
    ConvProblem(2, 3, 9, 10, 5, (3, 3), (2, 1), (1, 0)),
    ConvProblem(1, 16, 13, 15, 16, (3, 3), padding=(1, 1)),
    ConvProblem(2, 8, 12, 11, 8, (3, 5), padding=(2, 1), dilation=(2, 1)),
    ConvProblem(2, 6, 9, 10, 4, (3, 3), padding=(1, 1), groups=2),
    ConvProblem(3, 16, 9, 10, 16, (3, 3), (2, 2), (1, 1), groups=16),
    ConvProblem(1, 16, 8, 8, 32, (1, 1)),
)
# What a filter of images computes, and what it does not.
PHOTOS = (
    ConvProblem(1, 1, 20, 21, 1, (5, 3), padding=(2, 1)),
    ConvProblem(3, 1, 20, 21, 1, (3, 3), padding=(1, 1)),
    ConvProblem(1, 1, 20, 21, 1, (4, 4), (2, 2), (1, 1)),
    ConvProblem(1, 1, 20, 21, 1, (3, 3)),
)
POOLS = (
    PoolProblem(2, 3, 9, 10, (3, 3), (2, 2), (1, 1)),
    PoolProblem(2, 3, 9, 10, (3, 3), (2, 2), (1, 1), ceil_mode=True),
    PoolProblem(1, 4, 11, 9, (3, 2), (2, 3), (1, 1)),
)
PROBLEMS: dict[str, tuple[Problem, ...]] = {"conv2d": (*CONVS, *PHOTOS), "max_pool2d": POOLS}
FORWARD = {"conv2d.forward", "conv2d.forward_relu", "max_pool2d.forward"}
GRADIENTS = {"conv2d.grad_input", "conv2d.grad_weight", "max_pool2d.backward"}
INDICES = {"max_pool2d.forward_indices"}
# The passes of each library; conv2d.grad_weight of JAX is without grouped weights.
PASSES: dict[str, set[str]] = {
    "torch": FORWARD | GRADIENTS | INDICES | {"max_pool2d.forward_codes", "max_pool2d.backward_indices"},
    "torch-cl": FORWARD | GRADIENTS | INDICES | {"max_pool2d.forward_codes", "max_pool2d.backward_indices"},
    "onnxruntime": FORWARD | INDICES,
    "openvino": FORWARD | INDICES,
    "ncnn": FORWARD,
    "mnn": FORWARD,
    "mnn-f2": FORWARD - {"max_pool2d.forward"},
    "opencv": FORWARD,
    "jax": FORWARD | GRADIENTS,
    "filter2d": {"conv2d.forward"},
    "scipy": {"conv2d.forward"},
}


def every_case(op: str, problem: Problem, dtype: str = "float32") -> list[Case]:
    return [Case(op, passname, problem, dtype, "case") for passname in cases.PASSES[op]]


def name_of(case: Case) -> str:
    return f"{case.op}.{case.passname}"


@pytest.mark.parametrize("name", PASSES)
def test_a_library_computes_what_the_definition_says(name: str) -> None:
    """In a process of its own, as in a run: two of these libraries in one process disturb each other."""
    with closing(session.Child(name, session.Settings(threads=1))) as child:
        about = child.ask("describe")
        if "missing" in about:
            pytest.skip(about["missing"])
        assert about["ok"]["threads"] == 1
        computed: dict[Problem, set[str]] = {}
        for case in (case for op, problems in PROBLEMS.items() for each in problems for case in every_case(op, each)):
            answer = child.ask("prepare", case=case.to_json(), copies=2, warm_up=0.0)
            if "unsupported" in answer:
                continue
            assert "ok" in answer, (case.key, answer)
            verdict = agreement.judge(case, {name: answer["ok"]["probe"]})[name]
            assert verdict["agrees"], (case.key, verdict)
            computed.setdefault(case.problem, set()).add(name_of(case))
    assert set().union(*computed.values()) == PASSES[name]
    if name in runners.FILTERS:
        assert set(computed) == set(PHOTOS[:2])
    elif name == "jax":
        assert [each for each in CONVS if "conv2d.grad_weight" not in computed[each]] == [CONVS[3]]
    else:
        assert all("conv2d.forward" in computed[problem] for problem in (*CONVS, *PHOTOS))


def test_jax_with_another_number_of_threads_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    monkeypatch.setattr(runners, "environment", lambda *_: {"NPROC": "3", "JAX_PLATFORMS": "cpu"})
    case = Case("conv2d", "forward", CONVS[0], "float32", "case")
    with closing(session.Child("jax", session.Settings(threads=1))) as child:
        assert child.ask("describe")["ok"]["threads"] == 3
        answer = child.ask("prepare", case=case.to_json(), copies=1, warm_up=0.0)
    assert "XLA has 3 threads, not 1" in answer["unsupported"]


def test_the_threads_of_ncnn_do_not_spin() -> None:
    assert runners.environment("ncnn", 4) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert runners.environment("convx@avx2", 4) == {}


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "relu", "conv2d_relu_max_pool2d"])
def test_expected_values_are_those_of_the_reference(op: str) -> None:
    reference = runners.create("reference", 1)
    fused = tuple(FusedProblem(conv, (3, 2), (2, 1), (1, 1)) for conv in CONVS)
    problems = {**PROBLEMS, "relu": (ReluProblem(1000),), "conv2d_relu_max_pool2d": fused}[op]
    compared = set()
    for case in (case for problem in problems for case in every_case(op, problem, "float64")):
        arrays = data.arrays(case)
        values = expected.values(case, arrays)
        if values is None or case.passname == "forward_out":
            continue
        found = data.probe(reference.logical(case, reference.calls(case, arrays, 1)[0]()))
        np.testing.assert_allclose(values, found, rtol=0, atol=1e-13, err_msg=case.key)
        compared.add(case.passname)
    missing = {"relu": {"forward_out"}, "conv2d_relu_max_pool2d": {"backward"}}
    assert compared == set(cases.PASSES[op]) - missing.get(op, set())


def test_probes_reach_all_four_borders() -> None:
    places = np.array(data.positions((8, 64, 224, 112)))
    assert len(places) == data.PROBES
    for axis, last in ((2, 223), (3, 111)):
        assert {0, last} <= set(places[:, axis])
        assert np.sum(places[:, axis] == 0) >= data.PROBES // data.BORDERS


class TestAWrongPeerDoesNotCount:
    case = Case("conv2d", "forward", CONVS[1], "float32", "layer", {"resnet50": 1})

    def judged(self, case: Case | None = None, **errors: float) -> dict[str, dict[str, Any]]:
        """Verdicts on results that differ from the right ones in one value, by a share of the largest value."""
        case = case or self.case
        right = expected.values(case, data.arrays(case))
        assert right is not None
        scale, probes = float(np.abs(right).max()), dict[str, list[float]]()
        for name, error in errors.items():
            values = right.copy()
            values[7] += error * scale
            probes[name] = values.tolist()
        return agreement.judge(case, probes)

    def test_the_limit(self) -> None:
        verdicts = self.judged(convx=1e-7, torch=0.9e-4, mnn=1.1e-4, jax=-1.0, opencv=math.nan)
        assert {name: verdict["agrees"] for name, verdict in verdicts.items()} == {
            "convx": True, "torch": True, "mnn": False, "jax": False, "opencv": False,
        }  # fmt: skip
        assert verdicts["mnn"]["difference"] == pytest.approx(1.1e-4)
        exact = Case("conv2d", "forward", CONVS[1], "float64", "layer")
        assert not self.judged(exact, torch=1e-8)["torch"]["agrees"]

    def test_convx_is_not_blamed_where_the_only_peer_is_wrong(self) -> None:
        verdicts = self.judged(convx=0.0, mnn=1e-3)
        assert verdicts["convx"]["agrees"] and not verdicts["mnn"]["agrees"]

    def test_the_fastest_peer_is_shown_but_not_the_best_one(self) -> None:
        times = {"median": 1e-3, "p25": 1e-3, "p75": 1e-3}
        cell = Cell(self.case, {"convx": dict(times), "mnn": {**times, "median": 1e-4}, "torch": dict(times)})
        assert cell.best_peer() == ("mnn", 1e-4)
        for name, verdict in self.judged(convx=0.0, mnn=1e-3, torch=0.0).items():
            cell.timings[name] |= verdict
        assert cell.best_peer() == ("torch", 1e-3)
        assert cell.ratio(["mnn"]) is None
        assert str(report.entry(cell, "mnn")) == "100 us wrong"
        assert display.line(cell).endswith("= 1.00x torch  WRONG OR FAILED: mnn")

    def test_a_pass_without_expected_values_is_compared_with_the_median(self) -> None:
        case = Case("training", "step", cases.training_cases(["lenet5"])[0].problem, "float32", "lenet5")
        probes = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 3.0]}
        verdicts = agreement.judge(case, probes)
        assert {name: verdict["difference"] for name, verdict in verdicts.items()} == {"a": 0, "b": 0, "c": 0.5}
        assert [verdict["agrees"] for verdict in verdicts.values()] == [True, True, False]
        assert agreement.judge(case, {"a": [1.0]}) == {}
        infinite = agreement.judge(case, {"a": [1.0], "b": [1.0], "c": [math.inf]})
        assert not infinite["c"]["agrees"]
