"""The C++ tests: the thread pool, the workspace, the primitives of each instruction set (native/), the shim (simt/)."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def run(*command):
    environment = os.environ | {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_native(tmp_path):
    options = ["-DCONVX_PYTHON=OFF", "-DCONVX_NATIVE_TESTS=ON", "-DCONVX_AVX512_EMULATION=ON"]
    run("cmake", "-S", str(CHECKOUT), "-B", str(tmp_path), "-G", "Ninja", *options)
    run("cmake", "--build", str(tmp_path), "--target", "convx_native_tests")
    report = run("ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error")
    passed = set(re.findall(r"Test +#\d+: (\w+) \.+ +Passed", report))
    assert {"thread_pool", "workspace", "simd_portable"} <= passed
