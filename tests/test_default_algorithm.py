"""The meaning of ``algorithm="auto"``: `convx.set_default_algorithm`, its context manager, ``CONVX_ALGORITHM``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import convx
from convx import nn
from support import assert_same_bits

SHAPES = (2, 68, 24, 24), (66, 68, 3, 3)
RNG = np.random.default_rng(0)
X, W = (RNG.standard_normal(shape).astype("float32") for shape in SHAPES)
G = RNG.standard_normal((2, 66, 24, 24)).astype("float32")


@pytest.fixture(autouse=True)
def same_algorithm() -> Iterator[None]:
    before = convx.get_default_algorithm()
    yield
    convx.set_default_algorithm(before)


def calls(**options):
    """Every function with an `algorithm`, and the fused operation, which has no such argument."""
    layer = nn.Conv2d(68, 66, 3, padding=1, bias=False, **options)
    layer.weight.value[...] = W
    forward = convx.conv2d(X, W, padding=1, **options)
    backward = convx.conv2d_backward(G, X, W, padding=1, **options)[:2]
    transposed = convx.conv_transpose2d(G, W, padding=1, **options)
    norms = convx.conv2d_grad_norms(G, X, W.shape, padding=1, **options)
    prepared = convx.conv2d(X, convx.prepare_weight(W, X.shape, padding=1, **options), padding=1, **options)
    return forward, *backward, transposed, norms[0], prepared, layer(X)


def fused():
    y, saved = convx.conv2d_relu_max_pool2d(X, W, padding=1, pool_kernel_size=2)
    return y, convx.conv2d_relu_max_pool2d_backward(G[..., :12, :12], saved)[0]


def test_it_reaches_every_call():
    direct, automatic = calls(algorithm="direct"), calls()
    assert any(not np.array_equal(a, b) for a, b in zip(direct, automatic, strict=True))
    with convx.default_algorithm("direct"):
        assert convx.get_default_algorithm() == "direct"
        assert_same_bits(calls(), direct, "default direct")
        assert_same_bits(calls(algorithm="auto"), direct, "auto by name")
    assert convx.get_default_algorithm() == "auto"
    assert_same_bits(calls(), automatic, "auto again")


def test_the_fused_operation_follows():
    automatic = fused()
    with convx.default_algorithm("direct"):
        y, grad_input = fused()
        full = convx.conv2d(X, W, padding=1, activation="relu", algorithm="direct")
        assert_same_bits(y, convx.max_pool2d(full, 2), "algorithm")
    assert not np.array_equal(y, automatic[0])
    assert not np.array_equal(grad_input, automatic[1])


def test_a_call_that_names_one_keeps_it():
    winograd = convx.conv2d(X, W, padding=1, algorithm="winograd")
    with convx.default_algorithm("direct"):
        assert_same_bits(convx.conv2d(X, W, padding=1, algorithm="winograd"), winograd, "algorithm")
        prepared = convx.prepare_weight(W, X.shape, padding=1, algorithm="winograd")
        assert_same_bits(convx.conv2d(X, prepared, padding=1, algorithm="winograd"), winograd, "algorithm")


def test_weights_prepared_under_another_default_serve_as_plain_ones():
    prepared = convx.prepare_weight(W, X.shape, padding=1)
    with convx.default_algorithm("direct"):
        assert_same_bits(
            convx.conv2d(X, prepared, padding=1), convx.conv2d(X, W, padding=1, algorithm="direct"), "algorithm"
        )


def test_the_block_ends_with_an_exception_too():
    with pytest.raises(KeyError), convx.default_algorithm("direct"):
        raise KeyError
    assert convx.get_default_algorithm() == "auto"


@pytest.mark.parametrize("word", ["winograd", "", "Direct", "fast"])
def test_other_words_are_refused(word):
    for use in (convx.set_default_algorithm, lambda word: convx.default_algorithm(word).__enter__()):
        with pytest.raises(convx.ShapeError, match=r'set_default_algorithm: algorithm is .*, expected "auto" or'):
            use(word)
    assert convx.get_default_algorithm() == "auto"


@pytest.mark.parametrize("value", [None, 1, b"direct", True])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match="set_default_algorithm: algorithm is"):
        convx.set_default_algorithm(value)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


CONFIG = """
import json, convx
config = convx._cpu.config()
print(json.dumps([config["algorithm"], config["algorithm_reason"]]))
"""


@pytest.mark.parametrize(("value", "expected"), [("direct", "direct"), ("auto", "auto"), ("", "auto")])
def test_environment(value, expected):
    done = run(CONFIG, CONVX_ALGORITHM=value)
    assert json.loads(done.stdout) == [expected, "CONVX_ALGORITHM" if value else "default"], done.stderr
    done = run(f"import convx; convx.set_default_algorithm('auto'){CONFIG}", CONVX_ALGORITHM=value)
    assert json.loads(done.stdout) == ["auto", "set_default_algorithm"]


def test_a_wrong_environment_says_so():
    done = run(
        "import numpy as np, convx; convx.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))", CONVX_ALGORITHM="no"
    )
    assert "RuntimeError: CONVX_ALGORITHM=no: expected auto or direct" in done.stderr


def test_show_config_tells(capsys):
    convx.set_default_algorithm("direct")
    convx.show_config()
    assert "direct (set_default_algorithm)" in capsys.readouterr().out


def test_pytorch_and_compiled_graphs():
    torch = pytest.importorskip("torch")
    import convx.torch

    x, w, g = (torch.from_numpy(a) for a in (X, W, G))

    def both(weight, image):
        weight, image = weight.clone().requires_grad_(), image.clone().requires_grad_()
        y = convx.torch.conv2d(image, weight, padding=1)
        y.backward(g)
        return tuple(a.detach().numpy() for a in (y, image.grad, weight.grad))

    compiled = torch.compile(lambda image, weight: convx.torch.conv2d(image, weight, padding=1), backend="aot_eager")
    automatic, before = both(w, x), compiled(x, w).numpy()
    with convx.default_algorithm("direct"):
        direct = (convx.conv2d(X, W, padding=1), *convx.conv2d_backward(G, X, W, padding=1)[:2])
        assert_same_bits(both(w, x), direct, "algorithm")
        assert_same_bits(compiled(x, w).numpy(), direct[0], "algorithm")
        assert_same_bits(convx.conv2d(x, w, padding=1).numpy(), direct[0], "algorithm")
    assert_same_bits(both(w, x), automatic, "algorithm")
    assert_same_bits(before, automatic[0], "algorithm")


def test_jax():
    jax = pytest.importorskip("jax")
    import convx.jax

    with convx.default_algorithm("direct"):
        y = np.asarray(convx.jax.conv2d(jax.numpy.asarray(X), jax.numpy.asarray(W), padding=1))
    assert_same_bits(y, convx.conv2d(X, W, padding=1, algorithm="direct"), "algorithm")
