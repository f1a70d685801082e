"""convx.reference against loops over single elements, adjoints, finite differences, values by hand, and PyTorch.

The loops below implement docs/semantics.md a second time, one element and one tap at a time, without the vectorised
code: they check index arithmetic, skipped taps, NaN and ties on tiny problems full of inf and NaN.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from convx import reference

MODES = ("zeros", "constant", "reflect", "replicate", "circular")


def source_cell(position: int, size: int, mode: str) -> int | str:
    """The source pixel at `position`, "skip" for zeros, or "value" for a constant."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return "skip"
    if mode == "constant":
        return "value"
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position + size if position < 0 else position - size
    return -position if position < 0 else 2 * (size - 1) - position


def conv_terms(problem: dict[str, Any]):
    """Every product of the convolution: the indices (n, k, p, q), (n, c, h, w) or None for the value, (k, c, r, s)."""
    (n_count, _, height, width), (k_count, c_group, r_count, s_count) = problem["x"].shape, problem["w"].shape
    (top, bottom), (left, right) = problem["padding"]
    (stride_h, stride_w), (dil_h, dil_w) = problem["stride"], problem["dilation"]
    k_group = k_count // problem["groups"]
    p_count = (height + top + bottom - dil_h * (r_count - 1) - 1) // stride_h + 1
    q_count = (width + left + right - dil_w * (s_count - 1) - 1) // stride_w + 1
    for n, k, p, q, c, r, s in itertools.product(
        range(n_count), range(k_count), range(p_count), range(q_count), range(c_group), range(r_count), range(s_count)
    ):
        h = source_cell(p * stride_h + r * dil_h - top, height, problem["modes"][0])
        w = source_cell(q * stride_w + s * dil_w - left, width, problem["modes"][1])
        if "skip" in (h, w):
            continue
        seen = None if "value" in (h, w) else (n, k // k_group * c_group + c, h, w)
        yield (n, k, p, q), seen, (k, c, r, s)


def random_conv_problem(rng: np.random.Generator, special: bool) -> dict[str, Any] | None:
    """A small problem; with `special`, one element in ten is inf or NaN. None where no window fits."""

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    groups, c_group, k_group = pick(1, 2), pick(1, 2), pick(1, 2)
    size, taps = (pick(1, 5), pick(1, 5)), (pick(1, 3), pick(1, 3))
    mode = str(rng.choice(MODES))
    modes = (mode, str(rng.choice(MODES)) if rng.random() < 0.3 else mode)
    limits = [{"reflect": s - 1, "circular": s}.get(m, 3) for m, s in zip(modes, size, strict=True)]
    problem: dict[str, Any] = {
        "x": rng.normal(size=(pick(1, 2), groups * c_group, *size)),
        "w": rng.normal(size=(groups * k_group, c_group, *taps)),
        "b": rng.normal(size=groups * k_group),
        "stride": (pick(1, 3), pick(1, 3)),
        "dilation": (pick(1, 3), pick(1, 3)),
        "padding": tuple((pick(0, limit), pick(0, limit)) for limit in limits),
        "groups": groups,
        "modes": modes,
        "value": float(rng.normal()),
    }
    for axis in (0, 1):
        if size[axis] + sum(problem["padding"][axis]) < problem["dilation"][axis] * (taps[axis] - 1) + 1:
            return None
    if special:
        for name in ("x", "w"):
            array = problem[name]
            chosen = rng.random(array.shape) < 0.1
            array[chosen] = rng.choice([np.inf, -np.inf, np.nan], size=array.shape)[chosen]
    return problem


def options(problem: dict[str, Any]) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups")
    return {name: problem[name] for name in names} | {
        "padding_mode": problem["modes"],
        "padding_value": problem["value"],
    }


def conv_problems(seed: int, count: int, special: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    problems = (random_conv_problem(rng, special) for _ in itertools.count())
    return list(itertools.islice((problem for problem in problems if problem is not None), count))


@pytest.mark.parametrize("special", [False, True], ids=["finite", "inf and NaN"])
def test_conv2d_equals_loops(special):
    rng = np.random.default_rng(7)
    modes_seen = set()
    for problem in conv_problems(1, 80, special):
        x, w, b = problem["x"], problem["w"], problem["b"]
        modes_seen.add(problem["modes"])
        got = reference.conv2d(x, w, b, **options(problem))
        g = rng.normal(size=got.shape)
        if special:
            g[rng.random(g.shape) < 0.1] = np.inf
        grad_input, grad_weight, grad_bias = reference.conv2d_backward(g, x, w, **options(problem))

        want, want_gi, want_gw = np.zeros_like(got) + b[:, None, None], np.zeros_like(x), np.zeros_like(w)
        with np.errstate(invalid="ignore"):
            for y_at, x_at, w_at in conv_terms(problem):
                seen = problem["value"] if x_at is None else x[x_at]
                want[y_at] += seen * w[w_at]
                want_gw[w_at] += g[y_at] * seen
                if x_at is not None:
                    want_gi[x_at] += g[y_at] * w[w_at]
        message = str({name: value for name, value in problem.items() if name not in ("x", "w", "b")})
        for ours, theirs in ((got, want), (grad_input, want_gi), (grad_weight, want_gw), (grad_bias, g.sum((0, 2, 3)))):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12, err_msg=message)
    assert len(modes_seen) > 8


def pool_by_loops(plane, taps, stride, sides, dilation, ceil_mode):
    """A loop over the windows of one plane: output, flat index and tap of every window."""
    count = []
    for axis in (0, 1):
        room = plane.shape[axis] + sum(sides[axis]) - dilation[axis] * (taps[axis] - 1) - 1
        length = (room + (stride[axis] - 1 if ceil_mode else 0)) // stride[axis] + 1
        if ceil_mode and (length - 1) * stride[axis] >= plane.shape[axis] + sides[axis][0]:
            length -= 1
        count.append(length)
    if min(count) < 1:
        return None
    output, index, code = np.empty(count), np.empty(count, np.int64), np.empty(count, np.uint8)
    for p, q in itertools.product(range(count[0]), range(count[1])):
        start = [p * stride[0] - sides[0][0], q * stride[1] - sides[1][0]]
        stop = [min(start[i] + dilation[i] * (taps[i] - 1) + 1, plane.shape[i]) for i in (0, 1)]
        first = [next(h for h in itertools.count(start[i], dilation[i]) if h >= 0) for i in (0, 1)]
        best, best_at = -np.inf, None
        for h in range(first[0], stop[0], dilation[0]):
            for w in range(first[1], stop[1], dilation[1]):
                value = plane[h, w]
                if best_at is None or value > best or np.isnan(value):
                    best, best_at = value, (h, w)
        output[p, q] = best
        index[p, q] = -1 if best_at is None else best_at[0] * plane.shape[1] + best_at[1]
        code[p, q] = (
            255
            if best_at is None
            else (best_at[0] - start[0]) // dilation[0] * taps[1] + (best_at[1] - start[1]) // dilation[1]
        )
    return output, index, code


def test_max_pool2d_equals_loops(layout):
    rng = np.random.default_rng(2)
    channels_at = 0 if layout == "NCHW" else -1
    tried = no_tap = 0
    while tried < 150:
        size, taps, dilation, stride = (tuple(int(v) for v in rng.integers(1, high, 2)) for high in (8, 5, 4, 4))
        sides = tuple(
            tuple(int(v) for v in rng.integers(0, d * (r - 1) + 1, 2)) for d, r in zip(dilation, taps, strict=True)
        )
        x = rng.integers(-2, 3, size=(2, *size)).astype(float)
        x[rng.random(x.shape) < 0.3] = -np.inf
        x[rng.random(x.shape) < 0.1] = np.nan
        call = {"stride": stride, "padding": sides, "dilation": dilation, "ceil_mode": bool(rng.random() < 0.5)}
        want = [pool_by_loops(plane, taps, stride, sides, dilation, call["ceil_mode"]) for plane in x]
        array = np.moveaxis(x, 0, channels_at)
        call["layout"] = layout
        if want[0] is None:
            with pytest.raises(ValueError, match="window spans"):
                reference.max_pool2d(array, taps, **call)
            continue
        tried += 1
        output, index, code = (np.stack(part, axis=channels_at) for part in zip(*want, strict=True))
        no_tap += (index < 0).any()
        np.testing.assert_array_equal(reference.max_pool2d(array, taps, **call), output)
        with_index = reference.max_pool2d(array, taps, **call, return_indices=True)
        with_code = reference.max_pool2d(array, taps, **call, return_codes=True)
        for got, expected in zip((*with_index, *with_code), (output, index, output, code), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, err_msg=f"{call} {taps}")

        g = rng.normal(size=output.shape)
        planes = [np.zeros(size) for _ in x]
        for plane, g_plane, i_plane in zip(
            planes, np.moveaxis(g, channels_at, 0), np.moveaxis(index, channels_at, 0), strict=True
        ):
            for value, at in zip(g_plane.flat, i_plane.flat, strict=True):
                if at >= 0:
                    plane.flat[at] += value
        grad = np.moveaxis(np.stack(planes), 0, channels_at)
        for wrong in (-1, x[0].size) if (index >= 0).any() else ():
            broken = np.where(index == index.max(), wrong, index)
            with pytest.raises(ValueError, match="an index lies outside the plane"):
                reference.max_pool2d_backward(g, broken, array.shape, taps, **call)
        for chosen in (index, code):
            back = reference.max_pool2d_backward(g, chosen, array.shape, taps, **call)
            np.testing.assert_array_equal(back, grad)
    assert no_tap > 0  # some windows have no tap inside


def test_edge_kernel_by_hand():
    x = np.array([[[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [2.0, 1.0, 1.0]]])
    w = np.array([[[[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]]])
    np.testing.assert_array_equal(reference.conv2d(x, w), [[[12 - 2 - 0 - 1 - 1]]])
    zero_border = [
        [[4 - 2 - 0, 8 - 1 - 0 - 3, 0 - 2 - 1], [0 - 1 - 3 - 2, 8, 4 - 0 - 3 - 1], [8 - 0 - 1, 4 - 3 - 2 - 1, 2]]
    ]
    np.testing.assert_array_equal(reference.conv2d(x, w, padding=1), zero_border)
    np.testing.assert_array_equal(reference.conv2d(x, w, padding="same", activation="relu"), np.maximum(zero_border, 0))


def test_kernel_is_not_flipped():
    x = np.array([[[1.0, 10.0, 100.0]]])
    np.testing.assert_array_equal(reference.conv2d(x, np.array([[[[1.0, 2.0]]]])), [[[21.0, 210.0]]])


def test_groups_and_bias_by_hand():
    x = np.array([[[[2.0]], [[3.0]]]])
    w = np.array([[[[1.0]]], [[[10.0]]], [[[100.0]]], [[[1000.0]]]])
    got = reference.conv2d(x, w, np.array([0.5, 0.0, 0.0, -0.5]), groups=2)
    np.testing.assert_array_equal(got.ravel(), [2.5, 20.0, 300.0, 2999.5])


@pytest.mark.parametrize(
    ("padding", "stride", "expected"),
    [
        ("valid", 1, [12, 23]),
        ("same", 1, [12, 23, 30]),
        ("same_lower", 1, [1, 12, 23]),
        ("same", 2, [12, 30]),
        ("same_lower", 2, [1, 23]),
        (((0, 0), (2, 1)), 1, [0, 1, 12, 23, 30]),
        ((0, 1), 2, [1, 23]),
    ],
)
def test_padding_forms(padding, stride, expected):
    x = np.array([[[1.0, 2.0, 3.0]]])
    w = np.array([[[[10.0, 1.0]]]])
    got = reference.conv2d(x, w, padding=padding, stride=(1, stride))
    np.testing.assert_array_equal(got.ravel(), expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [0, 0, 1, 2, 3, 0, 0]),
        ("constant", [7, 7, 1, 2, 3, 7, 7]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1]),
        ("replicate", [1, 1, 1, 2, 3, 3, 3]),
        ("circular", [2, 3, 1, 2, 3, 1, 2]),
    ],
)
def test_padding_modes_by_hand(mode, expected):
    x, one = np.array([1.0, 2.0, 3.0]), np.ones((1, 1, 1, 1))
    across = reference.conv2d(x.reshape(1, 1, 3), one, padding=(0, 2), padding_mode=mode, padding_value=7.0)
    down = reference.conv2d(x.reshape(1, 3, 1), one, padding=(2, 0), padding_mode=(mode, "zeros"), padding_value=7.0)
    np.testing.assert_array_equal(across.ravel(), expected)
    np.testing.assert_array_equal(down.ravel(), expected)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_taps_outside_are_skipped(bad):
    x, w = np.ones((1, 1, 1)), np.full((1, 1, 3, 3), bad)
    w[0, 0, 1, 1] = 2.0
    np.testing.assert_array_equal(reference.conv2d(x, w, padding=1), [[[2.0]]])
    grad_input, grad_weight, _ = reference.conv2d_backward(np.full((1, 1, 1), 5.0), x, w, padding=1)
    np.testing.assert_array_equal(grad_input, [[[10.0]]])
    np.testing.assert_array_equal(grad_weight[0, 0], [[0, 0, 0], [0, 5, 0], [0, 0, 0]])
    _, grad_weight, _ = reference.conv2d_backward(np.full((1, 1, 1), bad), x, w, padding=1)
    np.testing.assert_array_equal(grad_weight[0, 0], [[0, 0, 0], [0, bad, 0], [0, 0, 0]])


def test_zero_sizes():
    w = np.ones((2, 3, 3, 3))
    empty = np.zeros((0, 3, 5, 5))
    assert reference.conv2d(empty, w).shape == (0, 2, 3, 3)
    grad_input, grad_weight, grad_bias = reference.conv2d_backward(np.zeros((0, 2, 3, 3)), empty, w)
    assert grad_input.shape == empty.shape
    np.testing.assert_array_equal(grad_weight, np.zeros_like(w))
    np.testing.assert_array_equal(grad_bias, [0, 0])
    got = reference.conv2d(np.zeros((1, 0, 4, 4)), np.zeros((2, 0, 3, 3)), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(got[0, :, 0, 0], [1, 2])
    grads = reference.conv2d_backward(np.ones((1, 2, 2, 2)), np.zeros((1, 0, 4, 4)), np.zeros((2, 0, 3, 3)))
    assert [grad.shape for grad in grads] == [(1, 0, 4, 4), (2, 0, 3, 3), (2,)]
    output, codes = reference.max_pool2d(empty, 2, return_codes=True)
    assert output.shape == codes.shape == (0, 3, 2, 2)
    assert reference.max_pool2d_backward(output, codes, empty.shape, 2).shape == empty.shape


def test_output_mask_and_out():
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(1, 2, 4, 4)), rng.normal(size=(3, 2, 2, 2))
    g = rng.normal(size=(1, 3, 3, 3))
    every = reference.conv2d_backward(g, x, w)
    for mask in itertools.product((False, True), repeat=3):
        for wanted, got, full in zip(mask, reference.conv2d_backward(g, x, w, output_mask=mask), every, strict=True):
            assert (got is not None) == wanted
            if wanted:
                np.testing.assert_array_equal(got, full)
    out = np.empty((1, 3, 3, 3))
    assert reference.conv2d(x, w, out=out) is out
    np.testing.assert_array_equal(out, reference.conv2d(x, w))
    assert reference.relu(out, out=out) is out
    assert out.min() == 0


def test_relu_by_hand():
    x = np.array([-np.inf, -1.0, -0.0, 0.0, 2.0, np.inf, np.nan])
    y = reference.relu(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, 2, np.inf, np.nan])
    assert not np.signbit(y[:4]).any()
    np.testing.assert_array_equal(reference.relu_backward(np.full(7, 3.0), y), [0, 0, 0, 0, 3, 3, 3])


def test_pool_by_hand():
    inf, nan = np.inf, np.nan
    x = np.array([[[1.0, 1.0, nan, 5.0], [1.0, 0.0, nan, 6.0], [-inf, -inf, -inf, 2.0], [-inf, -inf, 3.0, -inf]]])
    output, indices = reference.max_pool2d(x, 2, return_indices=True)
    np.testing.assert_array_equal(output, [[[1, nan], [-inf, 3]]])
    np.testing.assert_array_equal(indices, [[[0, 6], [8, 14]]])  # the first tie, the last NaN, the first of all -inf
    _, codes = reference.max_pool2d(x, 2, return_codes=True)
    np.testing.assert_array_equal(codes, [[[0, 2], [0, 2]]])
    assert reference.max_pool2d(np.zeros((1, 5, 5)), 2, 2, 1, ceil_mode=True).shape == (1, 3, 3)
    assert reference.max_pool2d(np.zeros((1, 5, 5)), 2, padding="same").shape == (1, 3, 3)


def test_overlapping_windows_add():
    x = np.array([[[0.0, 9.0, 1.0]]])
    _, indices = reference.max_pool2d(x, (1, 2), 1, return_indices=True)
    grad = reference.max_pool2d_backward(np.array([[[2.0, 3.0]]]), indices, x.shape, (1, 2), 1)
    np.testing.assert_array_equal(grad, [[[0, 5, 0]]])


def test_adjoint_identities():
    rng = np.random.default_rng(4)
    for problem in conv_problems(5, 60):
        problem["value"] = 0.0  # with a constant border the map is affine, not linear
        x, w = problem["x"], problem["w"]
        y = reference.conv2d(x, w, **options(problem))
        g = rng.normal(size=y.shape)
        grad_input, grad_weight, _ = reference.conv2d_backward(g, x, w, **options(problem))
        scale = np.abs(y).ravel() @ np.abs(g).ravel() + 1
        assert abs((y * g).sum() - (x * grad_input).sum()) < 1e-12 * scale
        assert abs((y * g).sum() - (w * grad_weight).sum()) < 1e-12 * scale


def fused_problem(layout: str, rng: np.random.Generator):
    x, w, b = rng.normal(size=(2, 4, 9, 8)), rng.normal(size=(6, 2, 3, 3)), rng.normal(size=6)
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    call = {"stride": (1, 2), "padding": 1, "dilation": (2, 1), "groups": 2, "layout": layout}
    pool = {"kernel_size": (3, 2), "stride": 2, "padding": ((1, 0), (0, 1)), "layout": layout}
    return x, w, b, call, pool


def test_fused_equals_the_sequence(layout):
    rng = np.random.default_rng(6)
    x, w, b, call, pool = fused_problem(layout, rng)
    conv = reference.conv2d(x, w, b, **call)
    activated = reference.relu(conv)
    pooled, codes = reference.max_pool2d(activated, **pool, return_codes=True)
    fused_pool = {f"pool_{name}": value for name, value in pool.items() if name != "layout"}
    output, saved = reference.conv2d_relu_max_pool2d(x, w, b, **call, **fused_pool)
    np.testing.assert_array_equal(output, pooled)
    np.testing.assert_array_equal(saved.codes, np.where(pooled > 0, codes, 255))
    assert (saved.codes == 255).any()

    g = rng.normal(size=output.shape)
    grad = reference.max_pool2d_backward(g, codes, activated.shape, **pool)
    sequence = reference.conv2d_backward(reference.relu_backward(grad, activated), x, w, **call)
    for got, want in zip(reference.conv2d_relu_max_pool2d_backward(g, saved), sequence, strict=True):
        np.testing.assert_array_equal(got, want)


def test_finite_differences():
    rng = np.random.default_rng(8)
    x, w, b, call, pool = fused_problem("NCHW", rng)
    fused_pool = {f"pool_{name}": value for name, value in pool.items() if name != "layout"}

    def loss() -> float:
        output, _ = reference.conv2d_relu_max_pool2d(x, w, b, **call, **fused_pool)
        return float((output * g).sum())

    output, saved = reference.conv2d_relu_max_pool2d(x, w, b, **call, **fused_pool)
    g = rng.normal(size=output.shape)
    step = 1e-6
    for array, grad in zip((x, w, b), reference.conv2d_relu_max_pool2d_backward(g, saved), strict=True):
        for at in rng.choice(array.size, size=min(array.size, 25), replace=False):
            kept = array.flat[at]
            array.flat[at] = kept + step
            above = loss()
            array.flat[at] = kept - step
            below = loss()
            array.flat[at] = kept
            assert (above - below) / (2 * step) == pytest.approx(grad.flat[at], rel=1e-6, abs=1e-6)


def test_conv2d_equals_torch(layout):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    for _ in range(60):
        groups, c_group, k_group, size = (int(rng.integers(1, high)) for high in (4, 5, 5, 14))
        taps, stride, dilation, padding = (tuple(int(v) for v in rng.integers(1, high, 2)) for high in (5, 4, 3, 4))
        x = rng.normal(size=(2, groups * c_group, size + 8, size + 6))
        w, b = rng.normal(size=(groups * k_group, c_group, *taps)), rng.normal(size=groups * k_group)
        tensors = [torch.from_numpy(array).requires_grad_() for array in (x, w, b)]
        y = torch.nn.functional.conv2d(*tensors, stride, padding, dilation, groups)
        g = rng.normal(size=tuple(y.shape))
        y.backward(torch.from_numpy(g))
        call = (stride, padding, dilation, groups)
        last = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
        got = reference.conv2d(x.transpose(last), w, b, *call, layout=layout)
        grads = reference.conv2d_backward(g.transpose(last), x.transpose(last), w, *call, layout=layout)
        pairs = [(got, y.detach().numpy().transpose(last)), (grads[0], tensors[0].grad.numpy().transpose(last))]
        pairs += [(grads[1], tensors[1].grad.numpy()), (grads[2], tensors[2].grad.numpy())]
        for ours, theirs in pairs:
            # up to 4 * 16 * 22 * 20 products of size 1 are summed in another order
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_equal_torch(mode):
    torch = pytest.importorskip("torch")
    module = torch.nn.Conv2d(3, 4, 3, stride=2, padding=(2, 3), padding_mode=mode, dtype=torch.float64)
    x = torch.from_numpy(np.random.default_rng(10).normal(size=(2, 3, 7, 8))).requires_grad_()
    y = module(x)
    g = torch.ones_like(y)
    y.backward(g)
    call = {"stride": 2, "padding": (2, 3), "padding_mode": mode}
    arrays = [tensor.detach().numpy() for tensor in (x, module.weight, module.bias)]
    np.testing.assert_allclose(reference.conv2d(*arrays, **call), y.detach().numpy(), rtol=0, atol=1e-13)
    grads = reference.conv2d_backward(g.numpy(), *arrays[:2], **call)
    for ours, tensor in zip(grads, (x, module.weight, module.bias), strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=0, atol=1e-11)


def test_max_pool2d_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    for ceil_mode, kernel, stride, dilation in itertools.product((False, True), (2, 3, 4), (1, 2, 3), (1, 2)):
        x = rng.integers(-3, 4, size=(2, 3, 11, 13)).astype(float)
        x[rng.random(x.shape) < 0.05] = np.nan
        x[rng.random(x.shape) < 0.3] = -np.inf
        tensor = torch.from_numpy(x).requires_grad_()
        y, index = torch.nn.functional.max_pool2d(
            tensor, kernel, stride, kernel // 2, dilation, ceil_mode, return_indices=True
        )
        g = rng.normal(size=tuple(y.shape))
        y.backward(torch.from_numpy(g))
        call = {"dilation": dilation, "ceil_mode": ceil_mode}
        got = reference.max_pool2d(x, kernel, stride, kernel // 2, **call, return_indices=True)
        np.testing.assert_array_equal(got[0], y.detach().numpy())
        np.testing.assert_array_equal(got[1], index.numpy())
        grad = reference.max_pool2d_backward(g, got[1], x.shape, kernel, stride, kernel // 2, **call)
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=0, atol=1e-13)


X, W = np.ones((1, 4, 5, 5)), np.ones((2, 4, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.conv2d(X, np.ones((2, 5, 3, 3))), r"weight has 5 input channels per group, expected 4"),
        (lambda: reference.conv2d(X, W, groups=3), "groups is 3"),
        (lambda: reference.conv2d(X, W, np.ones(3)), r"bias has shape \(3,\), expected \(2,\)"),
        (lambda: reference.conv2d(X, W, dilation=3), "spans 7 pixels"),
        (lambda: reference.conv2d(X, W, padding=-1), "padding is -1"),
        (lambda: reference.conv2d(X, W, padding="full"), "padding is 'full'"),
        (lambda: reference.conv2d(X, W, stride=0), "stride is 0"),
        (lambda: reference.conv2d(X, W, padding=5, padding_mode="reflect"), "expected at most 4"),
        (lambda: reference.conv2d(X, W, padding=6, padding_mode="circular"), "expected at most 5"),
        (lambda: reference.conv2d(X, W, padding_mode="mirror"), "padding_mode is 'mirror'"),
        (lambda: reference.conv2d(X, W, activation="gelu"), "activation is 'gelu'"),
        (lambda: reference.conv2d(X, W, layout="CHWN"), "layout is 'CHWN'"),
        (lambda: reference.conv2d(X, W, out=np.ones((1, 2, 3, 4))), "out has shape"),
        (lambda: reference.conv2d(np.ones((1, 4, 0, 5)), W), "size of zero"),
        (lambda: reference.conv2d_backward(np.ones((1, 2, 3, 4)), X, W), "grad_output"),
        (lambda: reference.max_pool2d(X, 2, padding=2), "expected at most 1"),
        (lambda: reference.max_pool2d(X, 6), "spans 6 pixels"),
        (lambda: reference.max_pool2d(np.ones((1, 1, 16, 16)), 16, return_codes=True), "256 taps"),
        (lambda: reference.max_pool2d(X, 2, return_codes=True, return_indices=True), "at most one"),
        (
            lambda: reference.max_pool2d_backward(X[..., :2, :2], np.full((1, 4, 2, 2), 25), X.shape, 2),
            "an index lies outside the plane",
        ),
        (
            lambda: reference.max_pool2d_backward(X[..., :2, :2], np.full((1, 4, 2, 2), 4, np.uint8), X.shape, 2),
            "a code lies outside the window",
        ),
    ],
)
def test_bad_options_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: reference.conv2d(X, W.astype(np.float32)),
        lambda: reference.relu(np.arange(3)),
        lambda: reference.max_pool2d(np.ones((1, 4, 4), int), 2),
        lambda: reference.max_pool2d_backward(X[..., :2, :2], X[..., :2, :2], X.shape, 2),
    ],
)
def test_wrong_dtypes_raise(call):
    with pytest.raises(TypeError, match="dtype"):
        call()
