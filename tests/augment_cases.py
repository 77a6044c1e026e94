"""The table of augmentation: a row per transform and way to use it, with injected parameters and the specification.

Also what the tests of augmentation share.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import augment_reference as reference
from ironstep import augment
from ironstep.augment import _base as augment_base
from layers_reference import narrowed

Array = NDArray[Any]
Params = dict[str, Any]

U8, F32 = np.dtype(np.uint8), np.dtype(np.float32)
F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = [U8, F32, F16, BF16]
LAYOUTS = ["NHWC", "NCHW", "NHW"]
CHANNELS = [1, 3, 4]


class Size(NamedTuple):
    """Of a picture."""

    h: int
    w: int
    c: int


SIZES = [(1, 1), (1, 7), (6, 1), (2, 3), (5, 4), (8, 8), (9, 17), (16, 35)]
"""(height, width): around where vectors of 8 and 16 end."""

EACH = [0.1, 0.8, 0.25, 0.6]
"""A value for each of up to four channels, of floats; bytes have 255 times that, rounded."""


# -- The table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A transform with injected parameters."""

    name: str
    transform: str
    """Its name in `ironstep.augment`."""
    draw: Callable[[np.random.Generator, int, Size], Params]
    """The parameters of n samples, each of them an array of n rows."""
    reference: Callable[[Array, Params, dict[str, Any]], Array]
    """What becomes of one picture (h, w, c), uint8 or float32, with its parameters and the options."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the constructor gets; `EACH` stands for a value per channel."""
    fits: Callable[[Size], bool] = lambda size: True
    unit: bool = False
    """Floats must be from 0 to 1."""
    always: bool = False
    """It has no probability."""
    moves: bool = False
    """Masks, boxes and keypoints go with it."""

    def given(self, c: int, byte: bool) -> dict[str, Any]:
        """The options for pictures with so many channels."""
        each: Any = [round(255 * v) for v in EACH[:c]] if byte and "mean" not in self.options else EACH[:c]
        return {k: each if v is EACH else v for k, v in self.options.items()}

    def make(self, c: int, dtype: np.dtype[Any]) -> Any:
        return getattr(augment, self.transform)(**self.given(c, dtype == U8))

    def params(self, n: int, size: Size) -> Params:
        """The same in every process."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {n} {size}".encode()))
        params = self.draw(rng, n, size)
        apply = np.ones(n, bool) if self.always else np.arange(n) % 4 != 2
        return {"apply": apply, **params}

    def expected(self, x: Array, params: Params) -> Array:
        """Of a batch (n, h, w, c) of any type, as it is stored."""
        wide = x if x.dtype == U8 else x.astype(F32)
        given = self.given(x.shape[3], x.dtype == U8)
        out = []
        with np.errstate(all="ignore"):
            for i, picture in enumerate(wide):
                mine = {k: v[i] for k, v in params.items()}
                out.append(self.reference(picture, mine, given) if mine["apply"] else picture)
            y = np.stack(out)
            return y if x.dtype == U8 else narrowed(y, x.dtype)


def nothing(rng: np.random.Generator, n: int, size: Size) -> Params:
    return {}


def angles(rng: np.random.Generator, n: int, size: Size) -> Params:
    angle = rng.uniform(-180, 180, n)
    angle[1::4] = rng.choice([0, 45, 90, -90, 180, 270], len(angle[1::4]))
    return {"angle": angle}


@dataclass(frozen=True)
class Warp(Case):
    """Where the specification of the matrix is exact but for rounding; the one of the transform is then used."""

    matrix: Callable[[Params, dict[str, Any], int, int], Array] = field(kw_only=True)

    def expected(self, x: Array, params: Params) -> Array:
        n, h, w, c = x.shape
        given = self.given(c, x.dtype == U8)
        stage = self.make(c, x.dtype)._stage(params, augment_base.Shape(h, w, c))
        want = np.array([self.matrix({k: v[i] for k, v in params.items()}, given, h, w) for i in range(n)])
        # Relative to the numbers that make it: up to 100 pixels, scaled up to 2.5 times.
        np.testing.assert_allclose(stage.columns, want, rtol=1e-12, atol=1e-11)
        return super().expected(x, params | {"matrix": stage.columns})


def rotation(p: Params, o: dict[str, Any], h: int, w: int) -> Array:
    return reference.inverse_affine(h, w, -p["angle"], center=o.get("center"))


def affine(p: Params, o: dict[str, Any], h: int, w: int) -> Array:
    return reference.inverse_affine(h, w, -p["angle"], p["translate"], p["scale"], p["shear"], o.get("center"))


def warped(x: Array, p: Params, o: dict[str, Any]) -> Array:
    border = o.get("padding_mode", "constant")
    return reference.warp(x, p["matrix"], o.get("interpolation", "nearest"), border, o.get("fill", 0))


def affines(rng: np.random.Generator, n: int, size: Size) -> Params:
    return {
        "angle": rng.uniform(-180, 180, n),
        "translate": np.stack([rng.integers(-v, v + 1, n) for v in (size.w, size.h)], axis=1).astype(np.float64),
        "scale": rng.uniform(0.4, 2.5, n),
        "shear": rng.uniform(-40, 40, (n, 2)),
    }


def corners(rng: np.random.Generator, n: int, size: Size) -> Params:
    """Up to two pixels outside of the picture."""
    return {"top": rng.integers(-2, 3, n), "left": rng.integers(-2, 3, n)}


def parts(rng: np.random.Generator, n: int, size: Size) -> Params:
    """Of a picture, at least one pixel."""
    height, width = rng.integers(1, size.h + 1, n), rng.integers(1, size.w + 1, n)
    height[::4], width[::4] = size.h, size.w
    return {
        "top": rng.integers(0, size.h - height + 1),
        "left": rng.integers(0, size.w - width + 1),
        "height": height,
        "width": width,
    }


def factors(*names: str, order: tuple[int, ...] | None = None) -> Callable[[np.random.Generator, int, Size], Params]:
    def draw(rng: np.random.Generator, n: int, size: Size) -> Params:
        params: Params = {name: rng.uniform(-0.5, 0.5, n) if name == "hue" else rng.uniform(0, 2, n) for name in names}
        orders = [rng.permutation(4) if order is None else order for _ in range(n)]
        params["order"] = np.array(orders, np.int64).reshape(n, 4)
        return params

    return draw


def jitter(x: Array, p: Params, o: dict[str, Any]) -> Array:
    values = [float(p.get(k, np.nan)) for k in ("brightness", "contrast", "saturation", "hue")]
    return reference.jitter(x, values, [int(k) for k in p["order"]])


def warps() -> list[Case]:
    rows: list[Case] = []
    for interpolation in ("nearest", "bilinear"):
        for border in reference.BORDERS:
            options = {"degrees": 180, "interpolation": interpolation, "padding_mode": border, "fill": EACH}
            name = f"rotation_{interpolation}_{border}"
            rows.append(Warp(name, "RandomRotation", angles, warped, options, matrix=rotation, moves=True))
        options = {
            "degrees": 180,
            "translate": (1.0, 1.0),
            "scale": (0.4, 2.5),
            "shear": (-40, 40, -40, 40),
            "interpolation": interpolation,
        }
        rows += [
            Warp(f"affine_{interpolation}", "RandomAffine", affines, warped, options, matrix=affine, moves=True),
            Warp(
                f"affine_{interpolation}_center_reflect",
                "RandomAffine",
                affines,
                warped,
                options | {"center": (3.25, -1.0), "padding_mode": "reflect"},
                matrix=affine,
                moves=True,
            ),
        ]
    return rows


def crops() -> list[Case]:
    def crop(x: Array, p: Params, o: dict[str, Any]) -> Array:
        h, w = o["size"]
        return reference.crop(x, p["top"], p["left"], h, w, o.get("padding_mode", "constant"), o.get("fill", 0))

    def middle(h: int, w: int) -> Callable[[np.random.Generator, int, Size], Params]:
        """Python's round, as torchvision: half a pixel goes to the even side."""

        def draw(rng: np.random.Generator, n: int, size: Size) -> Params:
            ends = ("top", size.h, h), ("left", size.w, w)
            return {k: np.full(n, round((a - b) / 2) if a >= b else -((b - a) // 2)) for k, a, b in ends}

        return draw

    rows = [
        Case(
            f"crop_{border}",
            "RandomCrop",
            corners,
            crop,
            {"size": (7, 5), "padding": 40, "fill": EACH, "padding_mode": border},
            always=True,
            moves=True,
        )
        for border in reference.BORDERS
    ]
    rows += [
        Case(f"center_crop_{h}_{w}", "CenterCrop", middle(h, w), crop, {"size": (h, w)}, always=True, moves=True)
        for h, w in ((3, 4), (8, 2), (1, 1), (20, 20))
    ]
    return rows


def resizes() -> list[Case]:
    def resize(x: Array, p: Params, o: dict[str, Any]) -> Array:
        return reference.resize(x, *o["size"], o["interpolation"], o["antialias"])

    def part(x: Array, p: Params, o: dict[str, Any]) -> Array:
        box = tuple(int(p[k]) for k in ("top", "left", "height", "width"))
        return reference.resize(x, *o["size"], o["interpolation"], o["antialias"], box)

    rows = []
    for name, interpolation, antialias in (
        ("nearest", "nearest", True),
        ("bilinear", "bilinear", False),
        ("antialias", "bilinear", True),
    ):
        for size in ((5, 4), (1, 1), (19, 40)):
            options = {"size": size, "interpolation": interpolation, "antialias": antialias}
            rows.append(
                Case(f"resize_{name}_{size[0]}_{size[1]}", "Resize", nothing, resize, options, always=True, moves=True)
            )
        options = {"size": (7, 11), "interpolation": interpolation, "antialias": antialias}
        rows.append(Case(f"resized_crop_{name}", "RandomResizedCrop", parts, part, options, always=True, moves=True))
    return rows


def colors() -> list[Case]:
    all_of = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
    rows = [
        Case(f"jitter_{name}", "ColorJitter", factors(name), jitter, {name: all_of[name]}, unit=True) for name in all_of
    ]
    rows.append(Case("jitter_any_order", "ColorJitter", factors(*all_of), jitter, all_of, unit=True))
    for order in ((1, 0, 2, 3), (3, 2, 0, 1), (0, 1, 3, 2)):
        name = "_".join(str(k) for k in order)
        draw = factors(*all_of, order=order)
        rows.append(Case(f"jitter_{name}", "ColorJitter", draw, jitter, all_of, unit=True))
    rows.append(Case("gray", "RandomGrayscale", nothing, lambda x, p, o: reference.gray(x)))
    return rows


def blurs() -> list[Case]:
    def sigmas(rng: np.random.Generator, n: int, size: Size) -> Params:
        return {"sigma": rng.uniform(0.1, 3, n)}

    def blur(x: Array, p: Params, o: dict[str, Any]) -> Array:
        w, h = o["kernel_size"]  # as torchvision: (x, y)
        return reference.blur(x, (h, w), (p["sigma"], p["sigma"]))

    return [
        Case(
            f"blur_{w}_{h}",
            "GaussianBlur",
            sigmas,
            blur,
            {"kernel_size": (w, h), "sigma": (0.1, 3.0)},
            fits=lambda size, w=w, h=h: size.w > w // 2 and size.h > h // 2,  # type: ignore[misc]
        )
        for w, h in ((1, 1), (3, 3), (5, 1), (1, 7), (9, 11))
    ]


def erasings() -> list[Case]:
    def boxes(rng: np.random.Generator, n: int, size: Size) -> Params:
        height, width = rng.integers(0, size.h + 1, n), rng.integers(0, size.w + 1, n)
        return {
            "top": rng.integers(0, size.h - height + 1),
            "left": rng.integers(0, size.w - width + 1),
            "height": height,
            "width": width,
        }

    def erase(x: Array, p: Params, o: dict[str, Any]) -> Array:
        box = p["top"], p["left"], p["top"] + p["height"], p["left"] + p["width"]
        return reference.erase(x, [box], o.get("value", 0))

    def squares(rng: np.random.Generator, n: int, size: Size) -> Params:
        """Also such that hang over the edge, or lie outside."""
        return {"top": rng.integers(-5, size.h + 2, (n, 2)), "left": rng.integers(-5, size.w + 2, (n, 2))}

    def cut_out(x: Array, p: Params, o: dict[str, Any]) -> Array:
        h, w = o["size"]
        boxes = [(top, left, top + h, left + w) for top, left in zip(p["top"], p["left"], strict=True)]
        return reference.erase(x, boxes, o["value"])

    return [
        Case("erasing", "RandomErasing", boxes, erase),
        Case("erasing_each", "RandomErasing", boxes, erase, {"value": EACH}),
        Case("cutout", "Cutout", squares, cut_out, {"size": (4, 3), "count": 2, "value": EACH}),
    ]


def normalizations() -> list[Case]:
    def normalize(x: Array, p: Params, o: dict[str, Any]) -> Array:
        return reference.normalize(x, o["mean"], o["std"])

    return [
        Case("normalize", "Normalize", nothing, normalize, {"mean": 0.4, "std": 0.2}, always=True),
        Case("normalize_each", "Normalize", nothing, normalize, {"mean": EACH, "std": EACH}, always=True),
    ]


CASES: list[Case] = [
    Case(
        "horizontal_flip", "RandomHorizontalFlip", nothing, lambda x, p, o: reference.flip(x, True, False), moves=True
    ),
    Case("vertical_flip", "RandomVerticalFlip", nothing, lambda x, p, o: reference.flip(x, False, True), moves=True),
    Case(
        "rotate90",
        "RandomRotate90",
        lambda rng, n, size: {"k": rng.integers(0, 4, n) if size.h == size.w else 2 * rng.integers(0, 2, n)},
        lambda x, p, o: reference.turn(x, int(p["k"])),
        moves=True,
    ),
    *warps(),
    *crops(),
    *resizes(),
    *colors(),
    *blurs(),
    *erasings(),
    *normalizations(),
]


# -- What several files use --------------------------------------------------------------------------------------------


@functools.cache
def pictures(n: int, h: int, w: int, c: int, dtype: np.dtype[Any]) -> Array:
    """A batch (n, h, w, c) of noise, with plain colours, black and white among it. Not to be written."""
    rng = np.random.default_rng(zlib.crc32(f"{n} {h} {w} {c}".encode()))
    x = rng.random((n, h, w, c))
    x[1:2] = np.round(4 * x[1:2]) / 4  # ties among channels
    x[2:3] = x[2:3, :, :, :1]  # gray
    x[..., 0, 0, :] = [[0.0], [1.0], [0.5], [0.0]][n % 4]
    out = np.rint(255 * x).astype(U8) if dtype == U8 else x.astype(F32).astype(dtype)
    out.flags.writeable = False
    return out


def laid_out(x: Array, layout: str) -> Array:
    """A batch (n, h, w, c) in that layout, contiguous."""
    if layout == "NHW":
        return x[..., 0].copy()
    return np.array(np.moveaxis(x, 3, 1) if layout == "NCHW" else x, order="C")


def restored(y: Array, layout: str) -> Array:
    """A batch in that layout as (n, h, w, c)."""
    if layout == "NHW":
        return y[..., None]
    return np.moveaxis(y, 1, 3) if layout == "NCHW" else y


def apply(transform: Any, params: Any, x: Array, layout: str = "NHWC", out: Array | None = None) -> Array:
    """With these parameters, in any layout."""
    if layout == "NHWC":
        return transform.apply(params, x, out=out)
    return augment.Compose([transform], layout=layout).apply([params], x, out=out)
