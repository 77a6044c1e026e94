"""Several transforms together: one after the other, or one of them; and how they run over a batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..data import BatchKey
from ..functional._arrays import PROBABILITY, Array, flag, number, refuse_overlap, unmasked
from ..optim._hyper import Limit
from ._arrays import (
    LAYOUTS,
    TYPES,
    Images,
    Result,
    flat,
    is_cut,
    mask_layout,
    mix,
    mix_labels,
    mix_masks,
    move_masks,
    overlaps_itself,
    refuse_list,
    refuse_mixed,
    soft_labels,
    type_name,
    word,
)
from ._base import (
    Draw,
    Group,
    Mix,
    PairTransform,
    Shape,
    Stage,
    Transform,
    choice,
    leaves,
    rows,
    to_key,
)
from ._points import Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = 2**15
"""Transforms are numbered from 0 on, those that contain others from here on."""


class OneOf(Group):
    """Of several transforms one, chosen for each sample.

    The one that is chosen still has its own probability `p`.

    Args:
        transforms: The transforms. All must give pictures of the same size. Either all mix pairs or none does.
        weights: How likely each is, in any unit; all the same if `None`.
        p: The probability that one is chosen at all.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no transform, or an argument has a wrong value.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import OneOf, RandomHorizontalFlip, RandomVerticalFlip
        >>> flip = OneOf([RandomHorizontalFlip(p=1.0), RandomVerticalFlip(p=1.0)], weights=[3, 1])
        >>> horizontal, vertical = flip.sample(0, (1000, 8, 8, 3))
        >>> bool((horizontal["apply"] ^ vertical["apply"]).all()), int(vertical["apply"].sum())
        (True, 266)
    """

    def __init__(self, transforms: Sequence[Transform], weights: Sequence[float] | None = None, p: float = 1.0) -> None:
        super().__init__(transforms, p=p)
        if not self.transforms:
            raise ValueError("transforms must have at least one transform, got none")
        pairs = [any(isinstance(leaf, PairTransform) for leaf in leaves(t)) for t in self.transforms]
        if any(pairs) and not all(isinstance(t, PairTransform) for t in self.transforms):
            raise ValueError("transforms must all be transforms of pairs (MixUp, CutMix), or none of them")
        self.weights: list[float] | None = None
        if weights is not None:
            limit = Limit(0.0, math.inf, "finite and at least 0", closed=False)
            if not isinstance(weights, (Sequence, np.ndarray)):
                raise TypeError(f"weights must be a list of numbers, one for each transform, or None, got {weights!r}")
            self.weights = [number(f"weights[{i}]", weight, limit) for i, weight in enumerate(weights)]
            if len(self.weights) != len(self.transforms) or not max(self.weights, default=0.0) > 0:
                raise ValueError(
                    f"weights must have one for each of {len(self.transforms)} transforms, not all 0, got {weights!r}"
                )

    def _chosen(self, draw: Draw, where: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        where = where & self._applies(draw)
        weights = np.asarray(self.weights or [1.0] * len(self.transforms))
        weights = weights / weights.max()
        # The last one with a weight takes what rounding leaves.
        edges = np.cumsum(weights) / weights.sum()
        edges[int(np.flatnonzero(weights)[-1]) :] = 1.0
        choice = np.searchsorted(edges, draw.uniform()[:, 0], side="right")
        return [where & (choice == i) for i in range(len(self.transforms))]

    def _size(self, shape: Shape) -> Shape:
        sizes = [t._size(shape) for t in self.transforms]
        for transform, size in zip(self.transforms, sizes, strict=True):
            if size != sizes[0]:
                raise ValueError(
                    f"the transforms of OneOf must give pictures of one size, but {self.transforms[0]!r} gives "
                    f"{sizes[0][:2]} and {transform!r} {size[:2]}"
                )
        if sizes[0] != shape and self.p < 1.0:
            raise ValueError(f"p must be 1 where the size changes, from {shape[:2]} to {sizes[0][:2]}, got {self.p}")
        return sizes[0]


class Compose(Group):
    r"""Several transforms one after the other, each sample through all of them while it is in the cache.

    It is a function of a `key` and arrays, of which the first are the images, so it is a `transform` of `Batches`. The
    result depends on the seed, the epoch, and the number of each sample in the data set: not on the batch size, the
    order, the number of threads or the machine. (Mixup and CutMix mix samples of a batch, so there the batch counts.)

    Images are uint8, float32, float16 or bfloat16. Halves are computed in float32 and rounded once at the end of the
    chain (with Mixup or CutMix in it, also before and after these). Between two transforms of uint8 images the pixels
    are bytes again. torch tensors on the CPU are taken without a copy, and give tensors.

    Args:
        transforms: The transforms, in order.
        p: The probability that a sample goes through them.
        layout: The axes of images and masks: "NHWC", "NCHW", or "NHW" for one channel. Any memory order will do; dense
            ones need no copy, also NCHW tensors in torch's `channels_last` memory.
        out_layout: The axes of the result, if not the same: "NCHW" from "NHWC" is what networks take.
        targets: What the arrays are: "image" first, then "mask", "boxes", "keypoints", "label", or `None` for what
            passes through. More arrays than names pass through.
        mask_fill: What comes into a mask from outside of the picture.
        box_format: "xyxy", "xywh" or "cxcywh" (centre and size), in pixels; pixel i covers i to i + 1.
        outside: What becomes of boxes and keypoints outside of the picture. "nan": boxes are clipped; those without
            area in it, and keypoints outside, become NaN, so that all others keep their place. "keep": they stay where
            they are.
        min_visibility: A box of which a smaller share is left in the picture has left it.
        inplace: The images are overwritten if the result has their shape and type and they may be written. (A `Batches`
            gives a transform arrays of its own.)

    Masks have elements of 1, 2, 4 or 8 bytes, and the layout of the images or no axis of channels. Boxes are floats of
    shape (N, K, 4), keypoints (x, y) of shape (N, K, 2), with rows of NaN where there are fewer; or lists of N arrays.
    Keypoint (0, 0) is the centre of the first pixel. Labels change only in Mixup and CutMix: whole numbers (N,) become
    soft targets (N, num_classes) of float32.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value.

    Example:
        >>> import numpy as np
        >>> from ironstep.augment import ColorJitter, Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop
        >>> augment = Compose([
        ...     RandomResizedCrop(32),
        ...     RandomHorizontalFlip(),
        ...     ColorJitter(brightness=0.4, contrast=0.4),
        ...     Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        ... ], out_layout="NCHW")
        >>> images = np.zeros((8, 40, 48, 3), np.uint8)
        >>> x = augment(0, images)
        >>> x.shape, x.dtype
        ((8, 3, 32, 32), dtype('float32'))

        In a training loop:

        >>> from ironstep.data import Batches
        >>> labels = np.arange(8)
        >>> batches = Batches(images, labels, batch_size=4, seed=0, transform=augment, prefetch=2)
        >>> [(x.shape, y.shape) for x, y in batches]
        [((4, 3, 32, 32), (4,)), ((4, 3, 32, 32), (4,))]
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        *,
        p: float = 1.0,
        layout: str = "NHWC",
        out_layout: str | None = None,
        targets: Sequence[str | None] = ("image", "label"),
        mask_fill: float = 0,
        box_format: str = "xyxy",
        outside: str = "nan",
        min_visibility: float = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(transforms, p=p)
        self.layout = choice("layout", layout, LAYOUTS)
        self.out_layout = None if out_layout is None else choice("out_layout", out_layout, LAYOUTS)
        kinds = ("image", "mask", "boxes", "keypoints", "label", None)
        if isinstance(targets, str) or not isinstance(targets, Sequence):
            raise TypeError(f'targets must be a tuple of names such as ("image", "label"), got {targets!r}')
        self.targets = tuple(choice(f"targets[{i}]", kind, kinds) for i, kind in enumerate(targets))
        if self.targets[:1] != ("image",) or self.targets.count("image") > 1:
            raise ValueError(f'targets must begin with "image", once, got {targets!r}')
        given: Any = mask_fill
        if not isinstance(given, (int, float, np.number)) or isinstance(given, bool):
            raise TypeError(f"mask_fill must be a number, got {mask_fill!r}")
        self.mask_fill = mask_fill
        self.box_format = choice("box_format", box_format, ("xyxy", "xywh", "cxcywh"))
        self.outside = choice("outside", outside, ("nan", "keep"))
        self.min_visibility = number("min_visibility", min_visibility, PROBABILITY)
        self.inplace = flag("inplace", inplace)

    def _chosen(self, draw: Draw, where: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        where = where & self._applies(draw)
        return [where] * len(self.transforms)

    def _size(self, shape: Shape) -> Shape:
        size = shape
        for transform in self.transforms:
            size = transform._size(size)
        if size != shape and self.p < 1.0:
            raise ValueError(f"p must be 1 where the size changes, from {shape[:2]} to {size[:2]}, got {self.p}")
        return size

    # -- What a user calls --

    def __call__(self, key: BatchKey | int, *arrays: Any, out: Any = None) -> Any:
        if not arrays:
            raise TypeError("the images must be given after the key, as in chain(seed, images), got no array")
        if isinstance(key, np.ndarray) and key.ndim > 1:
            raise TypeError("key must come first, before the images, as in chain(seed, images), got an array")
        refuse_list(arrays[0], "images")
        return self.apply(self.sample(key, arrays[0]), *arrays, out=out)

    def sample(self, key: BatchKey | int, shape: Any) -> Any:
        if not isinstance(shape, (tuple, list)):
            shape = np.shape(shape)
        elif not all(isinstance(side, (int, np.integer)) for side in shape):
            raise TypeError(f"shape must be that of the images, or the images as one array, got {type(shape).__name__}")
        n, size = Images.sizes(shape, self.layout)
        key = to_key(key, n)
        return Sampler(key).sample(self, Shape(*size), np.ones(n, np.bool_))[0]

    def apply(self, params: Any, *arrays: Any, out: Any = None) -> Any:
        return run(self, params, arrays, out)

    def preview(self, images: Any, *others: Any, seed: int = 0, samples: int = 4, versions: int = 5) -> Figure:
        from ._preview import preview

        return preview(self, images, *others, seed=seed, samples=samples, versions=versions)


# -- Drawing and running -----------------------------------------------------------------------------------------------


class Sampler:
    """Numbers the transforms of a tree, and draws the parameters of each."""

    def __init__(self, key: BatchKey) -> None:
        self._key = key
        self._transforms = 0
        self._groups = GROUPS

    def sample(self, transform: Transform, shape: Shape, where: NDArray[np.bool_]) -> tuple[Any, Shape]:
        """The parameters of a transform that is asked about the samples `where`, and the shape afterwards."""
        size = transform._size(shape)
        if isinstance(transform, Group):
            draw = Draw(self._key, self._groups)
            self._groups += 1
            params = []
            for t, chosen in zip(transform.transforms, transform._chosen(draw, where), strict=True):
                drawn, after = self.sample(t, shape, chosen)
                params.append(drawn)
                if isinstance(transform, Compose):
                    shape = after
            return params, size
        draw = Draw(self._key, self._transforms)
        self._transforms += 1
        return {"apply": transform._applies(draw) & where, **transform._draw(draw, shape)}, size


class Step(NamedTuple):
    """What one transform does to a batch."""

    of: Transform
    applies: NDArray[np.bool_]
    stage: Stage | None
    """What the core is told; `None` for pairs."""
    mix: Mix | None
    map: NDArray[np.float64] | None
    """Where coordinates go."""
    size: Shape
    """Of a picture afterwards."""


class Segment(NamedTuple):
    """Transforms of single samples, then those of pairs, for which all samples must have come that far."""

    stages: list[tuple[str, NDArray[np.bool_], NDArray[np.float64], list[float]]]
    mixes: list[Mix]
    size: Shape
    """Of a picture afterwards."""
    dtype: np.dtype[Any]
    """Of the pictures afterwards."""


def run(chain: Compose, params: Any, arrays: tuple[Any, ...], out: Any) -> Any:
    """Applies a chain to the arrays of one call."""
    if not arrays:
        raise TypeError("the images must be given, got no array")
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(x, torch.Tensor) for x in (*arrays, out)):
        from ..torch._augment import on_arrays

        return on_arrays(lambda *arrays, out: run(chain, params, arrays, out), arrays, out, chain.inplace)
    images = Images(arrays[0], "images", chain.layout)
    kind = type_name(images.array)
    if kind not in TYPES:
        raise TypeError(
            f"images must be uint8 (0 to 255), float32, float16 or bfloat16, got {images.array.dtype}; "
            + (
                "use .astype(np.float32)"
                if kind == "float64"
                else "bring them to 0..255 as uint8, or to 0..1 as float32"
            )
        )
    n, before = images.n, Shape(*images.size)
    steps: list[Step] = []
    after = plan(chain, params, before, n, steps)
    needs = needs_unit(steps, kind)
    targets = Targets(chain, arrays, n, before, steps)
    dtype = images.dense.dtype
    segments = cut(steps, before, dtype)
    layout = chain.out_layout or chain.layout
    # Memory follows the layout that was asked for, or the order that the images have.
    planar = layout == "NCHW" if chain.out_layout else images.planar
    array, last = images.array, segments[-1].dtype
    fits = layout == chain.layout and after == before and array.dtype == last and array.flags.writeable
    if out is None and chain.inplace and fits and isinstance(arrays[0], np.ndarray) and not overlaps_itself(array):
        out = array
    result = Result(out, "out", (n, *after), last, layout, planar)
    if out is not None:
        refuse_overlap(out, "out", array, "images", True)
    # Before anything is written: `out` may be one of the other arrays.
    targets.follow(steps, segments)
    # Where the result is new memory, the range is looked at on the way.
    unit = bool(needs) and out is None
    if needs and not unit:
        refuse_range(images, kind, needs)
    source: Images | Result = images
    for segment in segments:
        target = result
        if segment is not segments[-1]:
            target = Result(None, "images", (n, *segment.size), segment.dtype, chain.layout, images.planar)
        if not advance(segment, source, target, n, before, unit and source is images):
            refuse_range(images, kind, needs)
        source, before = target, segment.size
    results = (result.done(), *targets.results())
    return results[0] if len(results) == 1 else results


def plan(transform: Transform, params: Any, shape: Shape, n: int, steps: list[Step]) -> Shape:
    """Adds what a transform does to the steps; returns the shape of a picture afterwards."""
    size = transform._size(shape)
    pairs = isinstance(transform, OneOf) and isinstance(transform.transforms[0], PairTransform)
    if pairs or isinstance(transform, PairTransform):
        # One step for all that OneOf chooses from: a sample's partner must not have been mixed already.
        children = transform._children(params) if isinstance(transform, Group) else [(transform, params)]
        mix = merged(children, shape, n)
        steps.append(Step(transform, np.ones(n, np.bool_), None, mix, None, size))
    elif isinstance(transform, Group):
        for t, p in transform._children(params):
            after = plan(t, p, shape, n, steps)
            if isinstance(transform, Compose):
                shape = after
    else:
        applies = applied(params, n)
        stage = transform._stage(params, shape)
        steps.append(Step(transform, applies, stage, None, transform._map(params, shape), size))
    return size


def applied(params: Any, n: int) -> NDArray[np.bool_]:
    """The parameter "apply", checked."""
    applies: NDArray[np.bool_] = rows(params, "apply", n, integer=True) != 0
    return applies


def merged(pairs: list[tuple[Transform, Any]], shape: Shape, n: int) -> Mix:
    """What transforms of pairs do together, each to the samples that it is applied to."""
    mix = Mix(np.arange(n, dtype=np.int64), np.ones(n), np.zeros((n, 4), np.int64), np.ones(n))
    for transform, params in pairs:
        assert isinstance(transform, PairTransform)
        applies = applied(params, n)
        for all_rows, own in zip(mix, transform._weights(params, shape), strict=True):
            all_rows[applies] = own[applies]
    return mix


def needs_unit(steps: list[Step], kind: str) -> str:
    """The transform that needs images of floats to be in 0..1, or ""; an error for values that are none of pixels."""
    floats, needs = kind != "uint8", ""
    left = ""
    """What may have put floats outside of 0..1."""
    for step in steps:
        name = type(step.of).__name__
        if step.of._unit and floats:
            if left:
                raise ValueError(f"{name} must come before {left}, because it needs images in 0..1")
            needs = needs or name
        for argument in ("fill", "value"):
            for value in np.atleast_1d(getattr(step.of, argument, 0)).tolist():
                if floats and (value == "random" or not 0 <= value <= 1):
                    left = f"{name} with {argument}={value!r}"
                elif not floats and value != "random" and not 0 <= value <= 255:
                    raise ValueError(f"{argument} of {name} must be from 0 to 255 for images of uint8, got {value!r}")
        if step.of._makes_floats and not floats:
            means = np.atleast_1d(getattr(step.of, "mean", 0.0))
            if (np.abs(means) > 1.0).any():
                raise ValueError(
                    f"mean of {name} must be in units of 0..1 for images of uint8, which are divided by 255, got "
                    f"{means.max():g}; divide mean and std by 255"
                )
            if not step.applies.all():
                raise ValueError(
                    f"{name} must be applied to all samples, because it makes float32 of uint8; some were left out by "
                    "OneOf, by p, or by their params"
                )
            floats = True
        if step.of._leaves_unit:
            left = name
    return needs


def refuse_range(images: Images, kind: str, needs: str) -> None:
    """An error for floats that are not in 0..1."""
    index = _core.outside_unit(flat(images.dense), kind)
    if index is not None:
        value = images.dense.reshape(-1)[index : index + 1]
        if kind == "bfloat16":  # which NumPy may not know
            value = (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        raise ValueError(
            f"images must be in 0..1 for {needs} where they are floats, got {value[0]} in image "
            f"{index // images.dense[0].size}; divide by 255, or keep them uint8"
        )


def cut(steps: list[Step], size: Shape, dtype: np.dtype[Any]) -> list[Segment]:
    """The steps in segments."""
    segments: list[Segment] = [Segment([], [], size, dtype)]
    for step in steps:
        if step.mix is not None:
            segments[-1].mixes.append(step.mix)
            continue
        assert step.stage is not None
        if segments[-1].mixes:
            segments.append(Segment([], [], size, dtype))
        if step.of._makes_floats and dtype == np.uint8:
            dtype = np.dtype(np.float32)
        size = step.size
        name, columns, settings = step.stage
        table = np.ascontiguousarray(columns, np.float64)
        segments[-1].stages.append((name, step.applies, table, [float(x) for x in settings]))
        segments[-1] = segments[-1]._replace(size=size, dtype=dtype)
    return segments


def advance(segment: Segment, source: Images | Result, target: Result, n: int, before: Shape, unit: bool) -> bool:
    """Brings the pictures from one place to another through a segment; `False` if they must be in 0..1 and are not."""
    kind = type_name(source.dense)
    mixes = segment.mixes
    if not segment.stages and not unit and mixes and source.planar == target.planar:
        mix(source.dense, target.dense, target.planar, kind, mixes[0])
        mixes = mixes[1:]
    else:
        memory = flat(source.dense), flat(target.dense)
        sizes = (*before, source.planar), (*segment.size, target.planar)
        if not _core.augment(*memory, kind, n, *sizes, segment.stages, unit):
            return False
    for step in mixes:
        mix(target.dense, target.dense, target.planar, type_name(target.dense), step)
    return True


class Targets:
    """The arrays besides the images, on their way through a chain."""

    def __init__(self, chain: Compose, arrays: tuple[Any, ...], n: int, size: Shape, steps: list[Step]) -> None:
        kinds = [*chain.targets, *[None] * len(arrays)]
        self._chain, self._n, self._before = chain, n, size
        self._after = steps[-1].size if steps else size
        self._items: list[tuple[str | None, str, Any, str]] = []
        mixing = [step for step in steps if step.mix is not None]
        for i, array in enumerate(arrays[1:], start=1):
            kind, name, item, axes = kinds[i], f"arrays[{i}] ({kinds[i]})", array, ""
            if kind == "mask":
                item = unmasked(array, name)
                axes = mask_layout(item, name, chain.layout, n, size[:2])
                word(chain.mask_fill, item.dtype, "mask_fill")
                if chain.out_layout not in (None, chain.layout) and axes != "NHW":
                    raise ValueError(f"{name} must be of shape (N, H, W) where out_layout is another one")
                if any(step.mix is not None and not is_cut(step.mix) for step in steps):
                    refuse_mixed(item, name)
            elif kind in ("boxes", "keypoints"):
                if mixing:
                    raise ValueError(
                        f"{name} cannot be mixed by {type(mixing[0].of).__name__}; leave it out of the chain"
                    )
                item = Points(
                    array, name, n, kind == "boxes", chain.box_format, chain.outside == "keep", chain.min_visibility
                )
            elif kind == "label":
                shape = tuple(getattr(array, "shape", ()))
                if shape[:3] == (n, *size[:2]) or shape[2:] == size[:2]:
                    raise ValueError(
                        f"{name} must be labels, got the shape of masks, {shape}; "
                        'Compose(..., targets=("image", "mask")) says that they are masks'
                    )
                if (shape or isinstance(array, (list, tuple))) and len(array) != n:
                    raise ValueError(f"{name} must have a label for each of {n} samples, got {len(array)}")
                if mixing:
                    item = soft_labels(array, name, n, self._classes(mixing))
            self._items.append((kind, name, item, axes))

    def _classes(self, mixing: list[Step]) -> int | None:
        """The number of classes that the transforms of pairs were told."""
        of = [leaf for step in mixing for leaf in leaves(step.of)]
        told = {leaf.num_classes for leaf in of if isinstance(leaf, PairTransform)} - {None}
        if len(told) > 1:
            raise ValueError(f"num_classes must be the same in all of a chain, got {sorted(map(str, told))}")
        return told.pop() if told else None

    def follow(self, steps: list[Step], segments: list[Segment]) -> None:
        """Goes the way of the images."""
        for i, (kind, name, item, axes) in enumerate(self._items):
            if kind == "mask":
                new = self._mask(item, name, axes, segments)
            elif kind in ("boxes", "keypoints"):
                for step in steps:
                    if step.map is not None:
                        item.move(step.map, step.size[:2], step.applies)
                new = item.finish(self._after[:2])
            elif kind == "label":
                new = item
                for segment in segments:
                    for mix in segment.mixes:
                        new = mix_labels(new, mix)
            else:
                new = item
            self._items[i] = (kind, name, new, axes)

    def _mask(self, mask: Array, name: str, axes: str, segments: list[Segment]) -> Array:
        chain, before = self._chain, self._before
        for segment in segments:
            mask = move_masks(
                mask, name, axes, (*before, False), (*segment.size, False), segment.stages, chain.mask_fill
            )
            for step in segment.mixes:
                mask = mix_masks(mask, name, axes, step)
            before = segment.size
        return mask

    def results(self) -> list[Any]:
        """The arrays afterwards."""
        return [item for _, _, item, _ in self._items]
