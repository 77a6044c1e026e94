"""Chains: what Compose and OneOf do with transforms that test_augment_ops.py tests one by one."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ironstep
from ironstep.augment import (
    CenterCrop,
    ColorJitter,
    Compose,
    CutMix,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    MixUp,
    Normalize,
    OneOf,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
    Transform,
)
from ironstep.data import Batches, BatchKey

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
FLOATS = (BYTES / np.float32(255)).astype(np.float32)

CHAINS: dict[str, list[Transform]] = {
    "nothing": [],
    "edits": [ColorJitter(0.4, 0.4, 0.4, 0.1), GaussianNoise(), RandomErasing(p=0.7)],
    "one make": [RandomRotation(30, "bilinear", p=0.6)],
    "two makes": [RandomRotation(30, "bilinear"), GaussianBlur(3, p=0.5)],
    "three makes": [RandomCrop(9, padding=2), RandomAffine(10, scale=(0.8, 1.2), p=0.5), Resize(7)],
    "larger inside": [Resize(31), RandomVerticalFlip(), CenterCrop(5), RandomHorizontalFlip()],
    "edits and makes": [
        RandomHorizontalFlip(),
        ColorJitter(0.2, p=0.5),
        RandomResizedCrop(10),
        RandomGrayscale(0.5),
        RandomRotate90(),
        Cutout(3, p=0.5),
    ],
    "normalised": [
        RandomResizedCrop(11),
        ColorJitter(0.4),
        Normalize((0.4, 0.5, 0.6), 0.25),
        RandomErasing(value="random"),
    ],
    "normalised first": [Normalize(0.5, 0.25), RandomHorizontalFlip(), RandomRotation(20, "bilinear")],
    "mixed inside": [
        RandomHorizontalFlip(),
        MixUp(num_classes=3, mode="sample"),
        RandomVerticalFlip(),
        Normalize(0.5, 1.0),
    ],
    "mixed twice": [MixUp(num_classes=3, p=0.5, mode="sample"), CutMix(num_classes=3, mode="pair")],
    "cropped, mixed, resized": [RandomCrop(8), CutMix(num_classes=3), Resize(14)],
}
LABELS = np.array([0, 1, 2, 0, 1, 2])


def same(a: Any, b: Any) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def one_by_one(chain: Compose, params: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    for transform, drawn in zip(chain.transforms, params, strict=True):
        images, labels = Compose([transform], layout=chain.layout).apply([drawn], images, labels)
    return images, labels


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_its_transforms_one_after_the_other(name: str, dtype: str, layout: str) -> None:
    images = BYTES if dtype == "uint8" else FLOATS
    if layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    before = images.copy()
    chain = Compose(CHAINS[name], layout=layout)
    params = chain.sample(5, images)
    want, soft = one_by_one(chain, params, images, LABELS)
    got, labels = chain.apply(params, images, LABELS)
    same(got, want)
    same(labels, soft)
    same(images, before)
    again, _ = chain(5, images, LABELS)
    same(again, want)
    # In memory that is there already, and over the images.
    out = np.full_like(want, 7)
    assert chain.apply(params, images, LABELS, out=out)[0] is out
    same(out, want)
    if want.shape == images.shape and want.dtype == images.dtype:
        own = images.copy()
        assert chain.apply(params, own, LABELS, out=own)[0] is own
        same(own, want)
    own = images.copy()
    result, _ = Compose(CHAINS[name], layout=layout, inplace=True).apply(params, own, LABELS)
    same(result, want)
    assert (result is own) == (want.shape == images.shape and want.dtype == images.dtype)


@pytest.mark.parametrize("name", CHAINS)
def test_layouts_give_the_same_pictures(name: str) -> None:
    for images in (BYTES, FLOATS):
        want, _ = Compose(CHAINS[name])(3, images, LABELS)
        planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        for given, layout, out_layout in (
            (images, "NHWC", "NCHW"),
            (planar, "NCHW", None),
            (planar, "NCHW", "NHWC"),
            (planar.transpose(0, 2, 3, 1), "NHWC", None),  # an NHWC array in planar memory
            (images.transpose(0, 3, 1, 2), "NCHW", None),  # channels_last
            (images[::-1].copy()[::-1], "NHWC", None),
        ):
            got, _ = Compose(CHAINS[name], layout=layout, out_layout=out_layout)(3, given, LABELS)
            got = got.transpose(0, 2, 3, 1) if (out_layout or layout) == "NCHW" else got
            same(got, want)


@pytest.mark.parametrize("name", [name for name in CHAINS if "mixed" not in name])
def test_neither_batches_nor_threads_matter(name: str) -> None:
    chain = Compose(CHAINS[name])
    images = np.concatenate([FLOATS, FLOATS[::-1], FLOATS])
    numbers = np.arange(100, 100 + len(images))
    whole = chain(BatchKey(9, 2, 0, numbers), images)
    order = np.random.default_rng(1).permutation(len(images))
    try:
        for threads, size in ((1, 1), (2, 5), (3, 18)):
            ironstep.set_num_threads(threads)
            for start in range(0, len(order), size):
                part = order[start : start + size]
                same(chain(BatchKey(9, 2, start, numbers[part]), images[part]), whole[part])
    finally:
        ironstep.set_num_threads(0)
    if name != "nothing":
        assert (chain(BatchKey(9, 3, 0, numbers), images) != whole).any()
        assert (chain(BatchKey(8, 2, 0, numbers), images) != whole).any() or name == "larger inside"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", [name for name in CHAINS if "mixed" not in name])
def test_halves_are_rounded_once(name: str, dtype: Any) -> None:
    images = FLOATS.astype(dtype)
    chain = Compose(CHAINS[name])
    same(chain(1, images), chain(1, images.astype(np.float32)).astype(dtype))
    same(
        chain(1, images, out=images.copy()[:, ::1]) if chain(1, images).shape == images.shape else chain(1, images),
        chain(1, images),
    )


def test_one_of_takes_one() -> None:
    images = np.repeat(BYTES, 50, axis=0)
    flips = [RandomHorizontalFlip(p=1.0), RandomVerticalFlip(p=1.0), RandomRotate90(p=1.0)]
    chain = OneOf(flips, weights=[2, 1, 1], p=0.8)
    drawn = chain.sample(4, images)
    counts = np.array([params["apply"].sum() for params in drawn])
    assert (sum(params["apply"].astype(int) for params in drawn) <= 1).all()
    np.testing.assert_allclose(counts / 300, [0.4, 0.2, 0.2], atol=0.08)
    got = chain.apply(drawn, images)
    want = images.copy()
    for flip, params in zip(flips, drawn, strict=True):
        where = params["apply"]
        want[where] = flip.apply({k: v[where] for k, v in params.items()}, images[where])
    same(got, want)
    assert (OneOf(flips, weights=[0, 1, 0]).sample(0, images)[1]["apply"]).all()


def test_one_of_with_other_sizes_inside() -> None:
    chain = Compose(
        [OneOf([RandomCrop(8), Compose([Resize(20), CenterCrop(8)]), RandomResizedCrop(8)]), RandomHorizontalFlip()]
    )
    drawn = chain.sample(0, BYTES)
    assert [len(p) if isinstance(p, list) else sorted(p) for p in drawn[0]][1] == 2
    got = chain.apply(drawn, BYTES)
    assert got.shape == (6, 8, 8, 3)
    where = drawn[0][0]["apply"]
    assert 0 < where.sum() < 6
    same(
        got[where],
        one_by_one(
            Compose([RandomCrop(8), RandomHorizontalFlip()]),
            [{k: v[where] for k, v in params.items()} for params in (drawn[0][0], drawn[1])],
            BYTES[where],
            LABELS[where],
        )[0],
    )


def test_one_of_pairs_mixes_originals() -> None:
    chain = OneOf([MixUp(num_classes=3, mode="sample"), CutMix(num_classes=3, mode="sample")])
    images, labels = np.repeat(FLOATS, 4, axis=0), np.tile(LABELS, 4)
    drawn = chain.sample(0, images)
    got, soft = Compose([chain]).apply([drawn], images, labels)
    a, b = (p["apply"] for p in drawn)
    assert (a ^ b).all()
    assert a.any()
    assert b.any()
    for transform, params, where in zip(chain.transforms, drawn, (a, b), strict=True):
        want, want_soft = transform.apply({**params, "apply": np.ones_like(where)}, images, labels)
        same(got[where], want[where])
        same(soft[where], want_soft[where])


# -- What goes with the images -----------------------------------------------------------------------------------------

MOVES: dict[str, list[Transform]] = {
    "flip": [RandomHorizontalFlip(p=1.0)],
    "flips": [RandomHorizontalFlip(), RandomVerticalFlip()],
    "turn": [RandomRotate90(p=1.0)],
    "crop": [RandomCrop((9, 7), padding=3)],
    "resized crop": [RandomResizedCrop((16, 24), scale=(0.3, 0.9))],
    "rotation": [RandomRotation(40)],
    "affine": [RandomAffine(20, translate=(0.2, 0.1), scale=(0.7, 1.4), shear=15)],
    "all": [
        RandomAffine(10, scale=(0.9, 1.1)),
        RandomCrop(11, padding=1),
        RandomHorizontalFlip(),
        Resize(22),
        RandomRotate90(),
    ],
}


@pytest.mark.parametrize("name", MOVES)
def test_points_go_where_the_pixels_go(name: str) -> None:
    """A blob around a keypoint is found again at the keypoint."""
    rng = np.random.default_rng(3)
    n, size = 24, 40
    centres = rng.uniform(10, 30, (n, 1, 2))
    y, x = np.mgrid[:size, :size]
    square = (x - centres[:, :, :1]) ** 2 + (y - centres[:, :, 1:]) ** 2
    images = np.exp(-square / 8).astype(np.float32)[..., None]
    moves = [copy.copy(t) for t in MOVES[name]]
    for t in moves:
        if isinstance(t, RandomRotation | RandomAffine):
            t.interpolation = "bilinear"
        if isinstance(t, RandomCrop):
            t.size = (t.size[0] + 20, t.size[1] + 20)
    chain = Compose(moves, targets=("image", "keypoints"))
    got, points = chain(1, images, centres)
    assert points.dtype == np.float64
    h, w = got.shape[1:3]
    far = 5
    checked = 0
    for picture, (px, py) in zip(got[..., 0], points[:, 0], strict=True):
        if not (far <= px < w - far and far <= py < h - far):
            continue
        yy, xx = np.mgrid[:h, :w]
        weight = np.where(picture > 0.1, picture, 0)
        found = (xx * weight).sum() / weight.sum(), (yy * weight).sum() / weight.sum()
        np.testing.assert_allclose(found, (px, py), atol=0.35)
        checked += 1
    assert checked >= n / 3


@pytest.mark.parametrize("name", MOVES)
def test_boxes_hold_what_they_held(name: str) -> None:
    """The pixels of a rectangle in a mask lie in its box, and reach its edges unless it is turned or cut."""
    rng = np.random.default_rng(5)
    n, size = 30, 32
    first = rng.integers(0, size - 8, (n, 2))
    last = first + rng.integers(4, 9, (n, 2))
    boxes = np.concatenate([first, last], 1)[:, None].astype(np.float32)
    mask = np.zeros((n, size, size), np.uint8)
    for m, (x0, y0), (x1, y1) in zip(mask, first, last, strict=True):
        m[y0:y1, x0:x1] = 1
    images = np.zeros((n, size, size, 3), np.uint8)
    chain = Compose(MOVES[name], targets=("image", "mask", "boxes"))
    got, masks, moved = chain(2, images, mask, boxes)
    h, w = got.shape[1:3]
    assert masks.shape == (n, h, w)
    assert masks.dtype == np.uint8
    assert moved.dtype == np.float32
    turned = name in ("rotation", "affine", "all")
    slack = 1.01 if name != "resized crop" else 2.5
    for m, (x0, y0, x1, y1) in zip(masks, moved[:, 0], strict=True):
        ys, xs = np.nonzero(m)
        if np.isnan(x0):
            assert len(ys) <= 3 * slack
            continue
        assert 0 <= x0 < x1 <= w
        assert 0 <= y0 < y1 <= h
        if len(ys) == 0:
            assert min(x1 - x0, y1 - y0) < slack or turned
            continue
        edges = np.array([xs.min() - x0, ys.min() - y0, x1 - xs.max() - 1, y1 - ys.max() - 1])
        assert (edges >= -slack).all()
        if not turned:
            assert (edges <= slack).all()


def test_masks_take_the_nearest_pixel_and_the_fill() -> None:
    images = np.zeros((4, 10, 10, 3), np.uint8)
    label = np.arange(4 * 100).reshape(4, 10, 10)
    for dtype in (np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64, np.bool_):
        mask = label.astype(dtype)
        fill = 1 if dtype is np.bool_ else 200
        chain = Compose([RandomRotation((45, 45))], targets=("image", "mask"), mask_fill=fill)
        _, got = chain(0, images, mask)
        assert got.dtype == dtype
        assert (got[:, 0, 0] == dtype(fill)).all()
        want = chain(0, images, label)[1]
        inside = want != fill
        np.testing.assert_array_equal(got[inside], want.astype(dtype)[inside])
    four = label[..., None] * np.ones(2, np.int64)
    _, got = chain(0, images, four)
    np.testing.assert_array_equal(got[..., 0], want)
    assert got.shape == (4, 10, 10, 2)
    with pytest.raises(ValueError, match="mask_fill must be a value of masks of uint8, got 300"):
        Compose([RandomRotation(5)], targets=("image", "mask"), mask_fill=300)(0, images, label.astype(np.uint8))


def test_boxes_that_leave() -> None:
    images = np.zeros((1, 10, 20, 3), np.uint8)
    boxes = np.array([[[0, 0, 4, 4], [16, 2, 20, 8], [np.nan] * 4, [8, 2, 12, 4]]], np.float64)
    crop = {"apply": np.array([True]), "top": np.array([0]), "left": np.array([10])}

    def moved(**options: Any) -> Any:
        return Compose([RandomCrop((10, 10))], targets=("image", "boxes"), **options).apply([crop], images, boxes)[1][0]

    nan = [np.nan] * 4
    np.testing.assert_array_equal(moved(), [nan, [6, 2, 10, 8], nan, [0, 2, 2, 4]])
    np.testing.assert_array_equal(moved(min_visibility=0.5), [nan, [6, 2, 10, 8], nan, [0, 2, 2, 4]])
    np.testing.assert_array_equal(moved(min_visibility=0.51), [nan, [6, 2, 10, 8], nan, nan])
    np.testing.assert_array_equal(moved(outside="keep"), [[-10, 0, -6, 4], [6, 2, 10, 8], nan, [-2, 2, 2, 4]])
    # The other formats, and lists.
    for form, given in (
        ("xywh", np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)),
        ("cxcywh", np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)),
    ):
        chain = Compose([RandomCrop((10, 10))], targets=("image", "boxes"), box_format=form)
        (got,) = chain.apply([crop], images, [given[0].astype(np.float32)])[1]
        assert got.dtype == np.float32
        want = [10, 2, 4, 6] if form == "xywh" else [8, 5, 4, 6]
        np.testing.assert_array_equal(got[1], [want[0] - 4 if form == "xywh" else want[0], *want[1:]])
    points = np.array([[[9.4, 1.0], [9.6, 1.0], [19.0, 9.0]]])
    got = Compose([RandomCrop((10, 10))], targets=("image", "keypoints")).apply([crop], images, points)[1]
    np.testing.assert_allclose(got, [[[np.nan, np.nan], [-0.4, 1.0], [9.0, 9.0]]])


def test_ragged_boxes_keep_their_counts() -> None:
    images = np.zeros((3, 16, 16, 3), np.uint8)
    boxes = [
        [],
        np.array([[1, 1, 5, 5]]),
        np.tile(np.float32([2, 3, 9, 9]), (4, 1)),
    ]
    got = Compose([RandomHorizontalFlip(1.0)], targets=("image", "boxes"))(0, images, boxes)[1]
    assert [len(b) for b in got] == [0, 1, 4]
    np.testing.assert_array_equal(got[1], [[11, 1, 15, 5]])
    np.testing.assert_array_equal(boxes[1], [[1, 1, 5, 5]])


def test_what_is_not_named_passes_through() -> None:
    marker = object()
    chain = Compose([RandomHorizontalFlip()], targets=("image", None, "label"))
    _, names, labels, more = chain(0, BYTES, ["a"] * 6, LABELS, marker)
    assert names == ["a"] * 6
    assert labels is LABELS
    assert more is marker


def test_labels_are_mixed() -> None:
    mix = MixUp(num_classes=4, mode="sample")
    params = mix.sample(0, BYTES)
    lam = params["lam"].astype(np.float32)[:, None]
    one_hot = np.eye(4, dtype=np.float32)[LABELS]
    soft = mix.apply(params, FLOATS, LABELS)[1]
    want = lam * one_hot + (1 - params["lam"]).astype(np.float32)[:, None] * one_hot[params["partner"]]
    same(soft, want)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    same(mix.apply(params, FLOATS, one_hot)[1], want)
    double = mix.apply(params, FLOATS, one_hot.astype(np.float64))[1]
    assert double.dtype == np.float64
    loss = ironstep.functional.cross_entropy(np.zeros((6, 4), np.float32), soft)
    assert loss == pytest.approx(np.log(4), rel=1e-5)


def test_masks_are_cut_and_not_mixed() -> None:
    mask = (BYTES[..., 0] > 100).astype(np.int32)
    chain = Compose([CutMix(num_classes=3, mode="sample")], targets=("image", "mask", "label"))
    images = np.repeat(mask[..., None].astype(np.uint8), 3, -1)
    got, masks, _ = chain(0, images, mask, LABELS)
    np.testing.assert_array_equal(got[..., 0], masks)
    assert (masks != mask).any()
    with pytest.raises(TypeError, match=r"arrays\[1\] \(mask\) must be an array of floats"):
        Compose([MixUp(num_classes=3)], targets=("image", "mask", "label"))(0, BYTES, mask, LABELS)
    soft = mask.astype(np.float32)
    _, mixed, _ = Compose([MixUp(num_classes=3)], targets=("image", "mask", "label"))(0, BYTES, soft, LABELS)
    assert ((mixed > 0) & (mixed < 1)).any()


# -- Around ------------------------------------------------------------------------------------------------------------


def test_in_batches_with_prefetch_and_resume() -> None:
    chain = Compose([RandomCrop(12, padding=2), RandomHorizontalFlip(), Normalize(0.5, 0.25)], out_layout="NCHW")
    images, labels = np.concatenate([BYTES] * 5), np.arange(30)

    def run(size: int, prefetch: int, inplace: bool = False) -> dict[tuple[int, int], bytes]:
        seen = {}
        c = Compose(chain.transforms, out_layout="NCHW", inplace=inplace)
        batches = Batches(images, labels, batch_size=size, seed=3, transform=c, prefetch=prefetch)
        for epoch in range(2):
            for x, y in batches:
                for picture, label in zip(x, y, strict=True):
                    seen[epoch, int(label)] = picture.tobytes()
        return seen

    want = run(30, 0)
    assert len(want) == 60
    assert sum(want[0, i] != want[1, i] for i in range(30)) > 25
    assert run(7, 0) == want
    assert run(4, 3, inplace=True) == want
    same(images, np.concatenate([BYTES] * 5))


@pytest.mark.parametrize("name", CHAINS)
def test_repr_can_be_pasted_back(name: str) -> None:
    chain = Compose(CHAINS[name], layout="NCHW", mask_fill=255, targets=("image", "mask", None))
    again = eval(repr(chain))
    assert again == chain
    assert repr(again) == repr(chain)
    assert hash(again) == hash(chain)
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert chain != Compose(CHAINS[name])
    nested = OneOf([Compose([RandomHorizontalFlip(p=0.25)], p=0.5), RandomGrayscale()], weights=[0.5, 2.0], p=0.9)
    assert eval(repr(nested)) == nested


def test_empty_batches_and_pictures() -> None:
    for name in CHAINS:
        chain = Compose(CHAINS[name])
        got, labels = chain(0, BYTES[:0], LABELS[:0])
        want, _ = chain(0, BYTES, LABELS)
        assert got.shape == (0, *want.shape[1:])
        assert got.dtype == want.dtype
        assert len(labels) == 0
    assert Compose(CHAINS["edits"])(0, BYTES[:, :0]).shape == (6, 0, 12, 3)


def test_large_indices_and_seeds() -> None:
    chain = Compose([RandomHorizontalFlip(), GaussianNoise()])
    keys = [
        BatchKey(s, e, 0, np.full(6, i))
        for s, e, i in itertools.product((0, 2**64 - 1), (0, 2**32 - 1), (0, 2**48 - 1))
    ]
    results = [chain(key, BYTES) for key in keys]
    assert len({r.tobytes() for r in results}) == len(keys)
    for result in results:
        same(result[0] if (result[0] == result[1]).all() else result[1], result[1])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Compose([1]), TypeError, "transforms\\[0\\] must be a transform"),
        (lambda: Compose(RandomHorizontalFlip()), TypeError, "transforms must be a list"),
        (lambda: Compose([], layout="HWC"), ValueError, "layout must be 'NHWC', 'NCHW' or 'NHW', got 'HWC'"),
        (lambda: Compose([], targets=("mask",)), ValueError, 'targets must begin with "image"'),
        (lambda: OneOf([]), ValueError, "at least one"),
        (lambda: OneOf([RandomHorizontalFlip(), MixUp()]), ValueError, "must all be transforms of pairs"),
        (lambda: OneOf([RandomHorizontalFlip()], weights=[0]), ValueError, "weights must have one for each of 1"),
        (lambda: Compose([])(0), TypeError, "the images must be given"),
        (lambda: Compose([])(0, BYTES[0]), ValueError, r"must have 4 axes, N, H, W, C, got shape \(12, 12, 3\)"),
        (lambda: Compose([])(0, BYTES.astype(np.float64)), TypeError, "must be uint8 .* got float64; use .astype"),
        (lambda: Compose([])(0, BYTES.astype(np.int16)), TypeError, "got int16"),
        (lambda: Compose([])(-1, BYTES), ValueError, "key must be from 0"),
        (lambda: Compose([])("a", BYTES), TypeError, "key must be a BatchKey or a seed"),
        (lambda: RandomHorizontalFlip()(BatchKey(None, 0, 0, np.arange(6)), BYTES), ValueError, "seed must be given"),
        (
            lambda: Compose([])(BatchKey(0, 0, 0, np.arange(6) / 2), BYTES),
            TypeError,
            "key.indices must be whole numbers",
        ),
        (lambda: Compose([])(BatchKey(0, -1, 0, np.arange(6)), BYTES), ValueError, "key.epoch must be from 0"),
        (lambda: Compose([])(BYTES, 0), TypeError, "key must come first"),
        (lambda: Compose([])(0, list(BYTES)), TypeError, "images must be one array, got a list"),
        (lambda: Compose([]).sample(0, list(BYTES)), TypeError, "shape must be that of the images"),
        (lambda: Compose([])(0, BYTES, BYTES[..., 0]), ValueError, "got the shape of masks"),
        (lambda: Compose([])(0, BYTES, LABELS[:3]), ValueError, "a label for each of 6 samples, got 3"),
        (lambda: MixUp(num_classes=3)(0, BYTES, LABELS * 1.0), TypeError, "use .astype"),
        (lambda: Normalize(127.0, 50.0)(0, BYTES), ValueError, "divide mean and std by 255"),
        (lambda: Compose([]).preview(FLOATS * 255), ValueError, "must be in 0..1 to be drawn"),
        (lambda: Compose([])(BatchKey(0, 0, 0, np.arange(5)), BYTES), ValueError, "each of 6 samples"),
        (lambda: Compose([RandomHorizontalFlip()])(BatchKey(0, 0, 0, np.arange(-1, 5)), BYTES), ValueError, "got -1"),
        (lambda: Compose([RandomHorizontalFlip()])(BatchKey(0, 2**32, 0, np.arange(6)), BYTES), ValueError, "epoch"),
        (lambda: Compose([])(0, np.ma.masked_array(BYTES)), TypeError, "masked array"),
        (
            lambda: ColorJitter(0.1)(0, FLOATS * 255),
            ValueError,
            r"images must be in 0..1 for ColorJitter .* in image 0",
        ),
        (lambda: ColorJitter(0.1)(0, np.where(FLOATS.max() == FLOATS, np.nan, FLOATS)), ValueError, "got nan"),
        (lambda: Compose([Normalize(0.5, 1), ColorJitter(0.1)])(0, BYTES), ValueError, "must come before Normalize"),
        (lambda: RandomRotation(5, fill=256)(0, BYTES), ValueError, "fill of RandomRotation must be from 0 to 255"),
        (lambda: Compose([Normalize(0, 1)], p=0.5)(1, BYTES), ValueError, "must be applied to all samples"),
        (lambda: Compose([RandomCrop(5)], p=0.5)(0, BYTES), ValueError, "p must be 1 where the size changes"),
        (lambda: OneOf([RandomCrop(5), RandomCrop(6)])(0, BYTES), ValueError, "pictures of one size"),
        (lambda: OneOf([RandomCrop(5)], p=0.5)(0, BYTES), ValueError, "p must be 1 where the size changes"),
        (lambda: RandomRotate90()(0, BYTES[:, 1:], out=BYTES), ValueError, "out must be uint8 of shape"),
        (lambda: Compose([])(0, BYTES, out=BYTES[:, ::-1]), ValueError, "apart or the same array"),
        (lambda: Compose([])(0, BYTES, out=[1]), TypeError, "out must be a NumPy array"),
        (lambda: MixUp()(0, BYTES, LABELS), ValueError, "num_classes must be given"),
        (lambda: MixUp(num_classes=2)(0, BYTES, LABELS), ValueError, "from 0 to num_classes - 1 = 1, got 2"),
        (
            lambda: Compose([MixUp()], targets=("image", "boxes"))(0, BYTES, np.zeros((6, 1, 4))),
            ValueError,
            "cannot be mixed",
        ),
        (lambda: Compose([], targets=("image", "boxes"))(0, BYTES, np.zeros((6, 4))), ValueError, r"shape \(N, K, 4\)"),
        (lambda: Compose([], targets=("image", "boxes"))(0, BYTES, np.zeros((6, 1, 4), "c8")), TypeError, "float32 or"),
        (
            lambda: Compose([], targets=("image", "boxes"))(0, BYTES, -np.ones((6, 1, 4)).cumsum(-1)),
            ValueError,
            "at least 0",
        ),
        (
            lambda: Compose([], targets=("image", "mask"))(0, BYTES, BYTES[:, 1:, :, 0]),
            ValueError,
            "6 masks of 12 x 12",
        ),
        (
            lambda: Compose([], targets=("image", "mask"))(0, BYTES, BYTES[..., 0].astype("c16")),
            TypeError,
            "1, 2, 4 or 8",
        ),
        (lambda: Compose([RandomHorizontalFlip()]).apply([], BYTES), ValueError, "a list of 1 parameters"),
        (lambda: Compose([RandomHorizontalFlip()]).apply([{}], BYTES), ValueError, "params must have 'apply'"),
        (
            lambda: RandomHorizontalFlip().apply({"apply": np.ones(5, bool)}, BYTES),
            ValueError,
            r"must have shape \(6,\)",
        ),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], text: str) -> None:
    before = BYTES.copy(), FLOATS.copy()
    with pytest.raises(error, match=text):
        call()
    same(BYTES, before[0])
    same(FLOATS, before[1])


def test_read_only_and_overlapping_outputs_are_refused() -> None:
    out = np.empty_like(BYTES)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        Compose([])(0, BYTES, out=out)
    memory = np.zeros(10_000, np.uint8)
    for strides in ((0, 36, 3, 1), (36, 36, 3, 1)):
        shared = np.lib.stride_tricks.as_strided(memory, BYTES.shape, strides)
        with pytest.raises(ValueError, match="out must have a place of its own for each element"):
            Compose([])(0, BYTES, out=shared)
    memory = np.zeros((7, 12, 12, 3), np.uint8)
    with pytest.raises(ValueError, match="overlap in memory"):
        Compose([RandomHorizontalFlip(1.0)])(0, memory[:6], out=memory[1:])
    frozen = BYTES.copy()
    frozen.flags.writeable = False
    same(RandomHorizontalFlip(1.0)(0, frozen), BYTES[:, :, ::-1])
    result = Compose([RandomHorizontalFlip(1.0)], inplace=True)(0, frozen)
    assert result is not frozen


def test_preview() -> None:
    chain = Compose(
        [RandomRotation(30), Normalize((0.5, 0.4, 0.3), 0.5)], targets=("image", "mask", "boxes", "keypoints")
    )
    mask, boxes = (BYTES[..., 0] > 128).astype(np.uint8), np.tile([2.0, 2, 8, 8], (6, 1, 1))
    figure = chain.preview(BYTES, mask, boxes, boxes[..., :2], samples=3, versions=2)
    axes = figure.axes
    assert len(axes) == 9
    same(np.asarray(axes[0].images[0].get_array()), BYTES[0])
    picture = chain(BatchKey(0, 1, 0, np.arange(3)), BYTES[:3], mask[:3], boxes[:3], boxes[:3, :, :2])[0]
    want = np.clip(picture[2] * np.float32(0.5) + np.float32([0.5, 0.4, 0.3]), 0, 1)
    np.testing.assert_allclose(np.asarray(axes[8].images[0].get_array()), want, rtol=1e-6)
    assert RandomHorizontalFlip().preview(FLOATS[..., :1], versions=1).axes
    with pytest.raises(ValueError, match="at least 1 image"):
        chain.preview(BYTES[:0])


def test_what_draws_nothing_needs_no_seed() -> None:
    chain = Compose([CenterCrop(8), Normalize(0.5, 0.25)])
    batches = Batches(BYTES, LABELS, batch_size=4, shuffle=False, transform=chain)
    same(np.concatenate([x for x, _ in batches]), chain(0, BYTES))


def test_ragged_boxes_in_batches() -> None:
    boxes = np.empty(6, object)
    boxes[:] = [np.full((k, 4), 2 * np.arange(4.0)) for k in range(6)]
    chain = Compose([RandomHorizontalFlip(p=1.0)], targets=("image", "boxes"))
    for _, moved in Batches(BYTES, boxes, batch_size=3, shuffle=False, seed=0, transform=chain):
        assert isinstance(moved, list)
    assert [len(b) for b in moved] == [3, 4, 5]
    np.testing.assert_array_equal(moved[0][0], [8, 2, 12, 6])


def test_params_from_a_file(tmp_path: Any) -> None:
    rotate = RandomRotation(30)
    np.savez(tmp_path / "params.npz", **rotate.sample(0, BYTES))
    with np.load(tmp_path / "params.npz") as params:
        same(rotate.apply(params, BYTES), rotate(0, BYTES))


def test_points_of_samples_that_a_step_leaves_alone() -> None:
    """A step clips to its own size, but not the boxes of samples that go another way."""
    chain = Compose([OneOf([RandomCrop(32), Resize(32)])], targets=("image", "boxes", "keypoints"))
    images = np.zeros((2, 64, 64, 3), np.uint8)
    params = chain.sample(0, images)
    params[0][0].update(apply=np.array([False, True]), top=np.array([0, 32]), left=np.array([0, 32]))
    params[0][1].update(apply=np.array([True, False]))
    boxes, points = np.tile([40.0, 40, 60, 60], (2, 1, 1)), np.tile([50.0, 50], (2, 1, 1))
    _, boxes, points = chain.apply(params, images, boxes, points)
    np.testing.assert_array_equal(boxes[:, 0], [[20, 20, 30, 30], [8, 8, 28, 28]])
    np.testing.assert_array_equal(points[:, 0], [[24.75, 24.75], [18, 18]])


def test_an_output_that_is_another_array_of_the_call() -> None:
    x = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    chain = Compose([RandomHorizontalFlip(p=1.0)], layout="NHW", targets=("image", "mask"), inplace=True)
    images, mask = chain(0, x, x)
    same(mask, np.array([[[2, 1, 0], [5, 4, 3]]], np.uint8))
    assert images is x
    x, mask = np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.zeros((1, 2, 3), np.uint8)
    got = Compose(chain.transforms, layout="NHW", targets=chain.targets)(0, x, mask, out=mask)
    assert got[0] is mask
    assert (got[1] == 0).all()


def test_a_picture_on_the_way_that_no_memory_holds() -> None:
    chain = Compose([Resize((2**24, 2**24)), Resize(8)])
    with pytest.raises(MemoryError, match="no memory for a picture between two transforms"):
        chain(0, BYTES)


def test_labels_of_any_kind_pass() -> None:
    ragged = [np.arange(k) for k in range(6)]
    for labels in (ragged, {"a": 1}, None, "abc", list("abcdef"), np.arange(6.0), np.eye(6)):
        assert Compose([RandomHorizontalFlip()])(0, BYTES, labels)[1] is labels


def test_large_weights_and_parameters() -> None:
    flips = [RandomHorizontalFlip(), RandomVerticalFlip()]
    drawn = OneOf(flips, weights=[1e308, 1e308]).sample(0, (2000, 4, 4, 1))
    assert 400 < sum(p["apply"].sum() for p in drawn) < 1600
    crop = RandomCrop(8).sample(0, BYTES)
    crop["top"] = np.full(6, 2**64 - 1, np.uint64)
    with pytest.raises(ValueError, match=r"params\['top'\] must be below 2\*\*63"):
        RandomCrop(8).apply(crop, BYTES)
    crop["top"] = np.ma.masked_array(np.zeros(6, np.int64), True)
    with pytest.raises(TypeError, match="masked array"):
        RandomCrop(8).apply(crop, BYTES)
    with pytest.raises(TypeError, match="weights must be a list"):
        OneOf(flips, weights=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"transforms\[0\] must have no layout, out_layout"):
        Compose([Compose(flips, layout="NCHW", out_layout="NHWC")])
    with pytest.raises(TypeError, match=r"write RandomHorizontalFlip\(\.\.\.\)"):
        Compose([RandomHorizontalFlip])  # type: ignore[list-item]


def test_mixed_labels_that_are_infinite() -> None:
    cut = CutMix(mode="sample")
    params = cut.sample(0, BYTES)
    params["box"][:] = 0, 0, 12, 12
    logits = np.where(np.eye(6), 0.0, -np.inf)
    same(cut.apply(params, BYTES, logits)[1], logits[params["partner"]])
