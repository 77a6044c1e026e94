"""minimize and Minimizer: SciPy's interface over our optimisers."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import OptimizeResult

from helpers import assert_same, assert_same_bits
from ironstep import optim, optimize, schedules
from ironstep.optimize import Minimizer, minimize

F32 = np.float32
METHODS = sorted(name.lower() for name in optim._optimizers.__all__)
every_method = pytest.mark.parametrize("method", METHODS)

HYPER: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9},
    "adagrad": {"lr": 0.5},
    "adadelta": {"lr": 20.0},
    "rmsprop": {"lr": schedules.cosine(0.05, steps=2000)},
    "lion": {"lr": schedules.cosine(0.05, steps=2000)},
    "lamb": {"lr": schedules.cosine(0.05, steps=2000)},
    "lars": {"lr": schedules.cosine(5.0, steps=2000)},
}
ADAM = {"lr": schedules.cosine(0.1, steps=2000)}

TARGET = np.array([[1.0, -2.0, 3.0], [0.5, 0.25, -1.0]])
SCALE = np.array([[1.0, 2.0, 0.5], [1.0, 3.0, 1.0]])


def bowl(x: np.ndarray) -> float:
    return float((SCALE * (x - TARGET) ** 2).sum())


def slope(x: np.ndarray) -> np.ndarray:
    return 2.0 * SCALE * (x - TARGET)


def both(x: np.ndarray) -> tuple[float, np.ndarray]:
    return bowl(x), slope(x)


def flat(f: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """For x in one dimension."""
    return lambda x: np.ravel(f(x.reshape(2, 3))) if f is slope else f(x.reshape(2, 3))


# -- minimize ----------------------------------------------------------------------------------------------------------


def test_all_optimisers_are_there() -> None:
    assert sorted(optimize.METHODS) == METHODS
    assert "adamw" in METHODS


@every_method
def test_every_optimiser_comes_to_the_minimum(method: str) -> None:
    result = minimize(
        both, np.zeros((2, 3)), method=method, jac=True, maxiter=2000, gtol=1e-6, **HYPER.get(method, ADAM)
    )
    np.testing.assert_allclose(result.x, TARGET, atol=2e-3)
    assert isinstance(result, OptimizeResult)
    assert result.fun == bowl(result.x)
    assert_same_bits(result.jac, slope(result.x))
    assert result.success is (result.status == 0)


@every_method
def test_the_steps_are_those_of_the_optimiser(method: str) -> None:
    """With weight_decay=0; bit for bit."""
    seen: list[np.ndarray] = []
    minimize(both, np.zeros((2, 3)), method=method.upper(), jac=True, maxiter=5, callback=seen.append)
    x = np.zeros((2, 3))
    opt = optimize.METHODS[method](x, lr=0.01, weight_decay=0.0)
    assert len(seen) == 5
    for point in seen:
        opt.step(slope(x))
        assert_same_bits(point, x)


def test_hyperparameters_reach_the_optimiser() -> None:
    result = minimize(
        both,
        np.zeros((2, 3)),
        method="adamw",
        jac=True,
        lr=0.1,
        maxiter=3,
        weight_decay=0.5,
        betas=(0.5, 0.5),
        max_norm=0.1,
    )
    x = np.zeros((2, 3))
    opt = optim.AdamW(x, lr=0.1, weight_decay=0.5, betas=(0.5, 0.5), max_norm=0.1)
    for _ in range(3):
        opt.step(slope(x))
    assert_same_bits(result.x, x)


@pytest.mark.parametrize("way", ["jac=True", "jac", "list"])
def test_counts_and_fields(way: str) -> None:
    calls = {"fun": 0, "jac": 0}

    def fun(x: np.ndarray) -> Any:
        calls["fun"] += 1
        if way == "jac":
            return np.array([bowl(x)])
        return list(both(x)) if way == "list" else both(x)

    def jac(x: np.ndarray) -> np.ndarray:
        calls["jac"] += 1
        return slope(x)

    result = minimize(fun, np.zeros((2, 3)), jac=jac if way == "jac" else True, maxiter=7)
    assert (result.nit, result.nfev, result.njev) == (7, 8, 8)
    assert calls == {"fun": 8, "jac": 8 if way == "jac" else 0}
    assert (result.status, result.success) == (1, False)
    assert result.message == "The number of iterations has reached maxiter; another lr, or a higher maxiter, may help."
    assert set(result) == {"x", "fun", "jac", "nit", "nfev", "njev", "success", "status", "message"}
    assert type(result.fun) is float


def test_gtol() -> None:
    result = minimize(both, np.zeros((2, 3)), jac=True, lr=0.1, gtol=1.0)
    assert (result.status, result.success) == (0, True)
    assert np.abs(result.jac).max() <= 1.0
    assert 0 < result.nit < 100
    assert minimize(both, TARGET, jac=True).nit == 0


@pytest.mark.parametrize("scipys", [False, True])
def test_gtol_gives_the_point_that_fulfils_it(scipys: bool) -> None:
    """Not an earlier one, whose value is lower by a rounding, or by as much as a function that is noisy has it."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return (1.0 if abs(x[0]) < 0.1 else 0.5), x.copy()

    if scipys:
        sgd = optimize.method("sgd")
        result = scipy.optimize.minimize(fun, [1.0], jac=True, method=sgd, tol=1e-3, options={"lr": 0.5})
    else:
        result = minimize(fun, [1.0], jac=True, method="sgd", lr=0.5, gtol=1e-3)
    assert result.success
    assert result.status == 0
    assert result.fun == 1.0
    assert result.x[0] == result.jac[0] == 2.0**-10


def test_of_equal_values_the_latest_counts() -> None:
    """A sum of large numbers is the same for many points near its minimum."""
    result = minimize(lambda x: (1.0, x.copy()), [1.0], jac=True, method="sgd", lr=0.5, gtol=0.0, maxiter=5)
    assert (result.fun, result.x[0], result.jac[0]) == (1.0, 2.0**-5, 2.0**-5)


def test_ftol() -> None:
    values: list[float] = []

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        values.append(bowl(x))
        return both(x)

    result = minimize(fun, np.zeros((2, 3)), method="sgd", jac=True, lr=0.01, ftol=1e-3, gtol=0.0)
    assert (result.status, result.success) == (3, True)
    small = [abs(a - b) <= 1e-3 * max(abs(a), abs(b), 1.0) for a, b in itertools.pairwise(values)]
    assert small == [False] * (len(small) - 1) + [True]


def test_values_that_do_not_change_are_no_end_without_ftol() -> None:
    for ftol, nit in ((0.0, 5), (1e-12, 1)):
        assert minimize(lambda x: (1.0, np.ones(1)), [0.0], jac=True, maxiter=5, ftol=ftol).nit == nit


def test_x_is_the_best_point_that_was_seen() -> None:
    points: list[tuple[float, np.ndarray]] = []

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        points.append((bowl(x), x.copy()))
        return both(x)

    result = minimize(fun, np.zeros((2, 3)), method="sgd", jac=True, lr=0.4, maxiter=30)  # Diverges.
    best = min(range(len(points)), key=lambda i: points[i][0])
    assert points[-1][0] > points[best][0]
    assert result.fun == points[best][0]
    assert_same_bits(result.x, points[best][1])
    assert_same_bits(result.jac, slope(points[best][1]))


@pytest.mark.parametrize("bad", ["value", "gradient", "infinite"])
@pytest.mark.parametrize("at", [0, 3])
def test_what_is_not_finite_stops(bad: str, at: int) -> None:
    calls = 0

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        value, grad = both(x)
        if calls > at:
            if bad == "gradient":
                value, grad = -1e9, grad * np.array([1.0, np.nan, 1.0])
            else:
                value = math.nan if bad == "value" else -math.inf
        return value, grad

    result = minimize(fun, np.zeros((2, 3)), jac=True, lr=0.1)
    assert (result.status, result.success, result.nit) == (2, False, at)
    assert result.message == "The function or its gradient is not finite."
    assert np.isfinite(result.x).all()
    if at:
        assert math.isfinite(result.fun)
        assert result.fun == bowl(result.x)
    else:
        assert_same_bits(result.x, np.zeros((2, 3)))


def test_arguments_go_to_the_function_and_its_gradient() -> None:
    def fun(x: np.ndarray, a: float, b: float) -> float:
        return float(((x - a) ** 2).sum() + b)

    def jac(x: np.ndarray, a: float, b: float) -> np.ndarray:
        return 2 * (x - a)

    result = minimize(fun, [0.0, 0.0], (3.0, 1.0), "adam", jac, lr=0.1)
    np.testing.assert_allclose(result.x, 3.0, atol=1e-4)
    result = minimize(lambda x, a: (float((x - a) @ (x - a)), 2 * (x - a)), [0.0], 3.0, jac=True, lr=0.1)
    np.testing.assert_allclose(result.x, 3.0, atol=1e-4)


@pytest.mark.parametrize(
    ("x0", "dtype", "shape"),
    [
        (np.zeros(3, F32), np.float32, (3,)),
        (np.zeros((2, 2)), np.float64, (2, 2)),
        (np.zeros(3, np.int32), np.float64, (3,)),
        (np.zeros(3, ">f8"), np.float64, (3,)),
        ([0, 0], np.float64, (2,)),
        (0.0, np.float64, ()),
        (np.zeros((3, 4), order="F")[::2, ::-1], np.float64, (2, 4)),
    ],
    ids=repr,
)
def test_types_and_shapes(x0: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    before = copy.deepcopy(x0)
    if isinstance(x0, np.ndarray):
        x0.setflags(write=False)

    def fun(x: np.ndarray) -> tuple[Any, np.ndarray]:
        assert (x.dtype, x.shape) == (dtype, shape)
        assert x.dtype.isnative
        return ((x - 1) ** 2).sum(), 2 * (x - 1)

    result = minimize(fun, x0, jac=True, lr=0.1)
    assert (result.x.dtype, result.x.shape) == (dtype, shape)
    np.testing.assert_allclose(result.x, 1.0, atol=1e-4)
    np.testing.assert_array_equal(x0, before)


def test_the_function_may_write_its_argument() -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value = both(x)
        x[...] = np.nan
        return value

    def callback(x: np.ndarray) -> None:
        x[...] = np.nan

    wild = minimize(fun, np.zeros((2, 3)), jac=True, maxiter=20, callback=callback)
    tame = minimize(both, np.zeros((2, 3)), jac=True, maxiter=20)
    assert_same_bits(wild.x, tame.x)


# -- Bounds ------------------------------------------------------------------------------------------------------------

LOW = np.array([[0.0, -1.0, -np.inf], [0.6, -np.inf, -np.inf]])
HIGH = np.array([[0.5, 5.0, 2.0], [0.6, np.inf, -2.0]])
PAIRS = [(0.0, 0.5), (-1.0, 5.0), (None, 2.0), (0.6, 0.6), (None, None), (-math.inf, -2.0)]


@pytest.mark.parametrize("bounds", [PAIRS, scipy.optimize.Bounds(LOW, HIGH), np.array([LOW.ravel(), HIGH.ravel()]).T])
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_bounds_are_kept_and_the_minimum_is_that_of_scipy(bounds: Any, method: str) -> None:
    inside = []

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        inside.append(((x >= LOW) & (x <= HIGH)).all())
        return both(x)

    lr = schedules.cosine(0.1, steps=1000)
    result = minimize(fun, np.zeros((2, 3)), jac=True, method=method, bounds=bounds, lr=lr, gtol=1e-4)
    want = scipy.optimize.minimize(
        flat(bowl), np.zeros(6), jac=flat(slope), bounds=scipy.optimize.Bounds(LOW.ravel(), HIGH.ravel())
    )
    assert all(inside)
    np.testing.assert_allclose(result.x, want.x.reshape(2, 3), atol=1e-3)
    assert result.success
    assert np.abs(result.jac).max() > 1.0  # At the bounds it does not count.


@pytest.mark.parametrize(("x0", "low", "high"), [(1.0, -1.0, 1.0), (-1.0, -1.0, 1.0)])
def test_a_bound_that_the_gradient_leads_away_from_does_not_end_it(x0: float, low: float, high: float) -> None:
    result = minimize(lambda x: (x @ x, 2 * x), [x0], jac=True, bounds=[(low, high)], lr=0.1)
    assert result.success
    np.testing.assert_allclose(result.x, 0.0, atol=1e-4)


def test_bounds_of_one_number_are_for_all() -> None:
    result = minimize(both, np.zeros((2, 3)), jac=True, bounds=scipy.optimize.Bounds(-0.5, 0.5), lr=0.05, gtol=1e-4)
    np.testing.assert_allclose(result.x, np.clip(TARGET, -0.5, 0.5), atol=1e-3)


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        (
            [(0.0, 1.0)],
            "bounds must be a scipy.optimize.Bounds, or a .* pair for each of the 6 elements of x0: 1 pairs",
        ),
        ([0.0] * 6, "bounds must be"),
        (5, "bounds must be"),
        ([("a", 1.0)] * 6, "bounds must be"),
        (scipy.optimize.Bounds([0.0, 1.0], [1.0, 2.0]), "bounds must be"),
        ([(1.0, 0.0)] * 6, "each low at most as large as its high"),
        ([(math.nan, 0.0)] * 6, "and no NaN"),
        ([(math.inf, None)] * 6, "bounds must leave x room, but a low is inf or a high is -inf"),
        ([(None, -math.inf)] * 6, "bounds must leave x room, but a low is inf or a high is -inf"),
    ],
)
def test_bad_bounds(bounds: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        minimize(both, np.zeros((2, 3)), jac=True, bounds=bounds)


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.7), (-0.7, -0.1), (-0.1, 0.1), (0.5, 0.7), (0.1, 0.5), (-1e300, 1e300), (1e-50, 2e-45)]
)
def test_bounds_of_float32_points_are_rounded_inwards(low: float, high: float) -> None:
    for x0, grad in ((-1e9, 1e9), (1e9, -1e9)):
        search = Minimizer(np.full(2, x0, F32), "sgd", lr=1e20, bounds=[(low, high), (None, None)])
        for _ in range(3):
            x = search.ask()
            assert x.dtype == F32
            assert low <= float(x[0]) <= high
            assert np.isfinite(x[0])
            search.tell(np.array([grad, 0.0], F32))


def test_bounds_without_a_float32_between_are_refused() -> None:
    x0 = np.zeros(1, F32)
    for low, high in (
        (0.1, np.nextafter(0.1, 1)),
        (1e300, 2e300),
        (-2e300, -1e300),
        (1e300, None),
        (1e300, 1e300),
        (-1e300, -1e300),
    ):
        with pytest.raises(ValueError, match="bounds must have a number of the type of x0, float32, between each low"):
            Minimizer(x0, bounds=[(low, high)])
        Minimizer([0.0], bounds=[(low, high)])
    # Fixed: the nearest one.
    assert Minimizer(x0, bounds=[(0.1, 0.1)]).ask()[0] == F32(0.1)
    assert Minimizer(x0, bounds=[(0.7, 0.7)]).ask()[0] == F32(0.7)


# -- Callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_of_both_kinds() -> None:
    points: list[np.ndarray] = []
    results: list[OptimizeResult] = []

    def new(intermediate_result: OptimizeResult) -> None:
        results.append(intermediate_result)

    for callback in (points.append, new):
        minimize(both, np.zeros((2, 3)), jac=True, maxiter=4, callback=callback)
    assert len(points) == len(results) == 4
    for x, result in zip(points, results, strict=True):
        assert_same_bits(result.x, x)
        assert result.fun == bowl(x)
    assert bowl(points[-1]) < bowl(points[0])


def test_a_callback_may_stop() -> None:
    calls = 0

    def callback(x: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopIteration

    result = minimize(both, np.zeros((2, 3)), jac=True, callback=callback)
    assert (result.nit, result.status, result.success) == (3, 99, False)
    assert result.message == "`callback` raised `StopIteration`."

    def wrong(x: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        minimize(both, np.zeros((2, 3)), jac=True, callback=wrong)


# -- Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"jac": None}, ValueError, "jac must be True .* got None: these methods need gradients, .*approx_fprime"),
        ({"jac": "2-point"}, ValueError, "jac must be True"),
        ({"jac": False}, ValueError, "jac must be True"),
        ({"fun": 3}, TypeError, "fun must be a function of x, got 3"),
        ({"method": "walk"}, ValueError, "method must be one of lamb, .*adamw.*, got 'walk'$"),
        ({"method": "L-BFGS-B"}, ValueError, "got 'L-BFGS-B'; that one is a method of scipy.optimize.minimize"),
        ({"method": optim.Adam}, TypeError, "method must be the name of an optimiser"),
        ({"maxiter": -1}, ValueError, "maxiter must be"),
        ({"maxiter": 1e3}, TypeError, "maxiter must be an integer"),
        ({"gtol": -1.0}, ValueError, "gtol must be finite and at least 0"),
        ({"ftol": math.nan}, ValueError, "ftol must be finite and at least 0"),
        ({"lr": -1.0}, ValueError, "lr must be finite and at least 0"),
        (
            {"nose": 1},
            TypeError,
            "minimize has no argument 'nose': it takes lr, .* of AdamW, betas, .*max_norm",
        ),
        ({"options": {"disp": True}}, TypeError, "minimize has no argument 'disp'"),
        ({"options": 3}, TypeError, "options must be a dict or None, got 3"),
        ({"options": {"lr": 0.1}, "lr": 0.01}, TypeError, "lr is given twice: in options, too"),
        ({"options": {"eps": 0.1}, "eps": 0.1}, TypeError, "eps is given twice"),
        ({"options": {"gtol": 0.1}, "tol": 0.1}, TypeError, "gtol is given twice: tol is gtol"),
        ({"tol": -1.0}, ValueError, "gtol must be"),
        ({"maximize": True}, ValueError, "maximize=True is no minimisation"),
        ({"callback": 3}, TypeError, "callback must be a function or None"),
        ({"x0": np.zeros((2, 3), complex)}, TypeError, "x0 must be float32, float64 or integers, got complex128"),
        ({"x0": np.zeros((2, 3), np.float16)}, TypeError, "x0 must be float32, float64 or integers, got float16"),
        ({"x0": np.zeros((2, 3), bool)}, TypeError, "x0 must be float32, float64 or integers, got bool"),
        ({"x0": ["a"]}, TypeError, "x0 must be"),
        ({"x0": []}, ValueError, "x0 must have at least one element"),
        ({"x0": [1.0, math.nan]}, ValueError, "x0 must be finite"),
        ({"x0": np.ma.masked_array([1.0])}, TypeError, "x0 is a masked array"),
        ({"fun": bowl}, TypeError, r"fun must return \(value, gradient\) if jac=True, got float"),
        ({"fun": lambda x: (1.0, np.ones(6))}, ValueError, r"grad must have shape \(2, 3\) like x, got \(6,\)"),
        ({"fun": lambda x: (1.0, x + 0j)}, TypeError, "grad must be an array of real numbers, got complex128"),
        ({"fun": lambda x: (x, x)}, TypeError, "the value of fun must be a real number"),
        ({"fun": lambda x: (1j, x)}, TypeError, "the value of fun must be a real number, got 1j"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        minimize(**{"fun": both, "x0": np.zeros((2, 3)), "jac": True} | kwargs)


def test_an_unknown_argument_of_the_minimizer() -> None:
    with pytest.raises(TypeError, match=r"Minimizer has no argument 'nose': it takes lr, bounds, .* of SGD, momentum"):
        optimize.Minimizer([1.0], "sgd", nose=1)


def test_options_as_in_scipy() -> None:
    plain = minimize(both, np.zeros((2, 3)), jac=True, lr=0.1, maxiter=400, gtol=0.01, eps=1e-6)
    again = minimize(both, np.zeros((2, 3)), jac=True, tol=0.01, options={"lr": 0.1, "maxiter": 400, "eps": 1e-6})
    assert plain.nit == again.nit < 400
    np.testing.assert_array_equal(plain.x, again.x)


def test_divergence_warns_of_nothing() -> None:
    """The result says it; but who has asked NumPy to raise is served."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float((x**2).sum()), x**3

    result = minimize(fun, [3.0], jac=True, method="sgd", lr=1e3, maxiter=30)
    assert (result.status, result.success) == (2, False)
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        minimize(fun, [3.0], jac=True, method="sgd", lr=1e3, maxiter=30)


def test_without_scipy() -> None:
    """Minimizer does without, minimize names the extra; and the package does not load it."""
    script = """
import sys
import ironstep
from ironstep import optimize
assert "scipy" not in sys.modules
sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
search = optimize.Minimizer([1.0])
search.tell([1.0], 2.0)
try:
    optimize.minimize(lambda x: (1.0, x), [1.0], jac=True)
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'minimize needs SciPy: pip install "ironstep[scipy]"'


# -- Through SciPy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jac", [True, False], ids=["jac=True", "jac"])
@pytest.mark.parametrize("bounds", [None, [(-0.5, 0.5)] * 6])
def test_scipys_minimize_takes_the_method(jac: bool, bounds: Any) -> None:
    points: list[np.ndarray] = []
    options = {"lr": 0.1, "maxiter": 50, "weight_decay": 0.01}
    fun = (lambda x: (flat(bowl)(x), flat(slope)(x))) if jac else flat(bowl)
    got = scipy.optimize.minimize(
        fun,
        np.zeros(6),
        jac=True if jac else flat(slope),
        method=optimize.method("AdamW"),
        bounds=bounds,
        callback=points.append,
        options=options,
    )
    want = minimize(both, np.zeros((2, 3)), jac=True, bounds=bounds, **options)
    assert_same_bits(got.x.reshape(2, 3), want.x)
    assert (got.fun, got.nit, got.status, len(points)) == (want.fun, want.nit, want.status, want.nit)


def test_scipys_arguments_and_tolerance() -> None:
    def fun(x: np.ndarray, a: float) -> float:
        return float((x - a) @ (x - a))

    def jac(x: np.ndarray, a: float) -> np.ndarray:
        return 2 * (x - a)

    adam = optimize.method("adam")
    got = scipy.optimize.minimize(fun, [0.0, 1.0], args=(3.0,), jac=jac, method=adam, tol=0.5, options={"lr": 0.1})
    assert got.success
    assert 0.01 < np.abs(got.jac).max() <= 0.5
    assert repr(adam) == "ironstep.optimize.method('adam')"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"constraints": [{"type": "eq", "fun": sum}]}, "takes no constraints but bounds"),
        ({"constraints": np.array([1, 2])}, r"takes no constraints but bounds, got array\(\[1, 2\]\)"),
        ({"constraints": {"type": "eq", "fun": sum}}, "takes no constraints but bounds, got {"),
        ({"hess": lambda x: np.eye(2)}, "uses no Hessian"),
        ({"hessp": lambda x, p: p}, "uses no Hessian"),
        ({"jac": None}, "jac must be True"),
    ],
)
def test_what_scipy_may_pass_on_but_we_cannot_use(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scipy.optimize.minimize(
            **{"fun": lambda x: x @ x, "x0": [1.0, 2.0], "jac": lambda x: 2 * x, "method": optimize.method("sgd")}
            | kwargs
        )


def test_no_such_method() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        optimize.method("bfgs")


def test_the_arguments_come_in_scipys_order() -> None:
    ours, theirs = (list(inspect.signature(f).parameters) for f in (minimize, scipy.optimize.minimize))
    shared = [name for name in theirs if name in ours]
    assert [name for name in ours if name in shared] == shared
    assert ours[:5] == ["fun", "x0", "args", "method", "jac"]


# -- Minimizer ---------------------------------------------------------------------------------------------------------


def test_ask_and_tell() -> None:
    x0 = np.zeros((2, 3), F32)
    search = Minimizer(x0, "adam", lr=0.1)
    for i in range(100):
        x = search.ask()
        assert search.steps == i
        search.tell(slope(x), bowl(x))
        assert not np.shares_memory(x, search.ask())
        x[...] = np.nan
    assert_same_bits(x0, np.zeros((2, 3), F32))
    assert search.x.dtype == F32
    assert search.best_value == bowl(search.best)
    np.testing.assert_allclose(search.best, TARGET, atol=0.2)


def test_the_best_is_of_the_lowest_finite_value() -> None:
    search = Minimizer([0.0], "sgd", lr=1.0)
    assert search.best_value is None
    points = []
    for value in (math.nan, 3.0, math.inf, 2.0, 2.0, -math.inf, 5.0):
        points.append(search.x)
        search.tell([1.0], value)
    search.tell([1.0])
    assert search.best_value == 2.0
    assert_same_bits(search.best, points[4])  # Of two with this value the later one.
    search.best[...] = 9.0
    assert_same_bits(search.best, points[4])


def test_without_values_the_best_is_where_it_is() -> None:
    search = Minimizer([4.0], "sgd", lr=1.0)
    search.tell([1.0])
    assert search.best[0] == search.x[0] == 3.0


def test_points_stay_in_the_bounds() -> None:
    search = Minimizer([4.0, -4.0], "sgd", lr=1.0, bounds=[(-1.0, 1.0), (None, -2.0)])
    assert_same_bits(search.ask(), np.array([1.0, -4.0]))
    search.tell([3.0, -3.0])
    assert_same_bits(search.ask(), np.array([-1.0, -2.0]))


@pytest.mark.parametrize(
    ("grad", "value", "error", "match"),
    [
        ([1.0], None, ValueError, r"grad must have shape \(2,\) like x, got \(1,\)"),
        ([1.0, math.nan], 1.0, FloatingPointError, "finite"),
        ([1.0, 1j], 1.0, TypeError, "grad must be an array of real numbers"),
        (["a", "b"], 1.0, TypeError, "grad must be"),
        ([1.0, 1.0], "x", TypeError, "value must be a real number, got 'x'"),
        ([1.0, 1.0], [1.0, 2.0], TypeError, "value must be a real number"),
    ],
)
def test_what_cannot_be_told_changes_nothing(grad: Any, value: Any, error: type[Exception], match: str) -> None:
    search = Minimizer([1.0, 2.0], "adam")
    search.tell([1.0, 1.0], 5.0)
    before = search.state_dict()
    with pytest.raises(error, match=match):
        search.tell(grad, value)
    assert_same(search.state_dict(), before)


@every_method
def test_a_search_that_is_resumed_goes_on_to_the_bit(method: str) -> None:
    whole, first, second = (
        Minimizer(np.full((2, 3), 0.5), method, lr=0.1, momentum=0.5)
        if method == "sgd"
        else Minimizer(np.full((2, 3), 0.5), method, lr=0.1)
        for _ in range(3)
    )

    def go(search: Minimizer, steps: int) -> None:
        for _ in range(steps):
            search.tell(slope(search.x), bowl(search.x))

    go(whole, 7)
    go(first, 3)
    second.load_state_dict(first.state_dict())
    go(second, 4)
    assert_same(second.state_dict(), whole.state_dict())
    assert repr(second) == repr(whole)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("x"), "state_dict must be a dict with x, opt, best, best_value"),
        (
            lambda s: s.update(x=np.ones(3)),
            r"state_dict\['x'\] must be float64 of shape \(2,\), got float64 of shape \(3,\)",
        ),
        (lambda s: s.update(best=np.ones(2, F32)), r"state_dict\['best'\] must be float64"),
        (lambda s: s.update(opt=optim.SGD(np.ones(2)).state_dict()), "state_dict must be of Adam, got one of SGD"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: Callable[..., Any], match: str) -> None:
    search = Minimizer([1.0, 2.0], "adam")
    search.tell([1.0, 1.0], 5.0)
    state, before = search.state_dict(), search.state_dict()
    change(state)
    with pytest.raises(ValueError, match=match):
        search.load_state_dict(state)
    assert_same(search.state_dict(), before)
