"""The real libraries behind one small interface, in float64. They are imported when a test makes one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


class Peer(Protocol):
    """An optimiser that has copies of some arrays."""

    def step(self, grads: list[Array]) -> list[Array]:
        """The arrays after a step."""


Maker: TypeAlias = Callable[[list[Array]], Peer]


class _Torch:
    def __init__(self, make: Callable[[list[Any]], Any], params: list[Array]) -> None:
        import torch

        self._params = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in params]
        self._opt = make(self._params)

    def step(self, grads: list[Array]) -> list[Array]:
        import torch

        for param, grad in zip(self._params, grads, strict=True):
            param.grad = torch.tensor(grad)
        self._opt.step()
        return [param.detach().numpy().copy() for param in self._params]


def torch(name: str, **kwargs: Any) -> Maker:
    """`torch.optim.<name>`, the plain loop."""

    def make(params: list[Any]) -> Any:
        import torch

        return getattr(torch.optim, name)(params, foreach=False, **kwargs)

    return lambda params: _Torch(make, params)


def timm(name: str, **kwargs: Any) -> Maker:
    """`timm.optim.<name>`."""

    def make(params: list[Any]) -> Any:
        import timm.optim

        return getattr(timm.optim, name)(params, **kwargs)

    return lambda params: _Torch(make, params)


def pytorch_optimizer(name: str, **kwargs: Any) -> Maker:
    """`pytorch_optimizer.<name>`."""

    def make(params: list[Any]) -> Any:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(params, **kwargs)

    return lambda params: _Torch(make, params)


class _Optax:
    def __init__(self, make: Callable[[], Any], params: list[Array]) -> None:
        import jax

        with jax.enable_x64(True):
            self._opt = make()
            self._params = [jax.numpy.asarray(p) for p in params]
            self._state = self._opt.init(self._params)

    def step(self, grads: list[Array]) -> list[Array]:
        import jax
        import optax

        with jax.enable_x64(True):
            updates, self._state = self._opt.update([jax.numpy.asarray(g) for g in grads], self._state, self._params)
            self._params = optax.apply_updates(self._params, updates)
            return [np.array(p) for p in self._params]


def optax(name: str, *args: Any, **kwargs: Any) -> Maker:
    """`optax.<name>`."""

    def make() -> Any:
        import optax

        return getattr(optax, name)(*args, **kwargs)

    return lambda params: _Optax(make, params)


class _Keras:
    def __init__(self, make: Callable[[], Any], params: list[Array]) -> None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        with _keras_in_float64():
            self._variables = [keras.Variable(p, dtype="float64") for p in params]
            self._opt = make()
            self._opt.build(self._variables)

    def step(self, grads: list[Array]) -> list[Array]:
        import keras

        with _keras_in_float64():
            self._opt.apply([keras.ops.convert_to_tensor(g, dtype="float64") for g in grads], self._variables)
            return [np.array(keras.ops.convert_to_numpy(v)) for v in self._variables]


@contextmanager
def _keras_in_float64() -> Iterator[None]:
    """Its hyperparameters are variables of the default type. It warns about its own use of NumPy."""
    import keras

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        keras.config.set_floatx(before)


def keras(name: str, *args: Any, **kwargs: Any) -> Maker:
    """`keras.optimizers.<name>`."""

    def make() -> Any:
        import keras

        return getattr(keras.optimizers, name)(*args, **kwargs)

    return lambda params: _Keras(make, params)
