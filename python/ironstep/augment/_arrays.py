"""Images and masks: their axes, their memory, and where results go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..functional._arrays import Array, unmasked

LAYOUTS = ("NHWC", "NCHW", "NHW")

TYPES = ("uint8", "float32", "float16", "bfloat16")

TO_NHWC = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 2, 3, 1), "NHW": (0, 1, 2)}
"""The axes of each layout in the order NHWC."""


def type_name(x: Array) -> str:
    """NumPy's name of the type, in native byte order; "bfloat16" also for the mark of an array over a tensor."""
    if x.dtype.metadata is not None and x.dtype.metadata.get("ironstep") == "bfloat16":
        return "bfloat16"
    return x.dtype.newbyteorder("=").name


def flat(x: Array) -> NDArray[np.uint8]:
    """The memory of an array that is contiguous, as bytes."""
    return x.reshape(-1).view(np.uint8)


def refuse_list(x: Any, name: str) -> None:
    """An error for a list of pictures."""
    if isinstance(x, (list, tuple)):
        raise TypeError(
            f"{name} must be one array, got a {type(x).__name__}: np.stack(images) makes one of pictures of one size, "
            "others go through one by one, as np.asarray(images[i])[None] (ironstep.torch.Augmented does it)"
        )


class Images:
    """A batch of pictures in any layout and memory order, as the core takes it: dense, (n, h, w, c) or (n, c, h, w)."""

    def __init__(self, x: Any, name: str, layout: str) -> None:
        refuse_list(x, name)
        self.array = unmasked(x, name)
        self.n, self.size = Images.sizes(self.array.shape, layout, name)
        view = nhwc(self.array, layout)
        dense, self.planar = _dense(view)
        if dense is None:
            self.planar = layout == "NCHW"
            order = (0, 3, 1, 2) if self.planar else (0, 1, 2, 3)
            dense = np.require(view.transpose(order), view.dtype.newbyteorder("="), ["C", "A"])
        self.dense = dense
        """The pictures in one of the two orders: `array` itself, or a copy."""

    @staticmethod
    def sizes(shape: Any, layout: str, name: str = "images") -> tuple[int, tuple[int, int, int]]:
        """The samples, and (height, width, channels), from the shape of images."""
        shape = tuple(int(n) for n in shape)
        if len(shape) != len(layout):
            raise ValueError(
                f"{name} must have {len(layout)} axes, {', '.join(layout)}, got shape {shape}; Compose(..., layout=) "
                'says which they have ("NHWC", "NCHW", "NHW"), and one picture alone is images[None]'
            )
        order = TO_NHWC[layout]
        n, h, w = (shape[axis] for axis in order[:3])
        return n, (h, w, shape[order[3]] if len(order) > 3 else 1)


def nhwc(x: Array, layout: str) -> Array:
    """A view with the axes (n, h, w, c)."""
    return x[..., None] if layout == "NHW" else x.transpose(TO_NHWC[layout])


def _dense(view: Array) -> tuple[Array | None, bool]:
    """The memory of a view (n, h, w, c) as it is if it is dense, and whether it is channel by channel."""
    for planar, order in ((False, (0, 1, 2, 3)), (True, (0, 3, 1, 2))):
        memory = view.transpose(order)
        if memory.flags.c_contiguous and memory.flags.aligned and memory.dtype.isnative:
            return memory, planar
    return None, False


class Result:
    """Where pictures go: a new array, or the caller's, through a copy if the core cannot write it as it is."""

    def __init__(
        self, out: Any, name: str, shape: tuple[int, int, int, int], dtype: np.dtype[Any], layout: str, planar: bool
    ) -> None:
        """For pictures of the shape (n, h, w, c) in a layout; new ones in memory channel by channel if `planar`."""
        logical = tuple(np.empty(shape, np.bool_).transpose(_from_nhwc(layout)).shape) if layout != "NHW" else shape[:3]
        if layout == "NHW" and shape[3] != 1:
            raise ValueError(f'layout "NHW" must have images of 1 channel, got {shape[3]}')
        if out is None:
            order = (0, 3, 1, 2) if planar else (0, 1, 2, 3)
            memory = np.empty([shape[axis] for axis in order], dtype)
            view = memory.transpose(np.argsort(order))
            self.result = view[..., 0] if layout == "NHW" else view.transpose(_from_nhwc(layout))
        else:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got {type(out).__name__}")
            unmasked(out, name)
            if out.shape != logical or out.dtype.newbyteorder("=") != dtype.newbyteorder("="):
                raise ValueError(
                    f"{name} must be {dtype.name} of shape {logical}, got {out.dtype.name} of shape {out.shape}"
                )
            if not out.flags.writeable:
                raise ValueError(f"{name} must be writeable, because it is written; it is read-only (make a copy)")
            if overlaps_itself(out):
                raise ValueError(f"{name} must have a place of its own for each element; make a copy")
            self.result = out
        dense, self.planar = _dense(nhwc(self.result, layout))
        if dense is None:
            self.planar = planar
            order = (0, 3, 1, 2) if planar else (0, 1, 2, 3)
            dense = np.empty([shape[axis] for axis in order], dtype.newbyteorder("="))
        self.dense = dense
        """What the core writes."""
        self._view = nhwc(self.result, layout)

    def done(self) -> Array:
        """The result, when the core has written it."""
        if self.dense.size and not np.shares_memory(self.dense, self.result):
            self._view[...] = self.dense.transpose((0, 2, 3, 1)) if self.planar else self.dense
        return self.result


def overlaps_itself(x: Array) -> bool:
    """Whether elements share memory, or it cannot be told from the strides alone."""
    reach = x.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < reach:
            return x.size > 0
        reach += (n - 1) * stride
    return False


def _from_nhwc(layout: str) -> tuple[int, ...]:
    """Where the axes of a layout are in (n, h, w, c)."""
    return tuple(int(axis) for axis in np.argsort(TO_NHWC[layout]))


# -- Masks -------------------------------------------------------------------------------------------------------------


def mask_layout(mask: Array, name: str, layout: str, n: int, size: tuple[int, int]) -> str:
    """Its axes: those of the images, or without channels."""
    if (
        mask.dtype.hasobject
        or mask.dtype.names
        or mask.dtype.kind not in "biufV"
        or mask.dtype.itemsize not in (1, 2, 4, 8)
    ):
        raise TypeError(f"{name} must be an array of numbers of 1, 2, 4 or 8 bytes, got {mask.dtype}")
    axes = "NHW" if mask.ndim == 3 else layout
    shape = mask.shape
    fits = mask.ndim == len(axes)
    if fits:
        count, (h, w, _) = Images.sizes(shape, axes, name)
        fits = count == n and (h, w) == size
    if not fits:
        raise ValueError(
            f"{name} must have {n} masks of {size[0]} x {size[1]} like the images, (N, H, W) or {layout}, got shape "
            f"{shape}"
        )
    return axes


def word(fill: float, dtype: np.dtype[Any], name: str) -> int:
    """The bits of a fill value."""
    value = np.zeros(1, dtype.newbyteorder("="))
    try:
        with np.errstate(all="ignore"):
            value[0] = fill
    except (OverflowError, ValueError):
        raise ValueError(f"{name} must be a value of masks of {dtype}, got {fill!r}") from None
    if value[0] != fill and fill == fill:
        raise ValueError(f"{name} must be a value of masks of {dtype}, got {fill!r}")
    return int(value.view(f"u{dtype.itemsize}")[0])


def move_masks(
    mask: Array, name: str, axes: str, before: tuple[Any, ...], after: tuple[Any, ...], stages: Any, fill: float
) -> Array:
    """New masks, moved as the pictures are; before, after: (height, width, channels, planar) of those."""
    masks = Images(mask, name, axes)
    shape = (masks.n, after[0], after[1], masks.size[2])
    dtype = masks.dense.dtype
    result = Result(None, name, shape, dtype, axes, masks.planar)
    planar = [masks.planar, result.planar]
    bits = word(fill, dtype, "mask_fill")
    _core.augment_masks(
        flat(masks.dense),
        flat(result.dense),
        dtype.itemsize,
        masks.n,
        before,
        after,
        masks.size[2],
        planar,
        bits,
        stages,
    )
    return result.done()


def mix(source: Array, target: Array, planar: bool, type_name: str, step: Any) -> None:
    """Mixes pictures or masks, from one place to another or in place; both as `Images` has them."""
    n, h, w, c = source.transpose((0, 2, 3, 1)).shape if planar else source.shape
    rows = step.partner, step.weight, step.boxes
    _core.augment_mix(flat(source), flat(target), type_name, n, (h, w, c, planar), *rows)


def is_cut(step: Any) -> bool:
    """Whether each pixel comes from one of the two."""
    return bool(((step.weight == 0.0) | (step.weight == 1.0)).all())


def refuse_mixed(mask: Array, name: str) -> None:
    """An error for masks of whole numbers, which have no mean."""
    if mask.dtype.kind != "f" and type_name(mask) != "bfloat16":
        raise TypeError(
            f"{name} must be an array of floats (one-hot masks) to be mixed by MixUp, got {mask.dtype}: whole numbers "
            "have no mean. CutMix takes them"
        )


def mix_masks(mask: Array, name: str, axes: str, step: Any) -> Array:
    """New masks, mixed as the pictures are."""
    masks = Images(mask, name, axes)
    shape = (masks.n, *masks.size)
    result = Result(None, name, shape, masks.dense.dtype, axes, masks.planar)
    # What is only moved is moved as bits.
    kind = f"uint{8 * mask.dtype.itemsize}" if is_cut(step) else type_name(masks.dense)
    mix(masks.dense, result.dense, masks.planar, kind, step)
    return result.done()


# -- Labels ------------------------------------------------------------------------------------------------------------


def soft_labels(labels: Any, name: str, n: int, num_classes: int | None) -> Array:
    """Labels as something that has a mean: whole numbers one-hot in float32, floats as they are."""
    values = unmasked(labels, name)
    if values.ndim == 0 or len(values) != n:
        raise ValueError(f"{name} must have a label for each of {n} samples, got shape {values.shape}")
    if values.dtype.kind == "f":
        if values.ndim == 1 and num_classes is not None:
            raise TypeError(
                f"{name} must be whole numbers of shape (N,) where num_classes is given, or soft targets "
                f"(N, num_classes), got {values.dtype} of shape {values.shape}; use .astype(np.int64)"
            )
        return values
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise TypeError(
            f"{name} must be whole numbers of shape (N,) or soft targets of floats to be mixed, got {values.dtype} of "
            f"shape {values.shape}"
        )
    if num_classes is None:
        raise ValueError(
            f"num_classes must be given to MixUp and CutMix where {name} are whole numbers, of which soft targets are "
            "made"
        )
    if values.size and not (int(values.min()) >= 0 and int(values.max()) < num_classes):
        bad = values[(values < 0) | (values >= num_classes)][0]
        raise ValueError(f"{name} must be from 0 to num_classes - 1 = {num_classes - 1}, got {bad}")
    soft = np.zeros((n, num_classes), np.float32)
    soft[np.arange(n), values.astype(np.int64)] = 1.0
    return soft


def mix_labels(labels: Array, step: Any) -> Array:
    """Of each sample lam y_i + (1 - lam) y_partner, in the type of the labels."""
    lam = step.lam.reshape((-1,) + (1,) * (labels.ndim - 1))
    own, other = lam.astype(labels.dtype), (1.0 - lam).astype(labels.dtype)
    with np.errstate(all="ignore"):
        mixed: Array = own * labels + other * labels[step.partner]
    # Where nothing is mixed, nothing is computed.
    return np.where(lam == 1.0, labels, np.where(lam == 0.0, labels[step.partner], mixed))
