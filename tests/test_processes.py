"""convx among processes and threads: fork, many Python threads, signals, failed allocations, settings."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import convx
from convx import _cpu
from support import Conv, assert_same_bits, numbers

PATIENCE = 120  # seconds, for a child of one second on a busy machine

PROBLEM = Conv(n=4, c=32, h=40, w=41, k=48, padding=1)


def every_operation(seed=0):
    """One result for every operation, on work of several tasks."""
    x = numbers(PROBLEM.input_shape, "normal", seed).astype("float32")
    w = numbers(PROBLEM.weight_shape, "normal", seed + 1).astype("float32")
    y = convx.conv2d(x, w, padding=1, activation="relu")
    pooled, codes = convx.max_pool2d(y, 2, return_codes=True)
    fused, saved = convx.conv2d_relu_max_pool2d(x, w, padding=1, pool_kernel_size=2)
    return (
        pooled,
        codes,
        fused,
        convx.max_pool2d_backward(pooled, codes, y.shape, 2),
        convx.relu_backward(y, y),
        *convx.conv2d_backward(y, x, w, padding=1),
        *convx.conv2d_relu_max_pool2d_backward(fused, saved),
    )


def in_child(work):
    """Run `work` in a forked child; return whether it ended, and its exit status: 1 where `work` raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return True, os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False, None


def script(text, **environment):
    """Run a Python program with convx on its path; return what it printed."""
    packages = os.path.dirname(os.path.dirname(convx.__file__))
    path = os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def test_fork(isa):
    """The child drops the pool, computes the same bits with one thread, and can start its own pool."""
    convx.set_num_threads(3)
    expected = every_operation()

    def child():
        assert convx.get_num_threads() == 1
        assert_same_bits(every_operation(), expected, "one thread in the child")
        convx.set_num_threads(3)
        assert_same_bits(every_operation(), expected, "three threads in the child")

        def grandchild():
            assert_same_bits(every_operation(), expected, "in the grandchild")

        assert in_child(grandchild) == (True, 0)

    for _ in range(3):
        assert in_child(child) == (True, 0)
        assert_same_bits(every_operation(), expected, "in the parent after the fork")
    assert convx.get_num_threads() == 3


def test_fork_in_the_middle_of_a_call():
    """fork while other Python threads use the pool and its locks."""
    convx.set_num_threads(3)
    expected = every_operation()
    stop = threading.Event()
    failures = []

    def busy():
        try:
            while not stop.is_set():
                assert_same_bits(every_operation(), expected, "beside the fork")
        except BaseException as error:
            failures.append(error)

    def child():
        assert_same_bits(every_operation(), expected, "in the child")
        convx.set_num_threads(2)
        assert_same_bits(every_operation(), expected, "two threads in the child")

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        outcomes = [in_child(child) for _ in range(15)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert outcomes == [(True, 0)] * 15
    assert not failures, failures[0]


def test_multiprocessing_by_fork():
    program = """
        import multiprocessing
        import numpy as np
        import convx

        def work(seed):
            x = np.random.default_rng(seed).standard_normal((4, 32, 40, 41)).astype("float32")
            w = np.random.default_rng(seed + 1).standard_normal((48, 32, 3, 3)).astype("float32")
            return float(convx.conv2d(x, w, padding=1).astype("float64").sum())

        if __name__ == "__main__":
            convx.set_num_threads(3)
            here = [work(seed) for seed in range(6)]
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(6)) == here)
    """
    assert script(program, PYTHONWARNINGS="ignore::DeprecationWarning") == "True"


def test_many_python_threads_at_once(isa):
    """Different problems in eight threads, while a ninth sets the number of threads: every result is right."""
    expected = [every_operation(seed) for seed in range(4)]
    stop = threading.Event()

    def restless():
        count = 0
        while not stop.is_set():
            convx.set_num_threads(1 + count % 4)
            count += 1
            time.sleep(0.001)

    def work(index):
        for round_number in range(6):
            seed = (index + round_number) % 4
            assert_same_bits(every_operation(seed), expected[seed], f"thread {index}, round {round_number}")

    changer = threading.Thread(target=restless)
    changer.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, index) for index in range(8)]:
                done.result(PATIENCE)
    finally:
        stop.set()
        changer.join(PATIENCE)


def test_other_python_threads_run_during_a_call():
    """The GIL is released: another Python thread runs during a call of some tenths of a second."""
    x, w = np.ones((4, 128, 64, 64), "float32"), np.ones((256, 128, 3, 3), "float32")
    notes, stop = [], threading.Event()

    def clock():
        while not stop.is_set():
            notes.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=clock)
    thread.start()
    try:
        with convx.threads(1):
            for _ in range(20):
                begin = time.monotonic()
                convx.conv2d(x, w, padding=1)
                end = time.monotonic()
                middle = [note for note in notes if begin + 0.2 * (end - begin) < note < end - 0.2 * (end - begin)]
                if middle:
                    break
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert middle, "no other thread ran during any of 20 calls"


def test_keyboard_interrupt():
    """Ctrl-C in a loop of calls raises between two calls, and later calls work."""
    program = """
        import os, signal, threading
        import numpy as np
        import convx
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        x, w = np.ones((2, 32, 64, 64), "float32"), np.ones((32, 32, 3, 3), "float32")
        expected = convx.conv2d(x, w)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                convx.conv2d(x, w)
        except KeyboardInterrupt:
            print(np.array_equal(convx.conv2d(x, w), expected))
    """
    assert script(program) == "True"


# Every operation on arrays of some size, with less and less spare address space.
OUT_OF_MEMORY = """
    import resource
    import numpy as np
    import convx

    def limit(spare):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 64, 64)).astype("float32")
    w = rng.standard_normal((64, 32, 3, 3)).astype("float32")
    y = convx.conv2d(x, w, padding=1)
    pooled, codes = convx.max_pool2d(y, 2, return_codes=True)
    fused, saved = convx.conv2d_relu_max_pool2d(x, w, padding=1, pool_kernel_size=2)
    out = np.empty_like(y)

    def into_out():
        out[...] = 7
        try:
            return convx.conv2d(x, w, padding=1, out=out)
        except MemoryError:
            assert (out == 7).all(), "half-written"
            raise

    calls = [
        lambda: convx.conv2d(x, w, padding=1),
        lambda: into_out().copy(),
        lambda: convx.conv2d(x.transpose(0, 1, 3, 2), w, padding=1),
        lambda: convx.conv2d_backward(y, x, w, padding=1),
        lambda: convx.relu(y),
        lambda: convx.relu_backward(y, y),
        lambda: convx.max_pool2d(y, 2, return_indices=True),
        lambda: convx.max_pool2d_backward(pooled, codes, y.shape, 2),
        lambda: convx.conv2d_relu_max_pool2d(x, w, padding=1, pool_kernel_size=2)[0],
        lambda: convx.conv2d_relu_max_pool2d_backward(fused, saved),
    ]

    def same(one, other):
        if isinstance(one, tuple):
            return all(map(same, one, other))
        return one.tobytes() == other.tobytes()

    expected = [call() for call in calls]
    convx._cpu.workspace_release()
    failures = 0
    for threads in (1, 4, 16):
        for spare in [0, 10_000, 100_000, 300_000, 600_000, *range(1_000_000, 8_000_000, 500_000), 20_000_000]:
            for call, wanted in zip(calls, expected):
                convx.set_num_threads(threads)
                limit(spare)
                try:
                    result = call()
                except MemoryError:
                    failures += 1
                    result = None
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert result is None or same(result, wanted)
                del result
                convx._cpu.workspace_release()
    assert failures > 50, failures
    assert all(same(call(), wanted) for call, wanted in zip(calls, expected))
    print("healthy")
"""


def test_memory_that_runs_out():
    """MemoryError or the right result for every amount of spare memory, and a working process afterwards."""
    assert script(OUT_OF_MEMORY) == "healthy"


def test_scratch_that_cannot_be_allocated():
    """The result fits (64 MiB), the padded image that a mirrored border needs beside it does not."""
    program = """
        import resource
        import numpy as np
        import convx
        def grad_input(x, w):
            mask = (True, False, False)
            return convx.conv2d_backward(x, x, w, padding=1, padding_mode="reflect", output_mask=mask)[0]
        x, w = np.ones((1, 1, 4096, 4096), "float32"), np.ones((1, 1, 3, 3), "float32")
        small = grad_input(x[..., :8, :8], w)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), resource.RLIM_INFINITY))
        for _ in range(3):
            try:
                grad_input(x, w)
            except MemoryError as error:
                print(error)
        print(np.array_equal(small, grad_input(x[..., :8, :8], w)))
    """
    *errors, same = script(program).splitlines()
    assert len(errors) == 3
    assert all("memory" in error for error in errors)
    assert same == "True"


def test_scratch_does_not_grow_without_bound():
    """A thousand problems of different sizes keep no more scratch memory than the largest few."""
    for size in range(1000):
        x = np.ones((1, 3 + size % 61, 9 + size % 83, 11 + size % 47), "float32")
        convx.conv2d(x, np.ones((1 + size % 71, x.shape[1], 3, 3), "float32"))
    assert 0 < _cpu.config()["workspace_cached_bytes"] <= 64 << 20
    _cpu.workspace_release()
    assert _cpu.config()["workspace_cached_bytes"] == 0


CONFIG = "from convx import _cpu; c = _cpu.config(); print(c['threads'], c['threads_reason'], sep=', ')"


def test_where_the_number_of_threads_comes_from():
    unset = dict(CONVX_NUM_THREADS="", OMP_NUM_THREADS="")
    cpus = len(os.sched_getaffinity(0))
    count, reason = script(CONFIG, **unset).split(", ")
    assert reason in ("affinity", "cgroup quota")
    assert 1 <= int(count) <= cpus
    assert script(CONFIG, **unset | dict(OMP_NUM_THREADS="3")) == "3, OMP_NUM_THREADS"
    assert script(CONFIG, OMP_NUM_THREADS="3", CONVX_NUM_THREADS="2") == "2, CONVX_NUM_THREADS"
    assert script("import convx; convx.set_num_threads(5);" + CONFIG, CONVX_NUM_THREADS="2") == "5, set_num_threads"
    for nonsense in ("0", "-1", "many", "2.5", "9999999999999999999999"):
        assert script(CONFIG, **unset | dict(CONVX_NUM_THREADS=nonsense)) == f"{count}, {reason}"
    one_cpu = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}]);"
    assert script(one_cpu + CONFIG, **unset).startswith("1, ")


def test_the_context_manager_restores_the_number_of_threads():
    before = convx.get_num_threads()
    with convx.threads(before + 1):
        assert convx.get_num_threads() == before + 1
    assert convx.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), convx.threads(before + 1):
        raise ZeroDivisionError
    assert convx.get_num_threads() == before


def test_the_environment_forces_the_instruction_set():
    program = "from convx import _cpu; c = _cpu.config(); print(c['isa'], c['isa_reason'], sep=', ')"
    for isa in _cpu.config()["isas"]:
        assert script(program, CONVX_ISA=isa) == f"{isa}, forced by CONVX_ISA"
    refused = """
        import numpy as np
        import convx
        try:
            convx.relu(np.zeros(3, "float32"))
        except RuntimeError as error:
            print(error)
    """
    message = script(refused, CONVX_ISA="avx1024")
    assert message.startswith("CONVX_ISA=avx1024")
    assert "portable" in message
