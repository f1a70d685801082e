"""The rule by which the result of a library counts: a library that computes something else is no competitor."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import data, expected
from benchmarks.cases import Case
from benchmarks.data import Array

# Allowed difference of a result, relative to the largest probed value: far above the rounding of direct methods and of
# Winograd's with small tiles, far below the effect of a wrong tap. Winograd's method with large tiles can exceed it.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
# The same for the gradient of a network's first weight. Another order of additions moves values near zero to the other
# side of a ReLU. PyTorch's own two layouts differ by 1e-2 with MobileNetV2.
TRAINING_TOLERANCE = {"float32": 5e-2, "float64": 1e-6}


def judge(case: Case, probes: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """For each library its largest `difference` from the right values, and whether it `agrees` with them.

    A pass without right values is compared with the median of all libraries; a library alone is then not judged.
    """
    right = None if case.op == "training" else expected.values(case, data.arrays(case))
    if right is None and len(probes) > 1:
        right = np.median([np.asarray(probe) for probe in probes.values()], axis=0)
    if right is None:
        return {}
    tolerance = TRAINING_TOLERANCE if case.op == "training" else TOLERANCE
    found = {name: difference(np.asarray(probe), right) for name, probe in probes.items()}
    return {name: {"difference": each, "agrees": each <= tolerance[case.dtype]} for name, each in found.items()}


def difference(values: Array, right: Array) -> float:
    """The largest distance, relative to the largest right value."""
    scale = max(float(np.abs(right).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(values - right).max()) / scale
