"""Trains a small network on images of digits with every optimiser of ironstep, and times each beside plain NumPy.

The network is a multi-layer perceptron in NumPy: its forward and backward pass are written out below, and the gradients
are NumPy arrays. ironstep does the rest of the work: `opt.step(grads)` changes the parameters in place.

Beside it the same update runs in plain NumPy, on a copy of the parameters that gets the same gradients. So the script
can check that both end with the same parameters, and say how long each took. At the end it prints a table, and draws
the loss of all optimisers into `demo/digits.png`.

    python examples/digits.py
    python examples/digits.py --optimizers adam lion --epochs 10

The data are scikit-learn's `load_digits`: 1797 images of 8 x 8 pixels. Needs `pip install "ironstep[demo]"`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import ironstep
from ironstep import optim

try:
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from threadpoolctl import threadpool_limits  # comes with scikit-learn
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. This example needs: pip install "ironstep[demo]"') from None

Array: TypeAlias = NDArray[np.float32]
Layers: TypeAlias = list[dict[str, Array]]
"""The network's parameters, or their gradients: for each layer "w" of shape (inputs, outputs) and "b" (outputs)."""

SIZES = (64, 128, 128, 10)
BATCH = 32
TOLERANCE = 1e-5
"""How far NumPy's parameters may be from ironstep's at the end, in units of the largest in the array."""


# -- The updates in plain NumPy ----------------------------------------------------------------------------------------
# Each changes a parameter `p` and its state in place, given its gradient `g` and the number `t` of the step, from 1 on.
# The equations are in the docstrings of `ironstep.optim`.

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam and its kin


def sgd(t: int, p: Array, g: Array, *, lr: float) -> None:
    p -= lr * g


def momentum(t: int, p: Array, g: Array, b: Array, *, lr: float, momentum: float) -> None:
    b *= momentum
    b += g
    p -= lr * b


def nesterov(t: int, p: Array, g: Array, b: Array, *, lr: float, momentum: float) -> None:
    b *= momentum
    b += g
    p -= lr * (g + momentum * b)


def textbook_momentum(t: int, p: Array, g: Array, v: Array, *, lr: float, momentum: float) -> None:
    v *= momentum
    v -= lr * g
    p += v


def adagrad(t: int, p: Array, g: Array, s: Array, *, lr: float, eps: float) -> None:
    s += g * g
    p -= lr * (g / (np.sqrt(s) + eps))


def rmsprop(t: int, p: Array, g: Array, v: Array, *, lr: float, alpha: float) -> None:
    v *= alpha
    v += (1 - alpha) * (g * g)
    p -= lr * (g / (np.sqrt(v) + EPS))


def adadelta(t: int, p: Array, g: Array, v: Array, a: Array, *, lr: float, rho: float, eps: float) -> None:
    v *= rho
    v += (1 - rho) * (g * g)
    d = np.sqrt(a + eps) / np.sqrt(v + eps) * g
    a *= rho
    a += (1 - rho) * (d * d)
    p -= lr * d


def update_moments(g: Array, m: Array, v: Array) -> None:
    m *= BETA1
    m += (1 - BETA1) * g
    v *= BETA2
    v += (1 - BETA2) * (g * g)


def adam(t: int, p: Array, g: Array, m: Array, v: Array, *, lr: float) -> None:
    update_moments(g, m, v)
    p -= lr / (1 - BETA1**t) * (m / (np.sqrt(v) * (1 / math.sqrt(1 - BETA2**t)) + EPS))


def amsgrad(t: int, p: Array, g: Array, m: Array, v: Array, top: Array, *, lr: float) -> None:
    update_moments(g, m, v)
    np.maximum(top, v, out=top)
    p -= lr / (1 - BETA1**t) * (m / (np.sqrt(top) * (1 / math.sqrt(1 - BETA2**t)) + EPS))


def adamw(t: int, p: Array, g: Array, m: Array, v: Array, *, lr: float, weight_decay: float) -> None:
    p *= 1 - lr * weight_decay
    adam(t, p, g, m, v, lr=lr)


def adamax(t: int, p: Array, g: Array, m: Array, u: Array, *, lr: float) -> None:
    m *= BETA1
    m += (1 - BETA1) * g
    u *= BETA2
    np.maximum(u, np.abs(g) + EPS, out=u)
    p -= lr / (1 - BETA1**t) * (m / u)


def nadam(t: int, p: Array, g: Array, m: Array, v: Array, *, lr: float) -> None:
    update_moments(g, m, v)
    share_g = lr * (1 - BETA1) / (1 - BETA1**t)
    share_m = lr * BETA1 / (1 - BETA1 ** (t + 1))
    p -= (share_g * g + share_m * m) / (np.sqrt(v) * (1 / math.sqrt(1 - BETA2**t)) + EPS)


def radam(t: int, p: Array, g: Array, m: Array, v: Array, *, lr: float) -> None:
    update_moments(g, m, v)
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    last = 2 / (1 - BETA2) - 1
    rho = last - 2 * t * BETA2**t / c2
    if rho <= 5:
        p -= lr / c1 * m
    else:
        r = math.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))
        p -= lr * r * math.sqrt(c2) / c1 * (m / (np.sqrt(v) + EPS))


def lion(t: int, p: Array, g: Array, m: Array, *, lr: float, weight_decay: float) -> None:
    p *= 1 - lr * weight_decay
    p -= lr * np.sign(BETA1 * m + (1 - BETA1) * g)
    m *= 0.99
    m += (1 - 0.99) * g


def lamb(t: int, p: Array, g: Array, m: Array, v: Array, *, lr: float, weight_decay: float, eps: float) -> None:
    update_moments(g, m, v)
    u = m * (1 / (1 - BETA1**t)) / (np.sqrt(v) * (1 / math.sqrt(1 - BETA2**t)) + eps)
    if is_weight(p):
        u += weight_decay * p
        lr *= float(np.linalg.norm(p) / np.linalg.norm(u))
    p -= lr * u


def lars(
    t: int, p: Array, g: Array, b: Array, *, lr: float, momentum: float, weight_decay: float, trust_coefficient: float
) -> None:
    if is_weight(p):
        g = g + weight_decay * p
        lr *= trust_coefficient * float(np.linalg.norm(p) / np.linalg.norm(g))
    b *= momentum
    b += lr * g
    p -= b


# -- The table of optimisers -------------------------------------------------------------------------------------------


def is_weight(p: Array) -> bool:
    """LAMB and LARS adapt the learning rate of weights to their norm, and let them decay; not so biases."""
    return p.ndim > 1


class Row(NamedTuple):
    """An optimiser, and the same in NumPy."""

    family: str
    make: Callable[..., optim.Optimizer]
    """Called with the parameters and `args`."""
    args: dict[str, float]
    numpy_update: Callable[..., None]
    """Called with `t`, a parameter, its gradient, its states, and `args`."""
    states: int
    """How many arrays the update keeps for each parameter; all begin as zeros."""
    gradient_at: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    """Given the optimiser, a `with` block in which the gradient is taken."""


PLAIN = "SGD and momentum"
ROOT = "Divided by the root of squared gradients"
ADAM = "Adam and its kin: momentum over root"
LAYER = "Sign of the momentum, norm of the layer"

# The learning rates were chosen by hand from a few for each, to train this network well in 30 epochs with seed 0,
# by the training loss and by the test accuracy. So this is no contest of optimisers.
# fmt: off
OPTIMIZERS = {
    "SGD": Row(PLAIN, optim.SGD, {"lr": 0.2}, sgd, 0),
    "Momentum": Row(PLAIN, optim.SGD, {"lr": 0.05, "momentum": 0.9}, momentum, 1),
    "Nesterov": Row(PLAIN, partial(optim.SGD, nesterov=True), {"lr": 0.05, "momentum": 0.9}, nesterov, 1),
    # Nesterov's own form: the gradient is taken ahead of the parameters.
    "Lookahead": Row(PLAIN, partial(optim.SGD, lr_in_momentum=True), {"lr": 0.05, "momentum": 0.9}, textbook_momentum,
                     1, optim.SGD.lookahead),
    "Adagrad": Row(ROOT, optim.Adagrad, {"lr": 0.02, "eps": 1e-10}, adagrad, 1),
    "RMSprop": Row(ROOT, optim.RMSprop, {"lr": 0.001, "alpha": 0.99}, rmsprop, 1),
    "Adadelta": Row(ROOT, optim.Adadelta, {"lr": 1.0, "rho": 0.9, "eps": 1e-6}, adadelta, 2),
    "Adam": Row(ADAM, optim.Adam, {"lr": 0.001}, adam, 2),
    "AMSGrad": Row(ADAM, partial(optim.Adam, amsgrad=True), {"lr": 0.001}, amsgrad, 3),
    "AdamW": Row(ADAM, optim.AdamW, {"lr": 0.001, "weight_decay": 0.1}, adamw, 2),
    "Adamax": Row(ADAM, optim.Adamax, {"lr": 0.004}, adamax, 2),
    # Infinity: the momentum is 0.9 from the first step on, which is the textbook's NAdam.
    "NAdam": Row(ADAM, partial(optim.NAdam, momentum_decay=math.inf), {"lr": 0.001}, nadam, 2),
    "RAdam": Row(ADAM, optim.RAdam, {"lr": 0.002}, radam, 2),
    "Lion": Row(LAYER, optim.Lion, {"lr": 0.0001, "weight_decay": 0.1}, lion, 1),
    "LAMB": Row(LAYER, partial(optim.LAMB, always_adapt=False, weight_decay_mask=is_weight),
                {"lr": 0.001, "weight_decay": 0.01, "eps": 1e-6}, lamb, 2),
    "LARS": Row(LAYER, partial(optim.LARS, always_adapt=False, weight_decay_mask=is_weight),
                {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "trust_coefficient": 0.02}, lars, 1),
}
# fmt: on


# -- The network -------------------------------------------------------------------------------------------------------


def new_layers(rng: np.random.Generator) -> Layers:
    """He et al. 2015: weights of variance 2 / inputs keep the size of what ReLU lets through."""
    return [
        {
            "w": (rng.standard_normal((inputs, outputs)) * math.sqrt(2 / inputs)).astype(np.float32),
            "b": np.zeros(outputs, np.float32),
        }
        for inputs, outputs in pairwise(SIZES)
    ]


def leaves(layers: Layers) -> list[Array]:
    return [array for layer in layers for array in layer.values()]


def forward(layers: Layers, x: Array) -> tuple[list[Array], Array]:
    """The input of each layer, and the logarithms of the probabilities of the digits, (images, 10)."""
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(np.maximum(inputs[-1] @ layer["w"] + layer["b"], 0))
    logits = inputs[-1] @ layers[-1]["w"] + layers[-1]["b"]
    logits -= logits.max(axis=1, keepdims=True)
    return inputs, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def loss(layers: Layers, x: Array, digits: NDArray[np.int64]) -> float:
    """Mean cross-entropy."""
    _, log_probs = forward(layers, x)
    return 0.0 - float(log_probs[np.arange(len(x)), digits].mean())  # 0 - x: never -0


def accuracy(layers: Layers, x: Array, digits: NDArray[np.int64]) -> float:
    _, log_probs = forward(layers, x)
    return float((log_probs.argmax(axis=1) == digits).mean())


def gradients(layers: Layers, x: Array, digits: NDArray[np.int64]) -> Layers:
    """The gradient of `loss`, layer by layer from the last to the first."""
    inputs, log_probs = forward(layers, x)
    delta = np.exp(log_probs)
    delta[np.arange(len(x)), digits] -= 1
    delta /= len(x)
    grads: Layers = []
    for layer, a in zip(reversed(layers), reversed(inputs), strict=True):
        grads.append({"w": a.T @ delta, "b": delta.sum(axis=0)})
        if a is not x:
            delta = (delta @ layer["w"].T) * (a > 0)
    return grads[::-1]


# -- Training ----------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Images of shape (images, 64) with values from 0 to 1, and the digits that they show."""

    x_train: Array
    x_test: Array
    y_train: NDArray[np.int64]
    y_test: NDArray[np.int64]


class Run(NamedTuple):
    """What training with one optimiser gave."""

    losses: list[float]
    """On all training images, before the first epoch and after each."""
    accuracy: float
    step_us: float
    numpy_us: float
    """Median microseconds per step."""
    difference: float
    """The largest between ironstep's and NumPy's parameters at the end, in units of the largest in the array."""


def load(seed: int) -> Data:
    x, digits = load_digits(return_X_y=True)
    split = train_test_split((x / 16).astype(np.float32), digits, test_size=0.2, random_state=seed, stratify=digits)
    return Data(*split)


def train(name: str, data: Data, epochs: int, seed: int) -> Run:
    row = OPTIMIZERS[name]
    rng = np.random.default_rng(seed)
    layers = new_layers(rng)
    opt = row.make(layers, **row.args)

    copies = [p.copy() for p in leaves(layers)]
    states = [[np.zeros_like(p) for _ in range(row.states)] for p in copies]

    def ironstep_step(t: int, grads: Layers, grad_leaves: list[Array]) -> None:
        opt.step(grads)

    def numpy_step(t: int, grads: Layers, grad_leaves: list[Array]) -> None:
        for p, g, state in zip(copies, grad_leaves, states, strict=True):
            row.numpy_update(t, p, g, *state, **row.args)

    both = (ironstep_step, numpy_step)
    times: dict[Callable[..., None], list[float]] = {step: [] for step in both}
    losses = [loss(layers, data.x_train, data.y_train)]
    t = 0
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(data.x_train))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            with row.gradient_at(opt):
                grads = gradients(layers, data.x_train[batch], data.y_train[batch])
            grad_leaves = leaves(grads)
            t += 1
            # They take turns to go first: the second finds the gradients in the cache.
            for step in both if t % 2 else both[::-1]:
                begin = time.perf_counter()
                step(t, grads, grad_leaves)
                times[step].append(time.perf_counter() - begin)
        losses.append(loss(layers, data.x_train, data.y_train))
        right = accuracy(layers, data.x_test, data.y_test)
        progress(
            f"{name:<10} epoch {epoch:>3}/{epochs}  loss {losses[-1]:.5f}  test accuracy {right:.1%}", epoch == epochs
        )

    difference = max(
        float(np.abs(p - copy).max() / np.abs(p).max()) for p, copy in zip(leaves(layers), copies, strict=True)
    )
    if not difference <= TOLERANCE:
        raise SystemExit(f"{name}: ironstep's parameters and NumPy's differ by {difference:.1e}, not {TOLERANCE}")
    return Run(losses, right, 1e6 * median(times[ironstep_step]), 1e6 * median(times[numpy_step]), difference)


def progress(line: str, last: bool) -> None:
    """On a terminal one line that changes; else only the last."""
    if sys.stdout.isatty():
        print(f"\r{line:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(line, flush=True)


# -- The report --------------------------------------------------------------------------------------------------------


def table(runs: dict[str, Run]) -> str:
    head = (
        f"{'optimiser':<10} {'lr':>7} {'accuracy':>9} {'loss':>8}  {'ironstep':>9}  {'NumPy':>9}  {'faster':>7}  "
        "parameters differ by"
    )
    lines = [head, "-" * len(head)]
    for name, run in runs.items():
        difference = f"{run.difference:.0e}" if run.difference else "0 (same bits)"
        lines.append(
            f"{name:<10} {OPTIMIZERS[name].args['lr']:>7g} {run.accuracy:>9.1%} {run.losses[-1]:>8.5f}  "
            f"{run.step_us:>6.1f} us  {run.numpy_us:>6.1f} us  {run.numpy_us / run.step_us:>5.1f} x  {difference}"
        )
    return "\n".join(lines)


def explanation(runs: dict[str, Run], steps: int) -> str:
    equal = sum(run.difference == 0 for run in runs.values())
    return f"""\
accuracy   on the test images, after the last epoch. No contest: the learning rates (lr) were chosen by hand, and with
           an eye on this number.
loss       mean cross-entropy on all training images, after the last epoch
ironstep   time of `opt.step(grads)`, its checks of the gradients included: median of {steps} steps
NumPy      time of the same update in plain NumPy, one parameter after the other, on a copy of the parameters that gets
           the same gradients: median of the same steps. The two took turns to go first. Not in either time: computing
           the gradients, and Lookahead's way to the point ahead and back.
faster     NumPy's time / ironstep's. It depends on the machine, on what else it does, and on the sizes of the arrays.
differ by  the largest difference at the end, in units of the largest parameter of the array

After {steps} steps NumPy's parameters were equal to ironstep's to the last bit for {equal} of {len(runs)} optimisers,
and to within {TOLERANCE:g} for all. (LAMB and LARS take norms, whose terms NumPy adds up in another order.)"""


# Okabe & Ito's colours, which colour-blind people can tell apart, without the yellow, which is too light for lines.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def spread(values: list[float], gap: float) -> list[float]:
    """The values, moved as little as it takes until any two are `gap` apart."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out = list(values)
    for _ in range(200):
        for low, high in pairwise(order):
            short = gap - (out[high] - out[low])
            if short > 0:
                out[low] -= short / 2
                out[high] += short / 2
    return out


def draw(runs: dict[str, Run], path: Path) -> None:
    """One panel for each family of optimisers, with all others in grey behind it."""
    curves = {name: np.maximum(run.losses, 1e-8) for name, run in runs.items()}
    families = list(dict.fromkeys(OPTIMIZERS[name].family for name in runs))
    epochs = max(len(curve) for curve in curves.values()) - 1
    bottom = min(curve.min() for curve in curves.values()) / 3
    top = max(curve.max() for curve in curves.values()) * 1.5

    figure = Figure(figsize=(16, 9), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    figure.suptitle(
        f"Training loss on scikit-learn's digits, {'-'.join(map(str, SIZES))} network, stepped by ironstep",
        fontsize=20,
        fontweight="bold",
    )
    columns = min(2, len(families))
    panels = figure.subplots(-(-len(families) // columns), columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, family in zip(panels, families, strict=False):
        members = [name for name in runs if OPTIMIZERS[name].family == family]
        for name in runs:
            if name not in members:
                panel.plot(curves[name], color="0.87", linewidth=1.2, zorder=1)
        ends = [math.log10(curves[name][-1]) for name in members]
        heights = spread(ends, gap=0.075 * math.log10(top / bottom))
        for name, height, colour, dashes in zip(members, heights, COLOURS, DASHES, strict=False):
            end = curves[name][-1]
            panel.plot(curves[name], color=colour, linestyle=dashes, linewidth=2.2, zorder=2)
            panel.plot([epochs, 1.035 * epochs], [end, 10**height], color=colour, linewidth=1, zorder=2)
            panel.text(1.045 * epochs, 10**height, name, color=colour, fontsize=14, fontweight="bold", va="center")
        panel.set_title(family, fontsize=16, loc="left")
        panel.set_yscale("log")
        panel.set_ylim(bottom, top)
        panel.set_xlim(0, 1.26 * epochs)
        panel.set_xticks(range(0, epochs + 1, -(-epochs // 6)))
        panel.tick_params(which="both", labelsize=13, labelbottom=True, labelleft=True)
        panel.grid(axis="y", color="0.93")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines["bottom"].set_bounds(0, epochs)
    for panel in list(panels)[len(families) :]:
        panel.set_visible(False)
    figure.supxlabel(
        "epoch" if len(families) == 1 else "epoch (in grey the optimisers of the other panels)", fontsize=15
    )
    figure.supylabel("mean cross-entropy on the training images (log scale)", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse(args: list[str] | None) -> argparse.Namespace:
    names = {name.lower(): name for name in OPTIMIZERS}
    parser = argparse.ArgumentParser(
        description="Train a small network on images of digits with every optimiser of ironstep, and time each beside "
        "plain NumPy."
    )
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="passes over the images (default: 30)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, batches and split (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where digits.png goes (default: demo)"
    )
    parser.add_argument(
        "--optimizers",
        type=str.lower,
        nargs="+",
        choices=names,
        default=list(names),
        metavar="NAME",
        help=f"which to run (default: all): {', '.join(names)}",
    )
    options = parser.parse_args(args)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must be from 0 to 2**32 - 1, got {options.seed}")
    options.optimizers = [name for name in OPTIMIZERS if name.lower() in options.optimizers]
    return options


def main(args: list[str] | None = None) -> None:
    options = parse(args)
    data = load(options.seed)
    arrays = leaves(new_layers(np.random.default_rng(0)))
    print(
        f"ironstep {ironstep.__version__} on up to {ironstep.get_num_threads()} threads, NumPy {np.__version__}; "
        f"{sum(p.size for p in arrays):,} float32 parameters in {len(arrays)} arrays; {len(data.x_train)} training and "
        f"{len(data.x_test)} test images; batches of {BATCH}"
    )
    # On matrices this small a second BLAS thread gains nothing, and waits so busily that it disturbs the steps' times.
    with threadpool_limits(1, user_api="blas"):
        runs = {name: train(name, data, options.epochs, options.seed) for name in options.optimizers}
    steps = options.epochs * -(-len(data.x_train) // BATCH)
    print(f"\n{table(runs)}\n\n{explanation(runs, steps)}\n")
    path = options.out / "digits.png"
    draw(runs, path)
    print(f"The loss curves: {path}")


if __name__ == "__main__":
    main()
