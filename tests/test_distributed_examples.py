"""The examples of data-parallel training: two processes have the losses of one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EPOCHS = 3
# Without these Open MPI refuses to run as root (in containers), or more processes than cores.
OPEN_MPI = {
    **{f"{who}_ALLOW_RUN_AS_ROOT{sure}": "1" for who in ("OMPI", "PRTE") for sure in ("", "_CONFIRM")},
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def learned(*command: str, **environment: str) -> tuple[list[float], list[float]]:
    """The losses that the first process prints, and the accuracy of every process."""
    done = subprocess.run(
        [*command, "--epochs", str(EPOCHS)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Lines of two processes may run into each other.
    losses = [float(loss) for loss in re.findall(r"epoch \d+: loss (\d\.\d{4}),", done.stdout)]
    accuracies = [float(each) for each in re.findall(r"process \d of \d: accuracy (\d\.\d{3})", done.stdout)]
    return losses, accuracies


def assert_two_learn_like_one(two, one):
    (losses, accuracies), (alone, accuracy) = two, one
    assert len(losses) == len(alone) == EPOCHS
    assert losses[-1] < losses[0] / 2
    # Two processes add in another order, and the losses are printed with four digits.
    assert losses == pytest.approx(alone, abs=2e-3)
    assert len(accuracies) == 2 and accuracies[0] == accuracies[1]
    assert accuracies == pytest.approx(accuracy * 2, abs=0.02)
    assert accuracies[0] > 0.85


def test_ddp():
    pytest.importorskip("torch.distributed.run")

    def run(processes: int) -> tuple[list[float], list[float]]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return learned(*launcher, str(EXAMPLES / "ddp.py"), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")

    assert_two_learn_like_one(run(2), run(1))


def test_mpi_allreduce():
    launcher = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if importlib.util.find_spec("mpi4py") is None or launcher is None:
        pytest.skip("needs mpi4py and an MPI")

    def run(processes: int) -> tuple[list[float], list[float]]:
        command = [launcher, "-n", str(processes), sys.executable, str(EXAMPLES / "mpi_allreduce.py")]
        return learned(*command, CONVX_NUM_THREADS="1", **OPEN_MPI)

    assert_two_learn_like_one(run(2), run(1))
