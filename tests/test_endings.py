"""A process that uses convx ends with its own exit status and without output on stderr."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import convx

PATIENCE = 60  # seconds, for programs of half a second on a busy machine

# Calls of some milliseconds on all threads of the pool: most endings come inside one.
SETTING = """
    import atexit, os, signal, sys, threading, time
    import numpy as np
    import convx

    convx.set_num_threads(3)
    x, w = np.ones((4, 16, 40, 40), "float32"), np.ones((32, 16, 3, 3), "float32")

    def compute():
        y = convx.conv2d(x, w, padding=1, activation="relu")
        pooled, codes = convx.max_pool2d(y, 2, return_codes=True)
        convx.max_pool2d_backward(pooled, codes, y.shape, 2)
        convx.conv2d_backward(y, x, w, padding=1)
        return y

    def fail():
        try:
            convx.conv2d(x, w, stride=np.array([1, 2, 3]), out=np.float32)  # the message holds a repr
        except ValueError:
            pass

    def start(work, daemon=True, count=3):
        begun = threading.Semaphore(0)

        def forever():
            while True:
                work()
                begun.release()

        for _ in range(count):
            threading.Thread(target=forever, daemon=daemon).start()
        for _ in range(count):
            begun.acquire()

    y = compute()
"""

# One call of some tenths of a second, which returns while the interpreter is ending and flushes its output.
INSIDE = """
    large, kernels = np.ones((8, 64, 64, 64), "float32"), np.ones((128, 64, 7, 7), "float32")

    class Slow:
        def flush(self):
            time.sleep(0.5)

    def end_inside(call):
        threading.Thread(target=call, daemon=True).start()
        time.sleep(0.1)
        sys.stdout = Slow()
"""

TORCH = """
    import torch
    import convx.torch

    images, weight = torch.from_numpy(large), torch.from_numpy(kernels)
    recorded = weight.clone().requires_grad_()

    def backward():
        convx.torch.conv2d(images[:1, :, :8, :8], recorded).sum().backward()

    backward()
"""

JAX = """
    import jax
    import convx.jax

    jx, jw = jax.numpy.asarray(x), jax.numpy.asarray(w)
    gradient = jax.jit(jax.grad(lambda w: convx.jax.conv2d(jx, w, padding=1).sum()))(jw)
"""


def run(program, *settings):
    """Run a program after its settings; return its exit status, stdout and stderr."""
    packages = os.path.dirname(os.path.dirname(convx.__file__))
    path = os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", "".join(map(textwrap.dedent, (*settings, program)))],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"},  # of fork, since 3.12
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# Programs by name: the exit status, the output, the program.
ENDINGS = {
    "threads of the pool sleep": (0, "", "time.sleep(0.05)"),
    "threads of the pool spin": (0, "", "compute()"),
    "daemon threads compute": (0, "", "start(compute)"),
    "daemon threads are refused": (0, "", "start(fail)"),
    "daemon threads, sys.exit": (3, "", "start(compute); sys.exit(3)"),
    "daemon threads, os._exit": (4, "", "start(compute); os._exit(4)"),
    "daemon threads, SIGTERM": (-signal.SIGTERM, "", "start(compute); os.kill(os.getpid(), signal.SIGTERM); compute()"),
    "daemon threads, a handler of SIGTERM": (
        5,
        "",
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        start(compute)
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while True:
            compute()
        """,
    ),
    "a thread that main waits for": (
        0,
        "5\n",
        """
        def five():
            print(sum(compute().shape == y.shape for _ in range(5)))
        threading.Thread(target=five).start()
        """,
    ),
    "a thread that raises": (
        0,
        "ShapeError\n",
        """
        threading.excepthook = lambda about: print(about.exc_type.__name__)
        threading.Thread(target=lambda: convx.conv2d(x, w, stride=0)).start()
        compute()
        """,
    ),
    "atexit": (
        0,
        "True\n",
        """
        start(compute)
        atexit.register(lambda: print(np.array_equal(compute(), y)))
        """,
    ),
    "the last objects": (
        0,
        "True\n",
        """
        class Last:
            def __init__(self):
                self.ready = convx.prepare_weight(w, x.shape, padding=1)
            def __del__(self, conv2d=convx.conv2d, x=x, shape=y.shape):
                print(conv2d(x, self.ready, padding=1).shape == shape)
        last = Last()
        """,
    ),
    "a child ends by os._exit": (
        0,
        "0\n",
        """
        start(compute)
        if (child := os.fork()) == 0:
            convx.set_num_threads(2)
            os._exit(0 if np.array_equal(compute(), y) else 1)
        print(os.waitpid(child, 0)[1], flush=True)
        """,
    ),
    "a child ends by returning": (
        0,
        "True\n0\n",
        """
        start(compute)
        if (child := os.fork()) == 0:
            convx.set_num_threads(2)
            start(compute, count=2)
            print(np.array_equal(compute(), y))
        else:
            print(os.waitpid(child, 0)[1])
        """,
    ),
    "processes of multiprocessing are terminated": (
        0,
        "[0, -15]\n",
        """
        import multiprocessing
        context = multiprocessing.get_context("fork")
        finite, endless = context.Process(target=compute), context.Process(target=start, args=(compute, False))
        finite.start(), endless.start()
        finite.join()
        endless.terminate(), endless.join()
        print([finite.exitcode, endless.exitcode])
        """,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_numpy(name):
    status, printed, program = ENDINGS[name]
    assert run(program, SETTING) == (status, printed, "")


def test_an_exception_of_main():
    """Its traceback is the only output on stderr."""
    status, printed, errors = run("start(compute); convx.relu(None)", SETTING)
    assert (status, printed) == (1, "")
    assert errors.startswith("Traceback")
    assert errors.splitlines()[-1].startswith("TypeError: relu: input is a NoneType, expected")


def test_a_call_that_returns_too_late():
    assert run("end_inside(lambda: convx.conv2d(large, kernels))", SETTING, INSIDE) == (0, "", "")


# Daemon threads inside PyTorch's or JAX's own code at the end abort the process, with or without convx.
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize(
    ("status", "program"),
    [
        (0, "atexit.register(backward); end_inside(lambda: convx.torch.conv2d(images, weight))"),
        (3, "end_inside(lambda: convx.torch.conv2d(images, recorded)); sys.exit(3)"),
    ],
    ids=["atexit", "recorded, sys.exit"],
)
def test_torch(status, program):
    assert run(program, SETTING, INSIDE, TORCH) == (status, "", "")


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
def test_jax():
    assert run("print(gradient.shape)", SETTING, JAX) == (0, "(32, 16, 3, 3)\n", "")


SUB_INTERPRETERS = """
    try:
        import _interpreters as interpreters  # since Python 3.13
        kinds = ("isolated",), ("legacy",)
    except ImportError:
        import _xxsubinterpreters as interpreters
        kinds = (), ()

    def import_convx(kind):
        interpreter = interpreters.create(*kind)
        try:
            found = interpreters.run_string(interpreter, "import convx")  # returns the exception, since Python 3.13
        except Exception as error:
            found = error
        interpreters.destroy(interpreter)
        print("convx does not work in sub-interpreters, expected the main interpreter" in str(found))

    for kind in kinds:
        import_convx(kind)
"""
WORKS = "print(np.array_equal(compute(), y))"


@pytest.mark.parametrize("main_first", [True, False])
def test_sub_interpreters(main_first):
    """`import convx` raises at once in a sub-interpreter; the main interpreter continues."""
    programs = (SETTING, SUB_INTERPRETERS) if main_first else (SUB_INTERPRETERS, SETTING)
    assert run(WORKS, *programs) == (0, "True\n" * 3, "")


def test_sub_interpreters_beside_threads():
    program = "start(compute)\nfor _ in range(3): import_convx(kinds[0])\n"
    assert run(program + WORKS, SETTING, SUB_INTERPRETERS) == (0, "True\n" * 6, "")
