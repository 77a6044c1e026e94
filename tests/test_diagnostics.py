"""Norms of gradients, the gradient noise scale, sharpness: against known answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers import BF16, assert_same, assert_same_bits
from ironstep import functional, nn
from ironstep.optim import SGD
from ironstep.train import GradientNoiseScale, Sharpness, gradient_norms, sharpness

F32 = np.float32


# -- Norms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16], ids=str)
def test_norms_by_name_and_the_one_that_the_optimiser_reports(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    grads = {
        "0.weight": rng.normal(size=(40, 50)).astype(dtype),
        "deep": [{"x": rng.normal(size=7).astype(dtype)[::2]}, rng.normal(size=(3, 4)).astype(dtype).T],
        "empty": np.zeros((0, 3), dtype),
    }
    norms = gradient_norms(grads)
    flat = {"0.weight": grads["0.weight"], "deep.0.x": grads["deep"][0]["x"], "deep.1": grads["deep"][1]}
    assert sorted(norms) == sorted([*flat, "empty", "total"])
    for name, array in flat.items():
        assert norms[name] == pytest.approx(math.sqrt((array.astype(float) ** 2).sum()), rel=1e-13), name
    assert norms["empty"] == 0.0
    params = {"0.weight": np.zeros((40, 50)), "deep": [{"x": np.zeros(4)}, np.zeros((4, 3))], "empty": np.zeros((0, 3))}
    reported = SGD(params).step(grads, grad_norm=True).grad_norm
    assert norms["total"] == pytest.approx(reported, rel=1e-14)


def test_norms_of_an_array_alone_of_nothing_and_of_frozen_groups() -> None:
    assert gradient_norms(np.array([3.0, 4.0])) == {"total": 5.0}
    assert gradient_norms({}) == {"total": 0.0}
    assert gradient_norms([None, {"a": np.array([2.0])}]) == {"1.a": 2.0, "total": 2.0}


def test_norms_that_are_not_finite() -> None:
    norms = gradient_norms({"a": np.array([np.nan]), "b": np.array([np.inf]), "c": np.ones(1)})
    assert math.isnan(norms["a"])
    assert norms["b"] == math.inf
    assert norms["c"] == 1.0
    assert math.isnan(norms["total"])
    assert gradient_norms({"a": np.full(2, 2e19, F32)})["a"] == pytest.approx(2e19 * math.sqrt(2))


@pytest.mark.parametrize(
    ("grads", "error", "match"),
    [
        ({"total": np.ones(1)}, ValueError, r"none may be 'total', but grads\['total'\] is called 'total' too"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "a name of its own"),
        ({"a": np.ones(1, int)}, TypeError, r"grads\['a'\] must be float32"),
        ({"a": 1.0}, TypeError, r"grads\['a'\] must be a NumPy array"),
        (np.ma.masked_array([1.0]), TypeError, "masked"),
    ],
)
def test_bad_gradients(grads: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        gradient_norms(grads)


# -- The gradient noise scale ------------------------------------------------------------------------------------------


def test_the_estimates_are_exact_where_the_expectations_are() -> None:
    """|G|^2 = 4 and tr(Sigma) = 100, without noise in the norms."""
    noise = GradientNoiseScale(0.9)
    assert math.isnan(noise.value)
    assert math.isnan(noise.trace)
    assert math.isnan(noise.squared_norm)
    for small, big in ((1, 2), (8, 64), (5, 7)):
        assert noise.update(4 + 100 / small, 4 + 100 / big, small, big) == pytest.approx(25.0, rel=1e-12)
    assert noise.trace == pytest.approx(100.0, rel=1e-12)
    assert noise.squared_norm == pytest.approx(4.0, rel=1e-12)
    assert noise.updates == 3


def test_small_batches_of_different_sizes() -> None:
    sizes = [3, 5, 8]
    noise = GradientNoiseScale()
    noise.update([4 + 100 / size for size in sizes], 4 + 100 / 16, sizes, 16)
    assert noise.value == pytest.approx(25.0, rel=1e-12)


@pytest.mark.parametrize("small", [4, 16])
def test_synthetic_gradients_with_known_mean_and_covariance(small: int) -> None:
    """Without bias: the averages over many steps come near the truth, for every batch size."""
    rng = np.random.default_rng(small)
    n, batch, steps = 20, 64, 3000
    mean = rng.normal(size=n)
    factor = rng.normal(size=(n, n)) / math.sqrt(n) * 3.0
    squared, trace = float(mean @ mean), float((factor**2).sum())
    noise = GradientNoiseScale(1.0 - 1.0 / steps)
    for _ in range(steps):
        samples = mean + rng.normal(size=(batch, n)) @ factor.T
        parts = samples.reshape(-1, small, n).mean(1)
        noise.update([float(g @ g) for g in parts], float(samples.mean(0) @ samples.mean(0)), small, batch)
    assert noise.trace == pytest.approx(trace, rel=0.03)
    assert noise.squared_norm == pytest.approx(squared, rel=0.03)
    assert noise.value == pytest.approx(trace / squared, rel=0.05)


def test_the_averages_are_separate_and_corrected_for_their_beginning() -> None:
    noise = GradientNoiseScale(0.5)
    measured = [(10.0, 1.0), (20.0, 4.0), (0.0, 1.0)]  # trace, squared norm
    traces = squares = weight = 0.0
    for trace, square in measured:
        noise.update(square + trace / 2, square + trace / 4, 2, 4)
        traces, squares, weight = 0.5 * traces + 0.5 * trace, 0.5 * squares + 0.5 * square, 0.5 * weight + 0.5
        assert noise.trace == pytest.approx(traces / weight, rel=1e-12)
        assert noise.squared_norm == pytest.approx(squares / weight, rel=1e-12)
        assert noise.value == pytest.approx(traces / squares, rel=1e-12)


def test_a_gradient_that_is_lost_in_the_noise() -> None:
    noise = GradientNoiseScale()
    assert noise.update(10.0, 1.0, 1, 4) == math.inf
    assert noise.squared_norm < 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_measurements_that_are_not_finite_are_left_out(value: float) -> None:
    noise = GradientNoiseScale()
    noise.update(6.0, 5.0, 1, 2)
    before = noise.state_dict()
    for small, big in ((value, 1.0), (1.0, value), ([1.0, value], 1.0), (value, value)):
        assert noise.update(small, big, 1, 2) == noise.value
    assert noise.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((-1.0, 1.0, 1, 2), ValueError, "small_sq_norms must be at least 0"),
        (([1.0, -1.0], 1.0, 1, 2), ValueError, "small_sq_norms must be at least 0"),
        ((1.0, -1.0, 1, 2), ValueError, "big_sq_norm must be at least 0"),
        (("1", 1.0, 1, 2), TypeError, "small_sq_norms must be a number"),
        ((1.0, 1.0, 2, 2), ValueError, "big_batch must be larger than small_batch, 2, got 2"),
        ((1.0, 1.0, 4, 2), ValueError, "big_batch must be larger than small_batch, 4, got 2"),
        ((1.0, 1.0, 0, 2), ValueError, "small_batch must be finite and above 0, got 0"),
        ((1.0, 1.0, 1, math.inf), ValueError, "big_batch must be finite and above 0"),
        (
            ([1.0, 2.0], 1.0, [1, 2, 3], 8),
            ValueError,
            "small_batch must be one number or as many as small_sq_norms, 2, got 3",
        ),
        (([], 1.0, 1, 8), ValueError, "small_batch must be one number or as many"),
    ],
)
def test_bad_measurements_are_refused(arguments: Any, error: type[Exception], match: str) -> None:
    noise = GradientNoiseScale()
    before = noise.state_dict()
    with pytest.raises(error, match=match):
        noise.update(*arguments)
    assert noise.state_dict() == before


@pytest.mark.parametrize(
    ("decay", "error"),
    [(1.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("0.9", TypeError), (True, TypeError)],
)
def test_bad_decays(decay: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="decay must be"):
        GradientNoiseScale(decay)


def test_the_state_goes_on_to_the_bit_also_with_another_decay() -> None:
    whole, first, second = (GradientNoiseScale(0.9) for _ in range(3))
    rng = np.random.default_rng(0)
    measured = [tuple(pair) for pair in rng.uniform(1, 2, (10, 2)).tolist()]
    for i, (small, big) in enumerate(measured):
        whole.update(small, big, 2, 8)
        if i < 6:
            first.update(small, big, 2, 8)
    second.load_state_dict(first.state_dict())
    for small, big in measured[6:]:
        second.update(small, big, 2, 8)
    assert second.state_dict() == whole.state_dict()
    assert repr(second) == repr(whole)
    other = GradientNoiseScale(0.1)
    other.load_state_dict(first.state_dict())
    assert other.value == first.value


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s: s.pop("trace"), ValueError, "state_dict must have updates, weight, squared_norm, trace, got"),
        (lambda s: s.update(more=1), ValueError, "state_dict must have"),
        (lambda s: s.update(updates=-1), ValueError, "'updates'"),
        (lambda s: s.update(updates=1.0), TypeError, "'updates'"),
        (lambda s: s.update(weight=2.0), ValueError, "'weight'"),
        (lambda s: s.update(trace=math.nan), ValueError, "'trace'"),
        (lambda s: s.update(squared_norm="x"), TypeError, "'squared_norm'"),
    ],
)
def test_a_state_that_is_none_is_refused(change: Callable[..., Any], error: type[Exception], match: str) -> None:
    noise = GradientNoiseScale()
    noise.update(6.0, 5.0, 1, 2)
    state, before = noise.state_dict(), noise.state_dict()
    change(state)
    with pytest.raises(error, match=match):
        noise.load_state_dict(state)
    assert noise.state_dict() == before


def test_the_noise_scale_takes_arrays() -> None:
    want = GradientNoiseScale()
    want.update([9.0, 11.0], 6.0, [8, 9], 17)
    for norms, big, sizes in [
        (np.array([9.0, 11.0]), np.float32(6.0), np.array([8, 9])),
        ((9, 11), 6, np.array([8.0, 9.0], np.float32)),
    ]:
        noise = GradientNoiseScale()
        noise.update(norms, big, sizes, 17)
        assert noise.state_dict() == want.state_dict()
    for arguments, error, match in [
        (
            (np.ones((2, 2)), 6.0, 8, 16),
            ValueError,
            r"small_sq_norms must be .* an array of one axis, got shape \(2, 2\)",
        ),
        (("x", 6.0, 8, 16), TypeError, "small_sq_norms must be"),
        ((np.array(["x"]), 6.0, 8, 16), TypeError, "small_sq_norms must be"),
        (([np.ones(2)], 6.0, 8, 16), TypeError, "small_sq_norms must be"),
        (([1.0], np.ones(2), 8, 16), TypeError, "big_sq_norm must be"),
        ((1.0, 6.0, np.array([0.0]), 16), ValueError, "small_batch must be"),
        ((1.0, 6.0, 8, np.ones(2)), TypeError, "big_batch must be"),
    ]:
        with pytest.raises(error, match=match):
            want.update(*arguments)


# -- Sharpness ---------------------------------------------------------------------------------------------------------


class Quadratic:
    """0.5 (w - c)^T H (w - c), with w in two arrays."""

    def __init__(self, eigenvalues: list[float], dtype: Any = np.float64, *, at_minimum: bool = False) -> None:
        rng = np.random.default_rng(len(eigenvalues))
        n = len(eigenvalues)
        basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
        self.hessian = basis * eigenvalues @ basis.T
        self.minimum = rng.normal(size=n)
        start = self.minimum + (0.0 if at_minimum else 1.0) * rng.normal(size=n)
        self.params = {"a": start[:2].astype(dtype), "b": [start[2:].reshape(1, -1).astype(dtype)]}
        self.calls = 0

    def w(self) -> np.ndarray:
        return np.concatenate([self.params["a"], self.params["b"][0][0]]).astype(float)

    def loss(self, w: np.ndarray) -> float:
        return float(0.5 * (w - self.minimum) @ self.hessian @ (w - self.minimum))

    def grad(self, w: np.ndarray) -> np.ndarray:
        return self.hessian @ (w - self.minimum)

    def __call__(self) -> tuple[float, Any]:
        self.calls += 1
        g = self.grad(self.w())
        return self.loss(self.w()), {"a": g[:2], "b": [g[2:].reshape(1, -1)]}


@pytest.mark.parametrize("rho", [0.01, 0.05, 1.0])
def test_sharpness_of_a_quadratic_is_that_of_the_papers_equation(rho: float) -> None:
    quadratic = Quadratic([5.0, 2.0, 1.0, 0.5, 0.1])
    w = quadratic.w()
    g = quadratic.grad(w)
    worst = quadratic.loss(w + rho * g / np.linalg.norm(g))
    found = sharpness(quadratic, quadratic.params, rho=rho, iterations=0)
    assert found == Sharpness(found.loss, found.worst_loss - found.loss, found.worst_loss, None, None)
    assert found.loss == pytest.approx(quadratic.loss(w), rel=1e-14)
    assert found.worst_loss == pytest.approx(worst, rel=1e-13)
    assert quadratic.calls == 2


def test_an_ascent_of_several_steps() -> None:
    """Each along the gradient where it is, in a ball of radius rho; the largest loss met counts."""
    quadratic = Quadratic([5.0, 2.0, 1.0, 0.5, 0.1])
    w = first = quadratic.w()
    losses = []
    for _ in range(4):
        g = quadratic.grad(w)
        w = w + 0.125 * g / np.linalg.norm(g)
        losses.append(quadratic.loss(w))
    found = sharpness(quadratic, quadratic.params, rho=0.5, ascent_steps=4, iterations=0)
    assert found.worst_loss == pytest.approx(max(losses), rel=1e-12)
    assert np.linalg.norm(w - first) <= 0.5


def test_the_largest_loss_that_was_met_counts() -> None:
    w = np.array([0.0])
    values = iter([1.0, 3.0, 2.0])
    found = sharpness(lambda: (next(values), np.ones(1)), w, ascent_steps=2, iterations=0)
    assert found == (1.0, 2.0, 3.0, None, None)
    values = iter([1.0, math.nan, 2.0])
    assert math.isnan(sharpness(lambda: (next(values), np.ones(1)), w, ascent_steps=2, iterations=0).worst_loss)


def test_in_the_minimum_the_ascent_finds_the_steepest_direction() -> None:
    """There the gradient is 0; with enough steps the loss rises by almost 0.5 rho^2 times the top eigenvalue."""
    quadratic = Quadratic([8.0, 1.0, 0.5], at_minimum=True)
    quadratic.minimum = quadratic.w()
    found = sharpness(quadratic, quadratic.params, rho=0.1, ascent_steps=50, iterations=0)
    assert 0.9 * 0.04 < found.sharpness <= 0.04


@pytest.mark.parametrize(
    ("eigenvalues", "want"),
    [
        ([5.0, 2.0, 1.0, 0.5, 0.1], 5.0),
        ([5.0, -3.0, 1.0, 0.5], 5.0),
        ([2.0, -7.0, 1.0, 0.5], 2.0),
        ([-1.0, -7.0, -3.0], -1.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([3.0, 3.0, 3.0], 3.0),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("iterations", [20, 60])
def test_the_top_eigenvalue(
    eigenvalues: list[float], want: float, dtype: Any, tolerance: float, iterations: int
) -> None:
    quadratic = Quadratic(eigenvalues, dtype)
    found = sharpness(quadratic, quadratic.params, iterations=iterations)
    assert found.top_eigenvalue == pytest.approx(want, rel=tolerance, abs=tolerance)
    assert found.eigenvalue_error is not None
    assert found.eigenvalue_error <= tolerance * max(1.0, max(map(abs, eigenvalues)))
    # As many products as there are dimensions are enough, and one is where all directions are alike.
    products = 1 if len(set(eigenvalues)) == 1 else len(eigenvalues)
    assert quadratic.calls == 2 + 2 * products


SPECTRA = {
    "nearly symmetric": np.append(np.linspace(-1.0, 0.99, 100), 1.0),
    "symmetric": np.append(np.linspace(-1.0, 1.0, 101), 1.02),
    "saddle": np.append(np.linspace(-5.0, 0.5, 200), 0.7),
    "one large": np.append(np.linspace(0.0, 1.0, 200), 50.0),
    "a negative one larger": np.array([-100.0, *np.linspace(-1.0, 1.0, 50), 3.0]),
    "two equal": np.append(np.linspace(-3.0, 0.0, 60), [2.0, 2.0]),
    "decaying": 2.0 ** -np.arange(60.0),
    "all negative": np.append(np.linspace(-9.0, -8.0, 30), -1.0),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SPECTRA)
def test_the_top_eigenvalue_of_known_spectra(name: str, seed: int) -> None:
    """More iterations than the default where eigenvalues are close; the bound holds whether they are enough or not."""
    spectrum = SPECTRA[name]
    top, width = spectrum.max(), np.ptp(spectrum)
    errors = []
    for iterations in (5, 20, 60):
        quadratic = Quadratic(list(spectrum))
        found = sharpness(quadratic, quadratic.params, iterations=iterations, seed=seed)
        assert found.top_eigenvalue is not None
        assert found.eigenvalue_error is not None
        assert np.abs(spectrum - found.top_eigenvalue).min() <= found.eigenvalue_error + 1e-8 * width
        assert found.top_eigenvalue <= top + 1e-8 * width  # From below.
        errors.append(top - found.top_eigenvalue)
    assert errors[1] <= 0.05 * width
    assert errors[2] <= 2e-3 * width


def test_the_top_eigenvalue_of_a_random_symmetric_matrix() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(300, 300))
    a = (a + a.T) / math.sqrt(2.0)
    w = rng.normal(size=300)
    found = sharpness(lambda: (float(0.5 * w @ a @ w), a @ w), w, iterations=60)
    want = np.linalg.eigvalsh(a)
    assert abs(want[0]) > 0.9 * want[-1]
    assert found.top_eigenvalue == pytest.approx(want[-1], rel=1e-2)
    assert found.eigenvalue_error is not None
    assert np.abs(want - found.top_eigenvalue).min() <= found.eigenvalue_error


def test_directions_stay_orthogonal() -> None:
    """In as many directions as there are the answer is exact; without orthogonality some come twice, and some never."""
    spectrum = np.append(np.linspace(0.0, 1.0, 120), -1000.0)
    quadratic = Quadratic(list(spectrum))
    found = sharpness(quadratic, quadratic.params, iterations=121)
    assert found.top_eigenvalue == pytest.approx(1.0, abs=1e-6)
    assert found.eigenvalue_error is not None
    assert found.eigenvalue_error < 1e-7


def test_the_top_eigenvalue_of_a_network_is_that_of_its_hessian() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(3, 4, seed=rng, dtype=np.float64), nn.GELU(), nn.Linear(4, 2, seed=rng, dtype=np.float64)
    )
    x, t = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)

    def loss_and_grad() -> tuple[float, dict[str, np.ndarray]]:
        loss, grad = functional.cross_entropy(model(x), t, return_grad=True)
        model.backward(grad)
        return loss, model.grads

    found = sharpness(loss_and_grad, model.params, iterations=200)
    rows = []
    for array in model.params.values():
        for i in np.ndindex(array.shape):
            old, column = array[i], []
            for sign in (1.0, -1.0):
                array[i] = old + sign * 1e-5
                loss_and_grad()
                column.append(np.concatenate([grad.ravel() for grad in model.grads.values()]))
            array[i] = old
            rows.append((column[0] - column[1]) / 2e-5)
    assert found.top_eigenvalue == pytest.approx(float(np.linalg.eigvalsh(np.array(rows)).max()), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, BF16], ids=str)
def test_half_precision_is_refused(dtype: Any) -> None:
    """The ascent is below its rounding: at 100 ones rho = 0.05 changes none of them in bfloat16."""
    params = {"a": np.ones(3, F32), "b": np.ones(100, dtype)}
    with pytest.raises(TypeError, match=rf"params\['b'\] must be float32 or float64, got {np.dtype(dtype).name}"):
        sharpness(lambda: (0.0, params), params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_the_parameters_are_put_back_to_the_bit(dtype: Any) -> None:
    params = [np.array([1.0, -0.0, 3.0]).astype(dtype), np.asfortranarray(np.ones((2, 3))).astype(dtype, order="K")]
    before = copy.deepcopy(params)
    moved = []

    def loss_and_grad() -> tuple[float, list[np.ndarray]]:
        moved.append(not (params[0] == before[0]).all())
        return 1.0, [p * np.array([1.0, 2.0, 3.0]) for p in params]

    sharpness(loss_and_grad, params, rho=0.5, iterations=2)
    assert_same(params, before)
    assert moved == [False] + [True] * 5


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_parameters_are_put_back_after_an_error_too(call: int, error: type[BaseException]) -> None:
    w = np.array([1.0, -0.0, 3.0])
    calls = []

    def loss_and_grad() -> tuple[float, np.ndarray]:
        calls.append(w.copy())
        if len(calls) > call:
            raise error
        return 1.0, w * np.array([1.0, 2.0, 3.0])

    with pytest.raises(error):
        sharpness(loss_and_grad, w, iterations=2)
    assert_same_bits(w, np.array([1.0, -0.0, 3.0]))
    assert len(calls) == call + 1


def test_the_seed_decides() -> None:
    found = []
    for seed in (0, 0, 1):
        quadratic = Quadratic([3.0, 2.0, 1.0])
        found.append(sharpness(quadratic, quadratic.params, iterations=1, seed=seed).top_eigenvalue)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"rho": 0.0}, ValueError, "rho must be finite and above 0, got 0.0"),
        ({"rho": "1"}, TypeError, "rho must be a number"),
        ({"ascent_steps": 0}, ValueError, "ascent_steps must be an integer at least 1, got 0"),
        ({"iterations": -1}, ValueError, "iterations must be an integer at least 0, got -1"),
        ({"iterations": 1.5}, TypeError, "iterations must be an integer"),
        ({"seed": -1}, ValueError, "seed must be an integer at least 0"),
    ],
    ids=repr,
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sharpness(lambda: (0.0, np.ones(1)), np.ones(1), **kwargs)


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [
        (1.0, TypeError, r"loss_and_grad must return \(loss, gradients\), got float"),
        ((1.0, np.ones(3)), ValueError, r"grads must have shape \(2,\) like the parameter, got \(3,\)"),
        ((1.0, [np.ones(2)]), TypeError, "grads must be a NumPy array"),
        ((None, np.ones(2)), TypeError, "loss_and_grad must return a number as the loss, got None"),
        ((np.ones(2), np.ones(2)), TypeError, "loss_and_grad must return a number as the loss, got array"),
        (("1", np.ones(2)), TypeError, "loss_and_grad must return a number as the loss, got '1'"),
        ((True, np.ones(2)), TypeError, "loss_and_grad must return a number as the loss, got True"),
        ((1.0, np.array([1.0, np.nan])), FloatingPointError, "gradients of loss_and_grad must be finite"),
    ],
)
def test_bad_results(result: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sharpness(lambda: result, np.ones(2))


@pytest.mark.parametrize("loss", [1, 1.0, F32(1), np.array(1.0), np.array(1.0, BF16)], ids=repr)
def test_losses_of_any_kind(loss: Any) -> None:
    assert sharpness(lambda: (loss, np.ones(2)), np.ones(2)).loss == 1.0


def test_parameters_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="params must have at least one element"):
        sharpness(lambda: (1.0, [np.ones(0)]), [np.ones(0)])
    w = np.ones(2)
    w.setflags(write=False)
    with pytest.raises(ValueError, match="params"):
        sharpness(lambda: (1.0, np.ones(2)), w)
    with pytest.raises(TypeError, match="params"):
        sharpness(lambda: (1.0, np.ones(2)), np.ones(2, int))
