"""The specification: every rule as a NumPy expression, in the order of operations that the core promises.

Arrays are float32 or float64, scalars are Python floats (which take the array's type, NEP 50; never `np.float64`, which
would widen float32). The functions take parameter, gradient, state by name, step (from 1), hyperparameters and scalar
state, and return the new parameter and the new state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ironstep import _core

Array: TypeAlias = NDArray[Any]
State: TypeAlias = dict[str, Array]
Hyper: TypeAlias = Mapping[str, Any]
Reference: TypeAlias = Callable[[Array, Array, State, int, Hyper, dict[str, float]], tuple[Array, State]]

CHUNK = 1 << 14
LANES = 16


def decayed(p: Array, g: Array, lr: float, h: Hyper) -> tuple[Array, Array]:
    """Weight decay. An absent term is not computed."""
    wd = h["weight_decay"]
    if h["decoupled_weight_decay"]:
        return p * (1.0 - lr * wd), g
    return p, (g + wd * p if wd != 0.0 else g)


def sgd(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    p, g = decayed(p, g, h["lr"], h)
    return p - h["lr"] * g, {}


def momentum(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    lr, mu, buf = h["lr"], h["momentum"], s["momentum_buffer"]
    p, g = decayed(p, g, lr, h)
    undamped = 1.0 if t == 1 else 1.0 - h["dampening"]
    if h["lr_in_momentum"]:
        pull = (lr * undamped) * g
        v = mu * buf - pull
        return (p + (mu * v - pull) if h["nesterov"] else p + v), {"momentum_buffer": v}
    buf = g if t == 1 else mu * buf + undamped * g
    return p - lr * (g + mu * buf if h["nesterov"] else buf), {"momentum_buffer": buf}


def adagrad(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    lr = h["lr"] / (1.0 + (t - 1) * h["lr_decay"])
    p, g = decayed(p, g, lr, h)
    total = s["sum"] + g * g
    return p - lr * (g / root(total, h)), {"sum": total}


def root(v: Array, h: Hyper) -> Array:
    return np.sqrt(v + h["eps"]) if h["eps_in_sqrt"] else np.sqrt(v) + h["eps"]


def rmsprop(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    lr, alpha, mu = h["lr"], h["alpha"], h["momentum"]
    p, g = decayed(p, g, lr, h)
    new = {"square_avg": alpha * s["square_avg"] + (1.0 - alpha) * (g * g)}
    v = new["square_avg"]
    if h["centered"]:
        new["grad_avg"] = a = alpha * s["grad_avg"] + (1.0 - alpha) * g
        v = np.maximum(v - a * a, 0.0)
    d = g / root(v, h)
    if mu == 0.0:
        return p - lr * d, new
    if h["lr_in_momentum"]:
        new["momentum_buffer"] = mu * s["momentum_buffer"] + lr * d
        return p - new["momentum_buffer"], new
    new["momentum_buffer"] = mu * s["momentum_buffer"] + d
    return p - lr * new["momentum_buffer"], new


def adadelta(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    rho, eps = h["rho"], h["eps"]
    p, g = decayed(p, g, h["lr"], h)
    v = rho * s["square_avg"] + (1.0 - rho) * (g * g)
    d = np.sqrt(s["acc_delta"] + eps) / np.sqrt(v + eps) * g
    a = rho * s["acc_delta"] + (1.0 - rho) * (d * d)
    return p - h["lr"] * d, {"square_avg": v, "acc_delta": a}


def moments(g: Array, s: State, h: Hyper) -> tuple[Array, Array]:
    beta1, beta2 = h["betas"]
    return beta1 * s["exp_avg"] + (1.0 - beta1) * g, beta2 * s["exp_avg_sq"] + (1.0 - beta2) * (g * g)


def corrections(t: int, h: Hyper) -> tuple[float, float]:
    if not h.get("bias_correction", True):
        return 1.0, 1.0
    return 1.0 - _core.pow(h["betas"][0], t), 1.0 - _core.pow(h["betas"][1], t)


def adam(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    p, g = decayed(p, g, h["lr"], h)
    m, v = moments(g, s, h)
    new = {"exp_avg": m, "exp_avg_sq": v}
    c1, c2 = corrections(t, h)
    step_size, correction = h["lr"] / c1, 1.0 / math.sqrt(c2)
    if h["eps_hat"]:
        step_size, correction = h["lr"] * math.sqrt(c2) / c1, 1.0
    if h["amsgrad"]:
        if h["amsgrad_corrected"]:
            v, correction = v * (1.0 / c2), 1.0
        new["max_exp_avg_sq"] = v = np.maximum(s["max_exp_avg_sq"], v)
    return p - step_size * (m / (np.sqrt(v) * correction + h["eps"])), new


def adamax(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    beta1, beta2 = h["betas"]
    p, g = decayed(p, g, h["lr"], h)
    m = beta1 * s["exp_avg"] + (1.0 - beta1) * g
    u = np.maximum(beta2 * s["exp_inf"], np.abs(g) + h["eps"])
    return p - (h["lr"] / (1.0 - _core.pow(beta1, t))) * (m / u), {"exp_avg": m, "exp_inf": u}


def nadam(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    def mu(t: int) -> float:
        return float(h["betas"][0] * (1.0 - 0.5 * _core.pow(0.96, t * h["momentum_decay"])))

    lr, now, after = h["lr"], mu(t), mu(t + 1)
    c["mu_product"] *= now
    p, g = decayed(p, g, lr, h)
    m, v = moments(g, s, h)
    of_gradient = lr * (1.0 - now) / (1.0 - c["mu_product"])
    of_moment = lr * after / (1.0 - c["mu_product"] * after)
    correction = 1.0 / math.sqrt(1.0 - _core.pow(h["betas"][1], t))
    step = (of_gradient * g + of_moment * m) / (np.sqrt(v) * correction + h["eps"])
    return p - step, {"exp_avg": m, "exp_avg_sq": v}


def radam(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    beta1, beta2 = h["betas"]
    p, g = decayed(p, g, h["lr"], h)
    m, v = moments(g, s, h)
    c1, power2 = 1.0 - _core.pow(beta1, t), _core.pow(beta2, t)
    c2 = 1.0 - power2
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * power2 / c2
    if length > 5.0:
        share = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        p = p - (h["lr"] / c1 * math.sqrt(share * c2)) * (m / (np.sqrt(v) + h["eps"]))
    else:
        p = p - (h["lr"] / c1) * m
    return p, {"exp_avg": m, "exp_avg_sq": v}


def lion(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    beta1, beta2 = h["betas"]
    p, g = decayed(p, g, h["lr"], h)
    m = s["exp_avg"]
    direction = np.sign(beta1 * m + (1.0 - beta1) * g)
    return p - h["lr"] * direction, {"exp_avg": beta2 * m + (1.0 - beta2) * g}


def lamb(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    lr, wd = h["lr"], h["weight_decay"]
    outside = {**h, "weight_decay": 0.0} if h["weight_decay_in_ratio"] else h
    shrunk, g = decayed(p, g, lr, outside)
    m, v = moments(g, s, h)
    c1, c2 = corrections(t, h)
    u = (m * (1.0 / c1)) / (np.sqrt(v) * (1.0 / math.sqrt(c2)) + h["eps"])
    if h["weight_decay_in_ratio"] and wd != 0.0:
        u = u + wd * p
    param_norm, norm = min(math.sqrt(sum_squares(shrunk)), h["max_param_norm"]), math.sqrt(sum_squares(u))
    ratio = 1.0
    if (h["always_adapt"] or wd != 0.0) and param_norm != 0.0 and norm != 0.0:
        ratio = param_norm / (norm + h["eps"] if h["eps_in_ratio"] else norm)
    if h["trust_clip"]:
        ratio = min(ratio, 1.0)
    return shrunk - (lr * ratio) * u, {"exp_avg": m, "exp_avg_sq": v}


def lars(p: Array, g: Array, s: State, t: int, h: Hyper, c: dict[str, float]) -> tuple[Array, State]:
    lr, mu, wd = h["lr"], h["momentum"], h["weight_decay"]
    shrunk, d = decayed(p, g, lr, h)
    param_norm, norm = math.sqrt(sum_squares(p)), math.sqrt(sum_squares(g if h["separate_norms"] else d))
    ratio = 1.0
    if (h["always_adapt"] or wd != 0.0) and param_norm != 0.0 and norm != 0.0:
        under = norm + (wd * param_norm if h["separate_norms"] else 0.0) + h["eps"]
        ratio = h["trust_coefficient"] * param_norm / under
    share, step_size = (lr * ratio, 1.0) if h["lr_in_momentum"] else (ratio, lr)
    pull = share * d
    buf = mu * s["momentum_buffer"] + pull
    return shrunk - step_size * (mu * buf + pull if h["nesterov"] else buf), {"momentum_buffer": buf}


# -- Around the rule ---------------------------------------------------------------------------------------------------


def tree_sum(x: list[float]) -> float:
    """Neighbours are added until one is left; an odd last one moves up."""
    while len(x) > 1:
        x = [x[i] + x[i + 1] if i + 1 < len(x) else x[i] for i in range(0, len(x), 2)]
    return x[0] if x else 0.0


def sum_squares(x: Array) -> float:
    """Over the elements in C order, in float64: blocks of CHUNK, 16 lanes in each, halving, a tree over the blocks."""
    flat = np.asarray(x, np.float64).reshape(-1)
    sums = []
    for start in range(0, flat.size, CHUNK):
        block = flat[start : start + CHUNK]
        lanes = np.zeros(-(-block.size // LANES) * LANES)
        lanes[: block.size] = block * block
        total = np.cumsum(lanes.reshape(-1, LANES), axis=0)[-1]  # one after the other, unlike np.sum
        while total.size > 1:
            total = total[: total.size // 2] + total[total.size // 2 :]
        sums.append(float(total[0]))
    return tree_sum(sums)


def prepared(grads: list[Array], around: Hyper) -> tuple[list[Array], float]:
    """Gradients after scale, limit and clipping by the joint norm; and that norm."""
    limit = around.get("clip_value")
    scaled = [g * float(around.get("grad_scale", 1.0)) for g in grads]
    if limit is not None:
        scaled = [np.minimum(np.maximum(g, -float(limit)), float(limit)) for g in scaled]
    norm = math.sqrt(tree_sum([sum_squares(g) for g in scaled]))
    if around.get("max_norm") is not None:
        ratio = around["max_norm"] / (norm + 1e-6)
        coefficient = 1.0 if ratio > 1.0 else ratio
        scaled = [g * coefficient for g in scaled]
    return scaled, norm
