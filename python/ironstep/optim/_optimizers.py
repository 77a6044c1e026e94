"""The optimisers, in order of increasing complexity. The arithmetic is in the core, one rule per file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import _core
from ._base import LOOKAHEAD, Arrays, Optimizer, Options
from ._hyper import NOT_NEGATIVE, NOT_NEGATIVE_OR_INF, UNIT, ParamGroup, Scalar, at

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
]


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum in torch's form or the textbook's.

    With $g$ the gradient, $p$ the parameter, $\gamma$ = `lr`, $\mu$ = `momentum`, $\tau$ = `dampening`:

    $$b_t = \mu b_{t-1} + (1-\tau) g_t \quad (b_1 = g_1), \qquad p_t = p_{t-1} - \gamma b_t$$

    and with `nesterov` $p_t = p_{t-1} - \gamma (g_t + \mu b_t)$. Without momentum $p_t = p_{t-1} - \gamma g_t$.

    With `lr_in_momentum` the textbook's form (and Keras's): $v_t = \mu v_{t-1} - \gamma (1-\tau) g_t$,
    $p_t = p_{t-1} + v_t$, or with `nesterov` $p_t = p_{t-1} + \mu v_t - \gamma g_t$. The two forms differ when `lr`
    changes. Nesterov's original form takes the gradient ahead of the parameters: see `lookahead`.

    Order of operations: `pull = share * g` with `share` = $1-\tau$ or $\gamma(1-\tau)$, then `b = mu * b + pull`, and
    `p - lr * b`, `p - lr * (g + mu * b)`, `p + v` or `p + (mu * v - pull)`.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate. The textbook uses 0.01 to 0.1.
        momentum: Share of the velocity that is kept; 0 keeps no state. The textbook uses 0.9.
        dampening: Share of the gradient that is left out, except at the first step.
        weight_decay: See `Optimizer`.
        nesterov: Look ahead along the velocity; needs momentum and no dampening.
        lr_in_momentum: Keep the learning rate inside the velocity.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: `weight_decay_mask`, `max_norm`, `clip_value`, `nonfinite`, `ema_decay`, `master_weights`: see
            `Optimizer`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> opt = SGD(w, lr=0.25, momentum=0.5)
        >>> for _ in range(2):
        ...     _ = opt.step(w.copy())
        >>> w
        array([ 0.4375, -0.875 ])

    References:
        Robbins & Monro 1951; Polyak 1964; Nesterov 1983; Sutskever et al., On the importance of initialization and
        momentum in deep learning, ICML 2013.
    """

    _states = ("momentum_buffer",)
    _limits = {"dampening": UNIT}
    _function = "sgd_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-3,
        momentum: Scalar = 0.0,
        dampening: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        nesterov: bool = False,
        *,
        lr_in_momentum: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "lr_in_momentum": lr_in_momentum,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "momentum" if values["momentum"] != 0.0 else "sgd"

    @classmethod
    def _check(cls, values: Mapping[str, Any]) -> None:
        if values["nesterov"] and (values["momentum"] == 0.0 or values["dampening"] != 0.0):
            raise ValueError(
                "nesterov=True needs momentum above 0 and dampening 0, got "
                f"momentum={values['momentum']!r}, dampening={values['dampening']!r}"
            )

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        r"""A block in which the parameters are at the point where Nesterov 1983 takes the gradient.

        Inside, the parameters are $p + \mu v$ (with `lr_in_momentum`; else the same point, $p - \gamma\mu b$); after it
        they are what they were, to the bit. Compute the gradient inside, and `step` after. Needs `momentum` above 0,
        and `nesterov=False`, which is the approximation of this.

        Raises:
            ValueError: The optimiser has no momentum, or `nesterov=True`.
            RuntimeError: `step` is called inside.

        Example:
            >>> import numpy as np
            >>> w = np.array([1.0])
            >>> opt = SGD(w, lr=0.25, momentum=0.5, lr_in_momentum=True)
            >>> for _ in range(2):
            ...     with opt.lookahead():
            ...         grad = w.copy()
            ...     _ = opt.step(grad)
            >>> w
            array([0.46875])
        """
        for group in self._groups:
            if group.rule != "momentum" or group["nesterov"]:
                raise ValueError(f"lookahead needs momentum above 0 and nesterov=False, got {group!r}")
        self._enter(averaged=False)
        try:
            # Frozen groups do not move.
            active = [i for i, group in enumerate(self._groups) if not group.frozen]
            everything = zip(self._plan.params(), self._state["momentum_buffer"], self._leaf_groups(), strict=True)
            moving = [(leaf, buffer, active.index(i)) for leaf, buffer, i in everything if i in active]
            leaves = [leaf for leaf, _, _ in moving]
            saved = [leaf.copy(order="K") for leaf in leaves]
            arguments: list[tuple[int, bool, _core.Values, list[float]]] = []
            for group, done in ((self._groups[i], self._steps[i]) for i in active):
                lr, momentum = (at(name, group[name], done, group.limits[name]) for name in ("lr", "momentum"))
                values = _core.Values([lr, momentum, float(group["lr_in_momentum"])])
                arguments.append((done + 1, False, values, []))
            buffers, numbers = [buffer for _, buffer, _ in moving], [i for _, _, i in moving]
            plan = _core.Plan("lookahead", _core.Tree(leaves, "params"), [buffers], numbers)
            plan.step(saved, arguments, *_PLAIN)
            self._elsewhere = LOOKAHEAD
        finally:
            self._lock.release()
        try:
            yield
        finally:
            self._elsewhere = None
            for leaf, old in zip(leaves, saved, strict=True):
                leaf[...] = old


_PLAIN = (1.0, float("inf"), float("inf"), False, 0.0, False, False, None)
"""Nothing around the rule: what `Plan.step` takes after the groups."""


class Adagrad(Optimizer):
    r"""Adagrad: each element's step is divided by the root of the sum of its squared gradients.

    With $g$ the gradient, $\gamma_t$ = `lr` / (1 + (t - 1) `lr_decay`), $\epsilon$ = `eps`:

    $$s_t = s_{t-1} + g_t^2, \qquad p_t = p_{t-1} - \gamma_t\, g_t / (\sqrt{s_t} + \epsilon)$$

    Order of operations: `p - lr_t * (g / (sqrt(s) + eps))`. Defaults are torch's; the textbook uses `lr=0.01,
    eps=1e-8`, Keras and optax `initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True`.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        lr_decay: How fast the learning rate falls.
        weight_decay: See `Optimizer`.
        initial_accumulator_value: The first value of the state `sum`.
        eps: Keeps the division finite.
        eps_in_sqrt: Divide by $\sqrt{s_t + \epsilon}$ instead.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = Adagrad(w, lr=0.5, eps=0.0).step(w.copy())
        >>> w
        array([ 0.5, -1.5])

    References:
        Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 12, 2011.
    """

    _states = ("sum",)
    _limits = {"lr_decay": NOT_NEGATIVE, "initial_accumulator_value": NOT_NEGATIVE}
    _function = "adagrad_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-2,
        lr_decay: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Scalar = 1e-10,
        *,
        eps_in_sqrt: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "eps_in_sqrt": eps_in_sqrt,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "adagrad"

    def _fill(self, state: str, group: ParamGroup) -> float:
        return _first_value(group)


def _first_value(group: ParamGroup) -> float:
    return at("initial_accumulator_value", group["initial_accumulator_value"], 0, NOT_NEGATIVE)


class RMSprop(Optimizer):
    r"""RMSProp: each element's step is divided by the root of a moving average of its squared gradients.

    With $g$ the gradient, $\gamma$ = `lr`, $\alpha$ = `alpha`, $\epsilon$ = `eps`, $\mu$ = `momentum`:

    $$v_t = \alpha v_{t-1} + (1-\alpha) g_t^2, \qquad p_t = p_{t-1} - \gamma\, g_t / (\sqrt{v_t} + \epsilon)$$

    With `centered`, $v_t - a_t^2$ (not below 0) in the place of $v_t$, where $a_t = \alpha a_{t-1} + (1-\alpha) g_t$.
    With momentum, $b_t = \mu b_{t-1} + g_t / (\sqrt{v_t} + \epsilon)$ and $p_t = p_{t-1} - \gamma b_t$.

    Order of operations: `v = alpha * v + (1 - alpha) * (g * g)`, `p - lr * (g / (sqrt(v) + eps))`. Defaults are
    torch's; the textbook uses `lr=0.001, alpha=0.999, eps=1e-8`, Keras `lr=0.001, alpha=0.9, eps=1e-7,
    eps_in_sqrt=True, lr_in_momentum=True`, optax `alpha=0.9, eps_in_sqrt=True, lr_in_momentum=True`, TensorFlow's also
    `initial_accumulator_value=1.0, eps=1e-10`.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        alpha: Decay of the averages.
        eps: Keeps the division finite.
        weight_decay: See `Optimizer`.
        momentum: Share of the velocity that is kept; 0 keeps none.
        centered: Divide by an estimate of the standard deviation.
        eps_in_sqrt: Divide by $\sqrt{v_t + \epsilon}$ instead.
        lr_in_momentum: Keep the learning rate inside the velocity.
        initial_accumulator_value: The first value of the state `square_avg`.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = RMSprop(w, lr=0.5, alpha=0.75, eps=0.0).step(w.copy())
        >>> w
        array([ 0., -1.])

    References:
        Tieleman & Hinton, Coursera lecture 6.5, 2012; Graves, arXiv 1308.0850 (centred).
    """

    _states = ("square_avg", "grad_avg", "momentum_buffer")
    _limits = {"alpha": UNIT, "initial_accumulator_value": NOT_NEGATIVE}
    _function = "rmsprop_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-2,
        alpha: Scalar = 0.99,
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        momentum: Scalar = 0.0,
        centered: bool = False,
        *,
        eps_in_sqrt: bool = False,
        lr_in_momentum: bool = False,
        initial_accumulator_value: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "eps_in_sqrt": eps_in_sqrt,
                "lr_in_momentum": lr_in_momentum,
                "initial_accumulator_value": initial_accumulator_value,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return (
            ("centered_" if values["centered"] else "") + "rmsprop" + ("_momentum" if values["momentum"] != 0.0 else "")
        )

    def _fill(self, state: str, group: ParamGroup) -> float:
        return _first_value(group) if state == "square_avg" else 0.0


class Adadelta(Optimizer):
    r"""Adadelta: RMSProp with a step size that is itself an average of earlier steps.

    With $g$ the gradient, $\gamma$ = `lr`, $\rho$ = `rho`, $\epsilon$ = `eps`:

    $$v_t = \rho v_{t-1} + (1-\rho) g_t^2, \quad d_t = \frac{\sqrt{a_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t,
    \quad a_t = \rho a_{t-1} + (1-\rho) d_t^2, \quad p_t = p_{t-1} - \gamma d_t$$

    Order of operations: `d = sqrt(a + eps) / sqrt(v + eps) * g`, averages as in `RMSprop`.

    Args:
        params: Arrays, or a nest of them.
        lr: Scale of the step.
        rho: Decay of the averages.
        eps: Inside both roots.
        weight_decay: See `Optimizer`.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0])
        >>> opt = Adadelta(w, rho=0.75, eps=0.25)
        >>> _ = opt.step(w.copy())
        >>> w.round(4)
        array([0.2929])

    References:
        Zeiler, arXiv 1212.5701.
    """

    _states = ("square_avg", "acc_delta")
    _limits = {"rho": UNIT}
    _function = "adadelta_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1.0,
        rho: Scalar = 0.9,
        eps: Scalar = 1e-6,
        weight_decay: Scalar = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "adadelta"


class Adam(Optimizer):
    r"""Adam, and with `amsgrad` AMSGrad.

    With $g$ the gradient, $\gamma$ = `lr`, $\beta_1, \beta_2$ = `betas`, $\epsilon$ = `eps`:

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \quad
    p_t = p_{t-1} - \frac{\gamma}{1-\beta_1^t}\, \frac{m_t}{\sqrt{v_t} / \sqrt{1-\beta_2^t} + \epsilon}$$

    With `amsgrad`, $\max(v_1, \dots, v_t)$ in the place of $v_t$ (torch, Keras), and with `amsgrad_corrected`
    $\max_s v_s / (1-\beta_2^s)$ in the place of $v_t / (1-\beta_2^t)$ (optax). With `eps_hat` $\epsilon$ is added to
    $\sqrt{v_t}$ before it is corrected (Keras, ONNX).

    Order of operations, with the scalars in brackets computed in float64 and rounded once:
    `m = beta1 * m + (1 - beta1) * g`, `v = beta2 * v + (1 - beta2) * (g * g)`,
    `p - (lr / c1) * (m / (sqrt(v) * (1 / sqrt(c2)) + eps))`; with `eps_hat`
    `p - (lr * sqrt(c2) / c1) * (m / (sqrt(v) + eps))`.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate. The textbook's range is 3e-4 to 1e-3.
        betas: Decays of the two moments.
        eps: Keeps the division finite.
        weight_decay: See `Optimizer`.
        amsgrad: Never let the denominator's second moment fall.
        eps_hat: Where `eps` is added.
        bias_correction: Correct the moments for their start at 0.
        amsgrad_corrected: What the maximum is taken of.
        decoupled_weight_decay: See `Optimizer`; `AdamW` has it on.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = Adam(w, lr=0.5, eps=0.0).step(w.copy())
        >>> w
        array([ 0.5, -1.5])

    References:
        Kingma & Ba, arXiv 1412.6980; Reddi, Kale & Kumar, arXiv 1904.09237 (AMSGrad).
    """

    _states = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _function = "adam_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        amsgrad: bool = False,
        *,
        eps_hat: bool = False,
        bias_correction: bool = True,
        amsgrad_corrected: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "eps_hat": eps_hat,
                "bias_correction": bias_correction,
                "amsgrad_corrected": amsgrad_corrected,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "amsgrad" if values["amsgrad"] else "adam"

    @classmethod
    def _check(cls, values: Mapping[str, Any]) -> None:
        if values["amsgrad_corrected"] and (not values["amsgrad"] or values["eps_hat"]):
            raise ValueError("amsgrad_corrected=True needs amsgrad=True and eps_hat=False")


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay: `p * (1 - lr * weight_decay)` before Adam's step.

    $$p'_t = p_{t-1} (1 - \gamma\lambda), \qquad
    p_t = p'_t - \frac{\gamma}{1-\beta_1^t}\, \frac{m_t}{\sqrt{v_t} / \sqrt{1-\beta_2^t} + \epsilon}$$

    with $\gamma$ = `lr`, $\lambda$ = `weight_decay`, and the rest and the order of operations as in `Adam`. As in torch
    the decay is multiplied with the learning rate, unlike in the paper. Defaults are torch's; optax decays by 1e-4.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Keeps the division finite.
        weight_decay: Decoupled weight decay.
        amsgrad: As in `Adam`.
        eps_hat: As in `Adam`.
        bias_correction: As in `Adam`.
        amsgrad_corrected: As in `Adam`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = AdamW(w, lr=0.5, eps=0.0, weight_decay=0.5).step(w.copy())
        >>> w
        array([ 0.25, -1.  ])

    References:
        Loshchilov & Hutter, arXiv 1711.05101.
    """

    _states = Adam._states
    _fixed = {"decoupled_weight_decay": True}
    _function = "adamw_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 1e-2,
        amsgrad: bool = False,
        *,
        eps_hat: bool = False,
        bias_correction: bool = True,
        amsgrad_corrected: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "eps_hat": eps_hat,
                "bias_correction": bias_correction,
                "amsgrad_corrected": amsgrad_corrected,
                "maximize": maximize,
            },
            **options,
        )

    _rule = Adam._rule
    _check = Adam._check


class Adamax(Optimizer):
    r"""Adamax: Adam with the infinity norm in the place of the second moment.

    With $g$ the gradient, $\gamma$ = `lr`, $\beta_1, \beta_2$ = `betas`, $\epsilon$ = `eps`:

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \quad
    p_t = p_{t-1} - \frac{\gamma}{1-\beta_1^t}\, \frac{m_t}{u_t}$$

    Order of operations: `p - (lr / c1) * (m / u)`. The paper has no `eps`; torch's is used.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: Decays of the moment and of the norm.
        eps: Keeps the division finite.
        weight_decay: See `Optimizer`.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = Adamax(w, lr=0.5, eps=0.0).step(w.copy())
        >>> w
        array([ 0.5, -1.5])

    References:
        Kingma & Ba, arXiv 1412.6980, section 7.1.
    """

    _states = ("exp_avg", "exp_inf")
    _function = "adamax_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 2e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "adamax"


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov momentum, in torch's form.

    With $g$ the gradient, $\gamma$ = `lr`, $\beta_1, \beta_2$ = `betas`, $\epsilon$ = `eps`, $\psi$ = `momentum_decay`,
    moments $m_t, v_t$ as in `Adam`, $\mu_t = \beta_1 (1 - \tfrac12 0.96^{t\psi})$ and $P_t = \prod_{s \le t} \mu_s$:

    $$p_t = p_{t-1} - \gamma \left( \frac{1-\mu_t}{1-P_t}\, g_t + \frac{\mu_{t+1}}{1-P_t\mu_{t+1}}\, m_t \right) \Big/
    \left( \sqrt{v_t} / \sqrt{1-\beta_2^t} + \epsilon \right)$$

    Order of operations: `p - (a * g + b * m) / (sqrt(v) * (1 / sqrt(c2)) + eps)` with `a`, `b` computed in float64. The
    scalar state `mu_product` is $P_t$. `momentum_decay=1.0` is Keras's form, `math.inf` optax's, whose $\mu_t$ is
    $\beta_1$.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Keeps the division finite.
        weight_decay: See `Optimizer`.
        momentum_decay: How fast $\mu_t$ rises to $\beta_1$.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> opt = NAdam(w, lr=0.5, eps=0.0)
        >>> _ = opt.step(w.copy())
        >>> w.round(4)
        array([ 0.4718, -1.4718])

    References:
        Dozat, Incorporating Nesterov momentum into Adam, ICLR workshop 2016.
    """

    _states = ("exp_avg", "exp_avg_sq")
    _limits = {"momentum_decay": NOT_NEGATIVE_OR_INF}
    _function = "nadam_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 2e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        momentum_decay: Scalar = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "nadam"


class RAdam(Optimizer):
    r"""RAdam: Adam that waits until the second moment's variance is known well enough, in torch's form.

    With moments $m_t, v_t$ as in `Adam`, $\rho_\infty = 2/(1-\beta_2) - 1$ and
    $\rho_t = \rho_\infty - 2t\beta_2^t/(1-\beta_2^t)$: while $\rho_t \le 5$,
    $p_t = p_{t-1} - \frac{\gamma}{1-\beta_1^t} m_t$, and then

    $$p_t = p_{t-1} - \frac{\gamma\, r_t \sqrt{1-\beta_2^t}}{1-\beta_1^t}\, \frac{m_t}{\sqrt{v_t} + \epsilon}, \qquad
    r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}$$

    with $\gamma$ = `lr`, $\beta_1, \beta_2$ = `betas`, $\epsilon$ = `eps`. Order of operations: `p - s * (m / (sqrt(v)
    + eps))` with `s` computed in float64.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Keeps the division finite.
        weight_decay: See `Optimizer`.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0])
        >>> _ = RAdam(w, lr=0.5).step(w.copy())
        >>> w
        array([ 0.5, -1. ])

    References:
        Liu et al., On the variance of the adaptive learning rate and beyond, arXiv 1908.03265.
    """

    _states = ("exp_avg", "exp_avg_sq")
    _function = "radam_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "radam"


class Lion(Optimizer):
    r"""Lion: steps of the size `lr` in the direction of the sign of a momentum.

    With $g$ the gradient, $\gamma$ = `lr`, $\beta_1, \beta_2$ = `betas`, $\lambda$ = `weight_decay`:

    $$p_t = p_{t-1} (1 - \gamma\lambda) - \gamma\, \mathrm{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t), \qquad
    m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$$

    with sign(0) = 0. Use a learning rate 3 to 10 times smaller, and a weight decay as many times larger, than for
    `AdamW`.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: The momentum's share in the direction, and its decay.
        weight_decay: Decoupled by default. optax's default is 1e-3.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([1.0, -2.0, 0.0])
        >>> _ = Lion(w, lr=0.5).step(w.copy())
        >>> w
        array([ 0.5, -1.5,  0. ])

    References:
        Chen et al., Symbolic discovery of optimization algorithms, arXiv 2302.06675.
    """

    _states = ("exp_avg",)
    _function = "lion_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-4,
        betas: tuple[Scalar, Scalar] = (0.9, 0.99),
        weight_decay: Scalar = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "lion"


class LAMB(Optimizer):
    r"""LAMB: Adam's direction, scaled for each array to the norm of the parameter.

    With moments $m_t, v_t$ as in `Adam`, $\gamma$ = `lr`, $\lambda$ = `weight_decay`, $\epsilon$ = `eps`:

    $$u_t = \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t} / \sqrt{1-\beta_2^t} + \epsilon} + \lambda p_{t-1}, \qquad
    p_t = p_{t-1} - \gamma\, \frac{\|p_{t-1}\|}{\|u_t\|}\, u_t$$

    where the ratio is 1 if either norm is 0. Norms are over each array. Order of operations:
    `u = (m * (1 / c1)) / (sqrt(v) * (1 / sqrt(c2)) + eps) + weight_decay * p`, `p - (lr * ratio) * u`.

    Libraries differ: optax and the paper are the default; apex and timm have `always_adapt=False` and `max_norm=1.0`;
    timm's `trust_clip` is LAMBC; pytorch_optimizer has `max_param_norm=10.0, eps_in_ratio=True, bias_correction=False`
    and divides `lr` by $1-\beta_1^t$.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Keeps the division finite.
        weight_decay: Added to the direction before the norm is taken.
        bias_correction: Correct the moments for their start at 0.
        always_adapt: Also adapt arrays without weight decay, biases for example.
        trust_clip: Let the ratio be at most 1.
        max_param_norm: The norm of the parameter counts as at most this.
        eps_in_ratio: Add `eps` to $\|u_t\|$ too.
        weight_decay_in_ratio: False: decay is coupled or decoupled as in other optimisers, and no part of $u_t$.
        decoupled_weight_decay: See `Optimizer`; only if not in the ratio.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([3.0, -4.0])
        >>> _ = LAMB(w, lr=0.1, eps=0.0, weight_decay=0.0).step(w.copy())
        >>> w.round(4)
        array([ 2.6464, -3.6464])

    References:
        You et al., Large batch optimization for deep learning: training BERT in 76 minutes, arXiv 1904.00962.
    """

    _states = ("exp_avg", "exp_avg_sq")
    _limits = {"max_param_norm": NOT_NEGATIVE_OR_INF}
    _function = "lamb_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-6,
        weight_decay: Scalar = 1e-2,
        *,
        bias_correction: bool = True,
        always_adapt: bool = True,
        trust_clip: bool = False,
        max_param_norm: Scalar = float("inf"),
        eps_in_ratio: bool = False,
        weight_decay_in_ratio: bool = True,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
                "always_adapt": always_adapt,
                "trust_clip": trust_clip,
                "max_param_norm": max_param_norm,
                "eps_in_ratio": eps_in_ratio,
                "weight_decay_in_ratio": weight_decay_in_ratio,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "lamb"


class LARS(Optimizer):
    r"""LARS: momentum whose learning rate is scaled for each array to the norm of the parameter.

    With $g$ the gradient, $\gamma$ = `lr`, $\mu$ = `momentum`, $\lambda$ = `weight_decay`, $\eta$ =
    `trust_coefficient`, $\epsilon$ = `eps`:

    $$d_t = g_t + \lambda p_{t-1}, \quad r_t = \eta\, \frac{\|p_{t-1}\|}{\|d_t\| + \epsilon}, \quad
    b_t = \mu b_{t-1} + \gamma r_t d_t, \quad p_t = p_{t-1} - b_t$$

    where $r_t$ is 1 if either norm is 0. With `nesterov` $p_t = p_{t-1} - (\mu b_t + \gamma r_t d_t)$. This is optax's
    form, with its defaults; with `separate_norms` the denominator is the paper's, $\|g_t\| + \lambda\|p_{t-1}\| +
    \epsilon$.

    Args:
        params: Arrays, or a nest of them.
        lr: Learning rate.
        momentum: Share of the velocity that is kept.
        weight_decay: See `Optimizer`.
        trust_coefficient: Scale of the ratio.
        eps: Added to the ratio's denominator.
        nesterov: Look ahead along the velocity.
        always_adapt: Also adapt arrays without weight decay, biases for example.
        separate_norms: Which denominator the ratio has.
        lr_in_momentum: False: the learning rate is outside the velocity, as in torch's SGD.
        decoupled_weight_decay: See `Optimizer`.
        maximize: See `Optimizer`.
        options: As for `SGD`.

    Raises:
        ValueError: A hyperparameter is out of range, or two arrays overlap in memory.
        TypeError: A parameter is no array of floats.

    Example:
        >>> import numpy as np
        >>> w = np.array([3.0, -4.0])
        >>> _ = LARS(w, lr=0.5, trust_coefficient=0.5).step(w.copy())
        >>> w
        array([ 2.25, -3.  ])

    References:
        You, Gitman & Ginsburg, Large batch training of convolutional networks, arXiv 1708.03888.
    """

    _states = ("momentum_buffer",)
    _limits = {"trust_coefficient": NOT_NEGATIVE}
    _function = "lars_"

    def __init__(
        self,
        params: Arrays,
        lr: Scalar = 1.0,
        momentum: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        *,
        trust_coefficient: Scalar = 1e-3,
        eps: Scalar = 0.0,
        nesterov: bool = False,
        always_adapt: bool = True,
        separate_norms: bool = False,
        lr_in_momentum: bool = True,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "eps": eps,
                "nesterov": nesterov,
                "always_adapt": always_adapt,
                "separate_norms": separate_norms,
                "lr_in_momentum": lr_in_momentum,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            **options,
        )

    @classmethod
    def _rule(cls, values: Mapping[str, Any]) -> str:
        return "lars"
