"""Transforms with injected parameters beside OpenCV, SciPy, torchvision and torch.

Each comparison states the convention that both keep, and how far apart they may be: for float32 the largest difference,
for bytes that difference and the share of all bytes that may have it. Where no number is given both are exactly equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

import augment_cases as cases
from augment_cases import F32, U8, Params, Size, apply, pictures
from augment_reference import BORDERS, inverse_affine
from ironstep import augment

Array = cases.Array
Options = dict[str, Any]


def tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))


def picture(t: torch.Tensor) -> Array:
    return t.numpy().transpose(1, 2, 0)


class Peer(NamedTuple):
    """A function of another library that does the same."""

    name: str
    transform: str
    options: Options
    draw: Callable[[np.random.Generator, int, Size], Params]
    function: Callable[[Array, Params, Options], Array]
    """Of a picture (h, w, c), its parameters, and the options."""
    floats: float = 0.0
    """The largest difference of float32 (from 0 to 1)."""
    levels: float = 0
    """The largest difference of bytes."""
    share: float = 1.0
    """The share of bytes that may differ."""
    sizes: tuple[tuple[int, int], ...] = ((5, 4), (37, 50))
    dtypes: tuple[np.dtype[Any], ...] = (U8, F32)


# -- Flips and crops: copies of pixels, all equal ----------------------------------------------------------------------

CV_BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
    "wrap": cv2.BORDER_WRAP,
}
NDIMAGE_BORDERS = {
    "constant": "grid-constant",
    "edge": "nearest",
    "reflect": "mirror",
    "symmetric": "reflect",
    "wrap": "grid-wrap",
}


def turns(rng: np.random.Generator, n: int, size: Size) -> Params:
    return {"k": np.full(n, 2) if size.h != size.w else 1 + np.arange(n) % 3}


def cv_turn(x: Array, p: Params, o: Options) -> Array:
    return cv2.rotate(x, [cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE][p["k"] - 1])


def cv_crop(x: Array, p: Params, o: Options) -> Array:
    """The window is cut out of a picture with a wide border."""
    m, (h, w) = 20, o["size"]
    fill = [float(v) for v in o["fill"]]
    padded = cv2.copyMakeBorder(x, m, m, m, m, CV_BORDERS[o["padding_mode"]], value=fill)
    return padded[m + p["top"] :, m + p["left"] :][:h, :w]


def torch_crop(x: Array, p: Params, o: Options) -> Array:
    """torchvision pads by less than the picture, so 3 pixels. It has no "wrap"."""
    fill = [float(v) for v in o["fill"]] if o["padding_mode"] == "constant" else None
    padded = functional.pad(tensor(x), [3] * 4, fill=fill, padding_mode=o["padding_mode"])
    return picture(functional.crop(padded, p["top"] + 3, p["left"] + 3, *o["size"]))


def center_crop(x: Array, p: Params, o: Options) -> Array:
    return picture(functional.center_crop(tensor(x), o["size"]))


def middle(rng: np.random.Generator, n: int, size: Size) -> Params:
    return dict(augment.CenterCrop((8, 9)).sample(0, (n, *size)))


COPIES = [
    Peer("cv_flip", "RandomHorizontalFlip", {}, cases.nothing, lambda x, p, o: cv2.flip(x, 1)),
    Peer("cv_flip_vertical", "RandomVerticalFlip", {}, cases.nothing, lambda x, p, o: cv2.flip(x, 0)),
    Peer("cv_rotate", "RandomRotate90", {}, turns, cv_turn, sizes=((5, 4), (6, 6))),
    *(
        Peer(
            f"cv_crop_{border}",
            "RandomCrop",
            {"size": (9, 8), "padding": 20, "fill": cases.EACH, "padding_mode": border},
            cases.corners,
            cv_crop,
        )
        for border in BORDERS
    ),
    *(
        Peer(
            f"torch_crop_{border}",
            "RandomCrop",
            {"size": (6, 5), "padding": 20, "fill": cases.EACH, "padding_mode": border},
            cases.corners,
            torch_crop,
        )
        for border in ("constant", "edge", "reflect", "symmetric")
    ),
    Peer("torch_center_crop", "CenterCrop", {"size": (8, 9)}, middle, center_crop, sizes=((37, 50), (8, 4), (5, 20))),
]


# -- Warps: pixel centres at whole numbers, angles counter-clockwise ---------------------------------------------------


def angles(rng: np.random.Generator, n: int, size: Size) -> Params:
    """None that makes a point lie half-way between pixels, where the nearest one is a matter of rounding."""
    return {"angle": rng.uniform(-180, 180, n)}


def cv_rotate(x: Array, p: Params, o: Options) -> Array:
    """The matrix by OpenCV: about ((w - 1) / 2, (h - 1) / 2) in its coordinates. OpenCV 5 interpolates in float32."""
    h, w, _ = x.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), p["angle"], 1.0)
    flags = cv2.INTER_NEAREST if o["interpolation"] == "nearest" else cv2.INTER_LINEAR
    border, fill = CV_BORDERS[o["padding_mode"]], [float(v) for v in o["fill"]]
    return cv2.warpAffine(x, matrix, (w, h), flags=flags, borderMode=border, borderValue=fill)


def ndimage_rotate(x: Array, p: Params, o: Options) -> Array:
    """Splines of order 0 or 1 in float64; (row, column) coordinates. Not rounded to bytes."""
    a, b, c, d, e, f = inverse_affine(*x.shape[:2], -p["angle"])
    return np.stack(
        [
            scipy.ndimage.affine_transform(
                x[:, :, k].astype(np.float64),
                np.array([[e, d], [b, a]]),
                [f, c],
                order=int(o["interpolation"] == "bilinear"),
                mode=NDIMAGE_BORDERS[o["padding_mode"]],
                cval=o["fill"][k],
            )
            for k in range(x.shape[2])
        ],
        axis=2,
    )


def torch_rotate(x: Array, p: Params, o: Options) -> Array:
    """By a grid of float32 from -1 to 1. Its bilinear `fill` counts twice along the edge, so only 0 is comparable."""
    center = None if o.get("center") is None else list(o["center"])
    mode = InterpolationMode(o["interpolation"])
    return picture(functional.rotate(tensor(x), float(p["angle"]), mode, center=center))


def torch_affine(x: Array, p: Params, o: Options) -> Array:
    """Its angle is clockwise, ours is not; the rest is the same."""
    center = None if o.get("center") is None else list(o["center"])
    return picture(
        functional.affine(
            tensor(x),
            -float(p["angle"]),
            [int(v) for v in p["translate"]],
            float(p["scale"]),
            [float(v) for v in p["shear"]],
            InterpolationMode(o["interpolation"]),
            center=center,
        )
    )


def affines(rng: np.random.Generator, n: int, size: Size) -> Params:
    """Small shifts, so that something is seen."""
    params = cases.affines(rng, n, size)
    return params | {"translate": np.stack([rng.integers(-3, 4, n) for _ in range(2)], axis=1).astype(np.float64)}


ANGLES = {"degrees": 180, "fill": cases.EACH}
AFFINE = {"degrees": 180, "translate": (1, 1), "scale": (0.1, 9), "shear": (-80, 80, -80, 80)}
WARPS = [
    peer
    for border in BORDERS
    for peer in (
        # OpenCV's coordinates are float32 (of a picture of 50 pixels: 4e-6).
        Peer(
            f"cv_nearest_{border}",
            "RandomRotation",
            {**ANGLES, "interpolation": "nearest", "padding_mode": border},
            angles,
            cv_rotate,
        ),
        Peer(
            f"cv_bilinear_{border}",
            "RandomRotation",
            {**ANGLES, "interpolation": "bilinear", "padding_mode": border},
            angles,
            cv_rotate,
            floats=1e-5,
            levels=1,
            share=0.002,
        ),
        Peer(
            f"ndimage_nearest_{border}",
            "RandomRotation",
            {**ANGLES, "interpolation": "nearest", "padding_mode": border},
            angles,
            ndimage_rotate,
            floats=5e-8,
        ),
        Peer(
            f"ndimage_bilinear_{border}",
            "RandomRotation",
            {**ANGLES, "interpolation": "bilinear", "padding_mode": border},
            angles,
            ndimage_rotate,
            floats=5e-7,
            levels=0.5001,
        ),
    )
] + [
    peer
    for interpolation, floats, levels in (("nearest", 0.0, 0), ("bilinear", 1e-5, 1))
    for center in (None, (11.0, 30.5))
    for peer in (
        Peer(
            f"torch_rotate_{interpolation}{'' if center is None else '_center'}",
            "RandomRotation",
            {"degrees": 180, "interpolation": interpolation, "center": center},
            angles,
            torch_rotate,
            floats,
            levels,
            0.002,
        ),
        Peer(
            f"torch_affine_{interpolation}{'' if center is None else '_center'}",
            "RandomAffine",
            {**AFFINE, "interpolation": interpolation, "center": center},
            affines,
            torch_affine,
            floats,
            levels,
            0.002,
        ),
    )
]


# -- Resizing: half-pixel centres --------------------------------------------------------------------------------------


def interpolate(x: Array, p: Params, o: Options) -> Array:
    """torch computes coordinates and weights in float32; not rounded to bytes.

    Where a point lies exactly between two pixels, torch's nearest one is a matter of rounding: not with these sizes.
    """
    mode = "nearest-exact" if o["interpolation"] == "nearest" else "bilinear"
    align = {} if mode == "nearest-exact" else {"align_corners": False, "antialias": o["antialias"]}
    return picture(torch.nn.functional.interpolate(tensor(x)[None].float(), o["size"], mode=mode, **align)[0])


def torch_resize(x: Array, p: Params, o: Options) -> Array:
    """Of bytes, in fixed point: its weights have 16 bits or fewer."""
    return picture(functional.resize(tensor(x), o["size"], antialias=o["antialias"]))


def torch_resized_crop(x: Array, p: Params, o: Options) -> Array:
    box = [int(p[k]) for k in ("top", "left", "height", "width")]
    mode = InterpolationMode("nearest-exact" if o["interpolation"] == "nearest" else "bilinear")
    return picture(functional.resized_crop(tensor(x), *box, o["size"], mode, antialias=o["antialias"]))


def cv_resize(x: Array, p: Params, o: Options) -> Array:
    """INTER_LINEAR does not filter. Of bytes, in fixed point with 11 bits."""
    h, w = o["size"]
    return cv2.resize(x, (w, h), interpolation=cv2.INTER_LINEAR).reshape(h, w, -1)


RESIZES = [
    peer
    for size in ((20, 25), (80, 61), (5, 90), (36, 51), (2, 3))
    for peer in (
        Peer(
            f"torch_nearest_{size[0]}_{size[1]}",
            "Resize",
            {"size": size, "interpolation": "nearest", "antialias": False},
            cases.nothing,
            interpolate,
            sizes=((37, 50), (5, 7)),
        ),
        *(
            Peer(
                f"torch_bilinear_{size[0]}_{size[1]}{'_antialias' if antialias else ''}",
                "Resize",
                {"size": size, "interpolation": "bilinear", "antialias": antialias},
                cases.nothing,
                interpolate,
                floats=5e-6,
                levels=0.501,
            )
            for antialias in (False, True)
        ),
        *(
            Peer(
                f"torch_resize_bytes_{size[0]}_{size[1]}{'_antialias' if antialias else ''}",
                "Resize",
                {"size": size, "interpolation": "bilinear", "antialias": antialias},
                cases.nothing,
                torch_resize,
                levels=1,
                share=0.3,
                dtypes=(U8,),
                sizes=((37, 50),),
            )
            for antialias in (False, True)
        ),
        Peer(
            f"cv_bilinear_{size[0]}_{size[1]}",
            "Resize",
            {"size": size, "interpolation": "bilinear", "antialias": False},
            cases.nothing,
            cv_resize,
            floats=5e-7,
            levels=1,
            share=0.2,
        ),
    )
] + [
    Peer(
        f"torch_resized_crop_{interpolation}",
        "RandomResizedCrop",
        {"size": (17, 13), "interpolation": interpolation, "antialias": True},
        cases.parts,
        torch_resized_crop,
        floats=5e-6 if interpolation == "bilinear" else 0.0,
        levels=1 if interpolation == "bilinear" else 0,
        share=0.3,
        sizes=((5, 4), (37, 50)),
    )
    for interpolation in ("nearest", "bilinear")
]


# -- Blur: the border is mirrored at the middle of the last pixel ------------------------------------------------------


def sigmas(rng: np.random.Generator, n: int, size: Size) -> Params:
    return {"sigma": rng.uniform(0.1, 3.0, n)}


def cv_blur(x: Array, p: Params, o: Options) -> Array:
    """The kernel size is (x, y). Of bytes, in fixed point with 8 bits."""
    return cv2.GaussianBlur(x, o["kernel_size"], p["sigma"], borderType=cv2.BORDER_REFLECT_101)


def torch_blur(x: Array, p: Params, o: Options) -> Array:
    """The kernel size is (x, y). One sum over the kernel's two dimensions, bytes rounded to nearest."""
    return picture(functional.gaussian_blur(tensor(x), list(o["kernel_size"]), [float(p["sigma"])]))


def ndimage_blur(x: Array, p: Params, o: Options) -> Array:
    """float64, not rounded to bytes."""
    y = x.astype(np.float64)
    for axis, k in ((1, o["kernel_size"][0]), (0, o["kernel_size"][1])):
        y = scipy.ndimage.gaussian_filter1d(y, p["sigma"], axis=axis, mode="mirror", radius=k // 2)
    return y


BLURS = [
    peer
    for w, h in ((5, 3), (1, 7), (7, 7))
    for peer in (
        Peer(
            f"cv_blur_{w}_{h}",
            "GaussianBlur",
            {"kernel_size": (w, h), "sigma": (0.1, 3.0)},
            sigmas,
            cv_blur,
            floats=5e-7,
            levels=2,
            share=0.4,
        ),
        Peer(
            f"torch_blur_{w}_{h}",
            "GaussianBlur",
            {"kernel_size": (w, h), "sigma": (0.1, 3.0)},
            sigmas,
            torch_blur,
            floats=5e-7,
            levels=1,
            share=0.001,
        ),
        Peer(
            f"ndimage_blur_{w}_{h}",
            "GaussianBlur",
            {"kernel_size": (w, h), "sigma": (0.1, 3.0)},
            sigmas,
            ndimage_blur,
            floats=5e-7,
            levels=0.5001,
        ),
    )
]
BLURS = [peer._replace(sizes=((8, 9), (37, 50))) for peer in BLURS]


# -- Colours: torchvision's formulas -----------------------------------------------------------------------------------


def torch_jitter(x: Array, p: Params, o: Options) -> Array:
    """Bytes are cut off after each step; torch's sums may be fused, so a step may differ by one level."""
    y = tensor(x)
    names = ["brightness", "contrast", "saturation", "hue"]
    for k in p["order"]:
        if names[k] in p:
            y = getattr(functional, f"adjust_{names[k]}")(y, float(p[names[k]]))
    return picture(y)


def torch_gray(x: Array, p: Params, o: Options) -> Array:
    return picture(functional.rgb_to_grayscale(tensor(x), 3))


def cv_gray(x: Array, p: Params, o: Options) -> Array:
    """.299 instead of .2989 for red, and bytes are rounded to nearest."""
    return np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


COLORS = [
    Peer(f"torch_{name}", "ColorJitter", {name: bound}, cases.factors(name), torch_jitter, 1e-6, 1, 0.002)
    for name, bound in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5))
] + [
    # A level more or less before the hue is turned may be several afterwards; on floats the hue of what is nearly gray
    # is nearly arbitrary, but so is the colour that it makes.
    Peer(
        "torch_jitter",
        "ColorJitter",
        {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5},
        cases.factors("brightness", "contrast", "saturation", "hue"),
        torch_jitter,
        floats=2e-5,
        levels=4,
        share=0.02,
    ),
    Peer("torch_gray", "RandomGrayscale", {}, cases.nothing, torch_gray, floats=2e-7, levels=1, share=0.001),
    Peer("cv_gray", "RandomGrayscale", {}, cases.nothing, cv_gray, floats=2e-4, levels=1),
]


# -- Values ------------------------------------------------------------------------------------------------------------


def torch_normalize(x: Array, p: Params, o: Options) -> Array:
    """Bytes times float32(1 / 255) there, divided by 255 here."""
    floats = functional.to_dtype(tensor(x), torch.float32, scale=True)
    return picture(functional.normalize(floats, list(o["mean"]), list(o["std"])))


def torch_erase(x: Array, p: Params, o: Options) -> Array:
    value = torch.tensor(o["value"]).to(tensor(x).dtype)[:, None, None]
    return picture(functional.erase(tensor(x), int(p["top"]), int(p["left"]), int(p["height"]), int(p["width"]), value))


def boxes(rng: np.random.Generator, n: int, size: Size) -> Params:
    return {
        "top": np.arange(n) % 3,
        "left": np.arange(n) % 2,
        "height": 1 + np.arange(n) % 2,
        "width": 2 + 0 * np.arange(n),
    }


VALUES = [
    Peer(
        "torch_normalize",
        "Normalize",
        {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]},
        cases.nothing,
        torch_normalize,
        floats=5e-7,
        levels=2e-6,
    ),
    Peer("torch_erase", "RandomErasing", {"value": cases.EACH}, boxes, torch_erase),
]

PEERS = [*COPIES, *WARPS, *RESIZES, *BLURS, *COLORS, *VALUES]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_same_as(peer: Peer) -> None:
    for (h, w), dtype in ((size, dtype) for size in peer.sizes for dtype in peer.dtypes):
        size, n = Size(h, w, 3), 5
        x = pictures(n, h, w, 3, dtype)
        case = cases.Case(peer.name, peer.transform, peer.draw, peer.function, peer.options, always=True)
        params, given = case.params(n, size), case.given(3, dtype == U8)
        got = apply(case.make(3, dtype), params, x).astype(np.float64)
        want = np.stack(
            [peer.function(x[i].copy(), {k: v[i] for k, v in params.items()}, given) for i in range(n)]
        ).astype(np.float64)
        assert got.shape == want.shape
        apart = np.abs(got - want)
        limit, share = (peer.levels, peer.share) if dtype == U8 else (peer.floats, 1.0)
        assert apart.max() <= limit, (
            f"{size}, {dtype}: {apart.max()} at {np.unravel_index(apart.argmax(), apart.shape)}"
        )
        # Of a small picture one byte may.
        assert (apart > 0).sum() <= max(1, share * apart.size), f"{size}, {dtype}: {(apart > 0).mean()} differ"


# -- Pairs -------------------------------------------------------------------------------------------------------------


def test_mixup_is_torchvisions() -> None:
    """lam x + (1 - lam) of the sample before; torch may fuse the sum. Labels too."""
    x, labels = pictures(6, 9, 8, 3, F32), np.arange(6) % 4
    mix = augment.MixUp(num_classes=4)
    params = mix.sample(3, x)
    lam = float(params["lam"][0])
    got, targets = mix.apply(params, x, labels)
    theirs = v2.MixUp(num_classes=4)
    given = {"lam": lam, "labels": torch.from_numpy(labels), "batch_size": 6}
    want = theirs.transform(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), given).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1.2e-7)
    np.testing.assert_allclose(targets, theirs.transform(given["labels"], given).numpy(), rtol=0, atol=1.2e-7)


def test_cutmix_is_torchvisions() -> None:
    """The box of the sample before; lam is the share that is left."""
    x, labels = pictures(6, 9, 8, 3, F32), np.arange(6) % 4
    mix = augment.CutMix(num_classes=4)
    params = mix.sample(3, x)
    top, left, bottom, right = (int(v) for v in params["box"][0])
    got, targets = mix.apply(params, x, labels)
    theirs = v2.CutMix(num_classes=4)
    given = {
        "box": (left, top, right, bottom),
        "lam_adjusted": 1 - (right - left) * (bottom - top) / 72,
        "labels": torch.from_numpy(labels),
        "batch_size": 6,
    }
    want = theirs.transform(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), given).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(targets, theirs.transform(given["labels"], given).numpy(), rtol=0, atol=1.2e-7)
