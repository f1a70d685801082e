"""convx in PyTorch's threads: the same bits as in its own pool, which runs by setting or after a fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

# Prints whether the threads are PyTorch's, in this process and in a forked child, and a digest of the results.
PROGRAM = """
import hashlib, os
import numpy as np
import convx
import convx.torch
from convx import _cpu

convx.set_num_threads(4)
rng = np.random.default_rng(0)
x, w = rng.standard_normal((4, 32, 28, 28), np.float32), rng.standard_normal((32, 32, 3, 3), np.float32)

def digest():
    y = convx.conv2d(x, w, padding=1)
    gradients = convx.conv2d_backward(y, x, w, padding=1)
    pooled, codes = convx.max_pool2d(y, 3, 2, 1, return_codes=True)
    scattered = convx.max_pool2d_backward(pooled, codes, y.shape, 3, 2, 1)
    arrays = (y, *gradients, pooled, codes, scattered)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

print(_cpu.config()["uses_team"], digest(), flush=True)
if (child := os.fork()) == 0:
    convx.set_num_threads(2)
    print(_cpu.config()["uses_team"], digest(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def lines_of(**environment: str) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are shared on Linux alone")
def test_the_same_bits_in_pytorchs_threads() -> None:
    (shares, shared), (child_shares, in_child) = lines_of()
    (own_shares, own), _ = lines_of(CONVX_OPENMP="0")
    assert (shares, child_shares, own_shares) == ("True", "False", "False")
    assert shared == own == in_child
