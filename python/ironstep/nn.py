r"""Layers with their backward passes, as plain objects over NumPy arrays: no graph, no tape.

A layer holds its arrays in two dicts with the same keys, `params` and `grads`, and has two methods: `forward(x)` keeps
what the backward pass needs, `backward(grad)` takes the gradient of the loss with respect to the output, writes the
gradients of the parameters into `grads` and returns the gradient with respect to the input. Normalisation, dropout and
activations run in the core (`ironstep.functional`), the products of `Linear` and `Conv2d` in NumPy's BLAS, whose last
bits depend on the processor.

What to know about them:

- **Gradients are overwritten**, not accumulated, by each `backward`. The dicts and their arrays stay the same objects,
  so an optimiser made with `model.params` takes `model.grads` for ever. Set parameters in place (`params["weight"][...]
  = w`), do not put another array under the name.
- **The mode shows in the repr.** A new layer is in training mode; `train()` and `eval()` switch. `predict(x)` is always
  inference, whatever the mode, and keeps nothing: use it for validation and serving.
- A `forward` in eval mode keeps what `backward` needs too (fine-tuning with frozen statistics). A `backward` uses it
  up: each needs a `forward` of its own. Until then a layer refers to its input and output without copying them, so do
  not change these arrays in between.
- `state_dict()` and `load_state_dict()` use torch's names, so weights can be exchanged:
  `model.load_state_dict({name: tensor.numpy() for name, tensor in torch_model.state_dict().items()})`.
- **Seeds are explicit.** An int, or a generator: with one `rng = np.random.default_rng(0)` for the whole model, each
  layer draws its own numbers from it. Two layers with the same int start alike.

Gradients may also come from elsewhere, since an optimiser takes any nest of arrays. With JAX, where `loss` is a
function of a dict of arrays::

    grads = jax.grad(loss)(model.params, x, t)  # or autograd.grad, or {name: w.grad.numpy() ...} with torch
    opt.step(grads)

and a layer may be one part of such a program: `layer.backward(g)` is its vector-Jacobian product.

Example:
    >>> import numpy as np
    >>> from ironstep import functional, nn
    >>> from ironstep.optim import AdamW
    >>> rng = np.random.default_rng(0)
    >>> model = nn.Sequential(nn.Linear(2, 16, seed=rng), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2, seed=rng))
    >>> model
    Sequential(
      (0): Linear(2, 16) [train]
      (1): BatchNorm1d(16, eps=1e-05, momentum=0.1) [train]
      (2): ReLU() [train]
      (3): Linear(16, 2) [train]
    ) [train]
    >>> x = rng.normal(size=(64, 2)).astype(np.float32)
    >>> t = (x[:, 0] > x[:, 1]).astype(np.int64)
    >>> opt = AdamW(model.params, lr=0.05)
    >>> for _ in range(50):
    ...     loss, grad = functional.cross_entropy(model(x), t, return_grad=True)
    ...     _ = model.backward(grad)
    ...     _ = opt.step(model.grads)
    >>> bool(loss < 0.1)
    True
    >>> float(np.mean(model.predict(x).argmax(1) == t))
    1.0

References:
    He et al., Delving deep into rectifiers, arXiv 1502.01852. Glorot and Bengio, Understanding the difficulty of
    training deep feedforward neural networks, AISTATS 2010.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike

from . import functional
from .functional import _arrays
from .functional._arrays import FINITE, NOT_NEGATIVE, PROBABILITY, Array, compute, count, number

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "GELU",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "StochasticDepth",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
]

Seed: TypeAlias = "int | np.random.Generator"
Pair: TypeAlias = "int | tuple[int, int]"

FLOATS = ("float32", "float64", "float16", "bfloat16")
"""The types that layers take."""

BLAS = FLOATS[:2]
"""The types that NumPy's matrix products are fast in."""

SHOWN = ("eps", "momentum", "p", "seed")
"""Arguments that a repr has even where they are the default."""

COLUMNS = 1 << 18
"""About how many elements of unfolded image `Conv2d` has at a time: as many as stay in the cache."""


# -- Arguments ---------------------------------------------------------------------------------------------------------


def _shaped(array: Array, fits: bool, shape: str) -> None:
    if not fits:
        raise ValueError(f"input must have shape {shape}, got {array.shape}")


def _like_weight(input: Array, weight: Array) -> None:
    if input.dtype.name != weight.dtype.name:
        other = f", or make the layer with dtype=np.{input.dtype}" if input.dtype.name in BLAS else ""
        raise TypeError(
            f"input must be {weight.dtype} like the layer's weight, got {input.dtype}; use "
            f"input.astype(np.{weight.dtype}){other}"
        )


def _dtype(dtype: DTypeLike, types: Sequence[str] = FLOATS) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.name not in types or not dtype.isnative:
        raise TypeError(f"dtype must be {' or '.join(types)}, got {dtype}")
    return dtype


def _pair(name: str, value: Any, low: int = 1) -> tuple[int, int]:
    """Of height and width; one number stands for both."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or a pair of them, got {value!r}")
    return count(name, pair[0], low), count(name, pair[1], low)


def _axis(value: Any, rank: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"channel_axis must be an integer, got {value!r}")
    if not -rank < value < rank or value == 0:
        raise ValueError(f"channel_axis must be 1 to {rank - 1}, or -1 to -{rank - 1}, got {value}")
    return int(value)


def _generator(seed: Any) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(count("seed", seed, 0))


def _has_channels(input: Array, ranks: Sequence[int], channels: int, axis: int) -> None:
    """Checks an input of samples and channels, and 0 to 3 axes of space."""
    fits = input.ndim in ranks and -input.ndim <= axis < input.ndim and input.shape[axis] == channels
    _shaped(input, fits, " or ".join(_axes(rank, axis, channels) for rank in ranks))


def _axes(rank: int, axis: int, channels: object) -> str:
    axes = ["N", *("", "L", "HW", "DHW")[rank - 2]]
    axes.insert(axis % rank, str(channels))
    return f"({', '.join(axes)})"


# -- Initial values ----------------------------------------------------------------------------------------------------


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many inputs an output has, and how many outputs an input."""
    if len(shape) < 2:
        raise ValueError(f"shape must be (outputs, inputs, *kernel), got {tuple(shape)}")
    return math.prod(shape[1:]), shape[0] * math.prod(shape[2:])


def _uniform(shape: Sequence[int], bound: float, seed: Seed, dtype: DTypeLike) -> Array:
    return _generator(seed).uniform(-bound, bound, tuple(shape)).astype(_dtype(dtype))


def _normal(shape: Sequence[int], std: float, seed: Seed, dtype: DTypeLike) -> Array:
    return _generator(seed).normal(0.0, std, tuple(shape)).astype(_dtype(dtype))


def _fan(shape: Sequence[int], mode: str) -> int:
    fans = dict(zip(("fan_in", "fan_out"), _fans(shape), strict=True))
    if mode not in fans:
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return fans[mode]


def kaiming_uniform(
    shape: Sequence[int],
    *,
    gain: float = math.sqrt(2.0),
    mode: str = "fan_in",
    seed: Seed,
    dtype: DTypeLike = np.float32,
) -> Array:
    r"""Weights for layers with ReLU (He): uniform, so that the size of activations stays the same from layer to layer.

    $$w \sim U(-b, b), \qquad b = g \sqrt{3 / n}$$

    with $g$ = `gain`, and $n$ the number of inputs of an output (`mode="fan_in"`) or of outputs of an input
    (`"fan_out"`, which keeps the size of gradients).

    Args:
        shape: (outputs, inputs, *kernel), as `Linear` and `Conv2d` have it.
        gain: sqrt(2) is for ReLU; sqrt(2 / (1 + a^2)) for a leaky one with slope a, 1 for none.
        mode: "fan_in" or "fan_out".
        seed: An int or a generator.
        dtype: Of the result. The numbers are drawn in float64.

    Returns:
        A new array.

    Raises:
        ValueError: The shape has less than two axes, or the mode is unknown.

    Example:
        >>> from ironstep import nn
        >>> w = nn.kaiming_uniform((4, 6), seed=0)
        >>> w.shape, bool(abs(w).max() < 1)
        ((4, 6), True)

    References:
        He et al., Delving deep into rectifiers, arXiv 1502.01852.
    """
    return _uniform(shape, gain * math.sqrt(3.0 / _fan(shape, mode)), seed, dtype)


def kaiming_normal(
    shape: Sequence[int],
    *,
    gain: float = math.sqrt(2.0),
    mode: str = "fan_in",
    seed: Seed,
    dtype: DTypeLike = np.float32,
) -> Array:
    r"""As `kaiming_uniform`, from the normal distribution with the standard deviation $g / \sqrt n$.

    Args:
        shape: See `kaiming_uniform`, as all others.
        gain: $g$.
        mode: "fan_in" or "fan_out".
        seed: An int or a generator.
        dtype: Of the result.

    Returns:
        A new array.

    Example:
        >>> from ironstep import nn
        >>> nn.kaiming_normal((8, 3, 3, 3), seed=0).shape
        (8, 3, 3, 3)
    """
    return _normal(shape, gain / math.sqrt(_fan(shape, mode)), seed, dtype)


def xavier_uniform(shape: Sequence[int], *, gain: float = 1.0, seed: Seed, dtype: DTypeLike = np.float32) -> Array:
    r"""Weights for layers with tanh or no activation (Glorot): uniform, a middle way for activations and gradients.

    $$w \sim U(-b, b), \qquad b = g \sqrt{6 / (n_\mathrm{in} + n_\mathrm{out})}$$

    with $g$ = `gain`, $n_\mathrm{in}$ the inputs of an output and $n_\mathrm{out}$ the outputs of an input.

    Args:
        shape: (outputs, inputs, *kernel), as `Linear` and `Conv2d` have it.
        gain: 1, or 5/3 for tanh as torch recommends.
        seed: An int or a generator.
        dtype: Of the result. The numbers are drawn in float64.

    Returns:
        A new array.

    Raises:
        ValueError: The shape has less than two axes.

    Example:
        >>> from ironstep import nn
        >>> bool(abs(nn.xavier_uniform((4, 2), seed=0)).max() < 1)
        True

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.
    """
    return _uniform(shape, gain * math.sqrt(6.0 / sum(_fans(shape))), seed, dtype)


def xavier_normal(shape: Sequence[int], *, gain: float = 1.0, seed: Seed, dtype: DTypeLike = np.float32) -> Array:
    r"""As `xavier_uniform`, normal with the standard deviation $g \sqrt{2 / (n_\mathrm{in} + n_\mathrm{out})}$.

    Args:
        shape: See `xavier_uniform`, as all others.
        gain: $g$.
        seed: An int or a generator.
        dtype: Of the result.

    Returns:
        A new array.

    Example:
        >>> from ironstep import nn
        >>> nn.xavier_normal((4, 2), seed=0).dtype
        dtype('float32')
    """
    return _normal(shape, gain * math.sqrt(2.0 / sum(_fans(shape))), seed, dtype)


INITS: dict[str, Callable[..., Array]] = {
    "kaiming_uniform": kaiming_uniform,
    "kaiming_normal": kaiming_normal,
    "xavier_uniform": xavier_uniform,
    "xavier_normal": xavier_normal,
}


# -- What all layers share ---------------------------------------------------------------------------------------------


class Layer:
    """What all layers share. Make a layer of your own by writing `compute` and `differentiate`.

    Attributes:
        params: The parameters by name.
        grads: Their gradients, with the same keys: the same arrays for ever, overwritten by each `backward`.
        buffers: Other arrays that belong to the state, such as running statistics.
        training: The mode.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> class Tanh(nn.Layer):
        ...     def compute(self, input, save):
        ...         output = np.tanh(input)
        ...         return output, output
        ...
        ...     def differentiate(self, grad_output, saved):
        ...         return grad_output * (1 - saved * saved)
        >>> layer = Tanh().eval()
        >>> layer
        Tanh() [eval]
        >>> layer(np.zeros(2)), layer.backward(np.ones(2))
        (array([0., 0.]), array([1., 1.]))
    """

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.training = True
        self._saved: tuple[tuple[int, ...], str, Any] | None = None

    def add_param(self, name: str, array: Array) -> None:
        """Makes an array a parameter of this layer, with a gradient of zeros.

        Args:
            name: The key in `params` and `grads`.
            array: The array itself is used, not a copy.
        """
        self.params[name] = array
        self.grads[name] = np.zeros_like(array)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The layer itself, for classes to write; `forward` and `predict` call it.

        Args:
            input: The input.
            save: False for inference (`predict`): then nothing is kept, and no buffer changes, whatever the mode.

        Returns:
            The output, and what `differentiate` needs.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method compute(input, save)")

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """The derivative, for classes to write; `backward` calls it.

        Args:
            grad_output: The gradient with respect to the output, of its shape and dtype. Not to be changed.
            saved: What `compute` gave.

        Returns:
            The gradient with respect to the input. Those of the parameters go into `grads`.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method differentiate(grad_output, saved)")

    def forward(self, input: Array) -> Array:
        """The output, in the mode that the layer is in. Keeps what `backward` needs.

        Args:
            input: An array of float32, float64, float16 or bfloat16, or an object that NumPy can take as one.

        Returns:
            The output, with the dtype of the input.

        Raises:
            ValueError: The input has another shape than the layer takes.
            TypeError: It is no array, or of another dtype.
        """
        output, saved = self.compute(_arrays.array(input, "input"), True)
        self._saved = output.shape, output.dtype.name, saved
        return output

    def __call__(self, input: Array) -> Array:
        """As `forward`."""
        return self.forward(input)

    def predict(self, input: Array) -> Array:
        """The output in inference mode, whatever the mode of the layer, which stays as it is. Keeps nothing.

        Args:
            input: As for `forward`.

        Returns:
            The output.
        """
        return self.compute(_arrays.array(input, "input"), False)[0]

    def backward(self, grad_output: Array) -> Array:
        """Overwrites `grads` with the gradients of the parameters.

        Args:
            grad_output: The gradient with respect to what the last `forward` returned, of its shape and dtype.

        Returns:
            The gradient with respect to the input.

        Raises:
            RuntimeError: There was no `forward` since the last `backward`.
            ValueError: The gradient has another shape than the output.
            TypeError: It has another dtype, or is no array.
        """
        if self._saved is None:
            raise RuntimeError(
                f"backward of {type(self).__name__} must follow a forward of its own: a backward uses up what forward "
                "kept, and predict keeps nothing"
            )
        shape, dtype, saved = self._saved
        grad_output = _arrays.array(grad_output, "grad_output")
        if grad_output.shape != shape:
            raise ValueError(f"grad_output must have shape {shape} like the output, got {grad_output.shape}")
        if grad_output.dtype.name != dtype:
            raise TypeError(f"grad_output must be {dtype} like the output, got {grad_output.dtype}; use astype")
        self._saved = None
        return self.differentiate(grad_output, saved)

    def train(self, mode: bool = True) -> Self:
        """Switches to training mode: statistics of the batch, dropout.

        Args:
            mode: False is `eval()`.

        Returns:
            The layer itself.
        """
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switches to inference mode: running statistics, no dropout.

        Returns:
            The layer itself.
        """
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and buffers, under torch's names.

        Returns:
            A dict for `load_state_dict`. `np.savez(path, **state_dict)` and `np.load(path)` keep it in a file.

        Example:
            >>> from ironstep import nn
            >>> list(nn.BatchNorm1d(2).state_dict())
            ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
        """
        return {name: array.copy() for name, array in (self.params | self.buffers).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies what `state_dict` gave, or what torch's did, into the arrays of this layer.

        Args:
            state_dict: Arrays by name, of the same shapes and dtypes.

        Raises:
            ValueError: A name is missing or unknown, or a shape is another one. Nothing was changed.
            TypeError: A dtype is another one. Nothing was changed.

        Example:
            A part of it, the rest stays:

            >>> import numpy as np
            >>> from ironstep import nn
            >>> norm = nn.LayerNorm(2)
            >>> norm.load_state_dict(norm.state_dict() | {"bias": np.ones(2, np.float32)})
            >>> norm.params
            {'weight': array([1., 1.], dtype=float32), 'bias': array([1., 1.], dtype=float32)}
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict of arrays, got {type(state_dict).__name__}")
        own = self.params | self.buffers
        if missing := [name for name in own if name not in state_dict]:
            raise ValueError(
                f"state_dict must have all names of this layer, but lacks {', '.join(map(repr, missing))}; "
                "model.state_dict() | state_dict keeps the layer's own"
            )
        if unknown := [name for name in state_dict if name not in own]:
            raise ValueError(f"state_dict has names that this layer lacks: {', '.join(map(repr, unknown))}")
        # Copies, because they may be arrays of this layer under other names.
        values = {name: np.array(_arrays.unmasked(state_dict[name], f"state_dict[{name!r}]")) for name in own}
        for name, array in own.items():
            if values[name].dtype.str == "|V2" and array.dtype.name == "bfloat16":
                values[name] = values[name].view(array.dtype)  # np.load knows no bfloat16
        for name, array in own.items():
            if values[name].shape != array.shape:
                raise ValueError(f"state_dict[{name!r}] must have shape {array.shape}, got {values[name].shape}")
            if values[name].dtype.name != array.dtype.name:
                raise TypeError(f"state_dict[{name!r}] must be {array.dtype}, got {values[name].dtype}; use astype")
        for name, array in own.items():
            array[...] = values[name]

    def _arguments(self) -> str:
        """What the repr has in its parentheses: what must be given, `SHOWN`, and what is not the default."""
        shown = []
        for name, argument in inspect.signature(type(self)).parameters.items():
            if (value := getattr(self, name, inspect.Parameter.empty)) is inspect.Parameter.empty:
                continue
            text = value.name if isinstance(value, np.dtype) else repr(value)
            default = (argument.default,) * 2 if isinstance(value, tuple) else argument.default
            if name not in SHOWN and argument.default is inspect.Parameter.empty:
                shown.append(text)
            elif name in SHOWN or value != default:
                shown.append(f"{name}={text}")
        return ", ".join(shown)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._arguments()}) [{'train' if self.training else 'eval'}]"

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles begin without a forward.
        return vars(self) | {"_saved": None}


# -- Layers of layers --------------------------------------------------------------------------------------------------


class Sequential(Layer):
    """Layers one after the other.

    `params`, `grads`, `buffers` and `state_dict()` have those of all layers, with the number of the layer before the
    name, as in torch: `0.weight`. `model[0]`, `model[:2]`, `len(model)` and `for layer in model` work; a slice shares
    the layers.

    Args:
        layers: The layers. `train()` and `eval()` switch all of them.

    Raises:
        TypeError: One is no `Layer`.
        ValueError: A layer with parameters stands at two places, or two dropout layers have the same seed and would
            drop the same elements.

    Example:
        >>> from ironstep import nn
        >>> model = nn.Sequential(nn.Linear(4, 8, seed=1), nn.GELU(), nn.Linear(8, 2, seed=2))
        >>> list(model.params)
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> model.eval()[1]
        GELU() [eval]
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self._layers = layers
        self._seeds: list[int] = []
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {i} must be a Layer, got {layer!r}")
            for own, others in ((self.params, layer.params), (self.grads, layer.grads), (self.buffers, layer.buffers)):
                own.update((f"{i}.{name}", array) for name, array in others.items())
            self._seeds += getattr(layer, "_seeds", [])
        arrays = [id(array) for array in self.params.values()]
        if len(set(arrays)) < len(arrays):
            raise ValueError("each layer with parameters must stand at one place only, but one is given twice")
        if len(set(self._seeds)) < len(self._seeds):
            raise ValueError(
                f"dropout layers must have different seeds, or they drop the same elements, got {self._seeds}; one "
                "generator for all gives each its own: rng = np.random.default_rng(0), seed=rng"
            )

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """One layer after the other."""
        saved = []
        for layer in self._layers:
            input, kept = layer.compute(input, save)
            if save:
                saved.append(kept)
            del kept  # Inference holds one input and one output at a time.
        return input, saved

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """The last layer first. Each frees what it kept."""
        for layer in reversed(self._layers):
            grad_output = layer.differentiate(grad_output, saved.pop())
        return grad_output

    def train(self, mode: bool = True) -> Self:
        """As for any layer, and for all in it."""
        for layer in self._layers:
            layer.train(mode)
        return super().train(mode)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequential:
        return Sequential(*self._layers[index]) if isinstance(index, slice) else self._layers[index]

    def _arguments(self) -> str:
        lines = "".join(f"\n({i}): {layer!r}" for i, layer in enumerate(self))
        return lines.replace("\n", "\n  ") + "\n" if lines else ""


class Residual(Sequential):
    """A shortcut around layers: `x + f(x)`, with `f` the layers one after the other.

    Args:
        layers: As for `Sequential`. The output must have the shape of the input.

    Raises:
        ValueError: In `forward`, if the shapes differ.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> block = nn.Residual(nn.ReLU())
        >>> block(np.array([[-1.0, 2.0]])), block.backward(np.array([[1.0, 1.0]]))
        (array([[-1.,  4.]]), array([[1., 2.]]))

    References:
        He et al., Deep residual learning for image recognition, arXiv 1512.03385.
    """

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The layers and the sum."""
        output, saved = super().compute(input, save)
        if output.shape != input.shape:
            raise ValueError(
                f"the layers of Residual must keep the shape of their input, {input.shape}, got {output.shape}"
            )
        return input + output, saved

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """Both ways added."""
        return grad_output + super().differentiate(grad_output, saved)


# -- Products ----------------------------------------------------------------------------------------------------------


class _Product(Layer):
    """A layer with a weight and a bias, with one of the initial values."""

    def _begin(self, shape: tuple[int, ...], bias: bool, init: str, seed: Seed, dtype: DTypeLike) -> None:
        self.dtype = _dtype(dtype, BLAS)
        rng = _generator(seed)
        if init == "torch":
            bound = 1.0 / math.sqrt(_fans(shape)[0])
            self.add_param("weight", _uniform(shape, bound, rng, self.dtype))
        elif init in INITS:
            bound = 0.0
            self.add_param("weight", INITS[init](shape, seed=rng, dtype=self.dtype))
        else:
            raise ValueError(f"init must be 'torch', {', '.join(map(repr, INITS))}, got {init!r}")
        if bias:
            self.add_param("bias", _uniform(shape[:1], bound, rng, self.dtype))


class Linear(_Product):
    r"""A fully connected layer: $y = x W^T + b$.

    Args:
        in_features: Length of the last axis of the input.
        out_features: Length of the last axis of the output.
        bias: Whether there is a $b$.
        init: "torch": weight and bias uniform within 1/sqrt(in_features), as torch begins. "kaiming_uniform",
            "kaiming_normal" (He, for ReLU), "xavier_uniform", "xavier_normal" (Glorot): the functions of these names,
            and a bias of zeros.
        seed: An int or a generator.
        dtype: float32 or float64. The input must have the same.

    Raises:
        ValueError: A size is below 1, or `init` is unknown.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> layer = nn.Linear(3, 2, seed=0)
        >>> layer(np.ones((4, 3), np.float32)).shape
        (4, 2)
        >>> layer(np.ones((4, 3)))
        Traceback (most recent call last):
            ...
        TypeError: input must be float32 like the layer's weight, got float64; use input.astype(np.float32), or make the
        layer with dtype=np.float64
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: str = "torch",
        seed: Seed,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_features = count("in_features", in_features)
        self.out_features = count("out_features", out_features)
        self.bias = bool(bias)
        self._begin((self.out_features, self.in_features), bias, init, seed, dtype)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The product."""
        weight = self.params["weight"]
        _shaped(input, input.shape[-1:] == (self.in_features,), f"(..., {self.in_features})")
        _like_weight(input, weight)
        rows = input.reshape(-1, self.in_features)
        output = rows @ weight.T
        if "bias" in self.params:
            output += self.params["bias"]
        return output.reshape(*input.shape[:-1], self.out_features), rows

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """Two products and a sum."""
        grad = grad_output.reshape(-1, self.out_features)
        np.matmul(grad.T, saved, out=self.grads["weight"])
        if "bias" in self.grads:
            # In float64: NumPy adds row after row, and a float32 sum of a million of them is off by a percent.
            self.grads["bias"][...] = np.sum(grad, axis=0, dtype=np.float64)
        return (grad @ self.params["weight"]).reshape(*grad_output.shape[:-1], self.in_features)


def _padded(input: Array, padding: tuple[int, int], fill: float) -> Array:
    """(N, C, H, W) with a border."""
    if padding == (0, 0):
        return input
    (n, c, h, w), (ph, pw) = input.shape, padding
    padded = np.full((n, c, h + 2 * ph, w + 2 * pw), fill, input.dtype)
    padded[:, :, ph : ph + h, pw : pw + w] = input
    return padded


class _Window(_Product):
    """A layer that moves a window over images (N, C, H, W)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    def _output_size(self, input: Array) -> tuple[int, int]:
        """Height and width: how many places the window has."""
        spaces = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in spaces)
        if height < 1 or width < 1:
            raise ValueError(
                f"input must be at least as large as the window of {self} with its padding, got shape {input.shape}"
            )
        return height, width

    def _taps(self, padded: Array, height: int, width: int) -> Iterator[Array]:
        """For each element of the window, in C order, a view of what it sees at all places."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        for i in range(self.kernel_size[0]):
            for j in range(self.kernel_size[1]):
                top, left = i * dh, j * dw
                yield padded[:, :, top : top + sh * (height - 1) + 1 : sh, left : left + sw * (width - 1) + 1 : sw]


class Conv2d(_Window):
    r"""A two-dimensional convolution (in truth, as everywhere, a cross-correlation).

    $$y_{n,o,i,j} = b_o + \sum_{c,k,l} W_{o,c,k,l}\; x_{n,c,\; s i + d k - p,\; s j + d l - p}$$

    with $s$ = `stride`, $d$ = `dilation`, $p$ = `padding`, and $x$ = 0 outside the image. Some images at a time are
    unfolded and multiplied by NumPy's BLAS.

    Args:
        in_channels: Channels of the input (N, C, H, W).
        out_channels: Channels of the output.
        kernel_size: Height and width of the window; one int for both, as in the next three.
        stride: How far the window moves.
        padding: Zeros added on each side.
        dilation: Distance of the window's elements.
        bias: Whether there is a $b$.
        init: As for `Linear`.
        seed: An int or a generator.
        dtype: float32 or float64. The input must have the same.

    Raises:
        ValueError: A size is out of range, or `init` is unknown.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> layer = nn.Conv2d(3, 8, 3, stride=2, padding=1, seed=0)
        >>> layer
        Conv2d(3, 8, (3, 3), stride=(2, 2), padding=(1, 1)) [train]
        >>> layer(np.ones((4, 3, 32, 32), np.float32)).shape
        (4, 8, 16, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = True,
        *,
        init: str = "torch",
        seed: Seed,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_channels = count("in_channels", in_channels)
        self.out_channels = count("out_channels", out_channels)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = _pair("stride", stride)
        self.padding = _pair("padding", padding, 0)
        self.dilation = _pair("dilation", dilation)
        self.bias = bool(bias)
        self._begin((self.out_channels, self.in_channels, *self.kernel_size), bias, init, seed, dtype)

    def _columns(self, images: Array, height: int, width: int) -> Array:
        """For some images what the window sees at each place: (N, C * kernel, places)."""
        n, c = images.shape[:2]
        columns = np.empty((n, c, math.prod(self.kernel_size), height, width), images.dtype)
        for k, tap in enumerate(self._taps(_padded(images, self.padding, 0.0), height, width)):
            columns[:, :, k] = tap
        return columns.reshape(n, -1, height * width)

    def _parts(self, n: int, height: int, width: int) -> Iterator[slice]:
        """Some images at a time."""
        step = max(1, COLUMNS // (self.in_channels * math.prod(self.kernel_size) * height * width))
        return (slice(start, start + step) for start in range(0, n, step))

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The convolution."""
        weight = self.params["weight"].reshape(self.out_channels, -1)
        _has_channels(input, [4], self.in_channels, 1)
        _like_weight(input, weight)
        height, width = self._output_size(input)
        output = np.empty((len(input), self.out_channels, height, width), weight.dtype)
        for part in self._parts(len(input), height, width):
            columns = self._columns(input[part], height, width)
            np.matmul(weight, columns, out=output[part].reshape(-1, self.out_channels, height * width))
        if "bias" in self.params:
            output += self.params["bias"][:, None, None]
        return output, input

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """The unfolded images once more, and the way back from the columns to them."""
        weight = self.params["weight"].reshape(self.out_channels, -1)
        grad_weight = self.grads["weight"].reshape(weight.shape)
        grad_weight[...] = 0.0
        grad_input = np.empty(saved.shape, weight.dtype)
        (n, c, h, w), (ph, pw), (height, width) = saved.shape, self.padding, grad_output.shape[2:]
        for part in self._parts(n, height, width):
            grad = grad_output[part].reshape(-1, self.out_channels, height * width)
            columns = self._columns(saved[part], height, width)
            grad_weight += (grad @ columns.swapaxes(1, 2)).sum(axis=0)
            np.matmul(weight.T, grad, out=columns)
            parts = columns.reshape(len(grad), c, -1, height, width)
            padded = np.zeros((len(grad), c, h + 2 * ph, w + 2 * pw), weight.dtype)
            for k, tap in enumerate(self._taps(padded, height, width)):
                tap += parts[:, :, k]
            grad_input[part] = padded[:, :, ph : ph + h, pw : pw + w]
        if "bias" in self.grads:
            self.grads["bias"][...] = np.sum(grad_output, axis=(0, 2, 3), dtype=np.float64)
        return grad_input


# -- Pooling and shapes ------------------------------------------------------------------------------------------------


class MaxPool2d(_Window):
    """The largest element in each window of images (N, C, H, W).

    NaN is the largest of all; a maximum of -0 becomes 0. The gradient goes to the first of equal elements, as in torch.

    Args:
        kernel_size: Height and width of the window; one int for both, as in the next two.
        stride: How far the window moves; `kernel_size` if None.
        padding: Border of minus infinity on each side, at most half of the window.

    Raises:
        ValueError: A size is out of range.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> pool = nn.MaxPool2d(2)
        >>> pool(np.arange(8.0).reshape(1, 1, 2, 4))
        array([[[[5., 7.]]]])
        >>> pool.backward(np.ones((1, 1, 1, 2)))
        array([[[[0., 0., 0., 0.],
                 [0., 1., 0., 1.]]]])
    """

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        super().__init__()
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else _pair("stride", stride)
        self.padding = _pair("padding", padding, 0)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size={kernel_size}, got {padding}")

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """A maximum that runs over the window's elements."""
        _shaped(input, input.ndim == 4, "(N, C, H, W)")
        height, width = self._output_size(input)
        (kh, kw), (sh, sw), (ph, pw) = self.kernel_size, self.stride, self.padding
        # Where all are minus infinity, the first that is not in the border.
        top, left = np.maximum(0, ph - sh * np.arange(height)), np.maximum(0, pw - sw * np.arange(width))
        which = np.empty((*input.shape[:2], height, width), np.min_scalar_type(kh * kw - 1))
        which[...] = top[:, None] * kw + left
        output = np.full(which.shape, -np.inf, input.dtype)
        with np.errstate(invalid="ignore"):
            for k, tap in enumerate(self._taps(_padded(input, self.padding, -np.inf), height, width)):
                larger = (tap > output) | (tap != tap)  # NaN is larger.
                np.maximum(output, tap, out=output)
                np.maximum(which, larger * which.dtype.type(k), out=which)
        output += 0.0  # Of -0 and 0 some processors take the one, some the other.
        return output, (which, input.shape)

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """To the elements that were chosen."""
        which, (n, c, h, w) = saved
        ph, pw = self.padding
        padded = np.zeros((n, c, h + 2 * ph, w + 2 * pw), grad_output.dtype)
        zero = padded.dtype.type(0)
        for k, tap in enumerate(self._taps(padded, *which.shape[2:])):
            tap += np.where(which == k, grad_output, zero)
        return padded[:, :, ph : ph + h, pw : pw + w]


class GlobalAvgPool2d(Layer):
    """The mean of each channel of images: (N, C, H, W) to (N, C).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.GlobalAvgPool2d()(np.arange(4.0).reshape(1, 1, 2, 2))
        array([[1.5]])
    """

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The mean."""
        _shaped(input, input.ndim == 4 and input.shape[2] * input.shape[3] > 0, "(N, C, H, W)")
        return input.mean(axis=(2, 3), dtype=compute(input.dtype)).astype(input.dtype), input.shape

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """An equal share for each pixel."""
        share = grad_output.astype(compute(grad_output.dtype)) / (saved[2] * saved[3])
        grad_input = np.empty(saved, grad_output.dtype)
        grad_input[...] = share[:, :, None, None]
        return grad_input


class Flatten(Layer):
    """All axes after the first made one: (N, ...) to (N, M). A view where NumPy can make one.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.Flatten()(np.ones((2, 3, 4))).shape
        (2, 12)
    """

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The other shape."""
        _shaped(input, input.ndim >= 1, "(N, ...)")
        return input.reshape(len(input), math.prod(input.shape[1:])), input.shape

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """The old shape."""
        return grad_output.reshape(saved)


# -- Activations -------------------------------------------------------------------------------------------------------


class ReLU(Layer):
    """The larger of 0 and the input: see `ironstep.functional.relu`.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.ReLU()(np.array([-1.0, 2.0]))
        array([0., 2.])
    """

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The larger one. Kept is the output, which the next layer keeps as well."""
        output = functional.relu(input)
        return output, output

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """The gradient where the output is above 0."""
        return functional.relu_backward(grad_output, saved)


class GELU(Layer):
    """The input times the probability that a normal number is below it: see `ironstep.functional.gelu`.

    Args:
        approximate: "none", or "tanh" for the approximation of the original BERT and GPT-2.

    Raises:
        ValueError: `approximate` is something else.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.GELU()(np.array([0.0, 1.0])).round(4)
        array([0.    , 0.8413])
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """The function."""
        return functional.gelu(input, self.approximate), input

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """Its derivative."""
        return functional.gelu_backward(grad_output, saved, self.approximate)


# -- Normalisation -----------------------------------------------------------------------------------------------------


class _Norm(Layer):
    """What all normalisations share."""

    _backward: ClassVar[Callable[..., functional.NormGrads]]

    def _affine(self, shape: tuple[int, ...], weight: bool, bias: bool, dtype: DTypeLike, start: float = 1.0) -> None:
        self.dtype = _dtype(dtype)
        if weight:
            self.add_param("weight", np.full(shape, start, self.dtype))
        if bias:
            self.add_param("bias", np.zeros(shape, self.dtype))

    def _statistics(self, channels: int) -> None:
        # At least float32: a step of the running mean would be lost in the rounding of a smaller type.
        dtype = compute(self.dtype)
        self.buffers["running_mean"] = np.zeros(channels, dtype)
        self.buffers["running_var"] = np.ones(channels, dtype)
        self.buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def _own(self, *names: str) -> dict[str, Any]:
        """The arrays of these names, None where there is none."""
        return {name: self.params.get(name, self.buffers.get(name)) for name in names}

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """In the core."""
        out = None, self.grads.get("weight"), self.grads.get("bias")
        return type(self)._backward(grad_output, saved, out=out).input


class LayerNorm(_Norm):
    """Normalisation of each sample over its last axes: see `ironstep.functional.layer_norm` for the equation.

    Args:
        normalized_shape: The lengths of the last axes of the input, or that of the last one.
        eps: Added to the variance.
        elementwise_affine: Whether there is a `weight`.
        bias: Whether there is a `bias` too.
        dtype: Of the parameters. The input may have another.

    Raises:
        ValueError: A length is below 1, or `eps` is negative.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.LayerNorm(2, eps=0.0)(np.array([[1.0, 3.0], [8.0, 4.0]]))
        array([[-1.,  1.],
               [ 1., -1.]])
    """

    _backward = staticmethod(functional.layer_norm_backward)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape = _lengths(normalized_shape)
        self.eps = number("eps", eps, NOT_NEGATIVE)
        self.elementwise_affine = bool(elementwise_affine)
        self.bias = bool(bias)
        self._affine(self.normalized_shape, self.elementwise_affine, self.elementwise_affine and self.bias, dtype)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core."""
        _ends(input, self.normalized_shape)
        own = self._own("weight", "bias")
        return _pick(functional.layer_norm(input, self.normalized_shape, **own, eps=self.eps, save=save), save)


class RMSNorm(_Norm):
    """Division of each sample by its root mean square over the last axes: see `ironstep.functional.rms_norm`.

    Args:
        normalized_shape: The lengths of the last axes of the input, or that of the last one.
        eps: Added to the mean square; None: the machine epsilon of the type that is computed in,
            as in torch.
        elementwise_affine: Whether there is a `weight`.
        offset: Added to the weight, which begins at 1 - `offset`. 1 is Gemma's.
        dtype: Of the parameters. The input may have another.

    Raises:
        ValueError: A length is below 1, or `eps` is negative.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.RMSNorm(2, eps=0.0)(np.array([[1.0, 7.0]]))
        array([[0.2, 1.4]])
    """

    _backward = staticmethod(functional.rms_norm_backward)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        offset: float = 0.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape = _lengths(normalized_shape)
        self.eps = None if eps is None else number("eps", eps, NOT_NEGATIVE)
        self.elementwise_affine = bool(elementwise_affine)
        self.offset = number("offset", offset, FINITE)
        self._affine(self.normalized_shape, self.elementwise_affine, False, dtype, 1.0 - self.offset)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core."""
        _ends(input, self.normalized_shape)
        own, shape = self._own("weight"), self.normalized_shape
        return _pick(functional.rms_norm(input, shape, **own, eps=self.eps, offset=self.offset, save=save), save)


class GroupNorm(_Norm):
    """Normalisation of groups of channels in each sample: see `ironstep.functional.group_norm` for the equation.

    Args:
        num_groups: The number of groups.
        num_channels: The number of channels, a multiple of it.
        eps: Added to the variance.
        affine: Whether there are a `weight` and a `bias` for each channel.
        channel_axis: The axis of the channels; -1 for channels-last shapes.
        dtype: Of the parameters. The input may have another.

    Raises:
        ValueError: The channels cannot be divided among the groups, or `eps` is negative.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.GroupNorm(2, 4, eps=0.0)(np.array([[1.0, 3.0, 8.0, 4.0]]))
        array([[-1.,  1.,  1., -1.]])
    """

    _backward = staticmethod(functional.group_norm_backward)

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        channel_axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.num_groups = count("num_groups", num_groups)
        self.num_channels = count("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(f"num_channels must be a multiple of num_groups={num_groups}, got {num_channels}")
        self.eps = number("eps", eps, NOT_NEGATIVE)
        self.affine = bool(affine)
        self.channel_axis = _axis(channel_axis, 5)
        self._affine((self.num_channels,), self.affine, self.affine, dtype)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core."""
        _has_channels(input, [2, 3, 4, 5], self.num_channels, self.channel_axis)
        own = self._own("weight", "bias")
        axis = self.channel_axis
        result = functional.group_norm(input, self.num_groups, **own, eps=self.eps, channel_axis=axis, save=save)
        return _pick(result, save)


class _Channels(_Norm):
    """What batch and instance normalisation share."""

    _ranks: ClassVar[tuple[int, ...]]

    def _begin(
        self,
        num_features: int,
        eps: float,
        affine: bool,
        track_running_stats: bool,
        channel_axis: int,
        dtype: DTypeLike,
    ) -> None:
        self.num_features = count("num_features", num_features)
        self.eps = number("eps", eps, NOT_NEGATIVE)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.channel_axis = _axis(channel_axis, self._ranks[0])
        self._affine((self.num_features,), self.affine, self.affine, dtype)
        if self.track_running_stats:
            self._statistics(self.num_features)


class _BatchNorm(_Channels):
    _backward = staticmethod(functional.batch_norm_backward)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        unbiased: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self._begin(num_features, eps, affine, track_running_stats, channel_axis, dtype)
        self.momentum = None if momentum is None else number("momentum", momentum, PROBABILITY)
        self.unbiased = bool(unbiased)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core."""
        _has_channels(input, self._ranks, self.num_features, self.channel_axis)
        training = (save and self.training) or not self.track_running_stats
        result = functional.batch_norm(
            input,
            **self._own("running_mean", "running_var", "weight", "bias", "num_batches_tracked"),
            training=training,
            momentum=self.momentum if self.track_running_stats else 0.0,
            eps=self.eps,
            channel_axis=self.channel_axis,
            unbiased=self.unbiased,
            save=save,
        )
        return _pick(result, save)


class BatchNorm2d(_BatchNorm):
    """Normalisation of each channel over the batch (N, C, H, W): see `ironstep.functional.batch_norm`.

    In training with the statistics of the batch, which also go into the running ones; in eval mode and in `predict`
    with the running ones. These are float32 at least, whatever `dtype`.

    Args:
        num_features: The number of channels.
        eps: Added to the variance.
        momentum: The weight of the new batch in the running statistics (1 minus what Keras and flax call momentum);
            None: the mean of all batches.
        affine: Whether there are a `weight` and a `bias`.
        track_running_stats: Whether there are running statistics; without, those of the batch are always used.
        channel_axis: The axis of the channels; -1 for channels-last shapes.
        unbiased: Whether the running variance is divided by n - 1, as in torch, or by n, as in Keras, flax and ONNX.
            Without it a batch of one value per channel is no error.
        dtype: Of the parameters. The input may have another.

    Raises:
        ValueError: An argument is out of range; in training, if there is one value per channel only.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> norm = nn.BatchNorm2d(1, eps=0.0, dtype=np.float64)
        >>> norm(np.array([1.0, 3.0]).reshape(2, 1, 1, 1)).ravel()
        array([-1.,  1.])
        >>> norm.buffers["running_mean"]
        array([0.2])
        >>> norm.eval()
        BatchNorm2d(1, eps=0.0, momentum=0.1, dtype=float64) [eval]

    References:
        Ioffe and Szegedy, Batch normalization, arXiv 1502.03167.
    """

    _ranks = (4,)


class BatchNorm1d(_BatchNorm):
    """As `BatchNorm2d`, for inputs (N, C) or (N, C, L).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.BatchNorm1d(1, eps=0.0)(np.array([[1.0], [3.0]]))
        array([[-1.],
               [ 1.]])
    """

    _ranks = (2, 3)


class BatchNorm3d(_BatchNorm):
    """As `BatchNorm2d`, for inputs (N, C, D, H, W).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.BatchNorm3d(4)(np.ones((2, 4, 3, 3, 3))).shape
        (2, 4, 3, 3, 3)
    """

    _ranks = (5,)


class _InstanceNorm(_Channels):
    _backward = staticmethod(functional.instance_norm_backward)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        channel_axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self._begin(num_features, eps, affine, track_running_stats, channel_axis, dtype)
        self.momentum = number("momentum", momentum, PROBABILITY)

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core."""
        _has_channels(input, self._ranks, self.num_features, self.channel_axis)
        training = save and self.training
        result = functional.instance_norm(
            input,
            **self._own("running_mean", "running_var", "weight", "bias"),
            use_input_stats=training or not self.track_running_stats,
            momentum=self.momentum,
            eps=self.eps,
            channel_axis=self.channel_axis,
            save=save,
        )
        return _pick(result, save)


class InstanceNorm2d(_InstanceNorm):
    """Normalisation of each channel of each sample (N, C, H, W): see `ironstep.functional.instance_norm`.

    Args:
        num_features: The number of channels.
        eps: Added to the variance.
        momentum: The weight of the new batch in the running statistics.
        affine: Whether there are a `weight` and a `bias`.
        track_running_stats: Whether running statistics are kept, and used in inference. `num_batches_tracked` is there
            for torch's sake and does not count.
        channel_axis: The axis of the channels; -1 for channels-last shapes.
        dtype: Of the parameters. The input may have another.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.InstanceNorm2d(1, eps=0.0)(np.array([1.0, 3.0]).reshape(1, 1, 1, 2))
        array([[[[-1.,  1.]]]])

    References:
        Ulyanov et al., Instance normalization, arXiv 1607.08022.
    """

    _ranks = (4,)


class InstanceNorm1d(_InstanceNorm):
    """As `InstanceNorm2d`, for inputs (N, C, L).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.InstanceNorm1d(1, eps=0.0)(np.array([[[1.0, 3.0]]]))
        array([[[-1.,  1.]]])
    """

    _ranks = (3,)


class InstanceNorm3d(_InstanceNorm):
    """As `InstanceNorm2d`, for inputs (N, C, D, H, W).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.InstanceNorm3d(4)(np.ones((2, 4, 3, 3, 3))).shape
        (2, 4, 3, 3, 3)
    """

    _ranks = (5,)


def _lengths(shape: int | Sequence[int]) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not lengths:
        raise ValueError(f"normalized_shape must have at least one axis, got {shape!r}")
    return tuple(count("normalized_shape", length) for length in lengths)


def _ends(input: Array, shape: tuple[int, ...]) -> None:
    _shaped(input, input.shape[-len(shape) :] == shape, f"(..., {', '.join(map(str, shape))})")


def _pick(result: Any, save: bool) -> tuple[Array, Any]:
    """The output, and what was saved or None."""
    return result if save else (result, None)


# -- Dropout -----------------------------------------------------------------------------------------------------------


class _Random(Layer):
    """What layers with random numbers share.

    Each `forward` in training takes the next stream of numbers of the seed. The number of the next is the buffer
    `stream`, so that a run that goes on from a `state_dict` draws what it would have drawn.
    """

    def __init__(self, p: float, seed: Seed) -> None:
        super().__init__()
        self.p = number("p", p, PROBABILITY)
        if isinstance(seed, np.random.Generator):
            seed = int(seed.integers(1 << 64, dtype=np.uint64))
        elif count("seed", seed, 0) >= 1 << 64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.seed = int(seed)
        self._seeds = [self.seed]
        self.buffers["stream"] = np.zeros((), np.int64)

    def _drop(self, input: Array, **numbers: Any) -> Any:
        raise NotImplementedError

    def _check(self, input: Array) -> None:
        pass

    def compute(self, input: Array, save: bool) -> tuple[Array, Any]:
        """In the core; in inference the input itself."""
        self._check(input)
        if not (save and self.training):
            return input, None
        stream = self.buffers["stream"]
        output, saved = self._drop(input, seed=self.seed, stream=int(stream), save=True)
        stream += 1
        return output, saved

    def differentiate(self, grad_output: Array, saved: Any) -> Array:
        """In the core."""
        return grad_output if saved is None else functional.dropout_backward(grad_output, saved)


class Dropout(_Random):
    """Zeros in random places while training: see `ironstep.functional.dropout`.

    In inference the input itself is returned. Each `forward` in training draws anew; how many there were is in the
    `state_dict` as `stream`, so a run that goes on from there drops what it would have dropped.

    Args:
        p: The probability that an element is dropped. The others are divided by 1 - `p`.
        seed: An int from 0 to 2**64 - 1, or a generator from which one is drawn. Each layer needs a seed of its own.

    Raises:
        ValueError: `p` is not from 0 to 1, or the seed is out of range.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> drop = nn.Dropout(0.5, seed=3)
        >>> drop
        Dropout(p=0.5, seed=3) [train]
        >>> sorted(set(drop(np.ones(100)).tolist())), int(drop.buffers["stream"])
        ([0.0, 2.0], 1)
        >>> drop.predict(np.ones(3))
        array([1., 1., 1.])

    References:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, JMLR 15, 2014.
    """

    def __init__(self, p: float = 0.5, *, seed: Seed) -> None:
        super().__init__(p, seed)

    def _drop(self, input: Array, **numbers: Any) -> Any:
        return functional.dropout(input, self.p, True, **numbers)


class _ChannelDropout(_Random):
    _rank: ClassVar[int]
    _function: ClassVar[Callable[..., Any]]

    def __init__(self, p: float = 0.5, *, channel_axis: int = 1, seed: Seed) -> None:
        super().__init__(p, seed)
        self.channel_axis = _axis(channel_axis, self._rank)

    def _check(self, input: Array) -> None:
        _shaped(input, input.ndim == self._rank, _axes(self._rank, self.channel_axis, "C"))

    def _drop(self, input: Array, **numbers: Any) -> Any:
        return type(self)._function(input, self.p, True, channel_axis=self.channel_axis, **numbers)


class Dropout1d(_ChannelDropout):
    """As `Dropout`, but whole channels of inputs (N, C, L) are dropped.

    Args:
        p: The probability that a channel is dropped.
        channel_axis: The axis of the channels; -1 for channels-last shapes.
        seed: As for `Dropout`.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> y = nn.Dropout1d(0.5, seed=0)(np.ones((4, 8, 5)))
        >>> bool((y == y[:, :, :1]).all())
        True
    """

    _rank = 3
    _function = staticmethod(functional.dropout1d)


class Dropout2d(_ChannelDropout):
    """As `Dropout1d`, for inputs (N, C, H, W).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> y = nn.Dropout2d(0.5, seed=0)(np.ones((4, 8, 5, 5)))
        >>> bool((y == y[:, :, :1, :1]).all())
        True
    """

    _rank = 4
    _function = staticmethod(functional.dropout2d)


class Dropout3d(_ChannelDropout):
    """As `Dropout1d`, for inputs (N, C, D, H, W).

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> nn.Dropout3d(0.25, seed=0)
        Dropout3d(p=0.25, seed=0) [train]
    """

    _rank = 5
    _function = staticmethod(functional.dropout3d)


class StochasticDepth(_Random):
    """Drops whole samples; last in a `Residual`, they skip the block: see `ironstep.functional.stochastic_depth`.

    Args:
        p: The probability that a sample is dropped. The others are divided by 1 - `p`.
        mode: "row": each sample by itself. "batch": all or none.
        seed: As for `Dropout`.

    Raises:
        ValueError: `p` is not from 0 to 1, or `mode` is unknown.

    Example:
        >>> import numpy as np
        >>> from ironstep import nn
        >>> block = nn.Residual(nn.Linear(4, 4, seed=0), nn.StochasticDepth(1.0, seed=1))
        >>> x = np.ones((2, 4), np.float32)
        >>> bool((block(x) == x).all())
        True

    References:
        Huang et al., Deep networks with stochastic depth, arXiv 1603.09382.
    """

    def __init__(self, p: float, mode: str = "row", *, seed: Seed) -> None:
        super().__init__(p, seed)
        if mode not in ("row", "batch"):
            raise ValueError(f"mode must be 'row' or 'batch', got {mode!r}")
        self.mode = mode

    def _drop(self, input: Array, **numbers: Any) -> Any:
        return functional.stochastic_depth(input, self.p, self.mode, True, **numbers)
