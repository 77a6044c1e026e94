r"""Minimising a function with a gradient by any of the optimisers: in the way of SciPy, or step by step.

`minimize` has the arguments and the result of `scipy.optimize.minimize`, and `method("adamw")` makes the latter use an
optimiser of ours. Where another program evaluates the function, `Minimizer` is asked for a point and told the gradient
there. For smooth functions without noise a quasi-Newton method (SciPy's "L-BFGS-B") needs far fewer evaluations; these
methods are for noisy gradients and for very many variables.

Example:
    >>> import numpy as np
    >>> from ironstep import optimize, schedules
    >>> def rosenbrock(x):
    ...     f = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     g = np.array([-2 * (1 - x[0]) - 400 * x[0] * (x[1] - x[0] ** 2), 200 * (x[1] - x[0] ** 2)])
    ...     return f, g
    >>> lr = schedules.cosine(0.2, steps=3000)
    >>> result = optimize.minimize(rosenbrock, [-1.0, 2.0], jac=True, method="adam", lr=lr, maxiter=3000)
    >>> result.x.round(3)
    array([1., 1.])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import optim
from .functional._arrays import NOT_NEGATIVE, Array, integer, number, unmasked
from .optim import Optimizer
from .optim._base import arguments
from .optim._hyper import Scalar

__all__ = ["Minimizer", "method", "minimize"]

METHODS: dict[str, type[Optimizer]] = {
    name.lower(): cls
    for name in optim.__all__
    if isinstance(cls := getattr(optim, name), type) and issubclass(cls, Optimizer) and cls is not Optimizer
}
"""The optimisers by the names that `method` takes."""

SCIPY = (
    *("nelder-mead", "powell", "cg", "bfgs", "newton-cg", "l-bfgs-b", "tnc", "cobyla", "cobyqa", "slsqp"),
    *("trust-constr", "dogleg", "trust-ncg", "trust-exact", "trust-krylov"),
)
"""The methods that somebody may expect here."""

LR = 0.01
MAXITER = 1000
GTOL = 1e-5

MAX_STEPS = 2**63 - 1


def _optimizer(name: Any) -> type[Optimizer]:
    if not isinstance(name, str):
        raise TypeError(f"method must be the name of an optimiser, such as 'adamw', got {name!r}")
    if name.lower() not in METHODS:
        hint = "; that one is a method of scipy.optimize.minimize" if name.lower() in SCIPY else ""
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}{hint}")
    return METHODS[name.lower()]


def _check_known(what: str, own: list[str], cls: type[Optimizer], hyperparams: Mapping[str, Any]) -> None:
    """Refuses keywords that neither `what`, which takes `own`, nor the optimiser has."""
    theirs = [name for name in arguments(cls) if name != "lr"]
    for name in hyperparams:
        if name not in theirs:
            raise TypeError(
                f"{what} has no argument {name!r}: it takes {', '.join(own)}, and the hyperparameters of "
                f"{cls.__name__}, {', '.join(theirs)}"
            )


def _start(x0: Any) -> Array:
    """A copy in float32 or float64."""
    x = unmasked(x0, "x0")
    if x.dtype.kind in "iu":
        x = x.astype(np.float64)
    if x.dtype.char not in "fd":
        raise TypeError(f"x0 must be float32, float64 or integers, got {x.dtype}")
    if x.size == 0:
        raise ValueError(f"x0 must have at least one element, got shape {x.shape}")
    x = np.array(x, x.dtype.newbyteorder("="), order="C")
    if not np.isfinite(x).all():
        raise ValueError("x0 must be finite, but has an infinite or NaN element")
    return x


class _Bounds(NamedTuple):
    """The box that x stays in, in its shape and type."""

    low: Array
    high: Array

    def project(self, x: Array) -> None:
        """Moves x to the nearest point in the box."""
        np.clip(x, self.low, self.high, out=x)

    def slope(self, x: Array, grad: Array) -> Array:
        """The gradient without what points out of the box."""
        out = ((x <= self.low) & (grad > 0.0)) | ((x >= self.high) & (grad < 0.0))
        return np.where(out, 0.0, grad)


def _box(bounds: Any, x: Array) -> _Bounds | None:
    """From SciPy's `Bounds`, or a (low, high) pair for each element of x, with None for none."""
    if bounds is None:
        return None
    try:
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            low, high = (np.broadcast_to(np.asarray(side, np.float64), x.shape) for side in (bounds.lb, bounds.ub))
        else:
            pairs = [(-math.inf if a is None else a, math.inf if b is None else b) for a, b in bounds]
            if len(pairs) != x.size:
                raise ValueError(f"{len(pairs)} pairs")
            low, high = np.array(pairs, np.float64).reshape(*x.shape, 2).transpose(-1, *range(x.ndim))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bounds must be a scipy.optimize.Bounds, or a (low, high) pair for each of the {x.size} elements of x0: "
            f"{error}"
        ) from error
    if not (low <= high).all():
        raise ValueError("bounds must have each low at most as large as its high, and no NaN")
    if (low == math.inf).any() or (high == -math.inf).any():
        raise ValueError("bounds must leave x room, but a low is inf or a high is -inf")
    with np.errstate(over="ignore"):
        inside = low.astype(x.dtype), high.astype(x.dtype)
    # A bound that is no float32 would else let x out of the box by a rounding, or, beyond all of them, be none.
    inside = (
        np.where((inside[0] < low) & (low < high), np.nextafter(inside[0], x.dtype.type(np.inf)), inside[0]),
        np.where((inside[1] > high) & (low < high), np.nextafter(inside[1], x.dtype.type(-np.inf)), inside[1]),
    )
    if not (inside[0] <= inside[1]).all() or np.isinf(inside[0][low == high]).any() or (inside[0] == math.inf).any():
        raise ValueError(f"bounds must have a number of the type of x0, {x.dtype}, between each low and its high")
    return _Bounds(*inside)


class Minimizer:
    r"""An optimiser that is asked for a point and told the gradient there.

    `ask()` gives the point $x_t$; `tell(grad)` takes the step $x_{t+1} = P(x_t - \dots)$ of the optimiser, where $P$ is
    the projection to the box `bounds`, if there is one.

    Args:
        x0: Where to begin: float32, float64 or integers, which become float64; of any shape. Not written. It is
            projected to the bounds first.
        method: An optimiser of `ironstep.optim` by its name in lower case.
        lr: Learning rate, about as far as an element moves in a step of Adam; or a schedule.
        bounds: A `scipy.optimize.Bounds`, or a pair (low, high) for each element in C order, None for no bound. Where
            x is float32 they are rounded inwards, or, if low and high are equal, to the nearest.
        **hyperparams: Of the optimiser. Other than in `ironstep.optim`, `weight_decay` is 0 and `nonfinite` is
            `"raise"` if they are left out: decay would move the minimum.

    Raises:
        ValueError: The method is unknown, a hyperparameter is out of range, or the bounds do not fit.
        TypeError: An argument is of a wrong type, or the optimiser has no such hyperparameter.

    Example:
        >>> import numpy as np
        >>> from ironstep import optimize
        >>> search = optimize.Minimizer([4.0, -2.0], "sgd", lr=0.25, bounds=[(1.0, None), (None, None)])
        >>> for _ in range(3):
        ...     x = search.ask()
        ...     search.tell(2.0 * x, value=float(x @ x))
        >>> search.x, search.best, search.best_value
        (array([ 1.  , -0.25]), array([ 1. , -0.5]), 1.25)
    """

    def __init__(
        self,
        x0: Any,
        method: str = "adamw",
        *,
        lr: Scalar = LR,
        bounds: Any = None,
        **hyperparams: Any,
    ) -> None:
        cls: Any = _optimizer(method)
        _check_known("Minimizer", ["lr", "bounds"], cls, hyperparams)
        if hyperparams.get("maximize"):
            raise ValueError("maximize=True is no minimisation; give the negative function and gradient")
        self._x = _start(x0)
        self._bounds = _box(bounds, self._x)
        if self._bounds is not None:
            self._bounds.project(self._x)
        self._opt = cls(self._x, lr=lr, **{"weight_decay": 0.0, "nonfinite": "raise"} | hyperparams)
        self._best = self._x.copy()
        self._best_value: float | None = None

    def ask(self) -> Array:
        """The point where the gradient is wanted: a copy."""
        return self._x.copy()

    def tell(self, grad: Any, value: float | None = None) -> None:
        """Takes a step.

        Args:
            grad: The gradient at the point that `ask` gave, of its shape.
            value: The function there, if it is known; for `best`. One that is not finite is never the best.

        Raises:
            ValueError: The gradient has another shape. Nothing was changed.
            TypeError: It is no array of numbers, or the value is no number. Nothing was changed.
            FloatingPointError: It is not finite. Nothing was changed.
        """
        grad = _gradient(grad, self._x)
        number_ = None if value is None else _value(value, "value")
        before = self._x.copy() if self._improves(number_) else None
        self._opt.step(grad)
        if self._bounds is not None:
            self._bounds.project(self._x)
        if before is not None:
            self._best, self._best_value = before, number_

    def _improves(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and (self._best_value is None or value <= self._best_value)

    @property
    def x(self) -> Array:
        """The point where it is: a copy."""
        return self._x.copy()

    @property
    def best(self) -> Array:
        """A copy of the point of the lowest value that was told, of equal ones the latest; of `x` if none was told."""
        return (self._x if self._best_value is None else self._best).copy()

    @property
    def best_value(self) -> float | None:
        """The lowest value that was told, or None."""
        return self._best_value

    @property
    def steps(self) -> int:
        """The number of steps taken."""
        return int(self._opt.steps)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere: `{"x", "opt", "best", "best_value"}`."""
        return {
            "x": self.x,
            "opt": self._opt.state_dict(),
            "best": self._best.copy(),
            "best_value": self._best_value,
        }

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes what `state_dict` of a minimiser with the same method and shape gave. The bounds stay the own ones.

        Raises:
            ValueError: Something is missing or does not fit. Nothing was changed.
        """
        names = ["x", "opt", "best", "best_value"]
        if not isinstance(state_dict, Mapping) or sorted(state_dict) != sorted(names):
            raise ValueError(f"state_dict must be a dict with {', '.join(names)}")
        arrays = []
        for name in ("x", "best"):
            given = state_dict[name]
            if not isinstance(given, np.ndarray) or given.shape != self._x.shape or given.dtype != self._x.dtype:
                got = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else repr(given)
                raise ValueError(f"state_dict[{name!r}] must be {self._x.dtype} of shape {self._x.shape}, got {got}")
            arrays.append(given.copy())
        best = state_dict["best_value"]
        best = None if best is None else _value(best, "state_dict['best_value']")
        self._opt.load_state_dict(state_dict["opt"])
        self._x[...], self._best = arrays
        self._best_value = best

    def __repr__(self) -> str:
        return f"Minimizer({self._opt!r}, shape={self._x.shape}, steps={self.steps}, best_value={self._best_value!r})"


def _gradient(grad: Any, x: Array) -> Array:
    values = unmasked(grad, "grad")
    if values.dtype.kind not in "iuf" and values.dtype.name != "bfloat16":
        raise TypeError(f"grad must be an array of real numbers, got {values.dtype}")
    if values.shape != x.shape:
        raise ValueError(f"grad must have shape {x.shape} like x, got {values.shape}")
    with np.errstate(over="ignore"):
        return values.astype(x.dtype)


def _value(value: Any, name: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a real number, got {value!r}")
    return float(array.reshape(()))


def _result(**fields: Any) -> Any:
    from importlib import import_module

    try:
        return import_module("scipy.optimize").OptimizeResult(**fields)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('minimize needs SciPy: pip install "ironstep[scipy]"') from error


MESSAGES = {
    0: "The largest element of the gradient is at most gtol.",
    1: "The number of iterations has reached maxiter; another lr, or a higher maxiter, may help.",
    2: "The function or its gradient is not finite.",
    3: "The function changed by at most ftol, relatively.",
    99: "`callback` raised `StopIteration`.",
}


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    method: str = "adamw",
    jac: Any = None,
    bounds: Any = None,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    lr: Scalar | None = None,
    maxiter: int | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    **hyperparams: Any,
) -> Any:
    r"""Minimises a function of several variables by an optimiser of ours, in the way of `scipy.optimize.minimize`.

    $$\min_x f(x), \qquad l \le x \le u$$

    with $f$ = `fun` and the bounds $l, u$ kept by projection after each step. These methods do not go down in every
    step, so the result is the best point that was seen, not the last: the one of the lowest value, of equal values the
    latest; but the one that fulfils `gtol` if that is why it stopped. A learning rate that falls to 0 brings the end
    nearer: `lr=schedules.cosine(0.1, steps=maxiter)`.

    Args:
        fun: `fun(x, *args)` gives the value, or with `jac=True` the value and the gradient. It gets a copy of x.
        x0: Where to begin: float32, float64 or integers, which become float64; of any shape, which x keeps. Not
            written.
        args: More arguments for `fun` and `jac`.
        method: An optimiser of `ironstep.optim` by its name in lower case.
        jac: True, or `jac(x, *args)`, which gives the gradient in the shape of x.
        bounds: A `scipy.optimize.Bounds`, or a pair (low, high) for each element in C order, None for no bound; see
            `Minimizer`.
        tol: SciPy's name for `gtol`.
        callback: Called after each step as SciPy does: `callback(intermediate_result=...)` with `x` and `fun` if that
            is the name of its only parameter, else `callback(x)`. If it raises StopIteration this is the end.
        options: A dict with any of the following arguments, as SciPy takes them.
        lr: Learning rate: about as far as an element moves in a step of Adam; or a schedule. By default 0.01.
        maxiter: The most steps to take. By default 1000.
        gtol: Success if no element of the gradient is larger; those that point out of the bounds do not count. By
            default 1e-5.
        ftol: Success if $|f_{t} - f_{t-1}| \le$ `ftol` $\max(|f_t|, |f_{t-1}|, 1)$; 0, the default, does not look at
            it.
        **hyperparams: Of the optimiser. `weight_decay` is 0 if it is left out: it would move the minimum.

    Returns:
        SciPy's `OptimizeResult` with `x` (the best point seen), `fun` and `jac` there, `nit` (steps), `nfev`, `njev`,
        `success`, `message` and `status`: 0 or 3 converged (`gtol`, `ftol`), 1 `maxiter`, 2 not finite, 99 stopped by
        the callback.

    Raises:
        ValueError: There is no gradient, the method is unknown, an argument is out of range, or the gradient has
            another shape.
        TypeError: An argument is of a wrong type, is none of these nor of the optimiser's hyperparameters, or is given
            twice.
        ModuleNotFoundError: SciPy is not installed (`pip install "ironstep[scipy]"`).

    Example:
        >>> import numpy as np
        >>> from ironstep import optimize
        >>> def fun(x, target):
        ...     return ((x - target) ** 2).sum(), 2 * (x - target)
        >>> result = optimize.minimize(fun, [0, 0], args=np.array([1.0, 2.0]), jac=True, lr=0.1)
        >>> result.x.round(4), result.success, result.message
        (array([1., 2.]), True, 'The largest element of the gradient is at most gtol.')

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, arXiv 1412.6980; see the optimisers themselves.
    """
    if not callable(fun):
        raise TypeError(f"fun must be a function of x, got {fun!r}")
    if jac is not True and not callable(jac):
        raise ValueError(
            f"jac must be True (fun returns the value and the gradient) or a function that gives the gradient, got "
            f"{jac!r}: these methods need gradients, and finite differences cost one evaluation per element of x. If x "
            "has few, use jac=lambda x, *args: scipy.optimize.approx_fprime(x, fun, 1e-8, *args)"
        )
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function or None, got {callback!r}")
    args = args if isinstance(args, tuple) else (args,)
    given = {"lr": lr, "maxiter": maxiter, "gtol": gtol, "ftol": ftol}
    settings = {name: value for name, value in given.items() if value is not None} | hyperparams
    for source in ({} if options is None else options, {} if tol is None else {"gtol": tol}):
        if not isinstance(source, Mapping):
            raise TypeError(f"options must be a dict or None, got {options!r}")
        for name, value in source.items():
            if name in settings:
                raise TypeError(
                    f"{name} is given twice: {'tol is gtol' if source is not options else 'in options, too'}"
                )
            settings[name] = value
    known = ["lr", "maxiter", "gtol", "ftol"]
    _check_known("minimize", known, _optimizer(method), {k: v for k, v in settings.items() if k not in known})
    maxiter = integer("maxiter", settings.pop("maxiter", MAXITER), 0, MAX_STEPS)
    gtol = number("gtol", settings.pop("gtol", GTOL), NOT_NEGATIVE)
    ftol = number("ftol", settings.pop("ftol", 0.0), NOT_NEGATIVE)
    _result()  # Raises now, not after the work, if there is no SciPy.
    search = Minimizer(x0, method, bounds=bounds, **settings)
    tell_callback = _callback(callback)

    # Where it diverges the result says so. Who has asked NumPy to raise or to print is served.
    quiet: Any = {kind: "ignore" for kind, what in np.geterr().items() if what == "warn"}

    def evaluate(x: Array) -> tuple[float, Array]:
        with np.errstate(**quiet):
            if jac is True:
                result = fun(x.copy(), *args)
                if not isinstance(result, (tuple, list)) or len(result) != 2:
                    raise TypeError(f"fun must return (value, gradient) if jac=True, got {type(result).__name__}")
                value, grad = result
            else:
                value, grad = fun(x.copy(), *args), jac(x.copy(), *args)
        return _value(value, "the value of fun"), _gradient(grad, x)

    nit, status, last = 0, None, math.nan
    best: tuple[float, Array, NDArray[Any]] | None = None
    while status is None:
        x = search.ask()
        value, grad = evaluate(x)
        finite = math.isfinite(value) and bool(np.isfinite(grad).all())
        if best is None or (finite and value <= best[0]):
            best = value, x, grad
        if nit and not _goes_on(tell_callback, x, value):
            status = 99
        elif not finite:
            status = 2
        elif _largest(search._bounds, x, grad) <= gtol:
            status = 0
            best = value, x, grad  # Which rounding may have made larger than one before.
        elif ftol and abs(value - last) <= ftol * max(abs(value), abs(last), 1.0):
            status = 3
        elif nit == maxiter:
            status = 1
        else:
            search.tell(grad, value)
            nit, last = nit + 1, value
    assert best is not None
    return _result(
        x=best[1],
        fun=best[0],
        jac=best[2],
        nit=nit,
        nfev=nit + 1,
        njev=nit + 1,
        status=status,
        success=status in (0, 3),
        message=MESSAGES[status],
    )


def _largest(bounds: _Bounds | None, x: Array, grad: Array) -> float:
    """The largest element of the gradient, but those that point out of the box."""
    return float(np.abs(grad if bounds is None else bounds.slope(x, grad)).max())


def _callback(callback: Callable[..., Any] | None) -> Callable[[Array, float], Any]:
    """A function of x and the value."""
    if callback is None:
        return lambda x, value: None
    from inspect import signature

    try:
        wants_result = set(signature(callback).parameters) == {"intermediate_result"}
    except (TypeError, ValueError):  # Some built-in functions have none.
        wants_result = False
    if wants_result:
        return lambda x, value: callback(intermediate_result=_result(x=x.copy(), fun=value))
    return lambda x, value: callback(x.copy())


def _goes_on(callback: Callable[[Array, float], Any], x: Array, value: float) -> bool:
    try:
        callback(x, value)
    except StopIteration:
        return False
    return True


class _Method:
    """What `scipy.optimize.minimize` takes as `method`."""

    def __init__(self, name: str) -> None:
        _optimizer(name)
        self._name = name

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        *,
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Any = None,
        tol: float | None = None,
        **options: Any,
    ) -> Any:
        if hess is not None or hessp is not None:
            raise ValueError(f"{self._name} uses no Hessian: leave out hess and hessp")
        if constraints is not None and not (isinstance(constraints, (tuple, list)) and not constraints):
            raise ValueError(f"{self._name} takes no constraints but bounds, got {constraints!r}")
        if tol is not None:
            options.setdefault("gtol", tol)
        return minimize(fun, x0, args, self._name, jac, bounds, None, callback, options)

    def __repr__(self) -> str:
        return f"ironstep.optimize.method({self._name!r})"


def method(name: str) -> Callable[..., Any]:
    """An optimiser of ours as a `method` of `scipy.optimize.minimize`.

    There x is one-dimensional, and `options` has what `minimize` takes after `callback`; `tol` is `gtol`.

    Args:
        name: An optimiser of `ironstep.optim` by its name in lower case.

    Returns:
        What SciPy's `minimize` takes as `method`.

    Raises:
        ValueError: There is no such optimiser. When called: constraints or a Hessian were given.

    Example:
        >>> import numpy as np
        >>> from scipy.optimize import minimize
        >>> from ironstep import optimize
        >>> adam = optimize.method("adam")
        >>> result = minimize(lambda x: x @ x, [3.0], jac=lambda x: 2 * x, method=adam, options={"lr": 0.1})
        >>> bool(abs(result.x[0]) < 1e-4)
        True
    """
    return _Method(name)
