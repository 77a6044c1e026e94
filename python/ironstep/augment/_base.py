"""What a transform is, how its random numbers are drawn, and how several of them run over a batch."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..data import MAX_SEED, BatchKey
from ..functional._arrays import PROBABILITY, Array, integer, number, unmasked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ._compose import Compose

Params: TypeAlias = "dict[str, Array] | list[Params]"
"""What was drawn: of a transform a dict of arrays with a row for each sample, of several a list."""

BETA_BLOCK = 2**20
"""Numbers of the beta distribution are made of the blocks of random bits from here on."""


class Shape(NamedTuple):
    """Of one picture."""

    h: int
    w: int
    c: int


class Stage(NamedTuple):
    """What the core is told of a transform."""

    name: str
    columns: NDArray[np.float64]
    """A row of numbers for each sample, of shape (n, K)."""
    settings: list[float]
    """What all samples share."""


class Mix(NamedTuple):
    """What a transform of pairs does: inside its box sample i becomes weight x_i + (1 - weight) x_partner."""

    partner: NDArray[np.int64]
    weight: NDArray[np.float64]
    boxes: NDArray[np.int64]
    """Top, left, bottom, right, of shape (n, 4)."""
    lam: NDArray[np.float64]
    """The share of the own label."""


class Draw:
    """The numbers of one transform: a function of seed, number of the sample, epoch and place of the transform."""

    def __init__(self, key: BatchKey, transform: int) -> None:
        self._key, self._transform = key, transform
        self.n = len(key.indices)
        """How many samples there are."""
        self._next = 0
        self._betas = 0

    def _of(self) -> tuple[int, int, NDArray[np.int64], int]:
        """What the numbers are a function of."""
        if self._key.seed is None:
            raise ValueError("seed must be given to Batches whose transform draws random numbers, got None")
        return self._key.seed, self._key.epoch, self._key.indices, self._transform

    def uniform(self, count: int = 1) -> NDArray[np.float64]:
        """The next numbers of each sample, uniform on [0, 1), of shape (n, count)."""
        numbers = _core.uniforms(*self._of(), self._next, count)
        self._next += count
        return numbers

    def skip(self, count: int) -> None:
        """Leaves out the next numbers of each sample."""
        self._next += count

    def beta(self, a: float, b: float) -> NDArray[np.float64]:
        """A number of the beta distribution for each sample, of shape (n,)."""
        first = BETA_BLOCK * (1 + self._betas)
        self._betas += 1
        return _core.draw_beta(*self._of(), first, a, b)

    def words(self) -> NDArray[np.float64]:
        """What the numbers for each element of a picture are drawn with, of shape (n, 5)."""
        return _core.draw_words(*self._of())


# -- Arguments ---------------------------------------------------------------------------------------------------------


def libm(name: str, x: Any) -> NDArray[np.float64]:
    """A function of each number ("exp", "log", "sin", "cos", "tan"), with the same bits everywhere."""
    values = np.asarray(x, np.float64)
    return _core.elementwise(name, values.reshape(-1)).reshape(values.shape)


def rows(params: Any, name: str, n: int, width: int = 1, integer: bool = False) -> Array:
    """A parameter with a row for each of n samples, checked: float64 (or int64), of shape (n,) or (n, width)."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of arrays, as sample() gives it, got {type(params).__name__}")
    if name not in params:
        raise ValueError(f"params must have {name!r}, got {sorted(params)}")
    shape = (n,) if width == 1 else (n, width)
    given = unmasked(params[name], f"params[{name!r}]")
    if given.dtype.kind not in ("biu" if integer else "biuf"):
        kind = "whole numbers" if integer else "numbers"
        raise TypeError(f"params[{name!r}] must be an array of {kind}, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"params[{name!r}] must have shape {shape}, a row for each sample, got {given.shape}")
    if integer and given.dtype.kind == "u" and given.size and int(given.max()) >= 2**63:
        raise ValueError(f"params[{name!r}] must be below 2**63, got {given.max()}")
    values = np.ascontiguousarray(given, np.int64 if integer else np.float64)
    if not integer and not np.isfinite(values).all():
        raise ValueError(f"params[{name!r}] must be finite, got {values[~np.isfinite(values)][0]}")
    return values


def choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value if it is one of them."""
    if isinstance(value, Enum):  # such as torchvision's InterpolationMode
        value = value.value
    if not any(value is c or (isinstance(value, str) and value == c) for c in choices):
        *first, last = (repr(c) for c in choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")
    return value


def to_key(key: Any, n: int) -> BatchKey:
    """Which samples it is about; a seed alone: samples 0 to n - 1 in epoch 0."""
    if isinstance(key, BatchKey):
        given = np.asarray(key.indices)
        if given.dtype.kind not in "iu":
            raise TypeError(f"key.indices must be whole numbers, got {given.dtype}")
        if given.shape != (n,):
            raise ValueError(f"key.indices must have the number of each of {n} samples, got shape {given.shape}")
        wrong = given[(given < 0) | (given >= 2**48)]
        if wrong.size:
            raise ValueError(f"key.indices must be from 0 to 2**48 - 1, got {wrong[0]}")
        seed = None if key.seed is None else integer("key.seed", key.seed, 0, MAX_SEED)
        epoch = integer("key.epoch", key.epoch, 0, 2**32 - 1)
        return BatchKey(seed, epoch, int(key.index), np.ascontiguousarray(given, np.int64))
    if not isinstance(key, (int, np.integer)) or isinstance(key, bool):
        raise TypeError(
            "key must be a BatchKey or a seed (an integer from 0 to 2**64 - 1) and come first, before the images, got "
            f"{type(key).__name__ if hasattr(key, 'shape') else repr(key)}"
        )
    return BatchKey(integer("key", key, 0, MAX_SEED), 0, 0, np.arange(n, dtype=np.int64))


# -- Transforms --------------------------------------------------------------------------------------------------------


class Transform:
    """A random change of pictures, with numbers of its own for each sample.

    Base class of all of them. Its arguments are attributes of the same names.
    """

    p: float = 1.0
    """The probability that a sample is changed."""

    _unit: bool = False
    """Whether images of floats must lie in 0..1."""

    _leaves_unit: bool = False
    """Whether images of floats may lie elsewhere afterwards."""

    _makes_floats: ClassVar[bool] = False
    """Whether images of uint8 are float32 afterwards."""

    def __init__(self, *, p: float = 1.0) -> None:
        self.p = number("p", p, PROBABILITY)

    # -- What a subclass says --

    def _draw(self, draw: Draw, shape: Shape) -> dict[str, Array]:
        """The parameters, each with a row for each sample."""
        return {}

    def _size(self, shape: Shape) -> Shape:
        """The shape of a picture afterwards."""
        return shape

    def _stage(self, params: dict[str, Array], shape: Shape) -> Stage:
        """What the core is told."""
        raise NotImplementedError

    def _map(self, params: dict[str, Array], shape: Shape) -> NDArray[np.float64] | None:
        """Where continuous coordinates (x, y) go: affine maps of shape (n, 2, 3); `None` if nothing moves."""
        return None

    def _applies(self, draw: Draw) -> NDArray[np.bool_]:
        """Which samples are changed; takes one number of each."""
        if self.p == 1.0:
            draw.skip(1)
            return np.ones(draw.n, np.bool_)
        return draw.uniform()[:, 0] < self.p

    def _alone(self) -> Compose:
        """A chain of this one."""
        from ._compose import Compose  # which is a transform itself

        return Compose([self])

    # -- What a user calls --

    def __call__(self, key: BatchKey | int, *arrays: Any, out: Any = None) -> Any:
        """Draws parameters and applies them: `apply(sample(key, images), images, ...)`.

        Args:
            key: A `BatchKey`, as `Batches` gives it to its transform: seed, epoch and numbers of the samples. Or a
                seed: that of samples 0, 1, ... in epoch 0.
            *arrays: The images first; see `Compose` for the others.
            out: As for `apply`.

        Returns:
            The augmented images; with more arrays a tuple of as many.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A shape, a layout or a value does not fit. Nothing was changed.

        Example:
            >>> import numpy as np
            >>> from ironstep.augment import RandomHorizontalFlip
            >>> images = np.arange(3, dtype=np.uint8).reshape(1, 1, 3, 1)
            >>> RandomHorizontalFlip(p=1.0)(0, images).ravel()
            array([2, 1, 0], dtype=uint8)
        """
        return self._alone()(key, *arrays, out=out)

    def sample(self, key: BatchKey | int, shape: Any) -> Any:
        """Draws the parameters for a batch.

        They are a function of the seed, the epoch, the number of each sample in the data set and the place of the
        transform among others. Neither the size of the batch nor the order of its samples matters.

        Args:
            key: As for a call.
            shape: The shape of the images (for one transform alone: (N, H, W, C)), or the images.

        Returns:
            A dict of arrays with one row for each sample; "apply" says which are changed. For `Compose` and `OneOf` a
            list of those.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A shape or the key does not fit.

        Example:
            >>> from ironstep.augment import RandomRotation
            >>> params = RandomRotation(30).sample(0, (2, 8, 8, 3))
            >>> sorted(params), params["angle"].shape
            (['angle', 'apply'], (2,))
        """
        return self._alone().sample(key, shape)[0]

    def apply(self, params: Any, *arrays: Any, out: Any = None) -> Any:
        """Applies given parameters: what `sample` returned, or such a dict made by hand.

        Args:
            params: The parameters.
            *arrays: The images first; see `Compose` for the others.
            out: Where the images go: an array of the right shape and type, which may be the images themselves.

        Returns:
            The augmented images; with more arrays a tuple of as many.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A parameter, a shape or a layout does not fit. Nothing was changed.

        Example:
            >>> import numpy as np
            >>> from ironstep.augment import RandomRotation
            >>> images = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
            >>> params = {"apply": np.array([True]), "angle": np.array([90.0])}
            >>> RandomRotation(180).apply(params, images)[0, :, :, 0]
            array([[1, 3],
                   [0, 2]], dtype=uint8)
        """
        return self._alone().apply([params], *arrays, out=out)

    def preview(self, images: Any, *others: Any, seed: int = 0, samples: int = 4, versions: int = 5) -> Figure:
        """Draws a grid: each row a picture, as it is and as it comes out in the first epochs. Needs matplotlib.

        Args:
            images: As for a call.
            *others: The other arrays of a call; masks, boxes and keypoints are drawn over the pictures.
            seed: The seed.
            samples: How many pictures.
            versions: How many epochs.

        Returns:
            The figure; `figure.savefig("preview.png")` stores it.

        Raises:
            ModuleNotFoundError: There is no matplotlib.

        Example:
            >>> import numpy as np
            >>> from ironstep.augment import RandomRotation
            >>> images = np.zeros((8, 16, 16, 3), np.uint8)
            >>> figure = RandomRotation(30).preview(images, samples=2)
        """
        return self._alone().preview(images, *others, seed=seed, samples=samples, versions=versions)

    # -- Text --

    def _arguments(self) -> Iterator[tuple[str, Any]]:
        """Those that differ from their defaults."""
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if parameter.default is inspect.Parameter.empty or repr(value) != repr(parameter.default):
                yield name, value

    def __repr__(self) -> str:
        """As one would write it."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._arguments())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class PairTransform(Transform):
    """A transform that mixes each sample with a partner from its batch, and their labels too."""

    num_classes: int | None = None
    mode: str = "batch"

    def _weights(self, params: dict[str, Array], shape: Shape) -> Mix:
        """How each sample is mixed where `apply` says so."""
        raise NotImplementedError

    def _shared(self, values: Array) -> Array:
        """Numbers of each sample: the first one's for all ("batch"), the first of a pair's for both, or as they are."""
        n = len(values)
        if self.mode == "batch":
            return np.broadcast_to(values[:1], values.shape).copy()
        if self.mode == "pair":
            i = np.arange(n)
            return values[np.minimum(i, n - 1 - i)]
        return values

    def _partner(self, n: int) -> NDArray[np.int64]:
        """The sample before, or of pairs the mirrored one."""
        i = np.arange(n, dtype=np.int64)
        return n - 1 - i if self.mode == "pair" else (i - 1) % max(n, 1)

    def _applies(self, draw: Draw) -> NDArray[np.bool_]:
        if self.p == 1.0:
            return super()._applies(draw)
        return self._shared(draw.uniform()[:, 0]) < self.p


class Group(Transform):
    """A transform of transforms."""

    transforms: list[Transform]

    def __init__(self, transforms: Any, *, p: float = 1.0) -> None:
        super().__init__(p=p)
        if not isinstance(transforms, Sequence) or isinstance(transforms, str):
            raise TypeError(f"transforms must be a list of transforms, got {transforms!r}")
        for i, transform in enumerate(transforms):
            if not isinstance(transform, Transform):
                hint = f"; write {transform.__name__}(...)" if isinstance(transform, type) else ""
                raise TypeError(f"transforms[{i}] must be a transform of ironstep.augment, got {transform!r}{hint}")
            if isinstance(transform, Group):
                told = {name for name, _ in transform._arguments()} - {"transforms", "weights", "p"}
                if told:
                    raise ValueError(
                        f"transforms[{i}] must have no {', '.join(sorted(told))}; the outermost Compose has it for all"
                    )
        self.transforms = list(transforms)

    def _children(self, params: Any) -> list[tuple[Transform, Any]]:
        if not isinstance(params, (list, tuple)) or len(params) != len(self.transforms):
            raise ValueError(
                f"params of {type(self).__name__} must be a list of {len(self.transforms)} parameters, one for each of "
                "its transforms"
            )
        return list(zip(self.transforms, params, strict=True))

    def _chosen(self, draw: Draw, where: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Of the samples `where`, those that each of the transforms is asked about."""
        raise NotImplementedError

    def __repr__(self) -> str:
        given = dict(self._arguments())
        lines = [textwrap.indent(repr(t), "    ") + ",\n" for t in given.pop("transforms")]
        inside = "".join(["\n", *lines]) if lines else ""
        more = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"{type(self).__name__}([{inside}]{more})"


def leaves(transform: Transform) -> Iterator[Transform]:
    """The transforms in it that contain no others."""
    if isinstance(transform, Group):
        for t in transform.transforms:
            yield from leaves(t)
    else:
        yield transform
